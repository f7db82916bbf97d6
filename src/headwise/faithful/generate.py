"""Generation whose next token a decoder chooses: for transformers' `generate`, and over a cache that has read a
prompt."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from headwise.decoders import Decoder, decoder
from headwise.errors import SessionError
from headwise.faithful.looks import Looks
from headwise.seams.transformers.beside import read_session
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import end_tokens, refuse_answer

OTHER_INPUTS = r"pixel|image|video|audio|input_features"
IMAGES = ("pixel_values", "image_sizes", "mm_encoder_outputs")  # what a prompt's first forward is given of its images


def contrast(
    model: PreTrainedModel,
    cache: Cache,
    decode: str | Decoder = "decore",
    streamer: Any = None,
    pixels: torch.Tensor | None = None,
) -> Callable[..., torch.Tensor]:
    """What to hand to `model.generate` as `custom_generate`: each next token is chosen by a decoder, such as
    "decore(alpha=1.0)"; `cache.report()` tells afterwards what its looks took.

    cache: a headwise.Cache of the model, the only one that is used; a decoder of passages wants its marks:
    `marks=[headwise.Mark("context", first, after_last)]`. streamer: shown every token; `generate` does not hand on its
    own. pixels: the `pixel_values` of the prompt's images, one a row, for decoders that look at images: `generate` is
    given them as ever, but does not always hand them on. Logits processors, stopping
    criteria and sampling are those of `generate` and come after the decoder. Beams and returned scores are refused.
    """
    looks = Looks(model, cache, decoder(decode) if isinstance(decode, str) else decode)
    looks.pixels = pixels
    return _Generation(looks, streamer)


class _Generation:
    """A generation that `generate` calls. looks: at the text, with their cost so far."""

    def __init__(self, looks: Looks, streamer: Any) -> None:
        self.looks, self.streamer = looks, streamer

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **given: Any,
    ) -> torch.Tensor:
        """input_ids [b, n] -> [b, n + new]."""
        _refuse(generation_config, input_ids, given)
        self.looks.given = {name: given[name] for name in IMAGES if given.get(name) is not None}
        left = _left_padding(input_ids, given.get("attention_mask"))
        pads = any(hasattr(one, "eos_token_id") for one in stopping_criteria)
        ids, going = input_ids, torch.ones(len(input_ids), dtype=torch.long, device=input_ids.device)
        show = partial(_show, self.streamer)
        show(ids)
        while bool(going.any()):
            scores = logits_processor(ids, self.looks.step(self.looks.read(ids, left)))
            new = torch.multinomial(scores.softmax(-1), 1)[:, 0] if generation_config.do_sample else scores.argmax(-1)
            if pads:
                new = new * going + generation_config._pad_token_tensor.to(ids.device) * (1 - going)
            ids = torch.cat((ids, new[:, None]), dim=1)
            show(new)
            going = going & ~stopping_criteria(ids, None)
        if self.streamer is not None:
            self.streamer.end()
        read_session(self.looks.cache).ledger.told.append(self.looks.told)
        return ids


def write(
    looks: Looks,
    logits: torch.Tensor,
    max_new_tokens: int,
    prompt: torch.Tensor,
    stop: Callable[[list[int]], bool] | None = None,
) -> torch.Tensor:
    """`headwise.decode` with a decoder: the continuation [1, m], the best token each time, of the looks' cache whose
    last logits are `logits [1, vocab]`, after `prompt [1, n]`, all that it has read."""
    refuse_answer(looks.cache, max_new_tokens)
    ends, new, left = end_tokens(looks.model), list[int](), torch.zeros(1, dtype=torch.long, device=prompt.device)
    looks.follow(prompt)
    while True:
        new.append(int(looks.step(logits.float()).argmax(-1)))
        if len(new) == max_new_tokens or new[-1] in ends or (stop is not None and stop(new)):
            return torch.tensor([new], device=prompt.device)
        logits = looks.read(torch.cat((prompt, torch.tensor([new], device=prompt.device)), dim=1), left)


def _show(streamer: Any, tokens: torch.Tensor) -> None:
    if streamer is not None:
        streamer.put(tokens.cpu())


def _left_padding(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Columns of left padding, by row."""
    return (torch.ones_like(ids) if mask is None else mask).eq(0).sum(1)


def _refuse(config: Any, ids: torch.Tensor, given: dict[str, Any]) -> None:
    """Refuse what second looks do not serve, before anything is read."""
    if config.num_beams > 1:
        raise SessionError(f"num_beams={config.num_beams}: decoders choose token by token; leave one of the two out")
    if config.return_dict_in_generate:
        raise SessionError("return_dict_in_generate=True: a decoder's generation returns ids alone; leave it out")
    if other := [name for name in given if re.search(OTHER_INPUTS, name) and name not in IMAGES]:
        raise SessionError(f"decoders hand no {other[0]} on to the model; generate without custom_generate")
    if given.get("inputs_embeds") is not None or not ids.shape[1]:
        raise SessionError("decoders look at token ids; give generate input_ids, and no embeddings")
