"""Whole models beside what one would pick instead, on the same weights, in one run: prompts, decoding, keeping less.

    python benchmarks/peers.py MODEL --prefill 8192 --decode 8192 32768 --keep 8192 --json out/peers.json \\
        --openvino ENV/bin/python MODEL-OV --llamacpp ENV/bin/python MODEL.gguf --kvpress ENV/bin/python

MODEL is a checkpoint's folder; `benchmarks/weights.py` makes one of Llama-3.2-1B's shape, and the other peers' forms of
it. Every contender is a process of its own in its own Python environment (`benchmarks/workers/`), so that none has to
live with another's packages; peers left out of the command are left out of the table, and so are those whose package is
not installed in the environment named, with a line that says so. Contenders take turns (a, b, c,
c, b, a, ...) and are stopped between theirs, so that no idle thread of one slows another; medians with the range.

decode: caches as a prompt of random tokens leaves them, without the minutes of its attention where the peer lets us.
keep: prompts are read and evicted, a tenth kept, then decoding; `of budget` is bytes held over what the plan's counts
of tokens come to. OpenVINO's and llama.cpp's bytes are of their pools, filled or not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from headwise.bench.provenance import machine, versions
from headwise.seams.transformers.load import located

HERE = Path(__file__).resolve().parent
Contender = tuple["Peer", str]
PACKAGES = {"openvino": "openvino_genai", "llamacpp": "llama_cpp", "kvpress": "kvpress"}  # what a peer's worker imports


class Peer:
    """A worker process: called, awaited, and stopped until its next turn."""

    def __init__(self, name: str, python: str, arguments: list[str], threads: int) -> None:
        self.name = name
        script = HERE / "workers" / f"{name.partition(',')[0]}_worker.py"
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])] if python == sys.executable else [str(HERE)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
        self.process = subprocess.Popen(
            [python, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, method: str, *arguments: Any) -> Any:
        """What the worker's method returns. Raises RuntimeError with its error, or when the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps([method, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}; its message is above")
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer["found"]

    def close(self) -> None:
        """End the process, in the middle of a call too."""
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)
        self.process.wait()


def absent(name: str, python: str) -> str | None:
    """Why a peer cannot run in the environment of `python`, or None."""
    looked_for = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{PACKAGES[name]}') is None)"
    try:
        found = subprocess.run([python, "-c", looked_for], check=False)
    except OSError as error:
        return f"{python} cannot be run: {error.strerror}"
    return None if found.returncode == 0 else f"{PACKAGES[name]} is not installed for {python}"


def contenders(peers: list[Peer], job: str, without: list[str]) -> list[Contender]:
    return [one for peer in peers for arm in peer("arms", job) if label(one := (peer, arm)) not in without]


def prefill(arms: list[Contender], tokens: int, runs: int) -> dict[str, dict[str, Any]]:
    """Seconds of a prompt by contender."""
    for peer, arm in arms:
        peer("prefill", arm, 256)  # warm-up
    return in_turns(arms, runs, "prefill", tokens)


def decode(arms: list[Contender], how: str, tokens: int, steps: int) -> dict[str, dict[str, Any]]:
    """Seconds of a token by contender, each over a cache of `tokens`; how: `open` or `keep`, the call that makes it."""
    made = {label((peer, arm)): peer(how, arm, tokens) for peer, arm in arms}
    for peer, arm in arms:
        peer("step", arm)  # warm-up
    found = in_turns(arms, steps, "step")
    for peer, arm in arms:
        peer("close", arm)
    return {name: {**found[name], **made[name]} for name in found}


def in_turns(arms: list[Contender], rounds: int, method: str, *arguments: Any) -> dict[str, dict[str, Any]]:
    """Median seconds and range of `method(arm, *arguments)` by contender."""
    print("all are ready", flush=True)
    times: dict[str, list[float]] = {label(one): [] for one in arms}
    for i in range(rounds):
        for peer, arm in arms if i % 2 == 0 else reversed(arms):
            times[label((peer, arm))].append(peer(method, arm, *arguments))
    return {
        name: {"median_s": statistics.median(own), "low_s": min(own), "high_s": max(own), "runs": len(own)}
        for name, own in times.items()
    }


def label(one: Contender) -> str:
    peer, arm = one
    return f"{peer.name}, {arm}" if arm else peer.name


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    base = next(iter(found.values()))["median_s"]
    print(f"\n{title}\n  {'':32}{'s':>9}{'range':>18}{'x first':>9}{'MiB held':>10}{'of budget':>10}{'prompt s':>10}")
    for name, one in found.items():
        held = f"{one['held_bytes'] / 2**20:10.1f}" if "held_bytes" in one else " " * 10
        ratio = one["held_bytes"] / one["budget_bytes"] if one.get("budget_bytes") else None
        over = f"{ratio:10.2f}" if ratio else " " * 10
        prompt = f"{one['prefill_s']:10.1f}" if "prefill_s" in one else ""
        spread = f"{one['low_s']:.3f} - {one['high_s']:.3f}"
        print(
            f"  {name:32}{one['median_s']:9.3f}{spread:>18}{one['median_s'] / base:9.2f}{held}{over}{prompt}",
            flush=True,
        )


def measure(peers: list[Peer], args: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Every table asked for, shown as it is found: by title and contender."""
    results = {}
    for tokens in args.prefill:
        found = prefill(contenders(peers, "prefill", args.without), tokens, args.runs)
        results[f"prompt of {tokens} tokens"] = found
        show(*list(results.items())[-1])
    for tokens in args.decode:
        found = decode(contenders(peers, "decode", args.without), "open", tokens, args.steps)
        results[f"a token after {tokens}"] = found
        show(*list(results.items())[-1])
    for tokens in args.keep:
        found = decode(contenders(peers, "keep", args.without), "keep", tokens, args.steps)
        results[f"a token after {tokens}, a tenth kept"] = found
        show(*list(results.items())[-1])
    return results


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint, or a short name as in `headwise models`")
    parser.add_argument(
        "--weights", nargs="*", default=[], metavar="BITS", help="headwise with int8 or int4 weights too"
    )
    parser.add_argument("--transformers", action="store_true", help="add transformers' sdpa, in this environment")
    parser.add_argument("--openvino", nargs=2, metavar=("PYTHON", "FOLDER"))
    parser.add_argument("--llamacpp", nargs=2, metavar=("PYTHON", "GGUF"))
    parser.add_argument("--kvpress", metavar="PYTHON")
    parser.add_argument("--prefill", type=int, nargs="*", default=[], metavar="TOKENS")
    parser.add_argument("--decode", type=int, nargs="*", default=[], metavar="TOKENS")
    parser.add_argument("--keep", type=int, nargs="*", default=[], metavar="TOKENS")
    parser.add_argument("--runs", type=int, default=3, help="prompts of each contender")
    parser.add_argument("--steps", type=int, default=8, help="decoded tokens of each contender")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="rows of the table to leave out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    return parser


def _command(args: argparse.Namespace) -> str:
    """The command without the places of this machine."""
    words = ["python", f"benchmarks/{Path(__file__).name}", Path(args.model).name]
    for name in ("weights", "prefill", "decode", "keep", "without"):
        if own := getattr(args, name):
            words += [f"--{name}", *map(str, own)]
    words += [f"--{name}" for name in ("transformers", "openvino", "llamacpp", "kvpress") if getattr(args, name)]
    return " ".join([*words, f"--threads {args.threads}"])


def main() -> None:
    args = arguments().parse_args()
    args.model = located(args.model)
    threads = str(args.threads)
    wanted = {
        "headwise": (sys.executable, [args.model]),
        **{f"headwise, {one} weights": (sys.executable, [args.model, one]) for one in args.weights},
        "transformers": (sys.executable, [args.model]) if args.transformers else None,
        "openvino": args.openvino and (args.openvino[0], [args.openvino[1], threads]),
        "llamacpp": args.llamacpp and (args.llamacpp[0], [args.llamacpp[1], threads]),
        "kvpress": args.kvpress and (args.kvpress, [args.model]),
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # not without its workers
    for name in PACKAGES:
        if wanted[name] and (why := absent(name, wanted[name][0])):
            print(f"{name} is absent: {why}", flush=True)
            wanted[name] = None
    peers = [Peer(name, *how, args.threads) for name, how in wanted.items() if how]
    try:
        results = measure(peers, args)
    finally:
        for peer in peers:
            peer.close()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"model": Path(args.model).name, "threads": args.threads, "date": time.strftime("%Y-%m-%d")}
        about |= {"command": _command(args), "machine": machine(), "versions": versions()}
        args.json.write_text(json.dumps({"results": results, **about}, indent=1))


if __name__ == "__main__":
    main()
