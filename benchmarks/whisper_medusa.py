"""Medusa's heads on the decoder of a small Whisper, counted and never timed: of both published kinds (row 142).

    python benchmarks/whisper_medusa.py --json docs/data/decode/whisper.json

A Whisper of two layers learns to spell words that are heard as noisy patterns, each of its own length. Then heads are
trained on it, which stays as it is, by themselves and on a shared decoder layer. Of utterances that nothing learnt
from: whether plain greedy tokens are written, and tokens a pass, beside heads that were not trained and looking up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import torch
from accepted import LONGEST as LONGEST_GRAM
from accepted import Tables
from transformers import GenerationMixin, WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

import headwise
from headwise.bench.judging.intervals import Interval, of_scores, of_strata
from headwise.bench.passes import Unjudged
from headwise.bench.provenance import machine
from headwise.decoding.heads.base import Trained, made
from headwise.decoding.heads.train import Heard, Lesson, hits, teach
from headwise.decoding.ngrams import Counted
from headwise.decoding.speculate import AsDrafter, proposer, write_by
from headwise.decoding.verify import Verifier
from headwise.findings import Finding, as_data, part
from headwise.seams.transformers.attach import attach_any
from headwise.seams.transformers.load import quiet

KINDS = ("medusa", "medusa_block")
LOOKED_UP, SPELLINGS = "lookup(drafts=4)", "n-grams of what heads learnt from"
PAD, START, END, SPACE, LETTERS = 0, 1, 2, 3, 26  # ids; letters follow
WORDS, SAID, SPELT = 40, 6, (3, 6)  # known words, words of an utterance, and letters of a word, fewest and most
MEL, FRAMES, NOISE = 16, 4, 0.5  # numbers of a frame, frames of a letter, and what is added to each
LONGEST = SAID * (SPELT[1] + 1) + 1


def vocabulary() -> list[list[int]]:
    """The known words, as ids of their letters."""
    random = Random("words")
    return [[SPACE + 1 + random.randrange(LETTERS) for _ in range(random.randint(*SPELT))] for _ in range(WORDS)]


def utterance(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is heard, [mel, frames], and its spelling [n]: words drawn by lot, a space after each, and an end.

    A word sounds as a pattern of its own, as long as its spelling; letters are not heard one by one.
    """
    random, drawn = Random(f"heard/{number}"), torch.Generator().manual_seed(number)
    ids, sounds = list[int](), list[torch.Tensor]()
    known = vocabulary()
    for word in (random.randrange(WORDS) for _ in range(SAID)):
        pattern = torch.Generator().manual_seed(10**6 + word)
        sounds.append(torch.randn(MEL, FRAMES * (len(known[word]) + 1), generator=pattern))
        ids += [*known[word], SPACE]
    heard = torch.zeros(MEL, FRAMES * LONGEST)
    said = torch.cat(sounds, dim=1)
    heard[:, : said.shape[1]] = said
    return heard + NOISE * torch.randn(heard.shape, generator=drawn), torch.tensor([*ids, END])


def untrained() -> WhisperForConditionalGeneration:
    """A Whisper of two layers each, with random weights."""
    torch.manual_seed(0)
    told: dict[str, Any] = {f"{side}_{name}": size for side in ("encoder", "decoder")
                            for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 256))}  # fmt: skip
    told |= {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
    told |= {"d_model": 64, "vocab_size": SPACE + 1 + LETTERS, "num_mel_bins": MEL, "suppress_tokens": []}
    told |= {"max_target_positions": LONGEST + 8, "max_source_positions": FRAMES * LONGEST // 2}
    return WhisperForConditionalGeneration(WhisperConfig(**told, begin_suppress_tokens=[]))


def host(steps: int, batch: int, folder: Path) -> Any:
    """The trained Whisper; it is kept in a folder, with how far it is."""
    path, model = folder / f"whisper-{steps}-{batch}.pt", untrained()
    optimiser, done = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.0), 0
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        done = kept["done"]
    while done < steps:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, done / 50) * (1 - done / steps)
        drawn = [utterance(10**7 + done * batch + one) for one in range(batch)]
        labels = torch.full((batch, LONGEST), -100)
        for row, (_, ids) in enumerate(drawn):
            labels[row, : len(ids)] = ids
        loss = model(input_features=torch.stack([heard for heard, _ in drawn]), labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        done += 1
        if done % 100 == 0 or done == steps:
            print(f"Whisper: step {done} of {steps}, loss {loss.item():.3f}", flush=True)
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "done": done}, path)
    return model.eval()


def heard(model: Any, number: int) -> Heard:
    """An utterance as the decoder is given it: its spelling, and what the encoder made of it."""
    sound, ids = utterance(number)
    with torch.no_grad():
        states = model.get_encoder()(sound[None]).last_hidden_state
    return Heard(torch.cat((torch.tensor([START]), ids)), {"encoder_outputs": BaseModelOutput(states)})


def trained(model: Any, kind: str, given: argparse.Namespace) -> tuple[dict[str, Path], Trained]:
    """Files of heads of a kind, trained and not, of one tree; and the trained ones."""
    files = {
        state: given.folder / f"{kind}-{given.steps}-{given.heads_steps}-{state}.heads" for state in ("trained", "not")
    }
    fingerprint = attach_any(model).fingerprint
    texts = [heard(model, 10**6 + number) for number in range(given.texts)]
    if not files["trained"].exists():
        print(f"training {kind}", flush=True)
        lesson = Lesson(kind, steps=given.heads_steps, batch=4, window=LONGEST, rate=2e-3)
        split = len(texts) // 10
        teach(model, (texts[split:], texts[:split]), lesson, files["trained"].with_suffix(".training")).save(
            files["trained"]
        )
    best = Trained.load(files["trained"], kind, model, fingerprint)
    torch.manual_seed(0)
    bare = made(kind, model, best.heads.depth).eval()
    Trained(bare, fingerprint, 0, 0, best.hits).save(files["not"])
    return files, best


def plain(model: Any, text: Heard) -> list[int]:
    """What transformers' own greedy `generate` writes of an utterance, over its own cache."""
    start = torch.tensor([[START]])
    how: dict[str, Any] = {"decoder_input_ids": start, "max_new_tokens": LONGEST, "do_sample": False, **text.beside}
    out: torch.Tensor = GenerationMixin.generate(model, **how)
    return out[0, 1:].tolist()


def drafted(model: Any, text: Heard, draft: AsDrafter) -> tuple[list[int], int]:
    """What is written of an utterance with drafts, and by how many passes of the decoder."""
    cache, start = headwise.EncoderDecoderCache(model), torch.tensor([[START]])
    verifier = Verifier(model, cache, proposer(model, draft), beside=text.beside)
    verifier.pace = Unjudged()
    first = verifier.after(start, torch.ones(1, dtype=torch.long), LONGEST)
    ids = write_by(verifier, first, LONGEST, start)[0].tolist()
    assert verifier.cache.session is not None
    return ids, 1 + verifier.cache.session.ledger.steps["decode"]


def arm(model: Any, texts: Sequence[tuple[Heard, list[int]]], draft: AsDrafter) -> dict[str, list[float]]:
    """By utterance: tokens a pass, the share of plain decoding's passes that were saved, and whether the tokens are
    plain decoding's."""
    found: dict[str, list[float]] = {"brought": [], "saved": [], "same": []}
    for text, ids in texts:
        got, passes = drafted(model, text, draft)
        found["brought"].append(len(got) / passes)
        found["saved"].append(1 - passes / len(ids))  # plain decoding takes a pass a token
        found["same"].append(float(got == ids))
    return found


def over(one: dict[str, Any], other: dict[str, Any]) -> Interval:
    """Tokens a pass of an arm over another's, utterance by utterance."""
    return of_strata([[mine - theirs for mine, theirs in zip(one["brought"], other["brought"], strict=True)]])


def finding(found: dict[str, dict[str, Any]], run: dict[str, Any]) -> Finding:
    """Row 142, whose limits are its own words: tokens are plain decoding's, more than 1.5 a pass, a third fewer
    passes."""
    parts = []
    for kind in KINDS:
        own, bare = found[f"{kind}, trained"], found[f"{kind}, not trained"]
        parts += [
            part(f"{kind}: texts that are plain decoding's", of_scores(own["same"]), above=0.95),
            part(f"{kind}: tokens a pass", of_strata([own["brought"]]), above=1.5),
            part(f"{kind}: share of passes saved", of_strata([own["saved"]]), above=0.33),
            part(f"{kind}: tokens a pass over it", over(own, bare), "the same heads, not trained", above=0),
            part(f"{kind}: tokens a pass over it", over(own, found[LOOKED_UP]), LOOKED_UP, above=0),
            part(f"{kind}: tokens a pass over it", over(own, found[SPELLINGS]), SPELLINGS, above=0),
        ]
    says = (
        "Medusa's heads on a speech model's decoder, alone or on a shared block, write its own tokens in fewer passes"
    )
    return Finding(row=142, says=says, parts=tuple(parts), leaves_out="speech: sounds are drawn patterns", **run)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="Of the Whisper's training.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--heads-steps", type=int, default=300)
    parser.add_argument("--texts", type=int, default=400, help="Utterances that heads learn from.")
    parser.add_argument("--utterances", type=int, default=128, help="That are asked.")
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("out/whisper"), help="Where trainings are kept.")
    parser.add_argument("--json", type=Path, help="A table of figures for the docs.")
    return parser


def main() -> None:
    """A line for every drafter."""
    given = arguments().parse_args()
    quiet()
    given.folder.mkdir(parents=True, exist_ok=True)
    model = host(given.steps, given.batch, given.folder)
    asked = [heard(model, number) for number in range(given.utterances)]
    texts = [(text, plain(model, text)) for text in asked]
    right = of_scores([float(ids == text.ids[1:].tolist()) for text, ids in texts])
    print(f"Whisper writes {100 * right.mean:.0f} % of utterances without a mistake", flush=True)
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        files, best = trained(model, kind, given)
        for state, path in files.items():
            name = f"{kind}, {'trained' if state == 'trained' else 'not trained'}"
            found[name] = arm(model, texts, f"{kind}('{path}', nodes={given.nodes})")
            found[name]["hits"] = hits(Trained.load(path, kind, model, best.model).heads, model, asked)
            print(f"{name}: {of_strata([found[name]['brought']]).mean:.3f} tokens a pass", flush=True)
    learnt = [utterance(10**6 + number)[1].tolist() for number in range(given.texts)]
    rivals: dict[str, AsDrafter] = {LOOKED_UP: LOOKED_UP, SPELLINGS: Tables(True, Counted(LONGEST_GRAM, learnt))}
    for name, draft in rivals.items():
        found[name] = arm(model, texts, draft)
        print(f"{name}: {of_strata([found[name]['brought']]).mean:.3f} tokens a pass", flush=True)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures(found, right, given), indent=1) + "\n")


def figures(found: dict[str, dict[str, Any]], right: Interval, given: argparse.Namespace) -> dict[str, Any]:
    """What was found as a table of figures, with what it shows of row 142."""
    sizes = f"--steps {given.steps} --heads-steps {given.heads_steps} --utterances {given.utterances}"
    run: dict[str, Any] = {
        "command": f"python benchmarks/{Path(__file__).name} {sizes}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()), "date": date.today().isoformat(),
    }  # fmt: skip
    host = f"a Whisper of two layers that writes {100 * right.mean:.0f} % of {given.utterances} utterances right"
    rows = []
    for name, row in found.items():
        hit = [f"{100 * guess[0]:.1f} %" for guess in row["hits"]] if "hits" in row else [""] * 3
        brought, saved = of_strata([row["brought"]]), of_strata([row["saved"]])
        same = f"{sum(row['same']):.0f} of {len(row['same'])}"
        mean = f"{brought.mean:.2f} ({brought.low:.2f} to {brought.high:.2f})"
        rows.append([name, *hit, mean, f"{100 * saved.mean:.0f} %", same])
    told = [finding(found, run | {"host": host})] if given.utterances >= 64 else []
    return {
        "source": host, **run, "model": "a Whisper of two layers", "rows": rows, "findings": as_data(told),
        "columns": ["drafter", "first guess", "second", "third", "tokens a pass", "passes saved", "plain tokens"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
