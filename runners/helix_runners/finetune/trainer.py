"""The training itself: one optimiser step after the other on one adapter, and all that a step depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch.nn.functional import cross_entropy

from helix_runners.finetune.failures import TrainingFailed
from helix_runners.finetune.plan import Plan, in_batches
from helix_runners.finetune.sequences import Tokens

MOST_NORM = 1.0  # of the gradient; what is longer is shortened to it
IGNORED = -100  # a target that is not learnt

Tensors = dict[str, torch.Tensor]


class Misfit(Exception):
    """The state is not one of this training."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What one step brought."""

    step: int
    loss: float
    """Mean over the tokens that were learnt, in nats."""
    rate: float
    tokens: int
    """Computed, without padding."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences side by side, padded at the end."""

    ids: torch.Tensor
    """(sequences, tokens)."""
    mask: torch.Tensor
    """1 where there is a token."""
    where: torch.Tensor
    """Positions whose next token is learnt in some sequence."""
    targets: torch.Tensor
    """(sequences, len(where)): that token, or IGNORED."""


class Trainer:
    """Only for the thread that computes."""

    def __init__(
        self,
        model: Any,
        sequences: Sequence[Tokens],
        plan: Plan,
        *,
        batch_size: int,
        check: Callable[[], None],
    ) -> None:
        """`check` is called between batches and may raise to stop in the middle of a step."""
        self.plan = plan
        self.step = 0
        """Steps that are done."""
        self._model = model
        self._sequences = sequences
        self._batch_size = batch_size
        self._check = check
        self._device = next(model.parameters()).device
        self._learnt = {name: each for name, each in model.named_parameters() if each.requires_grad}
        # decay pulls an adapter towards the base, which its rank and few steps hold close already
        self._optimizer = torch.optim.AdamW(self._learnt.values(), lr=0.0, weight_decay=0.0)

    def advance(self) -> Done:
        """Do the next step. Raises TrainingFailed("training_diverged") if the loss is no number any more."""
        step, rate = self.step + 1, self.plan.rate(self.step + 1)
        chosen = self.plan.batches(step)
        count = sum(sum(self._sequences[index].learnt[1:]) for batch in chosen for index in batch)
        self._model.train()
        total = 0.0
        for indexes in chosen:
            self._check()
            loss = self._loss(indexes) / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        norm = float(torch.nn.utils.clip_grad_norm_(self._learnt.values(), MOST_NORM))
        if not math.isfinite(total) or not math.isfinite(norm):
            raise TrainingFailed(
                "training_diverged",
                f"step {step}: the loss is {total}, its gradient {norm}; lower learning_rate (now {rate:g}) or "
                "raise warmup_steps",
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step = step
        tokens = sum(len(self._sequences[index].ids) for batch in chosen for index in batch)
        return Done(step=step, loss=total, rate=rate, tokens=tokens)

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """Return the mean loss over what is not learnt from, or None if everything is."""
        self._model.eval()
        for module in self._model.modules():
            if isinstance(module, Linear4bit):
                # has nothing to switch off, but on some CPUs would lay out its weights anew for good
                module.train()
        total, count = 0.0, 0
        for indexes in in_batches(self.plan.held_out, self._batch_size):
            self._check()
            total += self._loss(indexes).item()
            count += sum(sum(self._sequences[index].learnt[1:]) for index in indexes)
        return total / count if count else None

    def _loss(self, indexes: Sequence[int]) -> torch.Tensor:
        """Return the summed loss of some sequences, a scalar."""
        batch = collated([self._sequences[index] for index in indexes], self._device)
        # Logits are the largest tensor by far: only those that are compared with something are computed.
        logits = self._model(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, logits_to_keep=batch.where
        ).logits
        flat = logits.float().flatten(0, 1)
        return cross_entropy(flat, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def save(self, folder: str) -> None:
        """Write the adapter as it is now, in peft's format."""
        self._model.save_pretrained(folder, save_embedding_layers=False)

    def state(self) -> Tensors:
        """Return everything that the next steps depend on, beside the data and the plan."""
        return {**dict(self._slots()), **_random_state(self._device)}

    def _slots(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._learnt.items():
            yield f"adapter.{name}", parameter.detach()
            for slot, value in self._optimizer.state[parameter].items():
                yield f"{slot}.{name}", value

    def restore(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on after `step`. Raises Misfit, and changes nothing, if `tensors` are of another training."""
        slots = ("exp_avg", "exp_avg_sq", "step")
        shapes = {f"adapter.{name}": each.shape for name, each in self._learnt.items()}
        shapes |= {f"{slot}.{name}": each.shape for slot in slots[:2] for name, each in self._learnt.items()}
        shapes |= {f"step.{name}": torch.Size([]) for name in self._learnt}
        found = {name: each.shape for name, each in tensors.items() if not name.startswith("rng.")}
        if found != shapes or not 0 < step <= self.plan.steps:
            raise Misfit("its tensors are not those of this training")
        _restore_random_state(self._device, tensors)
        for name, parameter in self._learnt.items():
            parameter.data.copy_(tensors[f"adapter.{name}"])
            self._optimizer.state[parameter] = {
                slot: tensors[f"{slot}.{name}"].to("cpu" if slot == "step" else self._device)
                for slot in slots
            }
        self.step = step


def collated(sequences: Sequence[Tokens], device: torch.device) -> Batch:
    """Return `sequences` as one batch."""
    length = max(len(each.ids) for each in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, IGNORED)
    for row, each in enumerate(sequences):
        own = torch.tensor(each.ids, dtype=torch.long)
        learnt = torch.frombuffer(each.learnt, dtype=torch.bool)
        ids[row, : len(own)] = own
        mask[row, : len(own)] = 1
        targets[row, : len(own)] = torch.where(learnt, own, IGNORED)
    targets = targets[:, 1:]  # each position tells the next token
    where = (targets != IGNORED).any(0).nonzero().flatten()
    return Batch(
        ids=ids.to(device),
        mask=mask.to(device),
        where=where.to(device),
        targets=targets[:, where].to(device),
    )


def _random_state(device: torch.device) -> Tensors:
    """Dropout draws from it."""
    state = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng.cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(device: torch.device, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        torch.set_rng_state(tensors["rng.cpu"])
        if device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    except (KeyError, RuntimeError, TypeError) as error:
        raise Misfit(f"its random state cannot be restored: {error}") from error
