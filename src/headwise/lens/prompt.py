"""A prompt and the token that a model says next: what explanations ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from headwise.attention.byproducts import row_lse
from headwise.calibrate.subject import model_of
from headwise.errors import ContextError, HeadwiseError
from headwise.observe import LayerAttention, Subject
from headwise.seams.transformers.cache import PreTrainedModel

READ = 4096  # tokens of prompts that are read at once
BLOCK = 256  # queries whose attention is held at once


@dataclass(frozen=True, eq=False)
class Prompt:
    """Tokens `ids [1, n]` that a model reads, and the token that is explained: the one that it says next.

    blank: the token that stands in the place of one that is taken away. seed: of whatever is drawn by chance.
    """

    subject: Subject
    ids: torch.Tensor
    target: int
    blank: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or len(self.ids) != 1 or self.ids.shape[1] < 2:
            raise HeadwiseError(f"a prompt is ids [1, n] of 2 tokens or more, got {list(self.ids.shape)}")
        if self.tokens > (most := self.subject.geometry.max_positions):
            raise ContextError(f"the prompt has {self.tokens} tokens, the model was trained on {most}; give fewer")
        for name, token in (("target", self.target), ("blank", self.blank)):
            if not 0 <= token < self.subject.vocabulary:
                raise HeadwiseError(f"{name}={token} is no token; there are 0 to {self.subject.vocabulary - 1}")

    @property
    def tokens(self) -> int:
        """Its length."""
        return self.ids.shape[1]

    @property
    def model(self) -> PreTrainedModel:
        """The model that is asked."""
        return model_of(self.subject)

    def without(self, taken: torch.Tensor) -> torch.Tensor:
        """Prompts [b, n] whose tokens of a bool mask `taken [b, n]` are blank."""
        return self.ids.cpu().masked_fill(taken.cpu(), self.blank)

    @torch.no_grad()
    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits [b, vocabulary] after prompts `rows [b, n]`, a few of them read at once."""
        return torch.cat([
            self.model(part.to(self.subject.device), use_cache=False, logits_to_keep=1).logits[:, -1].float().cpu()
            for part in rows.split(max(1, READ // self.tokens))
        ])  # fmt: skip

    def likelihood(self, rows: torch.Tensor) -> torch.Tensor:
        """The log-probability [b] of the explained token after prompts `rows [b, n]`, in nats."""
        return self.logits(rows).log_softmax(-1)[:, self.target]

    @cached_property
    def layers(self) -> list[LayerAttention]:
        """What each layer attends with while the prompt is read, in order."""
        found: list[LayerAttention] = []

        def attention(one: LayerAttention) -> torch.Tensor:
            found.append(replace(one, q=one.q.detach(), k=one.k.detach(), v=one.v.detach()))
            return one.full()

        with torch.no_grad():
            self.subject.hidden(self.ids.to(self.subject.device), torch.tensor([self.tokens - 1]), attention)
        return found

    def gradients(self, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the explained token's log-probability: gradients [b, n, width] by the tokens' embeddings, at embeddings
        multiplied by each of `scales [b]`; and the embeddings [n, width] themselves."""
        embedded: list[torch.Tensor] = []

        def hand_in(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            embedded.append(output.detach())
            embedded.append((output.detach() * scales.to(output)[:, None, None]).requires_grad_())
            return embedded[-1]

        rows = self.ids.to(self.subject.device).expand(len(scales), -1)
        with torch.enable_grad(), _hooked(self.model.get_input_embeddings(), hand_in):
            logits = self.model(rows, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            told = logits.log_softmax(-1)[:, self.target].sum()
            (found,) = torch.autograd.grad(told, embedded[1])
        return found.float().cpu(), embedded[0][0].float().cpu()


@contextmanager
def _hooked(module: torch.nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Within, a hook has the last word on what a module gives."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def attention_rows(one: LayerAttention, start: int, stop: int) -> torch.Tensor:
    """What the queries from `start` to `stop` give to each token, the mean over heads, float32 [stop - start, n].
    Where a sink gets a share, rows sum to less than 1."""
    q, k = one.q[0].float().unflatten(0, (one.k.shape[1], -1)), one.k[0].float()
    scores = one.scoring.capped(q[:, :, start:stop] @ k[:, None].transpose(2, 3) * one.scoring.scale)
    tokens = k.shape[1]
    seen = one.where.rows(start, stop, tokens, tokens, k.device)[:, None]
    lse = row_lse(q, k, one.where, one.scoring)[:, :, start:stop, None]
    return (scores - lse).exp().masked_fill(~seen, 0.0).flatten(0, 1).mean(0)
