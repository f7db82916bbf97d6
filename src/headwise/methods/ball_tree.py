"""A ball tree over the keys of a head, which tells those whose product with a query reaches a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

LEAF = 16  # keys of a leaf, at most
SLACK = 1.0001  # of a ball's reach, so that rounding leaves out no key


@dataclass(frozen=True)
class BallTree:
    """A full binary tree of balls around keys.

    leaves: which keys lie in each leaf, int64 [leaves, m], the last one again where leaves are not full. centres and
    radii: of every node, level by level from the root, [2 leaves - 1, d] and [2 leaves - 1].
    """

    leaves: torch.Tensor
    centres: torch.Tensor
    radii: torch.Tensor

    @classmethod
    def of(cls, keys: torch.Tensor) -> BallTree:
        """Of keys [n, d]: each node is cut in two halves along the line through two keys of it that lie far apart."""
        depth = max(0, math.ceil(math.log2(len(keys) / LEAF)))
        order = torch.arange(-(-len(keys) >> depth) << depth, device=keys.device).clamp(max=len(keys) - 1)
        centres, radii = [], []
        for level in range(depth + 1):
            nodes = order.view(1 << level, -1)
            points = keys[nodes]
            centre = points.mean(1, keepdim=True)
            far = (points - centre).norm(dim=-1)
            centres.append(centre[:, 0])
            radii.append(far.amax(1))
            one = _of_each(points, far.argmax(1))
            other = _of_each(points, (points - one).norm(dim=-1).argmax(1))
            order = nodes.gather(1, (points * (other - one)).sum(-1).argsort(1)) if level < depth else nodes
        return cls(order, torch.cat(centres), torch.cat(radii))

    def reaching(self, queries: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Leaves all of whose keys reach `least [r]` with one of the queries [r, d], bool [leaves]; those of which some
        key may, int64; and how many balls were compared."""
        depth, lengths, compared = (len(self.leaves) - 1).bit_length(), queries.norm(dim=1, keepdim=True), 0
        sure = torch.zeros(len(self.leaves), dtype=torch.bool, device=queries.device)
        open_ = torch.zeros(1, dtype=torch.int64, device=queries.device)
        for level in range(depth + 1):
            node = open_ + (1 << level) - 1
            middle, reach = queries @ self.centres[node].T, lengths * self.radii[node] * SLACK
            inside = (middle - reach >= least[:, None]).any(0)
            outside = (middle + reach < least[:, None]).all(0)
            sure.view(1 << level, -1)[open_[inside]] = True
            open_, compared = open_[~(inside | outside)], compared + len(node)
            if level < depth:
                open_ = torch.stack((2 * open_, 2 * open_ + 1), 1).flatten()
        return sure, open_, compared


def _of_each(points: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The point at `index [nodes]` of each node of points [nodes, m, d]: [nodes, 1, d]."""
    return points[torch.arange(len(points), device=points.device), index][:, None]
