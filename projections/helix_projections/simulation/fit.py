"""Fits the service model to a log: how long prompts, tokens and loads took on each kind of GPU with each model."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from helix_es.archive import Archive
from helix_es.core import events as e
from helix_projections.simulation.crowd import Crowd, Span, crowds
from helix_projections.simulation.fitted import Fitted, Note
from helix_projections.simulation.heard import Heard, Said, Took
from helix_projections.simulation.listener import hear
from helix_projections.simulation.service import Service

LEAST_TURNS = 20  # fewer tell more of chance than of the GPU
ROUNDS = 20  # of a robust fit; it stands still long before
OUTLYING = 4.0  # medians of the residuals: what is farther off is an accident, and counts accordingly less
SURE = 4.0  # standard errors above nothing before a prompt's length is believed to matter

FAR, FAR_MS = 10, 50  # a delay beyond so many medians, and that, is an outage and nothing usual

Numbers = NDArray[np.float64]


async def fit(archive: Archive, default: Service | None = None) -> Fitted:
    """Return what `archive` tells of its GPUs; `default` for what it does not. Raises Unreadable, Unavailable."""
    return fit_heard(await hear(archive), default or Service())


def fit_heard(heard: Heard, default: Service) -> Fitted:
    """Return what was heard of GPUs. The same log gives the same numbers."""
    spans = _spans(heard.turns)
    loads, checkpoints = _by_key(heard.loads), _by_key(heard.checkpoints)
    services, notes = {}, {}
    for key in sorted({*spans, *loads}):
        service, note = _fit(spans.get(key, []), loads.get(key, []), default)
        if key in checkpoints:
            service = msgspec.structs.replace(
                service, checkpoint_ms=round(statistics.median(checkpoints[key]))
            )
        services[key], notes[key] = service, note
    starts = [
        run.started_ms - run.asked_ms
        for said in heard.turns
        if said.workload.mode == "create"
        for run in said.runs
    ]
    return Fitted(
        services=services,
        notes=notes,
        decide_ms=_usual(heard.decided_after_ms),
        start_ms=_usual(starts),
    )


def _by_key(took: Iterable[Took]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for each in took:
        found.setdefault(f"{each.kind}/{each.model}", []).append(each.took_ms)
    return found


def _usual(values: list[int]) -> int:
    """Return the mean, which is what slots are lost by, of all but accidents."""
    if not values:
        return 0
    most = FAR * statistics.median(values) + FAR_MS
    return round(statistics.mean(value for value in values if value <= most))


def _spans(turns: Iterable[Said]) -> dict[str, list[Span]]:
    """Return the attempts of chats by GPU kind and model."""
    found: dict[str, list[Span]] = {}
    for said in turns:
        if said.workload.mode != "create" or said.workload.type != "text":
            continue
        for run in said.runs:
            if run.ended_ms is None:
                continue
            last = run is said.runs[-1]
            end = said.end if last and isinstance(said.end, e.TurnCompleted) else None
            span = Span(gpu=run.gpu, started_ms=run.started_ms, ended_ms=run.ended_ms)
            if end is not None and end.first_token_ms is not None and end.usage.completion_tokens > 0:
                # by the log's clock: what the runner took before `started` is not of this span
                before_ms = end.total_ms - (run.ended_ms - run.started_ms)
                span.first_ms = max(0.0, float(end.first_token_ms - before_ms))
                span.unread = max(1, end.usage.prompt_tokens - end.usage.cached_tokens)
                span.tokens = end.usage.completion_tokens
            found.setdefault(f"{run.kind}/{said.workload.model}", []).append(span)
    return found


def _fit(spans: list[Span], loads: list[int], default: Service) -> tuple[Service, Note]:
    service, defaults = default, []
    known = [(span, crowd) for span, crowd in zip(spans, crowds(spans), strict=True) if span.tokens]
    if loads:
        service = msgspec.structs.replace(service, load_ms=round(statistics.median(loads)))
    else:
        defaults.append("load_ms")
    if len(known) >= LEAST_TURNS:
        service = _fit_first(known, service, defaults)
        service = _fit_step(known, service, defaults)
    else:
        defaults += [
            "first_ms",
            "first_session_ms",
            "prefill_tokens_per_s",
            "serial",
            "weights_ms",
            "session_ms",
        ]
    errors = _errors(known, service) if known else (None, None)
    note = Note(
        turns=len(known),
        loads=len(loads),
        first_token_error=errors[0],
        total_error=errors[1],
        defaults=defaults,
    )
    return service, note


# -- the first token


def _fit_first(known: list[tuple[Span, Crowd]], service: Service, defaults: list[str]) -> Service:
    """first = first_ms + first_session_ms × (others) + unread / rate [+ the wait for prompts before it]."""
    first = np.array([span.first_ms for span, _ in known])
    others = np.array([float(crowd.running - 1) for _, crowd in known])
    unread = np.array([float(span.unread) for span, _ in known])
    behind = np.array([crowd.behind_ms for _, crowd in known])
    serial = _is_serial(first, others, unread, behind)
    if serial:
        first = np.maximum(0.0, first - behind)
    columns, names = [np.ones_like(first)], ["first_ms"]
    if np.ptp(others) > 0:
        columns.append(others)
        names.append("first_session_ms")
    slope, error = 0.0, 0.0
    if np.ptp(unread) > 0:
        found, errors = _robust(np.column_stack([*columns, unread]), first)
        slope, error = float(found[-1]), float(errors[-1])
    if slope > SURE * error:
        values = found[:-1]
        rate = 1000.0 / slope
    else:  # prompts were too short, or too much alike, to tell
        defaults.append("prefill_tokens_per_s")
        rate = service.prefill_tokens_per_s
        values, _ = _robust(np.column_stack(columns), np.maximum(0.0, first - unread * 1000.0 / rate))
    fields = {name: max(0.0, float(value)) for name, value in zip(names, values, strict=True)}
    if "first_session_ms" not in fields:
        defaults.append("first_session_ms")
    return msgspec.structs.replace(service, serial=serial, prefill_tokens_per_s=rate, **fields)


def _is_serial(first: Numbers, others: Numbers, unread: Numbers, behind: Numbers) -> bool:
    """Whether those who came while prompts were being read had their first tokens as if they had waited for these."""
    crowded = behind > 0
    if np.count_nonzero(crowded) < LEAST_TURNS:
        return False
    columns = np.column_stack([np.ones_like(first), others, unread])
    off = []
    for wanted in (first - behind, first):
        found, _ = _robust(columns, wanted)
        off.append(float(np.median(np.abs(wanted - columns @ found)[crowded])))
    return off[0] < off[1]


# -- the others


def _fit_step(known: list[tuple[Span, Crowd]], service: Service, defaults: list[str]) -> Service:
    """Each other token takes weights_ms + session_ms × (turns that share the GPU then)."""
    long = [(span, crowd) for span, crowd in known if span.tokens > 1 and span.decode_ms > 0]
    if len(long) < LEAST_TURNS:
        defaults += ["weights_ms", "session_ms"]
        return service
    tokens = np.array([span.tokens - 1.0 for span, _ in long])
    took = np.array([span.decode_ms for span, _ in long])
    levels = [crowd.decoding_ms if service.serial else crowd.running_ms for _, crowd in long]
    most = max(max(each) for each in levels)
    shares = np.zeros((len(long), most + 1))
    for row, each in enumerate(levels):
        for level, ms in each.items():
            shares[row, level] = ms
    sessions = np.arange(most + 1)
    mean = shares @ sessions / np.maximum(1e-9, shares.sum(axis=1))
    if np.ptp(mean) < 0.5:  # always the same crowd: what of a step is whose cannot be told
        step = float(np.median(took / tokens))
        part = service.session_ms / (service.weights_ms + service.session_ms * max(1.0, float(mean.mean())))
        defaults.append("session_ms / weights_ms")
        session_ms = step * part
        return msgspec.structs.replace(
            service, session_ms=session_ms, weights_ms=step - session_ms * max(1.0, float(mean.mean()))
        )
    found, _ = _robust(np.column_stack([np.ones_like(mean), mean]), took / tokens, weights=tokens)
    for _ in range(ROUNDS):  # the crowd changes within a turn: mean of rates, not of steps
        step = np.maximum(1e-3, found[0] + found[1] * sessions)
        told = shares @ (1.0 / step)
        slopes = np.column_stack([shares @ (-1.0 / step**2), shares @ (-sessions / step**2)])
        change, _ = _robust(slopes / tokens[:, None], (tokens - told) / tokens, weights=tokens)
        found = found + change
        if float(np.max(np.abs(change))) < 1e-6:
            break
    return msgspec.structs.replace(
        service, weights_ms=max(1e-3, float(found[0])), session_ms=max(0.0, float(found[1]))
    )


def _errors(known: list[tuple[Span, Crowd]], service: Service) -> tuple[float, float]:
    firsts, totals = [], []
    for span, crowd in known:
        first_ms = service.prefill_ms(span.unread, crowd.running)
        first_ms += crowd.behind_ms if service.serial else 0.0
        levels = crowd.decoding_ms if service.serial else crowd.running_ms
        told = sum(ms * service.tokens_per_ms(level) for level, ms in levels.items())
        decode_ms = max(0.0, span.decode_ms) * (span.tokens - 1) / told if told > 0 else 0.0
        firsts.append(abs(first_ms - span.first_ms) / max(1.0, span.first_ms))
        whole_ms = span.ended_ms - span.started_ms
        totals.append(abs(first_ms + decode_ms - whole_ms) / max(1.0, whole_ms))
    return statistics.median(firsts), statistics.median(totals)


def _robust(columns: Numbers, wanted: Numbers, weights: Numbers | None = None) -> tuple[Numbers, Numbers]:
    """Return coefficients and their standard errors, by least squares in which what is far off counts less (Huber)."""
    base = np.ones_like(wanted) if weights is None else weights / weights.mean()
    scale = np.maximum(1e-12, np.abs(columns).max(axis=0))
    scaled = columns / scale
    counted = base
    found = np.zeros(columns.shape[1])
    for _ in range(ROUNDS):
        root = np.sqrt(counted)
        before, found = found, np.linalg.lstsq(scaled * root[:, None], wanted * root, rcond=None)[0]
        off = np.abs(wanted - scaled @ found)
        near = OUTLYING * max(1e-9, float(np.median(off)))
        counted = base * np.minimum(1.0, near / np.maximum(near, off))
        if np.allclose(found, before, rtol=1e-9, atol=1e-12):
            break
    spread = float(np.sum(counted * (wanted - scaled @ found) ** 2)) / max(1, len(wanted) - len(found))
    inverse = np.linalg.pinv((scaled * counted[:, None]).T @ scaled)
    return found / scale, np.sqrt(np.maximum(0.0, spread * np.diag(inverse))) / scale
