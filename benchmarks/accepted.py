"""Tokens a pass of drafters that need no training, counted and never timed, on three tasks.

    python benchmarks/accepted.py --json docs/data/decode/accepted.json

n-gram tables in their hierarchy beside each of them alone (row 144): what the model writes after a prompt is known, and
each drafter is asked as it would have been; of some prompts the drafts are really verified as well, and must take as
many passes. And the model itself over a fifth of its cache (row 164), which is verified after every prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import torch

import headwise
from headwise.assets import embedded_model, novel
from headwise.bench.job import encode
from headwise.bench.judging.intervals import Interval, of_scores, of_strata
from headwise.bench.passes import drafted, plain, replayed
from headwise.bench.provenance import machine
from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.ngrams import Counted, Newest, branches
from headwise.findings import Finding, as_data, part
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet

TOKENS, LONGEST, DRAFTS = 10, 4, 4  # of a draft: one after the other, looked up, and branches
GAMMA = 9  # tokens that the model drafts for itself (StD, arXiv 2505.19155, section 4)
REALLY = 4  # prompts of a task whose drafts are really verified
HIERARCHY, SINGLES = "hierarchy", ("this text alone", "earlier runs alone", "a corpus alone")
SPARSE = {
    "all of its cache": "streaming(1.0)",
    "a fifth, by the question's attention": "snapkv(0.2)",
    "a fifth, the latest": "streaming(0.2)",
    "a fifth, at random": "random(0.2)",
}


def passage(number: int, characters: int) -> str:
    """A piece of the novel's second half, of which no corpus knows."""
    text = novel()
    start = len(text) // 2 + number * (len(text) // 2 - characters) // 128
    return text[start : start + characters]


def quotes(number: int, characters: int) -> str:
    """To write a passage once more."""
    text = passage(number, characters)
    return f"{text}\n\nThe passage once more, word by word:\n\n{text[:60]}"


def code(number: int, characters: int) -> str:
    """To write functions once more with one name changed."""
    random, lines = Random(f"code/{number}"), ""
    while len(lines) < characters:
        name, factor = random.choice(["step", "turn", "move", "shift", "scale"]), random.randrange(100)
        body = f"    total = value * {factor} + offset\n    return total % limit"
        lines += f"def {name}_{factor}(value: int) -> int:\n{body}\n\n"
    first = lines.partition("\n")[0]
    return f"{lines}# The same functions, with `offset` renamed to `shift`:\n{first}\n"


def question(number: int, characters: int) -> str:
    """A question about a passage."""
    return f"{passage(number, characters)}\n\nQuestion: Who is this passage about?\nAnswer:"


TASKS: dict[str, Callable[[int, int], str]] = {"quotes": quotes, "code": code, "question": question}


class Tables(Proposer):
    """Some of the tables of `hierarchy`, the nearest first."""

    def __init__(self, own: bool, *later: Counted) -> None:
        self.own = Newest(LONGEST) if own else None
        self.later = later

    def propose(self, written: Written) -> Draft:
        ids = written.ids.tolist()
        if self.own is not None:
            self.own.read(ids)
        tables: list[Newest | Counted] = [*([] if self.own is None else [self.own]), *self.later]
        return branches(tables, ids, min(TOKENS, written.most), DRAFTS)


def corpus(tokenizer: Any) -> list[list[int]]:
    """The novel's first half, and code."""
    folder = Path(headwise.__file__).parent / "decoding"
    texts = [novel()[: len(novel()) // 2], *(path.read_text() for path in sorted(folder.rglob("*.py")))]
    return [encode(tokenizer, text, start=False)[0].tolist() for text in texts]


Texts = list[tuple[list[int], list[int]]]  # prompts, and what plain decoding writes after each


def written(model: Any, tokenizer: Any, task: str, given: argparse.Namespace) -> Texts:
    """Prompts of a task, those of earlier runs last."""
    found = []
    for number in range(given.prompts + given.earlier):

        def one(number: int = number) -> dict[str, Any]:
            ids = encode(tokenizer, TASKS[task](number, given.characters), start=True)
            return {"prompt": ids[0].tolist(), "text": plain(model, ids, given.new)}

        kept = once(given.folder, f"{task}-{number}", one)
        found.append((kept["prompt"], kept["text"]))
        if number % 16 == 15:
            print(f"{task}: {number + 1} texts of {given.prompts + given.earlier}", flush=True)
    return found


def by_tables(model: Any, tokenizer: Any, texts: dict[str, Texts], given: argparse.Namespace) -> dict[str, Any]:
    """Tokens a pass of the hierarchy and of each table alone, by task and prompt; and how often verified drafts took
    the passes that were counted and wrote what plain decoding writes."""
    common, brought, same = Counted(LONGEST, corpus(tokenizer)), dict[str, dict[str, list[float]]](), list[float]()
    for task, own in texts.items():
        asked, earlier = own[: given.prompts], own[given.prompts :]
        runs = Counted(LONGEST, [prompt + text for prompt, text in earlier])
        arms = {HIERARCHY: Tables(True, runs, common)}
        arms |= dict(zip(SINGLES, (Tables(True), Tables(False, runs), Tables(False, common)), strict=True))
        for name, proposer in arms.items():

            def one(proposer: Proposer = proposer, asked: Texts = asked) -> dict[str, Any]:
                return {"passes": [replayed(proposer, prompt, text) for prompt, text in asked]}

            passes = once(given.folder, f"{task}, {name}, {given.prompts}-{given.earlier}", one)["passes"]
            per_pass = [(len(text) - 1) / count for (_, text), count in zip(asked, passes, strict=True)]
            brought.setdefault(name, {})[task] = per_pass
            print(f"{task}, {name}: {sum(per_pass) / len(per_pass):.3f} tokens a pass", flush=True)
            for (prompt, text), count in list(zip(asked, passes, strict=True))[:REALLY]:
                got, ledger = drafted(model, torch.tensor([prompt]), proposer, given.new)
                same.append(float((got, ledger.steps["decode"]) == (text, count)))
    return {"brought": brought, "same": same}


def by_itself(model: Any, texts: Texts, given: argparse.Namespace) -> dict[str, Any]:
    """Drafted tokens that one verification keeps where the model drafts over less of its cache, by prompt; and whether
    all of them were kept."""
    found: dict[str, Any] = {"kept": {}, "whole": {}, "same": []}
    for name, recipe in SPARSE.items():
        for number, (prompt, text) in enumerate(texts):

            def one(prompt: list[int] = prompt, recipe: str = recipe) -> dict[str, Any]:
                draft = f"itself('{recipe}', tokens={GAMMA})"
                got, ledger = drafted(model, torch.tensor([prompt]), draft, given.new)
                return {"text": got, **ledger.drafts}

            kept = once(given.folder, f"{recipe}-{number}", one)
            found["same"].append(float(kept["text"] == text))
            if kept.get("passes"):  # a text may end before anything is drafted
                found["kept"].setdefault(name, []).append(kept["accepted"] / kept["passes"])
                found["whole"].setdefault(name, []).append(float(kept["accepted"] == kept["proposed"]))
        print(f"{name}: {of_strata([found['kept'][name]]).mean:.3f} drafted tokens kept a pass", flush=True)
    return found


def over(one: dict[str, list[float]], other: dict[str, list[float]]) -> Interval:
    """The difference of two arms, prompt by prompt, each task counting the same."""
    return of_strata([[a - b for a, b in zip(one[task], other[task], strict=True)] for task in one])


def hierarchy_finding(found: dict[str, Any], run: dict[str, Any]) -> Finding:
    """Row 144: no task on which the best table alone brings more, and more than each of them on the mean."""
    own, parts = found["brought"][HIERARCHY], []
    for name in SINGLES:
        parts.append(
            part("tokens a pass over it, mean of three tasks", over(own, found["brought"][name]), name, above=0)
        )
    for task in own:
        best = max(SINGLES, key=lambda name: sum(found["brought"][name][task]))
        gaps = over({task: own[task]}, {task: found["brought"][best][task]})
        parts.append(part(f"{task}: tokens a pass over the best single one, {best}", gaps, above=-0.02))
    parts.append(part("texts that verified drafts wrote as plain decoding does, in the passes counted",
                      of_scores(found["same"]), above=0.9))  # fmt: skip
    says = (
        "tables asked by temporal locality bring no fewer tokens a pass than the best one alone, and more on the mean"
    )
    return Finding(row=144, says=says, parts=tuple(parts), **run)


def itself_finding(found: dict[str, Any], run: dict[str, Any]) -> Finding:
    """Row 164: greedy tokens stay; all of the cache accepts all; a fifth accepts two and more, and chance less."""
    whole, fifth, latest, chance = SPARSE
    parts = [
        part("texts that are plain decoding's", of_scores(found["same"]), above=0.95),
        part("texts of which every draft over all of the cache was kept", of_scores(found["whole"][whole]), above=0.9),
        part("drafted tokens kept a pass, over a fifth of the cache", of_strata([found["kept"][fifth]]), above=2),
    ]
    for name in (latest, chance):
        gaps = [a - b for a, b in zip(found["kept"][fifth], found["kept"][name], strict=True)]
        parts.append(part("drafted tokens kept a pass over it", of_strata([gaps]), name, above=0))
    says = f"the model drafts {GAMMA} tokens over a fifth of its cache, by the prompt's end, and keeps two and more"
    return Finding(row=164, says=says, parts=tuple(parts), leaves_out="video, and visual tokens beside text", **run)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(embedded_model()))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--earlier", type=int, default=24, help="Prompts of each task that were written before.")
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--characters", type=int, default=1200)
    parser.add_argument("--folder", type=Path, default=Path("out/accepted"), help="Where finished texts are kept.")
    parser.add_argument("--json", type=Path, help="A table of figures for the docs.")
    return parser


def interval(one: Interval, digits: int = 2) -> str:
    return f"{one.mean:.{digits}f} ({one.low:.{digits}f} to {one.high:.{digits}f})"


def main() -> None:
    """A line for every drafter."""
    given = arguments().parse_args()
    quiet()
    tokenizer, model = load_pair(given.model, "float32")  # in bfloat16 near ties fall either way
    model.generation_config.eos_token_id = None  # texts of one length, where a model would end after a word as well
    given.folder.mkdir(parents=True, exist_ok=True)
    texts = {task: written(model, tokenizer, task, given) for task in TASKS}
    tables = by_tables(model, tokenizer, texts, given)
    asked = texts["quotes"][: given.prompts]
    itself = by_itself(model, asked, given)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures(tables, itself, given), indent=1) + "\n")


def figures(tables: dict[str, Any], itself: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """What was found as a table of figures, with what it shows of two rows."""
    name = "" if given.model == str(embedded_model()) else f" --model {given.model}"
    run: dict[str, Any] = {
        "host": f"{Path(given.model).name}, {given.prompts} prompts of each of {len(TASKS)} tasks",
        "command": f"python benchmarks/{Path(__file__).name}{name} --prompts {given.prompts} --new {given.new}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
    }  # fmt: skip
    rows = []
    for arm, tasks in tables["brought"].items():
        cells = [interval(of_strata([values])) for values in tasks.values()]
        rows.append([f"tables: {arm}", *cells, interval(over(tasks, {task: [0.0] * given.prompts for task in tasks}))])
    for arm, values in itself["kept"].items():
        rows.append([f"the model itself over {arm}: drafted tokens kept", interval(of_strata([values])), "", "", ""])
    findings = []
    if given.prompts >= 64:
        quoting = run | {"host": f"{Path(given.model).name}, {given.prompts} passages to write once more"}
        findings = [hierarchy_finding(tables, run), itself_finding(itself, quoting)]
    return {
        "source": run["host"], "command": run["command"], "machine": run["machine"], "date": run["date"],
        "model": Path(given.model).name, "columns": ["drafter", *TASKS, "mean"], "rows": rows,
        "findings": as_data(findings),
    }  # fmt: skip


if __name__ == "__main__":
    main()
