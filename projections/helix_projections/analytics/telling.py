"""The row of `events` that a fact gets: which of its fields are columns of their own, by kind of fact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helix_es.core import events as e
from helix_projections.analytics.rows import Row

Tell = Callable[[int, int, str, str, Any, bool, str | None, bytes | None], Row]
"""Of: sequence, Unix ms, subject, tag, the fact, whether it happened, trace, body. One call, since facts are many."""

NONE = e.NO_GPU

# fields that a fact has -> its row; everything between the tag and `happened` is session, turn, attempt, gpu, model
_SHAPES: dict[tuple[str, ...], Tell] = {
    (): lambda q, a, s, t, x, h, r, b: (q, a, s, t, None, None, None, None, None, h, r, b),
    ("session",): lambda q, a, s, t, x, h, r, b: (q, a, s, t, x.session, None, None, None, None, h, r, b),
    ("session", "model"): lambda q, a, s, t, x, h, r, b: (
        (q, a, s, t, x.session, None, None, None, x.model, h, r, b)
    ),
    ("session", "turn", "model"): lambda q, a, s, t, x, h, r, b: (
        (q, a, s, t, x.session, x.turn, None, None, x.model, h, r, b)
    ),
    ("session", "turn", "attempt", "model"): lambda q, a, s, t, x, h, r, b: (
        (q, a, s, t, x.session, x.turn, x.attempt, None, x.model, h, r, b)
    ),
    ("session", "turn", "attempt", "gpu", "model"): lambda q, a, s, t, x, h, r, b: (
        (q, a, s, t, x.session, x.turn, x.attempt, x.gpu, x.model, h, r, b)
    ),
    ("session", "turn", "attempt", "gpu"): lambda q, a, s, t, x, h, r, b: (
        (q, a, s, t, x.session, x.turn, x.attempt, x.gpu if x.gpu != NONE else None, None, h, r, b)
    ),
    ("session", "turn", "gpu"): lambda q, a, s, t, x, h, r, b: (
        (q, a, s, t, x.session, x.turn, None, x.gpu if x.gpu != NONE else None, None, h, r, b)
    ),
    ("session", "gpu"): lambda q, a, s, t, x, h, r, b: (
        (q, a, s, t, x.session, None, None, x.gpu if x.gpu != NONE else None, None, h, r, b)
    ),
    ("gpu",): lambda q, a, s, t, x, h, r, b: (q, a, s, t, None, None, None, x.gpu, None, h, r, b),
    ("gpu", "model"): lambda q, a, s, t, x, h, r, b: (q, a, s, t, None, None, None, x.gpu, x.model, h, r, b),
}
_COLUMNS = ("session", "turn", "attempt", "gpu", "model")


def telling(kind: type[e.Event]) -> Tell:
    """Return what makes the row of a fact of `kind`."""
    return _SHAPES[tuple(name for name in _COLUMNS if name in kind.__struct_fields__)]


def tell_unreadable(seq: int, at_ms: int, subject: str, trace: str | None) -> Row:
    """Return the row of a message that is no fact."""
    return (seq, at_ms, subject, None, None, None, None, None, None, False, trace, None)
