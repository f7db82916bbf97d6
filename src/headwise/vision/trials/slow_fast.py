"""A video of pooled tokens, of which text reads the details that pooling has lost beside its sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Steps, register
from headwise.seams.transformers.encoder import image_features
from headwise.seams.transformers.slow import SlowTokens
from headwise.theory.fitting import generator
from headwise.vision.trials.host import CELLS, IGNORED, KINDS, ROWS, drawn, host, painted, trained

FRAMES, TESTED = 4, 1024  # of a video; questions that a model is tested on
COLOUR = 1 + KINDS  # the id of the first colour; the ids of glyphs come before
ARMS = {"fast": None, "slow": CELLS, "again": 1}  # by arm, the tokens of a frame that text reads beside its sequence


@register("slow_fast")
@dataclass(frozen=True, kw_only=True)
class SlowFast(Experiment):
    """Trains a small Llava to say which colour a glyph has that is in one cell of a video. Each frame is one pooled
    token of the sequence; text reads nothing else, all tokens of all frames, or the pooled ones again.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Slow and fast tokens of a video",
        statement="Where text reads uncompressed visual tokens beside its sequence, through a gate that is shut at "
        "first, an untrained model says what it did, a trained one sees details that pooling has lost, and twice as "
        "many such tokens cost twice as much",
        paper="Slow-Fast Architecture for Video Multi-Modal Large Language Models, arXiv 2504.01328, section 3",
        setting="Qwen2-7B, 64 to 128 frames, a hybrid layer in every four",
        seconds=90,
        systems=(252,),
        differs="4 frames of 16 tokens, pooled to one each; encoder and projector are frozen; both layers are hybrid "
        "ones, and queries are reused before their rotation, where the released code reuses them after it. "
        "The rival with all tokens in its sequence is right as often or more (the measures `right_within` and "
        "`over_within`): what slow tokens save is cost",
        leaves_out="pretrained decoders and real videos",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("right answers more than by pooled tokens alone, share", "gain", "gain_again",
             "the pooled tokens read again in the place of all", above=0.2),
        Part("change of an untrained model's logits", "start", "start_open", "the gates open", below=1e-12),
        Part("what 512 slow tokens more cost beside the 512 before them, minus 1", "bend", "bend_within",
             "as many tokens more within the sequence", below=1e-6),
    )  # fmt: skip

    steps: Steps = 300
    seeds: Seeds = 3

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of right answers; what reading beside the sequence changes before training, and what it costs."""
        video, glyph, colour = videos(TESTED, generator(f"{self.name}/test", seed))
        right, first, measures = dict[str, float](), dict[str, Tensor](), dict[str, float]()
        for arm, tokens in ARMS.items():
            model = Watcher(seed, tokens)
            with torch.no_grad():
                first[arm] = model(video[:8], glyph[:8]).logits
                if arm == "slow":
                    first["open"] = model.opened(1.0)(video[:8], glyph[:8]).logits
                    model.opened(0.0)
                    measures = {"bend": model.bend(beside=True), "bend_within": model.bend(beside=False)}
            trained(model, self.batch(seed), self.steps)
            with torch.no_grad():
                said = model(video, glyph).logits[:, -1].argmax(-1)
            right[arm] = float((said == COLOUR + colour).float().mean())
        right["within"] = self.within(seed, video, glyph, colour)
        measures |= {"gain": right["slow"] - right["fast"], "gain_again": right["again"] - right["fast"]}
        measures["over_within"] = right["slow"] - right["within"]
        measures["start"], measures["start_open"] = (
            float((first[arm] - first["fast"]).abs().max()) for arm in ("slow", "open")
        )
        return {"measures": measures | {f"right_{arm}": share for arm, share in right.items()}}

    def within(self, seed: int, video: Tensor, glyph: Tensor, colour: Tensor) -> float:
        """The share of right answers of the rival that has all tokens in its sequence, trained for as long."""
        model = Within(seed, None)
        trained(model, self.batch(seed), self.steps)
        with torch.no_grad():
            said = model(video, glyph).logits[:, -1].argmax(-1)
        return float((said == COLOUR + colour).float().mean())

    def batch(self, seed: int) -> Any:
        """What gives a training its videos."""
        chance = generator(self.name, seed)

        def made() -> tuple[dict[str, Any], Tensor]:
            video, glyph, colour = videos(ROWS, chance)
            labels = torch.full((ROWS, FRAMES + 1), IGNORED)
            labels[:, -1] = COLOUR + colour
            return {"video": video, "glyph": glyph}, labels

        return made


def videos(rows: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Videos [rows, FRAMES, 3, height, width] full of glyphs, one that is in a single cell of each, and its colour
    there."""
    asked, colour, place = (torch.randint(most, (rows,), generator=chance) for most in (KINDS, KINDS, FRAMES * CELLS))
    cells = drawn(rows * FRAMES, chance).unflatten(0, (rows, FRAMES)).flatten(1, 2)
    other = torch.randint(1, KINDS, cells.shape[:2], generator=chance)
    cells[..., 1] = (asked[:, None] + other) % KINDS
    cells[range(rows), place] = torch.stack([colour, asked], dim=1)
    pictures = painted(cells.unflatten(1, (FRAMES, CELLS)).flatten(0, 1), chance)
    return pictures.unflatten(0, (rows, FRAMES)), asked, colour


class Watcher(torch.nn.Module):
    """The host over pooled frames. tokens: of a frame, that text reads beside the sequence; None: none."""

    def __init__(self, seed: int, tokens: int | None) -> None:
        super().__init__()
        self.host, self.tokens = host(COLOUR + KINDS - 1, seed), tokens
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.slow = None if tokens is None else SlowTokens(self.host, (0, 1))

    def forward(self, video: Tensor, glyph: Tensor, use_cache: bool = False) -> Any:
        """What the host makes of videos [b, FRAMES, ...] and the glyphs [b] that are asked for."""
        seen = image_features(self.host, video.flatten(0, 1)).unflatten(0, video.shape[:2])  # [b, FRAMES, CELLS, w]
        fast, asked = seen.mean(2), self.host.get_input_embeddings()(1 + glyph)[:, None]
        given = {"inputs_embeds": torch.cat([fast, asked], dim=1), "use_cache": use_cache}
        if self.slow is None:
            return self.host(**given)
        text = torch.arange(FRAMES + 1).expand(len(glyph), -1) == FRAMES
        with self.slow.reading((seen if self.tokens == CELLS else fast[:, :, None]).flatten(1, 2), text):
            return self.host(**given)

    def opened(self, to: float) -> Watcher:
        """With its gates so far open."""
        assert self.slow is not None
        for reader in self.slow.readers:
            reader.opened.data.fill_(to)  # type: ignore[operator]
        return self

    def bend(self, beside: bool) -> float:
        """How much more 512 visual tokens cost than the 512 before them, which are read `beside` the sequence or in it;
        0 where cost grows by a line."""
        assert self.slow is not None
        width = self.host.get_input_embeddings().embedding_dim
        sequence, counts = torch.zeros(1, FRAMES + 1, width), list[int]()
        for tokens in (512, 1024, 1536):
            seen = torch.zeros(1, tokens, width)
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                if beside:
                    with self.slow.reading(seen, torch.arange(FRAMES + 1)[None] == FRAMES):
                        self.host(inputs_embeds=sequence, use_cache=False)
                else:
                    self.host(inputs_embeds=torch.cat([seen, sequence], dim=1), use_cache=False)
            counts.append(counter.get_total_flops())
        return (counts[2] - counts[1]) / (counts[1] - counts[0]) - 1


class Within(Watcher):
    """The host with the uncompressed tokens of all frames in its sequence."""

    def forward(self, video: Tensor, glyph: Tensor, use_cache: bool = False) -> Any:
        """What the host makes of videos and glyphs, at the last FRAMES + 1 places."""
        seen = image_features(self.host, video.flatten(0, 1)).unflatten(0, video.shape[:2]).flatten(1, 2)
        asked = self.host.get_input_embeddings()(1 + glyph)[:, None]
        read = torch.cat([seen, asked], dim=1)
        return self.host(inputs_embeds=read, use_cache=use_cache, logits_to_keep=FRAMES + 1)
