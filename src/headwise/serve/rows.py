"""How many rows a forward may have so that what comes out of one row does not depend on the others, of a step and of a
prompt.

A product of matrices adds its terms in an order that its number of rows decides, so that a row's last bits change with
what is computed beside it: torch's float32 products of one row and of two differ, the native kernels' bfloat16 ones of
two rows and of three. Where a later token is a near tie, that is another answer. So forwards keep to numbers of rows
among which the sums are the same, bit for bit, as found by trying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headwise.errors import SessionError
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import prefill, state_pieces
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.together import step_together

MOST = 16  # rows whose logits the native linear kernel computes; beyond them torch does, in other orders
TOKENS = 3  # of the shortest prompt of the trial
JOINED = 4  # pieces of a prompt that one forward reads at most


@dataclass(frozen=True)
class Rows:
    """A forward has `least` to `most` rows, idle ones included: among these a row's logits are the same."""

    least: int
    most: int


@torch.no_grad()
def steady_drafts(model: PreTrainedModel, rows: Rows) -> bool:
    """Whether a pass over guesses, each of which reads by itself, gives the logits of single steps, bit for bit, and
    leaves what they leave; tried for one token drafted, and for as many as there are."""
    cache = Cache(model)
    try:
        cache.refuse_drafts()
    except SessionError:
        return False
    drawn = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.get_text_config(decoder=True).vocab_size, (1, TOKENS + MOST + 1), generator=drawn)
    prefill(model, cache, ids[:, :TOKENS].to(model.device), None)

    def alike(size: int) -> bool:
        one, other = cache.fork(), cache.fork()
        told = ids[:, TOKENS : TOKENS + size]
        steps = torch.cat([step_together(model, [one], [token], rows.least) for token in told[0].tolist()])
        with other.drafted(singly=True):
            passed = forward(model, other, told.to(model.device)).logits[0]
        other.accept(range(size))
        last = [step_together(model, [which], [int(ids[0, -1])], rows.least) for which in (one, other)]
        return torch.equal(steps, passed) and torch.equal(*last)

    return rows.most > 1 and alike(max(2, rows.least)) and alike(rows.most)


def steady_rows(model: PreTrainedModel, most: int = MOST) -> Rows:
    """The widest range of rows up to `most` among which decoding steps of `model` give every row the same logits, bit
    for bit, wherever in the batch it stands; found by a few dozen steps.

    One row where the model cannot read texts of different lengths in one forward.
    """
    cache = Cache(model)
    if cache.seam.rope_switch is not None or any(layer.chunked for layer in cache.seam.geometry.layers):
        return Rows(1, 1)
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config(decoder=True).vocab_size, (most, TOKENS + most), generator=drawn)
    caches = [Cache(model) for _ in range(most)]
    for row, one in enumerate(caches):
        prefill(model, one, ids[row : row + 1, : TOKENS + row].to(model.device), None)

    def logits(chosen: Sequence[int]) -> torch.Tensor:
        """Of a step of these lanes, by lane."""
        out = step_together(model, [caches[one].fork() for one in chosen], [int(ids[one, -1]) for one in chosen])
        return out[torch.tensor(chosen).argsort()]

    whole = logits(range(most))
    if not torch.equal(whole, logits(range(most - 1, -1, -1))):
        return Rows(1, 1)
    alike = [torch.equal(logits(range(rows)), whole[:rows]) for rows in range(1, most)]
    least = max((rows + 1 for rows, same in enumerate(alike, 1) if not same), default=1)
    return Rows(least, most)


def steady_pieces(model: PreTrainedModel, piece: int, most: int = JOINED) -> int:
    """How many pieces of a prompt, of `piece` tokens each, one forward may read: `most` where the model's trained
    positions take them, all rotated alike, and that gives every token the same states, bit for bit, as a forward a
    piece does; else one.

    What others had read of a prompt is then gone on from wherever it ends, and nothing shows where it was cut.
    """
    tokens, seam = most * piece, Cache(model).seam
    longest = min(seam.geometry.max_positions, seam.rope_switch or seam.geometry.max_positions)
    if tokens > longest or model.base_model is model:  # of a model without such a part its states cannot be asked
        return 1
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config(decoder=True).vocab_size, (1, tokens), generator=drawn)

    def states(pieces: int) -> torch.Tensor:
        """Of every token of a prompt whose forwards read so many together."""
        cuts = ids.to(model.device).split(pieces * piece, dim=1)
        return torch.cat(list(state_pieces(model, Cache(model), cuts)))

    return most if torch.equal(states(1), states(most)) else 1
