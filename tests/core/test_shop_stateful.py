"""The promises of the shop, whatever happens in whatever order: hypothesis is the crowd."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_es.core.snapshot import dump, load
from tests.core.shop import WORK, Runner, Shop
from tests.examples import many

SIDS = [f"s{n}" for n in range(12)]
GPUS = ["box-0", "box-1", "box-2"]


class ShopMachine(RuleBasedStateMachine):
    """Clients, two schedulers of which one lags, runners that die, stop, come back as zombies."""

    @initialize()
    def begin(self) -> None:
        self.shop = Shop(e.Policy(idle_after_ms=1000))
        self.lagging = Occupancy()
        self.resumed = Occupancy()
        self.opened: list[str] = []
        self.zombies: list[tuple[Runner, str]] = []

    @rule(gpu=st.sampled_from(GPUS), slots=st.integers(1, 3))
    def a_gpu_joins(self, gpu: str, slots: int) -> None:
        old = self.shop.runners.get(gpu)
        if old is not None:  # killed and started anew: what it computed may still arrive
            self.zombies += [(old, sid) for sid in old.running]
        self.shop.join(gpu, slots)

    @rule(gpu=st.sampled_from(GPUS))
    def a_gpu_is_declared_lost(self, gpu: str) -> None:
        self.shop.lose(gpu)

    @rule(gpu=st.sampled_from(GPUS))
    def a_gpu_leaves(self, gpu: str) -> None:
        runner = self.shop.runners.pop(gpu, None)
        if runner is not None:
            state = self.shop.catch_up(self.shop.live)
            there = state.gpus.get(gpu)
            if there is not None and there.incarnation == runner.incarnation:
                left = e.GpuLeft(gpu=runner.gpu, incarnation=runner.incarnation)
                self.shop.append(left, there.last_seq)

    @precondition(lambda self: len(self.opened) < len(SIDS))
    @rule(owner=st.sampled_from(["ann", "bob"]), priority=st.integers(0, 1))
    def somebody_comes_in(self, owner: str, priority: int) -> None:
        sid = SIDS[len(self.opened)]
        self.opened.append(sid)
        self.shop.open(sid, owner, priority)

    @precondition(lambda self: self.opened)
    @rule(n=st.integers(0, 11))
    def somebody_goes_on(self, n: int) -> None:
        self.shop.say(self.opened[n % len(self.opened)])

    @precondition(lambda self: self.opened)
    @rule(n=st.integers(0, 11))
    def somebody_cancels(self, n: int) -> None:
        self.shop.cancel(self.opened[n % len(self.opened)])

    @precondition(lambda self: self.opened)
    @rule(n=st.integers(0, 11))
    def somebody_closes(self, n: int) -> None:
        self.shop.close(self.opened[n % len(self.opened)])

    @rule()
    def the_scheduler_decides(self) -> None:
        self.shop.schedule()

    @rule(lag=st.integers(0, 5))
    def a_lagging_scheduler_decides(self, lag: int) -> None:
        upto = max(self.lagging.seq, len(self.shop.log.records) - lag)
        self.shop.schedule(self.shop.catch_up(self.lagging, upto))

    @rule(gpu=st.sampled_from(GPUS))
    def a_runner_hears(self, gpu: str) -> None:
        if gpu in self.shop.runners:
            self.shop.hear(self.shop.runners[gpu])

    @rule(gpu=st.sampled_from(GPUS))
    def a_runner_takes_work(self, gpu: str) -> None:
        runner = self.shop.runners.get(gpu)
        if runner is not None and runner.ready:
            self.shop.take(runner)

    @rule(gpu=st.sampled_from(GPUS), n=st.integers(0, 5))
    def a_runner_finishes(self, gpu: str, n: int) -> None:
        runner = self.shop.runners.get(gpu)
        if runner is not None and runner.running:
            self.shop.finish(runner, list(runner.running)[n % len(runner.running)])

    @precondition(lambda self: self.zombies)
    @rule()
    def a_zombie_finishes(self) -> None:
        runner, sid = self.zombies.pop()
        if sid in runner.running:
            self.shop.finish(runner, sid)

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.shop.now_ms += 1000 * seconds

    @rule(forged=st.sampled_from([b'{"stream":"LOG","seq":7}', b"\x00", b'{"event":"session.closed"}']))
    def a_stranger_writes_rubbish(self, forged: bytes) -> None:
        if self.opened:
            self.shop.log.store_raw(f"session.{self.opened[0]}.turn.completed.box-0", forged)
            self.shop.log.store_raw(f"session.{self.opened[0]}", forged)  # the stream takes two words as well

    @rule()
    def a_process_restarts_from_a_snapshot(self) -> None:
        self.resumed = load(dump(self.shop.catch_up(self.resumed)))

    @invariant()
    def no_gpu_holds_more_sessions_than_slots(self) -> None:
        state = self.shop.catch_up(self.shop.live)
        for gpu in state.gpus.values():
            assert len(gpu.sessions) <= max(gpu.slots, 0)
        for workload, capacity in state.door.capacities.items():
            bound = sum(len(g.sessions) for g in state.gpus.values())
            assert workload == WORK
            assert capacity.bound == bound
            assert capacity.admitted == sum(s.phase == "admitted" for s in state.seats.values())

    @invariant()
    def a_prefix_and_the_rest_fold_to_the_whole(self) -> None:
        whole = self.shop.catch_up(Occupancy())
        assert dump(self.shop.catch_up(self.resumed)) == dump(whole)
        assert dump(self.shop.catch_up(self.shop.live)) == dump(whole)

    @invariant()
    def both_folds_tell_the_same_story(self) -> None:
        state = self.shop.catch_up(self.shop.live)
        for sid in self.opened:
            session, seat = self.shop.session(sid), state.seats.get(sid)
            if seat is None:
                assert session.gpu is None
                assert session.phase in ("released", "closed")
                continue
            assert (seat.phase, seat.gpu, seat.turn) == (session.phase, session.gpu, len(session.turns))
            assert seat.last_seq == session.last_seq
            if session.open_turn is not None:
                assert seat.attempt == session.open_turn.attempt

    @invariant()
    def no_turn_ends_twice(self) -> None:
        ended = Counter(
            (r.event.session, r.event.turn)
            for r in self.shop.log.records
            if isinstance(r.event, e.TurnCompleted | e.TurnFailed | e.TurnCancelled)
        )
        assert all(n == 1 for n in ended.values())

    @invariant()
    def the_raw_log_never_shows_more_bound_than_slots(self) -> None:
        slots: dict[str, int] = {}
        bound: dict[str, set[str]] = defaultdict(set)
        life: dict[str, str] = {}
        for record in self.shop.log.records:
            match record.event:
                case e.GpuAssigned(gpu=gpu, slots=n, incarnation=i):
                    slots[gpu], life[gpu] = n, i
                case e.TurnStarted(gpu=gpu, session=sid, incarnation=i) if life.get(gpu) == i:
                    bound[gpu].add(sid)
                    assert len(bound[gpu]) <= slots[gpu]
                case e.SessionReleased(gpu=gpu, session=sid):
                    bound[gpu].discard(sid)
                case _:
                    pass

    def teardown(self) -> None:
        """With the crowd gone and one good GPU, whatever is open must end: no turn was lost."""
        shop = self.shop
        for gpu in GPUS:
            shop.lose(gpu)
        shop.runners.clear()
        shop.join("box-9", 2)
        for _ in range(400):
            shop.now_ms += 500
            shop.schedule()
            runner = shop.runners["box-9"]
            shop.hear(runner)
            if runner.ready:
                shop.take(runner)
            for sid in list(runner.running):
                shop.finish(runner, sid)
            if all(shop.session(sid).open_turn is None for sid in self.opened):
                break
        for sid in self.opened:
            session = shop.session(sid)
            assert session.open_turn is None, session
            assert all(t.ended_ms is not None for t in session.turns)
        assert self.shop.verified().differences == []


ShopMachine.TestCase.settings = settings(
    max_examples=many(150),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestShop = ShopMachine.TestCase
