"""Conversations that come as a Poisson process to servers of the same weights: tokens a second, the time to the first
token and between two. Each server is started by its command, answers the same load, and is stopped; rounds take turns.

    python benchmarks/serve.py MODEL --requests 16 --tokens 4096 --new 128 --recipe "expected_attention(0.25)" \\
        --peer 'transformers=transformers serve --port {port} {model}' \\
        --peer 'llama.cpp=llama-server -m MODEL.gguf -np 16 -c 81920 --port {port}' \\
        --beginning 3 --sessions-bytes 600MiB --json out/serve.json --tables out --picture out/serve.png

headwise is served three times: all requests at once, one at a time, and under the recipe where one is given. Answers of
the first two must be the same. Peers answer over OpenAI's chats, streamed; where they do not tell how many tokens they
wrote, what comes in an event is taken for one. With --beginning a server is asked about each of so many texts twice,
the second time by other words at its end; with --sessions-bytes headwise writes as many answers at once as these bytes
allow, without the recipe and under it. A killed run goes on from its JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
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
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import httpx
from matplotlib.figure import Figure

from headwise.assets import embedded_model
from headwise.bench.provenance import machine
from headwise.files import write_json
from headwise.report.pictures import as_png

WORDS = "the king river horse came saw old night house road stone water went door"
START_SECONDS = 600
READ_FIRST = "--piece 8192 --stall 1000000"  # prompts are read before answers go on
MANY, ENDED = 48, 3  # requests for more sessions than fit; answers that have ended once as many write as can


class Silent(Exception):
    """A server that does not serve, and why."""


@dataclass
class Answer:
    """What a request was told and when, in seconds from the start; wrong: why it failed."""

    asked: float
    came: list[float] = field(default_factory=list)
    text: str = ""
    kv_bytes: int = 0
    counted: int = 0
    wrong: str = ""

    @property
    def tokens(self) -> int:
        """Tokens written, as the server counts them where it does."""
        return self.counted or len(self.came)


@dataclass(frozen=True)
class Load:
    """What is asked of every server. model: the name it is asked under; rate: requests a second, on average; patience:
    seconds after which nothing more is waited for."""

    model: str
    texts: tuple[str, ...]
    new: int
    rate: float
    patience: float

    async def put(self, url: str) -> list[Answer]:
        """Ask it all, each at its time, after a short question, as some servers load a model when they are asked."""
        drawn, at, waits = Random(0), 0.0, []
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            until = time.monotonic() + START_SECONDS
            while (first := await self._ask(client, "Hello.", time.perf_counter(), 0.0)).wrong:
                if "503" not in first.wrong or time.monotonic() > until:  # some listen while they load
                    raise Silent(f"does not answer: {first.wrong}")
                await asyncio.sleep(0.5)
            start = time.perf_counter()
            for text in self.texts:
                at += drawn.expovariate(self.rate)
                waits.append(asyncio.create_task(self._ask(client, text, start, at)))
            await asyncio.wait(waits, timeout=self.patience)
            for one in waits:
                one.cancel()
            return list(await asyncio.gather(*waits))

    async def _ask(self, client: httpx.AsyncClient, text: str, start: float, at: float) -> Answer:
        answer = Answer(at)
        try:
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            answer.asked = time.perf_counter() - start
            await self._hear_all(client, text, start, answer)
        except asyncio.CancelledError:
            answer.wrong = f"not through after {self.patience:.0f} s"
        return answer

    async def _hear_all(self, client: httpx.AsyncClient, text: str, start: float, answer: Answer) -> None:
        """Ask about a text, and take what is told of it."""
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

    def _hear(self, answer: Answer, event: dict[str, Any], now: float) -> None:
        """Take an event of a stream."""
        if "error" in event:
            answer.wrong = str(event["error"])[:200]
        for choice in event.get("choices") or ():
            if more := (choice.get("delta") or {}).get("content"):
                answer.came.append(now)
                answer.text += more
        usage = event.get("usage") or {}
        answer.kv_bytes = usage.get("kv_bytes", answer.kv_bytes)
        answer.counted = usage.get("completion_tokens", answer.counted)


def figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """What a server's answers come to; those that were cut off count for what they told."""
    told = [one for one in answers if one.came]
    between = [1000 * (b - a) for one in told for a, b in zip(one.came, one.came[1:], strict=False)] or [0.0]
    first = [one.came[0] - one.asked for one in told] or [0.0]
    took = max((one.came[-1] for one in told), default=0.0) - min(one.asked for one in answers)
    tokens = sum(one.tokens for one in told)
    return {
        "tokens_per_s": tokens / took if told else 0.0,
        "between_ms": statistics.median(between),
        "between_p95_ms": sorted(between)[int(0.95 * (len(between) - 1))],
        "first_token_s": statistics.median(first),
        "tokens": tokens,
        "kv_bytes": sum(one.kv_bytes for one in told),
        "failed": [one.wrong or "no token" for one in answers if one.wrong or not one.came],
        "said": hashlib.sha256("\0".join(one.text for one in answers).encode()).hexdigest()[:16],
    }


def again(command: str, load: Load, texts: int) -> dict[str, list[float]]:
    """Seconds to the first token of two questions about each of some texts, asked of a server one after the other."""

    async def ask(url: str) -> list[Answer]:
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            await load._ask(client, "Hello.", time.perf_counter(), 0.0)
            ends = ("Who came?", "What did they see by the river?")
            asked = [f"{text} {end}" for text in load.texts[:texts] for end in ends]
            return [await load._ask(client, text, time.perf_counter(), 0.0) for text in asked]

    with served(command, load.model) as url:
        waits = [one.came[0] - one.asked for one in asyncio.run(ask(url))]
    return {"first_s": waits[::2], "second_s": waits[1::2]}


def sessions(command: str, load: Load) -> int:
    """The most answers that a server writes at once, of more requests than its bytes hold."""

    async def most(url: str) -> int:
        found = 0
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            await load._ask(client, "Hello.", time.perf_counter(), 0.0)
            start = time.perf_counter()
            texts = [f"{place} {text}" for place in range(MANY // len(load.texts) + 1) for text in load.texts][:MANY]
            asks = [asyncio.create_task(load._ask(client, text, start, 0.0)) for text in texts]
            while sum(one.done() for one in asks) < ENDED and time.perf_counter() - start < load.patience:
                await asyncio.sleep(0.2)
                found = max(found, int(gauges((await client.get("/metrics")).text)["writing_sequences"]))
            for one in asks:
                one.cancel()
            await asyncio.gather(*asks)
        return found

    with served(command, load.model) as url:
        return asyncio.run(most(url))


def gauges(text: str) -> dict[str, float]:
    """How things stand with a headwise server, of what it tells Prometheus."""
    lines = [line.split() for line in text.splitlines() if line.startswith("headwise_")]
    told = {name.removeprefix("headwise_"): float(value) for name, value in lines}
    return {name: value for name, value in told.items() if name.endswith(("_requests", "_sequences"))}


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
                process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def own_command(kv_bytes: str, recipe: str = "") -> str:
    """How headwise is started."""
    command = f"{sys.executable} -m headwise.cli.main serve {{model}} --name {{model}} --port {{port}}"
    return f"{command} --timeout 36000 --kv-bytes {kv_bytes}" + (f" --recipe {shlex.quote(recipe)}" if recipe else "")


def commands(told: argparse.Namespace, model: str) -> dict[str, str]:
    """The servers by name: each a command."""
    own = f"{own_command(told.kv_bytes)} --prefix-bytes 0"
    found = {"headwise": own, "headwise, one at a time": f"{own} --sequences 1"}
    if told.recipe:
        found[f"headwise, {told.recipe}"] = f"{own_command(told.kv_bytes, told.recipe)} --prefix-bytes 0"
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
    parser.add_argument("--beginning", type=int, default=0, help="ask about so many texts twice as well")
    parser.add_argument("--sessions-bytes", default="", help="count the answers that these bytes allow at once as well")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds that a server may take for a load")
    parser.add_argument("--kv-bytes", default="8GiB", help="headwise's bytes of keys and values")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="with {port} and {model} in it"
    )
    parser.add_argument("--json", type=Path, help="write the figures here after every server, and go on from them")
    parser.add_argument("--tables", type=Path, help="write the tables of docs/serve.md to this folder")
    parser.add_argument("--picture", type=Path, help="draw them to this PNG")
    return parser


def begun(told: argparse.Namespace) -> dict[str, Any]:
    """What was measured so far of the same load; else that nothing was."""
    names = "requests", "tokens", "new", "rate", "recipe", "patience", "kv_bytes", "sessions_bytes"
    about = {"model": Path(told.model).name} | {name: getattr(told, name) for name in names}
    if told.json is not None and told.json.exists() and (found := json.loads(told.json.read_text()))["about"] == about:
        return dict(found)
    own = machine()
    return {"about": about, "machine": f"{own['processor']}, {own['cores']} cores", "servers": {}}


def measure(told: argparse.Namespace, load: Load, found: dict[str, Any]) -> Iterator[str]:
    """Measure what is not yet in `found`: a line of each."""
    rows: dict[str, list[dict[str, Any]]] = found["servers"]
    for turn in range(told.rounds):
        for name, command in commands(told, load.model).items():
            if len(rows.get(name, ())) > turn:
                continue
            try:
                with served(command, load.model) as url:
                    answers = asyncio.run(load.put(url))
            except Silent as why:
                yield f"{name:32} {why}"
                continue
            rows.setdefault(name, []).append(figures(answers))
            row = rows[name][-1] | {"lost": len(rows[name][-1]["failed"])}
            yield (
                "{name:32} {tokens_per_s:8.1f} tokens/s, {between_ms:7.1f} ms between tokens, first after "
                "{first_token_s:7.2f} s, {lost} failed"
            ).format(name=name, **row)
    if told.beginning and "beginning" not in found:
        found["beginning"] = again(own_command(told.kv_bytes), load, told.beginning)
        first, second = (statistics.median(one) for one in found["beginning"].values())
        yield f"the same beginning again: first token after {second:.2f} s, {second / first:.1%} of {first:.2f} s"
    if told.sessions_bytes and told.recipe and "sessions" not in found:
        own = told.sessions_bytes
        found["sessions"] = {
            name: sessions(f"{own_command(own, recipe)} --prefix-bytes 0 {READ_FIRST}", load)
            for name, recipe in (("all", ""), ("recipe", told.recipe))
        }
        yield "{all} answers at once in {own}, {recipe} under the recipe".format(own=own, **found["sessions"])


def tables(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, the tables of docs/serve.md, as `headwise.cli.figures.Figures` reads them."""
    about = {
        "source": "benchmarks/serve.py", "command": found["command"], "machine": found["machine"],
        "date": found["date"], "model": found["about"]["model"],
    }  # fmt: skip
    keys = "tokens_per_s", "between_ms", "between_p95_ms", "first_token_s"
    rows: list[list[Any]] = []
    for name, rounds in found["servers"].items():
        middle = [round(statistics.median(one[key] for one in rounds), 2) for key in keys]
        rows.append([name, *middle, max(len(one["failed"]) for one in rounds)])
    columns = ["server", "tokens/s", "ms between tokens", "95 % of them within, ms", "s to the first", "not answered"]
    others: list[list[Any]] = []
    if "beginning" in found:
        first, second = (statistics.median(one) for one in found["beginning"].values())
        others.append(["first token of a text's second question, of its first", f"{second / first:.1%}", "<= 10 %"])
    if "sessions" in found:
        times = round(found["sessions"]["recipe"] / max(1, found["sessions"]["all"]), 2)
        others.append([f"answers at once in {found['about']['sessions_bytes']}, by those of no plan", times, ">= 3"])
    return {
        "load": about | {"columns": columns, "rows": rows},
        "reached": about | {"columns": ["measured", "figure", "wanted"], "rows": others},
    }


def main() -> None:
    """Measure, print, and draw."""
    told, drawn = arguments().parse_args(), Random(0)
    texts = tuple(" ".join(drawn.choices(WORDS.split(), k=told.tokens)) for _ in range(told.requests))
    load, found = Load(told.model, texts, told.new, told.rate, told.patience), begun(told)
    asked = re.sub(r"(?<![\w.])/[^\s'=]*/", "", shlex.join(sys.argv[1:]))  # whose folders are nobody else's
    found |= {"command": f"python benchmarks/{Path(__file__).name} {asked}"}
    for line in measure(told, load, found):
        print(line, flush=True)
        found["date"] = date.today().isoformat()
        if told.json is not None:
            write_json(told.json, found)
    rows = found["servers"]
    said = [[one["said"] for one in rows.get(name, ())] for name in ("headwise", "headwise, one at a time")]
    same = bool(said[0]) and said[0] == said[1]
    print("together and one at a time: the same text" if same else "together and one at a time: OTHER TEXT")
    if told.tables is not None:
        for name, table in tables(found).items():
            write_json(told.tables / f"{name}.json", table)
    if told.picture is not None:
        told.picture.write_bytes(as_png(picture(rows)))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
