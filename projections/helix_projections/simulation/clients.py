"""Simulated clients: each says its turns when the trace does, and waits for an answer before it says the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_projections.simulation.traces import Arrival


class Client:
    """One session: whose it is, how much it said, and what it has still to say."""

    def __init__(self, session: str, owner: str, workload: e.Workload) -> None:
        self.session = e.SessionId(session)
        self.owner = owner
        self.workload = workload
        self.turns = 0
        self.unsaid: deque[Arrival] = deque()


Append = Callable[[e.AnyEvent], int]


class Clients:
    """Everybody in front of the door."""

    def __init__(self, state: Occupancy, append: Append, workload: e.Workload, owners: int) -> None:
        self._state = state
        self._append = append
        self._workload = workload
        self._owners = owners
        self._by_session: dict[str, Client] = {}
        self._open: dict[str, Arrival] = {}

    def arrive(self, arrival: Arrival) -> None:
        """Say a turn, or keep it until the one before is answered."""
        client = self._by_session.get(arrival.session)
        if client is None:
            client = self._enter(arrival.session)
        if arrival.session in self._open:
            client.unsaid.append(arrival)
        else:
            self._say(client, arrival)

    def open_turn(self, session: str) -> Arrival:
        """Return what the session waits for an answer to."""
        return self._open[session]

    def answered(self, session: str) -> None:
        """The open turn has ended: say what was kept."""
        client = self._by_session[session]
        del self._open[session]
        if client.unsaid:
            self._say(client, client.unsaid.popleft())

    def _enter(self, session: str) -> Client:
        number = len(self._by_session)
        owner = f"o{number % self._owners}" if self._owners else session
        client = self._by_session[session] = Client(session, owner, self._workload)
        work = client.workload
        self._append(
            e.SessionCreated(
                session=client.session, owner=owner, mode=work.mode, type=work.type, model=work.model
            )
        )
        return client

    def _say(self, client: Client, arrival: Arrival) -> None:
        self._open[client.session] = arrival
        client.turns += 1
        seat = self._state.seats.get(client.session)
        if seat is None:
            self._append(self._queued(client))
        else:
            gpu = seat.gpu or e.NO_GPU
            self._append(self._continued(client, gpu, seat.last_seq))

    @staticmethod
    def _queued(client: Client) -> e.TurnQueued:
        return e.TurnQueued(
            session=client.session,
            turn=client.turns,
            mode=client.workload.mode,
            type=client.workload.type,
            model=client.workload.model,
            owner=client.owner,
            prompt="",
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
