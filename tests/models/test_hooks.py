"""Hooks of a training: each does what its paper says, leaves nothing behind, and does nothing at its ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headwise.errors import RecipeError
from headwise.models.hooking import Step
from headwise.models.hooks.sigma_reparam import least_entropy
from headwise.models.host import HeadwiseForCausalLM, HostConfig
from headwise.models.host_training import Schedule, begin, train_host
from headwise.tasks.sequences import Copy
from headwise.training_hooks import HOOKS, parse_hooks

SIZES: dict[str, Any] = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
TASK = Copy(8, 8)


def host(layers: str = "rope", **other: Any) -> HeadwiseForCausalLM:
    torch.manual_seed(0)
    return HeadwiseForCausalLM(HostConfig(layers, **SIZES | other))


def step(model: nn.Module) -> Step:
    ids = torch.randint(0, 8, (4, 8), generator=torch.Generator().manual_seed(1))
    return Step(model, ids, ids, model(input_ids=ids).logits)


def trained(tmp_path: Path, hooks: str, layers: str = "rope", steps: int = 3, **other: Any) -> dict[str, Any]:
    schedule = Schedule(steps, batch=4, lr=1e-2, held=8)
    training = begin(HostConfig(layers, **SIZES | other), schedule, "copy", hooks)
    return train_host(training, schedule, TASK.sequence, tmp_path / (hooks or "none"), lambda *told: None)


@pytest.mark.parametrize(
    ("hooks", "other"),
    [
        ("few_gates", {"layers": "here_or_all(3)"}),
        ("balance", {"feed": "experts(3)"}),
        ("balance(0.1)", {"layers": "rope | routed_heads(0, top=1)"}),
        ("sigma_reparam", {}),
        ("sigma_reparam | balance | few_gates", {"layers": "here_or_all(3)", "feed": "experts(2)"}),
    ],
)
def test_a_host_is_saved_without_its_hooks(tmp_path: Path, hooks: str, other: dict[str, Any]) -> None:
    figures = trained(tmp_path, hooks, **other)
    again = HeadwiseForCausalLM.from_pretrained(tmp_path / hooks)
    assert not any("parametrizations" in name for name, _ in again.named_parameters())
    assert figures["parameters"] == sum(one.numel() for one in again.parameters())
    plain = HeadwiseForCausalLM(again.config)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in again.named_parameters()}


def test_a_stopped_training_with_hooks_goes_on_the_same(tmp_path: Path) -> None:
    hooks, schedule = "sigma_reparam | balance", Schedule(4, batch=4, lr=1e-2, held=8)

    def begun() -> Any:
        return begin(HostConfig("rope", feed="experts(2)", **SIZES), schedule, "copy", hooks)

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_host(begun(), schedule, TASK.sequence, tmp_path / "two", stop)
    ends = [
        train_host(begun(), schedule, TASK.sequence, tmp_path / name, lambda *told: None) for name in ("two", "one")
    ]
    assert ends[0]["loss"] == ends[1]["loss"]


@pytest.mark.parametrize(
    ("hooks", "other"), [("few_gates(0)", {"layers": "here_or_all(3)"}), ("balance(0)", {"feed": "experts(3)"})]
)
def test_a_weight_of_nothing_is_no_hook(tmp_path: Path, hooks: str, other: dict[str, Any]) -> None:
    assert trained(tmp_path, hooks, **other)["loss"] == trained(tmp_path, "", **other)["loss"]


def test_few_gates_closes_gates(tmp_path: Path) -> None:
    read = [trained(tmp_path, hooks, "here_or_all(2)", 40)["read"] for hooks in ("", "few_gates(1.0)")]
    assert read[0] > 0.9 and read[1] < 0.6


def test_balance_takes_from_the_expert_that_is_sent_everything() -> None:
    """All tokens are alike, and so are sent to one expert of each router: an update makes its share smaller."""
    model: Any = host(feed="experts(3)")
    (hook,) = (one.attach(model) for one in parse_hooks("balance(1.0)"))
    ids = torch.zeros(2, 8, dtype=torch.int64)

    def uneven() -> torch.Tensor:
        return hook.loss(Step(model, ids, ids, model(input_ids=ids).logits))

    routers = [layer.feed.router.proj.weight for layer in model.layers]
    with torch.no_grad():
        for weight in routers:
            weight *= 20  # so that one expert stands out
    before = uneven()
    with torch.no_grad():
        for weight, pull in zip(routers, torch.autograd.grad(before, routers), strict=True):
            weight -= 0.1 * pull
    assert float(uneven().detach()) < float(before.detach()) - 1e-3


def test_weights_have_the_spectral_norm_that_is_learned() -> None:
    """Row 114: gamma is 1 before training."""
    model: Any = host()
    before = {name: one.weight.clone() for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    (hook,) = (one.attach(model) for one in parse_hooks("sigma_reparam(200)"))
    for name, one in model.named_modules():
        if name in before:
            torch.testing.assert_close(
                one.weight, before[name] / torch.linalg.matrix_norm(before[name], 2), rtol=1e-3, atol=1e-5
            )
    hook.finish()
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("tokens", "size"), [(8, 1.0), (8, 20.0), (64, 5.0)])
def test_no_row_has_less_entropy_than_the_bound(tokens: int, size: float) -> None:
    """Row 114: on random scores and on those that are worst, a single high one in a row of zero mean."""
    torch.manual_seed(0)
    for scores in (torch.randn(200, tokens) * size, torch.eye(tokens).sub(1 / tokens) * size):
        scores = scores.double()
        norms = (scores - scores.mean(-1, keepdim=True)).norm(dim=-1)
        entropy = torch.special.entr(scores.softmax(-1)).sum(-1)
        least = torch.tensor([least_entropy(tokens, float(one)) for one in norms])
        assert (entropy >= least - 1e-9).all()
    assert (entropy - least).abs().max() < 1e-6  # the worst rows reach it


def test_a_copied_layer_has_nothing_to_learn(tmp_path: Path) -> None:
    """Row 116: both losses are 0, and neither is for another teacher."""
    host().save_pretrained(tmp_path)
    for values in (0.0, 1.0):
        (hook,) = (one.attach(host()) for one in parse_hooks(f"minilm('{tmp_path}', values={values})"))
    model = host()
    (hook,) = (one.attach(model) for one in parse_hooks(f"minilm('{tmp_path}')"))
    assert abs(float(hook.loss(step(model)).detach())) < 1e-6
    hook.finish()
    torch.manual_seed(9)
    other = HeadwiseForCausalLM(HostConfig("rope", num_hidden_layers=1, **SIZES | {"hidden_size": 32}))
    (hook,) = (one.attach(other) for one in parse_hooks(f"minilm('{tmp_path}')"))
    assert float(hook.loss(step(other)).detach()) > 1e-6


def test_centres_move_to_where_keys_are() -> None:
    """Row 42: each towards the mean of the keys nearest to it, and one that has none stays."""
    model: Any = host("clusters(3)")
    (hook,) = (one.attach(model) for one in parse_hooks("move_centres(0.5)"))
    centres = model.layers[0].attention.gates.cluster_centres
    before = centres.clone()
    step(model)
    keys = hook.keys[0]
    hook.stepped()
    for head in range(2):
        unit = torch.nn.functional.normalize(keys[:, head].flatten(0, 1), dim=-1)
        own = (unit @ before[head, 0].T).argmax(-1)
        for place, centre in enumerate(before[head, 0]):
            moved = 0.5 * centre + 0.5 * unit[own == place].mean(0) if (own == place).any() else centre
            torch.testing.assert_close(centres[head, 0, place], moved / moved.norm(), rtol=1e-4, atol=1e-5)
    hook.finish()
    assert not any(layer.attention._forward_hooks for layer in model.layers)


def test_hooks_that_find_nothing_are_refused(tmp_path: Path) -> None:
    host().save_pretrained(tmp_path)
    for text, other, told in (
        ("few_gates", {}, "give one the pattern here_or_all"),
        ("balance", {}, "give it experts"),
        ("move_centres", {}, "give one the pattern clusters"),
        (f"minilm('{tmp_path}')", {"num_attention_heads": 4}, "2 heads in the teacher and 4 in the student"),
        ("few_gate", {}, "did you mean 'few_gates'"),
    ):
        with pytest.raises(RecipeError, match=told):
            [one.attach(host(**other)) for one in parse_hooks(text)]
    assert all(one.card.does and one.card.ablation for one in HOOKS.all().values())  # type: ignore[attr-defined]
