"""`helix finetune`: which words it takes, and in which words it tells of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from helix_es.cli.finetune import Watch, finetune
from tests.cli.fake import helix


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "toy.jsonl"
    path.write_bytes(b'{"messages": []}\n')
    return path


class Told:
    """A teller that keeps what it is told."""

    def __init__(self) -> None:
        self.statuses: list[str] = []
        self.lines: list[str] = []

    def status(self, text: str) -> None:
        self.statuses.append(text)

    def line(self, text: str) -> None:
        self.lines.append(text)


def test_without_a_terminal_a_line_comes_now_and_then() -> None:
    now = 100.0
    told = Told()
    watch = Watch(told, live=False, clock=lambda: now)  # type: ignore[arg-type]
    for number in range(1, 26):
        watch.progress(number, 56, {"loss": 4 - number / 10, "tokens_per_s": 123.4, "left_s": 9.6})
        now += 1.0
    watch.end()
    watch.end()
    assert told.statuses == [
        "step 1/56  loss 3.900  123 tokens/s  10 s left",
        "step 11/56  loss 2.900  123 tokens/s  10 s left",
        "step 21/56  loss 1.900  123 tokens/s  10 s left",
        "step 25/56  loss 1.500  123 tokens/s  10 s left",
    ]


def test_the_held_out_loss_stays_until_it_is_measured_again_and_notes_are_told_once() -> None:
    told = Told()
    watch = Watch(told, live=True)  # type: ignore[arg-type]
    watch.progress(0, 56, {"losses": [], "held_out_loss": 2.5})
    watch.progress(1, 56, {"loss": 3.0, "warning": "begun anew"})
    watch.progress(2, 56, {"loss": 2.0, "warning": "begun anew", "held_out_loss": 1.5})
    assert told.statuses == [
        "step 0/56  held out 2.500",
        "step 1/56  loss 3.000  held out 2.500",
        "step 2/56  loss 2.000  held out 1.500",
    ]
    watch.progress(3, 56, {"loss": 2.0, "resumed_step": 2, "examples_cut": 3, "examples_left_out": 1})
    assert told.lines == [
        "begun anew",
        "goes on from the checkpoint of step 2",
        "3 examples are longer than --sequence-tokens and cut, 1 of them left out",
    ]


def test_a_name_is_refused_that_is_none(dataset: Path) -> None:
    for name in ("Toy", "a b", "", "x" * 65, "../x", "größe"):
        said = CliRunner().invoke(finetune, ["--name", name, str(dataset)])
        assert said.exit_code == 2
        assert "--name" in said.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--name", "toy"], "DATASET"),
        (["FILE"], "--name"),
        (["--name", "A/b", "FILE"], "--name"),
        (["--name", "toy", "nothing.jsonl"], "nothing.jsonl"),
        (["--name", "toy", "--epochs", "0", "FILE"], "params.epochs"),
        (["--name", "toy", "--learning-rate", "nan", "FILE"], "params.learning_rate"),
        (["--name", "toy", "--epochs", "x", "FILE"], "--epochs"),
        (["--name", "toy", "--recipe", "nothing.yml", "FILE"], "nothing.yml"),
        (["--name", "toy", "--odd", "FILE"], "--odd"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words: list[str], named: str, dataset: Path) -> None:
    done = helix("finetune", *(str(dataset) if word == "FILE" else word for word in words))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
