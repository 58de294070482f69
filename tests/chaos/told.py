"""What is known of a run beside its log: what clients were told, and what was done to the processes."""

from __future__ import annotations

import msgspec

SIMULATED = "sim-"
"""How the names of simulated GPUs begin."""


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that was acknowledged: from here on it must not get lost."""

    session: str
    turn: int
    at_ms: int


class Stream(msgspec.Struct, kw_only=True):
    """A turn as one client saw it, over all connections that it needed."""

    session: str
    turn: int
    attempt: int = 0
    text: str = ""
    """Of the newest attempt, one piece after the other as they came; an earlier attempt's is forgotten."""
    followed: bool = True
    """False: the client only asked now and then; there is no text."""
    resumes: int = 0
    """Times that it went on with Last-Event-ID, mostly at the other API."""
    breaks: list[str] = msgspec.field(default_factory=list)
    """Pieces that did not begin where the text ended."""
    state: str = ""
    """How the turn ended, as told; empty: the client never heard."""
    output: str = ""
    """The whole output, as told at the end."""

    def attempted(self, attempt: int) -> None:
        """Another attempt begins at nothing."""
        if attempt > self.attempt:
            self.attempt, self.text = attempt, ""

    def heard(self, attempt: int, offset: int, text: str) -> None:
        """Add a piece. It is added wherever it claims to belong: what is doubled must show."""
        if attempt < self.attempt:
            self.breaks.append(f"a piece of attempt {attempt} after attempt {self.attempt}")
            return
        self.attempted(attempt)
        if offset != len(self.text):
            what = "lost" if offset > len(self.text) else "doubled"
            self.breaks.append(
                f"{what}: offset {offset} after {len(self.text)} characters of attempt {attempt}"
            )
        self.text += text


class Told(msgspec.Struct, kw_only=True):
    """All that the crowd knows."""

    acks: list[Ack] = msgspec.field(default_factory=list)
    asked: dict[str, int] = msgspec.field(default_factory=dict)
    """Session -> different requests for a turn of it that were sent, answered or not."""
    visits: int = 0
    """Different requests for a session that were sent, answered or not."""
    streams: list[Stream] = msgspec.field(default_factory=list)
    refusals: dict[str, int] = msgspec.field(default_factory=dict)
    """`<status> <code>`, or the name of a broken connection -> how often."""
    silences: int = 0
    """Streams that said nothing for so long that the client went to the other API."""
    unheard: list[str] = msgspec.field(default_factory=list)
    """`<session>/<turn>` whose end a client did not hear in time."""


class Strike(msgspec.Struct, kw_only=True):
    """A fault that was carried out."""

    number: int
    action: str
    kind: str
    process: str
    role: str = ""
    """`active` scheduler, `leader` of the log."""
    at_ms: int
    back_ms: int = 0
    """When it was started again or went on."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """A process that ended and nobody had killed it."""

    process: str
    code: int
    at_ms: int
    said: str
    """Its last words."""


class Run(msgspec.Struct, kw_only=True):
    """Everything that goes with a log to be judged."""

    seed: int
    turns: int
    began_ms: int = 0
    calm_ms: int = 0
    """When the last fault was over."""
    ended_ms: int = 0
    told: Told = msgspec.field(default_factory=Told)
    strikes: list[Strike] = msgspec.field(default_factory=list)
    endings: list[Ending] = msgspec.field(default_factory=list)
    postponed: int = 0
    """Strikes at the broker that had to wait until it was whole again."""
