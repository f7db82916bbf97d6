"""What arranging documents is worth on a model: measures its slot profile and its probe, and judges every arranger.

    python benchmarks/context.py smollm2 --documents 6 --questions 64 --measure

Writes docs/data/context/MODEL.json (MODEL-squad.json of questions in a file), or --json FILE, and with --measure
the two files of the model below src/headwise/assets/context/. With --keep FOLDER, what is finished is kept there, and
the same command goes on from it.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import torch

from headwise.assets import context_folder, embedded_model
from headwise.bench.provenance import machine
from headwise.cli.progress import Watcher
from headwise.context.judge import judged
from headwise.context.material import facts, squad
from headwise.context.measure import labelled, probe_auc, slot_profile, train_probe
from headwise.context.report import COLUMNS, cells
from headwise.files import write_json, write_text
from headwise.findings import ENOUGH, Finding, Part, as_data
from headwise.kept import once
from headwise.report.findings import measured
from headwise.seams.transformers.load import load_pair, quiet

DATA = Path(__file__).parents[1] / "docs" / "data" / "context"
WORDS = {
    "right": "answers more questions", "gain": "answers as many as with the documents as given",
    "first": "puts the right document first", "late": "puts the right document into the last third",
    "auc": "ranks the right document above others",
}  # fmt: skip
STATED = {  # an arranger: the row that it stands for, what is said of it, and what of the row is left out
    "attention_sorting(1)": (182, "The document that is attended to most, put last, is the right one, and is then used",
                             "a model trained to have a recency bias"),
    "bm25 | attn_rank": (218, "A retriever's best documents answer more in the slots that are attended to most",
                         "the interval of the profile's rank correlation"),
    "sentinel(0.2)": (188, "A fifth of the text, sentences that a probe of attention finds relevant, answers as all",
                      ""),
    "block_rank": (312, "Documents that are read apart are ranked by the attention of the last tokens",
                   "the trained ranker, fifty documents, and the decoded answer"),
}  # fmt: skip
# By an arranger: what it has more than another, which shows its idea, and by how much at least; the same of its own.
CONTROLS = {
    "attention_sorting(1)": (("right", "as_given", 0.1),),
    "bm25 | attn_rank": (("right", "as_given", 0.05), ("right", "bm25", 0.05), ("right", "bm25(best='last')", 0.0)),
    "sentinel(0.2)": (("right", "random_sentences(0.2)", 0.15), ("right", "bm25(keep=1)", 0.0)),
    "block_rank": (("first", "attention_sorting(1)", 0.0),),
}
LIMITS: dict[str, tuple[tuple[str, float], ...]] = {
    "attention_sorting(1)": (("late", 0.8),),
    "bm25 | attn_rank": (),
    "sentinel(0.2)": (("gain", -0.03), ("auc", 0.9)),
    "block_rank": (("first", 0.9),),
}
METHODS = (
    "bm25", "bm25(best='last')", "bm25 | attn_rank", "attention_sorting(1)", "attention_sorting", "block_rank",
    "sentinel(0.2)", "random_sentences(0.2)", "bm25(keep=1)", "minilm(keep=1)",
)  # fmt: skip


def measure(name: str, model: Any, tokenizer: Any, asked: argparse.Namespace, watch: Watcher) -> dict[str, Any]:
    """Write the model's profile and probe, measured on the tuning split; what they come to on the test split."""
    trained = facts(asked.trained, asked.documents, split="tune")
    profile, steady = slot_profile(model, tokenizer, trained[: asked.turned], watch)
    told = labelled(model, tokenizer, trained, watch)
    held = labelled(model, tokenizer, facts(asked.held, asked.documents), watch)
    source = f"{asked.trained} made-up questions of {asked.documents} documents each, split tune, seed 0"
    probe = train_probe(model, told, source)
    found = {
        "rank correlation of halves": steady,
        "probe AUC": probe_auc(probe, held),
        "mean head AUC": probe_auc(None, held),
    }
    for one in (profile, probe):
        kind = type(one).__name__.lower()
        write_text(context_folder() / f"{name}.{kind}.json", one.model_dump_json(indent=1) + "\n")
    return {key: round(value, 4) for key, value in found.items()}


def findings(rows: list[dict[str, Any]], host: str, facts: dict[str, str]) -> list[dict[str, Any]]:
    """What the arrangers show of the rows of the list that they stand for. facts: command, machine and date."""
    by_name = {row["method"]: row for row in rows if "refused" not in row}
    made = []
    for name, (number, says, leaves_out) in STATED.items():
        if name not in by_name:
            continue
        row = by_name[name]
        parts = list[Part]()
        for what, other, limit in CONTROLS[name]:
            if other in row["over"]:
                told = Part(says=WORDS[what], found=measured(row["over"][other][what]), above=limit, control=other)
                parts.append(told)
        parts += [Part(says=WORDS[what], found=measured(row[what]), above=limit) for what, limit in LIMITS[name]]
        if any(part.control for part in parts):
            made.append(Finding(row=number, says=says, host=host, **facts, parts=tuple(parts), leaves_out=leaves_out))
    return as_data(made)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("model")
    read.add_argument("--documents", type=int, default=6)
    read.add_argument("--questions", type=int, default=64)
    read.add_argument("--trained", type=int, default=24)
    read.add_argument("--turned", type=int, default=4)
    read.add_argument("--held", type=int, default=32)
    read.add_argument("--squad", default="")
    read.add_argument("--keep", type=Path)
    read.add_argument("--only", nargs="*", default=METHODS)
    read.add_argument("--measure", action="store_true")
    read.add_argument("--json", type=Path, help="the table of figures; a page's own by default")
    return read


def main() -> None:
    """Measure, judge, write, print."""
    asked = arguments().parse_args()
    quiet()
    torch.set_num_threads(1)
    tokenizer, model = load_pair(embedded_model() if asked.model == "embedded" else asked.model)
    name = asked.model + ("-squad" if asked.squad else "")
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
    with Watcher() as watch:
        told = (
            once(asked.keep, "measured", lambda: measure(asked.model, model, tokenizer, asked, watch))
            if asked.measure
            else {}
        )
        items = (
            squad(asked.squad, asked.questions, asked.documents)
            if asked.squad
            else facts(asked.questions, asked.documents)
        )
        rows = judged(model, tokenizer, items, asked.only, watch, asked.keep)
    command = f"python benchmarks/{Path(__file__).name} {asked.model} --documents {asked.documents}"
    command += f" --questions {asked.questions}"
    only = "" if tuple(asked.only) == METHODS else " --only " + " ".join(f'"{one}"' for one in asked.only)
    origin = {
        "command": command + (" --measure" if asked.measure else "") + (" --squad FILE" if asked.squad else "") + only,
        "machine": f"{machine()['processor']}, {machine()['cores']} cores",
        "date": str(date.today()),
    }
    figures = {
        "source": "a run of its own" + "".join(f"; {key} {value}" for key, value in told.items()),
        **origin,
        "model": asked.model,
        "columns": list(COLUMNS),
        "rows": [cells(row) for row in rows],
        "findings": findings(rows, f"{name}, {len(items)} questions of {asked.documents} documents", origin)
        if len(items) >= ENOUGH else [],
    }  # fmt: skip
    out = asked.json or DATA / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, figures)
    print(json.dumps({"measured": told, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
