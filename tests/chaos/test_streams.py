"""The proof that no token was lost or doubled, whatever the stream was carried over."""

from __future__ import annotations

from tests.chaos.story import Story, text
from tests.chaos.told import Stream


def told(state: str = "completed") -> tuple[Story, Stream]:
    story = Story()
    story.serving("sim-0", 2)
    story.begin("s1", "sim-0")
    story.complete("s1", "sim-0")
    return story, story.heard("s1", state=state)


def rules(story: Story) -> list[str]:
    return [rule for rule, _ in story.broken()]


def test_a_stream_resumed_where_it_broke_is_whole() -> None:
    story, stream = told()
    whole, stream.text = stream.text, ""
    for begin, end in ((0, 3), (3, 9), (9, len(whole))):
        stream.heard(1, begin, whole[begin:end])
    assert rules(story) == []


def test_a_doubled_token_is_found() -> None:
    story, stream = told()
    stream.heard(1, len(stream.text) - 2, stream.text[-2:])
    assert set(rules(story)) == {"streams"}
    assert stream.breaks[0].startswith("doubled")


def test_a_lost_token_is_found() -> None:
    story, stream = told()
    whole, stream.text = stream.text, ""
    stream.heard(1, 0, whole[:3])
    stream.heard(1, 5, whole[5:])
    assert set(rules(story)) == {"streams"}
    assert stream.breaks[0].startswith("lost")


def test_a_new_attempt_takes_the_place_of_the_old_ones_text() -> None:
    stream = Stream(session="s1", turn=1)
    stream.heard(1, 0, "some")
    stream.heard(2, 0, "other")
    assert (stream.text, stream.breaks) == ("other", [])


def test_a_piece_of_an_older_attempt_is_a_break() -> None:
    stream = Stream(session="s1", turn=1)
    stream.attempted(2)
    stream.heard(1, 0, "some")
    assert stream.breaks


def test_an_end_that_was_told_wrongly_is_found() -> None:
    story, stream = told(state="cancelled")
    stream.output += " and more"
    assert rules(story) == ["streams", "streams"]


def test_a_stream_whose_end_was_not_heard_proves_nothing() -> None:
    story, stream = told()
    stream.state, stream.text = "", "s1"
    assert rules(story) == []


def test_who_only_asked_now_and_then_has_no_text_to_compare() -> None:
    story, stream = told()
    stream.followed, stream.text = False, ""
    assert rules(story) == []


def test_a_simulated_gpu_that_says_something_else_is_found() -> None:
    story = Story()
    story.serving("sim-0", 1)
    story.begin("s1", "sim-0")
    end = story.complete("s1", "sim-0", output=text("s1")[:-1] + "?")
    assert story.broken() == [("streams", end)]


def test_a_real_gpu_may_say_what_it_likes() -> None:
    story = Story()
    story.serving("real-0", 1)
    story.begin("s1", "real-0")
    story.complete("s1", "real-0", output="Rayleigh scattering.")
    assert story.broken() == []
