"""What is refused at the door at once."""

from __future__ import annotations

import pytest

from helix_es.api.admission import check_room
from helix_es.core import events as e
from helix_es.core.errors import Rejected
from helix_es.settings import Limits, Settings
from tests.core.shop import Shop

WORK = e.Workload("create", "text", "mistral")


def test_a_model_that_fits_no_gpu_here_is_refused_with_what_it_needs() -> None:
    shop = Shop()
    shop.join("box-0", 4, [e.Workload("create", "text", "smollm2")])  # a GPU of 1 GiB
    state = shop.catch_up(shop.live)
    with pytest.raises(Rejected, match="mistral fits no GPU here") as refused:
        check_room(state, Settings(), WORK, "ann")
    assert refused.value.code == "does_not_fit"


def test_an_empty_floor_refuses_nothing() -> None:
    shop = Shop()
    check_room(shop.catch_up(shop.live), Settings(), WORK, "ann")


def test_an_owner_with_too_many_turns_waiting_is_refused_and_others_are_not() -> None:
    shop = Shop()
    shop.open("s0", "ann")
    shop.open("s1", "ann")
    state = shop.catch_up(shop.live)
    settings = Settings(limits=Limits(waiting_per_owner=2))
    with pytest.raises(Rejected) as refused:
        check_room(state, settings, WORK, "ann")
    assert refused.value.code == "too_many_waiting"
    check_room(state, settings, WORK, "bob")
