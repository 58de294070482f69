"""Steps: the loss is the one that plain torch computes, whatever the padding, and a restored state goes on exactly."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch

from helix_es.core.catalogue import Model
from helix_es.core.params import TrainParams
from helix_runners.finetune.base import Base
from helix_runners.finetune.failures import TrainingFailed
from helix_runners.finetune.plan import Plan
from helix_runners.finetune.sequences import Tokens
from helix_runners.finetune.thread import Stopped
from helix_runners.finetune.trainer import Misfit, Trainer
from tests.runners.engine.models import prompt_of

PARAMS = TrainParams(
    learning_rate=0.01, warmup_steps=1, batch_size=2, epochs=3, held_out=0.2, lora_dropout=0.3
)


@pytest.fixture
def base(model: Model) -> Base:
    made = Base("cpu")
    made.load(model)
    return made


def material(count: int = 5) -> list[Tokens]:
    """Random tokens of several lengths; the second half of each is learnt."""
    lengths = [12 + 5 * number for number in range(count)]
    return [Tokens(array("i", prompt_of(n)), bytearray(n // 2) + b"\x01" * (n - n // 2)) for n in lengths]


def trainer(base: Base, params: TrainParams = PARAMS, sequences: list[Tokens] | None = None) -> Trainer:
    sequences = sequences or material()
    torch.manual_seed(params.seed)
    model = base.adapt(params)
    plan = Plan(range(len(sequences)), params)
    return Trainer(model, sequences, plan, batch_size=params.batch_size, check=lambda: None)


def plain_loss(model: Any, tokens: Tokens) -> tuple[float, int]:
    """What transformers itself says of one sequence, summed, and over how many tokens."""
    labels = [token if mark else -100 for token, mark in zip(tokens.ids, tokens.learnt, strict=True)]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([tokens.ids]), labels=torch.tensor([labels])).loss
    count = sum(tokens.learnt[1:])
    return float(loss) * count, count


def test_losses_are_those_of_plain_transformers(base: Base) -> None:
    params = TrainParams(batch_size=2, gradient_accumulation=2, held_out=0.2)
    made = trainer(base, params)
    model = made._model.eval()
    sums = [plain_loss(model, tokens) for tokens in material()]
    held = [sums[index] for index in made.plan.held_out]
    first = [sums[index] for batch in made.plan.batches(1) for index in batch]
    assert made.held_out_loss() == pytest.approx(sum(s for s, _ in held) / sum(n for _, n in held), abs=1e-5)
    done = made.advance()
    assert done.loss == pytest.approx(sum(s for s, _ in first) / sum(n for _, n in first), abs=1e-5)
    chosen = [index for batch in made.plan.batches(1) for index in batch]
    assert done.tokens == sum(len(material()[index].ids) for index in chosen)


def test_accumulated_batches_are_one_batch(base: Base) -> None:
    curves = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        params = TrainParams(
            batch_size=batch_size, gradient_accumulation=accumulation, learning_rate=0.01, held_out=0
        )
        made = trainer(base, params)
        curves.append([made.advance().loss for _ in range(made.plan.steps)])
        base.release()
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert curves[2] == pytest.approx(curves[0], abs=1e-4)


def test_a_restored_state_goes_on_exactly_also_with_dropout(base: Base) -> None:
    whole = trainer(base)
    losses = []
    for _ in range(whole.plan.steps):
        losses.append(whole.advance().loss)
        if whole.step == 3:
            state = {name: each.clone() for name, each in whole.state().items()}
    end = whole.held_out_loss()
    base.release()
    torch.manual_seed(99)
    torch.rand(7)  # another process, another past
    other = trainer(base)
    other.restore(3, state)
    resumed = [other.advance().loss for _ in range(other.plan.steps - 3)]
    assert resumed == pytest.approx(losses[3:], abs=1e-6)
    assert other.held_out_loss() == pytest.approx(end, abs=1e-6)


def test_the_dropout_of_that_test_matters(base: Base) -> None:
    curves = []
    for seed in (0, 1):
        made = trainer(base)
        torch.manual_seed(seed)
        curves.append([made.advance().loss for _ in range(3)])
        base.release()
    assert curves[0][1:] != pytest.approx(curves[1][1:], abs=1e-6)


def test_learning_lowers_the_loss_and_measuring_changes_nothing(base: Base) -> None:
    params = TrainParams(learning_rate=0.01, epochs=10, held_out=0.2)
    made = trainer(base, params)
    losses = [made.advance().loss for _ in range(made.plan.steps)]
    assert losses[-1] < 0.8 * losses[0]
    base.release()
    again = trainer(base, params)
    measured = []
    for _ in range(again.plan.steps):
        again.held_out_loss()
        measured.append(again.advance().loss)
    assert measured == losses


@pytest.mark.parametrize("spoil", ["missing", "shape", "extra", "rng", "step", "late"])
def test_a_state_of_another_training_is_a_misfit(base: Base, spoil: str) -> None:
    made = trainer(base)
    made.advance()
    state, step = made.state(), 1
    name = next(name for name in state if name.startswith("exp_avg."))
    if spoil == "missing":
        del state[name]
    elif spoil == "shape":
        state[name] = state[name][:1]
    elif spoil == "extra":
        state["adapter.x"] = torch.zeros(1)
    elif spoil == "rng":
        state["rng.cpu"] = torch.zeros(3, dtype=torch.uint8)
    else:
        step = 0 if spoil == "step" else 10_000
    with pytest.raises(Misfit):
        made.restore(step, state)
    assert made.step == 1
    made.advance()


def test_a_loss_that_is_no_number_is_told_with_what_to_do(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(base)
    made.advance()
    computed = made._loss
    monkeypatch.setattr(made, "_loss", lambda indexes: computed(indexes) * float("nan"))
    with pytest.raises(
        TrainingFailed, match=r"step 2: the loss is nan.*lower learning_rate \(now 0.01\)"
    ) as caught:
        made.advance()
    assert caught.value.failure.code == "training_diverged"


def test_a_step_can_be_left_between_its_batches(base: Base) -> None:
    params = TrainParams(batch_size=1, gradient_accumulation=4, held_out=0)
    sequences = material()
    left = iter([None, None])

    def check() -> None:
        if next(left, "over") == "over":
            raise Stopped

    made = Trainer(base.adapt(params), sequences, Plan(range(5), params), batch_size=1, check=check)
    with pytest.raises(Stopped):
        made.advance()
    assert made.step == 0


def test_adapters_come_and_go_without_a_trace(base: Base, model: Model) -> None:
    fresh = Base("cpu")
    fresh.load(model)
    expected = {name: each.clone() for name, each in fresh._model.state_dict().items()}
    for params in (PARAMS, TrainParams(target_modules=["q_proj"], lora_rank=2)):
        made = trainer(base, params)
        made.advance()
        base.release()
        left = base._model.state_dict()
        assert left.keys() == expected.keys()
        assert all(torch.equal(left[name], each) for name, each in expected.items())
        assert not hasattr(base._model, "peft_config")


def test_all_linear_layers_but_the_head_are_adapted(base: Base) -> None:
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in trainer(base)._learnt}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_unknown_target_modules_are_named_with_those_there_are(base: Base) -> None:
    with pytest.raises(
        TrainingFailed, match="no linear layer lm_head, qproj; there are: down_proj, "
    ) as caught:
        base.adapt(TrainParams(target_modules=["qproj", "v_proj", "lm_head"]))
    assert caught.value.failure.code == "invalid_params"
    trainer(base).advance()  # and nothing is left of the attempt
