"""What second looks compute, counted from outside: tokens that the model's layers read, and what attention reads of the
cache."""

from __future__ import annotations

from collections import Counter

import pytest

from headwise.calibrate.layerwise import decoder_layers
from headwise.decoders import DECODERS
from headwise.faithful.looks import Looks
from tests.contract.faithful.cases import NEW, cache_of, model, sees, sentence, small_detector, text, written  # noqa: F401

PASSES = {"decore": 1, "layercake": 1, "contrastive": 1}  # over the newest token for each new one, on this cache
TRIED = {"dola": 2, "largepig": 2}  # tokens that are read once, to see whether the model's early exits mean anything
TEXT = [name for name in DECODERS.all() if not sees(sentence(name))]


@pytest.mark.parametrize("name", TEXT)
def test_a_second_look_reads_one_token_and_never_the_prompt_again(name: str) -> None:
    own, ids, made, found = model(), text(), sentence(name), Counter[str]()
    hook = decoder_layers(own)[0].register_forward_pre_hook(
        lambda _, given, named: found.update(tokens=(given[0] if given else named["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    try:
        written(own, ids, None, cache_of(own))
        alone = found.pop("tokens")
        written(own, ids, made, cache_of(own))
    finally:
        hook.remove()
    assert alone == ids.shape[1] + NEW - 1
    # `cad` reads the prompt without its context, of 14 tokens, over a cache of its own, and each new token there.
    beside = 14 + NEW - 1 if name == "cad" else PASSES.get(name, 0) * NEW + TRIED.get(name, 0)
    assert found["tokens"] - alone == beside


@pytest.mark.parametrize("name", PASSES)
def test_a_second_look_reads_no_more_of_the_cache_than_the_first(name: str) -> None:
    own, ids, made = model(), text(), sentence(name)
    looks = Looks(own, cache_of(own), made)
    looks.step(looks.read(ids, ids.new_zeros(1)))
    assert looks.cost.passes == 1 and 0 < looks.cost.read <= ids.shape[1]
