"""How long the tokens of a document were needed by what a model attends to: what NAtS's heads are taught."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask, enough
from headwise.methods.roles import GLOBAL, LOCAL, NEAR
from headwise.observe import Observer

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
