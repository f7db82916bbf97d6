"""What a look tells is what a whole matrix of attention tells, on odd shapes, in windows and under caps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headwise.calibrate.subject import ModelSubject
from headwise.forms import Scoring, Sinks
from headwise.lens import Look, Scene, Text, looked_at, measured
from headwise.lens.look import TILES, tile_size
from headwise.lenses import LENSES, AttentionLens
from headwise.observe import LayerAttention

Shape = tuple[int, int, int, int, int | None, float | None, str]
SHAPES: list[Shape] = [
    (1, 1, 7, 5, None, None, ""), (2, 3, 131, 16, None, None, ""), (2, 2, 97, 8, 13, None, ""),
    (1, 4, 50, 64, None, 5.0, ""), (3, 1, 61, 16, 200, 2.0, ""), (2, 2, 97, 8, 13, None, "chunked"),
    (3, 2, 70, 16, None, None, "sinks"), (2, 2, 97, 8, 13, None, "sinks"),
]  # fmt: skip


def made(
    h: int, g: int, n: int, d: int, window: int | None = None, softcap: float | None = None, kind: str = ""
) -> Look:
    """A look at random queries and keys, of which tokens repeat and every third delimits. kind: whether its window
    begins anew every so many tokens, or sink logits join its softmax."""
    generator = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(1, heads, n, d, generator=generator) for heads in (h * g, h, h))
    text = Text(torch.randint(max(2, n // 3), (1, n), generator=generator), torch.arange(n) % 3 == 0)
    sinks = Sinks(torch.linspace(-1, 3, h * g).view(h, g)) if kind == "sinks" else None
    return Look(LayerAttention(0, q, k, v, Scoring(d**-0.5, softcap, sinks), window, kind == "chunked"), text)


def whole(look: Look) -> torch.Tensor:
    """The matrix [H, n, n] of attention, in float64."""
    one = look.attention
    q, n = one.q[0].double(), one.q.shape[2]
    k = one.k[0].double().repeat_interleave(len(q) // one.k.shape[1], dim=0)
    s = q @ k.transpose(1, 2) * one.scoring.scale
    s = s if one.scoring.softcap is None else one.scoring.softcap * torch.tanh(s / one.scoring.softcap)
    rows, columns = torch.arange(n)[:, None], torch.arange(n)
    window = n if one.window is None else one.window
    first = rows // window * window if one.chunked else rows - window + 1
    s = s.masked_fill((columns > rows) | (columns < first), -torch.inf)
    sinks = torch.full((len(q),), -torch.inf) if one.scoring.sinks is None else one.scoring.sinks.logits.flatten()
    return torch.cat((s, sinks.double()[:, None, None].expand(-1, n, 1)), dim=2).softmax(-1)[..., :-1]


def outcomes(look: Look) -> torch.Tensor:
    """All that each query may look at [H, n, n + 1], the last of them its head's sink."""
    return torch.cat((whole(look), (1 - whole(look).sum(-1, keepdim=True)).clamp(min=0)), dim=2)


def back_and_forth(look: Look) -> torch.Tensor:
    n = look.text.tokens
    return torch.arange(n)[:, None] - torch.arange(n).double()


def after_the_same(look: Look, later: int) -> torch.Tensor:
    """By brute force: what is given to the last earlier place of the same token, or `later` ones after it."""
    p, ids = whole(look), look.text.ids[0].tolist()
    places = [(i, max(j for j in range(i) if ids[j] == one)) for i, one in enumerate(ids) if one in ids[:i]]
    return torch.stack([p[:, i, j + later] for i, j in places], dim=1).mean(-1)


TRUTH: dict[str, Callable[[Look], torch.Tensor]] = {
    "previous": lambda look: whole(look).diagonal(-1, 1, 2).mean(-1),
    "first": lambda look: whole(look)[:, 1:, 0].mean(-1),
    "itself": lambda look: whole(look).diagonal(0, 1, 2)[:, 1:].mean(-1),
    "delimiters": lambda look: whole(look)[:, :, look.text.delimiters].sum(-1).mean(-1),
    "distance": lambda look: ((whole(look) * back_and_forth(look)).sum(-1) / whole(look).sum(-1)).mean(-1),
    "entropy": lambda look: torch.special.entr(outcomes(look)).sum(-1).mean(-1),
    "echo": lambda look: after_the_same(look, 0),
    "induction": lambda look: after_the_same(look, 1),
}


def test_every_lens_of_attention_has_its_truth_here() -> None:
    assert TRUTH.keys() == {name for name, one in LENSES.all().items() if isinstance(one, AttentionLens)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", TRUTH)
def test_figures_are_those_of_the_whole_matrix(name: str, shape: Shape) -> None:
    look, one = made(*shape), LENSES.get(name)
    assert isinstance(one, AttentionLens)
    torch.testing.assert_close(one.of(look).double(), TRUTH[name](look), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_are_means_of_blocks(shape: Shape) -> None:
    look = made(*shape)
    size, p = tile_size(look.text.tokens), whole(look)
    rows = torch.stack([block.mean(1) for block in p.split(size, dim=1)], dim=1)
    truth = torch.stack([block.sum(-1) for block in rows.split(size, dim=2)], dim=2)
    assert truth.shape[1] <= TILES
    torch.testing.assert_close(look.tiles.double(), truth, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(look.tiles.sum(-1).double(), rows.sum(-1), atol=1e-5, rtol=1e-4)


def test_nothing_of_n_by_n_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of a look at 4096 tokens, as torch's allocations tell, is linear in these."""
    look = made(1, 2, 4096, 16, None, None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        for name in TRUTH:
            one = LENSES.get(name)
            assert isinstance(one, AttentionLens)
            one.of(look)
    largest = max(abs(event.cpu_memory_usage) for event in seen.events() if event.name == "[memory]")
    assert 0 < largest < 4096 * 4096 * 4 / 2


def test_a_look_changes_no_bit_of_what_the_model_says(subject: ModelSubject, text: Text) -> None:
    places = torch.arange(text.tokens)
    own = subject.model(text.ids).logits[0]
    plain = subject.logits(text.ids, places, LayerAttention.full)

    def attention(one: LayerAttention) -> torch.Tensor:
        look = Look(one, text)
        for lens in LENSES.all().values():
            if isinstance(lens, AttentionLens):
                lens.of(look)
        return one.full()

    assert torch.equal(subject.logits(text.ids, places, attention), plain)
    assert torch.equal(plain, own)


def test_figures_do_not_depend_on_what_is_looked_at_beside(subject: ModelSubject, text: Text) -> None:
    names = list(TRUTH)
    together = measured(Scene(subject, text), names).figures
    for name in names:
        assert torch.equal(measured(Scene(subject, text), [name]).figures[name], together[name])


def test_figures_of_a_model_are_those_of_its_own_attention(subject: ModelSubject, text: Text) -> None:
    """Against the probabilities that the model itself gives out, not those made of its queries and keys here."""
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(subject.model.name_or_path, attn_implementation="eager").eval()
    own = torch.stack(eager(text.ids, output_attentions=True).attentions)[:, 0]
    found = measured(Scene(subject, text), ["previous", "first"]).figures
    torch.testing.assert_close(found["previous"], own.diagonal(-1, 2, 3).mean(-1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found["first"], own[:, :, 1:, 0].mean(-1), atol=1e-4, rtol=1e-3)
    assert looked_at(subject, text, lambda look: look.attention.layer) == {0: 0, 1: 1, 2: 2}
