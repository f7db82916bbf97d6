"""Selections that read what a half-space of keys reports: those whose score with a query reaches a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.methods.ball_tree import LEAF, BallTree
from headwise.methods.select import Select, stamp


@dataclass(frozen=True)
class HalfSpaced(Select):
    """Base of the methods that read what a half-space reports. The budget sets the threshold: as many keys as it counts
    would reach it if scores were Gaussian, with the mean and covariance of the keys in the tree."""

    noted = {"leaves": "int n n", "centres": "n d", "radii": "n", "mean": "d", "spread": "d d", "end": "int"}

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """A tree of all stored keys, at first and again where a quarter as many came since; until then these are
        compared one by one."""
        end = view.memory.recall("end")
        stale = end is None or view.seen > int(end[0]) + max(4 * LEAF, int(end[0]) // 4)
        return self._planted(view) if stale else {}

    def _planted(self, view: View) -> dict[str, Sequence[torch.Tensor]]:
        keys = view.keys.float()
        trees = [BallTree.of(own) for own in keys]
        centred = keys - keys.mean(1, keepdim=True)
        return {
            "leaves": [own[tree.leaves].long() for own, tree in zip(view.positions, trees, strict=True)],
            "centres": [tree.centres for tree in trees],
            "radii": [tree.radii for tree in trees],
            "mean": list(keys.mean(1)),
            "spread": list(centred.mT @ centred / view.count),
            "end": stamp(view),
        }

    def told(self, view: View) -> dict[str, Sequence[torch.Tensor]]:
        """The notes, by name and head."""
        found = {name: view.memory.recall(name) for name in self.noted}
        noted: dict[str, Sequence[torch.Tensor]] = {name: one for name, one in found.items() if one is not None}
        return noted if len(noted) == len(found) else self._planted(view)

    def least(self, view: View, told: Mapping[str, Sequence[torch.Tensor]]) -> torch.Tensor:
        """The threshold of each query for its products, float64 [h, g * t]."""
        queries = view.queries.double().flatten(1, 2)
        mean, spread = (torch.stack(tuple(told[name])).double() for name in ("mean", "spread"))
        share = self.amount.tokens_of(view.count) / view.count
        beyond = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share, dtype=torch.float64)))
        deviation = ((queries @ spread) * queries).sum(-1).clamp(min=0).sqrt()
        return (queries @ mean[..., None])[..., 0] + beyond * deviation

    def reported(self, view: View) -> list[torch.Tensor]:
        """The stored keys of each head that reach the threshold of one of its queries, and those always read."""
        told, found = self.told(view), self.protect(view)
        for head, (own, least) in enumerate(zip(found, self.least(view, told), strict=True)):
            tree = BallTree(*(told[name][head] for name in ("leaves", "centres", "radii")))
            queries, positions = view.queries[head].float().flatten(0, 1), view.positions[head].long()
            sure, open_, _ = tree.reaching(queries, least.float())
            inside, asked = torch.zeros(2, view.seen, dtype=torch.bool, device=queries.device)
            inside[tree.leaves[sure]] = True
            asked[tree.leaves[open_]] = True
            asked[int(told["end"][head]) :] = True
            entries = asked[positions].nonzero()[:, 0]
            own |= inside[positions]
            own[entries] |= (queries @ view.keys[head, entries].float().T >= least[:, None]).any(0)
        return [own.nonzero()[:, 0] for own in found]

    def plain_reported(self, view: View) -> list[torch.Tensor]:
        """The same with one key at a time and no tree."""
        lists, told = [], self.told(view)
        for h, (always, least) in enumerate(zip(self.protect(view).tolist(), self.least(view, told), strict=True)):
            passes = []
            for key in view.keys[h].double():
                products = [float(query @ key) for query in view.queries[h].double().flatten(0, 1)]
                passes.append(any(one >= bar for one, bar in zip(products, least.tolist(), strict=True)))
            read = [j for j, one in enumerate(passes) if one or always[j]]
            lists.append(torch.tensor(read, dtype=torch.int64))
        return lists
