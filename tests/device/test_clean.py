"""No tensor of the CPU meets one of the device, whatever a session follows; numbers are those of a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from headwise import Cache
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.forms import Scoring
from headwise.geometry import Geometry
from headwise.kernels import sdpa
from headwise.kernels.dispatch import only
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods
from headwise.seams.transformers.forward import cache_argument
from tests.contract.drive import Text, decode, everything, feed, small
from tests.contract.steer import cases
from tests.device.fake import DEVICE, fake_cuda
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


@pytest.mark.parametrize("name", sorted(methods("steer")))
def test_steering_stays_on_its_device(name: str) -> None:
    part, text = cases.method(name), cases.texts()
    with only("reference", "decoded"):
        _, want = cases.steered(part, text)
        with fake_cuda():
            got = cases.steered(part, there(text), device=DEVICE)[1].cpu()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", ["h2o(0.5, sinks=2, recent=6) | int8 | quest(16)", "snapkv(0.5) | kivi(window=8)"])
def test_sessions_go_to_files_and_back(recipe: str, tmp_path: Path) -> None:
    plan, text = Plan.uniform(SHAPE, recipe), Text.random(SHAPE, PROMPT + STEPS)
    outs = []
    with only("reference", "decoded"), fake_cuda():
        session, text = Session(plan, device=DEVICE), there(text)
        feed(session, text, 0, PROMPT, "prefill")
        save_session(session, tmp_path / "one")
        for own in (session, load_session(tmp_path / "one", plan, device=DEVICE)[0]):
            outs.append(decode(own, text, PROMPT, STEPS).cpu())
    assert torch.equal(*outs)


def test_a_dense_step_reads_nothing_back() -> None:
    """Of a step of decoding by fused kernels the host learns nothing, so that it never waits for the device."""
    shape = Geometry.uniform(4, 2, 32, 32, (None, 40), 4096)
    text, plan = Text.random(shape, PROMPT + STEPS), Plan.uniform(shape, "")
    with fake_cuda() as watch, only("sdpa", "reference", "decoded"):
        session, text = Session(plan, device=DEVICE), there(text)
        feed(session, text, 0, PROMPT, "prefill")
        watch.copies.clear()
        decode(session, text, PROMPT, STEPS)
    assert watch.copies["to host"] == 0
    assert session.ledger.operations["decode", "attend", "sdpa"] == len(shape.layers) * STEPS


RECIPES = ["", "vertical_slash(8, slashes=16) | snapkv(0.5) | int8 | quest(16)", "kvzip(0.5)"]


def test_a_model_stays_on_its_device() -> None:
    """A model of transformers' is attached, checked, read with padding and written with, all on the device."""
    want, got = [], []
    ids = torch.randint(0, 64, (2, 60), generator=torch.Generator().manual_seed(0))
    for found, device, there_is in ((want, "cpu", nullcontext), (got, str(DEVICE), fake_cuda)):
        with there_is():
            model = moved(llama(), device)
            for recipe in RECIPES:
                mask = torch.ones_like(ids)
                mask[0, :9] = 0
                with only("reference", "decoded"):
                    out = model.generate(
                        ids.to(device),
                        attention_mask=mask.to(device),
                        max_new_tokens=4,
                        do_sample=False,
                        pad_token_id=0,
                        **{cache_argument(type(model)): Cache(model, recipe)},
                    )
                found.append(out.cpu())
    assert all(torch.equal(one, other) for one, other in zip(want, got, strict=True))


def llama() -> LlamaForCausalLM:
    """A small model of random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, num_hidden_layers=2, max_position_embeddings=512, **sizes)
    ).eval()


def moved(model: LlamaForCausalLM, device: str) -> LlamaForCausalLM:
    """The model with its weights on a device; `Module.to` does not move to tensors of another class."""
    for module in model.modules():
        for name, one in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(one.detach().to(device), requires_grad=False))
        for name, one in module.named_buffers(recurse=False):
            setattr(module, name, one.to(device))
    return model
