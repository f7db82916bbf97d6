"""Drafting heads at work: trees of guesses from the model's last state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.heads.base import Trained, best_tree
from headwise.seams.transformers.cache import attach


class Headed(Proposer):
    """Guesses by trained heads, as the tree of `nodes` guesses that hit most often where they were measured."""

    reads_states = True

    def __init__(self, model: Any, kind: str, path: Path, nodes: int) -> None:
        self.trained = Trained.load(path, kind, model, attach(model).fingerprint)
        self.tree = best_tree(self.trained.hits, nodes)

    def propose(self, written: Written) -> Draft:
        if written.state is None:
            return Draft()
        with torch.no_grad():
            return self._guessed(written.state.float(), int(written.ids[-1]))

    def _guessed(self, state: torch.Tensor, newest: int) -> Draft:
        """The tree after a token, from the state [d] of the one before it; a depth at a time."""
        heads, tokens = self.trained.heads, [0] * len(self.tree)
        carries = {-1: state}
        level = [-1]  # nodes of a depth whose guesses are to be made; -1 is the text itself
        for place in range(heads.depth):
            level = [node for node in level if any(parent == node for parent, _ in self.tree)]
            if not level:
                break
            last = torch.tensor([newest if node < 0 else tokens[node] for node in level], device=state.device)
            out, carry = heads.step(place, torch.stack([carries[node] for node in level]), last)
            widest = 1 + max(rank for parent, rank in self.tree if parent in level)
            best = heads.words(place, out).topk(widest).indices.tolist()
            rows = {node: row for row, node in enumerate(level)}
            level = [node for node, (parent, _) in enumerate(self.tree) if parent in rows]
            for node in level:
                parent, rank = self.tree[node]
                tokens[node], carries[node] = best[rows[parent]][rank], carry[rows[parent]]
        return Draft(tokens, parents=[parent for parent, _ in self.tree])
