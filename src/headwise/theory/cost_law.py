"""Kinetics' law of what decoding costs, held against the pairs that are counted while a model decodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise import assets
from headwise.cost.eflops import Decoding
from headwise.engine.chosen import Chosen, watching
from headwise.experiments import Experiment, ExperimentCard, Panel, Part, register
from headwise.forms.where import causal_pairs
from headwise.seams.transformers.cache import Cache, attach
from headwise.seams.transformers.drive import prefill
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.load import load_pair
from headwise.theory.fitting import generator

SIZE = 8  # tokens of a block
PAPER = (1024, 32)  # tokens that are read, and of a block, in the paper's setting of long generations
LENGTHS = (8192, 32768)


@register("cost_law")
@dataclass(frozen=True, kw_only=True)
class CostLaw(Experiment):
    """The embedded model reads a stretch of the novel and goes on along it, token by token.

    context: most tokens of the prompt; a seed draws half of it to all. generated: tokens after it. budget: tokens that
    block top-k reads at every step.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Kinetics' eFLOPs",
        statement="The law's FLOPs and bytes of attention are what the engine counts, within 5 %; dense decoding grows "
        "with the square of the generated length, block top-k nearly in proportion",
        paper="Kinetics: Rethinking Test-Time Scaling Laws, arXiv 2506.05333, section 2 and its appendix on costs",
        setting="562.5 FLOPs a byte, 32 blocks of 16 or 32 tokens, up to 32K generated",
        seconds=40,
        systems=(11,),
        differs="attention alone, without the 2 FLOPs a weight and token, which are the same on both sides; growth is "
        "the law's own from 8K to 32K, as no count takes that long",
        leaves_out="the cost of looking at blocks and the bytes of a pair, which are the law's on both sides, and that "
        "block top-k solves more problems at equal eFLOPs",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("block top-k's counted eFLOPs beside the law, difference", "block", "block_dense",
             "the law of dense attention", below=0.05),
        Part("dense attention's counted eFLOPs beside the law, difference", "dense", "dense_block",
             "the law of block top-k", below=0.05),
        Part("block top-k's growth with the generated length, exponent", "growth", "growth_dense",
             "dense attention", below=1.3),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"eFLOPs of attention": Panel("generated tokens", "eFLOPs", "xy")}

    context: Annotated[int, Ge(32), Le(1024)] = 256
    generated: Annotated[int, Ge(16), Le(512)] = 192
    budget: Annotated[int, Ge(16), Le(512)] = 128

    def draw(self, seed: int) -> dict[str, Any]:
        """Differences between counts and law, and the growth that the law gives."""
        tokenizer, model = load_pair(assets.embedded_model(), "float32", "cpu", False)
        text, chance = assets.novel(), generator(self.name, seed)
        start = int(torch.randint(len(text) // 2, (1,), generator=chance))
        context = int(torch.randint(self.context // 2, self.context + 1, (1,), generator=chance))
        ids = tokenizer(text[start : start + 16 * (context + self.generated)], return_tensors="pt").input_ids
        ids, law = ids[:, : context + self.generated], Decoding.of(attach(model).geometry, 0.0)
        dense = law.dense(context, self.generated).eflops
        block = law.block_topk(context, self.generated, self.budget, SIZE).eflops
        counted = self._counted(model, ids, context, law, f"block_topk({self.budget}, sinks=0, recent=1, size={SIZE})")
        all_read = self._counted(model, ids, context, law, "")
        grown = [law.block_topk(context, one, *PAPER).eflops for one in LENGTHS]
        grown_dense = [law.dense(context, one).eflops for one in LENGTHS]
        return {
            "measures": {
                "block": abs(counted / block - 1),
                "block_dense": abs(counted / dense - 1),
                "dense": abs(all_read / dense - 1),
                "dense_block": abs(all_read / block - 1),
                "growth": math.log(grown[1] / grown[0], 4),
                "growth_dense": math.log(grown_dense[1] / grown_dense[0], 4),
            },
            "lines": {
                "eFLOPs of attention": {
                    "block top-k": [list(one) for one in zip(LENGTHS, grown, strict=True)],
                    "dense": [list(one) for one in zip(LENGTHS, grown_dense, strict=True)],
                }
            },
        }

    def _counted(self, model: Any, ids: torch.Tensor, context: int, law: Decoding, recipe: str) -> float:
        """eFLOPs of attention by the pairs that were read after the prompt, and a look at every whole block where
        blocks are chosen."""
        cache, spared = Cache(model, recipe), list[float]()
        heads = sum(one.query_heads for one in attach(model).geometry.layers)
        prefill(model, cache, ids[:, :context], None)

        def note(chosen: Chosen) -> None:
            seen = chosen.where.visible_pairs(chosen.queries, chosen.keys)
            spared.append((causal_pairs(chosen.queries, chosen.keys) - seen) * chosen.heads / heads)

        with torch.no_grad(), watching(note):
            for at in range(context, ids.shape[1]):
                forward(model, cache, ids[:, at : at + 1])
        stored = [at + 1 for at in range(context, ids.shape[1])]
        pairs, looks = sum(stored) - sum(spared), sum(one // SIZE for one in stored) if recipe else 0
        return law.of_pairs(0, pairs, looks).eflops
