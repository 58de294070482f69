"""Which runners `helix up` starts: the words of --runners, and the command of each."""

from __future__ import annotations

import os

import msgspec

from helix_es.core.errors import Misconfigured
from helix_es.core.events import Kind
from helix_es.settings import Settings

RUNNERS = "text:smollm2,image:scenes,batch:smollm2"
FORM = (
    "text|image|batch|any[:<model>[+<model>…]][@<device>][*<count>] or "
    "simulated:<model>[+batch]@<gpu kind>[*<count>], with commas between."
)
MOST = 64  # processes of one entry
MOST_SIMULATED = 20_000
BATCH = "batch"  # stands among models for fine-tunes of the text models

# kind in --runners -> (words of `helix runner`, type of its models, models where none are named)
KINDS: dict[str, tuple[str, Kind | None, tuple[str, ...]]] = {
    "text": ("text", "text", ("smollm2",)),
    "image": ("image", "image", ("scenes",)),
    "batch": ("finetune", "text", ("smollm2",)),
    "any": ("any", None, ("smollm2", "scenes", BATCH)),
    "simulated": ("simulated", None, ()),
}


class RunnerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of --runners."""

    kind: str
    models: tuple[str, ...]
    serves: tuple[str, ...]
    """As `helix runner any --serve` has it."""
    count: int
    device: str | None
    """Of a simulated runner: the GPU kind."""


Command = tuple[str, list[str], dict[str, str]]
"""Name of the process, words of the command, environment."""


def parse_runners(spec: str, settings: Settings) -> list[RunnerSpec]:
    """Return the runners that `spec` names, as in `text:smollm2*2,any:mistral+batch@cuda:1,simulated:sdxl@l4-24*50`.

    Raises Misconfigured with the part that is wrong and the form that is allowed.
    """
    return [_parsed(part, settings) for part in filter(None, (each.strip() for each in spec.split(",")))]


def _parsed(part: str, settings: Settings) -> RunnerSpec:
    body, star, count = part.partition("*")
    body, _, device = body.partition("@")
    kind, _, named = body.partition(":")
    number = int(count) if count.isdigit() else 0 if star else 1
    most = MOST_SIMULATED if kind == "simulated" else MOST
    if kind not in KINDS or not 1 <= number <= most:
        raise Misconfigured(f"--runners {part!r}: must be {FORM} As in {RUNNERS}")
    _, makes, usual = KINDS[kind]
    models = tuple(filter(None, named.split("+"))) or usual
    if kind == "simulated" and (not device or not models):
        raise Misconfigured(
            f"--runners {part!r}: a simulated runner needs a model and a GPU kind, as in simulated:mistral@a100-80"
        )
    batch = makes is None and BATCH in models
    models = tuple(each for each in models if not (batch and each == BATCH))
    for model in models:
        if model not in settings.models or makes not in (None, settings.models[model].type):
            there = ", ".join(sorted(s for s, m in settings.models.items() if makes in (None, m.type)))
            raise Misconfigured(f"--runners {part!r}: {kind} needs one of the models {there}")
    serves = [f"{settings.models[model].type}:{model}" for model in models]
    if batch:
        texts = [model for model in models if settings.models[model].type == "text"]
        if not texts:
            raise Misconfigured(f"--runners {part!r}: 'batch' needs a text model beside it to be fine-tuned")
        serves += [f"batch:{model}" for model in texts]
    return RunnerSpec(kind=kind, models=models, serves=tuple(serves), count=number, device=device or None)


def commands(specs: list[RunnerSpec], node: str, slots: int | None) -> list[Command]:
    """Return the processes that make `specs` true on this machine."""
    found: list[Command] = []
    for spec in specs:
        if spec.kind == "simulated":
            found.append(_simulated(spec, len(found), node, slots))
            continue
        for _ in range(spec.count):
            found.append(_real(spec, len(found), node, slots, _threads(spec, specs)))
    return found


def _threads(spec: RunnerSpec, specs: list[RunnerSpec]) -> int:
    """Return the cores of one: shared among those of a kind; trainings and pictures leave half to the chats."""
    alike = sum(each.count for each in specs if each.kind == spec.kind)
    return max(1, (os.cpu_count() or 1) // (alike * (1 if spec.kind in ("text", "any") else 2)))


def _real(spec: RunnerSpec, index: int, node: str, slots: int | None, threads: int) -> Command:
    words = ["runner " + KINDS[spec.kind][0]]
    if spec.kind == "any":
        words += [word for each in spec.serves for word in ("--serve", each)]
    else:
        words += [word for each in spec.models for word in ("--model", each)]
    words += ["--gpu", f"{node}-{index}", "--drain-s", "2"]
    words += ["--slots", str(slots)] if slots and spec.kind != "batch" else []
    words += ["--device", spec.device] if spec.device else ["--threads", str(threads)]
    # A guest's threads must not spin while they wait: those of the chats need the cores.
    env = {} if spec.kind == "text" else {"OMP_WAIT_POLICY": "PASSIVE"}
    return f"runner-{index}", words, env


def _simulated(spec: RunnerSpec, index: int, node: str, slots: int | None) -> Command:
    words = ["runner simulated", "--kind", spec.device or "", "--count", str(spec.count)]
    words += [word for each in spec.models for word in ("--model", each)]
    words += ["--batch"] if any(each.startswith("batch:") for each in spec.serves) else []
    words += ["--gpu-prefix", f"sim-{node}-{index}", "--drain-s", "2"]
    words += ["--slots", str(slots)] if slots else []
    return f"runner-{index}", words, {}
