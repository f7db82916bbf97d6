"""Drafting heads beside untrained ones and beside each other, counted and never timed (rows 135, 141 and 158).

    python benchmarks/drafting_heads.py --json docs/data/decode/heads.json

How often guesses hit, and tokens a pass over prompts of the novel's tenth that no heads learnt from; that greedy tokens
stay; and the logits of trees of guesses in one pass beside forwards over each path. Trainings and what was measured are
kept in --folder, so that a run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

import headwise
from headwise.assets import embedded_model, novel
from headwise.bench.job import encode
from headwise.bench.judging.intervals import Interval, of_scores, of_strata
from headwise.bench.passes import drafted, per_pass, plain, trained
from headwise.bench.provenance import machine
from headwise.decoding.base import Draft, Written
from headwise.decoding.headed import Headed
from headwise.decoding.heads.base import Heads, Trained, made
from headwise.decoding.heads.train import Lesson, hits, windows
from headwise.findings import Finding, as_data, part
from headwise.forms import Tree
from headwise.kept import once
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.forward import forward, last_states
from headwise.seams.transformers.load import load_pair, quiet

KINDS = ("medusa", "clover")
LOOKED_UP = ("lookup", "lookup(drafts=4)")
SETTING = ("steps", "window", "prompts", "tokens", "new", "nodes", "seed")
CUT = 128  # tokens of a piece on which hits are counted


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(embedded_model()))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pieces", type=int, help="Of held-out text that guesses are counted on; all by default.")
    parser.add_argument("--folder", type=Path, default=Path("out/heads"))
    parser.add_argument("--json", type=Path, help="A table of figures for the docs.")
    return parser


def hits_by_piece(heads: Heads, model: Any, pieces: list[torch.Tensor]) -> list[list[list[float]]]:
    """By piece [n] and guess, how often each of the best tokens hit."""
    return [[list(one) for one in hits(heads, model, [piece])] for piece in pieces]


def tokens_a_pass(
    model: Any, draft: Any, prompts: list[torch.Tensor], texts: list[list[int]]
) -> dict[str, list[float]]:
    """By prompt: new tokens by passes over drafts, and whether they are plain decoding's."""
    found: dict[str, list[float]] = {"brought": [], "same": []}
    for ids, want in zip(prompts, texts, strict=True):
        got, ledger = drafted(model, ids, draft, len(want))
        found["brought"].append(per_pass(ledger))
        found["same"].append(float(got == want))
    return found


def guessed(model: Any, draft: Headed, ids: torch.Tensor) -> Draft:
    """The tree that heads guess after ids [1, n]."""
    with torch.no_grad(), last_states(model) as states:
        model(input_ids=ids, use_cache=False)
    return draft.propose(Written(0, ids[0], 16, 63, None, states[0][0, :-1][-draft.reads_states :]))


def tree_errors(model: Any, draft: Headed, ids: torch.Tensor) -> tuple[float, float]:
    """How far the logits of a guessed tree after ids [1, n], read in one pass, are from those of forwards over each of
    its paths, by the largest of these; and the same of its tokens read as one chain."""
    found = guessed(model, draft, ids)
    tree, tokens = found.tree, torch.cat((ids[:, -1:], torch.tensor([list(found.tokens)])), dim=1)
    paths = []
    with torch.no_grad():
        for node in range(len(tree.parents)):
            path = [node]
            while tree.parents[path[0]] >= 0:
                path.insert(0, tree.parents[path[0]])
            paths.append(model(input_ids=torch.cat((ids[:, :-1], tokens[:, path]), dim=1)).logits[0, -1])
    wanted, errors = torch.stack(paths), []
    for shape in (tree, Tree(range(-1, len(tree.parents) - 1))):
        cache = headwise.Cache(model)
        headwise.prefill(model, cache, ids[:, :-1])
        depths = torch.tensor([min(depth, 15) for depth in tree.depths])
        with torch.no_grad(), cache.drafted(shape):
            got = forward(model, cache, tokens, position_ids=depths[None] + ids.shape[1] - 1).logits[0]
        cache.accept([0])
        errors.append(float((got - wanted).abs().max() / wanted.abs().max()))
    return errors[0], errors[1]


def main() -> None:
    """A line for every drafter."""
    given = arguments().parse_args()
    if given.window < CUT:
        raise SystemExit(
            f"--window {given.window} is shorter than the {CUT} tokens of a prompt's piece; give {CUT} or more"
        )
    quiet()
    given.folder.mkdir(parents=True, exist_ok=True)
    tokenizer, model = load_pair(given.model, "float32")  # in bfloat16 near ties fall either way
    ids = encode(tokenizer, novel(), start=True)[0]
    lessons = {kind: Lesson(kind, steps=given.steps, window=given.window, seed=given.seed) for kind in KINDS}
    _, others = windows([ids], lessons[KINDS[0]])
    pieces = [piece for one in others for piece in one.split(CUT) if len(piece) == CUT][: given.pieces]
    prompts = [one[None, : given.tokens] for one in pieces[:: max(1, len(pieces) // given.prompts)]][: given.prompts]
    found, errors = measured(model, ids, lessons, pieces, prompts, given)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures(found, errors, given), indent=1) + "\n")


def measured(
    model: Any,
    ids: torch.Tensor,
    lessons: dict[str, Lesson],
    pieces: list[torch.Tensor],
    prompts: list[torch.Tensor],
    given: argparse.Namespace,
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """By drafter what it brings after prompts and how often it hits in pieces; and how far a tree's logits are off."""
    setting = {name: getattr(given, name) for name in (*SETTING, "pieces")}

    def kept(what: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return once(given.folder, hashlib.sha256(f"{setting} {what}".encode()).hexdigest()[:16], make)

    texts = kept("texts", lambda: {"texts": [plain(model, one, given.new) for one in prompts]})["texts"]
    found: dict[str, Any] = {}
    for kind, lesson in lessons.items():
        for name in ("trained", "not trained"):

            def one(kind: str = kind, name: str = name, lesson: Lesson = lesson) -> dict[str, Any]:
                learnt = name == "trained"
                path = (
                    trained(model, ids, lesson, given.folder)
                    if learnt
                    else untrained(model, kind, pieces, given.folder)
                )
                draft = Headed(model, kind, path, given.nodes)
                found = tokens_a_pass(model, draft, prompts, texts)
                return {**found, "hits": hits_by_piece(draft.trained.heads, model, pieces)}

            found[f"`{kind}`, {name}"] = kept(f"{kind}, {name}", one)
            told(f"{kind}, {name}", found[f"`{kind}`, {name}"])
    for name in LOOKED_UP:
        found[f"`{name}`"] = kept(name, lambda name=name: tokens_a_pass(model, name, prompts, texts))
        told(name, found[f"`{name}`"])

    def off() -> dict[str, Any]:
        draft = Headed(model, "medusa", trained(model, ids, lessons["medusa"], given.folder), 15)
        return {"errors": [tree_errors(model, draft, one) for one in prompts]}

    errors = [(one, other) for one, other in kept("errors", off)["errors"]]
    print(f"tree logits off by {max(one for one, _ in errors):.1e} of the largest at most", flush=True)
    return found, errors


def told(name: str, row: dict[str, Any]) -> None:
    """Print a line of what was found."""
    brought = of_strata([row["brought"]])
    same = f"{sum(row['same']):.0f} of {len(row['same'])} texts the same"
    print(f"{name}: {brought.mean:.3f} tokens a pass ({brought.low:.2f} to {brought.high:.2f}), {same}", flush=True)


def untrained(model: Any, kind: str, pieces: list[torch.Tensor], folder: Path) -> Path:
    """A file of heads as they begin, with their hits."""
    torch.manual_seed(0)
    heads, path = made(kind, model, 3).eval(), folder / f"{kind}-untrained.heads"
    Trained(heads, attach(model).fingerprint, 0, 0, hits(heads, model, pieces)).save(path)
    return path


def best(row: dict[str, Any], guess: int) -> list[float]:
    """By piece, how often the best token of a guess hit, where all before it did."""
    return [one[guess][0] for one in row["hits"]]


def gap(one: list[float], other: list[float]) -> Interval:
    return of_strata([[a - b for a, b in zip(one, other, strict=True)]])


def findings(found: dict[str, Any], errors: list[tuple[float, float]], run: dict[str, Any]) -> list[Finding]:
    """Rows 135, 141 and 158."""
    medusa, clover = found["`medusa`, trained"], found["`clover`, trained"]
    bare, bare_clover = found["`medusa`, not trained"], found["`clover`, not trained"]
    off, chained = [one for one, _ in errors], [one for _, one in errors]
    exact = part("of the largest logit, how far a tree's are from forwards path by path", of_strata([off]), below=1e-5)
    masked = part("the same beside it", gap(chained, off), "the tree's tokens read as one chain", above=1e-3)
    same = part("texts that are plain decoding's", of_scores(medusa["same"]), above=0.9)
    more = part(
        "tokens a pass over it", gap(medusa["brought"], bare["brought"]), "heads that were not trained", above=0
    )
    rows = [
        Finding(
            row=135, says="heads that each guess one token ahead, verified as a tree, bring 1.5 tokens a pass and more",
            parts=(exact, masked, same, more, part("tokens a pass", of_strata([medusa["brought"]]), above=1.5)), **run,
        ),
        Finding(
            row=141, says="a tree of guesses is verified in one pass as forwards over each of its paths would",
            parts=(exact, masked, same), equations=True, **run,
            leaves_out="grouped linear attention, its convolution and how that is unfolded along the paths",
        ),
    ]  # fmt: skip
    later = [
        part("hits of guess 2 over it", gap(best(clover, 1), best(medusa, 1)), "Medusa's, trained alike", above=0),
        part("hits of guess 3 over it", gap(best(clover, 2), best(medusa, 2)), "Medusa's, trained alike", above=0),
        part("hits of guess 2 over it", gap(best(clover, 1), best(bare_clover, 1)), "untrained heads", above=0),
        part("tokens a pass over Medusa's", gap(clover["brought"], medusa["brought"]), above=0),
        part("texts that are plain decoding's", of_scores(clover["same"]), above=0.9),
    ]  # fmt: skip
    says = "a drafter that reads its guesses back hits more often with its second and third than Medusa's heads"
    rows.append(Finding(row=158, says=says, parts=tuple(later), leaves_out="operations of a draft", **run))
    return rows


def figures(found: dict[str, Any], errors: list[tuple[float, float]], given: argparse.Namespace) -> dict[str, Any]:
    """What was found as a table of figures, with what it shows of the list of systems."""
    said = " ".join(f"--{name} {getattr(given, name)}" for name in SETTING)
    said += "" if given.pieces is None else f" --pieces {given.pieces}"
    said += "" if given.model == str(embedded_model()) else f" --model {given.model}"
    run: dict[str, Any] = {
        "command": f"python benchmarks/{Path(__file__).name} {said}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
    }  # fmt: skip
    model, rows = Path(given.model).name, []
    host = f"{model}, {given.steps} steps of {given.window} tokens, {given.prompts} prompts that nothing learnt from"
    for name, row in found.items():
        hit = [""] * 3
        if "hits" in row:
            hit = [f"{100 * of_strata([best(row, guess)]).mean:.1f} %" for guess in range(3)]
        mean = of_strata([row["brought"]])
        rows.append([name, *hit, f"{mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f})"])
    told = findings(found, errors, run | {"host": host}) if given.prompts >= 64 else []
    return {
        "source": host, **run, "model": model, "rows": rows, "findings": as_data(told),
        "columns": ["drafter", "first guess", "second", "third", "tokens a pass"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
