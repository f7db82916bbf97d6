"""What each measure of `headwise calibrate` costs: process seconds and memory at several document lengths.

    python benchmarks/calibrate.py --model 0.5b --layers 4 --tokens 4096 8192 [--only keys,spans]

Documents are random ids in the number and lengths that the command takes by default: what is told of a random model
means nothing, what it costs is the same, but for the search of a threshold (`sale`). Every measure has a process of its
own, on one thread, so that process seconds are what one core would take. DuoAttention's gates are trained for a few
steps, each after the first counted as often as the default training has steps. Of a model with fewer layers than its
shape has (--layers), seconds and memory are per layer what the whole model's are, but for what is made once. Memory is
the growth of the peak resident set over what model and material took, where glibc hands freed buffers back at once (it
else keeps holes between buffers that get longer); the keys and values of a document, which every measure holds, are
told below it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

import models
import torch
from memory import forget_peak, resident

from headwise.calibrate.calibrate import measures
from headwise.calibrate.subject import ModelSubject
from headwise.cli.commands.calibrate import FACTS, FEW, LADDER, TRAINED
from headwise.observe import GateTraining, Material, Recall
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.shapes import format_bytes

QUESTION, ANSWER = 12, 8  # tokens, about what a needle's have
STEPS = 1 + len(LADDER)  # of training DuoAttention's gates, instead of the default ones


def recall(model: PreTrainedModel, tokens: int, facts: int) -> Recall:
    """Random tokens, stretches of which are what is asked and answered: `tokens` with one question and answer."""
    ids = models.prompt(model, tokens - QUESTION - ANSWER)
    starts = range(0, ids.shape[1] - QUESTION - ANSWER, ids.shape[1] // (facts + 1))
    cut = [(start, start + QUESTION, start + QUESTION + ANSWER) for start in list(starts)[:facts]]
    return Recall(ids, tuple((ids[:, a:b], ids[:, b:c]) for a, b, c in cut))


def material(model: PreTrainedModel, tokens: int, documents: int) -> Material:
    """What `headwise calibrate --context TOKENS` would measure on."""
    asked = [recall(model, tokens, FACTS)] * documents
    least = min(tokens, TRAINED)
    ladder = [recall(model, int(least * share), FEW) for share in LADDER]
    trained = [recall(model, int(least * share), FACTS) for share in LADDER] if least < tokens else []
    return Material(ModelSubject(model), [one.ids for one in asked], asked, ladder, trained, GateTraining(steps=STEPS))


def measured(name: str, layers: int | None, measure: str, tokens: int, documents: int) -> dict:
    """One measure in this process."""
    torch.set_num_threads(1)
    model = models.load(name, layers=layers)
    given = material(model, tokens, documents)
    forget_peak()
    before, times = resident("VmRSS"), [time.process_time()]
    measures()[measure].run(given, lambda done, total: times.append(time.process_time()))
    taken = time.process_time() - times[0]
    if measure == "gates":
        taken += (GateTraining().steps - STEPS) * (times[STEPS] - times[1]) / (STEPS - 1)
    held = attach(model).geometry.dense_bytes(tokens, model.dtype)
    return {"measure": measure, "tokens": tokens, "seconds": taken, "growth": resident("VmHWM") - before, "held": held}


def apart(*arguments: object) -> dict:
    """`measured` in a fresh process, whose resident set is its own."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the child: a buffer of more bytes is a mapping of its own
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, arguments)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, 1b, 0.5b, small or tiny")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1500, 3000])
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--only", default=",".join(measures()), help="measures, with commas between")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    return parser


def main() -> None:
    """Measure, print a line for every measure as soon as it is known, and the sum."""
    told = arguments().parse_args()
    rows = []
    print(f"{'measure':12}" + "".join(f"{f'{n} tokens: s':>18}{'memory':>12}" for n in told.tokens))
    for name in told.only.split(","):
        rows += [found := [apart(told.model, told.layers, name, tokens, told.documents) for tokens in told.tokens]]
        print(f"{name:12}" + "".join(f"{r['seconds']:18.1f}{format_bytes(r['growth']):>12}" for r in found), flush=True)
    sums = [sum(row[place]["seconds"] for row in rows) for place in range(len(told.tokens))]
    print(f"{'all':12}" + "".join(f"{one:18.1f}{'':12}" for one in sums))
    print(f"{'cache':12}" + "".join(f"{'':18}{format_bytes(one['held']):>12}" for one in rows[0]))
    if told.out is not None:
        told.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
