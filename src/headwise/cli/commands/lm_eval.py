"""`headwise lm-eval`: the command of the LM Evaluation Harness, with a model "headwise"."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from headwise.cli.commands import command
from headwise.errors import HeadwiseError

PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}  # for typer: nothing here is an option of ours


@command("lm-eval", cls=None, context_settings=PASSED_ON)
def lm_eval(
    call: typer.Context,
    arguments: Annotated[list[str] | None, typer.Argument(help="What lm_eval takes, unchanged.")] = None,
) -> None:
    """Run lm_eval, which then knows `--model headwise --model_args pretrained=PATH,recipe=...` (or `plan=FILE`).

    lm_eval has no way for an installed package to add a model to its own command, so it is started from here.
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        missing = f"lm_eval cannot be imported ({error}); pip install 'headwise[eval]'"
        if arguments and {"-h", "--help"}.intersection(arguments):
            typer.echo(f"{call.get_help()}\n\n{missing}, and this shows lm_eval's own options")
            return
        raise HeadwiseError(missing) from None
    import headwise.bench.lm_eval  # noqa: F401  registers the model

    sys.argv = ["lm_eval", *(arguments or ())]  # the harness reads its arguments from there
    cli_evaluate()
