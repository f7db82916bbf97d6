"""A slow model of what a session keeps: lists of positions, and every key and value there ever was, in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from headwise.engine.group import Group
from headwise.engine.session import Session
from tests.contract.drive import SCALE


def is_plain(group: Group) -> bool:
    """Whether what the group reads is softmax attention over what it holds: nothing skips, rounds or rewrites it."""
    recipe = group.recipe
    if any(part is not None for part in (recipe.prefill, recipe.compress, recipe.select, recipe.steer)):
        return False
    return recipe.evict is None or not (recipe.evict.leaves_mean or recipe.evict.name == "cam")


class Kept:
    """By layer and row: keys [h, n, d] and values [h, n, e] of all tokens, and by lane the positions that are kept."""

    def __init__(self, session: Session) -> None:
        shapes, rows = session.plan.geometry.layers, range(session.rows)
        self.windows = session.plan.geometry.windows
        self.keys = [[torch.zeros(one.kv_heads, 0, one.key_width) for _ in rows] for one in shapes]
        self.values = [[torch.zeros(one.kv_heads, 0, one.value_width) for _ in rows] for one in shapes]
        self.positions = [[[[] for _ in range(one.kv_heads)] for _ in rows] for one in shapes]

    def fork(self) -> Kept:
        """An independent copy."""
        return copy.deepcopy(self)

    def select(self, rows: Sequence[int]) -> None:
        """Row i is now what row rows[i] was."""
        for held in (self.keys, self.values, self.positions):
            held[:] = [[copy.deepcopy(layer[row]) for row in rows] for layer in held]

    def truncate(self, limits: Sequence[int]) -> None:
        """Tokens from limits[row] on have never come."""
        for layer in range(len(self.keys)):
            for row, limit in enumerate(limits):
                self.keys[layer][row] = self.keys[layer][row][:, :limit]
                self.values[layer][row] = self.values[layer][row][:, :limit]
                self.positions[layer][row] = [[p for p in one if p < limit] for one in self.positions[layer][row]]

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor, live: Sequence[int]) -> None:
        """New k [b, h, t, d] and v [b, h, t, e] of a layer, of which the last live[row] are tokens."""
        for row, count in enumerate(live):
            new = slice(k.shape[2] - count, None)
            before = self.keys[layer][row].shape[1]
            self.keys[layer][row] = torch.cat((self.keys[layer][row], k[row, :, new]), dim=1)
            self.values[layer][row] = torch.cat((self.values[layer][row], v[row, :, new]), dim=1)
            for one in self.positions[layer][row]:
                one += range(before, before + count)

    def reads(self, layer: int, row: int, head: int, q: torch.Tensor) -> torch.Tensor:
        """What the newest t queries [g, t, d] of a lane read of what it holds: [g, t, e]."""
        held = torch.tensor(self.positions[layer][row][head])
        k, v = self.keys[layer][row][head, held].double(), self.values[layer][row][head, held].double()
        at = self.keys[layer][row].shape[1] - q.shape[1] + torch.arange(q.shape[1])
        sees = held <= at[:, None]
        if (window := self.windows[layer]) is not None:
            sees &= held > at[:, None] - window
        scores = (q.double() @ k.T * SCALE).masked_fill(~sees, float("-inf"))
        return scores.softmax(-1) @ v

    def check_outputs(
        self, session: Session, layer: int, q: torch.Tensor, out: torch.Tensor, live: Sequence[int]
    ) -> None:
        """Outputs [b, H, t, e] of the groups that read all they hold are what a slow reading gives; padding gives 0."""
        grouped_q, grouped = (x.unflatten(1, (len(self.positions[layer][0]), -1)) for x in (q, out))
        for group in session.layers[layer]:
            for row, count in enumerate(live):
                assert not grouped[row, list(group.heads), :, : q.shape[2] - count].any(), "padding reads something"
                for head in group.heads if is_plain(group) and count else ():
                    want = self.reads(layer, row, head, grouped_q[row, head, :, -count:])
                    have = grouped[row, head, :, -count:].double()
                    torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)

    def check_kept(self, session: Session) -> None:
        """What every lane stores it stored before or was just given, each once; then that is what is kept."""
        for layer, rows in enumerate(self.positions):
            for row, heads in enumerate(rows):
                for head, allowed in enumerate(heads):
                    have = session.positions(layer, row, head).tolist()
                    assert have == sorted(set(have)), f"layer {layer}, row {row}, head {head}: {have}"
                    assert set(have) <= set(allowed), f"layer {layer}, row {row}, head {head}: {have} of {allowed}"
                    heads[head] = have
            for group in session.layers[layer]:
                if group.recipe.evict is None and self.windows[layer] is None:
                    assert all(
                        heads[head] == list(range(session.seen[row]))
                        for row, heads in enumerate(rows)
                        for head in group.heads
                    ), f"layer {layer}: a dense head lost tokens"
