"""Lenses of hosts that are no decoders: those of attention, taken of each stack of layers; all others say why they are
not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from headwise.errors import ContextError, HeadwiseError
from headwise.lens.host_look import HostLook, Reading, frames, picture, text
from headwise.lens.measured import Measured, Watch, silent
from headwise.lens.scene import REPEATED
from headwise.lenses import LENSES, AttentionLens
from headwise.observe.host import IMAGE, READ, SOURCE, TARGET, Host, HostAttention, Stack

Found = TypeVar("Found")
# What a stack lacks for a lens, and where the lens can be taken, by what it needs.
LACKS = {
    "one": "asks where a query stands among the keys, and those of {stack} are of another input; take it of the "
    "encoder or the decoder",
    "words": "asks for words, and the keys of {stack} are none; take it of a model that reads text",
    "random": "is told on random tokens, and {stack} read none; take it of a model that reads text",
    "next": "is of attention that foretells the next token, and {stack} look both ways; take it of a decoder",
}
NO_NEXT = (
    "is told by how a model foretells its next token, which decoders alone are asked; give a causal language model"
)


@dataclass(frozen=True, eq=False)
class HostScene:
    """A host and what it reads, by name. seed: of random tokens."""

    host: Host
    readings: Mapping[str, Reading]
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = READ[self.host.kind]
        if set(self.readings) != set(wanted):
            given = " and ".join(self.readings) or "nothing"
            raise HeadwiseError(f"{self.host.name} reads {' and '.join(wanted)}, {given} was given; give just that")
        for name, one in self.readings.items():
            most = self.host.positions[name]
            if most is not None and one.tokens > most:
                raise ContextError(
                    f"the {name} has {one.tokens} tokens, {self.host.name} has positions for {most}; give that many or "
                    "fewer"
                )
            if one.delimiters is not None and int(one.shown.max()) >= self.host.vocabulary:
                raise HeadwiseError(
                    f"the {name} holds token {int(one.shown.max())}, {self.host.name} knows {self.host.vocabulary}; "
                    "give it the tokenizer of this model"
                )

    def random(self, name: str) -> HostScene:
        """The same where one of what is read is random tokens, read twice: as in `Scene`."""
        generator = torch.Generator().manual_seed(self.seed)
        most = self.host.positions[name]
        count = min(REPEATED, self.host.vocabulary, REPEATED if most is None else most // 2)
        half = torch.randperm(self.host.vocabulary, generator=generator)[:count]
        return replace(self, readings={**self.readings, name: text(half.repeat(2)[None])})


def read_picture(host: Host, pixels: torch.Tensor) -> Reading:
    """A picture as an image encoder reads it, [1, channels, height, width]."""
    return picture(pixels, host.grid(pixels), _tokens(host, {IMAGE: pixels}))


def read_sound(host: Host, features: torch.Tensor, target: Reading) -> Reading:
    """A source that is no text, such as features of sound, as an encoder reads it beside a target."""
    return frames(features, _tokens(host, {SOURCE: features, TARGET: target.shown}))


def _tokens(host: Host, inputs: Mapping[str, torch.Tensor]) -> int:
    """The tokens that the first layer of an encoder makes of its input."""
    found: list[int] = []
    host.look(inputs, lambda one: found.append(one.q.shape[1]))
    return found[0]


def looked_into(
    scene: HostScene, of: Callable[[HostLook], Found], stacks: Sequence[Stack] | None = None
) -> dict[str, dict[int, Found]]:
    """What `of` makes of the look at each layer of these stacks, all by default, by stack and layer, in one forward
    whose result is what it is without a look."""
    chosen = {one.name for one in (scene.host.stacks if stacks is None else stacks)}
    found: dict[str, dict[int, Found]] = {one.name: {} for one in scene.host.stacks if one.name in chosen}

    def see(one: HostAttention) -> None:
        stack = one.stack
        if stack.name in chosen:
            look = HostLook(one, scene.readings[stack.queries], scene.readings[stack.keys])
            found[stack.name][one.layer] = of(look)

    scene.host.look({name: one.shown for name, one in scene.readings.items()}, see)
    return found


def lacks(scene: HostScene, stack: Stack, name: str) -> str | None:
    """Why a lens is not taken of a stack; None where it is."""
    one = LENSES.get(name)
    if not isinstance(one, AttentionLens):
        return NO_NEXT
    there = {
        "one": stack.queries == stack.keys,
        "words": scene.readings[stack.keys].delimiters is not None,
        "random": scene.readings[stack.queries].delimiters is not None,
        "next": stack.causal,
    }
    missing = [need for need in LACKS if need in one.needs and not there[need]]
    return LACKS[missing[0]].format(stack=f"the {stack.name} layers of {scene.host.name}") if missing else None


def measured_host(scene: HostScene, names: Sequence[str], watch: Watch = silent) -> dict[str, Measured]:
    """The figures of these lenses by stack: those of what was given in one forward, those of random tokens in one for
    each text that is read."""
    refused = {
        stack.name: {name: why for name in names if (why := lacks(scene, stack, name)) is not None}
        for stack in scene.host.stacks
    }
    figures: dict[str, dict[str, torch.Tensor]] = {stack.name: {} for stack in scene.host.stacks}
    for random in (False, True):
        for group, stacks in _forwards(scene, random).items():
            own = {
                stack.name: {
                    name: one
                    for name in names
                    if isinstance(one := LENSES.get(name), AttentionLens)
                    and one.random == random
                    and name not in refused[stack.name]
                }
                for stack in stacks
            }
            if not any(own.values()):
                continue
            watch("looking at random tokens" if random else "looking at what was given", 0, 0)

            def of(look: HostLook, own: Mapping[str, Mapping[str, AttentionLens]] = own) -> dict[str, torch.Tensor]:
                return {name: one.of(look).cpu() for name, one in own[look.attention.stack.name].items()}

            shown = scene.random(group) if random else scene
            for stack_name, layers in looked_into(shown, of, stacks).items():
                for name in own[stack_name]:
                    figures[stack_name][name] = _table([layers[layer][name] for layer in sorted(layers)])
    return {
        name: Measured({one: own[one] for one in names if one in own}, refused[name]) for name, own in figures.items()
    }


def _forwards(scene: HostScene, random: bool) -> dict[str, list[Stack]]:
    """The stacks that one forward serves: all where what was given is read; by what they read where that is random."""
    if not random:
        return {"": list(scene.host.stacks)}
    return {name: [one for one in scene.host.stacks if one.queries == one.keys == name] for name in scene.readings}


def _table(rows: list[torch.Tensor]) -> torch.Tensor:
    """Figures [heads] of each layer as [layers, heads], not a number where a layer has fewer."""
    found = torch.full((len(rows), max(map(len, rows))), torch.nan)
    for layer, row in enumerate(rows):
        found[layer, : len(row)] = row
    return found
