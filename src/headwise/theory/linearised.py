"""Grouped linear attention with a masked convolution of values, made from softmax layers and asked about trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.theory.decoder import Decoder, Heads, Made, seeded
from headwise.theory.fitting import adam, generator
from headwise.theory.pieces import drawn, held, text
from headwise.theory.trees import Tree, accepted, drafted
from headwise.theory.writer import loss_of

WIDTH, HEADS, LAYERS, RATE = 64, 4, 2, 3e-3
BYTES, GROUP, REACH = 256, 16, 8  # symbols; tokens of a group; taps of the convolution, its own token included
PROMPT, WRITTEN = 24, 32  # tokens that are given, and written after them


class Grouped(Heads):
    """Keys of a token's own group weigh max(q.k, 0)^2, those of groups before q.k, by queries and keys with factors of
    their own; and a convolution of the values is added, whose taps on later tokens are masked.

    reach: taps on each side; 0 is no convolution. masked: whether later tokens are left out.
    """

    mask: Tensor

    def __init__(self, reach: int, masked: bool = True) -> None:
        super().__init__(WIDTH, HEADS)
        self.reach = reach
        self.factors = nn.Parameter(torch.ones(4, WIDTH // HEADS))  # of near queries and keys, and of far ones
        self.gains = nn.Parameter(torch.tensor([4.0, 1.0]))
        if reach:
            self.taps = nn.Parameter(torch.zeros(WIDTH, 2 * reach - 1))  # from later tokens to earlier ones
            place = torch.arange(2 * reach - 1)
            self.register_buffer("mask", (place >= reach - 1) | torch.tensor(not masked))

    def forward(self, x: Tensor, tree: Tree | None = None) -> Tensor:
        """What is read of `x [batch, tokens, WIDTH]`: a text, or the nodes of a tree in any order of parents first."""
        q, k, v = self.split(x)
        near_q, near_k, far_q, far_k = (factor * one for factor, one in zip(self.factors, (q, k, q, k), strict=True))
        if tree is None:
            read = self.grouped(near_q, near_k, far_q, far_k, v) + self.convolved(v)
        else:
            near = tree.before & (tree.groups(GROUP)[:, None] == tree.groups(GROUP))
            far = tree.before & ~near
            weights = self.near(near_q, near_k) * near + self.gains[1] * far_q @ far_k.transpose(2, 3) / GROUP * far
            read = weights @ v + self.unfolded(v, tree)
        return self.merged(read)

    def near(self, q: Tensor, k: Tensor) -> Tensor:
        """The weights of pairs in one group."""
        return self.gains[0] * F.relu(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).square() / GROUP

    def grouped(self, near_q: Tensor, near_k: Tensor, far_q: Tensor, far_k: Tensor, v: Tensor) -> Tensor:
        """What is read of a text: pairs in groups, and a running sum of keys times values over groups before."""
        tokens = v.shape[2]
        near_q, near_k, far_q, far_k, v = (
            F.pad(one, (0, 0, 0, -tokens % GROUP)).unflatten(2, (-1, GROUP))
            for one in (near_q, near_k, far_q, far_k, v)
        )
        near = (self.near(near_q, near_k) * torch.ones(GROUP, GROUP).tril()) @ v
        sums = (far_k.transpose(-1, -2) @ v).cumsum(2) / GROUP
        far = self.gains[1] * far_q @ F.pad(sums, (0, 0, 0, 0, 1, -1))
        return (near + far).flatten(2, 3)[:, :, :tokens]

    def convolved(self, v: Tensor) -> Tensor:
        """The convolution of values [batch, heads, tokens, dim] along a text, a kernel for each channel."""
        if not self.reach:
            return torch.zeros_like(v)
        channels = v.transpose(2, 3).flatten(1, 2)
        kernel = (self.taps * self.mask).flip(1)[:, None]
        found = F.conv1d(channels, kernel, padding=self.reach - 1, groups=WIDTH)
        return found.unflatten(1, (self.heads, -1)).transpose(2, 3)

    def unfolded(self, v: Tensor, tree: Tree) -> Tensor:
        """The same along the path to each node."""
        found = torch.zeros_like(v)
        for back in range(self.reach):
            above = tree.above(back)
            taps = self.taps[:, self.reach - 1 + back].view(self.heads, 1, -1)
            found = found + taps * v[:, :, above.clamp_min(0)] * (above >= 0)[:, None]
        return found


class Linear(Decoder):
    """A decoder of bytes with places, of softmax layers or of grouped linear ones."""

    def __init__(self, mixers: Sequence[nn.Module], tokens: int) -> None:
        super().__init__(nn.Embedding(BYTES, WIDTH), mixers, WIDTH, BYTES)
        self.places = nn.Embedding(tokens, WIDTH)

    def forward(self, ids: Tensor, tree: Tree | None = None) -> Tensor:
        """`ids [batch, tokens]` -> logits [batch, tokens, BYTES]; of a tree, its nodes' places are their depths."""
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]) if tree is None else tree.depth)
        for place, mixer in enumerate(self.mixers):
            read = self.norms[2 * place](x)
            x = x + (mixer(read) if tree is None else mixer(read, tree))
            x = x + self.wide[place](self.norms[2 * place + 1](x))
        return self.told(x)


@register("linearised")
@dataclass(frozen=True, kw_only=True)
class Linearised(Experiment):
    """Trains a decoder of softmax layers on a novel, in bytes, puts grouped linear layers in their places, and trains
    it on, with and without the convolution.

    tokens, batch: of its texts. steps: of the first training. more: of each that follows. texts: that are written
    on.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Linearized-LLM",
        statement="Softmax layers become grouped linear attention with a convolution of values whose half on later "
        "tokens is masked and which is unfolded along the paths of a drafted tree: nothing is seen ahead, trees are "
        "verified exactly, greedy drafting writes what decoding alone does, and the perplexity is below that without "
        "the convolution",
        paper="When Linear Attention Meets Autoregressive Decoding: Towards More Effective and Efficient Linearized "
        "Large Language Models, arXiv 2406.07368, sections 4 and 5, and its code",
        setting="LLaMA-2-7B, GPT-2, T5, BERT and FLASH, groups of 256, 63 taps, Medusa's heads",
        seconds=60,
        systems=(141,),
        differs="two layers of 64 channels; the values' convolution has a kernel for each channel, where the code "
        "shares one; no gate; drafts are what mostly follows a byte in the text",
        leaves_out="speed, and pretrained models",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("change of earlier logits by a later token, largest", "ahead", "ahead_unmasked",
             "the convolution unmasked", below=1e-6),
        Part("logits of a tree less those of its paths, largest over the largest logit", "tree", "tree_flat",
             "the convolution along the order in which the tree is written", below=1e-5),
        Part("bytes of drafted decoding that are not those of decoding alone, share", "other", "other_unverified",
             "drafts that nothing verifies", below=1e-6),
        Part("perplexity over that without the convolution", "perplexity", "perplexity_own",
             "a convolution of a token's own value alone", below=0.98),
    )  # fmt: skip
    seeds: Seeds = 3

    tokens: Size = 64
    batch: Size = 8
    steps: Steps = 300
    more: Steps = 150
    texts: Size = 8

    def draw(self, seed: int) -> dict[str, Any]:
        """Perplexities, and what a trained model says of trees."""
        soft = self.made(lambda: Heads(WIDTH, HEADS), seed)
        self.train(soft, seed, self.steps)
        models = {reach: self.converted(soft, reach, seed) for reach in (REACH, 0, 1)}
        model, chance = models[REACH], generator(f"{self.name}/trees", seed)
        with torch.no_grad():
            loss = {reach: float(loss_of(one, held(self.tokens))) for reach, one in models.items()}
            return {"measures": {
                "ahead": self.ahead(model, chance), "ahead_unmasked": self.ahead(self.unmasked(model, seed), chance),
                **self.of_trees(model, chance), **self.written(model),
                "perplexity": perplexity(loss[REACH] - loss[0]), "perplexity_own": perplexity(loss[1] - loss[0]),
                "perplexity_softmax": perplexity(float(loss_of(soft, held(self.tokens))) - loss[0]),
            }}  # fmt: skip

    def made(self, mixer: Made, seed: int) -> Linear:
        """A decoder of such layers from the start of its seed."""
        return seeded(seed, lambda: Linear([mixer() for _ in range(LAYERS)], self.tokens))

    def converted(self, soft: Linear, reach: int, seed: int) -> Linear:
        """The decoder of grouped linear layers that one of softmax layers becomes, trained on."""
        model = self.made(lambda: Grouped(reach), seed)
        model.load_state_dict(soft.state_dict(), strict=False)
        self.train(model, seed + 1000, self.more)
        return model

    def unmasked(self, model: Linear, seed: int) -> Linear:
        """The same with a convolution that looks ahead as it looks back."""
        other = self.made(lambda: Grouped(REACH, masked=False), seed)
        kept = {name: one for name, one in model.state_dict().items() if not name.endswith("mask")}
        other.load_state_dict(kept, strict=False)
        for mixer in other.mixers:
            assert isinstance(mixer, Grouped)
            mixer.taps[:, : REACH - 1] = mixer.taps[:, REACH:].flip(1)
        return other

    def train(self, model: Linear, seed: int, steps: int) -> None:
        """On pieces of the text, the same for all decoders of a seed."""
        chance = generator(self.name, seed)
        adam(list(model.parameters()), lambda: loss_of(model, drawn(self.batch, self.tokens, chance)), steps, RATE)

    def ahead(self, model: Linear, chance: torch.Generator) -> float:
        """The largest change of a logit by a token that comes later."""
        ids = torch.randint(0, BYTES, (4, self.tokens), generator=chance)
        other, half = ids.clone(), self.tokens // 2
        other[:, half:] = torch.randint(0, BYTES, (4, self.tokens - half), generator=chance)
        return float((model(ids) - model(other))[:, :half].abs().max())

    def of_trees(self, model: Linear, chance: torch.Generator) -> dict[str, float]:
        """How far a tree's logits are from those of its paths, one after the other; and with the wrong convolution."""
        parents = [*range(-1, 19), *(int(torch.randint(16, 20 + i, (), generator=chance)) for i in range(24))]
        tree, ids = Tree(parents), torch.randint(0, BYTES, (1, len(parents)), generator=chance)
        found, paths = model(ids, tree)[0], [tree.path(node) for node in range(len(parents))]
        true = torch.stack([model(ids[:, path])[0, -1] for path in paths])
        flat = model(ids, Tree(parents, written=True))[0]
        return {name: float((one - true).abs().max() / true.abs().max())
                for name, one in (("tree", found), ("tree_flat", flat))}  # fmt: skip

    def written(self, model: Linear) -> dict[str, float]:
        """How much of what drafted decoding writes is not what decoding alone writes, with drafts verified and not; and
        how many bytes a pass writes."""
        differs, unverified, passes = 0, 0, 0
        follows = torch.zeros(BYTES, BYTES).index_put_((text()[:-1], text()[1:]), torch.ones(()), accumulate=True)
        for row in held(self.tokens)[: self.texts, :PROMPT].tolist():
            alone, own, guessed = list(row), list(row), list(row)
            while len(alone) < PROMPT + WRITTEN:
                alone.append(int(model(torch.tensor([alone]))[0, -1].argmax()))
                guessed.append(int(follows[guessed[-1]].argmax()))
            while len(own) < PROMPT + WRITTEN:
                ids, tree = drafted(own, follows, deep=min(3, self.tokens - len(own)))
                own, passes = own + accepted(model(torch.tensor([ids]), tree)[0].argmax(-1).tolist(), ids, tree,
                                             len(own)), passes + 1  # fmt: skip
            differs += sum(one != other for one, other in zip(own, alone, strict=False))
            unverified += sum(one != other for one, other in zip(guessed, alone, strict=True))
        total = self.texts * WRITTEN
        return {"other": differs / total, "other_unverified": unverified / total, "bytes_a_pass": total / passes}


def perplexity(loss: float) -> float:
    """Of a loss in nats."""
    return float(torch.tensor(loss).exp())
