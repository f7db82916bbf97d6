"""Attention, linear attention, state spaces and gated recurrences as one linear recurrence with changing matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Seeds, Size, Steps, register
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from headwise.layers.running import Memory, Terms, block
from headwise.theory.fitting import adam, generator

ORDERS = range(6)  # of Taylor's polynomial
TEXTS = 4  # over which its error is told
CHANNELS = 4  # of queries and keys whose features are made
TOKENS = 24  # of a text that recurrences are run over
IDS, WIDTH, RATE = 32, 32, 5e-3  # keys, and values, that there are; channels of the models; their learning rate
NARROW, MIDDLE, WIDE = 2, 8, 32  # channels of keys, and so rows of the state, of the models that recall


@dataclass(frozen=True)
class System:
    """h_i = decay_i h_(i-1) + B_i u_i and y_i = C_i h_i + D_i u_i of one head, over inputs u [tokens, width].

    decay [tokens, state] is the diagonal of Lambda; B [tokens, state, width]; C [tokens, dim, state]; D [tokens, dim,
    width].
    """

    decay: Tensor
    b: Tensor
    c: Tensor
    d: Tensor

    def run(self, inputs: Tensor) -> Tensor:
        """y [tokens, dim], a token at a time."""
        state, told = torch.zeros_like(self.decay[0]), []
        for place, u in enumerate(inputs):
            state = self.decay[place] * state + self.b[place] @ u
            told.append(self.c[place] @ state + self.d[place] @ u)
        return torch.stack(told)

    def late(self) -> System:
        """The same with each token's matrices of the state, Lambda and B, those of the token before."""
        return System(self.decay.roll(1, 0), self.b.roll(1, 0), self.c, self.d)


def outer(features: Tensor, value: Tensor) -> Tensor:
    """From features [tokens, m] and the weight of values [dim, width], B [tokens, m * dim, width]."""
    return torch.einsum("tm,dw->tmdw", features, value).flatten(1, 2)


def reading(features: Tensor, dim: int) -> Tensor:
    """C [tokens, dim, m * dim] that reads the state of `outer` by features [tokens, m]."""
    return torch.einsum("tm,de->tdme", features, torch.eye(dim, dtype=features.dtype)).flatten(2)


def linear_system(q: Tensor, k: Tensor, value: Tensor) -> System:
    """Attention by features q, k [tokens, m], divided by the sum of weights."""
    dim, width = value.shape
    total = (q * k.cumsum(0)).sum(-1, keepdim=True)
    nothing = torch.zeros(len(q), dim, width, dtype=q.dtype)
    return System(
        torch.ones(len(q), q.shape[1] * dim, dtype=q.dtype), outer(k, value), reading(q / total, dim), nothing
    )


def selective_system(q: Tensor, k: Tensor, value: Tensor, gates: dict[str, Tensor]) -> System:
    """Mamba-2's head: its step d_i scales what is written, exp(-A d_i) is Lambda, its skip is D."""
    dim = len(value)
    decay = gates["decay"].exp().expand(-1, k.shape[1] * dim)
    beside = gates["skip"][:, :, None] * value
    return System(decay, outer(gates["step"] * k, value), reading(q, dim), beside)


def gated_system(inputs: Tensor, weights: dict[str, Tensor]) -> System:
    """The quasi-LSTM: c_i = f_i c_(i-1) + (1 - f_i) z_i and y_i = o_i c_i, where z_i is linear in the input."""
    forget, out = (torch.sigmoid(inputs @ weights[name].T) for name in ("forget", "out"))
    nothing = torch.zeros(len(inputs), *weights["z"].shape, dtype=inputs.dtype)
    return System(forget, (1 - forget)[..., None] * weights["z"], torch.diag_embed(out), nothing)


@dataclass(frozen=True)
class Reader:
    """A head of linear attention. keys: its channels of queries and keys, `copies` times over. learned: divided by the
    exponential of a number that is made of the token, and not by the sum of weights."""

    keys: int
    copies: int = 1
    learned: bool = False


class Small(nn.Module):
    """Two layers, each a short convolution and a head of linear attention, then a feed-forward layer."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.embed = nn.Embedding(2 * IDS, WIDTH)
        self.layers = nn.ModuleList(SmallLayer(reader) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, IDS)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids [batch, tokens]` -> logits of values [batch, tokens, IDS]."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        head: Tensor = self.head(self.norm(x))
        return head


class SmallLayer(nn.Module):
    """One of its layers."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.near = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)
        self.q, self.k = (nn.Linear(WIDTH, reader.keys, bias=False) for _ in range(2))
        self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.divide = nn.Linear(WIDTH, 1)
        self.wide = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, WIDTH]` -> the same shape."""
        near = self.near(self.norms[0](x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        q, k = (F.elu(one(near).repeat(1, 1, self.reader.copies)) + 1 for one in (self.q, self.k))
        weights = (q @ k.transpose(1, 2)).tril()
        total = self.divide(near).exp() if self.reader.learned else weights.sum(-1, keepdim=True) + 1e-6
        x = x + self.out(weights / total @ self.v(near))
        return x + self.wide(self.norms[1](x))


def texts(count: int, pairs: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids [count, 3 * pairs]: keys, each before its value, and then the keys again in another order; and the values
    [count, pairs] that these ask for."""
    keys = torch.rand(count, IDS, generator=chance).argsort(-1)[:, :pairs]
    values = torch.randint(IDS, 2 * IDS, (count, pairs), generator=chance)
    order = torch.rand(count, pairs, generator=chance).argsort(-1)
    told = torch.stack((keys, values), dim=-1).flatten(1)
    return torch.cat((told, keys.gather(1, order)), dim=1), values.gather(1, order) - IDS


@register("dynamical_systems")
@dataclass(frozen=True, kw_only=True)
class DynamicalSystems(Experiment):
    """Runs layers as recurrences, approaches softmax attention by larger states, and trains small models to recall.

    pairs: keys and values that a model is to recall. steps, batch: of its training. held: texts that it is asked about.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="The dynamical systems framework",
        statement="Linear attention, selective state spaces and gated recurrences are one recurrence h = Lambda h + "
        "B u, y = C h + D u; softmax attention is approached as the features, and so the state, grow; recall rises "
        "with the state, and is higher for linear attention with a learned exponential normaliser than with a sum",
        paper="Understanding the differences in Foundation Models: Attention, State Space Models, and Recurrent Neural "
        "Networks, arXiv 2405.15731, sections 3 (the framework), 4.1 (state expansion) and 4.2 (normalised attention)",
        setting="MQAR of up to 512 tokens and 64 pairs, 2 layers, widths to 512; also WikiText and Long Range Arena",
        seconds=60,
        systems=(113,),
        differs="Lambda is its diagonal; MQAR asks for 8 pairs of 32 keys and values without filler; models have "
        "2 layers of one head and 32 channels with short convolutions; both normalisers stand over the same features "
        "elu(x) + 1; the quasi-LSTM is the package's running state with a head for each channel, as it has no part of "
        "its own",
        leaves_out="Long Range Arena, WikiText, and the reversed sigmoid decay that the paper makes for S6",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("largest difference of recurrences and layers", "match", "match_late",
             "each token with the state matrices of the token before", below=1e-5),
        Part("error to softmax attention of a feature map over that of the next smaller, "
             "largest", "falls", "falls_random",
             "as many random features of the same kind at every size", below=0.9),
        Part("least rise of recall as keys widen from 2 to 8 and 32 channels", "rise", "rise_copied",
             "the same 2 channels 16 times, in a state of the largest size", above=0.05),
        Part("recall with a learned exponential normaliser less that with a "
             "sum", "normaliser", "normaliser_again", "the sum from another start less the sum", above=0.02),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "error to softmax attention": Panel("features", "root of mean square", "xy"),
        "recall by state": Panel("channels of keys", "right answers"),
    }
    pairs: Size = 8
    seeds: Seeds = 3
    steps: Steps = 300
    batch: Size = 32
    held: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """All figures of one seed."""
        chance = generator(self.name, seed)
        match, late = matched(chance)
        taylor, random = approached(chance)
        recall = self.recalls(seed)
        sizes = (NARROW, MIDDLE, WIDE)
        wider = [recall[f"sum {size}"] for size in sizes]
        return {
            "measures": {
                "match": match,
                "match_late": late,
                "falls": largest_step(taylor),
                "falls_random": largest_step(random),
                "rise": min(b - a for a, b in pairwise(wider)),
                "rise_copied": recall["copied"] - wider[0],
                "normaliser": recall["exp"] - recall[f"sum {MIDDLE}"],
                "normaliser_again": recall["again"] - recall[f"sum {MIDDLE}"],
            },
            "lines": {
                "error to softmax attention": {"Taylor": taylor, "random": random},
                "recall by state": {
                    "sum": [list(one) for one in zip(sizes, wider, strict=True)],
                    "the same channels repeated": [[NARROW, wider[0]], [WIDE, recall["copied"]]],
                    "learned exponential": [[MIDDLE, recall["exp"]]],
                },
            },
        }

    def recalls(self, seed: int) -> dict[str, float]:
        """Right answers of each model, all trained alike, on the same texts."""
        found = {f"sum {size}": self.recalled(seed, Reader(size)) for size in (NARROW, MIDDLE, WIDE)}
        found["copied"] = self.recalled(seed, Reader(NARROW, copies=WIDE // NARROW))
        found["exp"] = self.recalled(seed, Reader(MIDDLE, learned=True))
        found["again"] = self.recalled(seed, Reader(MIDDLE), start=1)
        return found

    def recalled(self, seed: int, reader: Reader, start: int = 0) -> float:
        """The share of right answers of a model that is trained from one of several starts."""
        chance = generator(f"{self.name} texts", seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1000 * start)
            model = Small(reader)

        def loss() -> Tensor:
            ids, values = texts(self.batch, self.pairs, chance)
            return F.cross_entropy(model(ids)[:, -self.pairs :].flatten(0, 1), values.flatten())

        adam(list(model.parameters()), loss, self.steps, RATE)
        with torch.no_grad():
            ids, values = texts(self.held, self.pairs, chance)
            return float((model(ids)[:, -self.pairs :].argmax(-1) == values).float().mean())


def largest_step(line: list[list[float]]) -> float:
    """The largest of errors over the error before, of points [features, error]."""
    return max(after[1] / before[1] for before, after in pairwise(line))


@torch.no_grad()
def matched(chance: torch.Generator) -> tuple[float, float]:
    """The largest difference of the recurrences from the package's layers, and of those with late matrices."""
    worst = [0.0, 0.0]
    for own, system, inputs in (*layer_systems(chance), quasi_lstm(chance)):
        for place, one in enumerate((system, system.late())):
            worst[place] = max(worst[place], float((one.run(inputs) - own).abs().max()))
    return worst[0], worst[1]


def layer_systems(chance: torch.Generator) -> list[tuple[Tensor, System, Tensor]]:
    """For each head of linear attention and of Mamba-2: what the layer reads, its recurrence, and the inputs."""
    found = []
    dims = Dims(width=16, heads=2, head_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chance.initial_seed() % 2**31)
        for sentence in ("heads | linear | linear_out", "heads | mamba2 | linear_out"):
            layer = AttentionLayer(sentence, dims).double()
            inputs = torch.randn(1, TOKENS, dims.width, generator=chance, dtype=torch.float64)
            streams, _ = layer.streams(inputs, None, None, None)
            read = layer.mix.parallel(streams)[0]
            for head, value in enumerate(value_weights(layer, dims)):
                q, k = streams.q[0, head], streams.k[0, head]
                gates = {name: one[0, head] for name, one in streams.gates.items()}
                system = (
                    selective_system(q, k, value, gates) if gates else linear_system(F.elu(q) + 1, F.elu(k) + 1, value)
                )
                found.append((read[head], system, inputs[0]))
    return found


def value_weights(layer: AttentionLayer, dims: Dims) -> Tensor:
    """The weights of a layer's values by head, [heads, dim, width], of what it makes of unit vectors."""
    unit = torch.eye(dims.width, dtype=torch.float64)[:, None]
    made = layer.project(unit, torch.zeros(dims.width, 1, dtype=torch.int64), None)[0].v
    return made[:, :, 0].permute(1, 2, 0)


def quasi_lstm(chance: torch.Generator) -> tuple[Tensor, System, Tensor]:
    """What the running state reads with a head for each channel, the recurrence, and the inputs."""
    width, channels = 12, 10
    inputs = torch.randn(TOKENS, width, generator=chance, dtype=torch.float64)
    weights = {
        name: torch.randn(channels, width, generator=chance, dtype=torch.float64) / width**0.5
        for name in ("forget", "out", "z")
    }
    forget, out = (inputs @ weights[name].T for name in ("forget", "out"))

    def heads(one: Tensor) -> Tensor:
        return one.T[None, :, :, None]

    value = (1 - torch.sigmoid(forget)) * (inputs @ weights["z"].T)
    unit = torch.ones_like(value)
    terms = Terms(heads(unit), heads(unit), heads(value), heads(F.logsigmoid(forget)))
    empty = Memory(torch.zeros(1, channels, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    memory = block(terms, torch.zeros(1, TOKENS, dtype=torch.int64), empty)[0]
    return torch.sigmoid(out) * memory[0, :, :, 0].T, gated_system(inputs, weights), inputs


@torch.no_grad()
def approached(chance: torch.Generator) -> tuple[list[list[float]], list[list[float]]]:
    """Points [features, root of the mean squared error], of Taylor's features and of random ones."""
    texts = [
        [torch.randn(TOKENS, size, generator=chance, dtype=torch.float64) / 2 for size in (CHANNELS, CHANNELS, 6)]
        for _ in range(TEXTS)
    ]
    value = torch.randn(5, 6, generator=chance, dtype=torch.float64)
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)

    def error(features: Callable[[Tensor], Tensor]) -> list[float]:
        wrong = []
        for q, k, inputs in texts:
            truth = torch.softmax((q @ k.T).masked_fill(hidden, -math.inf), -1) @ inputs @ value.T
            wrong.append(linear_system(features(q), features(k), value).run(inputs) - truth)
        return [float(features(texts[0][0]).shape[1]), float(torch.stack(wrong).square().mean().sqrt())]

    drawn = torch.randn(sum(CHANNELS**order for order in ORDERS), CHANNELS, generator=chance, dtype=torch.float64)
    exact, random = [], []
    for order in ORDERS:
        exact.append(error(partial(taylor, order=order)))
        random.append(error(partial(elus, directions=drawn[: int(exact[-1][0])])))
    return exact, random


def elus(x: Tensor, directions: Tensor) -> Tensor:
    """Features elu(w . x) + 1 of `x [tokens, d]`, one for each of `directions [m, d]`."""
    return F.elu(x @ directions.T) + 1


def taylor(x: Tensor, order: int) -> Tensor:
    """Features [tokens, m] of `x [tokens, d]` whose products are the exponential of products up to an order."""
    power, found = torch.ones_like(x[:, :1]), [torch.ones_like(x[:, :1])]
    for degree in range(1, order + 1):
        power = torch.einsum("tm,td->tmd", power, x).flatten(1)
        found.append(power / math.factorial(degree) ** 0.5)
    return torch.cat(found, dim=1)
