"""`python -m tests.serve.killed --rounds 5`: a server is killed in the middle of requests, and starts again.

It keeps beginnings of prompts in a folder. Whatever was half written there, the next server starts, believes nothing
damaged, and answers as a request alone is answered.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from headwise.seams.transformers.load import load_model, load_tokenizer
from tests.serve.alone import alone, prompt
from tests.serve.process import serving
from tests.tiny import build

RECIPES = ("", "int8", "snapkv(0.4)", "quest(32)")
PIECE, NEW = 48, 6


def bodies(model: Any, tokenizer: Any) -> list[tuple[dict[str, Any], str]]:
    """Requests that share beginnings, each with its answer."""
    found = []
    for place in range(8):
        ids, recipe = [*prompt(48 * 3, place % 2), *prompt(30 + place, 9)], RECIPES[place % len(RECIPES)]
        wanted = alone(model, recipe, ids, NEW, PIECE, gather=True).ids
        wanted = wanted[: wanted.index(1)] if 1 in wanted else wanted
        body = {"model": "tiny", "prompt": ids, "max_tokens": NEW, "temperature": 0, "headwise": {"recipe": recipe}}
        found.append((body, tokenizer.decode(wanted, skip_special_tokens=True)))
    return found


def ask(url: str, asked: list[tuple[dict[str, Any], str]], wrong: list[str], answered: threading.Semaphore) -> int:
    """Ask all of them, until the server is gone: the tokens that it knew. answered: is released by every answer."""
    known = 0
    with httpx.Client(base_url=url, timeout=300) as client:
        for body, wanted in asked:
            try:
                told = client.post("/v1/completions", json=body).json()
            except httpx.HTTPError:
                return known
            if told["choices"][0]["text"] != wanted:
                wrong.append(f"{body['headwise']}: {told['choices'][0]['text']!r} is not {wanted!r}")
            known += told["usage"]["prompt_tokens_details"]["cached_tokens"]
            answered.release()
    return known


def killed(rounds: int, folder: Path, seed: int = 0) -> tuple[int, list[str]]:
    """Let a server be killed so often, and one be asked everything in the end: the tokens that the last one knew from
    the beginning, and all that was wrong."""
    drawn, wrong = random.Random(seed), list[str]()
    place = build(folder / "tiny")
    asked, kept = bodies(load_model(place), load_tokenizer(place)), folder / "kept"
    options = ("--prefix-folder", str(kept), "--piece", str(PIECE), "--dtype", "float32")
    for done in range(rounds):
        with serving(place, *options) as server:
            answered = threading.Semaphore(0)
            asking = threading.Thread(target=ask, args=(server.url, asked * 20, wrong, answered))
            asking.start()
            for _ in range(drawn.randrange(2, 9)):  # by then it has something to write, whatever the machine's pace
                answered.acquire(timeout=60)
            time.sleep(0.1 * drawn.random())
            server.process.kill()
            asking.join(60)
        print(f"killed {done + 1} of {rounds} times, {len(list(kept.glob('*.prefix')))} files", file=sys.stderr)
        if found := [line for line in server.lines if "Traceback" in line]:
            wrong += found
    for damaged in list(kept.glob("*.prefix"))[:1]:
        damaged.write_bytes(damaged.read_bytes()[:-7])
    with serving(place, *options) as server:
        known = ask(server.url, asked, wrong, threading.Semaphore(0))
    return known, wrong


def main() -> None:
    """Run it, and end in an error where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    with tempfile.TemporaryDirectory() as folder:
        known, wrong = killed(parser.parse_args().rounds, Path(folder))
    wrong += [] if known else ["nothing was kept, so that nothing was tried"]
    print(f"the last server knew {known} tokens of prompts")
    sys.exit("\n".join(wrong[:20]) if wrong else 0)


if __name__ == "__main__":
    main()
