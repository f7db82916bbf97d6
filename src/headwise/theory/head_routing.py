"""Heads of a trained model that each token turns on by the length of its queries, with nothing learned beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.layers.base import Dims
from headwise.layers.heads.routed_heads import RoutedHeads
from headwise.layers.layer import AttentionLayer
from headwise.theory.decoder import Decoder, Heads, attention, seeded, turned
from headwise.theory.fitting import generator
from headwise.theory.pieces import drawn
from headwise.theory.writer import ROWS, TOKENS, WIDTH, held_loss, loss_of, taught, writer

HEADS, SHARED, TOP, LAYERS = 4, 2, 1, 2  # three of four heads: two that are always on, and one of two others
DIMS = Dims(WIDTH, HEADS, WIDTH // HEADS)


@register("head_routing")
@dataclass(frozen=True, kw_only=True)
class HeadRouting(Experiment):
    """Language models of the novel's bytes that are trained with all heads and then go on with three of four.

    steps: of the model's training. more: of what goes on.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Mixture-of-head attention of a trained model",
        statement="With all heads on and weights of 1 it is multi-head attention; three heads of four, half of them "
        "always on and the others chosen by the length of a token's queries, come within 1 % of the dense model's loss "
        "once trained on, and below that of dropping as many heads for all tokens",
        paper="MoH: Multi-Head Attention as Mixture-of-Head Attention, arXiv 2410.11842, sections 3.2 and 4.4, and its "
        "code for LLaMA3-8B",
        setting="LLaMA3-8B trained on for 400 billion tokens",
        seconds=200,
        systems=(2,),
        differs="two layers of 4 heads; a choice passes its gradient straight to the router's softmax, as the paper "
        "has it in training; the released code is of reading alone; the first half of the heads is shared, as there",
        leaves_out="weights of shared and routed heads that are learned, and the balance of load",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("routed heads with all on and even weights beside plain ones, largest difference", "equal", "equal_fewer",
             "one of the routed heads off", below=1e-6),
        Part("held-out loss over that of all heads, trained on alike, minus 1", "loss", "loss_dropped",
             "one head of each layer dropped for all tokens, the one that costs least", below=0.01),
        Part("held-out loss less that of the dropped heads, nats", "gain", "gain_lot", "heads by lot at each token",
             below=0.0),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("equal",)

    steps: Steps = 1000
    more: Steps = 400

    def draw(self, seed: int) -> dict[str, Any]:
        """Losses of models that go on from the same one."""
        dense = writer(lambda: Choosing("all"), LAYERS, seed)
        taught(dense, self.name, seed, self.steps)
        lost = {how: self.goes_on(dense, how, seed) for how in ("all", "norm", "lot", "dropped")}
        return {"measures": {
            "loss": lost["norm"] / lost["all"] - 1, "loss_dropped": lost["dropped"] / lost["all"] - 1,
            "gain": lost["norm"] - lost["dropped"], "gain_lot": lost["lot"] - lost["dropped"],
            **{f"loss_of_{how}": one for how, one in lost.items()}, **self.limit(seed),
        }}  # fmt: skip

    def goes_on(self, dense: Decoder, how: str, seed: int) -> float:
        """The held-out loss of a model that reads with fewer heads from here on."""
        model = writer(lambda: Choosing(how), LAYERS, seed)
        model.load_state_dict(dense.state_dict())
        if how == "dropped":
            drop(model, drawn(4 * ROWS, TOKENS, generator(f"{self.name}/drop", seed)))
        taught(model, f"{self.name}/more", seed, self.more)
        return held_loss(model)

    @torch.no_grad()
    def limit(self, seed: int) -> dict[str, float]:
        """How far routed heads are from plain ones where all are on and shares are even."""
        x = torch.randn(32, TOKENS, WIDTH, generator=generator(f"{self.name}/x", seed))
        plain, found = seeded(seed, lambda: AttentionLayer("heads", DIMS)), {}
        for name, top in (("equal", HEADS - SHARED), ("equal_fewer", TOP)):
            streams, _ = plain.streams(x, None, None, None)
            routed = RoutedHeads(SHARED, top).build(DIMS, HEADS, DIMS.head_dim)
            for one in routed.parameters():
                one.zero_()
            routed.o.load_state_dict(plain.out.o.state_dict())
            found[name] = float((routed(plain.mix.parallel(streams), x) - plain(x)[0]).abs().max())
        return found


class Choosing(Heads):
    """Causal attention whose last heads are on for some tokens. how: "all" heads; by the "norm" of a token's queries;
    by "lot"; or those that are not in `dropped`."""

    def __init__(self, how: str) -> None:
        super().__init__(WIDTH, HEADS)
        self.how, self.dropped = how, -1
        self.lots = generator("head_routing/lots", 0)

    def forward(self, x: Tensor) -> Tensor:
        """What is read of `x [batch, tokens, WIDTH]`."""
        q, k, v = self.split(x)
        read = attention(turned(q), turned(k), v, self.seen(x.shape[1]))
        return self.merged(read * self.on(q))

    def on(self, q: Tensor) -> Tensor:
        """1 where a head is on and else 0, of queries [batch, HEADS, tokens, dim]: [batch, HEADS, tokens, 1]."""
        if self.how in ("all", "dropped"):
            return (torch.arange(HEADS) != self.dropped).to(q.dtype)[:, None, None]
        long = (
            q[:, SHARED:].norm(dim=-1)
            if self.how == "norm"
            else torch.rand(q[:, SHARED:, :, 0].shape, generator=self.lots)
        )
        share = (long / long.std(1, keepdim=True)).softmax(1)
        best = F.one_hot(share.topk(TOP, dim=1).indices, HEADS - SHARED).sum(1).transpose(1, 2)
        routed = best + share - share.detach()  # the choice forward, the softmax's gradient back
        return torch.cat((torch.ones_like(q[:, :SHARED, :, 0]), routed), 1)[..., None]


@torch.no_grad()
def drop(model: Decoder, pieces: Tensor) -> None:
    """Drops in each layer, from the first on, the head without which the loss on trained pieces is least."""
    for mixer in model.mixers:
        assert isinstance(mixer, Choosing)
        losses = []
        for head in range(HEADS):
            mixer.dropped = head
            losses.append(float(loss_of(model, pieces)))
        mixer.dropped = min(range(HEADS), key=losses.__getitem__)
