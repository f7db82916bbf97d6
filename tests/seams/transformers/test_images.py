"""Images are found in prompts by themselves; what an encoder shows, and with its attention altered."""

from __future__ import annotations

import pytest
import torch

import headwise
from headwise.errors import SessionError, UnsupportedModel
from headwise.seams.transformers.encoder import altered, encoder_attention, image_features
from headwise.seams.transformers.forward import cache_argument
from headwise.shapes import Mark
from tests.engine.small import build, tokens
from tests.seams.transformers.seeing import IMAGE_TOKEN, PLACES, pixels, seeing


def prompt(rows: int = 1) -> torch.Tensor:
    ids = tokens(40, rows=rows)
    ids[:, 4 : 4 + PLACES] = IMAGE_TOKEN
    return ids


def read(model: torch.nn.Module, cache: headwise.Cache, ids: torch.Tensor, **how: object) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids, **{cache_argument(type(model)): cache}, **how).logits
    return out


def test_an_image_is_a_mark_by_itself_and_steering_it_is_steering_that_mark() -> None:
    model, ids = seeing(), prompt()
    found, told = (headwise.Cache(model, "paint(0.9)", marks=own) for own in ((), (Mark("image", 4, 4 + PLACES),)))
    out = read(model, found, ids, pixel_values=pixels())
    assert torch.equal(out, read(model, told, ids, pixel_values=pixels()))
    assert found.session is not None and found.session.marks == (Mark("image", 4, 4 + PLACES),)
    assert (out - read(model, headwise.Cache(model), ids, pixel_values=pixels())).abs().max() > 0.01


def test_padding_is_not_counted_and_pieces_find_their_own() -> None:
    model, ids = seeing(), prompt(2)
    ids[1] = torch.cat((torch.zeros(6, dtype=torch.int64), ids[1, :34]))
    mask = torch.ones(2, 40, dtype=torch.int64)
    mask[1, :6] = 0
    cache = headwise.Cache(model, "")
    read(model, cache, ids, pixel_values=pixels(2), attention_mask=mask)
    assert cache.session is not None
    assert cache.session.marks == (Mark("image", 4, 4 + PLACES, 0), Mark("image", 4, 4 + PLACES, 1))
    whole = torch.cat((tokens(20), prompt()), 1)
    cache = headwise.Cache(model, "")
    with cache.prompt(60):
        read(model, cache, whole[:, :20])
        read(model, cache, whole[:, 20:], pixel_values=pixels())
    assert cache.session is not None and cache.session.marks == (Mark("image", 24, 24 + PLACES),)


def test_a_forward_that_failed_leaves_no_second_mark() -> None:
    model, ids = seeing(), prompt()
    cache = headwise.Cache(model, "")
    read(model, cache, tokens(20))
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(model, cache, ids, pixel_values=pixels())
    handle.remove()
    cache.abort()
    read(model, cache, ids, pixel_values=pixels())
    assert cache.session is not None and cache.session.marks == (Mark("image", 24, 24 + PLACES),)


def test_images_that_are_not_there_are_refused() -> None:
    model = seeing()
    with pytest.raises(SessionError, match="the prompt holds no image token"):
        read(model, headwise.Cache(model, "paint(0.9)"), tokens(40))
    with pytest.raises(SessionError, match="steers what is marked as 'image'"):
        headwise.Cache(build(), "paint(0.9)")


def test_decoders_of_images_refuse_what_they_cannot_see() -> None:
    model, ids = seeing(), prompt()
    for decoder in ("damro", "causalmm"):
        cache = headwise.Cache(model, "")
        how = {cache_argument(type(model)): cache, "custom_generate": headwise.contrast(model, cache, decoder)}
        with pytest.raises(SessionError, match="0 are given; it looks at one image a row"):
            model.generate(ids, pixel_values=pixels(), max_new_tokens=2, do_sample=False, **how)
    cache = headwise.Cache(model, "")
    how = {cache_argument(type(model)): cache, "custom_generate": headwise.contrast(model, cache, "conscious_gaze")}
    with pytest.raises(SessionError, match="looks at images, and row 0 has none"):
        model.generate(tokens(40), max_new_tokens=2, do_sample=False, **how)
    text = build()
    with pytest.raises(UnsupportedModel, match="has no image encoder"):
        headwise.contrast(text, headwise.Cache(text), "damro")


def test_a_text_decoder_beside_images_reads_them() -> None:
    """Its neutral setting says what the model says."""
    model, ids = seeing(), prompt()
    how = {"pixel_values": pixels(), "max_new_tokens": 5, "do_sample": False}
    cache = headwise.Cache(model, "")
    decoder = headwise.contrast(model, cache, "decore(alpha=0.0, named='1.0')")
    found = model.generate(ids, **{cache_argument(type(model)): cache}, custom_generate=decoder, **how)
    plain = model.generate(ids, **{cache_argument(type(model)): headwise.Cache(model)}, **how)
    assert found.tolist() == plain.tolist()


def test_an_encoders_attention_is_its_own() -> None:
    model = seeing()
    own = image_features(model, pixels(2))
    weights = encoder_attention(model, pixels(2))
    assert len(weights) == 3 and weights[0].shape == (2, 2, PLACES + 1, PLACES + 1)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 2, PLACES + 1))
    with altered(model, lambda found: found):
        torch.testing.assert_close(image_features(model, pixels(2)), own, atol=1e-5, rtol=1e-4)
    with altered(model, lambda found: torch.full_like(found, 1 / found.shape[-1])):
        assert (image_features(model, pixels(2)) - own).abs().max() > 1e-3
    assert torch.equal(image_features(model, pixels(2)), own)
