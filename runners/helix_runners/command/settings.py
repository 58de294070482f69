"""What a command runner is told: the program, how it is spoken to, and what it may use."""

from __future__ import annotations

from typing import Literal

import msgspec

from helix_es.core.errors import Misconfigured

Protocol = Literal["once", "lines", "json"]

MOST_OUTPUT_BYTES = 900_000  # a turn's end carries its whole output, and a NATS message holds 1 MiB
DAY_S = 86_400.0

# option -> (least, most)
RANGES: dict[str, tuple[float, float]] = {
    "time_limit_s": (0.001, 30 * DAY_S),
    "start_limit_s": (0.001, DAY_S),
    "grace_s": (0, 600),
    "most_output_bytes": (1, MOST_OUTPUT_BYTES),
    "most_stderr_bytes": (0, 65_536),
    "most_files": (1, 1_000),
    "most_file_bytes": (1, 1 << 40),
    "parallel": (1, 1_000),
}


class CommandSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one program is run. Every value but `command` has a default."""

    command: list[str]
    """The program and its arguments. No shell sees them."""
    protocol: Protocol = "once"
    """`once`: a process for each task. `lines`, `json`: one process that stays, spoken to line by line."""
    template: str | None = None
    """Around a prompt: `{prompt}` and `{system}` are filled in. None: the model's own."""
    conversation: bool = False
    """Whether the program reads the whole conversation, turn by turn through the template, or the last prompt alone."""
    time_limit_s: float = 300.0
    """Of one task, from the moment that the program has it."""
    start_limit_s: float = 600.0
    """Of a program that stays, from its start to `ready_line`."""
    grace_s: float = 5.0
    """Between SIGTERM, or a JSON cancel, and SIGKILL."""
    ready_line: str | None = None
    """A program that stays is ready when a line of its stdout contains this. None: as soon as it runs."""
    end_line: str = ""
    """The line that ends an answer of `lines`; an empty one unless told otherwise."""
    most_output_bytes: int = 524_288
    """Of one answer, as the log stores it (JSON); a program that says more is stopped."""
    most_stderr_bytes: int = 4_096
    """The last of stderr, kept for the text of a failure."""
    collect: str | None = None
    """Which files of the output folder are the result, as `*.png` or `**/*.json`.

    None: `*.png` of an image model, `adapter_*` of a fine-tune, else nothing.
    """
    most_files: int = 16
    most_file_bytes: int = 1 << 28
    """Of each collected file."""
    parallel: int = 1
    """Tasks at once, for `once` and `json`; more wait here. `lines` does one after the other."""


def checked(settings: CommandSettings) -> CommandSettings:
    """Return `settings`. Raises Misconfigured with the option's name, what was found and what is allowed."""
    if not settings.command or not settings.command[0]:
        raise Misconfigured("no command given: write it behind --, as in `-- python model.py`")
    if any("\0" in word for word in settings.command):
        raise Misconfigured("the command holds a NUL character, which no program can be given")
    for name, (least, most) in RANGES.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            raise Misconfigured(f"{_option(name)}: found {value!r}, allowed is {least:g} to {most:g}")
    if settings.template is not None:
        check_template(settings.template, "--template")
    for name in ("end_line", "ready_line"):
        value = getattr(settings, name)
        if value is not None and ("\n" in value or "\r" in value):
            raise Misconfigured(f"{_option(name)}: found {value!r}, allowed is one line")
    if settings.ready_line == "":
        raise Misconfigured(
            "--ready-line: is empty; leave it out if the program does not say when it is ready"
        )
    _check_pattern(settings.collect)
    return settings


def check_template(template: str, where: str) -> None:
    """Raises Misconfigured if a prompt would be lost."""
    if "{prompt}" not in template:
        raise Misconfigured(f"{where}: found {template!r:.200}, which has no {{prompt}} in it")


def _check_pattern(pattern: str | None) -> None:
    parts = [] if pattern is None else pattern.split("/")
    if pattern is not None and any(part in ("", ".", "..") for part in parts):
        raise Misconfigured(
            f"--collect: found {pattern!r}, allowed is a pattern inside the output folder, as '*.png'"
        )
    if parts and parts[-1] == "**":
        raise Misconfigured(f"--collect: found {pattern!r}, which matches folders; write '**/*'")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
