"""The laws of what follows attention: every feed part in chunks is itself at once, and computes what it should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headwise.layer_parts import FEEDS
from headwise.layers.base import PADDING
from headwise.layers.experts.experts import Sent
from headwise.layers.feeds import FeedModule, Gated
from headwise.layers.routing import chosen

WIDTH, HIDDEN = 12, 8
FEED_PARTS = tuple(FEEDS.all())
every = pytest.mark.parametrize("name", FEED_PARTS)
SEGMENTS = torch.tensor([[PADDING] * 3 + [0] * 5 + [1] * 3, [0] * 11])


def module(name: str) -> FeedModule:
    torch.manual_seed(4)
    made: FeedModule = FEEDS.get(name)().build(WIDTH, HIDDEN)
    with torch.no_grad():
        for one in made.parameters():
            one.mul_(3)
    return made


def inputs() -> Tensor:
    return torch.randn(2, 11, WIDTH, generator=torch.Generator().manual_seed(1))


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every
def test_a_text_in_chunks_is_the_text_at_once(name: str) -> None:
    made, x = module(name), inputs()
    whole, _ = made(x, SEGMENTS, None)
    for cut in (1, 4):
        found, state = [], None
        for piece, own in zip(x.split(cut, 1), SEGMENTS.split(cut, 1), strict=True):
            out, state = made(piece, own, state)
            found.append(out)
        near(torch.cat(found, 1), whole)


@every
def test_no_token_is_changed_by_a_later_one_or_another_text(name: str) -> None:
    made, x, other = module(name), inputs(), inputs()
    other[0, :3] += 1
    other[0, 8:] += 1
    near(made(other, SEGMENTS, None)[0][0, 3:8], made(x, SEGMENTS, None)[0][0, 3:8])
    near(made(x[:1, 3:8], SEGMENTS[:1, 3:8], None)[0], made(x, SEGMENTS, None)[0][:1, 3:8])


@every
def test_a_state_holds_the_bytes_that_are_said(name: str) -> None:
    _, state = module(name)(inputs(), SEGMENTS, None)
    assert (0 if state is None else state.nbytes) == 2 * FEEDS.get(name)().state_bytes(WIDTH, 11, 4)


@every
def test_experts_are_asked_about_their_own_tokens_alone(name: str) -> None:
    """The answer is the sum over all experts of weighed answers, most of which are never computed."""
    made, x, asked = module(name), inputs(), []
    networks = [one for one in made.modules() if isinstance(one, Gated)]
    for one in networks:
        one.register_forward_hook(lambda network, given, answer: asked.append(given[0].numel() // WIDTH))
    found, _ = made(x, SEGMENTS, None)
    top = made.router.top if isinstance(made, Sent) else 1
    assert sum(asked) == top * 22
    if isinstance(made, Sent):
        weights = chosen(_shares(made, x), top)
        near(found, sum(weights[..., [e]] * network(x) for e, network in enumerate(networks)))  # type: ignore[arg-type]


def _shares(made: Sent, x: Tensor) -> Tensor:
    """The shares of experts, by the paper's sums over the tokens that a token sees."""
    own, like = made.router(x), getattr(made, "like", None)
    if like is None:
        return own
    assert isinstance(like, nn.Linear)
    rows = []
    for row in range(2):
        for i in range(11):
            seen = [j for j in range(i + 1) if SEGMENTS[row, j] == SEGMENTS[row, i]]
            weights = torch.stack([like(x[row, i]) @ x[row, j] * WIDTH**-0.5 for j in seen]).softmax(0)
            rows.append(weights @ own[row, seen])
    return torch.stack(rows).unflatten(0, (2, 11))


@every
def test_all_weights_are_moved(name: str) -> None:
    made, x = module(name), inputs()
    out = made(x, SEGMENTS, None)[0].square().sum()
    found = torch.autograd.grad(out, [*made.parameters()], allow_unused=True)
    assert all(one is not None and one.abs().sum() > 0 for one in found)
