"""Each fact of the log in words, one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helix_es.cli.instants import lasted
from helix_es.core import events as e

TEXT_CHARS = 60  # of an error


def said(record: e.Recorded) -> str:
    """Return what `record` says."""
    event = record.event
    if event is None:
        return f"unreadable message under {record.subject}"
    words = _WORDS.get(type(event))
    return record.subject if words is None else words(event)


def weighty(record: e.Recorded) -> bool:
    """Whether somebody who watches would miss it: steps of long turns are left out."""
    return not isinstance(record.event, e.TurnProgressed)


def _assigned(event: e.GpuAssigned) -> str:
    work = f"{event.model} ({'batch' if event.purpose == 'batch' else 'chat'})"
    if event.slots:
        return f"{event.gpu} is for {work}, {event.slots} slots: {event.reason}"
    target = "to leave" if event.leaving else f"for {event.next.model if event.next else 'nothing'}"
    return f"{event.gpu} drains {target}: {event.reason}"


def _admitted(event: e.TurnAdmitted) -> str:
    told = "nothing" if event.estimated_ms is None else lasted(event.estimated_ms)
    again = f", attempt {event.attempt}" if event.attempt > 1 else ""
    return (
        f"{event.session}#{event.turn} is admitted{again} after {lasted(event.waited_ms)}"
        f" (told {told}): {event.reason}"
    )


def _completed(event: e.TurnCompleted) -> str:
    made = f"{event.usage.completion_tokens} tokens in {lasted(event.total_ms)}"
    return f"{event.session}#{event.turn} is done on {event.gpu}: {made}"


def _error(failure: e.Failure) -> str:
    text = " ".join(failure.message.split())
    return f"{failure.code}: {text if len(text) <= TEXT_CHARS else text[: TEXT_CHARS - 1] + '…'}"


_WORDS: dict[type[e.Event], Callable[[Any], str]] = {
    e.SessionCreated: lambda x: f"{x.session} comes in: {x.owner}, {x.mode} {x.type} {x.model}",
    e.TurnQueued: lambda x: f"{x.session}#{x.turn} of {x.owner} waits for {x.model}",
    e.TurnAdmitted: _admitted,
    e.TurnContinued: lambda x: f"{x.session}#{x.turn} goes straight on to {x.gpu}",
    e.TurnStarted: lambda x: f"{x.session}#{x.turn} runs on {x.gpu}",
    e.TurnProgressed: lambda x: (
        f"{x.session}#{x.turn} step {x.step} of {x.steps}{', checkpoint' * bool(x.checkpoint)}"
    ),
    e.TurnCancelling: lambda x: f"{x.session}#{x.turn} is asked to stop",
    e.TurnYielding: lambda x: f"{x.session}#{x.turn} is asked to give {x.gpu} back",
    e.TurnReturned: lambda x: f"{x.session}#{x.turn} is given back by {x.gpu}: {_error(x.error)}",
    e.TurnCompleted: _completed,
    e.TurnFailed: lambda x: f"{x.session}#{x.turn} fails: {_error(x.error)}",
    e.TurnCancelled: lambda x: f"{x.session}#{x.turn} is cancelled",
    e.SessionReleased: lambda x: f"{x.session} gives its slot on {x.gpu} back: {x.reason}",
    e.SessionClosed: lambda x: f"{x.session} is over",
    e.GpuJoined: lambda x: f"{x.gpu} joins: {x.kind}, pool {x.pool}",
    e.GpuLeft: lambda x: (
        f"{x.gpu} leaves" + (f": it could not load {x.failed.model}" if x.failed is not None else "")
    ),
    e.GpuAssigned: _assigned,
    e.GpuReady: lambda x: (
        f"{x.gpu} is ready with {x.model}" + (f", loaded in {lasted(x.load_ms)}" if x.load_ms else "")
    ),
    e.GpuLost: lambda x: f"{x.gpu} is lost ({x.reason}), silent for {lasted(x.silent_ms)}",
    e.FleetResized: lambda x: f"pool {x.pool} should have {x.size} GPUs: {x.reason}",
    e.PolicySet: lambda x: (
        f"new rules: reserved {x.policy.reserved}, idle after {lasted(x.policy.idle_after_ms)}"
    ),
}
