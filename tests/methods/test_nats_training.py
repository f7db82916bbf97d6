"""Training of NAtS's heads: types drawn by a hard Gumbel-softmax, whose gradient is the soft one's."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.calibrate.subject import ModelSubject
from headwise.methods.evict.nats.training import TypeTraining, drawn_types, mask_of, trained_heads
from headwise.methods.roles import GLOBAL, LOCAL, NEAR, last_seen
from tests import tiny


def test_drawn_types_are_one_of_three_and_pass_the_soft_gradient() -> None:
    logits = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    types = drawn_types(logits, torch.Generator().manual_seed(1))
    again = drawn_types(logits, torch.Generator().manual_seed(1))
    assert torch.equal(types, again)
    torch.testing.assert_close(types.max(-1).values, torch.ones(2, 50))
    torch.testing.assert_close(types.sum(-1), torch.ones(2, 50))
    assert types[:, [0, -1], GLOBAL].min() > 0.99
    (gradient,) = torch.autograd.grad(types[0, 20, LOCAL], logits)
    assert gradient[0, 20].abs().min() > 0 and not gradient[0, 21].any()


def test_a_type_is_drawn_as_often_as_its_logit_says() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log().expand(1, 20_002, 3)
    share = drawn_types(logits, torch.Generator().manual_seed(0))[0, 1:-1].mean(0)
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1]), atol=0.02, rtol=0)


def test_the_mask_is_what_the_types_let_each_query_see() -> None:
    kinds = torch.randint(3, (2, 60), generator=torch.Generator().manual_seed(0))
    kinds[:, ::9] = GLOBAL
    types = torch.nn.functional.one_hot(kinds, 3).float()
    at = torch.arange(60)
    seen = mask_of(types, 7) > 0
    until = last_seen(kinds, at.expand(2, -1), 7)
    causal = at[:, None] >= at
    assert torch.equal(seen & causal, (at[:, None] <= until[:, None]) & causal)
    assert {GLOBAL, LOCAL, NEAR} == set(kinds.flatten().tolist())


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> ModelSubject:
    return ModelSubject(AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path_factory.mktemp("model"))).eval())


def seen_share(subject: ModelSubject, heads: torch.Tensor) -> float:
    """Share of types that are global, of a text's tokens, by keys that are zero: what the biases alone say."""
    return float(heads[..., -1, :].softmax(-1)[..., GLOBAL].mean())


def test_what_costs_nothing_to_lose_is_not_kept(subject: ModelSubject) -> None:
    """Where only the price of what is seen counts, global types become rarer; where it is free, they do not."""
    ids = torch.randint(2, 512, (1, 80), generator=torch.Generator().manual_seed(0))
    geometry = subject.geometry
    start = torch.zeros(*geometry.by_head, geometry.size("d") + 1, 3)
    texts, steps = [(ids, torch.arange(80))], []
    priced, free = (
        trained_heads(subject, texts, start, 4, TypeTraining(12, 0.1, weight), lambda done, total: steps.append(done))
        for weight in (100.0, 0.0)
    )
    assert priced.shape == start.shape and steps == [*range(1, 13)] * 2
    assert seen_share(subject, priced) < 0.6 * seen_share(subject, start)
    assert seen_share(subject, free) > seen_share(subject, priced)
