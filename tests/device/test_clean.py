"""No tensor of the CPU meets one of the device, whatever a session follows; see `fake.py`. Numbers are those of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.forms import Attended, Full, Scoring, Window, join
from headwise.geometry import Geometry
from headwise.kernels import sdpa
from headwise.kernels.dispatch import noted, only
from headwise.kernels.request import Request
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods
from tests.contract.drive import Text, decode, everything, feed, small
from tests.contract.steer import cases
from tests.device.fake import DEVICE, Fake, Watch, fake_cuda
from tests.methods.views import rope

PROMPT, STEPS = 70, 2
SHAPE = Geometry.uniform(4, 2, 32, 16, (None, 40), 4096)
LIVE = torch.arange(PROMPT) >= torch.tensor([[0], [5]])  # the second row has five tokens of padding


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    """What was found of the fake device holds for no other."""
    yield
    sdpa.trial.cache_clear()


def there(text: Text) -> Text:
    """The text on the device."""
    return Text(*(x.to(DEVICE) for x in (text.q, text.k, text.v)))


def through(session: Session, text: Text, live: Tensor | None) -> Tensor:
    """What a session puts out of a prompt, of steps after it, and of a fork once a step was taken back."""
    outs = [feed(session, text, 0, PROMPT, "prefill", live=live), decode(session, text, PROMPT, 1)]
    fork = session.fork()
    fork.begin(1, "decode", ids=torch.full((session.rows, 1), PROMPT + 1))
    fork.step(0, *(x[0, :, :, PROMPT + 1 :] for x in (text.q, text.k, text.v)), Scoring(0.25))
    fork.abort()
    outs.append(decode(fork, text, PROMPT + 1, STEPS - 1))
    return torch.cat([out.cpu() for out in outs], dim=3)


@pytest.mark.parametrize("name", ["dense", *everything()])
def test_a_session_stays_on_its_device(name: str) -> None:
    recipe = Recipe() if name == "dense" else small(name)
    plan, ropes = Plan.uniform(SHAPE, recipe), [rope(32)] * 2
    text = Text.random(SHAPE, PROMPT + STEPS, rows=2)
    with only("reference", "decoded"):
        want = through(Session(plan, rows=2, ropes=ropes), text, LIVE)
        with fake_cuda():
            session = Session(plan, rows=2, ropes=ropes, device=DEVICE)
            got = through(session, there(text), LIVE)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
