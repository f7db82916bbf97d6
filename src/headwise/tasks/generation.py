"""Checks of what a model writes on its own: whether it falls into a loop, and whether a tool call is valid JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from headwise.models.embedded import words
from headwise.tasks.base import Ask, Item, Many, Space, Task, register
from headwise.tasks.haystack import book, buried, running, wordlist

LONGEST_LOOP = 64  # words
ROUNDS = 3  # the same words so often in a row are a loop
VERBS = wordlist("find book cancel send order check change rent play translate")
OBJECTS = wordlist("room flight table ticket message parcel song letter boat lamp")
FIELDS = (("city", "string"), ("name", "string"), ("count", "integer"), ("days", "integer"), ("urgent", "boolean"))
LEAST = 2  # tools
OPENED = '{"tool":'  # the start of a call, part of the prompt


def loop_start(text: list[str]) -> int:
    """Where in a list of words the first loop begins: up to LONGEST_LOOP words, ROUNDS times in a row; its length where
    there is none."""
    starts = [len(text)]
    for size in range(1, LONGEST_LOOP + 1):
        same = 0
        for place in range(size, len(text)):
            same = same + 1 if text[place] == text[place - size] else 0
            if same == size * (ROUNDS - 1):
                starts.append(place + 1 - ROUNDS * size)
                break
    return min(starts)


@register
@dataclass(frozen=True)
class Loops(Task):
    """A text that is to be continued; scored by the share of the words written before a loop begins.

    length: new tokens to write.
    """

    name: ClassVar[str] = "loops"
    family: ClassVar[str] = "generation"
    source: ClassVar[str] = "own"
    length: Many = 256

    def item(self, room: Space, rng: Random, number: int) -> Item:
        text = running(book(self.split), rng, room.context)
        whole = buried(room, text, [], [], [Ask(" so", (), self.length)])
        document, _, last = whole.rpartition(" ")
        return Item(document, (Ask(f" {last}", (), self.length),))

    def score(self, ask: Ask, output: str) -> float:
        text = output.split()
        return loop_start(text) / len(text) if text else 0.0


@register
@dataclass(frozen=True)
class ToolCall(Task):
    """Tools with typed arguments, as many as the context holds; one is to be called, as a JSON object.

    Half the score is for a valid call: JSON of the tool's name and arguments of the right names and types; the other
    half is for the right values.
    """

    name: ClassVar[str] = "tool_call"
    family: ClassVar[str] = "generation"
    source: ClassVar[str] = "own"

    def item(self, room: Space, rng: Random, number: int) -> Item:
        tools = self._tools(rng, max(LEAST, room.context // 15))
        chosen = rng.getrandbits(64)

        def made(size: int) -> Item:
            place = Random(chosen).randrange(size)
            listed = "\n".join(json.dumps(tool) for tool in tools[:size])
            ask = self._ask(room, Random(chosen), tools[place], place / size)
            return Item(f"These tools can be called:\n{listed}", (ask,))

        return room.fill(made, (LEAST, len(tools)))

    def score(self, ask: Ask, output: str) -> float:
        wanted = json.loads(OPENED + ask.expected[0])
        try:
            found, _ = json.JSONDecoder().raw_decode(OPENED + output)
        except ValueError:
            return 0.0
        return 0.5 * _valid(found, wanted) + 0.5 * (found == wanted)

    @staticmethod
    def _tools(rng: Random, count: int) -> list[dict[str, Any]]:
        """Different tools; names are numbered where there are not enough."""
        names = [f"{verb}_{thing}" for verb in VERBS for thing in OBJECTS]
        numbered = [f"{name}_{i}" if i else name for i in range(1 + count // len(names)) for name in names]
        return [{"tool": name, "arguments": dict(rng.sample(FIELDS, 2))} for name in rng.sample(numbered, count)]

    @staticmethod
    def _ask(room: Space, rng: Random, tool: dict[str, Any], depth: float) -> Ask:
        values = {
            "string": rng.choice(words.FIRST_NAMES),
            "integer": rng.randrange(2, 30),
            "boolean": rng.random() < 0.5,
        }
        arguments = {name: values[kind] for name, kind in tool["arguments"].items()}
        told = ", ".join(f"{name} = {json.dumps(value)}" for name, value in arguments.items())
        call = json.dumps({"tool": tool["tool"], "arguments": arguments})
        prompt = f"\n\nCall the tool {tool['tool']} with {told}. Write one JSON object.\n{OPENED}"
        return room.ask(prompt, call.removeprefix(OPENED), depth=depth)


def _valid(found: Any, wanted: dict[str, Any]) -> bool:
    """Whether a call names the tool and its arguments, each of the right type."""
    if not isinstance(found, dict) or found.keys() != wanted.keys() or found["tool"] != wanted["tool"]:
        return False
    given, asked = found["arguments"], wanted["arguments"]
    return (
        isinstance(given, dict)
        and given.keys() == asked.keys()
        and all(type(given[name]) is type(value) for name, value in asked.items())
    )
