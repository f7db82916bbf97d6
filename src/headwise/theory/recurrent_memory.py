"""A block that reads its chunk, all before it, and a memory of states that chunks before have left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.theory.decoder import Decoder, Heads, attention, exponent, seeded, turned
from headwise.theory.facts import VALUES, Facts, asked, noise, right, told
from headwise.theory.fitting import adam, generator

WIDTH, HEADS, LAYERS, RATE = 64, 4, 1, 3e-3
LONG = (1024, 2048)  # tokens of the texts that operations are counted on
FULL, CHUNK, MEMORY = range(3)  # ways of reading


class Recurrent(Heads):
    """Ways of reading, mixed by learned shares, which are the softmax of a number each over those that are on and have
    something to read. chunk: tokens of one. slots: states that the memory holds."""

    def __init__(self, chunk: int, slots: int, ways: tuple[int, ...]) -> None:
        super().__init__(WIDTH, HEADS)
        self.chunk, self.slots, self.ways = chunk, slots, ways
        self.shares = nn.Parameter(torch.zeros(3))
        self.gate, self.kept = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH, bias=False)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """What is read of `x [batch, tokens, WIDTH]`; memory: what stands in it before the first token."""
        q, k, v = self.split(x)
        memory = x[:, :0] if memory is None else memory
        full = attention(turned(q), turned(k), v, self.seen(x.shape[1])) if FULL in self.ways else q
        read = []
        for start in range(0, x.shape[1], self.chunk):
            place = slice(start, start + self.chunk)
            near, keys, values = q[:, :, place], k[:, :, place], v[:, :, place]
            found = {FULL: full[:, :, place]} if FULL in self.ways else {}
            if CHUNK in self.ways:
                own = self.seen(near.shape[2])
                found[CHUNK] = attention(turned(near), turned(keys), values, own)
            if MEMORY in self.ways and memory.shape[1]:
                found[MEMORY] = self.remembered(near, memory)
            shares = self.shares[list(found)].softmax(0)
            read.append(sum(share * one for share, one in zip(shares, found.values(), strict=True)))
            if MEMORY in self.ways:
                memory = self.written(memory, x[:, place])
        return self.merged(torch.cat(read, dim=2))

    def remembered(self, q: Tensor, memory: Tensor) -> Tensor:
        """What queries read of the states in memory, which have no places."""
        k, v = (one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in self.kept(memory).chunk(2, dim=-1))
        return attention(q, k, v)

    def written(self, memory: Tensor, x: Tensor) -> Tensor:
        """The memory after a chunk: its states come last, each a gated mean of it and of what it pushes out at the
        front, nothing where there is room."""
        pushed = memory[:, : max(0, memory.shape[1] + x.shape[1] - self.slots)]
        old = torch.cat((x.new_zeros(len(x), x.shape[1] - pushed.shape[1], WIDTH), pushed), dim=1)
        gate = self.gate(torch.cat((x, old), dim=-1)).sigmoid()
        return torch.cat((memory, gate * x + (1 - gate) * old), dim=1)[:, -self.slots :]


@register("recurrent_memory")
@dataclass(frozen=True, kw_only=True)
class RecurrentMemory(Experiment):
    """Trains a small decoder to answer a question on a fact of the chunk before, by its chunk alone and with a memory.

    chunk: tokens of one. slots: states that the memory holds. facts: of a text. steps: of training. questions: asked.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Recurrent memory and chunked attention",
        statement="A block of full attention, attention in chunks and attention to a gated memory of earlier states is "
        "causal attention where only the first is on, and what it was where the memory is empty; chunks with a memory "
        "cost in proportion to the text, and recall what stands a chunk before, where chunks alone guess",
        paper="Recurrent Memory-Augmented Transformers with Chunked Attention for Long-Context Language Modeling, "
        "arXiv 2507.00453",
        setting="chunks of 512 tokens; no accuracy is reported",
        seconds=60,
        systems=(208,),
        differs="the full branch sees all of the text, and no chunk of it; one layer of 64 channels, facts of one "
        "token; cost is counted in operations; there is no released code",
        leaves_out="a memory that is full, where the gate mixes states with those they push out, and training with all "
        "three ways of reading",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("only the full branch on: largest difference from causal attention", "full", "full_chunk",
             "the branch of chunks on as well", below=1e-6),
        Part("empty memory: largest difference from the block without one", "empty", "filled",
             "a memory of states by chance", below=1e-6),
        Part("exponent of the operations of chunks and memory in the text's length", "exponent", "exponent_full",
             "with the full branch", below=1.1),
        Part("right answers on the chunk before, share", "right", "alone", "chunks without a memory", above=0.9),
        Part("right answers without the memory, share: a guess is 0.125", "alone", "right", "with it", below=0.2),
    )  # fmt: skip

    chunk: Size = 16
    slots: Size = 32
    facts: Size = 4
    steps: Steps = 600
    questions: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """Right answers of two decoders, and what blocks compute that no training has touched."""
        chance = generator(f"{self.name}/test", seed)
        x = torch.randn(2, 4 * self.chunk, WIDTH, generator=chance)
        memory = torch.randn(2, self.slots, WIDTH, generator=chance)
        ways = ((FULL,), (FULL, CHUNK), (CHUNK,), (CHUNK, MEMORY), (FULL, CHUNK, MEMORY))
        blocks = {way: self.block(way, seed) for way in ways}
        full, first = blocks[(FULL,)], x[:, : self.chunk]
        with torch.no_grad():
            q, k, v = full.split(x)
            causal = full.merged(scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True))
            bare, kept = blocks[(CHUNK,)](first), blocks[(CHUNK, MEMORY)]
            models = {name: self.trained(way, seed) for name, way in (("right", (CHUNK, MEMORY)), ("alone", (CHUNK,)))}
            return {"measures": {
                "full": float((full(x) - causal).abs().max()),
                "full_chunk": float((blocks[(FULL, CHUNK)](x) - causal).abs().max()),
                "empty": float((kept(first) - bare).abs().max()),
                "filled": float((kept(first, memory) - bare).abs().max()),
                "exponent": exponent(blocks[(CHUNK, MEMORY)], LONG, WIDTH),
                "exponent_full": exponent(blocks[(FULL, CHUNK, MEMORY)], LONG, WIDTH),
                **{name: self.right(model, 1, seed) for name, model in models.items()},
                "right_two_chunks_before": self.right(models["right"], 2, seed),
            }}  # fmt: skip

    def block(self, ways: tuple[int, ...], seed: int) -> Recurrent:
        """A block whose weights are those of its seed, whatever its ways of reading."""
        return seeded(seed, lambda: Recurrent(self.chunk, self.slots, ways))

    def trained(self, ways: tuple[int, ...], seed: int) -> nn.Module:
        """A decoder that was trained on questions a chunk behind their facts."""
        chance = generator(self.name, seed)
        model = seeded(seed, lambda: Decoder(
            Facts(WIDTH), [Recurrent(self.chunk, self.slots, ways) for _ in range(LAYERS)], WIDTH, VALUES))  # fmt: skip

        def loss() -> Tensor:
            ids, answer = self.texts(64, 1, chance)
            return cross_entropy(model(ids)[:, -1], answer)

        adam(list(model.parameters()), loss, self.steps, RATE)
        return model

    def texts(self, rows: int, behind: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Ids of a chunk of facts, of noise, and of a question as many chunks behind as `behind` says; the answers."""
        ids, values = told(rows, self.chunk, self.facts, chance)
        question, answer = asked(ids, values, chance)
        return torch.cat((ids, noise(rows, behind * self.chunk - 1, chance), question), dim=1), answer

    @torch.no_grad()
    def right(self, model: nn.Module, behind: int, seed: int) -> float:
        """The share of questions that are answered."""
        ids, answer = self.texts(self.questions, behind, generator(f"{self.name}/held", seed))
        return right(model(ids)[:, -1], answer)
