"""Trained pooling of all layers, on a small model that tells a text's words in its middle and then forgets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from headwise.context.layer_pooling import LayerPooling
from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Steps, register
from headwise.theory.fitting import adam, generator, share_right

WORDS, NOISE, TOLD, TOKENS, CLASSES = 32, 16, 3, 12, 4  # words and fillers; words of a text; its tokens; classes
LAYERS, MIDDLE, WIDTH, LATENTS = 4, 2, 64, 4
ROWS, PAIRS, TESTED = 64, 512, 256  # pairs of a batch, of a pooling's training, and of a test
RATE, TEMPERATURE = 3e-3, 0.1


class Host(nn.Module):
    """A causal model of LAYERS layers. tells: the layer whose last token is trained to tell a text's words; if it is
    not the last one, that layer's last token is drawn to a vector of the last filler alone."""

    def __init__(self, tells: int) -> None:
        super().__init__()
        self.tells = tells
        self.embed, self.place = nn.Embedding(WORDS + NOISE + 1, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.read, self.fillers = nn.Linear(WIDTH, WIDTH, bias=False), nn.Embedding(NOISE, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """The last token's state after the embedding and each layer, [rows, LAYERS + 1, width]."""
        x = self.embed(ids) + self.place.weight
        mask, states = nn.Transformer.generate_square_subsequent_mask(TOKENS), [x[:, -1]]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
            states.append(x[:, -1])
        return torch.stack(states, dim=1)

    def loss(self, question: Tensor, document: Tensor) -> Tensor:
        """Of a batch of pairs."""
        asked, told = self(question), self(document)
        found = contrast(*(normalize(self.read(one[:, self.tells]), dim=-1) for one in (asked, told)))
        if self.tells == LAYERS:
            return found
        filler = self.fillers(document[:, -2] - WORDS)
        guessed = cross_entropy(told[:, -1] @ self.fillers.weight.T, document[:, -2] - WORDS)
        return found + guessed + (told[:, -1] - filler).square().mean()


class Linear(nn.Module):
    """A linear map of one layer's vector, normed before and of length 1 after."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer, self.norm, self.map = layer, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        return normalize(self.map(self.norm(vectors[:, self.layer])), dim=-1)


class Pooled(nn.Module):
    """Multi-layers trainable pooling of some of the layers."""

    def __init__(self, layers: slice) -> None:
        super().__init__()
        self.layers = layers
        self.pool = LayerPooling(len(range(LAYERS + 1)[layers]), WIDTH, LATENTS)

    def forward(self, vectors: Tensor) -> Tensor:
        made: Tensor = self.pool(vectors[:, self.layers])
        return made


ARMS: dict[str, Callable[[], nn.Module]] = {
    "all": lambda: Pooled(slice(None)),
    "last": lambda: Linear(LAYERS),
    "module": lambda: Pooled(slice(LAYERS, None)),
    "middle": lambda: Linear(MIDDLE),
}


@register("layer_pooling")
@dataclass(frozen=True, kw_only=True)
class LayersPooled(Experiment):
    """Trains two small models, one to tell a text's words in its middle layer and one in its last; of each, poolings of
    the last token are trained on the same pairs of a question and its document, and look for documents.

    host_steps, steps: of training a model, and each pooling.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Trained pooling of all layers",
        statement="Where the signal lies in a middle layer, trained pooling of all layers finds a tenth of all "
        "documents more than poolings of the last layer; where it lies in the last one it does not",
        paper="Pooling And Attention: What Are Effective Designs For LLM-Based Embedding Models?, arXiv 2409.02727",
        setting="Mistral-7B, trained by low-rank adapters with causal or bidirectional masks",
        seconds=300,
        systems=(83,),
        differs="the signal is planted: a model of four layers learns by contrast to tell three words of a text at its "
        "second layer, and to tell nothing but the last filler at its last; it is frozen while poolings are trained, "
        "and a linear map of its second layer finds as many documents. "
        "On SmolLM2-135M-Instruct, where nothing is planted, the pooling loses (benchmarks/embedding.py)",
        leaves_out="how documents are classed, of which the measure `classed` tells; bidirectional masks, and training "
        "of the model with its pooling",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("share of documents found more than by a linear map of the last layer", "gain", "gain_late",
             "a model whose last layer tells it", above=0.1),
        Part("share of documents found more than by the same module on the last layer", "gain_module",
             "gain_module_late", "a model whose last layer tells it", above=0.1),
    )  # fmt: skip

    host_steps: Steps = 400
    steps: Steps = 300
    seeds: Seeds = 5

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of documents that are found and classed."""
        found, classed = (
            {tells: {arm: own[i] for arm, own in self.arms(seed, tells).items()} for tells in (MIDDLE, LAYERS)}
            for i in (0, 1)
        )
        return {"measures": measures(found, classed)}

    def arms(self, seed: int, tells: int) -> dict[str, tuple[float, float]]:
        """By arm, the shares found and classed on a model that tells at a layer."""
        chance = generator(f"{self.name}/{tells}", seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            host, made = Host(tells), {arm: make() for arm, make in ARMS.items()}
        adam(list(host.parameters()), lambda: host.loss(*pairs(ROWS, chance)[:2]), self.host_steps, RATE)
        told, tested = pairs(PAIRS, chance), pairs(TESTED, chance)
        with torch.no_grad():
            train, test = ([host(one) for one in own[:2]] for own in (told, tested))
        out = {}
        for arm, module in made.items():

            def loss(module: nn.Module = module) -> Tensor:
                rows = torch.randperm(PAIRS, generator=chance)[:ROWS]
                return contrast(*(module(one[rows]) for one in train))

            adam(list(module.parameters()), loss, self.steps, RATE / 3)
            with torch.no_grad():
                asked, answers, known = (module(one) for one in (*test, train[1]))
            right = share_right(asked @ answers.T, torch.arange(TESTED))
            means = torch.stack([known[told[2] == one].mean(0) for one in range(CLASSES)])
            out[arm] = right, share_right(answers @ normalize(means, dim=-1).T, tested[2])
        return out


def measures(found: dict[int, dict[str, float]], classed: dict[int, dict[str, float]]) -> dict[str, float]:
    """What parts are made of, and each arm's share of found documents."""
    middle, late = found[MIDDLE], found[LAYERS]
    own = classed[MIDDLE]
    told = {
        "gain": middle["all"] - middle["last"], "gain_late": late["all"] - late["last"],
        "gain_module": middle["all"] - middle["module"], "gain_module_late": late["all"] - late["module"],
        "classed": own["all"] - own["last"],
    }  # fmt: skip
    shares = {f"found_{arm}": share for arm, share in middle.items()}
    return told | shares | {f"found_late_{arm}": share for arm, share in late.items()}


def pairs(rows: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Questions and documents [rows, TOKENS], which share their words and no filler by more than chance; and the class
    of each [rows], which is that of its first word in the alphabet."""
    words = torch.rand(rows, WORDS, generator=chance).argsort(1)[:, :TOLD]
    texts = []
    for _ in range(2):
        ids = torch.randint(WORDS, WORDS + NOISE, (rows, TOKENS), generator=chance)
        places = torch.rand(rows, TOKENS - 2, generator=chance).argsort(1)[:, :TOLD]  # before the last filler
        ids = ids.scatter(1, places, words)
        ids[:, -1] = WORDS + NOISE
        texts.append(ids)
    group = (words.amin(1) * CLASSES // 16).clamp(max=CLASSES - 1)
    return texts[0], texts[1], group


def contrast(asked: Tensor, told: Tensor) -> Tensor:
    """The loss of choosing each question's document [rows, width] among all of a batch."""
    return cross_entropy(asked @ told.T / TEMPERATURE, torch.arange(len(asked)))
