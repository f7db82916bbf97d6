"""The kernels for GPUs on one: whether they equal the reference, and their speed beside sdpa and FlexAttention.

    python benchmarks/gpu.py --json docs/data/gpu.json
    python benchmarks/gpu.py --rehearse        # the same script on a CPU, by interpreters, on small cases: no speeds

Correctness comes first, and a case that differs ends the run with an error once all were tried; then contenders of a
case take turns, medians of `--rounds`. What was measured when `--seconds` are over is printed and written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from headwise.bench.provenance import machine, versions
from headwise.cache.codecs import codec
from headwise.cache.pages import PAGE
from headwise.forms import Attended, Blocks, Causal, Paged, Scoring, Side, Tokens, VerticalSlash, Where, Window
from headwise.kernels.flex import Flex
from headwise.kernels.reference import attention as reference
from headwise.kernels.request import PagesRequest, Request
from headwise.kernels.triton.backend import Triton

CODECS = ("plain", "int8", "int4/32")
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}
Arms = dict[str, Callable[[], object]]


def draw(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """Normal vectors, the same at every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def pages(name: str, k: Tensor, v: Tensor, lengths: list[int]) -> Paged:
    """`k`, `v [h, n, d]`, n whole pages, as a codec stores them, pages in a random order; lanes as long as told."""
    each = k.shape[1] // PAGE
    order = torch.randperm(len(k) * each, generator=torch.Generator().manual_seed(0)).to(k.device)

    def side(x: Tensor) -> Side:
        planes = codec(name).encode(x)
        shuffled = {}
        for key, plane in planes.items():
            flat = plane.reshape(-1, PAGE, plane.shape[-1])
            shuffled[key] = torch.empty_like(flat)
            shuffled[key][order] = flat
        return Side(name, x.shape[2], shuffled)

    return Paged(side(k), side(v), tuple(lengths), tuple(range(0, len(k) * each, each)), order, PAGE, list)


def decoded(name: str, x: Tensor) -> Tensor:
    """What is read back of `x` once a codec stored it."""
    return codec(name).decode(codec(name).encode(x), x.dtype)


def decode_cases(device: str, small: bool) -> Iterator[tuple[str, float]]:
    """How far decoding is off the reference, as a share of what is allowed: codecs, types, rules, odd shapes."""
    if not find_spec("triton"):
        print("triton is not installed: decoding is not tried")
        return
    rules: list[Where] = [Causal(), Window(37), Window(100, sinks=4), Tokens([torch.arange(0, 60, 3)] * 2)]
    for dtype in [torch.float32] if small else TOLERANCE:
        for name in CODECS:
            for (g, t, d), cap in zip(
                ((1, 1, 64), (4, 1, 128), (7, 3, 96), (16, 16, 64)), (None, 5.0, None, None), strict=True
            ):
                n = 160 if small else 16 * 150
                q, k, v = (draw(*s, dtype=dtype, device=device) for s in ((2, g, t, d), (2, n, d), (2, n, d)))
                for where in rules[: 1 if small else 4]:
                    lengths = [n, n] if where.heads else [n - 5, 70]
                    scoring = Scoring(d**-0.5, cap)
                    got = Triton(interpreted=device == "cpu").attend_pages(
                        PagesRequest(q, pages(name, k, v, lengths), where, scoring)
                    )
                    keys, values = decoded(name, k).float(), decoded(name, v).float()
                    off = 0.0
                    for lane, length in enumerate(lengths):
                        own = Tokens([where.indices[lane]]) if isinstance(where, Tokens) else where
                        want = reference.attend(
                            Request(
                                q[lane, None].float(),
                                keys[lane, None, :length],
                                values[lane, None, :length],
                                own,
                                scoring,
                            )
                        )
                        off = max(off, distance(Attended(got.out[lane, None], got.lse[lane, None]), want))
                    yield f"decode {name} {dtype} g={g} t={t} d={d} {type(where).__name__}", off / TOLERANCE[dtype]


def prompt_cases(device: str, small: bool) -> Iterator[tuple[str, float]]:
    """The same of prompts by FlexAttention."""
    flex = Flex(compiled=device != "cpu")
    for dtype in (torch.float32, torch.bfloat16):
        for t, n in ((70, 150),) if small else ((300, 300), (1000, 3001)):
            tokens = [torch.arange(0, n, 5)] * 2
            forms: list[Where] = [Causal(), Window(60, sinks=4), blocks(t, n, 64), VerticalSlash(tokens, tokens)]
            q, k, v = (draw(*s, dtype=dtype, device=device) for s in ((2, 4, t, 64), (2, n, 64), (2, n, 64)))
            for where in forms:
                got = flex.attend(Request(q, k, v, where, Scoring(0.125)))
                want = reference.attend(Request(q.float(), k.float(), v.float(), where, Scoring(0.125)))
                yield f"prompt {dtype} t={t} n={n} {type(where).__name__}", distance(got, want) / TOLERANCE[dtype]


def blocks(t: int, n: int, size: int) -> Blocks:
    """A quarter of all blocks for two heads, and those of the diagonal."""
    map = torch.rand(2, -(-t // size), -(-n // size), generator=torch.Generator().manual_seed(1)) < 0.25
    rows = torch.arange(map.shape[1])
    map[:, rows, (n - t) // size + rows] = True
    return Blocks.from_map(size, map)


def distance(got: Attended, want: Attended) -> float:
    """The largest difference of outputs and log-sum-exps; infinite where anything is NaN."""
    off = max(float((got.out - want.out).abs().max()), float((got.lse - want.lse).abs().max()))
    return off if off == off else float("inf")


def medians(arms: Arms, rounds: int) -> dict[str, float]:
    """Median milliseconds of every arm, the arms taking turns; the first call, which compiles, is not counted."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()
    for turn in range(rounds):
        for name in list(arms) if turn % 2 == 0 else reversed(list(arms)):
            torch.cuda.synchronize()
            start = time.perf_counter()
            arms[name]()
            torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def speeds(rounds: int) -> Iterator[dict[str, object]]:
    """Decoding and prompts of 32 query heads over 8 KV heads of 128, bfloat16."""
    how = {"dtype": torch.bfloat16, "device": "cuda"}
    for n in (2048, 16384, 131072):
        q, k, v = draw(8, 4, 1, 128, **how), draw(8, n, 128, **how), draw(8, n, 128, **how)
        arms: Arms = {}
        for name in CODECS:
            request = PagesRequest(q, pages(name, k, v, [n] * 8), Causal(), Scoring(128**-0.5))
            arms[f"triton, {name}"] = lambda request=request: Triton().attend_pages(request)
        arms["sdpa"] = lambda q=q, k=k, v=v: sdpa(q.view(1, 32, 1, 128), k[None], v[None], enable_gqa=True)
        yield {"case": f"decode after {n}", "ms": medians(arms, rounds)}
    for n in (2048, 16384):
        q, k, v = draw(8, 4, n, 128, **how), draw(8, n, 128, **how), draw(8, n, 128, **how)
        quarter = torch.rand(8, n // 128, n // 128, generator=torch.Generator().manual_seed(1)) < 0.25
        forms = {"causal": Causal(), "window 1024": Window(1024, 4), "a quarter": Blocks.from_map(128, quarter)}
        arms = {
            f"flex, {name}": lambda where=where, q=q, k=k, v=v: Flex().attend(
                Request(q, k, v, where, Scoring(128**-0.5))
            )
            for name, where in forms.items()
        }
        arms["sdpa, causal"] = lambda q=q, k=k, v=v, n=n: sdpa(
            q.view(1, 32, n, 128), k[None], v[None], is_causal=True, enable_gqa=True
        )
        yield {"case": f"prompt of {n}", "ms": medians(arms, rounds)}


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--seconds", type=float, default=500, help="after so many no further case is begun")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, small, without speeds")
    return parser


def main() -> None:
    """Hold all cases to the reference, then time them."""
    asked = arguments().parse_args()
    if asked.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --rehearse tries the script on a CPU")
    start, device = time.monotonic(), "cpu" if asked.rehearse else "cuda"
    name = "none: rehearsed on a CPU" if asked.rehearse else torch.cuda.get_device_name()
    result: dict[str, object] = {"device": name, "machine": machine(), "versions": versions()}
    off = {}
    for cases in (decode_cases, prompt_cases):
        for case, share in cases(device, asked.rehearse):
            off[case] = share
            if time.monotonic() - start > asked.seconds / 2:
                print("half the time is over: further cases of these are not tried")
                break
    wrong = {case: share for case, share in off.items() if not share <= 1}
    print(f"{name}: {len(off) - len(wrong)} of {len(off)} cases equal the reference")
    for case, share in wrong.items():
        print(f"  differs: {case}, {share:.2g} x what is allowed")
    result["share_of_tolerance"] = off
    found: list[dict[str, object]] = []
    for row in () if asked.rehearse else speeds(asked.rounds):
        found.append(row)
        print(row["case"], *(f"{arm} {ms:.3f} ms" for arm, ms in row["ms"].items()), sep="  ")  # type: ignore[union-attr]
        if time.monotonic() - start > asked.seconds:
            break
    result["speeds"] = found
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
