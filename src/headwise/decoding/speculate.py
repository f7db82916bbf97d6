"""Generation whose drafts are verified: for transformers' `generate`, and over a cache that has read a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from headwise.choose import likeliest
from headwise.decoding.base import Distribution, Proposer
from headwise.decoding.drafters.itself import Itself
from headwise.decoding.drafters.smaller import drafting_model
from headwise.decoding.typical import Typical, taken
from headwise.decoding.typical import acceptance as accepting
from headwise.decoding.verify import Verifier
from headwise.drafters import DRAFTERS, Drafter
from headwise.errors import HeadwiseError, SessionError, shown
from headwise.recipe import Recipe
from headwise.registry import with_settings
from headwise.seams.transformers.attach import attach_any
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import end_tokens, refuse_answer
from headwise.seams.transformers.encoder_decoder import EncoderDecoderCache
from headwise.sentence import read_call

# settings under which generate would write in a way of its own
OTHER_WAYS = (
    "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "penalty_alpha", "dola_layers", "constraints",
    "force_words_ids",
)  # fmt: skip
EXAMPLE = 'write it like "lookup(tokens=10)", or give a recipe such as "streaming(512)"'
AsDrafter = str | Drafter | Proposer | PreTrainedModel


def drafter(sentence: str) -> Drafter:
    """The drafter of a phrase: a drafter's name with its knobs, or a recipe of the model itself. RecipeError naming the
    word and the fix."""
    word = sentence.partition("(")[0].strip()
    if word in DRAFTERS.all():
        made: Drafter = with_settings(DRAFTERS.get(word), read_call(sentence, EXAMPLE))
        return made
    return Itself(str(Recipe.parse(sentence)))


def proposer(model: PreTrainedModel, given: AsDrafter) -> Proposer:
    """What guesses for a generation with `model`."""
    if isinstance(given, Proposer):
        return given
    if isinstance(given, str):
        given = drafter(given)
    if isinstance(given, Drafter):
        return given.start(model)
    if isinstance(given, PreTrainedModel):
        return drafting_model(model, given)
    raise HeadwiseError(f"{shown(given)} is no drafter; {EXAMPLE}, or a smaller model with the same tokenizer")


def speculate(
    model: PreTrainedModel,
    cache: Cache | EncoderDecoderCache,
    draft: AsDrafter = "lookup",
    streamer: Any = None,
    acceptance: str | Typical = "exact",
) -> Callable[..., torch.Tensor]:
    """What to hand to `model.generate` as `custom_generate`: the same tokens, several of them a pass.

    cache: a headwise.Cache of the model, or of one with an encoder its EncoderDecoderCache, the only one that is used;
    then it is the decoder's tokens that are drafted. draft: "lookup", another drafter's phrase, a recipe
    under which the model drafts for itself, or a smaller model. streamer: shown every token; `generate` does not hand
    on its own. Logits processors, stopping criteria and sampling are those of `generate`; drafts that are looked up
    give the same draws as sampling without them, from the same seed. Beams and returned scores are refused.

    acceptance: "exact", or "typical(epsilon=0.09, delta=0.3)", which keeps more guesses and changes what is written:
    it is for sampling, and refused where greedy tokens are asked for.
    """
    typical = acceptance if isinstance(acceptance, Typical) else accepting(acceptance)
    if attach_any(model) is not cache.seam:
        raise SessionError("the cache is of another model; give headwise.Cache(model) of the one that generates")
    (cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache).refuse_drafts()
    verifier_of = partial(Verifier, model, cache, proposer(model, draft))
    return partial(_generate, verifier_of=verifier_of, shown_to=streamer, typical=typical)


def _generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    verifier_of: Callable[..., Verifier],
    shown_to: Any = None,
    typical: Typical | None = None,
    **given: Any,
) -> torch.Tensor:
    """Called by `generate`: input_ids [b, n] -> [b, n + new]."""
    _refuse(generation_config, input_ids, given)
    if typical is not None and not generation_config.do_sample:
        raise SessionError(
            f"acceptance={typical}: it changes what is written, and greedy tokens are promised to stay as they are; "
            'give generate do_sample=True, or acceptance="exact"'
        )
    verifier = verifier_of(**_beside(model, given))
    pads = any(hasattr(one, "eos_token_id") for one in stopping_criteria)
    distribution = _distribution(logits_processor) if generation_config.do_sample else None
    ids, going = input_ids, torch.ones(len(input_ids), dtype=torch.long, device=input_ids.device)
    if shown_to is not None:
        shown_to.put(ids.cpu())
    try:
        while bool(going.any()):
            left = generation_config.max_length - ids.shape[1]
            logits = verifier.after(ids, going, left, distribution)
            scores = logits_processor(ids, logits.clone())
            if typical is None or distribution is None:
                new = draw(verifier, scores, generation_config.do_sample)
            else:
                new = draw_typical(verifier, scores, typical, ids, distribution)
            if pads:
                new = new * going + generation_config._pad_token_tensor.to(ids.device) * (1 - going)
            ids = torch.cat((ids, new[:, None]), dim=1)
            if shown_to is not None:
                shown_to.put(new.cpu())
            going = going & ~stopping_criteria(ids, None)
    finally:
        verifier.settle()
    for row in range(len(ids)):
        verifier.proposer.finish(row, verifier.row(ids, row))
    _tell(verifier)
    if typical is not None and verifier.cache.session is not None:
        verifier.cache.session.ledger.told.append(f"guesses were kept by {typical}: other texts than the model draws")
    if shown_to is not None:
        shown_to.end()
    return ids


def write(
    model: PreTrainedModel,
    cache: Cache,
    logits: torch.Tensor,
    max_new_tokens: int,
    draft: AsDrafter,
    prompt: torch.Tensor,
    stop: Callable[[list[int]], bool] | None = None,
) -> torch.Tensor:
    """`headwise.decode` with drafts: the greedy continuation [1, m] of a cache whose last logits are `logits [1,
    vocab]`, after `prompt [1, n]`, all that it has read."""
    refuse_answer(cache, max_new_tokens)
    return write_by(Verifier(model, cache, proposer(model, draft)), logits, max_new_tokens, prompt, stop)


def write_by(
    verifier: Verifier,
    logits: torch.Tensor,
    max_new_tokens: int,
    prompt: torch.Tensor,
    stop: Callable[[list[int]], bool] | None = None,
) -> torch.Tensor:
    """As `write`, by a verifier of the caller's own."""
    ends, going = end_tokens(verifier.model), torch.ones(1, dtype=torch.long)
    new = [likeliest(logits)]
    try:
        while len(new) < max_new_tokens and new[-1] not in ends and not (stop is not None and stop(new)):
            ids = torch.cat((prompt, torch.tensor([new], device=prompt.device)), dim=1)
            new.append(likeliest(verifier.after(ids, going, max_new_tokens - len(new))))
    finally:
        verifier.settle()
    verifier.proposer.finish(0, torch.cat((prompt[0], prompt.new_tensor(new))))
    _tell(verifier)
    return torch.tensor([new], device=prompt.device)


def draw(verifier: Verifier, scores: torch.Tensor, sample: bool) -> torch.Tensor:
    """The next token [b] of every row by its scores [b, vocab].

    Guesses that a drafter drew by probabilities of its own are tried in their order, see `_tried`. Without such
    probabilities the token is drawn as ever, and a guess that is the same was right.
    """
    if not sample:
        return scores.argmax(-1)
    wanted = scores.softmax(-1)
    guesses = [verifier.guessed(row) for row in range(len(scores))]
    if not any(guesses):
        return torch.multinomial(wanted, 1)[:, 0]
    return torch.stack([_tried(own, guess) for own, guess in zip(wanted, guesses, strict=True)])


def draw_typical(
    verifier: Verifier, scores: torch.Tensor, typical: Typical, ids: torch.Tensor, how: Distribution
) -> torch.Tensor:
    """The next token [b] of every row by its scores [b, vocab] after ids [b, n]: a guess that stays, else drawn."""
    wanted = scores.softmax(-1)
    new = torch.multinomial(wanted, 1)[:, 0]
    for row, own in enumerate(wanted):
        if (token := taken(verifier, row, own, typical, ids[row : row + 1], how)) is not None:
            new[row] = token
    return new


def _tried(wanted: torch.Tensor, guesses: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """A token that is distributed by `wanted [vocab]`, a guess wherever that can be.

    Of guesses drawn by probabilities q one stays with probability min(1, p / q); where it does not, the next is tried
    against what p has more than q, from which the token is drawn in the end. Together that is p (Leviathan et al., Fast
    Inference from Transformers via Speculative Decoding, arXiv 2211.17192, section 2.3; of several guesses SpecInfer,
    arXiv 2305.09781, section 4.3).
    """
    for token, by in guesses:
        if float(torch.rand(())) * float(by[token]) < float(wanted[token]):
            return torch.tensor(token, device=wanted.device)
        left = (wanted - by).clamp(min=0)
        if not float(left.sum()):  # both are the same but for rounding
            return torch.tensor(token, device=wanted.device)
        wanted = left / left.sum()
    return torch.multinomial(wanted, 1)[0]


def _distribution(processors: Any) -> Distribution:
    """How logits become the probabilities by which `generate` draws."""
    return lambda ids, logits: processors(ids, logits.clone()).softmax(-1)


def _beside(model: PreTrainedModel, given: dict[str, Any]) -> dict[str, Any]:
    """What a verifier is told of the prompt: its mask; of a model with an encoder, whose mask that is, what the encoder
    made of its input."""
    if not model.config.is_encoder_decoder:
        return {"mask": given.get("attention_mask")}
    mask = given.get("decoder_attention_mask")
    if mask is not None and not bool(mask.all()):
        raise SessionError(
            "decoder_attention_mask hides tokens of the decoder's prompt, where nothing is drafted; give prompts of "
            "one length"
        )
    return {"beside": {name: given[name] for name in ("encoder_outputs", "attention_mask") if name in given}}


def _refuse(config: Any, ids: torch.Tensor, given: dict[str, Any]) -> None:
    """Refuse what drafts cannot be verified under, before anything is read."""
    if config.num_beams > 1:
        raise SessionError(f"num_beams={config.num_beams}: beams are not drafted; leave one of the two out")
    for name in OTHER_WAYS:
        if (value := getattr(config, name, None)) not in (None, False):
            raise SessionError(f"{name}={value!r}: generate would write in a way of its own; leave one of the two out")
    if config.return_dict_in_generate:
        raise SessionError("return_dict_in_generate=True: drafted generation returns ids alone; leave it out")
    if given.get("inputs_embeds") is not None or not ids.shape[1]:
        raise SessionError("drafts are guessed from token ids; give generate input_ids, and no embeddings")


def _tell(verifier: Verifier) -> None:
    """Let the session's report say where drafting has switched itself off."""
    session = verifier.cache.session
    if session is not None and (remark := verifier.pace.remark) is not None:
        session.ledger.told.append(remark)
