"""An image that comes before its question is read with the question in view where the mask lets it look ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Steps, register
from headwise.theory.fitting import generator
from headwise.vision.mutual import mutual_mask
from headwise.vision.trials.host import CELLS, IGNORED, KINDS, ROWS, drawn, host, painted, prompts, trained

MOST, TESTED = 3, 1024  # cells that are asked for, at most; questions that a model is tested on
SAY, COUNT = 1 + 2 * KINDS, 2 + 2 * KINDS  # ids: before an answer, and of the answer 0; colours and glyphs come before
ARMS = ("causal", "mutual", "within")


@register("mutual_mask")
@dataclass(frozen=True, kw_only=True)
class MutualMask(Experiment):
    """Trains a small Llava to count the cells of a picture that have a colour and a glyph, asked for after it, under
    three masks from the same start on the same pictures.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="AKI's mutual mask",
        statement="Where the tokens of an image also see those of the question that follows them, a model trained from "
        "scratch answers more questions on images than under the causal mask, with no parameter more, and its answer "
        "still sees nothing that is written after it",
        paper="Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual Attention for Multimodal LLMs, "
        "arXiv 2503.02597",
        setting="Phi-3.5-mini with SigLIP and 144 image tokens",
        seconds=90,
        systems=(319,),
        differs="a decoder of 2 layers over 16 image tokens; one image and one question, which ends where the answer "
        "begins. The released code opens the mask from the end of an image to its token of the assistant, and so does "
        "`headwise.vision.mutual`, by marks",
        leaves_out="pretrained decoders, and pictures of natural things",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("right answers more than under the causal mask, share", "gain", "gain_within",
             "image tokens that see each other in the place of the question", above=0.05),
        Part("change of the answer's logits by a token written after it", "leak", "leak_open",
             "a mask that is open throughout", below=1e-5),
    )  # fmt: skip

    steps: Steps = 400
    seeds: Seeds = 5

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of right answers under each mask, and what a later token changes."""
        ids, pixels, count = texts(TESTED, generator(f"{self.name}/test", seed))
        right, models = dict[str, float](), dict[str, Any]()
        for arm in ARMS:
            models[arm] = self.reader(seed, masks(ids[:1])[arm])
            said = models[arm](**given(ids, pixels, masks(ids[:1])[arm])).logits[:, -2].argmax(-1)
            right[arm] = float((said == COUNT + count).float().mean())
        few, mask = (ids[:64], pixels[:64]), masks(ids[:1])["mutual"]
        measures = {
            "gain": right["mutual"] - right["causal"],
            "gain_within": right["within"] - right["causal"],
            "leak": leak(models["mutual"], *few, mask),
            "leak_open": leak(models["mutual"], *few, torch.zeros_like(mask)),
        }
        return {"measures": measures | {f"right_{arm}": share for arm, share in right.items()}}

    def reader(self, seed: int, mask: Tensor) -> Any:
        """A model that was trained under a mask."""
        chance = generator(self.name, seed)

        def batch() -> tuple[dict[str, Any], Tensor]:
            ids, pixels, count = texts(ROWS, chance)
            labels = torch.full_like(ids, IGNORED)
            labels[:, -2] = COUNT + count
            return given(ids, pixels, mask), labels

        return trained(host(COUNT + MOST, seed), batch, self.steps).requires_grad_(False)


def texts(rows: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [rows, CELLS + 4] of a picture, a colour, a glyph, the answer's place and any token after it; the pictures;
    and how many of their cells have both."""
    asked, cells = torch.randint(KINDS, (rows, 2), generator=chance), drawn(rows, chance)
    both = torch.randint(MOST + 1, (rows,), generator=chance)
    # A cell that has both by chance gets another colour, and the first `both` places of a shuffled order have both.
    same = (cells == asked[:, None]).all(-1)
    cells[..., 0] = torch.where(same, (cells[..., 0] + 1) % KINDS, cells[..., 0])
    place = torch.rand(rows, CELLS, generator=chance).argsort(-1)
    cells = torch.where((place < both[:, None])[..., None], asked[:, None], cells)
    after = torch.randint(1, SAY, (rows,), generator=chance)
    ids = prompts(1 + asked[:, 0], 1 + KINDS + asked[:, 1], torch.full((rows,), SAY), after)
    return ids, painted(cells, chance), both


def masks(ids: Tensor) -> dict[str, Tensor]:
    """By arm, the mask [1, 1, n, n] of such ids [1, n]."""
    place = torch.arange(ids.shape[1])[None]
    image, question = place < CELLS, (place >= CELLS) & (place < CELLS + 2)
    causal, mutual = mutual_mask(image, torch.zeros_like(image)), mutual_mask(image, question)
    within = causal.masked_fill((image[:, :, None] & image[:, None])[:, None], 0.0)
    return {"causal": causal, "mutual": mutual, "within": within}


def given(ids: Tensor, pixels: Tensor, mask: Tensor) -> dict[str, Any]:
    """What a model is given."""
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask.expand(len(ids), -1, -1, -1)}


def leak(model: Any, ids: Tensor, pixels: Tensor, mask: Tensor) -> float:
    """The largest change of the answer's logits where the token after its place is another."""
    other = ids.clone()
    other[:, -1] = 1 + other[:, -1] % (SAY - 1)
    logits, changed = (model(**given(one, pixels, mask)).logits[:, -2] for one in (ids, other))
    return float((logits - changed).abs().max())
