"""What looking at all heads of a model costs: beside the model's own forward of a text, the seconds and the peak memory
of a forward in which every quick lens of attention looks at every head; and the seconds of a forward while hooks
that change nothing are on every layer.

    python benchmarks/lens.py smollm2 --out docs/data/lens/cost.json

Seconds are of the processor, which others that work beside it change little, and forwards take turns. Each ratio is of
a pair of forwards, told as the median with the least and the most. Memory is of torch's allocations, weights included.
What is finished is kept, so that a killed run goes on. With `--parts`, each lens alone as well, which tells what costs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median

import torch

from headwise.assets import novel
from headwise.bench.allocations import peak
from headwise.bench.job import encode
from headwise.bench.provenance import machine
from headwise.calibrate.subject import ModelSubject, model_of
from headwise.cli.figures import Figures
from headwise.cli.given import place_of
from headwise.cli.progress import Watcher
from headwise.cli.state import unfinished
from headwise.files import write_text
from headwise.kept import once
from headwise.lens import Text, ablated, looked_at
from headwise.lens.measured import text_lenses
from headwise.lenses import LENSES, AttentionLens
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet

IDLE = 512  # tokens of the forwards in which nothing is looked at
MIB = 2**20


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=2, help="pairs of forwards, plain and looking")
    parser.add_argument("--idle", type=int, default=20, help="pairs of forwards, plain and with the lens open")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--parts", action="store_true", help="each lens alone as well")
    parser.add_argument("--state", type=Path, help="the folder in which what is finished is kept")
    parser.add_argument("--fresh", action="store_true", help="make again what was kept")
    parser.add_argument("--out", type=Path)
    return parser


class Cost:
    """A model and a text, and what forwards of it take."""

    def __init__(self, subject: ModelSubject, ids: torch.Tensor) -> None:
        self.subject, self.model = subject, model_of(subject)
        self.text = Text(ids, torch.zeros(ids.shape[1], dtype=torch.bool))

    @torch.no_grad()
    def plain(self) -> object:
        """The model's own forward."""
        return self.model(self.text.ids, use_cache=False, logits_to_keep=1)

    @torch.no_grad()
    def opened(self) -> object:
        """The same with a hook at every layer, on all of its heads and none of the text's tokens."""
        heads = [(at, head) for at, one in enumerate(self.subject.geometry.layers) for head in range(one.query_heads)]
        with ablated(self.model, heads, ()):
            return self.plain()

    def looking(self, names: Sequence[str]) -> Callable[[], object]:
        """A forward in which these lenses look at every head."""
        lenses = {name: one for name, one in LENSES.all().items() if isinstance(one, AttentionLens) and name in names}
        return lambda: looked_at(
            self.subject, self.text, lambda look: {name: one.of(look) for name, one in lenses.items()}
        )

    def memory(self) -> list[float]:
        """MiB of weights and forward, plain and looking."""
        weights = sum(one.numel() * one.element_size() for one in self.model.parameters())
        return [(weights + peak(one)) / MIB for one in (self.plain, self.looking(text_lenses()))]


def seconds(plain: Callable[[], object], other: Callable[[], object]) -> dict[str, float]:
    """Of a processor, of one forward and the other after it."""
    began = time.process_time()
    plain()
    turned = time.process_time()
    other()
    return {"plain": turned - began, "other": time.process_time() - turned}


def row(name: str, pairs: Sequence[Sequence[float]], limit: float, unit: str) -> list[str | float | int]:
    """A line of the table."""
    ratios = [other / one for one, other in pairs]
    spread = f"{median(ratios):.3f}" + (f" [{min(ratios):.3f}, {max(ratios):.3f}]" if len(ratios) > 1 else "")
    one, other = (f"{median(each):.3g} {unit}" for each in zip(*pairs, strict=True))
    return [name, one, other, spread, limit]


def measured(given: argparse.Namespace, whole: Cost, short: Cost, watch: Watcher) -> list[list[str | float | int]]:
    """The lines of the table, each printed as soon as it is measured."""
    arms = {"all heads": (whole, whole.looking(text_lenses()), given.runs, 2.0, f"{whole.text.tokens} tokens"),
            "idle hooks": (short, short.opened, given.idle, 1.01, f"{short.text.tokens} tokens")}  # fmt: skip
    if given.parts:
        arms |= {name: (whole, whole.looking([name]), given.runs, 2.0, "alone") for name in text_lenses()}
    rows = []
    shown = {"model": given.model, "tokens": whole.text.tokens, "threads": given.threads, "dtype": given.dtype}
    with unfinished("lens-cost", shown, watch, state=given.state, fresh=given.fresh) as folder:
        for name, (cost, other, count, limit, told) in arms.items():
            pairs = []
            for run in range(count):
                watch(f"timing {name}", run, count)
                made = once(folder, f"{name}-{run}", partial(seconds, cost.plain, other))
                pairs.append([made["plain"], made["other"]])
            rows.append(row(f"{name}, {told}", pairs, limit, "s"))
            watch.finished(" | ".join(map(str, rows[-1])))
        watch("measuring memory")
        held = once(folder, "memory", lambda: {"mib": whole.memory()})["mib"]
        rows.append(row(f"peak memory, all heads, {whole.text.tokens} tokens", [held], 1.05, "MiB"))
        watch.finished(" | ".join(map(str, rows[-1])))
    return rows


def main() -> None:
    """Measure, print and write."""
    given = arguments().parse_args()
    quiet()
    torch.set_num_threads(given.threads)
    place = place_of(given.model)
    subject = ModelSubject(load_model(place, given.dtype))
    ids = encode(load_tokenizer(place), novel(), start=True)[:, : given.tokens]
    with Watcher() as watch:
        rows = measured(given, Cost(subject, ids), Cost(subject, ids[:, :IDLE]), watch)
    told = machine()
    figures = Figures(
        source="a run of its own", model=given.model or "embedded", date=date.today().isoformat(),
        machine=f"{told['processor']}, {told['cores']} cores, {given.threads} threads",
        command=" ".join([f"python benchmarks/{Path(__file__).name}", *sys.argv[1:]]),
        columns=["looked at", "plain", "with the lens", "ratio", "limit"], rows=rows,
    )  # fmt: skip
    print(figures.table())
    if given.out is not None:
        write_text(given.out, figures.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
