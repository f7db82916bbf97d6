"""Heads are changed as named, in batches and over caches, and the model is what it was afterwards."""

from __future__ import annotations

import pytest
import torch

from headwise import Cache
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError, ShapeError
from headwise.lens import Scene, Text, ablated, measured, patched, recorded, scaled, steered
from headwise.seams.transformers.forward import forward


def own_output(subject: ModelSubject, ids: torch.Tensor, layer: int, head: int, factor: float) -> torch.Tensor:
    """Logits where a head's columns of the output projection are multiplied: the same by the weights alone."""
    weight = subject.model.model.layers[layer].self_attn.o_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 16 * head : 16 * (head + 1)] *= factor
        logits = subject.model(ids).logits
        weight.copy_(kept)
    return logits


@pytest.mark.parametrize("factor", [0.0, 0.5, -2.0])
def test_a_scaled_head_is_one_of_scaled_weights(subject: ModelSubject, text: Text, factor: float) -> None:
    ids = text.ids.repeat(3, 1).contiguous()
    truth = own_output(subject, ids, 1, 2, factor)
    with torch.no_grad(), scaled(subject.model, {(1, 2): factor}):
        torch.testing.assert_close(subject.model(ids).logits, truth, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_afterwards_no_bit_is_changed_even_after_an_error(subject: ModelSubject, text: Text) -> None:
    before = subject.model(text.ids).logits
    with pytest.raises(ZeroDivisionError), ablated(subject.model, [(0, 0), (2, 3)]):
        assert not torch.equal(subject.model(text.ids).logits, before)
        raise ZeroDivisionError
    assert torch.equal(subject.model(text.ids).logits, before)
    with scaled(subject.model, {(0, 1): 1.0}), recorded(subject.model, [(1, 1)]):
        assert torch.equal(subject.model(text.ids).logits, before)
    assert not any(one._forward_pre_hooks for name, one in subject.model.named_modules() if name)


@torch.no_grad()
def test_ablation_holds_over_a_cache_and_in_generate(subject: ModelSubject, text: Text) -> None:
    with ablated(subject.model, [(1, 0)]):
        whole = subject.model(text.ids).logits[0, -1]
        cache = Cache(subject.model, "")
        forward(subject.model, cache, text.ids[:, :90])
        step = forward(subject.model, cache, text.ids[:, 90:]).logits[0, -1]
        torch.testing.assert_close(step, whole, atol=1e-3, rtol=1e-3)
        said = subject.model.generate(text.ids, max_new_tokens=1, do_sample=False, pad_token_id=1)
        assert int(said[0, -1]) == int(whole.argmax())


@torch.no_grad()
def test_all_heads_of_all_layers_patched_say_what_the_other_prompt_said_there(
    subject: ModelSubject, text: Text
) -> None:
    heads, other = [(2, head) for head in range(4)], text.ids.flip(1)
    with recorded(subject.model, heads) as outputs:
        subject.model(other)
    assert outputs[2, 1].shape == (1, text.tokens, 16)
    with patched(subject.model, outputs), recorded(subject.model, heads) as seen:
        subject.model(text.ids)
    assert all(torch.equal(seen[head], one) for head, one in outputs.items())
    with patched(subject.model, outputs), pytest.raises(ShapeError, match=r"head 2\.0 .* 101, 16.* 50, 16"):
        subject.model(text.ids[:, :50])


def test_heads_that_are_not_there_are_refused(subject: ModelSubject) -> None:
    with (
        pytest.raises(HeadwiseError, match=r"head 3\.0: .* layers 0 to 2"),
        ablated(subject.model, [(3, 0)]),
    ):
        pass
    with pytest.raises(HeadwiseError, match=r"head 0\.4: layer 0 has .* 0 to 3"), ablated(subject.model, [(0, 4)]):
        pass


def test_importance_is_the_slope_towards_ablation(subject: ModelSubject, text: Text) -> None:
    """The gradient is the limit of what a small change costs, and ablation is what leaving out costs."""
    from headwise.lens.losses import text_loss

    scene = Scene(subject, text)
    found = measured(scene, ["importance", "ablation"]).figures
    with torch.no_grad():
        whole = text_loss(scene)
        for head in ((0, 1), (2, 3)):
            with scaled(subject.model, {head: 0.98}):
                slope = (text_loss(scene) - whole) / 0.02
            assert float(slope) == pytest.approx(float(found["importance"][head]), rel=0.1, abs=2e-3)
            with ablated(subject.model, [head]):
                assert float(text_loss(scene) - whole) == pytest.approx(float(found["ablation"][head]), abs=1e-6)


@torch.no_grad()
def test_places_narrow_a_change_to_some_tokens(subject: ModelSubject, text: Text) -> None:
    head, direction = (1, 2), torch.randn(16, generator=torch.Generator().manual_seed(1))
    with recorded(subject.model, [head]) as own:
        subject.model(text.ids)
    with steered(subject.model, {head: direction}, [3, 50]), recorded(subject.model, [head]) as seen:
        subject.model(text.ids)
    changed = (seen[head] - own[head])[0]
    torch.testing.assert_close(changed[[3, 50]], direction.expand(2, -1), atol=1e-5, rtol=1e-5)
    assert not changed[[0, 2, 4, 49, 51]].any()
    with ablated(subject.model, [head], [7]), recorded(subject.model, [head]) as seen:
        subject.model(text.ids)
    assert not seen[head][0, 7].any() and torch.equal(seen[head][0, 8:], own[head][0, 8:])
    with ablated(subject.model, [head], []), recorded(subject.model, [head]) as seen:
        subject.model(text.ids)
    assert torch.equal(seen[head], own[head]), "no token is changed"
    with steered(subject.model, {head: direction[:3]}), pytest.raises(ShapeError, match=r"give a direction \[16\]"):
        subject.model(text.ids)
