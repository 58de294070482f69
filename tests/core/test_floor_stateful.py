"""The promises of a floor of mixed GPUs: many models, batch work, pools, rules that change under it."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helix_es.core import events as e
from helix_es.core.fleet import Fleet
from helix_es.core.floor import Capacity, serves
from helix_es.core.occupancy import Occupancy
from helix_es.core.snapshot import dump, load
from tests.core.shop import Shop
from tests.examples import many

CHAT = e.Workload("create", "text", "mistral")
TINY = e.Workload("create", "text", "tiny")
PICTURE = e.Workload("create", "image", "sdxl")
TRAIN = e.Workload("finetune", "text", "mistral")
WORKS = [CHAT, TINY, PICTURE, TRAIN]
MAKES = {  # what GPUs there are: name -> kind, what it can run
    "c0": ("cpu", [CHAT]),
    "c1": ("cpu", [CHAT, TINY]),
    "b0": ("l4-24", [TRAIN]),
    "m0": ("a100-80", [CHAT, PICTURE, TRAIN]),
    "m1": ("a100-80", [CHAT, TINY, TRAIN]),
    "p0": ("a100-80", [CHAT, TRAIN]),
    "p1": ("a100-80", [TINY, CHAT]),
}
GPUS = list(MAKES)
RULE = e.PoolRule(
    min=0, max=2, idle_ms=3000, wait_target_ms=500, workloads=[CHAT, TINY], slots={"mistral": 2}
)
POLICY = e.Policy(
    idle_after_ms=1000, switch_after_ms=1000, starve_after_ms=4000, yield_ms=2000, pools={"p": RULE}
)
gpus = st.sampled_from(GPUS)


class FloorMachine(RuleBasedStateMachine):
    """Clients, a scheduler and one that lags, runners of every make, an operator who changes the rules."""

    @initialize()
    def begin(self) -> None:
        self.shop = Shop(POLICY)
        self.resumed = Occupancy()
        self.opened: list[str] = []
        self.checked = 0
        self.limit: dict[str, int] = {}
        self.asked: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.serving: dict[str, e.Workload] = {}
        self.bound: dict[str, set[str]] = defaultdict(set)
        self.life: dict[str, str] = {}
        self.work: dict[str, e.Workload] = {}

    def state(self) -> Occupancy:
        return self.shop.catch_up(self.shop.live)

    # -- the crowd

    @precondition(lambda self: len(self.opened) < 14)
    @rule(
        owner=st.sampled_from(["ann", "bob"]),
        work=st.sampled_from(WORKS),
        priority=st.integers(0, 1),
        wait=st.sampled_from([None, None, 1500]),
    )
    def somebody_comes_in(self, owner: str, work: e.Workload, priority: int, wait: int | None) -> None:
        sid = f"s{len(self.opened)}"
        self.opened.append(sid)
        self.shop.open(sid, owner, priority, work, wait)

    @precondition(lambda self: self.opened)
    @rule(n=st.integers(0, 13), what=st.sampled_from(["say", "say", "cancel", "close"]))
    def somebody_acts(self, n: int, what: str) -> None:
        getattr(self.shop, what)(self.opened[n % len(self.opened)])

    # -- GPUs

    @rule(gpu=gpus, slots=st.integers(1, 3), load_ms=st.sampled_from([0, 0, 500, 6000, None]))
    def a_gpu_joins(self, gpu: str, slots: int, load_ms: int | None) -> None:
        kind, works = MAKES[gpu]
        self.shop.join(gpu, slots, works, kind, "p" if gpu.startswith("p") else "default", load_ms)

    @rule(gpu=gpus)
    def a_gpu_is_lost(self, gpu: str) -> None:
        self.shop.lose(gpu)

    @rule(gpu=gpus, rounds=st.integers(1, 3))
    def a_runner_works(self, gpu: str, rounds: int) -> None:
        for _ in range(rounds):
            runner = self.shop.runners.get(gpu)
            if runner is None or runner.left:
                return
            self.shop.hear(runner)
            runner = self.shop.runners[gpu]
            if runner.ready:
                self.shop.take(runner)
            for sid in list(runner.yielding):
                if sid in runner.running:
                    self.shop.give_way(runner, sid)

    @rule(gpu=gpus, n=st.integers(0, 5), how=st.sampled_from(["finish", "finish", "oom", "broken"]))
    def a_turn_ends(self, gpu: str, n: int, how: str) -> None:
        runner = self.shop.runners.get(gpu)
        if runner is None or not runner.running:
            return
        sid = list(runner.running)[n % len(runner.running)]
        if how == "finish":
            self.shop.finish(runner, sid)
        else:
            self.shop.give_back(runner, sid, "out_of_memory" if how == "oom" else "engine_broken")

    # -- the scheduler and its rules

    @rule(rounds=st.integers(1, 3))
    def the_scheduler_decides(self, rounds: int) -> None:
        for _ in range(rounds):
            before = self.state()
            kept = before.fleet.kept
            reserved, most, held = before.policy.reserved, before.policy.slots_per_owner, dict(before.held)
            self.shop.schedule()
            after = self.state()
            assert after.fleet.kept >= min(kept, reserved)
            for owner, now in after.held.items():
                assert not most or now <= max(most, held.get(owner, 0))

    @rule(lag=st.integers(0, 6))
    def a_lagging_scheduler_decides(self, lag: int) -> None:
        upto = max(0, len(self.shop.log.records) - lag)
        self.shop.schedule(self.shop.catch_up(Occupancy(), upto))

    @rule(
        slots=st.integers(0, 4),
        reserved=st.integers(0, 3),
        most=st.integers(0, 2),
        pool=st.integers(0, 2),
    )
    def the_rules_change(self, slots: int, reserved: int, most: int, pool: int) -> None:
        rule_ = e.PoolRule(min=0, max=max(1, pool), idle_ms=3000, wait_target_ms=500, workloads=[CHAT, TINY])
        policy = e.Policy(
            idle_after_ms=1000,
            switch_after_ms=1000,
            starve_after_ms=4000,
            yield_ms=2000,
            coefficients={"a100-80/mistral": slots},
            reserved=reserved,
            slots_per_owner=most,
            pools={"p": rule_} if pool else {},
        )
        self.shop.append(e.PolicySet(policy=policy), self.state().policy_seq)

    @rule(ms=st.sampled_from([10, 500, 1000, 3000]))
    def time_passes(self, ms: int) -> None:
        self.shop.now_ms += ms

    @rule()
    def a_process_restarts_from_a_snapshot(self) -> None:
        self.resumed = load(dump(self.shop.catch_up(self.resumed)))

    # -- what must hold

    @invariant()
    def nothing_starts_beyond_the_slots_or_on_another_model_than_assigned(self) -> None:
        """By the raw log: an assignment that widens holds at once, one that narrows when the runner answered it."""
        records = self.shop.log.records
        for record in records[self.checked :]:
            match record.event:
                case e.SessionCreated() as c:
                    self.work[c.session] = e.Workload(c.mode, c.type, c.model)
                case e.GpuJoined(gpu=gpu, incarnation=i):
                    self.life[gpu], self.limit[gpu] = i, 0
                    self.asked[gpu].clear()
                case e.GpuAssigned(gpu=gpu, incarnation=i) as told if self.life.get(gpu) == i:
                    self.asked[gpu].append((record.seq, told.slots))
                    self.limit[gpu] = max(self.limit[gpu], told.slots)
                    mode: e.Mode = "finetune" if told.purpose == "batch" else "create"
                    serving = e.Workload(mode, told.type, told.model)
                    if self.serving.get(gpu) != serving:
                        assert not {s for s in self.bound[gpu] if (gpu, i) == self.seat_of(s)}
                    self.serving[gpu] = serving
                case e.GpuReady(gpu=gpu, incarnation=i, assigned_seq=seq) if self.life.get(gpu) == i:
                    self.asked[gpu] = [each for each in self.asked[gpu] if each[0] >= seq]
                    self.limit[gpu] = max((slots for _, slots in self.asked[gpu]), default=0)
                case e.TurnStarted(gpu=gpu, session=sid, incarnation=i) if self.life.get(gpu) == i:
                    if sid not in self.bound[gpu]:
                        self.bound[gpu].add(sid)
                        assert len(self.bound[gpu]) <= self.limit[gpu]
                    assert self.serving[gpu] == self.work[sid]
                case e.SessionReleased(gpu=gpu, session=sid):
                    self.bound[gpu].discard(sid)
                case _:
                    pass
        self.checked = len(records)

    def seat_of(self, sid: str) -> tuple[str | None, str]:
        seat = self.state().seats.get(sid)
        return (seat.gpu, seat.incarnation) if seat is not None else (None, "")

    @invariant()
    def the_counters_are_what_counting_gives(self) -> None:
        state = self.state()
        for workload, capacity in state.door.capacities.items():
            ready = [g for g in state.gpus.values() if g.state == "ready" and serves(g) == workload]
            seats = [s for s in state.seats.values() if s.workload == workload]
            assert capacity.slots == sum(g.slots for g in ready)
            assert capacity.room == sum(max(0, g.slots - len(g.sessions)) for g in ready)
            assert capacity.admitted == sum(s.phase == "admitted" for s in seats)
            assert len(state.door.queue(workload)) == sum(s.phase == "queued" for s in seats)
        held: dict[str, int] = defaultdict(int)
        for seat in state.seats.values():
            held[seat.owner] += seat.phase == "admitted" or seat.gpu is not None
        assert state.held == {owner: n for owner, n in held.items() if n}

    @invariant()
    def the_indexes_are_what_the_gpus_give(self) -> None:
        fleet = self.state().fleet
        capacities: dict[e.Workload, Capacity] = defaultdict(Capacity)
        fresh = Fleet(capacities.__getitem__)
        fresh.policy = fleet.policy
        for gpu in load(dump(self.state())).gpus.values():
            fresh.join(gpu)
        for name in ("unassigned", "useless", "unsettled", "over", "resizable"):
            assert set(getattr(fresh, name)) == set(getattr(fleet, name)), name
        for name in ("vacant", "seated"):
            assert getattr(fresh, name) == getattr(fleet, name), name
        counts = ("batchable", "chatting", "returning", "lent")
        assert [getattr(fresh, n) for n in counts] == [getattr(fleet, n) for n in counts]
        for work in {*fresh.coming, *fleet.coming}:
            assert fresh.coming.get(work, 0) == fleet.coming.get(work, 0)
        for pool, found in fleet.pools.items():
            again = fresh.pools.get(pool)
            assert (found.present, found.leaving) == ((again.present, again.leaving) if again else (0, 0))

    @invariant()
    def a_snapshot_goes_on_as_if_it_had_never_stopped(self) -> None:
        state = self.state()
        data = dump(state)
        assert dump(load(data)) == data
        self.shop.catch_up(self.resumed)
        self.resumed.now_ms = state.now_ms
        assert dump(self.resumed) == data

    def teardown(self) -> None:
        """With the crowd gone and good GPUs there, whatever is open must end: no turn was lost, no model starves."""
        shop = self.shop
        for gpu in GPUS:
            shop.lose(gpu)
        shop.runners.clear()
        policy = e.Policy(idle_after_ms=1000, switch_after_ms=1000, starve_after_ms=4000, reserved=1)
        shop.append(e.PolicySet(policy=policy), self.state().policy_seq)
        shop.join(
            "z0", 2, WORKS, "a100-80", load_ms=6000
        )  # longer than starve_after: they must serve between loads
        shop.join("z1", 2, WORKS, "a100-80", load_ms=6000)
        shop.join(
            "z2", 2, WORKS, "a100-80", load_ms=None
        )  # one that never answers must not keep the others waiting
        for _ in range(600):
            shop.now_ms += 500
            shop.schedule()
            for name in ("z0", "z1"):
                runner = shop.runners[name]
                shop.hear(runner)
                if runner.ready:
                    shop.take(runner)
                for sid in list(runner.running):
                    shop.finish(runner, sid)
            if all(shop.session(sid).open_turn is None for sid in self.opened):
                break
        for sid in self.opened:
            session = shop.session(sid)
            assert session.open_turn is None, (session.phase, session.workload, session.turns[-1])
        assert self.shop.verified().differences == []


FloorMachine.TestCase.settings = settings(
    max_examples=many(130),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestFloor = FloorMachine.TestCase
