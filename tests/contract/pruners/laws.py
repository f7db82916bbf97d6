"""The laws of every pruner, as functions of one, and what they are tried on: a small random Llava."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from headwise.pruners import PRUNERS, Pruner, pruner
from headwise.seams.transformers.cache import Through, attach
from headwise.seams.transformers.encoder import image_features
from headwise.seams.transformers.forward import forward
from headwise.vision.pruners.dyvte import Facts, Router
from headwise.vision.router import FORM, write_tensors
from headwise.vision.seen import Picture, Read, cost, read
from tests.engine.small import tokens
from tests.seams.transformers.seeing import IMAGE_TOKEN, PLACES, pixels, seeing

TEXTS = 14


@cache
def model() -> Any:
    """The small model."""
    return seeing()


@cache
def router() -> str:
    """A router that lets the image leave before the second layer."""
    torch.manual_seed(0)
    made = Router(64, 8)
    made.second.bias.data = torch.tensor([0.0, 9.0])
    path = Path(mkdtemp()) / "router"
    facts = Facts(model=attach(model()).fingerprint, questions=1, positive=0.5)
    write_tensors(path, FORM, facts.model_dump(), dict(made.state_dict()))
    return str(path)


def prompt() -> torch.Tensor:
    """Ids [n] with the places of an image."""
    ids = tokens(TEXTS + PLACES)[0]
    ids[3 : 3 + PLACES] = IMAGE_TOKEN
    return ids


def made(name: str) -> Pruner:
    """The pruner of a name, at knobs with which it leaves something out of a model of three layers."""
    knobs = {"exit_at": "layer=2", "dyvte": f"'{router()}'"}.get(name, "")
    return pruner(f"{name}({knobs})" if knobs else name)


def run(one: Pruner | None, seed: int = 0) -> Read:
    """The prompt as it was read."""
    return read(model(), prompt(), Picture(model(), pixels()[0]), one, seed)


def own_logits() -> torch.Tensor:
    """What the model says by itself."""
    with torch.no_grad():
        out: torch.Tensor = model()(input_ids=prompt()[None], pixel_values=pixels(), use_cache=False).logits[0, -1]
    return out


def everything_is_the_model(one: Pruner) -> None:
    """At the setting that leaves out nothing the logits are the model's own."""
    whole = run(pruner(type(one).everything))
    assert whole.counts == (PLACES,) * 3
    torch.testing.assert_close(whole.logits, own_logits(), atol=1e-5, rtol=1e-5)


def leaving_is_being_hidden(one: Pruner) -> None:
    """Tokens that have left are as tokens that nobody sees from that layer on, in the model's own forward."""
    hidden: dict[int, torch.Tensor] = {}

    class Noting(Pruner):
        name, card, everything = one.name, one.card, ""

        def stay(self, seen: Any) -> torch.Tensor | None:
            stay = one.stay(seen)
            kept = torch.zeros(PLACES, dtype=torch.bool)
            kept[seen.places if stay is None else seen.places[stay]] = True
            hidden[seen.layer] = ~kept
            return stay

    pruned = run(Noting())
    gone = {layer: torch.zeros(TEXTS + PLACES, dtype=torch.bool) for layer in range(3)}
    for layer in gone:
        gone[layer][3 : 3 + PLACES] = hidden.get(layer, torch.ones(PLACES, dtype=torch.bool))

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Any) -> torch.Tensor:
        k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], 1) for one in (k, v))
        scores = q @ k.mT * asked.scoring.scale
        mask = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1) | gone[layer]
        mask &= ~torch.eye(len(mask), dtype=torch.bool)  # what is hidden still sees itself, and nobody sees that
        return scores.masked_fill(mask, -torch.inf).softmax(-1) @ v

    with torch.no_grad():
        out = forward(model(), Through(model(), attend), prompt()[None], pixel_values=pixels()).logits[0, -1]
    torch.testing.assert_close(pruned.logits, out, atol=1e-4, rtol=1e-4)


def it_takes_what_was_predicted(one: Pruner) -> None:
    """Pairs and bytes are those of the tokens that reached each layer, which knobs tell where they can."""
    found = run(one)
    told = cost(found.counts, TEXTS, found.staged.geometry)
    assert told == {"pairs": sum(found.staged.pairs), "bytes": found.staged.nbytes}
    assert list(found.counts) == sorted(found.counts, reverse=True), "what has left does not come back"
    if (predicted := one.counts(PLACES, 3)) is not None:
        assert predicted == list(found.counts)


def something_is_left_out(one: Pruner) -> None:
    """The prompt takes less than the whole one."""
    assert sum(run(one).counts) < 3 * PLACES


def the_same_again(one: Pruner) -> None:
    """A call depends on its prompt and seed alone."""
    first = run(one)
    run(one, seed=5)
    again = run(one)
    assert torch.equal(first.kept, again.kept) and torch.equal(first.logits, again.logits)


def the_model_is_what_it_was(one: Pruner) -> None:
    """What the model and its encoder compute afterwards is the same, bit for bit."""
    before, features = own_logits(), image_features(model(), pixels())
    run(one)
    assert torch.equal(own_logits(), before) and torch.equal(image_features(model(), pixels()), features)


LAWS: tuple[Callable[[Pruner], None], ...] = (
    everything_is_the_model,
    leaving_is_being_hidden,
    it_takes_what_was_predicted,
    something_is_left_out,
    the_same_again,
    the_model_is_what_it_was,
)
NAMES = sorted(PRUNERS.all())
