"""The waits that are told on arrival fit those that follow, on the Mooncake trace."""

from __future__ import annotations

import pytest

from helix_es.core.accuracy import Accuracy
from tests.projections.simulation.floor import WORK, mooncake_shop


def accuracy(gpus: int, slots: int, *, owners: int) -> Accuracy:
    shop = mooncake_shop(gpus, slots, owners=owners, minutes=15)
    found = shop.state.door.rate(WORK).accuracy
    assert found.told > 1000
    return found


@pytest.mark.parametrize(("gpus", "slots"), [(8, 4), (11, 4), (6, 8)])
def test_nine_of_ten_waits_are_within_three_tenths_in_a_line(gpus: int, slots: int) -> None:
    found = accuracy(gpus, slots, owners=1)
    assert found.share_within is not None
    assert found.share_within >= 0.9
    assert found.unknown == 0


@pytest.mark.parametrize("owners", [0, 20])
def test_eight_of_ten_are_among_owners_who_overtake_one_another(owners: int) -> None:
    found = accuracy(11, 4, owners=owners)
    assert found.share_within is not None
    assert found.share_within >= 0.8
