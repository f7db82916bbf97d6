"""A small masked-diffusion language model: it fills a window of masked tokens, which see each other, after a text.

What was written is read causally, as by any decoder, and never sees the window after it: its keys and values stay as
they are, so that a cache of any recipe serves the passes over the windows exactly. LLaDA (arXiv 2502.09992) has the
text see the window as well, where keys that are used again are an approximation.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from headwise.caches import cache_folder
from headwise.drafts import replaced
from headwise.errors import FileError
from headwise.knobs import Knobs, NonNegative, Positive, PositiveWeight
from headwise.models.diffusion_texts import END, MASK, VOCABULARY, Example, texts
from headwise.models.host_training import CHECKPOINT, Checkpoint, read_checkpoint
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.watch import Watch

SAVE_SECONDS = 20.0
LONGEST_WINDOW = 24  # tokens of a window in training
CURVE = 20


@dataclass(frozen=True)
class Recipe(Knobs):
    """How a host is made and trained.

    text: what on. width, depth, heads: its sizes. steps: updates of `batch` texts each at the highest rate `lr`, which
    rises for a twentieth of them and falls as a line. seed: of weights, texts and masks.
    """

    text: str = "sums"
    width: Positive = 64
    depth: Positive = 4
    heads: Positive = 4
    steps: Positive = 1500
    batch: Positive = 24
    lr: PositiveWeight = 3e-3
    seed: NonNegative = 0

    @property
    def facts(self) -> str:
        """What a checkpoint must have been made with."""
        return json.dumps({"diffusion": asdict(self)}, sort_keys=True)

    def untrained(self) -> LlamaForCausalLM:
        """The model before its training."""
        torch.manual_seed(self.seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=self.width, intermediate_size=3 * self.width,
            num_hidden_layers=self.depth, num_attention_heads=self.heads, num_key_value_heads=self.heads,
            max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=END,
            pad_token_id=END, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )  # fmt: skip
        return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Noised:
    """A batch to learn from: ids [b, 2n], the texts and behind them the same with masked tokens; sight [b, 1, 2n, 2n],
    who sees whom; labels [b, 2n], -100 where nothing is asked: of texts the next token, of masked tokens themselves."""

    ids: torch.Tensor
    sight: torch.Tensor
    labels: torch.Tensor


def noised(examples: list[Example], length: int, random: Random) -> Noised:
    """Texts of `length` tokens, their answers cut into windows of random sizes, in each of which some are masked."""
    clean = torch.full((len(examples), length), END)
    windows = torch.full((len(examples), length), -1)  # where the window of a token begins; -1 in the prompt
    hidden = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, one in enumerate(examples):
        ids = torch.tensor(one.prompt + one.answer)
        clean[row, : len(ids)] = ids
        start = len(one.prompt)
        while start < length:
            stop = min(length, start + random.randint(1, LONGEST_WINDOW))
            windows[row, start:stop] = start
            hidden[row, start:stop] = _hidden(stop - start, random)
            start = stop
    noisy = clean.masked_fill(hidden, MASK)
    place = torch.arange(length)
    causal = (place[:, None] >= place).expand(len(examples), -1, -1)
    before = place < windows[:, :, None]
    same = (windows[:, :, None] == windows[:, None]) & (windows[:, None] >= 0)
    idle = (windows < 0)[:, :, None] & torch.eye(length, dtype=torch.bool)  # what is asked nothing sees itself
    upper = torch.cat((causal, torch.zeros_like(causal)), dim=2)
    lower = torch.cat((before, same | idle), dim=2)
    following = torch.cat((clean[:, 1:], clean.new_full((len(examples), 1), -100)), dim=1)
    labels = torch.cat((following, clean.masked_fill(~hidden, -100)), dim=1)
    return Noised(torch.cat((clean, noisy), dim=1), torch.cat((upper, lower), dim=1)[:, None], labels)


def _hidden(size: int, random: Random) -> torch.Tensor:
    """Which tokens of a window are masked: as while it is filled, all from some place on, and some before it."""
    place, share = torch.arange(size), random.random()
    drawn = torch.tensor([random.random() for _ in range(size)]) < share
    return (place >= random.randint(0, size - 1)) | drawn


def loss_of(model: LlamaForCausalLM, batch: Noised) -> torch.Tensor:
    """The mean loss of next tokens and of masked ones."""
    length = batch.ids.shape[1] // 2
    positions = torch.arange(length).repeat(2)[None].expand(len(batch.ids), -1)
    mask = torch.zeros(batch.sight.shape).masked_fill(~batch.sight, torch.finfo(torch.float32).min)
    logits = model(input_ids=batch.ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    sides = zip(logits.split(length, dim=1), batch.labels.split(length, dim=1), strict=True)
    return torch.stack([cross_entropy(own.flatten(0, 1), labels.flatten()) for own, labels in sides]).sum()


def folder_for(recipe: Recipe) -> Path:
    """Where a trained host lies, among the user's caches."""
    said = f"{recipe.width}x{recipe.depth}-{recipe.steps}-{recipe.batch}-{recipe.seed}"
    return cache_folder() / "diffusion" / f"{recipe.text}-{said}"


def diffusion_host(recipe: Recipe, watch: Watch, folder: Path | None = None) -> PreTrainedModel:
    """The host of a recipe: read from its folder where it is there, else trained, going on where it was stopped."""
    folder = folder_for(recipe) if folder is None else folder
    if not (folder / "config.json").exists():
        _train(recipe, folder, watch)
    held = json.loads((folder / "recipe.json").read_text())
    if held != json.loads(recipe.facts):
        raise FileError(f"{folder} holds a host of {held}; this is {recipe.facts}; give another folder")
    return LlamaForCausalLM.from_pretrained(folder).eval()


def _train(recipe: Recipe, folder: Path, watch: Watch) -> None:
    """Train to the end, or go on in `folder`."""
    model, kind = recipe.untrained(), texts(recipe.text)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01)
    done = Checkpoint(facts=recipe.facts, step=0, seconds=0.0, curve=[], model={}, optimizer={})
    path = folder / CHECKPOINT
    if path.exists():
        done = read_checkpoint(path)
        if done.facts != recipe.facts:
            raise FileError(f"{path} was trained with {done.facts}, this is {recipe.facts}; remove it")
        model.load_state_dict(done.model)
        optimizer.load_state_dict(done.optimizer)
    saved = time.monotonic()
    for step in range(done.step, recipe.steps):
        watch(f"training a diffusion model on {kind.name}", step, recipe.steps)
        random, first = Random(f"{recipe.seed}/{step}"), recipe.seed * 2**24 + step * recipe.batch
        batch = noised([kind.example(first + row) for row in range(recipe.batch)], kind.length, random)
        optimizer.param_groups[0]["lr"] = recipe.lr * min(1, 20 * (step + 1) / recipe.steps, 1.05 - step / recipe.steps)
        loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, recipe.steps // CURVE) == 0:
            done.curve.append((step + 1, round(float(loss.detach()), 4)))
        if time.monotonic() - saved > SAVE_SECONDS:
            done.step, done.model, done.optimizer = step + 1, dict(model.state_dict()), optimizer.state_dict()
            with replaced(path) as stream:
                torch.save(done.model_dump(), stream)
            saved = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(recipe.facts)
    model.save_pretrained(folder)
    path.unlink(missing_ok=True)
