"""Tokens as text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def decoder_of(tokenizer: Any) -> Callable[[list[int]], str]:
    """What makes text of tokens, special ones left out and spaces as they are. Of a tokenizer that decodes as all of
    its library's do it is that library's own call, as `decode` asks Python for the type of every token."""
    own = type(tokenizer)
    usual = (PreTrainedTokenizerBase.decode, getattr(PreTrainedTokenizerFast, "_decode", None))
    if isinstance(tokenizer, PreTrainedTokenizerFast) and (own.decode, own._decode) == usual:
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
    return partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
