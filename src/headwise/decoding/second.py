"""A model that guesses over a cache of its own: the same one under a cheaper recipe, or a smaller one."""

from __future__ import annotations

import torch

from headwise.choose import likeliest
from headwise.decoding.base import Draft, Proposer, Written
from headwise.engine.drafted import refuse_states, refuse_whole
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.drive import feed


class Second(Proposer):
    """Goes on with each row by `tokens` guesses of `model`, over a cache under `recipe` that has read the same text.

    What was guessed wrong is cut off again. Tokens that an eviction has dropped meanwhile do not return, which costs
    guesses and no exactness. SessionError for a model that cannot go back, and a recipe that takes whole prompts alone.
    """

    def __init__(self, model: PreTrainedModel, recipe: Recipe, tokens: int) -> None:
        refuse_states(attach(model).geometry)
        refuse_whole([recipe])
        self.model, self.recipe, self.tokens = model, recipe, tokens
        self._caches: dict[int, Cache] = {}
        self._read: dict[int, torch.Tensor] = {}  # by row, the ids that its cache has read

    def propose(self, written: Written) -> Draft:
        ids, most = written.ids, min(self.tokens, written.most)
        longest = self.model.config.get_text_config().max_position_embeddings
        if len(ids) + most > longest:
            return Draft()
        logits = self._catch_up(written.row, ids)
        cache, tokens, rows = self._caches[written.row], list[int](), list[torch.Tensor]()
        while True:
            if written.distribution is None:
                tokens.append(likeliest(logits))
            else:
                now = torch.cat((ids, ids.new_tensor(tokens)))[None]
                rows.append(written.distribution(now, logits)[0])
                tokens.append(int(torch.multinomial(rows[-1], 1)))
            if len(tokens) == most:
                break
            logits = feed(self.model, cache, ids.new_tensor([tokens[-1:]])).float()
        self._read[written.row] = torch.cat((ids, ids.new_tensor(tokens[:-1])))
        return Draft(tokens, torch.stack(rows) if rows else None)

    def _catch_up(self, row: int, ids: torch.Tensor) -> torch.Tensor:
        """Let the row's cache have read `ids [n]`; the logits [1, vocab] after them."""
        read, cache = self._read.get(row), self._caches.get(row)
        if read is None or cache is None:
            cache, same = Cache(self.model, self.recipe), 0
            self._caches[row] = cache
        else:
            size = min(len(read), len(ids) - 1)
            same = int((read[:size] == ids[:size]).long().cumprod(0).sum())
            if same < len(read):
                cache.truncate(same)
        return feed(self.model, cache, ids[None, same:]).float()
