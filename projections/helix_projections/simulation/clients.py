"""Simulated clients: each says its turns when the trace does, and waits for an answer before it says the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.clock import Clock
from helix_projections.simulation.outcome import Turn
from helix_projections.simulation.scenario import Scenario


class Spoken:
    """A turn that was said and is not answered: what happened to it until now."""

    __slots__ = (
        "admitted_ms",
        "arrival",
        "attempts",
        "first_started_ms",
        "left_ms",
        "said_ms",
        "straight",
        "turn",
    )

    def __init__(self, arrival: Arrival, turn: int, said_ms: int, *, straight: bool) -> None:
        self.arrival = arrival
        self.turn = turn
        self.said_ms = said_ms
        self.straight = straight
        self.admitted_ms: int | None = None
        self.first_started_ms: int | None = None
        self.attempts = 0
        self.left_ms = float(arrival.work_ms)
        """Of a fine-tune, after its last checkpoint."""


class Client:
    """One session: whose it is, and what it has still to say."""

    __slots__ = ("owner", "session", "spoken", "turns", "unsaid", "workload")

    def __init__(self, session: str, owner: str, workload: e.Workload) -> None:
        self.session = e.SessionId(session)
        self.owner = owner
        self.workload = workload
        self.turns = 0
        self.unsaid: deque[Arrival] = deque()
        self.spoken: Spoken | None = None


Append = Callable[[e.AnyEvent], int]


class Clients:
    """Everybody in front of the door. `turns` are those that ended, in the order in which they did."""

    def __init__(self, scenario: Scenario, state: Occupancy, clock: Clock, append: Append) -> None:
        self.turns: list[Turn] = []
        self._scenario = scenario
        self._state = state
        self._clock = clock
        self._append = append
        self._by_session: dict[str, Client] = {}
        self._later: dict[str, deque[Arrival]] = {}
        """What is said so long after the answer before it, by session."""
        self._arrivals: Iterator[Arrival] = iter(())

    def expect(self, arrivals: Iterable[Arrival]) -> None:
        """Let everybody come when it is time. `arrivals`: in order of their time."""
        open_loop = []
        for arrival in arrivals:
            if arrival.think_ms is None or arrival.turn == 1:
                open_loop.append(arrival)
            else:
                self._later.setdefault(arrival.session, deque()).append(arrival)
        self._arrivals = iter(open_loop)
        self._next()

    def spoken(self, session: str) -> Spoken:
        """Return the turn that the session waits for an answer to."""
        spoken = self._by_session[session].spoken
        if spoken is None:  # the scheduler decides about open turns only
            raise LookupError(f"{session} has no open turn")
        return spoken

    def unanswered(self) -> Iterator[Turn]:
        """Yield the turns that are open."""
        for client in self._by_session.values():
            if client.spoken is not None:
                yield _turn(client, client.spoken, first_token_ms=None, ended_ms=None, failed=False)

    def answered(self, session: str, *, first_token_ms: int | None, failed: bool = False) -> None:
        """The open turn has ended: say what comes next. `first_token_ms`: when its first token came."""
        client, now_ms = self._by_session[session], self._clock.now_ms
        spoken, client.spoken = self.spoken(session), None
        self.turns.append(_turn(client, spoken, first_token_ms, now_ms, failed))
        later = self._later.get(session)
        if client.unsaid:
            self._say(client, client.unsaid.popleft())
        elif later:
            following = later.popleft()
            self._clock.at(now_ms + (following.think_ms or 0), lambda: self._arrive(following))
        elif spoken.arrival.closes_ms is not None:
            self._clock.at(now_ms + spoken.arrival.closes_ms, lambda: self._close(client, spoken.turn))

    def _next(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self._clock.at(self._scenario.open_ms + arrival.at_ms, lambda: self._come(arrival))

    def _come(self, arrival: Arrival) -> None:
        self._arrive(arrival)
        self._next()

    def _arrive(self, arrival: Arrival) -> None:
        """Say a turn, or keep it until the one before is answered."""
        client = self._by_session.get(arrival.session)
        if client is None:
            client = self._enter(arrival)
        if client.spoken is not None:
            client.unsaid.append(arrival)
        else:
            self._say(client, arrival)

    def _enter(self, arrival: Arrival) -> Client:
        owners = self._scenario.owners
        dealt = f"o{len(self._by_session) % owners}" if owners else arrival.session
        workload = arrival.workload or self._scenario.workload
        client = Client(arrival.session, arrival.owner or dealt, workload)
        self._by_session[arrival.session] = client
        self._append(
            e.SessionCreated(
                session=client.session,
                owner=client.owner,
                mode=workload.mode,
                type=workload.type,
                model=workload.model,
                priority=arrival.priority,
            )
        )
        return client

    def _say(self, client: Client, arrival: Arrival) -> None:
        client.turns += 1
        seat = self._state.seats.get(client.session)
        client.spoken = Spoken(arrival, client.turns, self._clock.now_ms, straight=seat is not None)
        if seat is None:
            self._append(self._queued(client, arrival))
        else:
            gpu = seat.gpu or e.NO_GPU
            self._append(self._continued(client, gpu, seat.last_seq))

    def _close(self, client: Client, turn: int) -> None:
        """Close the session after its last turn, unless it has lost its slot before: then nobody asks."""
        if client.turns == turn and client.session in self._state.seats:
            self._append(e.SessionClosed(session=client.session))

    @staticmethod
    def _queued(client: Client, arrival: Arrival) -> e.TurnQueued:
        return e.TurnQueued(
            session=client.session,
            turn=client.turns,
            mode=client.workload.mode,
            type=client.workload.type,
            model=client.workload.model,
            owner=client.owner,
            priority=arrival.priority,
            prompt="",
            max_wait_ms=arrival.max_wait_ms,
        )

    @staticmethod
    def _continued(client: Client, gpu: e.GpuId, after_seq: int) -> e.TurnContinued:
        return e.TurnContinued(
            session=client.session,
            turn=client.turns,
            type=client.workload.type,
            model=client.workload.model,
            gpu=gpu,
            after_seq=after_seq,
            prompt="",
        )


def _turn(
    client: Client, spoken: Spoken, first_token_ms: int | None, ended_ms: int | None, failed: bool
) -> Turn:
    return Turn(
        session=client.session,
        turn=spoken.turn,
        owner=client.owner,
        workload=client.workload,
        straight=spoken.straight,
        said_ms=spoken.said_ms,
        admitted_ms=spoken.said_ms if spoken.straight else spoken.admitted_ms,
        started_ms=spoken.first_started_ms,
        first_token_ms=first_token_ms,
        ended_ms=ended_ms,
        prompt_tokens=spoken.arrival.prompt_tokens,
        output_tokens=spoken.arrival.output_tokens,
        attempts=spoken.attempts,
        failed=failed,
    )
