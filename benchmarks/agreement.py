"""How far headwise keeps the same tokens as NVIDIA's kvpress: same model, prompt and counts; a table in Markdown.

python benchmarks/agreement.py --context 1500

Needs kvpress beside headwise (kvpress 0.5 wants transformers below 5.3; headwise takes 4.57.6 and later). Ends with
exit code 1 where a method agrees in less than LEAST of the tokens. --apart shows what differs on purpose as well.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from models import load
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel

import headwise
from headwise.assets import embedded_model, novel
from headwise.bench.job import encode
from headwise.calibrate.measures.keys import calibrated
from headwise.calibrate.measures.outputs import output_projections
from headwise.calibrate.subject import ModelSubject
from headwise.methods.evict.expected_attention.measure import query_statistics
from headwise.methods.evict.kvzap.measure import surrogate
from headwise.methods.evict.sim_layer import laziness
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.drive import prefill

if TYPE_CHECKING:
    import kvpress

LEAST = 0.98
WINDOW, BARE = 64, "sinks=0, recent=0"
WHOLE = 100  # tokens of a chunk; prompts of a multiple, as kvpress lets empty ones of the last chunk attend
LAZY = 0.77  # attention to near tokens above which a layer of the embedded model counts as lazy
Kept = list[list[set[int]]]  # positions, by layer and KV head


def pairs(ratio: float, count: int, context: int) -> dict[str, tuple[kvpress.BasePress, str]]:
    """By name: kvpress's method that drops `ratio`, and the recipe that keeps `count` of `context` tokens by the same
    settings."""
    import kvpress

    snapkv = f"snapkv({count}, window={WINDOW}, {BARE})"
    votes = kvpress.SnapKVPress(ratio, window_size=WINDOW, kernel_size=1)
    return {
        "SnapKV": (kvpress.SnapKVPress(ratio, window_size=WINDOW), snapkv),
        "Knorm": (kvpress.KnormPress(ratio), f"l2norm({count}, skip_layers=0, {BARE})"),
        "StreamingLLM": (kvpress.StreamingLLMPress(ratio, n_sink=4), f"streaming({count}, sinks=4, recent=0)"),
        "Expected Attention": (
            kvpress.ExpectedAttentionPress(ratio, n_sink=4, epsilon=0.01),
            f"expected_attention({count}, sinks=4, recent=0)",
        ),
        "Expected Attention, measured": (
            kvpress.ExpectedAttentionStatsPress(ratio, n_sink=4, epsilon=0.01),
            f"expected_attention({count}, sinks=4, recent=0)",
        ),
        "PyramidKV": (
            kvpress.PyramidKVPress(ratio, window_size=WINDOW, beta=3),
            f"{snapkv} | pyramid(3)",
        ),
        "AdaKV": (kvpress.AdaKVPress(kvpress.SnapKVPress(ratio, window_size=WINDOW)), f"{snapkv} | ada"),
        "KeyDiff": (kvpress.KeyDiffPress(ratio), f"keydiff({count}, {BARE})"),
        "TOVA": (kvpress.TOVAPress(ratio), f"tova({count}, {BARE})"),
        "LagKV": (kvpress.LagKVPress(ratio, n_sink=4), f"lag_kv({count}, sinks=4, recent=0)"),
        "ChunkKV": (kvpress.ChunkKVPress(votes), f"chunk_kv({count}, window={WINDOW}, {BARE})"),
        "EntropyGatedChunkKV": (
            kvpress.EntropyGatedChunkKVPress(votes),
            f"entropy_chunk_kv({count}, window={WINDOW}, {BARE})",
        ),
        "KVzip": (
            kvpress.KVzipPress(ratio, layerwise=True),
            f"kvzip({count}, sinks=4, recent=0, {instruction()}) | ada(0.0)",
        ),
        "ThinK, channels": (
            kvpress.ThinKPress(0.5, window_size=context),
            "think(0.5, window=0)",
        ),
        "SimLayerKV, measured": (
            kvpress.SimLayerKVPress(lazy_threshold=LAZY, n_recent=256),
            f"sim_layer(259, near=256, threshold={LAZY}, recent=0)",
        ),
        "CriticalKV, measured": (
            kvpress.CriticalKVPress(kvpress.SnapKVPress(ratio, window_size=WINDOW)),
            f"critical_kv({count}, window={WINDOW}, {BARE})",
        ),
        "KVCompose, layer by layer": (
            kvpress.KVComposePress(compression_ratio=ratio),
            "kv_compose({count}, sinks=0, recent=0)",
        ),
        "CUR": (kvpress.CURPress(ratio), f"cur({count}, sinks=4, recent=0)"),
        "Leverage": (
            undrawn(kvpress.LeverageScorePress(ratio, sketch_dimension=64)),
            f"leverage({count}, directions=64, {BARE})",
        ),
        "Non-causal": (
            kvpress.NonCausalAttnPress(ratio, chunk_size=WHOLE),
            f"non_causal({count}, size={WHOLE}, {BARE})",
        ),
        "Compactor": (  # one chunk from the last sink to the first of the latest tokens
            undrawn(kvpress.CompactorPress(ratio, chunk_size=context - 12, sketch_dimension=64, blending=0.35)),
            f"compactor({count}, size={context - 12}, directions=64)",
        ),
        "Finch": (asking(kvpress.FinchPress(ratio, rerotate_keys=False)), f"finch({count}, window={WINDOW}, {BARE})"),
    }


def apart(ratio: float, count: int) -> dict[str, tuple[kvpress.BasePress, str]]:
    """The same where headwise differs on purpose, so that its cards can say how far."""
    import kvpress

    votes, critical = kvpress.SnapKVPress(ratio, window_size=WINDOW), f"critical_kv({count}, window={WINDOW}, {BARE})"
    return {
        "ThinK by its last 32 queries, channels": (kvpress.ThinKPress(0.5), "think(0.5, window=0)"),
        "Leverage by other random directions": (kvpress.LeverageScorePress(ratio), f"leverage({count}, {BARE})"),
        "CriticalKV by values alone": (kvpress.CriticalKVPress(votes), critical),
        "CriticalAdaKV, measured": (kvpress.CriticalAdaKVPress(votes), f"{critical} | ada"),
        "KVzip foretold by KVzap, measured": (
            kvpress.KVzipPress(ratio, layerwise=True),
            f"kvzap({count}, sinks=4, recent=0) | ada(0.0)",
        ),
    }


def asking(press: kvpress.FinchPress) -> kvpress.FinchPress:
    """FINCH with the last WINDOW tokens for the question, where it looks for a token of its own between both."""
    press.window_size, press.delimiter_token_id = WINDOW, -1
    return press


def undrawn(press: kvpress.ScorerPress) -> kvpress.ScorerPress:
    """A press that looks at keys as they are, where it would mix their channels at random."""
    scored = press.score

    def score(*args: object, **kwargs: object) -> torch.Tensor:
        with patch("torch.randn", lambda *sizes, **_: sizes[-1] ** 0.5 * torch.eye(*sizes[-2:]).expand(sizes)):
            return scored(*args, **kwargs)

    press.score = score
    return press


def instruction() -> str:
    """The knobs of `kvzip` for what kvpress asks a model without a chat template, as the embedded one is."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    asked = {
        "ask": "\n\nRepeat the previous context exactly.",
        "resume": "\n\nRepeat the part of the previous context exactly, starting with",
        "then": "\n",
    }
    ids = {knob: tokenizer.encode(text, add_special_tokens=False) for knob, text in asked.items()}
    return ", ".join(f"{knob}='{' '.join(map(str, own))}'" for knob, own in ids.items())


def theirs(model: PreTrainedModel, press: kvpress.BasePress, ids: torch.Tensor, dense: DynamicCache) -> Kept:
    """What kvpress keeps: the places of its keys among those of a dense cache, or all it does not mask."""
    import kvpress

    cache = DynamicCache()
    with torch.no_grad(), press(model):
        model(ids, past_key_values=cache)
    kept = []
    if isinstance(press, kvpress.ThinKPress):
        return [[left(head) for head in layer.keys[0]] for layer in cache.layers]
    for layer, (pruned, whole) in enumerate(zip(cache.layers, dense.layers, strict=True)):
        module = model.model.layers[layer].self_attn
        masked, module.masked_key_indices = getattr(module, "masked_key_indices", None), None
        if masked is not None:
            gone = set(zip(masked[1].tolist(), masked[2].tolist(), strict=True))
            heads = range(whole.keys.shape[1])
            kept.append([{i for i in range(ids.shape[1]) if (head, i) not in gone} for head in heads])
        else:
            same = [torch.cdist(a, b).argmin(1).tolist() for a, b in zip(pruned.keys[0], whole.keys[0], strict=True)]
            kept.append([set(places) for places in same])
    return kept


def measured(model: PreTrainedModel, press: kvpress.BasePress, recipe: str, ids: torch.Tensor) -> Plan:
    """The plan of a recipe with what is measured for it on the prompt itself, for KVzap on other text; a press that has
    nothing measured is told as well."""
    subject = ModelSubject(model)
    if recipe.startswith("sim_layer"):
        tensors = {"sim_layer.near": laziness(subject, [ids], last=press.n_last)}
    elif recipe.startswith("kvzap"):
        tensors = surrogate(subject, [text(start, 1200) for start in (200_000, 260_000, 320_000)])
    elif recipe.startswith("critical_kv"):
        tensors = {"critical_kv.output": output_projections(subject, most=model.config.hidden_size)}
    else:
        tensors = query_statistics(subject, [ids])
        press.mu, press.cov = (tensors[f"expected_attention.{one}"].flatten(1, 2) for one in ("mean", "covariance"))
    return calibrated(Plan.uniform(headwise.attach(model).geometry, recipe), tensors)


def layered(model: PreTrainedModel, recipe: str, found: Kept) -> Plan:
    """The plan of a recipe by whose `count` every layer keeps as many tokens as were found."""
    geometry = headwise.attach(model).geometry
    recipes = tuple((Recipe.parse(recipe.format(count=len(heads[0]))),) * len(heads) for heads in found)
    return replace(Plan.uniform(geometry, ""), recipes=recipes)


def ours(model: PreTrainedModel, recipe: str | Plan, ids: torch.Tensor) -> Kept:
    """What headwise keeps."""
    cache = headwise.Cache(model, recipe)
    prefill(model, cache, ids, None)
    session = cache.session
    assert session is not None
    if session.plan.recipes[0][0].compress is not None:
        return [
            [left(head) for head in group.store.segment(0, group.store.shape.lanes).keys] for group in session.groups
        ]
    heads = session.plan.geometry.kv_heads
    return [
        [set(session.positions(layer, 0, head).tolist()) for head in range(count)] for layer, count in enumerate(heads)
    ]


def left(keys: torch.Tensor) -> set[int]:
    """The channels of keys [n, d] in which any of them is not 0."""
    return set(keys.any(0).nonzero()[:, 0].tolist())


def agreement(one: Kept, other: Kept) -> tuple[float, float]:
    """Share of tokens that both keep, over all heads and in the worst head."""
    shares = [
        (len(a & b), max(len(a), len(b), 1))
        for heads, others in zip(one, other, strict=True)
        for a, b in zip(heads, others, strict=True)
    ]
    return sum(both for both, _ in shares) / sum(most for _, most in shares), min(both / most for both, most in shares)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=1500, help="tokens of the prompt")
    parser.add_argument("--ratio", type=float, default=0.6, help="share of the tokens that leave")
    parser.add_argument("--apart", action="store_true", help="also what differs on purpose")
    parser.add_argument("--only", default="", help="methods whose name holds this")
    return parser


def main() -> None:
    """One row per method."""
    options = arguments().parse_args()
    if find_spec("kvpress") is None:
        raise SystemExit(f"error: kvpress is not installed for {sys.executable}; pip install kvpress in an environment")
    ids, count = text(60_000, options.context), int(options.context * (1 - options.ratio))
    models = load("embedded", dtype=torch.float32), load("embedded", dtype=torch.float32)
    print(f"embedded model, {ids.shape[1]} tokens, {options.ratio:.0%} dropped, float32; tokens kept by both\n")
    print("| method | recipe | all heads | worst head |\n| --- | --- | --- | --- |")
    shares = rows(models, pairs(options.ratio, count, options.context), ids, options.only)
    share, head = agreement(*(ours(models[1], f"{name}({count})", ids) for name in ("random", "keydiff")))
    print(f"| control: another method | `random` and `keydiff` | {share:.2%} | {head:.2%} |")
    if options.apart:
        print("\nDifferent on purpose:\n\n| method | recipe | all heads | worst head |\n| --- | --- | --- | --- |")
        rows(models, apart(options.ratio, count), ids, options.only)
    sys.exit(int(min(shares, default=1.0) < LEAST))


def rows(
    models: tuple[PreTrainedModel, PreTrainedModel],
    found: dict[str, tuple[kvpress.BasePress, str]],
    ids: torch.Tensor,
    only: str,
) -> list[float]:
    """Print a row of each method whose name holds `only`; the shares of tokens that both keep. models: the embedded one
    as it is, and once more for headwise."""
    plain, attached = models
    shares, dense = [], DynamicCache()
    with torch.no_grad():
        plain(ids, past_key_values=dense)
    for name, (press, recipe) in found.items():
        if only not in name:
            continue
        plan = measured(attached, press, recipe, ids) if "measured" in name else recipe
        kept = theirs(plain, press, ids, dense)
        if "layer by layer" in name:
            plan = layered(attached, recipe, kept)
        share, head = agreement(kept, ours(attached, plan, ids))
        shares.append(share)
        print(f"| {name} | `{recipe}` | {share:.2%} | {head:.2%} |", flush=True)
    return shares


def text(start: int, tokens: int) -> torch.Tensor:
    """Ids [1, tokens] of the novel from a character on."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    return encode(tokenizer, novel()[start : start + 6 * tokens], start=True)[:, :tokens]


if __name__ == "__main__":
    main()
