"""How many examples hypothesis makes, and which: the same ones in every `make test`, new ones in `make explore`."""

from __future__ import annotations

import os

from hypothesis import Phase, settings

MORE = int(os.environ.get("HELIX_EXAMPLES", "0"))
"""Times as many examples, and other ones each time; 0: those of `make test`."""

# "explain" traces every line under Python 3.11: minutes for a stateful test, in which its time limit hides the finding.
PHASES = [phase for phase in Phase if phase is not Phase.explain]
settings.register_profile("same", derandomize=True, phases=PHASES, deadline=None)
settings.register_profile(
    "explore", max_examples=100 * max(1, MORE), print_blob=True, phases=PHASES, deadline=None
)


def load() -> None:
    """Choose for this run; before a test module is imported."""
    settings.load_profile("explore" if MORE else "same")


def many(n: int) -> int:
    """Return how many examples to make of a test that makes `n` in `make test`."""
    return n * max(1, MORE)
