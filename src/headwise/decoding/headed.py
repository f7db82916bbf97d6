"""Drafting heads at work: trees of guesses from the model's last state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from headwise.decoding.base import Draft, Proposer, Written
from headwise.decoding.heads.base import Carry, Trained, best_tree
from headwise.seams.transformers.attach import attach_any


class Headed(Proposer):
    """Guesses by trained heads, as the tree of `nodes` guesses that hit most often where they were measured."""

    def __init__(self, model: Any, kind: str, path: Path, nodes: int) -> None:
        self.trained = Trained.load(path, kind, model, attach_any(model).fingerprint)
        self.device = model.device
        self.tree = best_tree(self.trained.hits, nodes)
        self.reads_states = self.trained.heads.sees

    def propose(self, written: Written) -> Draft:
        if written.states is None:
            return Draft()
        with torch.no_grad():
            states, following = written.states.float(), written.ids[-len(written.states) :]
            encoded = None if written.encoded is None else written.encoded.float()
            carry = self.trained.heads.begin(states, following, torch.tensor([len(states) - 1]), encoded)
            return self._guessed(carry, int(following[-1]))

    def _guessed(self, carry: Carry, newest: int) -> Draft:
        """The tree after a text whose last token is `newest`, from what its guesses begin with; a depth at a time."""
        heads, tokens = self.trained.heads, [0] * len(self.tree)
        level = [-1]  # nodes of a depth whose guesses are to be made; -1 is the text itself
        for place in range(heads.depth):
            inner = [row for row, node in enumerate(level) if any(parent == node for parent, _ in self.tree)]
            if not inner:
                break
            level, carry = [level[row] for row in inner], carry[inner]
            last = torch.tensor([newest if node < 0 else tokens[node] for node in level])
            out, carry = heads.step(place, carry, last.to(self.device))
            widest = 1 + max(rank for parent, rank in self.tree if parent in level)
            best = heads.words(place, out).topk(widest).indices.tolist()
            rows = {node: row for row, node in enumerate(level)}
            level = [node for node, (parent, _) in enumerate(self.tree) if parent in rows]
            for node in level:
                parent, rank = self.tree[node]
                tokens[node] = best[rows[parent]][rank]
            carry = carry[[rows[self.tree[node][0]] for node in level]]
        return Draft(tokens, parents=[parent for parent, _ in self.tree])
