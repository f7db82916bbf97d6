"""`headwise context`: documents and a question in, a prompt out; what arranging is worth; what it needs measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli.commands import COMMANDS
from headwise.cli.options import Device, Dtype, Fresh, Json, Model, Seed, State
from headwise.cli.renamed import Command
from headwise.report.terminal import plain, stdout, visible

app = typer.Typer(
    help="Order, choose or shorten documents before a question is asked of them, and judge what that is worth.",
    no_args_is_help=True,
)
COMMANDS.add("context", app)

JUDGED = ("shuffled", "attention_sorting", "block_rank", "sentinel")
Squad = Annotated[Path | None, typer.Option(help="Questions of a file in SQuAD's format; made-up ones by default.")]
Questions = Annotated[int, typer.Option(help="Questions; 64 and more tell arrangers apart.")]
Documents = Annotated[int, typer.Option(help="Documents of a question.")]


@app.command("arrangers", cls=Command)
def listed(as_json: Json = False) -> None:
    """List the arrangers: what they do, of which paper, at how many forwards of the model."""
    from dataclasses import asdict

    from rich.table import Table

    from headwise.arrangers import ARRANGERS

    known = {name: asdict(cls.card) for name, cls in ARRANGERS.all().items()}
    if as_json:
        typer.echo(json.dumps(known, indent=1))
        return
    table = Table("arranger", "what it does", "passes", "paper")
    for name, card in known.items():
        table.add_row(name, plain(card["title"]), plain(card["passes"]), plain(card["paper"]))
    stdout().print(table)


@app.command("arrange", cls=Command)
def arrange(
    question: Annotated[str, typer.Argument(help="What is asked.")],
    docs: Annotated[Path, typer.Option(help="A folder of .txt or .md files, or a JSON list of texts.")],
    how: Annotated[str, typer.Option(help='Arrangers, such as "bm25(keep=5) | attn_rank".')] = "attention_sorting",
    model: Annotated[
        str | None, typer.Option(help="A model's path, hub id or name; the embedded one by default.")
    ] = None,
    answered: Annotated[bool, typer.Option("--answer", help="Let the model answer as well.")] = False,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Arrange documents for a question and print the prompt. Files are taken in the order of their names."""
    from headwise.arrangers import arrangers
    from headwise.cli.given import check_place, place_of
    from headwise.cli.progress import Watcher
    from headwise.context import answer
    from headwise.context import arrange as arranged
    from headwise.seams.transformers.load import load_pair, quiet

    check_place(dtype, device)
    arrangers(how)
    names, texts = read_documents(docs)
    quiet()
    with Watcher() as watch:
        watch("loading the model")
        tokenizer, loaded = load_pair(place_of(model), dtype, device)
        watch(f"arranging {len(texts)} documents")
        made = arranged(loaded, tokenizer, texts, question, how)
        said = answer(loaded, tokenizer, made) if answered else None
    told: dict[str, Any] = {"how": how, "question": question, "passes": made.passes, "documents": [
        {"name": names[place], "place": place, "score": made.scores.get(place), "text": text}
        for place, text in zip(made.places, made.documents, strict=True)
    ], "prompt": made.text, "answer": said}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    for one in told["documents"]:
        score = "" if one["score"] is None else f"  {one['score']:.4f}"
        typer.echo(visible(f"{one['name']}{score}"), err=True)
    typer.echo(visible(made.text if said is None else f"{made.text} {said}"))


@app.command("judge", cls=Command)
def judge(
    model: Model = None,
    how: Annotated[list[str] | None, typer.Option(help="Arrangers; may be given often.")] = None,
    squad: Squad = None,
    questions: Questions = 64,
    documents: Documents = 8,
    as_json: Json = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    state: State = None,
    fresh: Fresh = False,
) -> None:
    """What arrangers are worth on a model: is the document that answers found, and is the answer right more often than
    with the documents as they were given? Finished questions are kept, and the same command goes on from them."""
    from rich.table import Table

    from headwise.arrangers import arrangers
    from headwise.cli.given import check_least, check_place, check_text, place_of
    from headwise.cli.progress import Watcher
    from headwise.cli.state import unfinished
    from headwise.context.judge import judged
    from headwise.context.report import COLUMNS, cells
    from headwise.seams.transformers.load import load_pair, quiet

    check_place(dtype, device)
    check_least(questions=(questions, 1), documents=(documents, 2))
    check_text("--squad", squad)
    methods = list(how or JUDGED)
    for one in methods:
        arrangers(one)
    items = _items(squad, questions, documents, seed)
    quiet()
    place = place_of(model)
    facts = [str(place), str(squad), questions, documents, seed, dtype, device]
    with Watcher() as watch, unfinished("context", facts, watch, state=state, fresh=fresh) as folder:
        watch("loading the model")
        tokenizer, loaded = load_pair(place, dtype, device)
        rows = judged(loaded, tokenizer, items, methods, watch, folder)
    if as_json:
        typer.echo(
            json.dumps(
                {"model": model or "embedded", "questions": questions, "documents": documents, "rows": rows}, indent=1
            )
        )
        return
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*(plain(cell) for cell in cells(row)))
    stdout().print(table)


@app.command("measure", cls=Command)
def measure(
    model: Model = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write the slots' attention to this file, for attn_rank.")
    ] = None,
    probe: Annotated[Path | None, typer.Option(help="Train a probe of sentences and write it, for sentinel.")] = None,
    slots: Annotated[int, typer.Option(help="Documents of a prompt.")] = 8,
    squad: Squad = None,
    questions: Annotated[int, typer.Option(help="Questions that it is measured on.")] = 16,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Measure what attn_rank and sentinel need to know of a model, once, on questions that judging does not use."""
    from headwise.cli.given import check_least, check_outputs, check_place, check_text, place_of
    from headwise.cli.progress import Watcher
    from headwise.context.measure import labelled, probe_auc, slot_profile, train_probe
    from headwise.errors import HeadwiseError
    from headwise.files import write_text
    from headwise.seams.transformers.load import load_pair, quiet

    if profile is None and probe is None:
        raise HeadwiseError("nothing is to be measured; give --profile FILE, --probe FILE, or both")
    check_outputs(profile=profile, probe=probe)
    check_place(dtype, device)
    check_least(slots=(slots, 2), questions=(questions, 2))
    check_text("--squad", squad)
    items = _items(squad, questions, slots, seed, "tune")
    quiet()
    with Watcher() as watch:
        watch("loading the model")
        tokenizer, loaded = load_pair(place_of(model), dtype, device)
        if profile is not None:
            found, steady = slot_profile(loaded, tokenizer, items, watch)
            write_text(profile, found.model_dump_json(indent=1) + "\n")
            watch.finished(
                f"wrote {profile}; the two halves of the questions agree by a rank correlation of {steady:.2f}"
            )
        if probe is not None:
            told = labelled(loaded, tokenizer, items, watch)
            made = train_probe(loaded, told, f"{questions} questions of {squad or 'made-up documents'}")
            write_text(probe, made.model_dump_json(indent=1) + "\n")
            watch.finished(f"wrote {probe}; AUC on what it was trained on {probe_auc(made, told):.3f}")


def read_documents(place: Path) -> tuple[list[str], list[str]]:
    """Names and texts: of a folder's .txt and .md files by name, or of a JSON list of texts."""
    from headwise.errors import FileError
    from headwise.files import read_text

    if place.is_dir():
        files = sorted(one for one in place.iterdir() if one.suffix in (".txt", ".md"))
        if not files:
            raise FileError(f"{place} holds no .txt or .md file; give a folder that does")
        return [one.name for one in files], [read_text(one).strip() for one in files]
    try:
        texts = json.loads(read_text(place))
    except json.JSONDecodeError as error:
        raise FileError(f"{place} is no JSON ({error}); give a list of texts, or a folder") from None
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise FileError(f'{place} is no list of texts; write it like ["a document", "another"]')
    return [f"{place.name}[{i}]" for i in range(len(texts))], texts


def _items(squad: Path | None, questions: int, documents: int, seed: int, split: Any = "test") -> list[Any]:
    from headwise.context.material import facts
    from headwise.context.material import squad as of_file

    if squad is None:
        return list(facts(questions, documents, seed, split))
    return list(of_file(str(squad), questions, documents, seed, split))
