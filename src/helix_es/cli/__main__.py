"""The entry point of `helix`."""

from __future__ import annotations

import importlib
from typing import Any

import rich_click as click

# command -> module that defines it: a module is imported only when its command is used
COMMANDS = {
    "up": "helix_es.cli.up",
    "scheduler": "helix_es.cli.serve",
    "api": "helix_es.cli.serve",
    "runner": "helix_es.cli.serve",
    "chat": "helix_es.cli.chat",
    "image": "helix_es.cli.image",
    "finetune": "helix_es.cli.finetune",
    "files": "helix_es.cli.files",
    "adapters": "helix_es.cli.show",
    "worker": "helix_es.cli.worker",
    "sessions": "helix_es.cli.show",
    "gpus": "helix_es.cli.show",
    "queue": "helix_es.cli.show",
    "models": "helix_es.cli.show",
    "top": "helix_es.cli.top",
    "fleet": "helix_es.cli.fleet",
    "replay": "helix_es.cli.replay",
    "why": "helix_es.cli.why",
    "shadow": "helix_es.cli.shadow",
    "simulate": "helix_es.cli.simulate",
    "tune": "helix_es.cli.tune",
    "analytics": "helix_es.cli.analytics",
    "sql": "helix_es.cli.sql",
    "export": "helix_es.cli.export",
    "doctor": "helix_es.cli.doctor",
}


class Lazy(click.RichGroup):
    """A group whose commands are imported when they are named."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        module = COMMANDS.get(cmd_name)
        return None if module is None else getattr(importlib.import_module(module), cmd_name)


@click.group(cls=Lazy)
@click.version_option(package_name="helix-es", prog_name="helix")
def helix() -> None:
    """Helix ES: sessions on GPUs, scheduled from one log."""


def main() -> None:
    """Run the command line. Wrong use is one line on stderr and exit code 2."""
    try:
        helix.main(standalone_mode=False)
    except click.ClickException as error:
        from helix_es.cli.output import fail

        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see '{error.ctx.command_path} --help')"
        fail(error.format_message() + hint, 2)
    except click.Abort:
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
