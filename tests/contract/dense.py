"""The truth that sessions are held to: masked softmax attention over all tokens, one head at a time, in float64."""

from __future__ import annotations

import itertools

import torch

from headwise.recipe import Recipe
from tests.contract.drive import SCALE, Text


def attention(text: Text, start: int, visible: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Outputs [L, b, H, t, e] of the queries from `start` on, each reading the tokens that `visible` shows.

    visible: bool [L, b, h, t, T], broadcastable. bias: added to the scores, [L, b, H, t, T]. Always causal.
    """
    layers, rows, heads, total, _ = text.k.shape
    group = text.q.shape[2] // heads
    count = total - start
    visible = visible.expand(layers, rows, heads, count, total)
    causal = torch.ones(count, total, dtype=torch.bool).tril(start)
    out = torch.zeros(layers, rows, heads * group, count, text.v.shape[-1], dtype=torch.float64)
    for layer in range(layers):
        for row in range(rows):
            for head in range(heads * group):
                q, k = text.q[layer, row, head, start:], text.k[layer, row, head // group]
                scores = q.double() @ k.double().T * SCALE
                scores = scores if bias is None else scores + bias[layer, row, head].double()
                hidden = ~(visible[layer, row, head // group] & causal)
                weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
                out[layer, row, head] = weights @ text.v[layer, row, head // group].double()
    return out


def all_causal(text: Text, start: int = 0) -> torch.Tensor:
    """Dense causal outputs from `start` on."""
    return attention(text, start, torch.ones(1, dtype=torch.bool))


def as_stored(text: Text, recipe: Recipe, settled: int, stored: list[list[list[list[int]]]] | None = None) -> Text:
    """The text as its cache reads it back under the recipe's codecs, by their slow truth.

    settled: tokens that were there when the cache was last brought to its plan. stored: positions that each layer, row
    and head holds, all of them by default; the others are left as they are.
    """
    if recipe.compress is None:
        return text
    keys, values = text.k.clone(), text.v.clone()
    for place in itertools.product(*map(range, text.k.shape[:3])):
        layer, row, head = place
        held = list(range(text.k.shape[3])) if stored is None else stored[layer][row][head]
        keys[place][held], values[place][held] = recipe.compress.plain(
            text.k[place][held], text.v[place][held], held, settled
        )
    return Text(text.q, keys, values)


def showing(positions: list[list[list[list[int]]]], total: int) -> torch.Tensor:
    """Bool [L, b, h, 1, total]: the stored positions of each layer, row and head, drawn."""
    shape = (len(positions), len(positions[0]), len(positions[0][0]), 1, total)
    mask = torch.zeros(shape, dtype=torch.bool)
    for layer, of_rows in enumerate(positions):
        for row, of_heads in enumerate(of_rows):
            for head, stored in enumerate(of_heads):
                mask[layer, row, head, 0, stored] = True
    return mask
