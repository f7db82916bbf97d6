"""docs/models.md: which models run under headwise, from the files that `make models` writes, one for each version of
transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwise.bench.judging.intervals import Interval, of_scores

INTRO = """\
Which models run under headwise, found by asking: of every class that the installed transformers has, a tiny one with
random weights (few heads, one or two layers of each sort, windows at 8 tokens) reads a prompt in one piece, in two, and
in a left-padded batch, and goes on token by token, under the empty recipe and alone by its own eager attention.

- **identical**: logits within 1e-4 of their size, in float32.
- **by themselves**: of these, models that attend by their own arithmetic over what a headwise cache hands back, as they
  have something that the attention function is not told (ALiBi, an indexer, attention of their own). A plan says only
  in what form keys and values lie ("int8"); whatever evicts, selects or looks at queries is refused by name. See
  [families](families.md).
- **refused**: by name, before work starts, for the reason given.
- **differs**, **crash**: faults of headwise; `headwise matrix` exits with 1.
- **not built**: no small model could be made of the class's default config, so nothing is known.

`make models` makes the files of this page anew, `headwise matrix --only lfm2` asks one family, and `headwise doctor
MODEL` says of a model's config what of it is governed. *governed* are the layers that attend, which a plan governs;
*passing* those that pass a state on (short convolutions, gated delta rules, state-space layers), which goes through
exactly and is saved, forked and counted with the cache; see [hybrids](hybrids.md). *reading* layers attend over what
an earlier one stores, by its recipe.
"""
TITLES = {
    "causal": "Causal language models",
    "vision": "Vision-language models",
    "encoder-decoder": "Encoder-decoder models",
}
VERDICTS = ("identical", "refused", "differs", "crash", "not built")


NEEDLES = """
## A needle in each kind of attention

Methods are shown to work where models attend otherwise, and not only to run: a tiny model of each kind is trained until
it finds a needle (a fact among seven others and filler, {questions} documents it never saw). The document is read with
the question behind it, a recipe evicts down to 10 tokens of 50, and the question is asked once more, so that what was
kept answers; of a model with an encoder, it is the encoder's keys that are evicted. The share that is answered, and by
how much `snapkv` is ahead of random eviction of as many tokens, paired, with its 95 % interval. Chance is 0.12; windows
and chunks are the model's own. `make kinds` trains them all in minutes ({processor}).

| kind | class | dense | snapkv | random | sinks and recent | snapkv over random |
| --- | --- | --- | --- | --- | --- | --- |
"""


def models_page(made: str, results: Sequence[dict[str, Any]], kinds: dict[str, Any] | None = None) -> str:
    """The page: how many of each sort by version, what trained models of each kind answer, then every model type of the
    newest version."""
    lines = ["# Models", "", made, INTRO]
    newest_first = sorted(results, key=lambda one: [int(part) for part in one["transformers"].split(".")], reverse=True)
    titles = [VERDICTS[0], "by themselves", *VERDICTS[1:]]
    lines += ["| transformers | sort | " + " | ".join(titles) + " |", "| --- | --- |" + " --- |" * len(titles)]
    for result in newest_first:
        for sort, found in result["counts"].items():
            counts = [found.get(verdict, 0) for verdict in VERDICTS]
            counts[1:1] = [sum(bool(row.get("by_itself")) for row in result["rows"] if row["sort"] == sort)]
            lines.append(f"| {result['transformers']} | {sort} | {' | '.join(map(str, counts))} |")
    if kinds is not None:
        about = NEEDLES.format(questions=kinds["questions"], processor=kinds["machine"]["processor"])
        lines += [about.rstrip("\n"), *map(_of_kind, kinds["rows"])]
    for sort, title in TITLES.items() if newest_first else ():
        lines += _of_sort(sort, title, newest_first)
    return "\n".join(lines) + "\n"


def _of_kind(row: dict[str, Any]) -> str:
    """A trained model's line."""
    shares = [f"{of_scores(row[arm]['right']).mean:.2f}" for arm in ("dense", "snapkv", "random", "recent")]
    ahead = [one - other for one, other in zip(row["snapkv"]["right"], row["random"]["right"], strict=True)]
    over: Interval = of_scores(ahead)
    told = f"{over.mean:+.2f} [{over.low:+.2f}, {over.high:+.2f}]"
    return f"| {row['says'].rstrip('.')} | {row['class']} | {' | '.join(shares)} | {told} |"


def _of_sort(sort: str, title: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the model types of a sort: what the newest version found, and the others where it is not the same."""
    named = [[row for row in result["rows"] if row["sort"] == sort] for result in results]
    if not any(named):
        return []
    others = [{row["model_type"]: row["found"] for row in rows} for rows in named[1:]]
    versions = [result["transformers"] for result in results]
    head = ["model type", "class", *versions, "governed", "passing", "reading", "why"]
    lines = ["", f"## {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in named[0]:
        found = [row["found"], *(one.get(row["model_type"], "not there") for one in others)]
        layers = f"{row['governed']} of {row['layers']}" if row["layers"] else ""
        layers += ", form only" if row.get("by_itself") else ""
        why = row["why"].replace("|", "\\|").replace("<", "&lt;")
        others_too = [str(row["passing"] or ""), str(row.get("reading") or "")]
        cells = [row["model_type"], row["kind"], *found, layers, *others_too, why]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
