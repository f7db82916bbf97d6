"""Drafts beside transformers' prompt lookup and assisted generation: three tasks, the same model and prompts, one run.

    python benchmarks/assisted.py smollm2 --tokens 4096 8192 --json docs/data/decode/assisted.json \\
        --llamacpp ENV/bin/python MODEL.gguf

All arms take turns. transformers' assisted generation drafts by the first layers of the same model (`--exit`), or by
`--assistant`, a smaller model of the same tokenizer. llama.cpp's prompt lookup runs in a Python environment of its own
and is left out where that has no llama-cpp-python. Every arm is told as tokens a second, as that beside its own
side's plain greedy decoding, and by whether it wrote the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from drafting import TASKS
from peers import Peer, absent
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import headwise
from headwise.assets import novel
from headwise.bench.provenance import machine
from headwise.compiled.fast import fast
from headwise.decoding.speculate import write
from headwise.kept import once
from headwise.seams.transformers.load import load_model, load_tokenizer, quiet

Arm = Callable[[torch.Tensor, int], tuple[list[int], float]]


def ours(model: PreTrainedModel, recipe: str, draft: str | None) -> Arm:
    """headwise over a cache of a recipe, with a drafter or without."""

    def run(ids: torch.Tensor, new: int) -> tuple[list[int], float]:
        cache = headwise.Cache(model, recipe)
        logits, start = headwise.prefill(model, cache, ids), perf_counter()
        made = (
            headwise.decode(model, cache, logits, new)
            if draft is None
            else write(model, cache, logits, new, draft, ids)
        )
        return made[0].tolist(), perf_counter() - start

    return run


class Clock(BaseStreamer):
    """When generate told tokens, and how many: first the prompt's."""

    def __init__(self) -> None:
        self.told: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.told.append((perf_counter(), value.numel()))

    def end(self) -> None:
        """Nothing is left to tell."""


def theirs(model: PreTrainedModel, **how: Any) -> Arm:
    """transformers' own generation. Its seconds are those after the pass that reads the prompt, and as many a token as
    of the tokens after that pass."""

    def run(ids: torch.Tensor, new: int) -> tuple[list[int], float]:
        clock = Clock()
        out = model.generate(  # type: ignore[operator]
            ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, streamer=clock, **how
        )
        (start, first), (end, _) = clock.told[1], clock.told[-1]
        return out[0, ids.shape[1] :].tolist(), (end - start) / max(1, new - first) * (new - 1)

    return run


def llamacpp(peer: Peer, guessing: bool) -> Arm:
    """llama.cpp, with prompt lookup or without."""

    def run(ids: torch.Tensor, new: int) -> tuple[list[int], float]:
        text, seconds = peer("write", guessing, ids[0].tolist(), new)
        return text, seconds

    return run


def prompts(tokenizer: Any, tokens: int) -> dict[str, torch.Tensor]:
    """Each task's prompt [1, n], of about so many tokens."""
    found = {}
    for task, make in TASKS.items():
        text, share = novel(), tokens / len(tokenizer(make(novel()[:40_000])).input_ids)
        ids = tokenizer(make(text[: round(40_000 * share)]), return_tensors="pt").input_ids
        found[task] = ids[:, -tokens:]
    return found


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--drafts", nargs="+", default=["lookup", "hierarchy"])
    parser.add_argument("--recipes", nargs="+", default=["", "snapkv(0.5) | int8"])
    parser.add_argument("--exit", type=int, default=0, help="Layers that transformers drafts by; 0: half of them.")
    parser.add_argument("--assistant", help="A smaller model of the same tokenizer.")
    parser.add_argument("--llamacpp", nargs=2, metavar=("PYTHON", "GGUF"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where finished rounds of a task are kept, so that a run goes on.")
    parser.add_argument("--json", type=Path, help="A table of figures for the docs.")
    return parser


def arms_of(
    model: PreTrainedModel, peer: PreTrainedModel, other: Peer | None, given: argparse.Namespace
) -> dict[str, tuple[str, Arm]]:
    """By name: the arm that is plain decoding of the same side and cache, and the arm. peer: the same model, as
    transformers loads it; other: llama.cpp's process."""
    found: dict[str, tuple[str, Arm]] = {}
    for recipe in given.recipes:
        side = f"headwise, {recipe or 'dense'}"
        found[side] = (side, ours(model, recipe, None))
        found |= {f"{side}, {draft}": (side, ours(model, recipe, draft)) for draft in given.drafts}
    layers = given.exit or max(1, model.config.get_text_config().num_hidden_layers // 2)
    assisted: dict[str, Any] = {"assistant_early_exit": layers}
    if given.assistant is not None:
        assisted = {"assistant_model": load_model(given.assistant, "auto", "cpu")}
    found["transformers"] = ("transformers", theirs(peer))
    found["transformers, prompt lookup"] = ("transformers", theirs(peer, prompt_lookup_num_tokens=10))
    found["transformers, assisted"] = ("transformers", theirs(peer, **assisted))
    if other is not None:
        found["llama.cpp"] = ("llama.cpp", llamacpp(other, False))
        found["llama.cpp, prompt lookup"] = ("llama.cpp", llamacpp(other, True))
    return found


def started(given: argparse.Namespace) -> Peer | None:
    """llama.cpp's process, or None where it is not asked for or not installed, which is said."""
    if given.llamacpp is None:
        return None
    python, file = given.llamacpp
    if why := absent("llamacpp", python):
        print(f"llama.cpp is absent: {why}", flush=True)
        return None
    threads, longest = torch.get_num_threads(), max(given.tokens) + given.new + 16
    peer = Peer("llamacpp_lookup", python, [file, str(threads), str(longest)], threads)
    try:
        peer("ready")
    except (OSError, RuntimeError):  # its library cannot be loaded, or the file
        peer.close()
        print("llama.cpp is absent: its process ended, with the message above", flush=True)
        return None
    return peer


def main() -> None:
    """A line for every length, task and arm."""
    given = arguments().parse_args()
    quiet()
    tokenizer, model = load_tokenizer(given.model), load_model(given.model, "auto", "cpu")
    peer = load_model(given.model, "auto", "cpu")
    for one in (model, peer):
        one.generation_config.eos_token_id = None
    headwise.attach(model)
    print(fast(model))
    other = started(given)
    try:
        rows = all_rows(tokenizer, arms_of(model, peer, other, given), given)
    finally:
        if other is not None:
            other.close()
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures(rows, given), indent=1) + "\n")


def all_rows(tokenizer: Any, arms: dict[str, tuple[str, Arm]], given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every length, task and arm, each printed when it is found."""
    rows: list[dict[str, Any]] = []
    for tokens in given.tokens:
        for task, ids in prompts(tokenizer, tokens).items():

            def ask(ids: torch.Tensor = ids) -> dict[str, Any]:
                return {name: run(ids, given.new) for name, (_, run) in arms.items()}

            setting = [given.model, given.new, given.exit, given.assistant, list(arms)]
            key = f"{task}-{tokens}-{hashlib.sha256(repr(setting).encode()).hexdigest()[:12]}"
            rounds = [once(given.folder, f"{key}-{turn}", ask) for turn in range(given.repetitions)]
            for row in medians(arms, rounds):
                rows.append({"task": task, "tokens": tokens, **row})
                print(" ".join(f"{name}={told}" for name, told in rows[-1].items()), flush=True)
    return rows


def medians(arms: dict[str, tuple[str, Arm]], rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every arm from rounds in which they took turns: by arm the text that it wrote, and its seconds."""
    middle = {name: statistics.median(one[name][1] for one in rounds) for name in arms}
    texts = {name: rounds[-1][name][0] for name in arms}
    return [
        {
            "arm": name, "tokens_per_second": round((len(texts[name]) - 1) / middle[name], 2),
            "beside_plain": round(middle[side] / middle[name], 3), "same_tokens": texts[name] == texts[side],
        }
        for name, (side, _) in arms.items()
    ]  # fmt: skip


def figures(rows: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """A table for the docs: by arm and length tokens a second of each task, and how much faster than plain decoding of
    the same side on the mean of the tasks and on the worst."""
    shown, tasks = [], list(TASKS)
    for name, tokens in dict.fromkeys((row["arm"], row["tokens"]) for row in rows):
        own = {row["task"]: row for row in rows if (row["arm"], row["tokens"]) == (name, tokens)}
        faster = [row["beside_plain"] for row in own.values()]
        seconds = [f"{own[task]['tokens_per_second']:.1f}" if task in own else "" for task in tasks]
        same = "yes" if all(row["same_tokens"] for row in own.values()) else "no"
        shown.append([name, str(tokens), *seconds, f"{sum(faster) / len(faster):.2f} x", f"{min(faster):.2f} x", same])
    said = f"--tokens {' '.join(map(str, given.tokens))} --new {given.new} --repetitions {given.repetitions}"
    for name in ("recipes", "drafts"):
        said += f" --{name} " + " ".join(f'"{one}"' for one in getattr(given, name))
    said += " --llamacpp ENV/bin/python MODEL.gguf" if given.llamacpp else ""
    return {
        "source": f"{given.new} tokens behind each prompt, arms taking turns, medians of {given.repetitions}",
        "command": f"python benchmarks/{Path(__file__).name} {given.model} {said}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
        "model": Path(given.model).name, "rows": shown,
        "columns": ["arm", "prompt", *(f"{task}, tokens/s" for task in tasks), "over plain, mean", "worst", "same"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
