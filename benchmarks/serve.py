"""Conversations that come as a Poisson process to servers of the same weights: tokens a second, the time to the first
token and between two. Each server is started by its command, answers the same load, and is stopped; rounds take turns.

    python benchmarks/serve.py MODEL --requests 16 --tokens 4096 --new 128 --recipe "expected_attention(0.25)" \\
        --peer 'transformers=transformers serve --port {port}' \\
        --peer 'llama.cpp=LC/bin/python -m llama_cpp.server --model MODEL.gguf --n_ctx 8192 --port {port}' \\
        --beginning --json serve.json --picture serve.png

headwise is served three times: all requests at once, one at a time, and under the recipe where one is given. Answers of
the first two must be the same. Peers answer over OpenAI's chats, streamed; what comes in an event is taken for a token.
With --beginning a server is asked about one text twice, the second time by other words at its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from matplotlib.figure import Figure

from headwise.assets import embedded_model
from headwise.report.pictures import as_png

WORDS = (
    "the",
    "king",
    "river",
    "horse",
    "came",
    "saw",
    "old",
    "night",
    "house",
    "road",
    "stone",
    "water",
    "went",
    "door",
)
START_SECONDS = 600


class Silent(Exception):
    """A server that does not serve, and why."""


@dataclass
class Answer:
    """What a request was told and when, in seconds from the start; wrong: why it failed."""

    asked: float
    came: list[float] = field(default_factory=list)
    text: str = ""
    kv_bytes: int = 0
    wrong: str = ""


@dataclass(frozen=True)
class Load:
    """What is asked of every server. model: the name it is asked under; rate: requests a second, on average."""

    model: str
    texts: tuple[str, ...]
    new: int
    rate: float

    async def put(self, url: str) -> list[Answer]:
        """Ask it all, each at its time, after a short question, as some servers load a model when they are asked."""
        drawn, at, waits = Random(0), 0.0, []
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            first = await self._ask(client, "Hello.", time.perf_counter(), 0.0)
            if first.wrong:
                raise Silent(f"does not answer: {first.wrong}")
            start = time.perf_counter()
            for text in self.texts:
                at += drawn.expovariate(self.rate)
                waits.append(asyncio.create_task(self._ask(client, text, start, at)))
            return list(await asyncio.gather(*waits))

    async def _ask(self, client: httpx.AsyncClient, text: str, start: float, at: float) -> Answer:
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        answer = Answer(time.perf_counter() - start)
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "stream": True}
        body |= {"temperature": 0.0, "max_tokens": self.new, "stream_options": {"include_usage": True}}
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as told:
                if told.status_code != 200:
                    answer.wrong = (await told.aread()).decode(errors="replace")[:200]
                async for line in told.aiter_lines():
                    if line.startswith("data: {"):
                        self._hear(answer, json.loads(line[6:]), time.perf_counter() - start)
        except httpx.HTTPError as error:
            answer.wrong = repr(error)
        return answer

    def _hear(self, answer: Answer, event: dict[str, Any], now: float) -> None:
        """Take an event of a stream."""
        if "error" in event:
            answer.wrong = str(event["error"])[:200]
        for choice in event.get("choices") or ():
            if more := (choice.get("delta") or {}).get("content"):
                answer.came.append(now)
                answer.text += more
        answer.kv_bytes = (event.get("usage") or {}).get("kv_bytes", answer.kv_bytes)


def figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """What a server's answers come to."""
    right = [one for one in answers if one.came and not one.wrong]
    between = [1000 * (b - a) for one in right for a, b in zip(one.came, one.came[1:], strict=False)] or [0.0]
    first = [one.came[0] - one.asked for one in right] or [0.0]
    took = max((one.came[-1] for one in right), default=0.0) - min(one.asked for one in answers)
    return {
        "tokens_per_s": sum(len(one.came) for one in right) / took if right else 0.0,
        "between_ms": statistics.median(between),
        "between_p95_ms": sorted(between)[int(0.95 * (len(between) - 1))],
        "first_token_s": statistics.median(first),
        "tokens": sum(len(one.came) for one in right),
        "kv_bytes": sum(one.kv_bytes for one in right),
        "failed": [one.wrong or "no token" for one in answers if one not in right],
    }


def again(command: str, load: Load) -> list[float]:
    """Seconds to the first token of two questions about one text, asked of a server one after the other."""

    async def ask(url: str) -> list[Answer]:
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            await load._ask(client, "Hello.", time.perf_counter(), 0.0)
            asked = [f"{load.texts[0]} {end}" for end in ("Who came?", "What did they see by the river?")]
            return [await load._ask(client, text, time.perf_counter(), 0.0) for text in asked]

    with served(command, load.model) as url:
        return [one.came[0] - one.asked for one in asyncio.run(ask(url)) if one.came]


@contextmanager
def served(command: str, model: str) -> Iterator[str]:
    """A server started by a command with {port} and {model} in it: its address, once it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(command.format(port=port, model=shlex.quote(model)))
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise Silent(f"does not serve: {log.read()[-1000:]}")
                time.sleep(0.2)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def own_command(told: argparse.Namespace) -> str:
    """How headwise is started."""
    command = f"{sys.executable} -m headwise.cli.main serve {{model}} --name {{model}} --port {{port}}"
    return f"{command} --timeout 36000 --kv-bytes {told.kv_bytes}"


def commands(told: argparse.Namespace, model: str) -> dict[str, str]:
    """The servers by name: each a command."""
    own = f"{own_command(told)} --prefix-bytes 0"
    found = {"headwise": own, "headwise, one at a time": f"{own} --sequences 1"}
    if told.recipe:
        found[f"headwise, {told.recipe}"] = f"{own} --recipe {shlex.quote(told.recipe)}"
    for peer in told.peer:
        name, _, command = peer.partition("=")
        found[name] = command
    return found


def picture(rows: dict[str, list[dict[str, Any]]]) -> Figure:
    """Tokens a second, milliseconds between two and seconds to the first, by server: the median of rounds."""
    panels = {"tokens_per_s": "tokens/s", "between_ms": "ms between tokens", "first_token_s": "s to the first token"}
    drawn = Figure(figsize=(11, 1.2 + 0.5 * len(rows)), layout="constrained")
    for axes, (key, title) in zip(drawn.subplots(1, 3, sharey=True), panels.items(), strict=True):
        values = [statistics.median(one[key] for one in found) for found in rows.values()]
        bars = axes.barh(
            list(rows), values, color=["#10477d" if name.startswith("headwise") else "#9aa3b2" for name in rows]
        )
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3)
        axes.set_title(title)
        axes.margins(x=0.2)
        axes.invert_yaxis()
    return drawn


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default=str(embedded_model()), help="a path, the embedded model's by default"
    )
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=4096, help="of each prompt, about")
    parser.add_argument("--new", type=int, default=128, help="tokens written for each")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second, on average")
    parser.add_argument("--rounds", type=int, default=1, help="each server answers the load so often, by turns")
    parser.add_argument("--recipe", default="", help="headwise is served under it as well")
    parser.add_argument("--beginning", action="store_true", help="ask about one text twice as well")
    parser.add_argument("--kv-bytes", default="8GiB", help="headwise's bytes of keys and values")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="with {port} and {model} in it"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, after every server")
    parser.add_argument("--picture", type=Path, help="draw them to this PNG")
    return parser


def main() -> None:
    """Measure, print, and draw."""
    told = arguments().parse_args()
    model, drawn = told.model, Random(0)
    texts = tuple(" ".join(drawn.choices(WORDS, k=told.tokens)) for _ in range(told.requests))
    load = Load(model, texts, told.new, told.rate)
    rows: dict[str, list[dict[str, Any]]] = {}
    said: dict[str, list[str]] = {}
    for _ in range(told.rounds):
        for name, command in commands(told, model).items():
            try:
                with served(command, model) as url:
                    answers = asyncio.run(load.put(url))
            except Silent as why:
                print(f"{name:32} {why}", flush=True)
                continue
            said[name] = [one.text for one in answers]
            rows.setdefault(name, []).append(figures(answers))
            line = (
                "{tokens_per_s:8.1f} tokens/s, {between_ms:7.1f} ms between tokens, first after {first_token_s:7.2f} s"
            )
            print(f"{name:32} {line.format(**rows[name][-1])}, {len(rows[name][-1]['failed'])} failed", flush=True)
            if told.json is not None:
                about = {"model": told.model, "requests": told.requests, "tokens": told.tokens, "new": told.new}
                on = {"rate": told.rate, "processor": platform.processor(), "cores": os.cpu_count()}
                told.json.write_text(json.dumps(about | on | {"servers": rows}, indent=1) + "\n")
    if told.beginning:
        options = f" --recipe {shlex.quote(told.recipe)}" if told.recipe else ""
        first, second = again(own_command(told) + options, load)
        print(f"the same beginning again: first token after {second:.2f} s, {second / first:.1%} of {first:.2f} s")
    same = "headwise" in said and said["headwise"] == said.get("headwise, one at a time")
    print("together and one at a time: the same text" if same else "together and one at a time: OTHER TEXT")
    if told.picture is not None:
        told.picture.write_bytes(as_png(picture(rows)))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
