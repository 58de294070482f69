"""One frame of the film: the floor as bars, the door, the last facts; as much as the terminal holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from helix_es.api.views import gpu_state
from helix_es.cli.film import counts
from helix_es.cli.instants import day_clock, lasted
from helix_es.core.floor import Gpu
from helix_es.core.occupancy import Occupancy

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions, RenderableType
    from rich.text import Text

WORKS, SILENT, FREE = "█", "▒", "·"
WORKING = frozenset({"continued", "running", "cancelling"})
STYLES = {"ready": "green", "loading": "yellow", "joining": "yellow", "draining": "red", "leaving": "red"}
CELL = 38  # columns of one GPU
NAMES, NUMBERS = 25, 7  # columns before a bar, and of what stands behind it
BAR = 40  # most slots that a bar shows one by one
NEXT = 4  # of those who wait that are named
LEAST_FACTS = 3
HEADINGS = 8  # lines: two at the top, and of each part a heading with a gap before it
QUEUES = 6  # that are shown
MARKS = {"loading": "…", "joining": "?", "draining": "↓", "leaving": "↓"}
LEGEND = f"{WORKS} works  {SILENT} silent  {FREE} free   * batch  … loads  ↓ drains"


class _Line(NamedTuple):
    """GPUs that are alike, or one."""

    name: str
    state: str
    model: str
    purpose: str
    works: int
    silent: int
    slots: int


def drawing(state: Occupancy, head: str, facts: list[str], size: ConsoleDimensions) -> RenderableType:
    """Return the frame, no higher than the terminal."""
    from rich.console import Group
    from rich.text import Text

    from helix_es.cli.talk import printable

    shop = counts(state)
    now = f"{day_clock(state.now_ms)}   "
    said = f"{shop.ready} of {shop.gpus} GPUs ready   {shop.held}/{shop.slots} slots held   {shop.waiting} waiting"
    lines = [Text.assemble((now, "bold"), said), Text(f"sequence {state.seq}   {head}", style="dim")]
    door = _door(state)
    room = size.height - HEADINGS - len(door) - LEAST_FACTS
    lines += [
        Text.assemble(("\nThe floor   ", "bold"), (LEGEND, "dim")),
        *_floor(state, room, size.width),
    ]
    lines += [Text("\nThe door", style="bold"), *door]
    left = max(1, size.height - 2 - sum(1 + line.plain.count("\n") for line in lines))
    lines += [Text("\nThe last facts", style="bold"), *(Text(printable(each)) for each in facts[-left:])]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


def _floor(state: Occupancy, room: int, width: int) -> list[Text]:
    """Return the GPUs in columns, or those that are alike in a line each where they are too many."""
    from rich.text import Text

    if not state.gpus:
        return [Text("no GPU is there", style="dim")]
    single = [_line(state, state.gpus[name]) for name in sorted(state.gpus)]
    columns = max(1, width // CELL)
    rows = -(-len(single) // columns)
    if rows > max(3, room):
        return [_bar(line, width) for line in _alike(single)][: max(3, room)]
    cells = [_bar(line, CELL - 2) for line in single]
    return [Text("  ").join(cells[n::rows]) for n in range(rows)]


def _line(state: Occupancy, gpu: Gpu) -> _Line:
    phases = [state.seats[session].phase for session in gpu.sessions]
    works = sum(phase in WORKING for phase in phases)
    model, purpose = gpu.model or "-", gpu.purpose or ""
    return _Line(gpu.gpu, gpu_state(gpu), model, purpose, works, len(phases) - works, gpu.slots)


def _alike(single: list[_Line]) -> list[_Line]:
    groups: dict[tuple[str, str, str], list[_Line]] = {}
    for line in single:
        groups.setdefault((line.model, line.purpose, line.state), []).append(line)
    return [
        _Line(
            f"{len(lines)} GPUs",
            state,
            model,
            purpose,
            *(
                sum(column)
                for column in zip(*((each.works, each.silent, each.slots) for each in lines), strict=True)
            ),
        )
        for (model, purpose, state), lines in sorted(groups.items())
    ]


def _bar(line: _Line, width: int) -> Text:
    """Return one line: its name, what it is for, and its slots."""
    from rich.text import Text

    most = max(line.slots, line.works + line.silent)
    fit = min(BAR, max(4, width - NAMES))
    numbered = most > fit or line.name.endswith("GPUs")
    if numbered:
        fit = max(4, fit - NUMBERS)
    scale = 1.0 if most <= fit else fit / most
    works, silent = round(line.works * scale), round(line.silent * scale)
    free = max(0, round(most * scale) - works - silent)
    what = line.model + "*" * (line.purpose == "batch") + MARKS.get(line.state, "")
    text = Text.assemble(
        f"{line.name[:11]:<11} ",
        (f"{what[:13]:<13}", STYLES.get(line.state, "")),
        (WORKS * works, "bold green" if line.purpose != "batch" else "bold magenta"),
        (SILENT * silent, "green"),
        (FREE * free, "dim"),
        f" {line.works + line.silent}/{line.slots}" if numbered else "",
    )
    text.truncate(width, pad=True)
    return text


def _door(state: Occupancy) -> list[Text]:
    """Return a line for each queue with somebody in it."""
    from rich.text import Text

    if not state.door.waiting:
        return [Text("nobody waits", style="dim")]
    lines = []
    for workload in sorted(state.door.waiting)[:QUEUES]:
        queue, capacity = state.door.queue(workload), state.door.capacity(workload)
        named = [_waits(state, place.session) for place in queue.first(NEXT)]
        more = f" and {len(queue) - NEXT} more" if len(queue) > NEXT else ""
        name = workload.model + ("*" if workload.mode == "finetune" else "")
        lines.append(
            Text.assemble(
                f"{name[:12]:<12}",
                (f"{len(queue):>4} waiting", "bold yellow"),
                f"  {max(0, capacity.free)} free  next: {', '.join(named)}{more}",
            )
        )
    if len(state.door.waiting) > QUEUES:
        lines.append(Text(f"and {len(state.door.waiting) - QUEUES} more queues", style="dim"))
    return lines


def _waits(state: Occupancy, session: str) -> str:
    seat = state.seats[session]
    waited = lasted(max(0, state.now_ms - seat.queued_ms))
    return f"{session[:8]} ({seat.owner}, {waited})"
