"""A student's last layer learns a teacher's attention, and how its values relate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.errors import RecipeError
from headwise.knobs import Weight, Word
from headwise.layers.attend import Attend
from headwise.layers.base import Streams
from headwise.layers.layer import AttentionLayer
from headwise.models.hooking import Attached, Hook, Step, attention_layers
from headwise.models.host import HeadwiseForCausalLM
from headwise.training_hooks import HookCard, training_hook

LEAST = 1e-20  # of a probability whose logarithm is taken


@training_hook("minilm")
@dataclass(frozen=True)
class MiniLM(Hook):
    """The divergences of the last layer's attention weights, and of its value relations, from a teacher's are added to
    the loss. Widths and depths may differ, heads may not.

    teacher: a host's folder. values: weight of the value relations; attention weighs 1.
    """

    teacher: Word
    values: Weight = 1.0
    card: ClassVar[HookCard] = HookCard(
        "MiniLM",
        "MiniLM, 2002.10957, section 3",
        "a smaller host learns what its teacher's last layer looks at",
        "loss + KL(A_T || A_S) + values KL(VR_T || VR_S), VR = softmax(V V^T / sqrt(d))",
        "values=0: attention alone",
        systems=(116,),
        deviations="the task's own loss stays beside it, where the paper trains by these two alone; relations are of "
        "tokens that a token sees",
    )

    def attach(self, model: nn.Module) -> Distilled:
        teacher = HeadwiseForCausalLM.from_pretrained(self.teacher).eval().requires_grad_(False)
        return Distilled(teacher, model, self.values)


class Distilled(Attached):
    """`minilm` at work. `streams` are what the last layers of teacher and student were shown in the newest forward."""

    def __init__(self, teacher: nn.Module, student: nn.Module, values: float) -> None:
        self.teacher, self.values = teacher, values
        self.last = tuple(list(attention_layers(one))[-1] for one in (teacher, student))
        heads = [layer.dims.heads for layer in self.last]
        if heads[0] != heads[1] or not all(isinstance(layer.mix, Attend) for layer in self.last):
            raise RecipeError(
                f"minilm: the last layers have {heads[0]} heads in the teacher and {heads[1]} in the student, and both "
                "must attend over pairs; give the student as many heads, and no running state last"
            )
        self.streams: dict[int, Streams] = {}
        self.handles = [layer.register_forward_hook(self._hear(place)) for place, layer in enumerate(self.last)]

    def _hear(self, place: int):  # type: ignore[no-untyped-def]
        def hear(layer: AttentionLayer, given: tuple[Tensor, ...], made: object) -> None:
            self.streams[place] = layer.streams(*given)[0]  # type: ignore[arg-type]

        return hear

    def loss(self, step: Step) -> Tensor:
        with torch.no_grad():
            self.teacher(input_ids=step.ids)
        found = [self._looks(place) for place in (0, 1)]
        return diverged(found[0][0], found[1][0]) + self.values * diverged(found[0][1], found[1][1])

    def _looks(self, place: int) -> tuple[Tensor, Tensor]:
        """The attention weights of a last layer and its value relations, each [batch, heads, tokens, tokens]."""
        streams, mix = self.streams[place], self.last[place].mix
        assert isinstance(mix, Attend)
        weights, v = mix.weights(streams), streams.v
        hidden = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
        alike = (v @ v.transpose(-1, -2) * v.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
        return weights, alike.softmax(-1)

    def finish(self) -> None:
        for handle in self.handles:
            handle.remove()


def diverged(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean over rows of KL(teacher || student), of probabilities over the last dimension."""
    inner = F.kl_div(student.clamp_min(LEAST).log(), teacher, reduction="none")
    return inner.sum(-1).mean()
