"""Vision-language models of several families: their images are marks by themselves, their positions stay their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import pytest
import torch
import transformers as t

import headwise
from headwise.errors import UnsupportedModel
from headwise.seams.transformers.forward import forward, generation_argument
from headwise.shapes import Mark

IMAGE, VIDEO, START, PLACES = 120, 121, 122, 4
TEXT = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip
GRID = {
    "depth": 2, "hidden_size": 64, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Qwen2VL": ({}, {"embed_dim": 64, "mlp_ratio": 2}),
    "Qwen2_5_VL": (
        {}, {"out_hidden_size": 64, "intermediate_size": 96, "window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "Qwen3VL": (
        {"head_dim": 16},
        {
            "out_hidden_size": 64, "intermediate_size": 96, "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
    ),
}  # fmt: skip


def qwen(kind: str) -> t.PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    text, eyes = QWEN[kind]
    config = getattr(t, f"{kind}Config")(
        text_config={**TEXT, "rope_parameters": rope, "rope_scaling": dict(rope), **text},
        vision_config={**GRID, **eyes},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=123,
    )  # fmt: skip
    return getattr(t, f"{kind}ForConditionalGeneration")(config)


def internvl() -> t.PreTrainedModel:
    config = t.InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**EYES, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=IMAGE, image_seq_length=PLACES, downsample_ratio=0.5,
    )  # fmt: skip
    return t.InternVLForConditionalGeneration(config)


MODELS: dict[str, Callable[[], t.PreTrainedModel]] = {
    "Qwen2VL": lambda: qwen("Qwen2VL"),
    "Qwen2_5_VL": lambda: qwen("Qwen2_5_VL"),
    "Qwen3VL": lambda: qwen("Qwen3VL"),
    "InternVL": internvl,
}


@cache
def made(name: str) -> t.PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=weight[0].numel() ** -0.5)
    return model


def shown(name: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """A prompt with two images, and how they are given."""
    drawn = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 100, (1, 50), generator=drawn)
    for first in (10, 25):
        ids[0, first - 1], ids[0, first : first + PLACES] = START, IMAGE
    if name == "InternVL":
        return ids, {"pixel_values": torch.randn(2, 3, 16, 16, generator=drawn)}
    how = {"pixel_values": torch.randn(32, 96, generator=drawn), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    if "mm_token_type_ids" in signature(made(name).forward).parameters:  # older ones find images by their tokens
        how["mm_token_type_ids"] = (ids == IMAGE).long()
    return ids, how


def written(name: str, held: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """What is written of a prompt with images, and the logits of every step."""
    model, (ids, how) = made(name), shown(name)
    how |= {} if held is None else {generation_argument(): held}
    out = model.generate(
        ids, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True, **how
    )
    return out.sequences, torch.stack(out.logits, 1)


@pytest.mark.parametrize("name", MODELS)
def test_images_are_marks_and_what_is_written_is_the_models_own(name: str) -> None:
    headwise.detach(made(name))
    made(name).set_attn_implementation("eager")
    ids, logits = written(name)
    held = headwise.Cache(made(name))
    found, own = written(name, held)
    assert torch.equal(found, ids)
    torch.testing.assert_close(own, logits, atol=1e-3, rtol=1e-3)
    assert held.session is not None
    assert held.session.marks == (Mark("image", 10, 10 + PLACES), Mark("image", 25, 25 + PLACES))


@pytest.mark.parametrize("name", MODELS)
def test_an_eviction_changes_no_positions(name: str) -> None:
    """`streaming(1.0)` goes the whole way of an eviction without evicting; positions are counted by tokens passed."""
    headwise.detach(made(name))
    made(name).set_attn_implementation("eager")
    _, logits = written(name)
    held = headwise.Cache(made(name), "streaming(1.0)")
    torch.testing.assert_close(written(name, held)[1], logits, atol=1e-3, rtol=1e-3)
    assert held.session is not None and held.session.seen == [57]


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL"])
@pytest.mark.parametrize("recipe", ["expected_attention(0.5)", "long_heads(24, positions='compact')"])
def test_what_undoes_rotations_is_refused_where_they_follow_an_images_places(name: str, recipe: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"M-RoPE|does not rotate"):
        headwise.Cache(made(name), recipe)


def test_a_whole_image_can_be_steered() -> None:
    _, dense = written("Qwen2_5_VL", headwise.Cache(made("Qwen2_5_VL")))
    _, steered = written("Qwen2_5_VL", headwise.Cache(made("Qwen2_5_VL"), "paint(0.9)"))
    assert (dense[:, 0] - steered[:, 0]).abs().max() > 0.01


def test_images_whose_tokens_see_each_other_in_both_directions_are_refused() -> None:
    """Gemma 3's; a text is read, and the cache that refused an image is as it was."""
    text = {**TEXT, "head_dim": 16, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
    config = t.Gemma3Config(
        text_config=text, vision_config={**EYES, "image_size": 16, "patch_size": 4}, mm_tokens_per_image=PLACES,
        image_token_index=IMAGE, image_token_id=IMAGE, boi_token_index=START, eoi_token_index=123,
    )  # fmt: skip
    model = t.Gemma3ForConditionalGeneration(config).eval()
    ids, _ = shown("InternVL")
    held = headwise.Cache(model)
    with torch.no_grad(), pytest.raises(UnsupportedModel, match="not plain causal"):
        forward(model, held, ids, pixel_values=torch.randn(2, 3, 16, 16), token_type_ids=(ids == IMAGE).long())
    held.abort()
    with torch.no_grad():
        forward(model, held, ids % 100)
    assert held.get_seq_length() == 50
