"""A whole shop in memory: clients, runners and schedulers act on one log through the real fold and decisions."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from helix_es.core import events as e
from helix_es.core.decision import RULES
from helix_es.core.errors import Conflict
from helix_es.core.history import Session, fold
from helix_es.core.occupancy import Occupancy
from helix_es.core.placement import Decision, decide
from helix_es.core.session import OPEN
from helix_es.core.subjects import fence_of, session_filter, subject_of
from helix_es.core.verify import Report, Verification
from helix_es.testing import InMemoryLog, matches

WORK = e.Workload("create", "text", "mistral")


@dataclass
class Runner:
    """A runner as the protocol demands it: takes work only while it has a free slot by what the log stored."""

    gpu: e.GpuId
    incarnation: str
    slots: int = 0
    ready: bool = False
    serving: e.Workload | None = None
    leaving: bool = False
    left: bool = False
    load_ms: int | None = 0
    """How long a model takes to load; None: for ever."""
    told: tuple[e.GpuAssigned, int, int] | None = None
    """The assignment that it has not answered, where that stands, and when it came."""
    yielding: set[str] = field(default_factory=set)
    bound: dict[str, None] = field(default_factory=dict)
    heard: int = 0
    running: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # session -> turn, attempt, fence


class Shop:
    """The shared log and everybody around it."""

    def __init__(self, policy: e.Policy | None = None) -> None:
        self.now_ms = 1_000_000
        self.log = InMemoryLog(lambda: self.now_ms)
        self.live = Occupancy()
        self.runners: dict[str, Runner] = {}
        self.tasks: list[e.Recorded] = []
        self.routed = 0
        self.keys = 0
        if policy is not None:
            self.append(e.PolicySet(policy=policy), 0)

    def append(self, event: e.AnyEvent, expected_seq: int) -> int | None:
        """Return the sequence, or None if somebody else was first."""
        self.keys += 1
        if isinstance(event, e.PolicySet):
            event = e.PolicySet(policy=msgspec.structs.replace(event.policy, rules=RULES))
        try:
            return self.log.append_now(event, expected_seq=expected_seq, key=f"k{self.keys}")
        except Conflict:
            return None

    def verified(self) -> Report:
        """Return what comes of making every decision in the log again."""
        verification = Verification()
        for record in self.log.records:
            verification.note(record)
        for record in self.log.records:
            verification.take(record)
        return verification.end()

    def session(self, sid: str) -> Session:
        found = (r for r in self.log.records if matches(r.subject, session_filter(sid)))
        return fold(sid, found)

    def catch_up(self, state: Occupancy, upto: int | None = None) -> Occupancy:
        for record in self.log.records[state.seq : upto]:
            state.apply(record)
        return state

    # -- clients

    def open(
        self,
        sid: str,
        owner: str = "ann",
        priority: int = 0,
        work: e.Workload = WORK,
        max_wait_ms: int | None = None,
    ) -> None:
        session = e.SessionId(sid)
        created = e.SessionCreated(
            session=session, owner=owner, mode=work.mode, type=work.type, model=work.model, priority=priority
        )
        seq = self.append(created, 0)
        assert seq is not None
        self.queue(self.session(sid), 1, max_wait_ms)

    def queue(self, s: Session, turn: int, max_wait_ms: int | None = None) -> int | None:
        return self.append(
            e.TurnQueued(
                session=s.session,
                turn=turn,
                mode=s.mode,
                type=s.type,
                model=s.model,
                owner=s.owner,
                priority=s.priority,
                prompt="hello",
                max_wait_ms=max_wait_ms,
            ),
            s.last_seq,
        )

    def say(self, sid: str) -> bool:
        """Say the next thing, as the API does; False if a turn is open or the session is over."""
        s = self.session(sid)
        turn = len(s.turns) + 1
        if s.mode == "create" and s.phase == "idle" and s.gpu is not None:
            event = e.TurnContinued(
                session=s.session,
                turn=turn,
                type=s.type,
                model=s.model,
                gpu=e.GpuId(s.gpu),
                after_seq=s.last_seq,
                prompt="more",
            )
            return self.append(event, s.last_seq) is not None
        if s.phase == "released":
            return self.queue(s, turn) is not None
        return False

    def cancel(self, sid: str) -> None:
        s = self.session(sid)
        if s.phase == "running" and s.gpu is not None:
            gpu = e.GpuId(s.gpu)
            self.append(e.TurnCancelling(session=s.session, turn=len(s.turns), gpu=gpu), s.last_seq)
        elif s.phase in OPEN:
            turn = s.turns[-1]
            event = e.TurnCancelled(session=s.session, turn=turn.turn, attempt=turn.attempt, gpu=e.NO_GPU)
            self.append(event, s.last_seq)

    def close(self, sid: str) -> None:
        s = self.session(sid)
        if s.phase != "closed":
            self.append(e.SessionClosed(session=s.session), s.last_seq)

    # -- the scheduler

    def schedule(self, state: Occupancy | None = None) -> int:
        """Decide once from `state` (it may lag behind) and append what still holds; return how much was tried."""
        state = self.catch_up(self.live) if state is None else state
        plan = decide(state, max(self.now_ms, state.now_ms))
        self._decided_by_the_clock_that_it_is_given(state, plan)
        fences = [fence_of(subject_of(decision.event)) for decision in plan]
        assert len(set(fences)) == len(fences), plan  # the second about the same thing could never be stored
        for decision in plan:
            self.carry_out(decision)
        return len(plan)

    def _decided_by_the_clock_that_it_is_given(self, state: Occupancy, plan: list[Decision]) -> None:
        """The scheduler's state is ticked, that of a replay is not: both must decide the same."""
        now_ms = state.now_ms
        state.tick(self.now_ms)
        assert decide(state, max(self.now_ms, now_ms)) == plan
        state.now_ms = now_ms

    def carry_out(self, decision: Decision) -> None:
        self.append(decision.event, decision.expected_seq)

    def lose(self, gpu: str) -> None:
        """Declare a GPU dead, as the liveness watch does."""
        state = self.catch_up(self.live)
        if gpu in state.gpus:
            there = state.gpus[gpu]
            event = e.GpuLost(gpu=there.gpu, incarnation=there.incarnation, silent_ms=3000)
            self.append(event, there.last_seq)

    # -- runners

    def join(
        self,
        gpu: str,
        slots: int,
        workloads: list[e.Workload] | None = None,
        kind: str = "cpu",
        pool: str = "default",
        load_ms: int | None = 0,
    ) -> None:
        self.keys += 1
        runner = Runner(e.GpuId(gpu), f"i{self.keys}", load_ms=load_ms)
        self.runners[gpu] = runner
        works = workloads or [WORK]
        event = e.GpuJoined(
            gpu=runner.gpu,
            incarnation=runner.incarnation,
            kind=kind,
            memory_total_bytes=1 << 30,
            workloads=works,
            slots={work.model: slots for work in works},
            pool=pool,
        )
        last = [r.seq for r in self.log.records if r.subject.startswith(f"gpu.{runner.gpu}.")]
        seq = self.append(event, last[-1] if last else 0)
        assert seq is not None
        runner.heard = seq

    def hear(self, runner: Runner) -> None:
        """Take in what the log has stored for this GPU since."""
        for record in self.log.records[runner.heard :]:
            match record.event:
                case e.GpuAssigned(gpu=gpu, incarnation=i) as told if (gpu, i) == self._me(runner):
                    runner.told = (told, record.seq, self.now_ms)
                case e.SessionReleased(gpu=gpu, incarnation=i, session=sid) if (gpu, i) == self._me(runner):
                    runner.bound.pop(sid, None)
                    runner.running.pop(sid, None)
                    runner.yielding.discard(sid)
                case e.TurnYielding(gpu=gpu, session=sid) if gpu == runner.gpu and sid in runner.running:
                    runner.yielding.add(sid)
                case e.GpuLost(gpu=gpu, incarnation=i) if (gpu, i) == self._me(runner):
                    joined = self.last_joined(runner)
                    self.join(
                        runner.gpu,
                        max(joined.slots.values()),
                        joined.workloads,
                        joined.kind,
                        joined.pool,
                        runner.load_ms,
                    )
                    return
                case _:
                    pass
        runner.heard = len(self.log.records)
        if runner.told is not None and self._loaded(runner, *runner.told):
            self._follow(runner, *runner.told[:2])
            runner.told = None
        if runner.leaving and not runner.bound and not runner.left:
            fence = [r.seq for r in self.log.records if r.subject.startswith(f"gpu.{runner.gpu}.")][-1]
            runner.left = (
                self.append(e.GpuLeft(gpu=runner.gpu, incarnation=runner.incarnation), fence) is not None
            )

    def last_joined(self, runner: Runner) -> e.GpuJoined:
        return next(
            r.event
            for r in reversed(self.log.records)
            if isinstance(r.event, e.GpuJoined) and r.event.incarnation == runner.incarnation
        )

    def _loaded(self, runner: Runner, told: e.GpuAssigned, _seq: int, since_ms: int) -> bool:
        """Whether it may answer: what it has in memory, or a drain, takes no time."""
        now = e.Workload("finetune" if told.purpose == "batch" else "create", told.type, told.model)
        if now == runner.serving or told.slots == 0:
            return True
        return runner.load_ms is not None and self.now_ms - since_ms >= runner.load_ms

    def _follow(self, runner: Runner, told: e.GpuAssigned, seq: int) -> None:
        runner.slots, runner.ready, runner.leaving = told.slots, True, told.leaving
        runner.serving = e.Workload(
            "finetune" if told.purpose == "batch" else "create", told.type, told.model
        )
        ready = e.GpuReady(
            gpu=runner.gpu,
            incarnation=runner.incarnation,
            model=told.model,
            load_ms=max(1, runner.load_ms or 0),
            assigned_seq=seq,
        )
        self.append(ready, seq)

    def give_way(self, runner: Runner, sid: str) -> None:
        """Make the checkpoint that was asked for."""
        turn, attempt, fence = runner.running[sid]
        step = e.TurnProgressed(
            session=e.SessionId(sid),
            turn=turn,
            attempt=attempt,
            gpu=runner.gpu,
            step=1,
            steps=9,
            checkpoint=["c"],
        )
        seq = self.append(step, self.tail(sid, fence))
        if seq is not None:
            runner.running[sid] = (turn, attempt, seq)
        runner.yielding.discard(sid)

    def tail(self, sid: str, fence: int) -> int:
        """The fence as it is after facts that a runner goes on behind: asked to stop, asked to give way."""
        s = self.session(sid)
        return s.last_seq if s.phase in ("running", "cancelling") and s.last_seq > fence else fence

    def give_back(self, runner: Runner, sid: str, code: str) -> bool:
        """Append that another GPU should try."""
        turn, attempt, fence = runner.running.pop(sid)
        event = e.TurnReturned(
            session=e.SessionId(sid),
            turn=turn,
            attempt=attempt,
            gpu=runner.gpu,
            error=e.Failure(code=code, message="no more"),
            held=len(runner.bound),
        )
        return self.append(event, self.tail(sid, fence)) is not None

    @staticmethod
    def _me(runner: Runner) -> tuple[str, str]:
        return runner.gpu, runner.incarnation

    def route(self) -> None:
        """What the broker does: facts become tasks."""
        for record in self.log.records[self.routed :]:
            if isinstance(record.event, e.TurnAdmitted | e.TurnContinued):
                self.tasks.append(record)
        self.routed = len(self.log.records)

    def take(self, runner: Runner) -> bool:
        """Pull one task and start it, if the runner has room; True if it started."""
        self.route()
        for task in list(self.tasks):
            event = task.event
            assert isinstance(event, e.TurnAdmitted | e.TurnContinued)
            bound = isinstance(event, e.TurnContinued)
            if bound and event.gpu != runner.gpu:
                continue
            if not bound and (len(runner.bound) >= runner.slots or _workload(event) != runner.serving):
                continue
            self.tasks.remove(task)
            if bound and event.session not in runner.bound:
                continue  # it was meant for an earlier life of this GPU
            seq = self.start(runner, event, task.seq)
            if seq is not None:
                return True
        return False

    def start(self, runner: Runner, event: e.TurnAdmitted | e.TurnContinued, fence: int) -> int | None:
        started = e.TurnStarted(
            session=event.session,
            turn=event.turn,
            attempt=event.attempt,
            gpu=runner.gpu,
            incarnation=runner.incarnation,
        )
        seq = self.append(started, fence)
        if seq is None:
            since = [r for r in self.log.records[fence:] if matches(r.subject, session_filter(event.session))]
            if since and all(record.event is None for record in since):
                seq = self.append(started, since[-1].seq)  # only rubbish came in between
        if seq is not None:
            runner.bound[event.session] = None
            runner.running[event.session] = (event.turn, event.attempt, seq)
        return seq

    def finish(self, runner: Runner, sid: str) -> bool:
        """Append the outcome; a fence that failed is looked at again, as the design says."""
        turn, attempt, fence = runner.running.pop(sid)
        done = e.TurnCompleted(
            session=e.SessionId(sid), turn=turn, attempt=attempt, gpu=runner.gpu, output="hi"
        )
        if self.append(done, fence) is not None:
            return True
        s = self.session(sid)
        last = s.turns[-1]
        if s.phase in ("running", "cancelling") and (last.turn, last.attempt, s.gpu) == (
            turn,
            attempt,
            runner.gpu,
        ):
            if s.phase == "running":
                return self.append(done, s.last_seq) is not None
            cancelled = e.TurnCancelled(session=s.session, turn=turn, attempt=attempt, gpu=runner.gpu)
            return self.append(cancelled, s.last_seq) is not None
        return False


def _workload(event: e.TurnAdmitted | e.TurnContinued) -> e.Workload:
    mode = event.mode if isinstance(event, e.TurnAdmitted) else "create"
    return e.Workload(mode, event.type, event.model)
