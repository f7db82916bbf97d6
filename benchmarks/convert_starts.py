r"""Where a conversion begins: a model of fewer KV heads, or as a latent, from each of several starts, alike distilled.

    python benchmarks/convert_starts.py tiny --tokens 64 --steps 200 --batch 8 --lr 0.003 --state out/convert \
        --json docs/data/convert/starts_tiny.json

Every side learns what its source says, from the same windows of the shipped novel's second book, from three seeds; then
its loss is asked on windows of the first book. Differences are of the means over seeds, paired by window, with the
bootstrap's 95 % interval. "tiny" is a Llama of bytes with eight heads, which is trained first on the second book, for
4000 steps at 0.003, of which 200 are the twentieth that row 233 has. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from headwise.assets import embedded_model
from headwise.bench.judging.intervals import Interval, of_strata
from headwise.bench.provenance import machine
from headwise.conversions import conversion
from headwise.convert.distil import Distilling, distilled
from headwise.convert.latent import heads_of, most_rank, singular
from headwise.convert.texts import Book, divergence, losses
from headwise.drafts import replaced
from headwise.files import write_json
from headwise.findings import Finding, Part, as_data, part
from headwise.kept import once
from headwise.seams.transformers.load import load_pair, quiet
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import Decoder, read_decoder
from headwise.tasks.haystack import book
from headwise.theory.fitting import adam

TRAINED, RATE = 4000, 3e-3  # steps of the tiny source, and their highest learning rate
KNOBS = ("windows", "tokens", "steps", "batch", "lr")  # of a run, beside its model
SAYS = {
    233: "With fewer KV heads, the mean of a group ends at a lower loss than other starts.",
    272: "At a fourth of the cache, singular vectors end at a lower loss and divergence than a random start.",
}
LEAVES = {
    233: "uptraining on the text alone: here what the source says of it is learnt",
    272: "the factors of the query matrix, ranks by energy, a larger teacher, DPO",
}


@dataclass(frozen=True)
class Host:
    """A model that is converted, what it is called, and what it reads: to be distilled on, and to be asked about."""

    name: str
    model: Any
    tune: Book
    test: Book

    @classmethod
    def of(cls, name: str, steps: int, state: Path) -> Host:
        """The model of a name; "tiny" is trained for so many steps, and kept in a folder."""
        if name == "tiny":
            tune, test = (Book(torch.tensor(list(book(split).encode()))) for split in ("tune", "test"))
            return cls(name, tiny(tune, steps, state / f"tiny-{steps}.pt"), tune, test)
        tokenizer, model = load_pair(embedded_model() if name == "embedded" else name, "float32")
        return cls(Path(name).name, model, Book.of(tokenizer, "tune"), Book.of(tokenizer, "test"))


def tiny(text: Book, steps: int, path: Path) -> LlamaForCausalLM:
    """A Llama of bytes with eight heads of keys and values, trained on a text, or as it is kept at `path`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=8, head_dim=16, **sizes))
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    drawn = iter(range(steps))

    def loss() -> torch.Tensor:
        ids = text.drawn(8, 64, 2**32 + next(drawn))
        return F.cross_entropy(model(input_ids=ids, use_cache=False).logits[:, :-1].transpose(1, 2), ids[:, 1:])

    adam(list(model.parameters()), loss, steps, RATE)
    with replaced(path) as stream:
        torch.save(model.state_dict(), stream)
    return model.eval()


def sides(source: Decoder) -> dict[str, str]:
    """The conversions, each for all seeds, at a fourth of the source's numbers, or one head where it has fewer than
    four; a random start is drawn anew for each."""
    fewer, rope = max(1, source.kv_heads // 4), source.head_dim // 2
    rank = source.cache_numbers // len(source.layers) // 4 - rope - 1
    eco = f"eco_mla(rank={rank}, rope={rope}"
    found = {
        "mean pooling": f"gqa({fewer})", "first head": f"gqa({fewer}, start='first')",
        "random heads": f"gqa({fewer}, start='random', seed=SEED)",
        "singular vectors": f"{eco})", "random latent": f"{eco}, start='random', seed=SEED)",
    }  # fmt: skip
    return found | ({"one head": "gqa(1)"} if fewer > 1 else {})


def run(given: argparse.Namespace, host: Host, looked: Looked, side: str, seed: int) -> dict[str, Any]:
    """The losses of one side after its distillation from one seed, and before."""
    source = read_decoder(host.model)
    made = conversion(side.replace("SEED", str(seed)))
    made.check(source)
    student = made.build(source, looked)
    windows = host.test.evenly(given.windows, given.tokens)
    before = losses(student, windows[:16])
    how = Distilling(given.steps, batch=given.batch, tokens=128, lr=given.lr, seed=seed)
    with TemporaryDirectory() as folder:
        distilled(student, host.model, host.tune, how, Path(folder), side, lambda *told: None)
    after, apart = [], []
    with torch.no_grad():
        for ids in windows.split(16):
            logits, said = (one(input_ids=ids, use_cache=False).logits for one in (student, host.model))
            after += F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1).tolist()
            apart += divergence(logits, said).tolist()
    return {"numbers": made.cache_numbers(source), "before": before, "losses": after, "apart": apart}


def uncut(source: Decoder, looked: Looked) -> list[float]:
    """By layer, how far values and unturned keys are off at full rank, over the largest weight that makes them."""
    found = []
    for layer, moment in zip(source.layers, looked.moments, strict=True):
        rope = source.head_dim // 2
        made = singular(source, layer, moment, most_rank(source), rope)
        group = source.heads // source.kv_heads
        k, v = (heads_of(one, source.kv_heads).repeat_interleave(group, 0) for one in (layer.k, layer.v))
        true = torch.cat((k[:, : source.head_dim - rope], v), 1)
        found.append(float((made.kv_b @ made.kv_a[: made.rank] - true).abs().max() / true.abs().max()))
    return found


def mean(runs: list[dict[str, Any]], what: str) -> list[float]:
    """By window, the mean over seeds."""
    return [sum(each) / len(runs) for each in zip(*(one[what] for one in runs), strict=True)]


def paired(found: dict[str, Any], side: str, other: str, what: str = "losses") -> Interval:
    """By how much a side's figure is above another's."""
    return of_strata([[a - b for a, b in zip(mean(found[side], what), mean(found[other], what), strict=True)]])


def above(found: dict[str, Any], source: list[float]) -> Interval:
    """By which share of the source's mean loss that of mean pooling is above it."""
    whole = sum(source) / len(source)
    own = mean(found["mean pooling"], "losses")
    return of_strata([[(a - b) / whole for a, b in zip(own, source, strict=True)]])


def judged(found: dict[str, Any], source: list[float], off: list[float]) -> dict[int, list[Part]]:
    """What the run shows of rows 233 and 272; nothing on windows that the source reads no better than what was made of
    it, where a lower loss is no sign that more was kept."""
    if above(found, source).low <= 0:
        return {}
    lower = [part(f"nats of loss from the {one}, minus those from the mean", paired(found, one, "mean pooling"),
                  control=one, above=0.0)
             for one in ("first head", "random heads", "one head") if one in found]  # fmt: skip
    within = part("loss with the mean of each group, over that of the source, less 1", above(found, source), below=0.02)
    latent = [part(f"nats of {name} from a random latent, minus those from singular vectors",
                   paired(found, "random latent", "singular vectors", what), control="a random latent", above=0.0)
              for what, name in (("losses", "loss"), ("apart", "divergence from the source"))]  # fmt: skip
    exact = part("values and unturned keys at full rank, largest error over the largest weight", of_strata([off]),
                 below=1e-4)  # fmt: skip
    return {233: [within, *lower], 272: [exact, *latent]}


def findings(given: argparse.Namespace, parts: dict[int, list[Part]]) -> list[Finding]:
    """A finding of each row that is judged."""
    facts = {"host": told(given), "command": command(given), "machine": str(machine()["processor"])}
    return [
        Finding(row=row, says=SAYS[row], date=str(date.today()), parts=tuple(own), leaves_out=LEAVES[row], **facts)
        for row, own in parts.items()
    ]


def told(given: argparse.Namespace) -> str:
    """What was asked of what, in words."""
    name = Path(given.model).name
    steps = f"{given.steps} steps of {given.batch} at {given.lr:g}"
    return f"{name}, {given.windows} windows of {given.tokens} tokens, {steps}, 3 seeds"


def command(given: argparse.Namespace) -> str:
    """The command that makes the result again."""
    usual = {name: arguments().get_default(name) for name in KNOBS}
    own = [f"--{name} {getattr(given, name)}" for name, value in usual.items() if getattr(given, name) != value]
    words = ["python", f"benchmarks/{Path(__file__).name}", Path(given.model).name, *own]
    return " ".join([*words, "--state out/convert", f"--json {given.json}"])


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help='"tiny", "embedded", or a model that is a Llama.')
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24, help="Of a window that is asked about.")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1, help="Windows of a step.")
    parser.add_argument("--lr", type=float, default=5e-4, help="Highest learning rate.")
    parser.add_argument("--trained", type=int, default=TRAINED, help="Steps of the tiny source.")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    """Measure, print and write."""
    given = arguments().parse_args()
    quiet()
    given.state.mkdir(parents=True, exist_ok=True)
    host = Host.of(given.model, given.trained, given.state)
    looked = Looked(host.model, host.tune.evenly(16, 128))
    source = read_decoder(host.model)
    all_sides = sides(source)
    own = losses(host.model, host.test.evenly(given.windows, given.tokens))
    print(f"source: perplexity {math.exp(sum(own) / len(own)):.1f}", flush=True)
    found: dict[str, Any] = {name: [] for name in all_sides}
    for seed in range(3):
        for name, sentence in all_sides.items():
            sizes = "-".join(str(getattr(given, one)) for one in KNOBS)
            key = f"starts-{host.name}-{sizes}-{name}-{seed}"
            last = once(given.state, key.replace(" ", "_"), partial(run, given, host, looked, sentence, seed))
            found[name].append(last)
            print(f"{name}, seed {seed}: loss {sum(last['before']) / len(last['before']):.3f} before, "
                  f"{sum(last['losses']) / given.windows:.3f} after {given.steps} steps, {last['numbers']} numbers a "
                  f"token of {source.cache_numbers}", flush=True)  # fmt: skip
    parts = judged(found, own, uncut(source, looked))
    if not parts:
        print("rows 233 and 272: not judged, as the source reads these windows no better than what was made of it")
    for one in findings(given, parts):
        print(f"row {one.row}: {one.state}; " + "; ".join(f"{p.says}: {p.found.mean:.3g} ({p.found.low:.3g} to "
                                                          f"{p.found.high:.3g})" for p in one.parts))  # fmt: skip
    if given.json:
        facts = {"model": host.name, "host": told(given), "machine": machine(), "date": str(date.today())}
        write_json(given.json, facts | {"command": command(given), "sides": all_sides, "source": own, "found": found,
                                        "findings": as_data(findings(given, parts))})  # fmt: skip


if __name__ == "__main__":
    main()
