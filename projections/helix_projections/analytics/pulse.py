"""Heartbeats, thinned: one row a GPU and window, made when the window is over, merged again as it grows old."""

from __future__ import annotations

from typing import Any

import msgspec

from helix_es.core.codec import decode
from helix_es.core.errors import Unreadable
from helix_es.core.events import GpuHeartbeat
from helix_es.jetstream.follow import Message
from helix_projections.analytics.aside import NOT_TEXT, aside, is_text
from helix_projections.analytics.rows import Row

WINDOW_MS = 10_000  # about as often as monitoring looks at a GPU, and a tenth of the heartbeats
DAY_MS = 86_400_000
# Whoever asks about yesterday looks at minutes, about last month at hours: a GPU then has 8,640 rows of the last day,
# 1,440 of each of the last 30 and 24 of each before.
AGES = ((WINDOW_MS // 1000, 60, 1 * DAY_MS), (60, 3_600, 30 * DAY_MS))
HOUR_MS = 3_600_000
EXACT = 6  # decimal places that are kept, so that merging adds whole numbers, in whatever order they come
MOST = 1e12  # of anything a heartbeat measures, but for bytes


class Beats(msgspec.Struct):
    """Rows of windows that are over, and how far BEATS is with them."""

    seq: int
    at_ms: int
    added: dict[str, list[Row]]
    merges: list[str] = []


class _Seen(msgspec.Struct):
    """One GPU's heartbeats in the present window."""

    samples: int = 0
    utilisation: float = 0.0
    utilisation_max: float = 0.0
    memory_used_bytes: int = 0
    temperature_c: int = 0
    temperatures: int = 0
    power_w: int = 0
    powers: int = 0
    slots_used: int = 0
    stalled_ms: int = 0
    last: GpuHeartbeat | None = None

    def take(self, beat: GpuHeartbeat) -> None:
        self.samples += 1
        self.utilisation += beat.utilisation
        self.utilisation_max = max(self.utilisation_max, beat.utilisation)
        self.memory_used_bytes += beat.memory_used_bytes
        if beat.temperature_c is not None:
            self.temperature_c += beat.temperature_c
            self.temperatures += 1
        if beat.power_w is not None:
            self.power_w += beat.power_w
            self.powers += 1
        self.slots_used += beat.slots_used
        self.stalled_ms = max(self.stalled_ms, beat.stalled_ms)
        self.last = beat

    def row(self, since_ms: int, span_s: int, gpu: str, incarnation: str) -> Row:
        n, last = self.samples, self.last
        return (
            since_ms,
            span_s,
            n,
            gpu,
            incarnation,
            None if last is None else last.model,
            _mean(self.utilisation, n),
            self.utilisation_max,
            self.memory_used_bytes // n,
            0 if last is None else last.memory_total_bytes,
            _mean(self.temperature_c, self.temperatures),
            _mean(self.power_w, self.powers),
            _mean(self.slots_used, n),
            self.stalled_ms,
        )


def _mean(total: float, samples: int) -> float | None:
    """Return the mean; None of nothing, or of what no device measures and no sum could hold."""
    return round(total / samples, EXACT) if samples and abs(total) < MOST else None


class Pulse:
    """The fold of BEATS. Its position is the end of the last window that is over: the present one is read again."""

    def __init__(self, window_ms: int = WINDOW_MS) -> None:
        self._long_ms = window_ms
        self._window_ms = 0
        self._last = (0, 0)
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._set_aside: list[Row] = []
        self._beats: Beats | None = None
        self._merged_ms = 0

    def apply(self, message: Message) -> None:
        """Take in the next message of the stream."""
        window_ms = message.at_ms // self._long_ms * self._long_ms
        if (
            window_ms > self._window_ms
        ):  # servers' clocks may differ: what comes late counts to the present window
            self._close(window_ms)
        self._last = (message.seq, message.at_ms)
        try:
            event = decode(message.subject, message.body)
        except Unreadable as error:
            self._set_aside.append(aside("BEATS", message, str(error)))
            return
        if not is_text(message.body):  # what could be read of it counts, as in the log
            self._set_aside.append(aside("BEATS", message, NOT_TEXT))
        if isinstance(event, GpuHeartbeat):
            key = (event.gpu, event.incarnation)
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = _Seen()
            seen.take(event)

    def _close(self, next_ms: int) -> None:
        if self._last[0]:
            seq, at_ms = self._last
            beats = self._beats or Beats(seq, at_ms, {})
            beats.seq, beats.at_ms = seq, at_ms
            rows = [
                seen.row(self._window_ms, self._long_ms // 1000, *key)
                for key, seen in sorted(self._seen.items())
            ]
            if rows:
                beats.added.setdefault("heartbeats", []).extend(rows)
            if self._set_aside:
                beats.added.setdefault("set_aside", []).extend(self._set_aside)
            self._beats = beats
        self._window_ms = next_ms
        self._seen, self._set_aside = {}, []

    def take(self) -> Beats | None:
        """Return what became ready since the last call, None if nothing did."""
        beats, self._beats = self._beats, None
        if beats is None:
            return None
        hour_ms = beats.at_ms // HOUR_MS * HOUR_MS
        if hour_ms > self._merged_ms:
            self._merged_ms = hour_ms
            beats.merges = [text for age in AGES for text in _merge(*age, hour_ms)]
        return beats


def _merge(span_s: int, into_s: int, age_ms: int, hour_ms: int) -> list[str]:
    """Return SQL that makes rows of `into_s` of those of `span_s` from before the hour that is `age_ms` back."""
    before: Any = f"make_timestamptz({(hour_ms - age_ms) * 1000})"
    old = f"span_s = {span_s} AND logged_at < {before}"

    def mean(column: str) -> str:
        parts = 10**EXACT
        whole = f"sum(round({column} * {parts})::HUGEINT * samples) FILTER ({column} IS NOT NULL)"
        count = f"nullif(sum(samples) FILTER ({column} IS NOT NULL), 0)"
        return f"round({whole}::DOUBLE / {count}::DOUBLE / {parts}, {EXACT})"

    into = f"time_bucket(INTERVAL {into_s} SECOND, logged_at, TIMESTAMPTZ 'epoch')"
    return [
        f"""INSERT INTO heartbeats
        SELECT {into} AS since, {into_s}, sum(samples)::INTEGER, gpu, incarnation, max_by(model, logged_at),
            {mean("utilisation")}, max(utilisation_max),
            (sum(memory_used_bytes::HUGEINT * samples) // sum(samples))::BIGINT,
            max_by(memory_total_bytes, logged_at), {mean("temperature_c")}, {mean("power_w")}, {mean("slots_used")},
            max(stalled_ms)
        FROM heartbeats WHERE {old} GROUP BY since, gpu, incarnation""",  # noqa: S608  # numbers of ours
        f"DELETE FROM heartbeats WHERE {old}",  # noqa: S608
    ]
