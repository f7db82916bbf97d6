"""Models of an encoder and a decoder: what they write over a headwise.EncoderDecoderCache, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

import headwise
from headwise.errors import HeadwiseError, SessionError, UnsupportedModel
from headwise.seams.transformers.attach import attach_both
from headwise.seams.transformers.forward import forward, generation_argument
from headwise.seams.transformers.load import load_meta, load_model

WORDS = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "decoder_start_token_id": 2}
SIDES = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip


def bart() -> t.PreTrainedModel:
    config = t.BartConfig(**WORDS, **SIDES, max_position_embeddings=256, forced_eos_token_id=None)
    return t.BartForConditionalGeneration(config)


def t5() -> t.PreTrainedModel:
    config = t.T5Config(**WORDS, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4)
    return t.T5ForConditionalGeneration(config)


def whisper() -> t.PreTrainedModel:
    config = t.WhisperConfig(
        **WORDS, **SIDES, max_target_positions=64, max_source_positions=30, num_mel_bins=8, suppress_tokens=[],
        begin_suppress_tokens=[],
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config)


MADE: dict[str, Callable[[], t.PreTrainedModel]] = {"bart": bart, "t5": t5, "whisper": whisper}


@cache
def model(name: str) -> t.PreTrainedModel:
    torch.manual_seed(0)
    made = MADE[name]().eval()
    for weight in made.parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=weight.shape[-1] ** -0.5)
    try:
        attach_both(made)
    except UnsupportedModel as refused:  # before transformers 5, which makes masks of its own there
        pytest.skip(f"this transformers: {refused}")
    return made


def given(name: str) -> dict[str, torch.Tensor]:
    """Two inputs, the second padded on the right where it is a text."""
    drawn = torch.Generator().manual_seed(1)
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 60, generator=drawn)}
    mask = torch.ones(2, 40, dtype=torch.int64)
    mask[1, -9:] = 0
    return {"input_ids": torch.randint(3, 128, (2, 40), generator=drawn), "attention_mask": mask}


def written(name: str, held: Any = None, **how: Any) -> torch.Tensor:
    own = {} if held is None else {generation_argument(): held}
    made = model(name)
    return t.GenerationMixin.generate(made, **given(name), max_new_tokens=16, do_sample=False, **own, **how)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_the_models_own(name: str, beams: int) -> None:
    held = headwise.EncoderDecoderCache(model(name))
    found = written(name, held, num_beams=beams)
    headwise.detach(model(name))
    model(name).set_attn_implementation("eager")
    assert torch.equal(found, written(name, num_beams=beams))


@pytest.mark.parametrize("name", MADE)
def test_both_sides_follow_recipes_of_their_own(name: str) -> None:
    own = "int8" if name == "t5" else "streaming(8, sinks=1, recent=2)"
    held = headwise.EncoderDecoderCache(model(name), own, "snapkv(8, sinks=1, recent=2) | int8")
    dense = headwise.EncoderDecoderCache(model(name))
    written(name, held), written(name, dense)
    across = held.cross_attention_cache.session
    assert across is not None and across.lengths(0).tolist() == [[8] * 4] * 2
    assert held.nbytes < dense.nbytes
    assert "what the encoder gave" in held.report()


def test_a_left_padded_decoder_is_the_models_own() -> None:
    made = model("bart")
    ids = torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[0, :7] = 0
    how = {**given("bart"), "decoder_attention_mask": mask}
    with torch.no_grad():
        found = forward(made, headwise.EncoderDecoderCache(made), ids, **how).logits
        headwise.detach(made)
        made.set_attn_implementation("eager")
        expected = made(decoder_input_ids=ids, **how).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


def test_a_fork_goes_on_by_itself_and_rows_can_be_chosen() -> None:
    made = model("bart")
    held, start = headwise.EncoderDecoderCache(made, "", "int8"), torch.full((2, 1), 2)
    states = {"encoder_outputs": made.get_encoder()(**given("bart")), "attention_mask": given("bart")["attention_mask"]}
    with torch.no_grad():
        forward(made, held, start, **states)
        other = copy.deepcopy(held)
        first = forward(made, held, start + 5, **states).logits
        assert torch.equal(forward(made, other, start + 5, **states).logits, first)
        held.batch_select_indices(torch.tensor([1]))
        one = {"encoder_outputs": (states["encoder_outputs"][0][1:],), "attention_mask": states["attention_mask"][1:]}
        alone = forward(made, held, start[:1] + 6, **one).logits
        both = forward(made, other, start + 6, **states).logits
    torch.testing.assert_close(alone[0], both[1], atol=1e-5, rtol=1e-5)


def test_a_forward_that_failed_leaves_nothing() -> None:
    made = model("bart")
    held, start = headwise.EncoderDecoderCache(made), torch.full((2, 1), 2)
    handle = made.get_output_embeddings().register_forward_pre_hook(lambda module, told: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward(made, held, start, **given("bart"))
    handle.remove()
    held.abort()
    assert held.get_seq_length() == 0 and held.cross_attention_cache.get_seq_length() == 0
    with torch.no_grad():
        again = forward(made, held, start, **given("bart")).logits
        torch.testing.assert_close(
            again, forward(made, headwise.EncoderDecoderCache(made), start, **given("bart")).logits
        )


def test_another_input_or_another_padding_is_refused() -> None:
    made = model("bart")
    held, start = headwise.EncoderDecoderCache(made), torch.full((2, 1), 2)
    forward(made, held, start, **given("bart"))
    with pytest.raises(SessionError, match="the mask and the rows"):
        forward(made, held, start, **given("bart") | {"attention_mask": torch.ones(2, 40, dtype=torch.int64)})


def test_what_has_no_encoder_and_what_has_one_are_told_apart() -> None:
    with pytest.raises(UnsupportedModel, match="EncoderDecoderCache"):
        headwise.Cache(model("bart"))
    with pytest.raises(UnsupportedModel, match="has no encoder; give it a headwise"):
        headwise.EncoderDecoderCache(
            t.LlamaForCausalLM(t.LlamaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1))
        )
    with pytest.raises(UnsupportedModel, match="read its prompt again"):
        headwise.EncoderDecoderCache(model("bart"), "kvzip(0.5)")


def test_commands_refuse_a_model_with_an_encoder_by_name(tmp_path: Path) -> None:
    bart().save_pretrained(tmp_path)
    for load in (load_meta, load_model):
        with pytest.raises(HeadwiseError, match="an encoder and a decoder"):
            load(tmp_path)


def test_dropout_and_half_precision() -> None:
    made = copy.deepcopy(model("bart")).bfloat16()
    headwise.detach(made)
    held, start = headwise.EncoderDecoderCache(made, "", "int8"), torch.full((2, 1), 2)
    with torch.no_grad():
        forward(made, held, start, **given("bart"))
        assert forward(made, held, start + 5, **given("bart")).logits.isfinite().all()
    made.train()
    for part in made.modules():
        if hasattr(part, "is_causal"):
            part.dropout = 0.5
    with pytest.raises(UnsupportedModel, match="dropout is on"):
        forward(made, headwise.EncoderDecoderCache(made), start, **given("bart"))
