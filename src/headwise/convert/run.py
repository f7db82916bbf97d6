"""A conversion from a model to a folder: what is calibrated, made, distilled, judged and written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from headwise.bench.protocol import digest
from headwise.conversions import Conversion
from headwise.convert.distil import Distilling, distilled
from headwise.convert.judged import Asked, Once, judged, measured
from headwise.convert.texts import Book
from headwise.errors import FileError, UnsupportedModel
from headwise.files import write_json
from headwise.models.host_training import CHECKPOINT
from headwise.seams.transformers.load import load_config, load_pair
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import read_decoder
from headwise.watch import Watch

REPORT = "conversion.json"
CALIBRATION = (16, 128)  # windows, and tokens of each, that moments are taken over


@dataclass(frozen=True)
class Wanted:
    """What is to be done. model: a path, hub id or short name. text: a file to read in the place of the novel."""

    model: str
    way: Conversion
    distilling: Distilling = field(default_factory=Distilling)
    asked: Asked = field(default_factory=Asked)
    text: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides what comes out, as JSON data."""
        own = {"model": self.model, "to": str(self.way), "text": self.text}
        return own | {"distilling": asdict(self.distilling), "asked": asdict(self.asked)}


def check_folder(out: Path, facts: dict[str, Any]) -> None:
    """Refuse a folder in which something else is, before any work."""
    if not out.exists():
        return
    report = out / REPORT
    if report.is_file() and json.loads(report.read_text(encoding="utf-8")).get("facts") == facts:
        raise FileError(f"{out} holds this conversion already; give --fresh to make it again")
    if {one.name for one in out.iterdir()} - {CHECKPOINT}:
        raise FileError(f"{out} holds other files; give an --out that is empty or new, or --fresh to write over them")


def convert(wanted: Wanted, out: Path, once: Once, watch: Watch) -> dict[str, Any]:
    """Make the model and write it into `out` with its report, which is returned. What a killed call had measured is
    taken from `once`, and a distillation goes on from the checkpoint in `out`."""
    tokenizer, model = load_pair(wanted.model, "float32")
    source, stored = read_decoder(model), _stored(wanted.model)
    wanted.way.check(source)
    calibrated, tested = (Book.of(tokenizer, split, wanted.text) for split in ("tune", "test"))
    windows = tested.evenly(wanted.asked.windows, wanted.asked.tokens)
    watch("calibrating", 0, 4)
    made = wanted.way.build(source, Looked(model, calibrated.evenly(*CALIBRATION)))
    out.mkdir(parents=True, exist_ok=True)
    if wanted.distilling.steps:
        distilled(made, model, calibrated, wanted.distilling, out, digest(wanted.facts), watch)
    made.generation_config = model.generation_config
    made = made.to(stored)
    watch("asking the source", 2, 4)
    before = once("source", lambda: measured(model, tokenizer, windows, wanted.asked))
    watch("asking what came out", 3, 4)
    after = once("made", lambda: measured(made, tokenizer, windows, wanted.asked))
    numbers = (source.cache_numbers, wanted.way.cache_numbers(source))
    report = {"facts": wanted.facts} | judged(before, after, numbers, stored.itemsize)
    told = {name: report[name] for name in ("experimental", "perplexity", "bytes_a_token")}
    made.config.headwise_conversion = {"from": wanted.model, "to": str(wanted.way)} | told
    made.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / CHECKPOINT).unlink(missing_ok=True)
    write_json(out / REPORT, report)
    watch("done", 4, 4)
    return report


def _stored(model: str) -> torch.dtype:
    """The type of the model's weights, which those that come out have too."""
    found: torch.dtype = getattr(load_config(model), "dtype", None) or torch.float32
    if found not in (torch.float32, torch.bfloat16):
        raise UnsupportedModel(
            f"the model is stored in {found}, which cannot hold what keeps a latent's norm constant; save it in "
            "bfloat16 or float32 first"
        )
    return found
