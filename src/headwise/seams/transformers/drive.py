"""Running a model over a cache: a long prompt in chunks, a greedy answer, the likelihood of a given continuation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import torch
from torch.nn.functional import cross_entropy, pad

from headwise.choose import likeliest
from headwise.errors import ContextError, SessionError
from headwise.seams.transformers.cache import DECODE_TOKENS, Cache, PreTrainedModel
from headwise.seams.transformers.forward import forward, padding
from headwise.shapes import want

LEAST_CHUNK = 2 * (DECODE_TOKENS + 1)  # half of it, the shortest piece of an even split, is still prompt to the cache
Progress = Callable[[int, int], None]  # tokens done, tokens in all


def prefill(
    model: PreTrainedModel, cache: Cache, ids: torch.Tensor, chunk: int | None = 2048, progress: Progress | None = None
) -> torch.Tensor:
    """Read the prompt `ids [1, n]` in pieces of equal length, at most `chunk` tokens (None: in one pass).

    The cache evicts at the end of every piece, so that no more than its budget and one piece is ever held. Returns the
    logits `[1, vocab]` after the last token. When it fails, a cache that was empty is empty again, and any other is as
    it was before the piece that failed: `get_seq_length` tells how many came before.
    """
    count = want(ids, "b n", b=1)["n"]
    if not count:
        raise ContextError("the prompt is empty; give at least one token")
    if chunk is not None and chunk < LEAST_CHUNK:
        raise SessionError(
            f"a chunk of {chunk} tokens would count as decoding; give at least {LEAST_CHUNK}, or None for one pass"
        )
    before = cache.get_seq_length()
    pieces = ids.tensor_split(1 if chunk is None else -(-count // chunk), dim=1)
    with closing(read_pieces(model, cache, pieces)) as reading:
        for logits in reading:  # noqa: B007 (the last ones are the answer)
            if progress is not None:
                progress(cache.get_seq_length() - before, count)
    return logits


def read_pieces(
    model: PreTrainedModel, cache: Cache, pieces: Sequence[torch.Tensor]
) -> Generator[torch.Tensor, None, None]:
    """Read a prompt in the given pieces `[1, t]`, each when it is asked for: the logits `[1, vocab]` after each.

    When it fails, or is closed before it has ended, an empty cache is empty again, and any other as `prefill` says.
    """
    with closing(score_pieces(model, cache, pieces, 1)) as reading:
        for logits in reading:
            yield logits[-1:]


def score_pieces(
    model: PreTrainedModel, cache: Cache, pieces: Sequence[torch.Tensor], last: int = 0
) -> Generator[torch.Tensor, None, None]:
    """The same with the logits `[t, vocab]` after each of a piece's `last` tokens; 0: after every one."""
    with cache.prompt(cache.get_seq_length() + sum(piece.shape[1] for piece in pieces)):
        for piece in pieces:
            with torch.no_grad():
                logits: torch.Tensor = forward(model, cache, piece, logits_to_keep=last).logits[0]
            yield logits


def state_pieces(
    model: PreTrainedModel, cache: Cache, pieces: Sequence[torch.Tensor]
) -> Generator[torch.Tensor, None, None]:
    """The same with what the output embedding would be given of each of a piece's tokens: the states `[t, width]` after
    the last norm."""
    with cache.prompt(cache.get_seq_length() + sum(piece.shape[1] for piece in pieces)):
        for piece in pieces:
            with torch.no_grad():
                states: torch.Tensor = forward(model.base_model, cache, piece).last_hidden_state[0]
            yield states


def feed(model: PreTrainedModel, cache: Cache, ids: torch.Tensor) -> torch.Tensor:
    """Continue a cache by `ids [1, m]`, in steps small enough to count as decoding; logits `[1, vocab]` after them."""
    if not want(ids, "b m", b=1)["m"]:
        raise ContextError("there is no token to continue with; give at least one")
    if cache.get_seq_length() == 0:
        return prefill(model, cache, ids, None)
    for piece in ids.split(DECODE_TOKENS, dim=1):
        logits = _last_logits(model, cache, piece)
    return logits


def decode(
    model: PreTrainedModel,
    cache: Cache,
    logits: torch.Tensor,
    max_new_tokens: int,
    stop: Callable[[list[int]], bool] | None = None,
) -> torch.Tensor:
    """Greedy continuation `[1, m]` of a cache whose last logits are `logits [1, vocab]`.

    Ends after `max_new_tokens`, with the model's end-of-sequence token, or when `stop` says so of the tokens so far.
    The last token is not fed back, as in transformers' generate.
    """
    new: list[int] = []
    for token in written(model, cache, logits, max_new_tokens):
        new.append(token)
        if stop is not None and stop(new):
            break
    return torch.tensor([new], device=logits.device)


def written(model: PreTrainedModel, cache: Cache, logits: torch.Tensor, max_new_tokens: int) -> Iterator[int]:
    """What `decode` writes, token by token: each is read by the cache only when the next one is asked for."""
    refuse_answer(cache, max_new_tokens)
    ends = end_tokens(model)
    for left in range(max_new_tokens, 0, -1):
        token = likeliest(logits)
        yield token
        if token in ends or left == 1:
            return
        logits = _last_logits(model, cache, torch.tensor([[token]], device=logits.device))


def refuse_answer(cache: Cache, max_new_tokens: int) -> None:
    """Refuse an answer of no token, or of more than fit the trained positions."""
    room = max_new_tokens if cache.plan.longest is None else cache.plan.longest - cache.get_seq_length()
    if max_new_tokens < 1 or max_new_tokens - 1 > room:
        raise ContextError(
            f"max_new_tokens={max_new_tokens}: after {cache.get_seq_length()} tokens, 1 to {room + 1} more fit the "
            f"{cache.seam.geometry.max_positions} positions the model was trained on"
        )


def generate(
    model: PreTrainedModel,
    cache: Cache,
    ids: torch.Tensor,
    max_new_tokens: int,
    stop: Callable[[list[int]], bool] | None = None,
) -> torch.Tensor:
    """`feed` of `ids [1, m]`, then `decode`: the new ids `[1, k]`, an end-of-sequence token included."""
    return decode(model, cache, feed(model, cache, ids), max_new_tokens, stop)


def forced(model: PreTrainedModel, cache: Cache, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Continue a cache by `ids [1, m]`; the logits [p, vocab] after each token, in pieces of p tokens.

    Pieces are small enough to count as decoding, so that selection and later evictions act as while generating.
    """
    for piece in ids.split(DECODE_TOKENS, dim=1) if ids.shape[1] else ():
        with torch.no_grad():
            logits = forward(model, cache, piece).logits[0]
        yield logits


def forced_rows(model: PreTrainedModel, cache: Cache, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Let copies of a cache of one row go on, one by each of `rows [1, m]`, all in one batch: the logits [m, vocab]
    after each one's tokens. The cache holds as many rows afterwards."""
    cache.batch_repeat_interleave(len(rows))
    session = cache.session
    assert session is not None, "it was repeated"
    longest, found = max(row.shape[1] for row in rows), [list[torch.Tensor]() for _ in rows]
    ids = torch.cat([pad(row, (longest - row.shape[1], 0)) for row in rows])
    for start in range(0, longest, DECODE_TOKENS):
        piece = ids[:, start : start + DECODE_TOKENS]
        live = [min(max(start + piece.shape[1] - (longest - row.shape[1]), 0), piece.shape[1]) for row in rows]
        with torch.no_grad():
            logits = forward(model, cache, piece, **padding(session, live, piece.shape[1])).logits
        for row, count in enumerate(live):
            found[row].append(logits[row, piece.shape[1] - count :])
    return [torch.cat(pieces) for pieces in found]


def continuation_nll(model: PreTrainedModel, cache: Cache, ids: torch.Tensor) -> tuple[float, int]:
    """Negative log likelihood, in nats, of `ids [1, m]` after the cache, and of how many tokens: all but the first.

    Teacher-forced, see `forced`.
    """
    count = want(ids, "b m", b=1)["m"] - 1
    if count < 1:
        raise ContextError(f"a continuation needs at least 2 tokens, got {count + 1}; give a longer text")
    total, scored = 0.0, 0
    for logits in forced(model, cache, ids[:, :-1]):
        targets = ids[0, 1 + scored : 1 + scored + len(logits)]
        total += float(cross_entropy(logits.float(), targets, reduction="sum"))
        scored += len(logits)
    return total, count


def _last_logits(model: PreTrainedModel, cache: Cache, ids: torch.Tensor) -> torch.Tensor:
    # no_grad and not inference_mode: the cache must stay usable from a caller's own forward passes.
    with torch.no_grad():
        return forward(model, cache, ids, logits_to_keep=1).logits[:, -1]


def end_tokens(model: PreTrainedModel) -> set[int]:
    """The tokens with which the model says that it is through."""
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    return set(ends) if isinstance(ends, list) else set() if ends is None else {int(ends)}
