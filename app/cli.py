"""The `growthlaw` command. Each verb is a module of `app/commands`, imported when it is used: `growthlaw --help` is quick
and no verb pays for another's libraries."""

from __future__ import annotations

import importlib
import sys

import click

# verb -> (module of app.commands, help)
VERBS = {
    "serve": "start the service",
    "demo": "the whole loop on real text, in one command",
    "recommend": "whether, when and by how much to grow",
    "grow": "start a growth run and its controls",
    "plan": "what to run next; a growth for a trainer of your own",
    "train": "start one run: a single size, a grown one, a trunk, or a decay leg",
    "sweep": "plan, run, collect and check a grid of growth runs",
    "jobs": "list, watch, pause, resume, cancel and retry jobs; their logs and checkpoints",
    "backup": "a consistent copy of a service's data, while it runs",
    "restore": "put a backup back",
    "workers": "what jobs run on, and what is free",
    "runs": "list, import, correct and remove runs, and report on a folder of them",
    "guidelines": "versions of guidelines: list, show, compare, activate, refit",
    "corpus": "prepare and list corpora",
    "keys": "make, list and revoke the keys of a service beyond loopback",
    "audit": "who launched, cancelled, imported and changed what",
    "evaluate": "losses of checkpoints, and what each layer is worth",
    "checkpoint": "grow, verify and show checkpoints",
    "fit": "fit scaling and growth laws on a table of runs",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(f"app.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="growthlaw")
def cli() -> None:
    """Whether, when and by how much to grow a model during pre-training, learned from your own runs."""


def main() -> None:
    """The entry point: clear errors on stderr, exit 130 when interrupted."""
    from app.client import ServiceError

    try:
        # What a verb's Exit carries comes back as a value where click does not end the process itself.
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (ServiceError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"Error: {error.strerror or error}{where}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
