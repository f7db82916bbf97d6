"""`headwise`: the commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import headwise
from headwise.cli.commands import COMMANDS, Subcommand
from headwise.errors import HeadwiseError
from headwise.report.terminal import plain

FAILED = 2
STOPPED = 130  # as shells tell that somebody pressed Ctrl-C


class Doors(TyperGroup):
    """Turns what headwise refuses into one line on stderr and exit code 2, and Ctrl-C into exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except HeadwiseError as error:
            line = " ".join(str(error).split())
            Console(stderr=True, soft_wrap=True).print(plain(f"error: {line}", "red"))
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(STOPPED) from None


app = typer.Typer(
    cls=Doors,
    help="Run pretrained transformers over long contexts by giving every attention head just the attention it needs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headwise {headwise.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


for name, subcommand in COMMANDS.all().items():
    if isinstance(subcommand, Subcommand):
        app.command(name, **subcommand.settings)(subcommand.function)
    else:
        app.add_typer(subcommand, name=name)


if __name__ == "__main__":
    sys.exit(app())
