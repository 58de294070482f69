"""The words of --runners."""

from __future__ import annotations

import pytest

from helix_es.cli.up_runners import RUNNERS, commands, parse_runners
from helix_es.core.errors import Misconfigured
from helix_es.settings import Settings


def words(spec: str) -> list[list[str]]:
    return [each for _, each, _ in commands(parse_runners(spec, Settings()), "box", None)]


def test_the_usual_ones_are_one_of_each_kind() -> None:
    assert [each[0] for each in words(RUNNERS)] == ["runner text", "runner image", "runner finetune"]


def test_each_of_several_has_a_gpu_of_its_own() -> None:
    found = words("text:smollm2*2,batch*1")
    assert [each[each.index("--gpu") + 1] for each in found] == ["box-0", "box-1", "box-2"]


def test_simulated_ones_share_a_process() -> None:
    (found,) = words("simulated:mistral+batch@a100-80*50")
    assert found[found.index("--count") + 1] == "50"
    assert found[found.index("--kind") + 1] == "a100-80"
    assert "--batch" in found


def test_one_that_does_anything_says_what() -> None:
    (found,) = words("any:smollm2+scenes+batch")
    served = [found[n + 1] for n, word in enumerate(found) if word == "--serve"]
    assert served == ["text:smollm2", "image:scenes", "batch:smollm2"]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("texts", "text|image"),
        ("text*0", "text|image"),
        ("text:scenes", "smollm2"),
        ("simulated:mistral", "GPU kind"),
        ("simulated@a100-80", "GPU kind"),
        ("any:scenes+batch", "text model"),
        ("text*65", "text|image"),
    ],
)
def test_a_wrong_word_is_named_with_what_is_allowed(spec: str, named: str) -> None:
    with pytest.raises(Misconfigured, match=named.replace("|", r"\|")):
        parse_runners(spec, Settings())
