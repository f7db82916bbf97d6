"""How many bytes a token of a large model's cache takes, counted from its layers alone and as they lay it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, register
from headwise.layers.attend import SEGMENT_BYTES, Pairs
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from headwise.layers.sentence import LayerSentence
from headwise.theory.fitting import generator

ELEMENT = 2  # bytes of a number in bfloat16
HEAD = 128  # channels of a head in all three models


@dataclass(frozen=True)
class Stack:
    """A model as its cache sees it: so many layers of a sentence, of so many heads, in a model of a width."""

    sentence: str
    layers: int
    heads: int
    width: int

    @property
    def dims(self) -> Dims:
        """The sizes of one layer."""
        return Dims(self.width, self.heads, HEAD)

    def counted(self, tokens: int) -> int:
        """Bytes of the cache after so many tokens by the sentence's own calculator, without segment numbers, which are
        of batches that are packed."""
        own = LayerSentence.parse(self.sentence).state_bytes(self.dims, tokens, ELEMENT)
        return self.layers * (own - tokens * SEGMENT_BYTES)

    def laid(self, tokens: int) -> int:
        """Bytes of the keys and values that a layer of the sentence makes of so many tokens, on torch's meta device."""
        with torch.device("meta"):
            layer = AttentionLayer(self.sentence, self.dims).bfloat16()
            streams, _ = layer.streams(torch.empty(1, tokens, self.width, dtype=torch.bfloat16), None, None, None)
            state = layer.mix.chunk(streams, layer.mix.empty(streams))[1]
        assert isinstance(state, Pairs)
        return self.layers * (state.keys.nbytes + (0 if state.values is None else state.values.nbytes))


DEEPSEEK = Stack("mla(512, rope=64) | rope", 61, 128, 7168)
QWEN = Stack("gqa(8) | rope", 80, 64, 8192)
LLAMA = Stack("gqa(8) | rope", 126, 128, 16384)
BARE = Stack("mla(512)", 61, 128, 7168)  # the latent without the rotary key beside it
OWN_QWEN, OWN_LLAMA = Stack("heads | rope", 80, 64, 8192), Stack("heads | rope", 126, 128, 16384)
STATED, OVER_QWEN, OVER_LLAMA = 70_272, 4.66, 7.34  # bytes of DeepSeek-V3, and how many times as many others take


@register("cache_sizes")
@dataclass(frozen=True, kw_only=True)
class CacheSizes(Experiment):
    """Counts the cache of three models at a length drawn at random, and lays it down on torch's meta device.

    longest: of the lengths that are drawn, in tokens.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="The cache of DeepSeek-V3 beside two others",
        statement="A token takes 70.272 KB in the cache of DeepSeek-V3, by latent attention in bfloat16; 4.66 times as "
        "much in that of Qwen2.5-72B and 7.34 times as much in that of Llama-3.1-405B, whose heads share keys and "
        "values by groups",
        paper="Insights into DeepSeek-V3: Scaling Challenges and Reflections on Hardware for AI Architectures, arXiv "
        "2505.09343, section 2.1.2 and table 1",
        setting="bfloat16; a KB is 1000 bytes; table 1 tells 70.272, 327.680 and 516.096",
        seconds=5,
        systems=(278,),
        differs="a layer of each model's sizes is made without memory; `headwise fit` counts a checkpoint's cache from "
        "its config.json and adds 4 bytes a layer and token for positions",
        leaves_out="the paper's other sections, on communication, FP8 and failures, which have no attention",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("bytes a token of DeepSeek-V3 beside 70 272, relative "
             "difference", "deepseek", "bare", "the latent without the rotary key", below=1e-9),
        Part("Qwen2.5-72B's over DeepSeek-V3's, beside 4.66", "qwen", "qwen_own",
             "every head with keys and values of its own", below=0.005),
        Part("Llama-3.1-405B's over DeepSeek-V3's, beside 7.34", "llama", "llama_own",
             "every head with keys and values of its own", below=0.005),
        Part("counted bytes beside those that layers lay down, largest relative "
             "difference", "laid", "laid_float", "counted in float32", below=1e-9),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"cache by length": Panel("tokens", "GB", "xy")}

    longest: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """Bytes at a length of this seed."""
        tokens = int(torch.randint(1, self.longest + 1, (), generator=generator(self.name, seed)))
        models = {"DeepSeek-V3": DEEPSEEK, "Qwen2.5-72B": QWEN, "Llama-3.1-405B": LLAMA}
        by_token = {name: one.counted(tokens) / tokens for name, one in models.items()}
        latent = by_token["DeepSeek-V3"]
        laid = {name: one.laid(tokens) / tokens for name, one in models.items()}

        def beside(times: float) -> float:
            return max(abs(times * by_token[name] / laid[name] - 1) for name in models)

        return {
            "measures": {
                "tokens": tokens,
                "deepseek": abs(latent / STATED - 1),
                "bare": abs(BARE.counted(tokens) / tokens / STATED - 1),
                "qwen": abs(by_token["Qwen2.5-72B"] / latent - OVER_QWEN),
                "qwen_own": abs(OWN_QWEN.counted(tokens) / tokens / latent - OVER_QWEN),
                "llama": abs(by_token["Llama-3.1-405B"] / latent - OVER_LLAMA),
                "llama_own": abs(OWN_LLAMA.counted(tokens) / tokens / latent - OVER_LLAMA),
                "laid": beside(1),
                "laid_float": beside(2),
            },
            "lines": {
                "cache by length": {
                    name: [[length, one.counted(length) / 1e9] for length in (1024, 8192, 131_072)]
                    for name, one in models.items()
                }
            },
        }
