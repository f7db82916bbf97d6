"""The options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Argument(
        help="A model's path, hub id, or name in `headwise models`; the embedded model by default.", show_default=False
    ),
]
RecipeOrPlan = Annotated[
    str,
    typer.Argument(metavar="RECIPE_OR_PLAN", help="A recipe, like 'snapkv(64MiB) | int8', or the path of a plan file."),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", help="A row for this recipe, like 'snapkv(64MiB) | int8'; may be given often."),
]
Marks = Annotated[
    list[str] | None,
    typer.Option(
        "--mark", help="Words of the prompt file to mark, like 'emphasis: keep it short'; may be given often."
    ),
]
Drafts = Annotated[
    str | None,
    typer.Option("--draft", help="Verify guessed tokens several a pass: lookup, hierarchy, or a recipe."),
]
Plans = Annotated[list[Path] | None, typer.Option("--plan", help="A row for this plan file; may be given often.")]

Memory = Annotated[str | None, typer.Option(help="Bytes the cache may hold after the prompt, like 512MiB.")]

Chunk = Annotated[int, typer.Option(help="Tokens of a prefill piece; 0 reads the prompt in one pass.")]
Template = Annotated[
    str,
    typer.Option(help="How what is asked is put: text with {ask}, or `chat`; by default chat where the model has one."),
]
Adapter = Annotated[Path | None, typer.Option(help="Folder of a PEFT adapter to put onto the model.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run programs that come with the model; read them before.")
]
Resident = Annotated[
    str | None, typer.Option(help="Keys and values held in memory at once, like 64MiB; the rest lies in a file.")
]
Folder = Annotated[Path | None, typer.Option(help="Folder of that file; by default the system's for temporary files.")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Report = Annotated[Path | None, typer.Option(help="Write a page with pictures to this .html file.")]
Csv = Annotated[Path | None, typer.Option(help="Write a table for pandas and the like to this .csv file.")]
Docs = Annotated[Path | None, typer.Option(help="A folder of .txt or .md files to read instead of the built-in novel.")]


def _seed(value: int) -> int:
    """A seed, refused before any work where numbers cannot be drawn from it."""
    from headwise.shapes import check_seed

    check_seed(value)
    return value


Seed = Annotated[int, typer.Option(callback=_seed, help="Seed of all that is drawn: facts, documents, random methods.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's choice by default.")]
Asks = Annotated[list[str] | None, typer.Option(help="A question about the prompt file; may be given often.")]
Weights = Annotated[
    str | None, typer.Option(help="Keep the weights of linear layers in int8 or int4: fewer bytes, and a little lost.")
]
Workers = Annotated[
    int | None, typer.Option(help="Processes, each with its own model; by default one a core, at most 8.")
]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="Torch device, such as cpu or cuda.")]

State = Annotated[
    Path | None,
    typer.Option(
        help="Folder where what is finished is kept for good; by default the user's cache, until all is finished."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew, whatever an earlier call finished.")]
Decode = Annotated[
    str | None,
    typer.Option(help="Choose tokens by a second look: decore, cad, dola, dagcd, largepig or layercake."),
]
