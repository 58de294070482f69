"""What a worker is given: one turn with all that it needs, in the words of the contract."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from helix_es import telemetry
from helix_es.api.workers.taskid import TaskId
from helix_es.core import events as e
from helix_es.core.catalogue import Model
from helix_es.core.history import Session, Turn

_PLACES = re.compile(r"\{(prompt|system)\}")


class TaskView(msgspec.Struct, kw_only=True):
    """A task in a worker's hand."""

    task_id: str
    session_id: str
    turn: int
    attempt: int
    mode: Literal["create", "continue", "finetune"]
    """`continue`: this worker did the session's turns before, and may have kept what they left in memory."""
    type: e.Kind
    model: str
    model_name: str
    prompt: str
    system: str | None
    messages: list[e.Message]
    """The whole conversation, its prompt last."""
    params: dict[str, Any]
    template_prompt: str
    """The prompt as a program that reads plain text is given it."""
    adapter: str | None
    adapter_files: list[str]
    dataset: str | None
    """Id of a file, to be had under `input/`; so are the others here."""
    input_file: str | None
    """The picture that this turn changes."""
    checkpoint: list[str]
    """What an earlier attempt got to."""
    lease_s: float
    """Silent for longer, and the worker counts as lost."""
    traceparent: str | None


def handout(task: TaskId, session: Session, model: Model, *, continued: bool, lease_s: float) -> TaskView:
    """Return what the worker is given of an attempt at the turn that `session` shows."""
    turn = session.turns[task.turn - 1]
    return TaskView(
        task_id=str(task),
        session_id=task.session,
        turn=task.turn,
        attempt=task.attempt,
        mode="finetune" if session.mode == "finetune" else "continue" if continued else "create",
        type=session.type,
        model=session.model,
        model_name=model.name,
        prompt=turn.prompt,
        system=session.system,
        messages=session.messages(task.turn),
        params={**session.params, **turn.params},
        template_prompt=filled(model.template, turn.prompt, session.system),
        adapter=session.adapter,
        adapter_files=session.adapter_files,
        dataset=session.dataset,
        input_file=session.picture_before(task.turn),
        checkpoint=turn.checkpoint,
        lease_s=lease_s,
        traceparent=telemetry.carried().get("traceparent"),
    )


def inputs(session: Session, turn: Turn) -> list[str]:
    """Return the files that a worker may read for its task."""
    named = [session.dataset, session.picture_before(turn.turn), *session.adapter_files, *turn.checkpoint]
    return [file for file in named if file is not None]


def filled(template: str, prompt: str, system: str | None) -> str:
    """Return `template` with its places filled; what the values say is never taken for a place."""
    values = {"prompt": prompt, "system": system or ""}
    return _PLACES.sub(lambda place: values[place[1]], template)
