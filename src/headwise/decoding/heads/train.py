"""Training drafting heads on a frozen model: in steps that go on after a kill, and what was learnt on other text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headwise.decoding.heads.base import RANKS, Heads, Taught, Trained, made
from headwise.errors import FileError, HeadwiseError
from headwise.files import copied, read_tensors, write_tensors
from headwise.schema import Facts
from headwise.seams.transformers.attach import attach_any
from headwise.seams.transformers.forward import encoded, ids_argument, last_states

FORMAT = "headwise-drafting-heads-in-training-1"
EVERY = 25  # steps between two times that all is written down
HELD_OUT = 0.1  # of the windows, the share that nothing is learnt from
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Heard:
    """A text ids [n] with what the model's forward is given beside it, as the `encoder_outputs` of its input."""

    ids: torch.Tensor
    beside: Mapping[str, Any]


Text = torch.Tensor | Heard  # ids [n], with an encoder's output or without


@dataclass(frozen=True)
class Lesson:
    """How heads are trained: `depth` guesses, `steps` steps of `batch` windows of `window` tokens each at rate `rate`
    of AdamW, which fades to nothing; `seed` of the windows' order and of what is drawn."""

    kind: str
    depth: int = 3
    steps: int = 400
    batch: int = 1
    window: int = 512
    rate: float = 1e-3
    seed: int = 0


def windows(texts: Sequence[torch.Tensor], lesson: Lesson) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Texts [n] cut to windows [window]: those to learn from, and every so many that nothing is learnt from."""
    cut = [one for ids in texts for one in ids.split(lesson.window) if len(one) == lesson.window]
    every = round(1 / HELD_OUT)
    if len(cut) < every:
        raise HeadwiseError(
            f"there are {len(cut)} windows of {lesson.window} tokens to learn from, at least {every} are needed; give "
            "more text, or a smaller window"
        )
    return [one for i, one in enumerate(cut) if i % every], cut[::every]


def train(
    model: Any,
    texts: Sequence[torch.Tensor],
    lesson: Lesson,
    unfinished: Path,
    progress: Progress = lambda what, done, total: None,
) -> Trained:
    """Heads of a lesson for `model`, which stays as it is, from texts [n] of token ids.

    unfinished: a file in which the training is written down as it goes; it goes on from there, and is removed in the
    end.
    """
    return teach(model, windows(texts, lesson), lesson, unfinished, progress)


def teach(
    model: Any,
    texts: tuple[Sequence[Text], Sequence[Text]],
    lesson: Lesson,
    unfinished: Path,
    progress: Progress = lambda what, done, total: None,
) -> Trained:
    """The same from texts as they are: those to learn from, and those that nothing is learnt from."""
    learnt, others = texts
    torch.manual_seed(lesson.seed)
    heads = made(lesson.kind, model, lesson.depth).train()
    optimiser = torch.optim.AdamW(heads.parameters(), lesson.rate, weight_decay=0.0)
    done = _go_on(unfinished, heads, optimiser) if unfinished.exists() else 0
    while done < lesson.steps:
        progress(f"training {lesson.kind} heads", done, lesson.steps)
        for group in optimiser.param_groups:
            group["lr"] = lesson.rate * (1 - done / lesson.steps)
        draws = torch.randint(len(learnt), (lesson.batch,), generator=torch.Generator().manual_seed(lesson.seed + done))
        loss = torch.stack([_loss(heads, model, learnt[i]) for i in draws.tolist()]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimiser.step()
        done += 1
        if done % EVERY == 0:
            _write_down(unfinished, heads, optimiser, done)
    progress(f"measuring {lesson.kind} heads", lesson.steps, lesson.steps)
    heads.eval()
    found = hits(heads, model, others)
    unfinished.unlink(missing_ok=True)
    tokens = lesson.steps * lesson.batch * lesson.window
    return Trained(heads, attach_any(model).fingerprint, lesson.steps, tokens, found)


def states_of(model: Any, text: Text) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a text of n tokens: its ids, the model's logits [n, vocab] and its last states [n, d], in float32."""
    ids, beside = (text.ids, text.beside) if isinstance(text, Heard) else (text, {})
    ids = ids.to(model.device)
    with torch.no_grad(), last_states(model) as states:
        logits = model(**{ids_argument(model): ids[None]}, use_cache=False, **beside).logits[0].float()
    return ids, logits, states[0][0].float()


def _guesses(heads: Heads, model: Any, text: Text, learning: bool = False) -> Sequence[tuple[torch.Tensor, Taught]]:
    """Of every guess what it is read from, [n, d], at each place of a text, told the tokens before; and what was to be
    guessed, where heads are learning with what they learn from beside it."""
    ids, logits, states = states_of(model, text)
    middle = heads.middle(model, ids) if learning else None
    heard = encoded(text.beside, 0) if isinstance(text, Heard) else None
    count, found = len(ids) - heads.depth - 1, []
    places = torch.arange(count, device=ids.device)
    carry = heads.begin(states[:count], ids[1 : count + 1], places, None if heard is None else heard.float())
    for place in range(heads.depth):
        out, carry = heads.step(place, carry, ids[place + 1 : place + 1 + count])
        asked = slice(place + 1, place + 1 + count)
        extra = None if middle is None else middle[asked]
        found.append((out, Taught(ids[place + 2 : place + 2 + count], logits[asked], states[asked], extra)))
    return found


def _loss(heads: Heads, model: Any, text: Text) -> torch.Tensor:
    guesses = _guesses(heads, model, text, learning=True)
    return torch.stack([heads.loss(place, out, taught) for place, (out, taught) in enumerate(guesses)]).sum()


def hits(heads: Heads, model: Any, texts: Sequence[Text]) -> tuple[tuple[float, ...], ...]:
    """By guess, how often each of its best RANKS tokens is the one that the model would write next, over texts, at
    places where the model would have written the tokens before it as they stand there."""
    right, seen = torch.zeros(heads.depth, RANKS), torch.zeros(heads.depth)
    with torch.no_grad():
        for text in texts:
            guesses = _guesses(heads, model, text)
            on_path = torch.ones(len(guesses[0][0]), dtype=torch.bool, device=guesses[0][0].device)
            for place, (out, taught) in enumerate(guesses):
                wanted = taught.logits.argmax(-1)
                best = heads.words(place, out).topk(RANKS).indices
                right[place] += (best == wanted[:, None])[on_path].sum(0).cpu()
                seen[place] += int(on_path.sum())
                on_path &= wanted == taught.tokens
    return tuple(tuple(one) for one in (right / seen.clamp(min=1)[:, None]).tolist())


class _Facts(Facts):
    """How far a training is."""

    done: int


def _write_down(path: Path, heads: Heads, optimiser: torch.optim.Optimizer, done: int) -> None:
    tensors = {f"heads.{name}": one for name, one in heads.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": one for name, one in state.items()}
    write_tensors(path, FORMAT, {"done": done}, tensors)


def _go_on(path: Path, heads: Heads, optimiser: torch.optim.Optimizer) -> int:
    """Take over what was written down; how many steps that are."""
    facts, tensors = read_tensors(path, FORMAT, _Facts, FileError)
    held = copied(tensors, next(heads.parameters()).device)
    heads.load_state_dict({name[6:]: one for name, one in held.items() if name.startswith("heads.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, one in held.items():
        if name.startswith("optimiser."):
            _, number, what = name.split(".", 2)
            state.setdefault(int(number), {})[what] = one
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return facts.done
