"""The proof that no GPU is above its slots and that none that is kept for batch work serves chats."""

from __future__ import annotations

from tests.chaos.story import STEP_MS, Story


def test_one_session_too_many_is_found() -> None:
    story = Story()
    story.serving("sim-0", 1)
    story.begin("s1", "sim-0")
    story.open("s2", acknowledged=False)
    story.admit("s2")
    second = story.start("s2", "sim-0")
    assert ("slots", second) in story.broken()


def test_a_slot_is_free_again_only_when_it_is_released() -> None:
    story = Story()
    story.serving("sim-0", 1)
    story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    story.release("s1", "sim-0")
    story.begin("s2", "sim-0")
    story.complete("s2", "sim-0")
    assert story.broken() == []


def test_a_wider_limit_holds_at_once_and_a_narrower_one_when_it_is_answered() -> None:
    story = Story()
    story.serving("sim-0", 1)
    story.assign("sim-0", 2)
    narrow = story.assign("sim-0", 1)
    for sid in ("s1", "s2"):
        story.begin(sid, "sim-0")
    assert [rule for rule, _ in story.broken()] == ["ended once", "ended once"]
    story.ready("sim-0", narrow)
    for sid in ("s1", "s2"):
        story.complete(sid, "sim-0")
    story.release("s1", "sim-0")
    third = story.begin("s3", "sim-0")
    story.complete("s3", "sim-0")
    assert story.broken() == [("slots", third)]


def test_whoever_is_bound_goes_on_while_the_gpu_drains() -> None:
    story = Story()
    story.serving("sim-0", 1)
    story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    story.ready("sim-0", story.assign("sim-0", 0))
    story.more("s1", "sim-0", 2)
    story.start("s1", "sim-0", 2)
    story.complete("s1", "sim-0", 2)
    assert story.broken() == []


def test_the_slots_of_each_incarnation_are_counted_for_itself() -> None:
    story = Story()
    story.serving("sim-0", 1)
    story.begin("s1", "sim-0")
    story.join("sim-0", "j")
    story.ready("sim-0", story.assign("sim-0", 1, incarnation="j"), "j")
    story.open("s2")
    story.admit("s2")
    story.start("s2", "sim-0", incarnation="j")
    story.complete("s2", "sim-0")
    story.release("s1", "sim-0", "restarted")
    story.close("s1")
    assert story.broken() == []


def test_a_chat_on_a_gpu_for_batch_work_is_found() -> None:
    story = Story()
    story.serving("sim-0", 1, purpose="batch", batch=True)
    chat = story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    assert story.broken() == [("reserved", chat)]


def test_a_fine_tune_on_a_gpu_for_chats_is_found() -> None:
    story = Story()
    story.serving("sim-0", 1, batch=True)
    story.open("s1", mode="finetune")
    story.admit("s1", mode="finetune")
    tune = story.start("s1", "sim-0")
    story.complete("s1", "sim-0")
    assert story.broken() == [("reserved", tune)]


def test_a_gpu_given_away_while_it_holds_somebody_is_found() -> None:
    story = Story()
    story.serving("sim-0", 1, batch=True)
    story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    given = story.assign("sim-0", 1, "batch")
    assert story.broken() == [("slots", given)]


def test_a_start_by_a_gpu_that_never_joined_is_found() -> None:
    story = Story()
    start = story.begin("s1", "sim-9")
    story.complete("s1", "sim-9")
    assert story.broken() == [("slots", start)]


def test_a_reserved_gpu_given_to_chats_is_found() -> None:
    story = Story()
    story.policy(1)
    story.join("sim-0", batch=True)
    story.join("sim-1", batch=True)
    story.assign("sim-0", 1)
    assert story.broken() == []
    given = story.assign("sim-1", 1)
    assert story.broken() == [("reserved", given)]


def test_a_loss_that_the_decision_could_not_know_excuses_it() -> None:
    story = Story()
    story.policy(1)
    for gpu in ("sim-0", "sim-1"):
        story.join(gpu, batch=True)
    known = len(story.records)
    story.lose("sim-0")
    story.assign("sim-1", 1, decided=known)
    assert story.broken() == []


def test_a_loss_that_was_known_excuses_nothing() -> None:
    story = Story()
    story.policy(1)
    for gpu in ("sim-0", "sim-1"):
        story.join(gpu, batch=True)
    story.lose("sim-0")
    given = story.assign("sim-1", 1)
    assert story.broken() == [("reserved", given)]


def test_a_policy_that_came_after_the_decision_excuses_it() -> None:
    story = Story()
    story.join("sim-0", batch=True)
    known = len(story.records)
    story.policy(1)
    story.assign("sim-0", 1, decided=known)
    assert story.broken() == []


def test_the_time_below_the_reservation_is_measured() -> None:
    story = Story()
    story.policy(1)
    story.join("sim-0", batch=True)
    lost = story.lose("sim-0")
    back = story.join("sim-0", "j", batch=True)
    below = story.proof().slots.below
    assert [(each.since_ms, each.until_ms, each.least) for each in below] == [
        (lost * STEP_MS, back * STEP_MS, 0)
    ]


def test_a_start_of_a_life_that_was_given_up_is_counted_and_taken_back() -> None:
    story = Story()
    story.serving("sim-0", 1)
    story.open("s1")
    story.admit("s1")
    story.lose("sim-0")
    story.start("s1", "sim-0")
    story.release("s1", "sim-0", "lost")
    story.close("s1")
    proof = story.proof()
    assert (proof.violations, proof.slots.stale_starts) == ([], 1)
