"""What a model would say after some of its layers: early states through its final norm and output embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from headwise.calibrate.layerwise import decoder_layers
from headwise.calibrate.subject import ModelSubject
from headwise.errors import UnsupportedModel
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.seams.transformers.forward import last_states


class Exits:
    """The early exits of a model. UnsupportedModel where there are none: the decoder layers do not lie in one list, or
    more is done to logits than the output embedding does."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = decoder_layers(model)
        if not self.layers:
            raise UnsupportedModel("the decoder layers do not lie in one list: no early state can be taken")
        self.head = model.get_output_embeddings()
        self.norm = self._norm(model)

    @contextmanager
    def noting(self) -> Iterator[dict[int, torch.Tensor]]:
        """Within, the state [b, d] of each forward's last token after so many layers, by their number."""
        states: dict[int, torch.Tensor] = {}

        def note(count: int, output: Any) -> None:
            states[count] = (output[0] if isinstance(output, tuple) else output)[:, -1].detach()

        with ExitStack() as hooks:
            for place, layer in enumerate(self.layers):
                hooks.callback(
                    layer.register_forward_hook(lambda _, given, output, count=place + 1: note(count, output)).remove
                )
            yield states

    @torch.no_grad()
    def logits(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """What is said of states [b, d]: [b, states, vocab]."""
        found: torch.Tensor = self.head(self.norm(torch.stack([*states], dim=1))).float()
        return found

    @torch.no_grad()
    def _norm(self, model: PreTrainedModel) -> torch.nn.Module:
        """The norm between the last layer and the output embedding, found by what it is fed and what it gives."""
        inside = {id(one) for layer in self.layers for one in layer.modules()}
        calls: list[tuple[torch.nn.Module, Any, Any]] = []
        subject = ModelSubject(model)
        ids = torch.tensor([[1, 2]], device=subject.device)
        with ExitStack() as hooks, last_states(model) as fed, self.noting() as states:
            for one in model.modules():
                if id(one) not in inside and one is not self.head and not any(True for _ in one.children()):
                    hooks.callback(one.register_forward_hook(lambda *call: calls.append(call)).remove)
            logits = subject.logits(ids, torch.tensor([1]), lambda one: one.full())
        wanted, state = fed[-1][0, -1], states[len(self.layers)]
        for one, given, out in calls:
            if _last_is(given[0] if given else None, state[0]) and _last_is(out, wanted):
                if not torch.allclose(self.head(one(state[:, None]))[0, -1].float(), logits[0].float(), atol=1e-3):
                    break
                return one
        raise UnsupportedModel(
            "the logits are not those of the last layer's state through a norm and the output embedding (they are "
            "capped or scaled); early exits would say another thing than the model, use a decoder without them"
        )


def _last_is(x: Any, wanted: torch.Tensor) -> bool:
    """Whether x is a tensor [b, t, d] that ends in `wanted [d]`."""
    return isinstance(x, torch.Tensor) and x.shape[-1:] == wanted.shape and torch.equal(x[0, -1], wanted)
