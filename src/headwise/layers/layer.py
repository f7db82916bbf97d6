"""An attention layer as a torch module, made of its sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError, ShapeError
from headwise.layers.attend import Attend
from headwise.layers.base import Dims, Project, State, Streams
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.pairs import Position
from headwise.layers.score.dot import Dot
from headwise.layers.sentence import LayerSentence
from headwise.sentence import phrase
from headwise.shapes import Rope, want


@dataclass(frozen=True, eq=False)
class LayerState(State):
    """What a layer's new tokens find: the projection's state, the mix's, how many tokens there were, and the state of
    what follows attention in a host."""

    project: State | None
    mix: State
    tokens: int
    feed: State | None = None

    def truncated(self, tokens: int) -> LayerState:
        if not 0 <= tokens <= self.tokens:
            raise ShapeError(f"of a state after {self.tokens} tokens {tokens} cannot be taken; take 0 to {self.tokens}")
        project = None if self.project is None else self.project.truncated(tokens)
        feed = None if self.feed is None else self.feed.truncated(tokens)
        return LayerState(project, self.mix.truncated(tokens), self.tokens - tokens, feed)


class AttentionLayer(nn.Module):
    """The layer of a sentence, in a model of these sizes.

    `layer(x)` reads whole texts; `layer(x, state)` reads on after a state that an earlier call gave.
    """

    def __init__(self, sentence: LayerSentence | str, dims: Dims) -> None:
        super().__init__()
        self.sentence = LayerSentence.parse(sentence) if isinstance(sentence, str) else sentence
        self.dims = dims
        full, self.mix = self.sentence.full, self.sentence.reader
        project: Project = full["project"]
        self.position: Position = full["position"]
        shape = project.shape(dims)
        if shape.turned == 0 and self.position.turns:
            raise RecipeError(
                f"'{phrase(project)}' has no channels that '{self.position.name}' could turn; give {project.name} "
                "some, such as rope=64, or leave the position out"
            )
        self.project = project.build(dims)
        self.gates = self.mix.build(dims, shape)
        self.out = full["out"].build(dims, shape.heads, self.project.finished_dim or shape.value_dim)

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, LayerState]:
        """`x [batch, tokens, width]` -> the layer's output of that shape, and the state after it.

        segments [batch, tokens]: tokens attend to those of their segment alone, see `Streams`; None is one text a row.
        positions [batch, tokens]: None counts on from the state.
        """
        streams, project = self.streams(x, state, segments, positions)
        before = self.mix.empty(streams) if state is None else state.mix
        one = state is not None and x.shape[1] == 1
        read, mix = self.mix.step(streams, before) if one else self.mix.chunk(streams, before)
        after = LayerState(project, mix, (0 if state is None else state.tokens) + x.shape[1])
        return self.out(self.project.finish(read, x), x), after

    @property
    def attends(self) -> bool:
        """Whether it is softmax attention over pairs without biases, whose keys and values others may keep."""
        mix, shape = self.mix, self.sentence.full["project"].shape(self.dims)
        plain = isinstance(mix, Attend) and isinstance(mix.score, Dot) and isinstance(mix.normalise, Softmax)
        plain = plain and self.sentence.pattern is None
        return plain and not self.position.adds and shape.key_heads == shape.value_heads <= shape.query_heads

    @property
    def rotation(self) -> Rope | None:
        """How the keys that it stores are turned by their positions; None where they are not, or it stores none."""
        shape = self.sentence.full["project"].shape(self.dims)
        return self.position.rotation(shape.turned or shape.key_dim) if self.attends else None

    @torch.no_grad()
    def skeleton(self) -> LayerState:
        """A state of one token, which says what states of this layer consist of."""
        weight = next(self.parameters())
        state: LayerState = self(weight.new_zeros(1, 1, self.dims.width))[1]
        return state

    @property
    def exact_numbers(self) -> int:
        """Numbers that a row's state holds in float32 whatever the layer's type; 0 of a layer that attends."""
        return 0 if self.attends else sum(one[0].numel() for one in self.skeleton().mix.tensors)

    def plain(self, x: Tensor, segments: Tensor | None = None) -> Tensor:
        """What `forward` gives of whole texts, by the mix's plain form."""
        streams, _ = self.streams(x, None, segments, None)
        return self.out(self.project.finish(self.mix.plain(streams), x), x)

    def streams(
        self, x: Tensor, state: LayerState | None, segments: Tensor | None, positions: Tensor | None
    ) -> tuple[Streams, State | None]:
        """What the mix is shown of `x`, and the projection's state after it."""
        sizes = want(x, "b t w", w=self.dims.width)
        if sizes["t"] == 0:
            raise ShapeError("a layer was given no tokens; give at least one")
        if segments is None:
            segments = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        want(segments, "b t", b=sizes["b"], t=sizes["t"])
        if positions is None:
            start = 0 if state is None else state.tokens
            positions = torch.arange(start, start + sizes["t"], device=x.device).expand(x.shape[:2])
        made, project = self.project(x, segments, None if state is None else state.project)
        return self.mix.shown(self.position.turn(made, positions), self.gates, x), project
