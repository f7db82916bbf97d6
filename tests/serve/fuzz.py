"""`python -m tests.serve.fuzz --bodies 100000`: whatever a body says, it is no error of the server.

Right bodies with fields of any kind, wrong ones, and bytes that are no JSON; each is answered, or refused by name.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from headwise.compiled.fast import fast
from headwise.seams.transformers.load import load_model, load_tokenizer
from headwise.seams.transformers.pooling import Pooling
from headwise.serve.rows import steady_rows
from tests.serve.server import running
from tests.tiny import build

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**80, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")),
    *("", "a", "\x00", "\ud800", "🙂", "tiny", "x" * 3000),
    *([], [[]], [0], [1, 2], ["a", "b"], [[1], [2]], [None], [{"role": "user", "content": "a"}]),
    *({}, {"role": "user"}, {"recipe": "int8"}, {"recipe": "snapkv(0.1) | ("}, {"recipe": "snapkv(1e999)"}),
    *(
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["\ud800", 1]}}},
    ),
    *(
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"pattern": "(a*)*$", "type": "string"}}},
        "required",
    ),
    [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"\x00": {"type": "nothing"}}}}}],
    [{"type": "function", "function": {"name": "f", "description": "\ud800"}}],
    *({"draft": "lookup(tokens=2)"}, {"draft": "medusa('/etc/passwd')"}, {"draft": ""}, {"watch": 1}),
    *({"recipe": "snapkv(0.3)", "evict_after": 3}, {"recipe": "h2o(0.5)", "evict_after": "system"}),
    {"evict_after": -1},
    *({"plan": "../few"}, {"type": "text"}, [{"role": "tool", "content": None}], {"include_usage": True}, {"a": [{}]}),
]
FIELDS = (
    *(
        "model",
        "prompt",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
    ),
    *(
        "stream",
        "stream_options",
        "headwise",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "tools",
        "response_format",
        "tool_choice",
    ),
    *("input", "encoding_format", "dimensions"),
    *("echo", "best_of", "user", "metadata", "presence_penalty", "unknown"),
)


RIGHT: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/embeddings": {"input": "a"},
}


def fuzzed(drawn: random.Random, path: str) -> bytes:
    """A body for a path: every other begins as a right one."""
    asked = RIGHT[path] if drawn.randrange(2) else {drawn.choice(("prompt", "messages", "input")): drawn.choice(VALUES)}
    few = {} if path == "/v1/embeddings" else {"max_tokens": 1}
    body: dict[str, Any] = {"model": "tiny", **few, **asked}
    for name in drawn.sample(FIELDS, drawn.randrange(0, 4)):
        body[name] = drawn.choice(VALUES)
    if "n" in body and isinstance(body["n"], int):
        body["n"] = min(body["n"], 3)
    raw = json.dumps(body).encode()
    kind = drawn.randrange(8)
    if kind == 0:
        raw = bytes(drawn.randrange(256) for _ in range(drawn.randrange(40)))
    elif kind == 1:
        at = drawn.randrange(len(raw))
        raw = raw[:at] + bytes([drawn.randrange(256)]) + raw[at + 1 :]
    elif kind == 2:
        raw = b"[" * drawn.randrange(5000) + raw
    return raw


@dataclass
class Told:
    """What became of the bodies so far. counts: answers by status; wrong: those that were an error of the server."""

    seed: int
    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, file: Path | None, seed: int) -> Told:
        """What a file tells of a run of the same seed, or nothing yet. ValueError where it is of another seed."""
        if file is None or not file.exists():
            return cls(seed)
        told = cls(**json.loads(file.read_text()))
        if told.seed != seed:
            raise ValueError(f"{file} tells of bodies by seed {told.seed}; give --seed {told.seed} or another --state")
        told.counts = Counter(told.counts)
        return told

    def write(self, file: Path | None) -> None:
        """Write it whole or not at all."""
        if file is not None:
            new = file.with_suffix(".new")
            new.write_text(json.dumps(vars(self), indent=1) + "\n")
            new.replace(file)


def fuzz(client: Any, told: Told, bodies: int, state: Path | None = None) -> None:
    """Ask up to so many bodies, each drawn from the seed and its own number, and note in `told` what became of them."""
    start, first, noted = time.monotonic(), told.done, time.monotonic()
    for number in range(told.done, bodies):
        drawn = random.Random(f"{told.seed}/{number}")
        path = drawn.choice(tuple(RIGHT))
        raw = fuzzed(drawn, path)
        response = client.post(path, content=raw, headers={"Content-Type": "application/json"})
        told.counts[str(response.status_code)] += 1
        told.done = number + 1
        refused = response.status_code in (400, 404) and response.json()["error"]["message"]
        if response.status_code != 200 and not refused:
            told.wrong.append(f"{response.status_code} to {raw[:400]!r}: {response.text[:300]}")
        if time.monotonic() - noted > 30:
            noted = time.monotonic()
            told.write(state)
            minutes = (bodies - told.done) * (noted - start) / (told.done - first) / 60
            line = f"{told.done} of {bodies} bodies, {len(told.wrong)} wrong, {minutes:.0f} minutes more"
            print(line, file=sys.stderr, flush=True)
    if state is not None:
        state.unlink(missing_ok=True)


def main() -> None:
    """Run it, and end in an error where the server was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="goes on from what this file tells, and tells there how far it came")
    given = parser.parse_args()
    told = Told.of(given.state, given.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = build(Path(place) / "tiny")
        model = load_model(folder)
        fast(model)
        with running(model, load_tokenizer(folder), steady_rows(model), pooling=Pooling("mean")) as server:
            with httpx.Client(base_url=server.url, timeout=300) as client:
                fuzz(client, told, given.bodies, given.state)
            promised = server.scheduler.stats().promised
    print(f"{told.done} bodies: " + ", ".join(f"{count} x {status}" for status, count in sorted(told.counts.items())))
    wrong = told.wrong + ([f"{promised} bytes are still promised"] if promised else [])
    sys.exit("\n".join(wrong[:20]) if wrong else 0)


if __name__ == "__main__":
    main()
