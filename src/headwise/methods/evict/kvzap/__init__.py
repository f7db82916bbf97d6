"""KVzip's score without reading twice: a linear map, fitted to the model, foretells it from the key and the value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.methods.evict import Evict
from headwise.registry import CalibrationTensor, Card, register


@register("evict", "kvzap")
@dataclass(frozen=True)
class KVzap(Evict):
    """Foretells the logarithm of the most attention that a repetition of the prompt would give a token, by a linear map
    of its key before rotation, its value and the lengths of both. Neither a query nor a second reading is needed, and
    tokens that the model writes are judged alike.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    """

    needs = frozenset({"keys", "values", "rope", "calibration"})
    calibrates = {
        "key": CalibrationTensor("d", "what each channel of the key before rotation adds", "kvzap"),
        "value": CalibrationTensor("e", "what each channel of the value adds", "kvzap"),
        "rest": CalibrationTensor("3", "what the lengths of key and value add, and what is added always", "kvzap"),
    }
    card = Card(
        title="KVzap",
        paper="KVzap: Fast, Adaptive, and Faithful KV Cache Pruning, arXiv 2601.07891",
        calibrated=True,
        frees_memory=True,
        chunking="exact",
        forgets="tokens that a repetition of the text would not look at, as far as their key and value tell",
        deviations="reads the key and the value that are stored, where the paper reads the hidden state; a linear map, "
        "fitted by least squares on the model itself (`headwise calibrate`), where the paper also has a network of two "
        "layers; foretells KVzip's score, not that of KVzip+ (of 600 tokens of other text than it was fitted to, 75 % "
        "of the 240 that KVzip keeps); a budget, and no threshold (kvpress's DMSPress); the published maps are for "
        "other models and read what is not stored; without a calibration the shortest keys stay, as `l2norm` has it",
    )

    def score(self, view: View) -> torch.Tensor:
        """The foretold logarithm [h, n]."""
        keys, values = view.keys.float(), view.values.float()
        if not self.calibrates.keys() <= view.calibration.keys():
            return -keys.norm(dim=-1)
        key, value, rest = (view.calibration[name].float() for name in self.calibrates)
        lengths = keys.norm(dim=-1) * rest[:, :1] + values.norm(dim=-1) * rest[:, 1:2] + rest[:, 2:]
        if view.rope is not None:
            keys = view.rope.unrotate(keys, view.positions)
        return (keys @ key[..., None])[..., 0] + (values @ value[..., None])[..., 0] + lengths

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        rows = []
        for h in range(len(view.heads)):
            row = []
            for key, value, place in zip(view.keys[h], view.values[h], view.positions[h], strict=True):
                score = -float(key.double().norm())
                if self.calibrates.keys() <= view.calibration.keys():
                    turned = key if view.rope is None else view.rope.unrotate(key[None], place[None])[0]
                    told = torch.cat((turned, value, key.norm()[None], value.norm()[None], torch.ones(1))).double()
                    score = float(told @ torch.cat([view.calibration[x][h] for x in self.calibrates]).double())
                row.append(score)
            rows.append(row)
        return torch.tensor(rows, dtype=torch.float64)
