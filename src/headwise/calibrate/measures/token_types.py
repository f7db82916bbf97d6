"""Fitting the linear heads of Neural Attention Search to what a frozen model attends to, as plan tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.calibrate.look import Observer, observe
from headwise.calibrate.material import Material
from headwise.calibrate.measures import Found, measure
from headwise.choose import choose_mask, enough
from headwise.methods.roles import GLOBAL, LOCAL, NEAR
from headwise.seams.transformers.cache import PreTrainedModel, attach
from headwise.seams.transformers.drive import Progress

STEPS, DECAY = 60, 1e-3  # of LBFGS, and its weight decay: a linear head on some thousand keys needs no more
MOST = 4096  # tokens of a document that heads are fitted to, evenly spread


@dataclass(frozen=True, eq=False)
class Paid(Observer):
    """Adds up, by layer, the attention [h, n] paid to each token: all of it, and what is paid over more than `window`
    tokens."""

    needs = frozenset({"keys", "queries"})
    window: int
    total: dict[int, torch.Tensor] = field(default_factory=dict)
    far: dict[int, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        total, far = _longer(self.total, view), _longer(self.far, view)
        for at, paid in view.group_means(view.queries.shape[2]):
            total[:, : paid.shape[2]] += paid.sum(1)
            distant = at[:, None] - torch.arange(paid.shape[2], device=at.device) > self.window
            far[:, : paid.shape[2]] += (paid * distant).sum(1)

    def kept(self, layer: int, share: float) -> torch.Tensor:
        """The global tokens, bool [h, n]: the fewest that hold `share` of the attention paid from far away."""
        far = self.far[layer]
        return choose_mask(far, enough(far, share), torch.zeros_like(far, dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Late(Observer):
    """Adds up, by layer, the attention [h, n] paid to each token after `coming` [h, n], a position for each; and notes
    the keys before rotation [h, m, d] of the tokens at `MOST` places."""

    needs = frozenset({"keys", "queries", "rope"})
    coming: dict[int, torch.Tensor]
    late: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        late = _longer(self.late, view)
        for at, paid in view.group_means(view.queries.shape[2]):
            coming = self.coming[view.layer][:, None, : paid.shape[2]]
            late[:, : paid.shape[2]] += (paid * (at[:, None] > coming)).sum(1)
        if self.ends(view):
            known = taught(view.count)
            keys, positions = view.keys[:, known], view.positions[:, known]
            self.keys[view.layer] = (keys if view.rope is None else view.rope.unrotate(keys, positions)).float()


def _longer(sums: dict[int, torch.Tensor], view: View) -> torch.Tensor:
    """The sums [h, n] of a view's layer, with a 0 for each new token; adding to them in place adds to `sums`."""
    before = sums.get(view.layer, torch.zeros(len(view.heads), 0, device=view.positions.device))
    sums[view.layer] = torch.nn.functional.pad(before, (0, view.count - before.shape[1]))
    return sums[view.layer]


def taught(tokens: int) -> slice:
    """The places of a document of so many tokens that heads are fitted to."""
    return slice(None, None, -(-tokens // MOST))


def following(keeps: torch.Tensor) -> torch.Tensor:
    """The position of the next global token [h, n], the token itself included; n where none comes."""
    n = keeps.shape[1]
    return torch.where(keeps, torch.arange(n, device=keeps.device), n).flip(1).cummin(1).values.flip(1)


def labels(keeps: torch.Tensor, late: torch.Tensor, total: torch.Tensor, share: float) -> torch.Tensor:
    """The type [h, n] that each token of a document should have had.

    Global: what `keeps`. Local: of the others, those to which at most 1 - `share` of their own attention `total` comes
    `late`, after the next global one.
    """
    found = torch.full(keeps.shape, NEAR, device=keeps.device).masked_fill(late <= (1 - share) * total, LOCAL)
    return found.masked_fill(keeps, GLOBAL)


def token_types(
    model: PreTrainedModel, documents: Sequence[torch.Tensor], window: int = 256, share: float = 0.9
) -> dict[str, torch.Tensor]:
    """Plan tensors `nats.head`, `nats_prefill.head` and `nats_read.head`, the same [L, h, d + 1, 3] in each.

    documents: ids [1, n] each, of several windows, of the kind the model will read; each is read twice, as which
    tokens are local is asked of the global ones. window, share: see `Paid` and `labels`. The paper trains the heads
    with the model (2502.13251, section 3), this fits them to a frozen model's attention. Sliding layers, where nothing
    is evicted, get zeros.
    """
    geometry = attach(model).geometry
    lessons: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for ids in documents:
        observe(model, paid := Paid(window), [ids])
        keeps = {layer: paid.kept(layer, share) for layer in paid.far}
        observe(model, late := Late({layer: following(one) for layer, one in keeps.items()}), [ids])
        for layer, own in keeps.items():
            types = labels(own, late.late[layer], paid.total[layer], share)
            lessons.setdefault(layer, []).append((late.keys[layer], types[:, taught(ids.shape[1])]))
    head = torch.zeros(*geometry.by_head, geometry.size("d") + 1, 3)
    for layer, pairs in lessons.items():
        keys, types = (torch.cat(side, dim=1) for side in zip(*pairs, strict=True))
        head[layer, : len(keys)] = torch.stack([fitted(*one) for one in zip(keys, types, strict=True)])
    return {f"{name}.head": head.clone() for name in ("nats", "nats_prefill", "nats_read")}


def fitted(keys: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """The linear head [d + 1, 3] of keys [n, d] whose types [n] it is to say: logistic regression."""
    mean, spread = keys.mean(0), keys.std(0).clamp_min(1e-6)
    scaled = torch.cat(((keys - mean) / spread, torch.ones(len(keys), 1)), dim=1)
    weights = torch.zeros(scaled.shape[1], 3, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        total = torch.nn.functional.cross_entropy(scaled @ weights, types) + DECAY * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    slope = weights.detach()[:-1] / spread[:, None]
    return torch.cat((slope, weights.detach()[-1:] - mean[None] @ slope))


@measure("nats", cost=454)
def measured_nats(material: Material, progress: Progress) -> Found:
    """Heads that tell how long a token is needed, fitted to attention (NAtS)."""
    return {}, token_types(material.model, material.documents)
