"""The native kernels beside torch's attention and the machine's own limits, measured in one run.

    python benchmarks/native_kernels.py --json docs/data/kernels.json --picture docs/kernels.png

Contenders of a case take turns (a, b, c, c, b, a, ...), so that drift of the machine hits all; medians with the spread
of the middle half. Decoding is judged by bytes of cache per second against a large sum, prompts by useful operations
(the causal half) against a bfloat16 matrix product. `--flex` adds FlexAttention, which compiles anew for every
case and needs a C++ compiler. `--level avx2` and the like hold the kernels to a lower level than this processor's best.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from headwise.bench.provenance import machine, versions
from headwise.cache.codecs import codec
from headwise.cache.pages import PAGE, copied
from headwise.forms import Blocks, Causal, Full, Paged, Scoring, Side, Tokens
from headwise.kernels.native.backend import Native
from headwise.kernels.reference import attention as reference
from headwise.kernels.request import PagesRequest, Request
from headwise.report.pictures import as_png

Arms = dict[str, Callable[[], object]]
RUNS = {"a quarter of the pages": 1, "a quarter, in fours": 4, "a quarter, in one run": None}  # pages side by side


def interleaved(arms: Arms, repetitions: int) -> dict[str, dict[str, float]]:
    """Median seconds of every arm and its quartiles, the arms taking turns."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()
    for i in range(repetitions):
        for name in list(arms) if i % 2 == 0 else reversed(list(arms)):
            start = time.perf_counter()
            arms[name]()
            times[name].append(time.perf_counter() - start)
    quartiles = {name: statistics.quantiles(seconds, n=4) for name, seconds in times.items()}
    return {name: {"median_s": q[1], "low_s": q[0], "high_s": q[2]} for name, q in quartiles.items()}


def in_pages(name: str, x: Tensor) -> Side:
    """`x [h, n, d]` as the codec stores it, in pages."""
    planes = codec(name).encode(x)
    return Side(name, x.shape[2], {k: copied(one.reshape(-1, PAGE, one.shape[-1])) for k, one in planes.items()})


def nbytes(side: Side) -> int:
    return sum(plane.nbytes for plane in side.planes.values())


def a_quarter(h: int, n: int, run: int | None) -> Tokens:
    """Every fourth stretch of `run` pages of n tokens, as a selection scatters them; None: the first quarter."""
    pages = torch.arange(n // PAGE)
    chosen = pages[: len(pages) // 4] if run is None else pages.view(-1, run)[::4].flatten()
    return Tokens((chosen[:, None] * PAGE + torch.arange(PAGE)).flatten().expand(h, -1).contiguous())


def decode(
    native: Native, heads: tuple[int, int, int], n: int, dtype: torch.dtype, repetitions: int, flex: bool
) -> dict:
    """One new token over n stored ones; heads: KV heads, query heads each, width."""
    h, g, d = heads
    whole = copied(torch.randn(2, h, n, d).to(dtype))
    k, v = whole
    q = torch.randn(h, g, 1, d).to(dtype)
    scoring = Scoring(d**-0.5)
    flat, keys, values = q.view(1, h * g, 1, d), k[None], v[None]
    quarters = {name: a_quarter(h, n, run) for name, run in RUNS.items()}
    arms: Arms = {
        "read limit (sum)": lambda: whole.view(torch.int64).sum(),
        "headwise": partial(native.attend, Request(q, k, v, Full(), scoring)),
        **{
            f"headwise, {name}": partial(native.attend, Request(q, k, v, own, scoring))
            for name, own in quarters.items()
        },
        "sdpa, enable_gqa": lambda: sdpa(flat, keys, values, enable_gqa=True),
        "sdpa, repeated heads": lambda: sdpa(flat, *(x.repeat_interleave(g, 1) for x in (keys, values))),
    }
    size = {"headwise": whole.nbytes}
    if dtype == torch.bfloat16:
        for name in ("int8", "int4/64"):
            sides = in_pages(name, k), in_pages(name, v)
            starts = tuple(i * (n // PAGE) for i in range(h))
            paged = Paged(*sides, (n,) * h, starts, None, PAGE, list)
            arms[f"headwise, {name}"] = partial(native.attend_pages, PagesRequest(q, paged, Full(), scoring))
            size[f"headwise, {name}"] = sum(map(nbytes, sides))
    if flex:
        arms["flex, compiled"] = flex_arm(flat, keys, values)
    found = interleaved(arms, repetitions)
    for name, bytes_ in size.items():
        found[name]["gb_per_s"] = bytes_ / found[name]["median_s"] / 1e9
    found["read limit (sum)"]["gb_per_s"] = whole.nbytes / found["read limit (sum)"]["median_s"] / 1e9
    ours = found["headwise"]["median_s"]
    ratios = {
        "of the read limit": found["headwise"]["gb_per_s"] / found["read limit (sum)"]["gb_per_s"],
        **{f"x {name}": found[name]["median_s"] / ours for name in arms if name.startswith(("sdpa", "flex"))},
        **{f"{name.split(', ')[1]} x": ours / found[name]["median_s"] for name in size if "int" in name},
        **{name: found[f"headwise, {name}"]["median_s"] / ours for name in RUNS},
    }
    return {"case": f"decode {h * g}/{h} heads of {d}, {n} tokens, {name_of(dtype)}", "arms": found, "ratios": ratios}


def random_blocks(h: int, n: int, density: float) -> Blocks:
    """Blocks of 64 at about a density of the causal half, the diagonal always seen."""
    rows = n // 64
    seen = torch.rand(h, rows, rows).tril() > 1 - density
    return Blocks.from_map(64, seen.tril() | torch.eye(rows, dtype=torch.bool))


def prefill(
    native: Native, heads: tuple[int, int, int], n: int, dtype: torch.dtype, repetitions: int, flex: bool, limit: float
) -> dict:
    """A prompt of n tokens; limit: operations per second of a bfloat16 matrix product."""
    h, g, d = heads
    k, v = (torch.randn(h, n, d).to(dtype) for _ in range(2))
    q = torch.randn(h, g, n, d).to(dtype)
    scale = d**-0.5
    flat, keys, values = q.view(1, h * g, n, d), k[None], v[None]
    sparse = {f"headwise, blocks at {x}": random_blocks(h, n, y) for x, y in (("1/4", 0.25), ("1/16", 0.0625))}
    arms: Arms = {
        "headwise": partial(native.attend, Request(q, k, v, Causal(), Scoring(scale))),
        "sdpa, enable_gqa": lambda: sdpa(flat, keys, values, is_causal=True, enable_gqa=True),
        **{name: partial(native.attend, Request(q, k, v, where, Scoring(scale))) for name, where in sparse.items()},
    }
    if n <= 2048:
        arms["reference"] = partial(reference.attend, Request(q, k, v, Causal(), Scoring(scale)))
    if flex:
        arms["flex, compiled"] = flex_arm(flat, keys, values)
    found = interleaved(arms, repetitions)
    work = 4 * d * h * g * n * (n + 1) / 2
    ours = found["headwise"]["median_s"]
    for name in ("headwise", "sdpa, enable_gqa"):
        found[name]["gflop_per_s"] = work / found[name]["median_s"] / 1e9
    ratios = {
        "of the bfloat16 product": work / ours / limit,
        **{f"x {name}": found[name]["median_s"] / ours for name in arms if not name.startswith("headwise")},
        **{f"{name.split(', ')[1]} (true {where.density(n, n):.3f})": found[name]["median_s"] / ours
           for name, where in sparse.items()},
    }  # fmt: skip
    return {"case": f"prefill {h * g}/{h} heads of {d}, {n} tokens, {name_of(dtype)}", "arms": found, "ratios": ratios}


def flex_arm(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    """FlexAttention of the last tokens q over k and v, compiled for their shapes by the first call."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    t, n = q.shape[2], k.shape[2]
    mask = create_block_mask(lambda b, h, i, j: i + n - t >= j, None, None, t, n, device="cpu")
    torch.compiler.reset()  # past a few shapes a function is no longer compiled, silently
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def matmul_limit(repetitions: int) -> float:
    """Operations per second of a bfloat16 product of 4096 x 4096 matrices."""
    a, b = (torch.randn(4096, 4096).bfloat16() for _ in range(2))
    return 2 * 4096**3 / interleaved({"product": lambda: a @ b}, repetitions)["product"]["median_s"]


def show(result: dict) -> None:
    print(f"\n{result['case']}", flush=True)
    for name, one in result["arms"].items():
        rate = "".join(f"  {one[key]:8.1f} {key.replace('_per_s', '/s')}" for key in one if key.endswith("per_s"))
        print(
            f"  {name:34} {one['median_s'] * 1e3:10.2f} ms  [{one['low_s'] * 1e3:.2f}, {one['high_s'] * 1e3:.2f}]{rate}"
        )
    print("  " + "; ".join(f"{name}: {value:.2f}" for name, value in result["ratios"].items()), flush=True)


def draw(results: list[dict], limit: float, source: bytes, path: Path) -> None:
    """A roofline: operations per byte against operations per second, our points below the machine's two roofs.
    source: the results as they are written."""
    bandwidth = max(r["arms"]["read limit (sum)"]["gb_per_s"] for r in results if "read limit (sum)" in r["arms"])
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    intensity = [2**i for i in range(-1, 18)]
    axes.plot(
        intensity, [min(limit / 1e9, bandwidth * x) for x in intensity], color="#444", label="machine: read, product"
    )
    styles = {"headwise": ("o", "#0072B2"), "sdpa, enable_gqa": ("s", "#D55E00")}
    for name, (marker, colour) in styles.items():
        points = [point for result in results if (point := place(result, name))]
        axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte of keys and values", ylabel="GFLOP/s")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_png(figure, dpi=120, source=source))


def place(result: dict, arm: str) -> tuple[float, float] | None:
    """(operations per byte, GFLOP/s) of an arm in bfloat16."""
    words = result["case"].replace("/", " ").replace(",", "").split()
    if words[-1] != "bfloat16":
        return None
    heads, lanes, d, n = int(words[1]), int(words[2]), int(words[5]), int(words[6])
    queries = 1 if words[0] == "decode" else (n + 1) / 2
    work, size = 4 * d * heads * n * queries, 4 * lanes * n * d
    return work / size, work / result["arms"][arm]["median_s"] / 1e9


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", type=int, nargs="*", default=[16384, 65536, 131072], help="tokens stored")
    parser.add_argument("--prefill", type=int, nargs="*", default=[8192, 32768], help="tokens of a prompt")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--level", help="of the kernels; the best by default")
    parser.add_argument("--flex", action="store_true", help="add FlexAttention, compiled")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    return parser


def main() -> None:
    args = arguments().parse_args()
    limit = matmul_limit(args.repetitions)
    native = Native(args.level)
    usable, told = native.available()
    if not usable:
        raise SystemExit(f"error: --level {args.level}: {told}")
    print(f"bfloat16 product of 4096 x 4096: {limit / 1e9:.0f} GFLOP/s; {told}", flush=True)
    results = []
    for n in args.decode:
        for heads, dtype in (((8, 4, 64), torch.bfloat16), ((8, 1, 64), torch.bfloat16), ((8, 4, 64), torch.float32)):
            results.append(decode(native, heads, n, dtype, args.repetitions, args.flex))
            show(results[-1])
    for n in args.prefill:
        few = max(2, args.repetitions if n <= 8192 else args.repetitions // 4)
        for heads, dtype in (((2, 4, 128), torch.bfloat16), ((2, 4, 64), torch.bfloat16), ((1, 4, 64), torch.float32)):
            results.append(prefill(native, heads, n, dtype, few, args.flex, limit))
            show(results[-1])
    found = {
        "kernels": told,
        "matmul_flop_per_s": limit,
        "results": results,
        "machine": machine(),
        "versions": versions(),
    }
    written = json.dumps(found, indent=1).encode()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_bytes(written)
    if args.picture:
        draw(results, limit, written, args.picture)


if __name__ == "__main__":
    main()
