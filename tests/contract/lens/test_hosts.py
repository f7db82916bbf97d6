"""The laws of lenses on hosts that are no decoders: figures are those of the attention that the model itself gives out,
whatever is looked at beside and in whatever blocks; what cannot be taken says so; the model is as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from headwise.errors import ContextError, HeadwiseError
from headwise.lens import HostLook, HostScene, looked_into, measured_host, text
from headwise.lens.look import tile_size
from headwise.lens.rhythm import SHARE, fai_of, host_rhythm, waad_of
from headwise.lenses import LENSES, AttentionLens, ModelLens
from headwise.observe.host import HostAttention, Stack
from tests.contract.lens.hosts import MADE, model_of, scene_of

Truth = Callable[[torch.Tensor, HostScene, Any], torch.Tensor]
OWN = {
    "encoder": ("attentions", "encoder_attentions"),
    "decoder": ("decoder_attentions",),
    "cross": ("cross_attentions",),
}
hosts = pytest.mark.parametrize("name", MADE)


@cache
def scene(name: str) -> HostScene:
    return scene_of(model_of(name))


def given(model: Any, one: HostScene) -> dict[str, torch.Tensor]:
    """What is read, by the names of the model's own forward."""
    return {
        "decoder_input_ids" if name == "target" else model.main_input_name: x.shown for name, x in one.readings.items()
    }


@cache
def given_out(name: str, random: str = "") -> dict[str, torch.Tensor]:
    """By stack, the attention [layers, H, m, n] that the model itself gives out, computed by its own eager function."""
    one = scene(name).random(random) if random else scene(name)
    model = model_of(name, "eager")
    with torch.no_grad():
        out = model(**given(model, one), output_attentions=True)
    return {
        stack: torch.stack(list(out[key]))[:, 0].double() for stack, keys in OWN.items() for key in keys if out.get(key)
    }  # fmt: skip


def apart(one: HostScene, side: str) -> torch.Tensor:
    """Distances [n, n] of what stands somewhere, in tokens or patches."""
    places = one.readings[side].places.double()
    return (places[:, None] - places).square().sum(-1).sqrt()


def after_the_same(p: torch.Tensor, ids: list[int], later: int) -> torch.Tensor:
    places = [(i, max(j for j in range(i) if ids[j] == x)) for i, x in enumerate(ids) if x in ids[:i]]
    return torch.stack([p[:, :, i, j + later] for i, j in places], dim=-1).mean(-1)


def far(p: torch.Tensor, one: HostScene, stack: Any) -> torch.Tensor:
    distances = apart(one, stack.keys)
    there = ~distances.isnan().all(1)
    p, distances = p[..., there, :][..., there], distances[there][:, there]
    return ((p * distances).sum(-1) / p.sum(-1)).mean(-1)


def echo(later: int) -> Truth:
    return lambda p, one, stack: after_the_same(p, one.readings[stack.queries].shown[0].tolist(), later)


TRUTH: dict[str, Truth] = {
    "previous": lambda p, one, stack: p.diagonal(-1, -2, -1).mean(-1),
    "first": lambda p, one, stack: p[..., 1:, 0].mean(-1),
    "itself": lambda p, one, stack: p.diagonal(0, -2, -1)[..., 1:].mean(-1),
    "delimiters": lambda p, one, stack: p[..., one.readings[stack.keys].delimiters].sum(-1).mean(-1),
    "distance": far,
    "entropy": lambda p, one, stack: torch.special.entr(p).sum(-1).mean(-1),
    "echo": echo(0),
    "induction": echo(1),
}
# What is taken of each stack; the others are refused.
TEXTS = {"previous", "first", "itself", "delimiters", "distance", "entropy", "echo"}
SEEN = {"previous", "first", "itself", "distance", "entropy"}
TAKEN = {
    **{name: {"encoder": TEXTS} for name in ("bert", "modernbert", "albert")},
    **{name: {"encoder": SEEN} for name in ("vit", "siglip")},
    **{
        name: {"encoder": TEXTS, "decoder": {*TEXTS, "induction"}, "cross": {"first", "delimiters", "entropy"}}
        for name in ("t5", "bart")
    },
    "whisper": {"encoder": SEEN, "decoder": {*TEXTS, "induction"}, "cross": {"first", "entropy"}},
}


def law_brute_force(name: str, stack: Any, lens: str, figures: torch.Tensor) -> None:
    one = LENSES.get(lens)
    random = stack.queries if isinstance(one, AttentionLens) and one.random else ""
    shown = scene(name).random(random) if random else scene(name)
    truth = TRUTH[lens](given_out(name, random)[stack.name], shown, stack)
    torch.testing.assert_close(figures.double(), truth, atol=2e-4, rtol=1e-3)


def law_blocks(name: str, of: Callable[[HostLook], torch.Tensor]) -> None:
    whole = looked_into(scene(name), of)
    cut = looked_into(scene(name), lambda look: of(replace(look, at_once=700)))
    for stack, layers in whole.items():
        for layer, figures in layers.items():
            torch.testing.assert_close(cut[stack][layer], figures, atol=1e-5, rtol=1e-4, equal_nan=True)


def law_untouched(name: str, of: Callable[[HostLook], Any]) -> None:
    """What the model says while it is looked at, and afterwards, is bit for bit what it said before."""
    one, model = scene_of(model_of(name)), model_of(name)
    with torch.no_grad():
        before = model(**given(model, one)).last_hidden_state
    host: Any = one.host
    during = host.look(
        {read: x.shown for read, x in one.readings.items()},
        lambda seen: of(HostLook(seen, one.readings[seen.stack.queries], one.readings[seen.stack.keys])),
    )
    with torch.no_grad():
        after = host.model(**given(model, one)).last_hidden_state
    assert torch.equal(during, before) and torch.equal(after, before)
    assert host.model.config._attn_implementation == "sdpa"


def test_every_lens_of_attention_has_its_truth_here() -> None:
    assert TRUTH.keys() == {name for name, one in LENSES.all().items() if isinstance(one, AttentionLens)}


@hosts
def test_figures_are_those_of_the_attention_that_the_model_gives_out(name: str) -> None:
    found = measured_host(scene(name), list(TRUTH))
    for stack in scene(name).host.stacks:
        own = found[stack.name]
        assert own.figures.keys() == TAKEN[name][stack.name]
        assert own.refused.keys() == TRUTH.keys() - own.figures.keys()
        for lens, figures in own.figures.items():
            law_brute_force(name, stack, lens, figures)


@hosts
def test_tiles_are_means_of_blocks(name: str) -> None:
    looks = looked_into(scene(name), lambda look: look.tiles)
    for stack, truth in given_out(name).items():
        own = torch.stack([looks[stack][layer] for layer in sorted(looks[stack])]).double()
        rows, columns = (tile_size(size) for size in truth.shape[-2:])
        means = torch.stack([part.mean(-2) for part in truth.split(rows, dim=-2)], dim=-2)
        torch.testing.assert_close(
            own, torch.stack([part.sum(-1) for part in means.split(columns, dim=-1)], dim=-1), atol=1e-5, rtol=1e-3
        )


@hosts
def test_figures_do_not_depend_on_blocks_nor_on_what_is_looked_at_beside(name: str) -> None:
    law_blocks(name, lambda look: torch.cat((look.entropy, look.lse, look.distance, look.on_delimiters)))
    law_blocks(name, lambda look: look.to(look.places // 2))
    together = measured_host(scene(name), list(TRUTH))
    for lens in TRUTH:
        for stack, one in measured_host(scene(name), [lens]).items():
            assert lens in one.refused or torch.equal(one.figures[lens], together[stack].figures[lens])


@hosts
def test_the_model_is_bit_for_bit_what_it_was(name: str) -> None:
    law_untouched(name, lambda look: (look.tiles, look.to(look.places)))


@hosts
def test_lenses_of_the_next_token_are_refused_with_the_fix(name: str) -> None:
    wanted = [lens for lens, one in LENSES.all().items() if isinstance(one, ModelLens)]
    for one in measured_host(scene(name), wanted).values():
        assert not one.figures and one.refused.keys() == set(wanted)
        assert all("decoders alone" in why and "give a causal language model" in why for why in one.refused.values())


@pytest.mark.parametrize("wrong", ["mask", "bias", "shift"])
def test_wrong_looks_are_caught(wrong: str) -> None:
    """A look that forgets what a query does not see, what is added by distance, or where keys stand."""
    name = {"mask": "modernbert", "bias": "t5", "shift": "vit"}[wrong]

    def look(one: HostLook) -> torch.Tensor:
        seen = one.attention
        if wrong == "mask":
            seen = replace(
                seen, first=torch.zeros_like(seen.first), last=torch.full_like(seen.last, seen.k.shape[1] - 1)
            )
        elif wrong == "bias":
            seen = replace(seen, bias=None)
        else:
            seen = replace(seen, k=seen.k.roll(1, dims=1))
        lens = LENSES.get("first")
        assert isinstance(lens, AttentionLens)
        return lens.of(replace(one, attention=seen))

    layers = looked_into(scene(name), look)["encoder"]
    with pytest.raises(AssertionError):
        law_brute_force(name, scene(name).host.stacks[0], "first", torch.stack([layers[i] for i in sorted(layers)]))


def test_a_look_that_changes_the_model_is_caught() -> None:
    def touching(look: HostLook) -> None:
        look.attention.q.mul_(1.5)

    with pytest.raises(AssertionError):
        law_untouched("bert", touching)


def test_figures_by_blocks_that_differ_are_caught() -> None:
    with pytest.raises(AssertionError):
        law_blocks("bert", lambda look: look.entropy + look.at_once)


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_the_rhythm_of_what_a_decoder_writes(name: str) -> None:
    p = given_out(name)["decoder"]
    back = (torch.arange(37)[:, None] - torch.arange(37)).double()
    far = (p * back).sum(-1).mean(-1).flatten()
    count = max(1, round(SHARE * len(far)))
    order, maps = far.argsort(), p.flatten(0, 1)
    found = host_rhythm(scene(name))
    waad, fai = waad_of(maps[order[:count]].mean(0)), fai_of(maps[order[-count:]].mean(0))
    torch.testing.assert_close(found.waad.double(), waad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.fai.double(), fai, atol=1e-4, rtol=1e-3, equal_nan=True)
    with pytest.raises(HeadwiseError, match="BertModel reads both ways; give a decoder, or an encoder-decoder"):
        host_rhythm(scene("bert"))


def test_what_a_host_does_not_read_is_refused() -> None:
    bert, t5 = scene("bert"), scene("t5")
    with pytest.raises(HeadwiseError, match="BertModel reads text, image was given"):
        HostScene(bert.host, {"image": scene("vit").readings["image"]})
    with pytest.raises(HeadwiseError, match="T5Model reads source and target, target was given"):
        HostScene(t5.host, {"target": t5.readings["target"]})
    with pytest.raises(ContextError, match="the text has 200 tokens, BertModel has positions for 128"):
        HostScene(bert.host, {"text": text(torch.arange(200)[None] % 90)})
    with pytest.raises(HeadwiseError, match="holds token 100, BertModel knows 100; give it the tokenizer"):
        HostScene(bert.host, {"text": text(torch.tensor([[3, 100]]))})


def test_nothing_of_n_by_n_is_made() -> None:
    """The largest tensor of a look at 2048 tokens, as torch's allocations tell, is a block of few queries."""
    tokens, at_once = 2048, 1 << 18
    q = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(0))
    reading, none = text(torch.zeros(1, tokens, dtype=torch.int64)), torch.zeros(tokens, dtype=torch.int64)
    one = HostAttention(Stack("encoder", "text", "text", False, (2,)), 0, q, q, 0.25, none, none + tokens - 1, None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        look = HostLook(one, reading, reading, at_once)
        for lens in LENSES.all().values():
            if isinstance(lens, AttentionLens) and not lens.random:
                lens.of(look)
    largest = max(abs(event.cpu_memory_usage) for event in seen.events() if event.name == "[memory]")
    assert 0 < largest <= 4 * at_once < 4 * tokens * tokens / 8
