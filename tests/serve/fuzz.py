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
from pathlib import Path
from typing import Any

import httpx

from headwise.compiled.fast import fast
from headwise.seams.transformers.load import load_model, load_tokenizer
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
    *("echo", "best_of", "user", "metadata", "presence_penalty", "unknown"),
)


RIGHT: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
}


def fuzzed(drawn: random.Random, path: str) -> bytes:
    """A body for a path: every other begins as a right one."""
    asked = RIGHT[path] if drawn.randrange(2) else {drawn.choice(("prompt", "messages")): drawn.choice(VALUES)}
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 1, **asked}
    for field in drawn.sample(FIELDS, drawn.randrange(0, 4)):
        body[field] = drawn.choice(VALUES)
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


def fuzz(client: Any, bodies: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Ask so many bodies: how many were answered with each status, and those that were an error of the server."""
    drawn, counts, wrong, told = random.Random(seed), Counter[int](), list[str](), time.monotonic()
    for place in range(bodies):
        path = drawn.choice(tuple(RIGHT))
        raw = fuzzed(drawn, path)
        response = client.post(path, content=raw, headers={"Content-Type": "application/json"})
        counts[response.status_code] += 1
        refused = response.status_code in (400, 404) and response.json()["error"]["message"]
        if response.status_code != 200 and not refused:
            wrong.append(f"{response.status_code} to {raw[:400]!r}: {response.text[:300]}")
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{place + 1} of {bodies} bodies, {len(wrong)} wrong", file=sys.stderr, flush=True)
    return counts, wrong


def main() -> None:
    """Run it, and end in an error where the server was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = build(Path(place) / "tiny")
        model = load_model(folder)
        fast(model)
        with running(model, load_tokenizer(folder), steady_rows(model)) as server:
            with httpx.Client(base_url=server.url, timeout=300) as client:
                counts, wrong = fuzz(client, given.bodies, given.seed)
            promised = server.scheduler.stats().promised
    print(", ".join(f"{count} x {status}" for status, count in sorted(counts.items())))
    wrong += [f"{promised} bytes are still promised"] if promised else []
    sys.exit("\n".join(wrong[:20]) if wrong else 0)


if __name__ == "__main__":
    main()
