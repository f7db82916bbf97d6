"""Tracing finds the heads that were planted for induction and no other, and paths equal what is told by weights."""

from __future__ import annotations

import pytest
import torch

from headwise.assets import embedded_model
from headwise.calibrate.subject import ModelSubject
from headwise.errors import HeadwiseError, ShapeError
from headwise.lens import Contrast, Patch, Text, along, brought_back, every_head, patched, recorded, repeats, traced
from headwise.seams.transformers.load import load_model

PROMPTS, RUN = 6, 6
NOTING = [(0, head) for head in range(4)]  # planted: two note the last tokens, two a blur
MATCHING = [(layer, head) for layer in (1, 2) for head in range(4)]  # those that match notes and copy


def contrast(subject: ModelSubject, text: Text) -> Contrast:
    return Contrast(text.ids[:, :20], text.ids[:, 20:40], 7, 9)


def test_the_embedded_models_planted_heads_are_found_and_nothing_else() -> None:
    model = load_model(embedded_model())
    heads, subject = every_head(model), ModelSubject(model)
    contrasts = [repeats(subject.vocabulary, seed, RUN) for seed in range(PROMPTS)]
    means = {
        kind: torch.stack([traced(model, one[kind], [Patch(head) for head in heads]) for one in contrasts]).mean(0)
        for kind in ("keys", "query")
    }
    found = [head for i, head in enumerate(heads) if max(float(one[i]) for one in means.values()) > 0.03]
    assert found == NOTING + MATCHING
    generator = torch.Generator().manual_seed(0)
    rest = [head for head in heads if head not in found and head[0] < 3]
    drawn = [rest[i] for i in torch.randperm(len(rest), generator=generator)[: len(found)]]
    for kind in ("keys", "query"):
        together = [brought_back(model, one[kind], found) for one in contrasts]
        random = [brought_back(model, one[kind], drawn) for one in contrasts]
        assert min(together) > 0.9 and max(map(abs, random)) < 0.15


def test_a_batch_of_patches_is_each_of_them_alone(subject: ModelSubject, text: Text) -> None:
    one, model = contrast(subject, text), subject.model
    patches = [Patch((0, 1)), Patch((2, 3), (19,)), Patch((1, 0), (3, 7)), Patch((0, 1), (5,))]
    together = traced(model, one, patches)
    with torch.no_grad():
        whole, none = (one.score(model(ids).logits) for ids in (one.clean, one.other))
        for patch, effect in zip(patches, together, strict=True):
            with recorded(model, [patch.head]) as said:
                model(one.clean)
            with patched(model, said, patch.places):
                alone = (one.score(model(one.other).logits) - none) / (whole - none)
            torch.testing.assert_close(effect, alone[0], atol=1e-3, rtol=1e-3)
    everything = [head for head in every_head(model) if head[0] == 2]
    assert abs(brought_back(model, one, everything)) > 0


@torch.no_grad()
def test_a_path_goes_through_the_residual_stream_alone(subject: ModelSubject, text: Text) -> None:
    """Between neighbouring layers, with the feed-forward layer of the first made to say nothing, the path's effect is
    all that the sender does to the receiver."""
    one, model = contrast(subject, text), subject.model
    model.model.layers[0].mlp.down_proj.weight.zero_()
    read = along(model, one, (0, 1), (1, 2))
    with recorded(model, [(0, 1)]) as said:
        model(one.clean)
    with patched(model, said), recorded(model, [(1, 2)]) as expected:
        model(one.other)
    torch.testing.assert_close(read, expected[1, 2], atol=1e-5, rtol=1e-4)
    far = along(model, one, (0, 1), (2, 2))
    with patched(model, said), recorded(model, [(2, 2)]) as every_way:
        model(one.other)
    assert not torch.allclose(far, every_way[2, 2], atol=1e-5), "heads in between pass nothing on"


def test_what_cannot_be_traced_is_refused(subject: ModelSubject, text: Text) -> None:
    one = contrast(subject, text)
    with pytest.raises(HeadwiseError, match="answered alike"):
        traced(subject.model, Contrast(one.clean, one.clean, 7, 9), [Patch((0, 0))])
    with pytest.raises(ShapeError, match="as many tokens"):
        Contrast(text.ids[:, :20], text.ids[:, :21], 7, 9)
    with pytest.raises(HeadwiseError, match=r"no path from head 2\.0 to 1\.0"):
        along(subject.model, one, (2, 0), (1, 0))
    with pytest.raises(ShapeError, match="place 20: the forward has 20 tokens"):
        traced(subject.model, one, [Patch((0, 0), (20,))])
