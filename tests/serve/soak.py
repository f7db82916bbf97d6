"""`python -m tests.serve.soak --requests 1000`: mixed requests to a server over real sockets, at random times.

Streamed and whole ones under many recipes, clients that go in the middle of an answer or a body, invalid and over-long
ones. Every answer is compared with that of the request alone; afterwards memory, files and sequences are as before.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import logging
import random
import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from headwise.bench.provenance import machine
from headwise.compiled.fast import fast
from headwise.files import write_json
from headwise.seams.transformers.load import load_model, load_tokenizer
from headwise.serve.rows import steady_rows
from tests.fuzz.soak import Held
from tests.serve.alone import alone, prompt
from tests.serve.server import LIMITS, Running, running
from tests.tiny import build

RECIPES = ("", "int8", "snapkv(0.4)", "h2o(0.5) | int8", "quest(32)", "streaming(40) | int4")
MARKED = (3, 5)  # of the prompts: a beginning of these is evicted of by itself
KINDS = ("whole", "whole", "streamed", "streamed", "gone", "cut", "invalid", "long")
PROMPTS, NEW, WARM_UP = 12, 8, 150  # requests after which the allocator's own memory is there


class Failures(logging.Handler):
    """What a server's log says of itself that should never be: steps and requests that failed by its own fault."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, with what was raised."""
        self.found.append(f"{record.getMessage()}: {record.exc_info and record.exc_info[0]}")


class Soak:
    """A server under requests. found: how many of each kind were answered as they should be; wrong: what was not."""

    def __init__(self, server: Running, model: Any) -> None:
        self.server, self.found, self.wrong = server, Counter[str](), list[str]()
        decode = functools.partial(server.served.tokenizer.decode, skip_special_tokens=True)
        self._asked: list[tuple[dict[str, Any], str]] = []
        for place in range(PROMPTS):
            recipe, ids = RECIPES[place % len(RECIPES)], prompt(20 + 17 * place % 130, place % 5)
            mark = LIMITS.piece * (place in MARKED)
            wanted = alone(model, recipe, ids, NEW, LIMITS.piece, gather=True, mark=mark).ids
            wanted = wanted[: wanted.index(1)] if 1 in wanted else wanted
            ours = {"recipe": recipe} | ({"evict_after": mark + 3} if mark else {})
            body = {"model": "tiny", "prompt": ids, "max_tokens": NEW, "temperature": 0, "headwise": ours}
            self._asked.append((body, decode(wanted)))

    async def run(self, requests: int, seed: int) -> None:
        """So many requests, up to 20 at once."""
        drawn, room = random.Random(seed), asyncio.Semaphore(20)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=300) as client:

            async def one(kind: str, own: random.Random) -> None:
                async with room:
                    try:
                        await getattr(self, f"_{kind}")(client, own)
                        self.found[kind] += 1
                    except Exception as error:
                        self.wrong.append(f"{kind}: {error!r}, of {error.__cause__!r}")

            tasks = []
            for _ in range(requests):
                tasks.append(asyncio.create_task(one(drawn.choice(KINDS), random.Random(drawn.random()))))
                await asyncio.sleep(drawn.expovariate(200))
            await asyncio.gather(*tasks)
        while not self.server.scheduler.idle:
            await asyncio.sleep(0.02)

    async def _whole(self, client: httpx.AsyncClient, drawn: random.Random) -> None:
        body, wanted = drawn.choice(self._asked)
        answer = await client.post("/v1/completions", json=body)
        if answer.status_code == 429:  # the queue is full, and says so
            return
        self._expect(answer.status_code == 200 and answer.json()["choices"][0]["text"] == wanted, answer.text)

    async def _streamed(self, client: httpx.AsyncClient, drawn: random.Random) -> None:
        body, wanted = drawn.choice(self._asked)
        async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            lines = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
        if answer.status_code == 429:
            return
        text = "".join(choice["text"] for line in lines for choice in json.loads(line[6:])["choices"])
        self._expect(text == wanted, text)

    async def _gone(self, client: httpx.AsyncClient, drawn: random.Random) -> None:
        """A client that goes after the first event of a long answer."""
        body, _ = drawn.choice(self._asked)
        async with client.stream("POST", "/v1/completions", json=body | {"stream": True, "max_tokens": 500}) as answer:
            async for _ in answer.aiter_lines():
                return

    async def _cut(self, client: httpx.AsyncClient, drawn: random.Random) -> None:
        """A client that goes in the middle of its body, or before its answer."""
        raw = json.dumps(drawn.choice(self._asked)[0]).encode()
        url = httpx.URL(self.server.url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + raw[: drawn.choice((10, len(raw)))])
        await writer.drain()
        writer.close()

    async def _invalid(self, client: httpx.AsyncClient, drawn: random.Random) -> None:
        body = drawn.choice(self._asked)[0] | drawn.choice(
            ({"n": 0}, {"headwise": {"recipe": "snapkw"}}, {"prompt": [99999]}, {"temperature": "hot"}, {"model": "x"})
        )
        answer = await client.post("/v1/completions", json=body)
        self._expect(answer.status_code in (400, 404) and "error" in answer.json(), answer.text)

    async def _long(self, client: httpx.AsyncClient, drawn: random.Random) -> None:
        """A prompt, or an answer, of more tokens than the model has positions."""
        body = drawn.choice(self._asked)[0] | drawn.choice(({"prompt": prompt(3000)}, {"max_tokens": 5000}))
        answer = await client.post("/v1/completions", json=body)
        self._expect(answer.status_code == 400 and "positions" in answer.text, answer.text)

    def _expect(self, right: bool, told: str) -> None:
        if not right:
            self.wrong.append(told[:200])


def soak(requests: int, warm_up: int) -> tuple[Counter[str], list[str]]:
    """Run it: how many of each kind came to their right end, and all that was wrong."""
    with tempfile.TemporaryDirectory() as place:
        folder = build(Path(place) / "tiny")
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        fast(model)
        failures = Failures()
        logging.getLogger("headwise.serve").addHandler(failures)
        with running(model, tokenizer, steady_rows(model)) as server:
            made = Soak(server, model)
            asyncio.run(made.run(warm_up, 0))
            before = Held.now(Path(place))
            asyncio.run(made.run(requests, 1))
            grown = Held.now(Path(place)).grown(before)
            stats = server.scheduler.stats()
    left = (stats.waiting, stats.reading, stats.writing, stats.promised)
    made.wrong += [grown] if grown and warm_up else []  # without a warm-up, memory grows for good reasons
    logging.getLogger("headwise.serve").removeHandler(failures)
    made.wrong += failures.found
    made.wrong += [f"left behind: {left}"] if any(left) else []
    return made.found, made.wrong


ENDS = {
    "whole": "answered as if alone", "streamed": "answered as if alone", "gone": "freed",
    "cut": "freed", "invalid": "refused by name", "long": "refused by name",
}  # fmt: skip


def table(requests: int, found: Counter[str], wrong: list[str]) -> dict[str, Any]:
    """What came of it, as `headwise.cli.figures.Figures` reads it."""
    own = machine()
    rows = [[kind, found[kind], ENDS[kind]] for kind in sorted(ENDS)]
    return {
        "source": "tests/serve/soak.py", "date": date.today().isoformat(), "model": "tiny",
        "command": f"python -m tests.serve.soak --requests {requests}",
        "machine": f"{own['processor']}, {own['cores']} cores", "columns": ["requests", "of them", "and right so"],
        "rows": [*rows, ["anything else, or left behind", len(wrong), "nothing may be"]],
    }  # fmt: skip


def main() -> None:
    """Run it, and end in an error where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--table", type=Path, help="write the table of docs/serve.md to this file")
    told = parser.parse_args()
    found, wrong = soak(told.requests, WARM_UP)
    if told.table is not None:
        write_json(told.table, table(told.requests, found, wrong))
    print(", ".join(f"{count} {kind}" for kind, count in sorted(found.items())))
    sys.exit("\n".join(wrong[:20]) if wrong else 0)


if __name__ == "__main__":
    main()
