"""TransNormerLLM: linear attention with fixed decays, and how it is decoded for as long as one likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.layers.norms import rms
from headwise.theory.decoder import seeded
from headwise.theory.fitting import generator

WIDTH, HEADS, LAYERS, SYMBOLS = 64, 4, 3, 256
DIM = WIDTH // HEADS
SLOW = 0.99  # the largest decay a token, as the row has it
REACH = 4096  # tokens after which 0.99 a token leaves 1e-18
Memory = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Gated(nn.Module):
    """A layer of gated linear attention, `norm(sum_j decay^(i-j) (q_i . k_j) v_j) * u_i`, and of a simple gated feed.

    Queries and keys pass SiLU; in the first layer they are turned by their place (LRPE), in the others the decay alone
    tells of distance.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.streams, self.out = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.turns = layer == 0
        heads = torch.arange(1, HEADS + 1)
        rates = (-8 / HEADS * heads * (1 - layer / LAYERS)).exp()
        self.decay = rates.clamp(max=SLOW)
        self.angles = nn.Parameter(10000.0 ** (-torch.arange(DIM) / DIM).repeat(HEADS, 1))

    def split(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values [batch, heads, tokens, dim] and gates of `x`, whose first token is at `first`."""
        q, k, v, gate = self.streams(rms(x)).chunk(4, dim=-1)
        q, k, v = (one.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for one in (F.silu(q), F.silu(k), v))
        return (self.turned(q, first), self.turned(k, first), v, gate) if self.turns else (q, k, v, gate)

    def turned(self, x: Tensor, first: int) -> Tensor:
        """Each channel as a cosine and a sine of its place, so that a product of two knows their distance."""
        places = torch.arange(first, first + x.shape[2], dtype=torch.float64)
        angle = (places[:, None] * self.angles[:, None]).to(x.dtype)
        return torch.cat((x * angle.cos(), x * angle.sin()), -1)

    def after(self, x: Tensor, read: Tensor, gate: Tensor) -> Tensor:
        """`x` with what heads read [batch, heads, tokens, dim], and then with what the feed makes of it."""
        x = x + self.out(rms(read.transpose(1, 2).flatten(2)) * gate)
        left, right = self.feed(rms(x)).chunk(2, dim=-1)
        made: Tensor = x + self.down(left * right)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """A whole text `x [batch, tokens, width]` at once."""
        q, k, v, gate = self.split(x, 0)
        places = torch.arange(x.shape[1])
        apart = (places[:, None] - places).clamp_min(0)
        left = (self.decay[:, None, None] ** apart).tril()
        return self.after(x, ((q @ k.transpose(2, 3)) * left) @ v, gate)

    def step(self, x: Tensor, memory: Tensor, place: int, how: Memory) -> tuple[Tensor, Tensor]:
        """One token `x [batch, 1, width]` at a place, after a memory [batch, heads, key dim, dim]."""
        q, k, v, gate = self.split(x, place)
        read, memory = how(q, k.transpose(2, 3) @ v, memory, self.decay[:, None, None], place)
        return self.after(x, read, gate), memory

    def empty(self, batch: int) -> Tensor:
        """The memory before the first token."""
        return torch.zeros(batch, HEADS, DIM * (2 if self.turns else 1), DIM)


def robust(q: Tensor, written: Tensor, memory: Tensor, decay: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """The memory fades by `decay` before a token is written."""
    memory = decay * memory + written
    return q @ memory, memory


def divided(q: Tensor, written: Tensor, memory: Tensor, decay: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """Tokens are written larger and larger, divided by `decay^place`, and what is read is multiplied by it."""
    memory = memory + written / decay**place
    return q @ memory * decay**place, memory


def still(q: Tensor, written: Tensor, memory: Tensor, decay: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """The memory does not fade."""
    return q @ (memory + written), memory + written


class Model(nn.Module):
    """A language model of these layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(SYMBOLS, WIDTH), nn.Linear(WIDTH, SYMBOLS, bias=False)
        self.layers = nn.ModuleList(Gated(layer) for layer in range(LAYERS))

    def forward(self, ids: Tensor) -> Tensor:
        """`ids [batch, tokens]` -> logits [batch, tokens, symbols], of the whole text at once."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.told(x)

    @property
    def gated(self) -> list[Gated]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, Gated)]

    def told(self, x: Tensor) -> Tensor:
        """The logits of last states `x [batch, tokens, width]`."""
        logits: Tensor = self.head(rms(x))
        return logits

    def decoded(self, ids: Tensor, how: Memory) -> tuple[Tensor, int]:
        """The same token by token, and bytes of the memories at the end."""
        layers = self.gated
        memories, found = [layer.empty(len(ids)) for layer in layers], []
        for place in range(ids.shape[1]):
            x = self.embed(ids[:, place : place + 1])
            for number, layer in enumerate(layers):
                x, memories[number] = layer.step(x, memories[number], place, how)
            found.append(self.told(x))
        return torch.cat(found, 1), sum(one.nbytes for one in memories)


@register("transnormer")
@dataclass(frozen=True, kw_only=True)
class TransNormer(Experiment):
    """Decodes with a TransNormerLLM of random weights, whose slowest heads keep 0.99 a token, in float32.

    tokens: of texts that are read both ways. steps: that one layer's memory is run for.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="TransNormerLLM's robust inference",
        statement="A memory that fades before each token is written stays finite at 100,000 steps, where dividing keys "
        "by powers of the decay does not; it gives what the text read at once gives, in memory of one size",
        paper="Scaling TransNormer to 175 Billion Parameters, arXiv 2307.14995, sections 3.1 and 3.3",
        setting="385M to 175B parameters, LRPE in the first layer, decays exp(-8h/H (1 - l/L))",
        seconds=30,
        systems=(53,),
        differs="three layers of 64 channels, random weights, no decay above 0.99",
        leaves_out="a trained language model beside a Transformer, and speed",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("numbers read that are not finite, share", "lost", "lost_divided", "division by powers of the decay",
             below=1e-6),
        Part("what is read at the last step less the float64 sum over tokens, largest over the largest entry", "late",
             "late_still", "a memory that does not fade", below=1e-4),
        Part("logits token by token less those of the text at once, largest over the largest logit", "off",
             "off_still", "a memory that does not fade", below=1e-4),
        Part("bytes held after all tokens over those after half of them", "held", "held_softmax",
             "keys and values of the same heads", below=1.001),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("off", "held")
    seeds: Seeds = 3

    tokens: Size = 128
    steps: Steps = 100_000

    @torch.no_grad()
    def draw(self, seed: int) -> dict[str, Any]:
        """How texts read in both ways differ, and what becomes of a memory in the long run."""
        model, chance = seeded(seed, Model), generator(self.name, seed)
        ids = torch.randint(0, SYMBOLS, (2, self.tokens), generator=chance)
        true = model(ids)
        found, held = model.decoded(ids, robust)
        half = model.decoded(ids[:, : self.tokens // 2], robust)[1]
        off, off_still = (apart(one, true) for one in (found, model.decoded(ids, still)[0]))
        long = {how: self.long(how, seed) for how in (robust, divided, still)}
        return {"measures": {
            "lost": long[robust][0], "lost_divided": long[divided][0], "late": long[robust][1],
            "late_still": long[still][1], "off": off, "off_still": off_still, "held": held / half,
            "held_softmax": keys_and_values(model, ids) / keys_and_values(model, ids[:, : self.tokens // 2]),
        }}  # fmt: skip

    def long(self, how: Memory, seed: int) -> tuple[float, float]:
        """Of what is read at the last of many steps: the share of numbers that are not finite; and how far it is from
        the sum over the last REACH tokens, in float64, of those before which next to nothing is left."""
        drawn = torch.randn(self.steps, 3, HEADS, 1, DIM, generator=generator(f"{self.name}/long", seed))
        decay, memory = torch.linspace(0.9, SLOW, HEADS)[:, None, None], torch.zeros(HEADS, DIM, DIM)
        read = memory
        for place, (q, k, v) in enumerate(drawn):
            read, memory = how(q, k.transpose(1, 2) @ v, memory, decay, place)
        q, k, v = drawn[-REACH:, :, :, 0].double().unbind(1)
        left = decay[None, :, 0, 0].double() ** torch.arange(len(k)).flip(0)[:, None]
        true = torch.einsum("hd,jhd,jh,jhe->he", q[-1], k, left, v)[:, None]
        return 1 - float(read.isfinite().float().mean()), apart(read.nan_to_num(0.0, 0.0, 0.0), true)


def apart(found: Tensor, true: Tensor) -> float:
    """The largest error over the largest entry."""
    return float((found - true).abs().max() / true.abs().max())


def keys_and_values(model: Model, ids: Tensor) -> int:
    """Bytes of those of the first layer's heads, of all tokens."""
    _, k, v, _ = model.gated[0].split(model.embed(ids), 0)
    return int(k.nbytes + v.nbytes)
