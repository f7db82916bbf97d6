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
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet

DATA = Path(__file__).parents[1] / "docs" / "data" / "context"
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
    figures = {
        "source": "a run of its own" + "".join(f"; {key} {value}" for key, value in told.items()),
        "command": command + (" --measure" if asked.measure else "") + (" --squad FILE" if asked.squad else ""),
        "machine": f"{machine()['processor']}, {machine()['cores']} cores",
        "date": str(date.today()),
        "model": asked.model,
        "columns": list(COLUMNS),
        "rows": [cells(row) for row in rows],
    }  # fmt: skip
    out = asked.json or DATA / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, figures)
    print(json.dumps({"measured": told, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
