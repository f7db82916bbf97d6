"""One forward over the newest tokens of several caches: what a model does row by row is done for all of them at once,
and attention, of each cache over its own, by one call of a kernel a layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from transformers import PreTrainedModel

from headwise.engine.abreast import step_abreast
from headwise.errors import SessionError
from headwise.seams.transformers.chain import Waiter
from headwise.seams.transformers.door import Door, forget
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked
from headwise.seams.transformers.session_door import SessionDoor


class Together(Door):
    """A door to several caches of one model, each of one row, whose rows a forward reads as one batch; the caches may
    follow other plans and have passed other numbers of tokens. Rows after theirs are idle: they are computed, and
    attend to nothing.

    SessionError for a cache that is empty, holds several rows, or comes twice, and for layers that pass a state on,
    which are not asked row by row.
    """

    def __init__(self, caches: Sequence[SessionDoor]) -> None:
        if len({id(one) for one in caches}) < len(caches):
            raise SessionError("a cache was given twice for one forward; give each once, or a fork of it")
        for one in caches:
            if one.batch_size != 1:
                raise SessionError(
                    f"a cache of {max(0, one.batch_size)} rows cannot go with others; give caches of one row each, "
                    "whose prompts were read"
                )
        geometry = caches[0].seam.geometry
        if passing := sum(map(bool, geometry.states)):
            raise SessionError(
                f"{passing} of the model's {len(geometry.layers)} layers pass on a state, which several sequences "
                "cannot do in one forward yet; run them one by one, by `headwise run`, `chat` or generate()"
            )
        if (why := caches[0].seam.by_itself) is not None:
            raise SessionError(f"{why}: the model attends by itself, to one cache at a time; run them one by one")
        self.caches, self.windows, self.lending = tuple(caches), caches[0].windows, caches[0].lending
        first = caches[0]
        if first.abreast is None or not first.abreast.is_of(caches):
            first.abreast = Waiter(caches, a_row_each=True)
        self.waiter: Waiter = first.abreast

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """One layer: row i of q [b, H, t, d] over what cache i holds and its own new tokens -> [b, H, t, e]."""
        sessions = [
            one.at(layer, q[row : row + 1], k[row : row + 1], None, asked) for row, one in enumerate(self.caches)
        ]
        return _beside_idle(step_abreast(sessions, layer, q, k, v, asked.scoring), q.shape[0])

    def follow(
        self, layer: int, source: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked
    ) -> torch.Tensor:
        """One layer that reads what layer `source` stores, as `attend`."""
        rows = [slice(row, row + 1) for row in range(len(self.caches))]
        parts = [
            one.follow(layer, source, q[row], k[row], v[row], asked) for row, one in zip(rows, self.caches, strict=True)
        ]
        return _beside_idle(torch.cat(parts), q.shape[0])

    def get_seq_length(self, layer_idx: int = 0, cache_position: object = None) -> int:
        """Tokens passed, where all caches have passed as many; else that of the longest before the first layer, where
        transformers asks for what the given positions tell anyway, and no answer later."""
        passed = {one.get_seq_length(layer_idx) for one in self.caches}
        if len(passed) > 1 and layer_idx:
            raise SessionError(
                f"layer {layer_idx} of this model asks how long its text is, which is {min(passed)} to {max(passed)} "
                "tokens here; let these caches go on one by one"
            )
        return max(passed)

    def reads(self, ids: torch.Tensor | None) -> None:
        """A forward begins: each cache is told of its own row."""
        self.waiter.forget()
        for row, one in enumerate(self.caches):
            one.reads(None if ids is None else ids[row : row + 1])

    def succeeded(self, model: torch.nn.Module) -> None:
        """A forward of `model` has succeeded."""
        self.waiter.refuse_waiting()
        for one in self.caches:
            one.succeeded(model)

    def abort(self) -> None:
        """After an error anywhere in a forward: every cache is as it was before it."""
        forget()
        self.waiter.forget()
        with ExitStack() as all_of_them:  # where one cannot go back, the others still do
            for one in self.caches:
                all_of_them.callback(one.abort)


def step_together(
    model: PreTrainedModel, caches: Sequence[SessionDoor], tokens: Sequence[int], rows: int | None = None
) -> torch.Tensor:
    """Let every cache read its next token in one forward of `rows` rows (None: of as many as there are caches); logits
    [caches, vocab] after them. When it fails, all caches are as they were before.

    Rows beyond the caches are idle. With them a row's sums can be made alike whatever is read beside it, see
    `headwise.serve.rows`.
    """
    idle = max(0, (rows or 0) - len(caches))
    together = Together(caches)
    device = model.device
    ids = torch.tensor([*tokens, *[tokens[0]] * idle], device=device)[:, None]
    passed = [one.get_seq_length() for one in caches]
    positions = torch.tensor([*passed, *passed[:1] * idle], device=device)[:, None]
    try:
        with torch.no_grad():
            logits: torch.Tensor = forward(model, together, ids, position_ids=positions, logits_to_keep=1).logits
    except BaseException:
        together.abort()
        raise
    return logits[: len(caches), -1]


def _beside_idle(out: torch.Tensor, rows: int) -> torch.Tensor:
    """What each cache's row came to, out [caches, H, t, e], with idle rows behind them: [rows, H, t, e]."""
    idle = rows - len(out)
    return torch.cat((out, out[:1].expand(idle, -1, -1, -1))) if idle else out
