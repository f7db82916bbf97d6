"""What drafters bring, counted and never timed: the decoding passes by which a text was written; and heads that are
trained once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import headwise
from headwise.decoding.base import Proposer, Written
from headwise.decoding.heads.train import Lesson, train
from headwise.decoding.pace import FIRST, MOST, Pace
from headwise.decoding.speculate import AsDrafter, proposer, write_by
from headwise.decoding.verify import Verifier
from headwise.engine.ledger import Ledger
from headwise.forms import Tree


class Unjudged(Pace):
    """Drafts as long as they come and before every pass, as passes are counted and no time is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.most = MOST

    def drafted(self, tokens: int, guesses: int, seconds: float) -> None:
        """Nothing is noted."""


def plain(model: Any, ids: torch.Tensor, new: int) -> list[int]:
    """What plain decoding writes after ids [1, n], greedy."""
    cache = headwise.Cache(model)
    return headwise.decode(model, cache, headwise.prefill(model, cache, ids), new)[0].tolist()


def drafted(model: Any, ids: torch.Tensor, draft: AsDrafter, new: int) -> tuple[list[int], Ledger]:
    """What is written after ids [1, n] with drafts that never switch themselves off, and the session's ledger."""
    cache = headwise.Cache(model)
    logits = headwise.prefill(model, cache, ids)
    verifier = Verifier(model, cache, proposer(model, draft))
    verifier.pace = Unjudged()
    got = write_by(verifier, logits, new, ids)
    assert cache.session is not None
    return got[0].tolist(), cache.session.ledger


def per_pass(ledger: Ledger) -> float:
    """Tokens that a pass over a draft brought; passes over one token, as the first two are, count nowhere."""
    return 1 + ledger.drafts["accepted"] / max(1, ledger.drafts["passes"])


def trained(model: Any, ids: torch.Tensor, lesson: Lesson, folder: Path) -> Path:
    """The file of heads that learnt a lesson from a text ids [n]; trained where it is not there yet."""
    path = folder / f"{lesson.kind}-{lesson.steps}-{lesson.window}-{lesson.seed}.heads"
    if not path.exists():
        print(f"training {lesson.kind}", flush=True)
        train(model, [ids], lesson, path.with_suffix(".training")).save(path)
    return path


def replayed(proposer: Proposer, prompt: Sequence[int], text: Sequence[int], room: int = 16) -> int:
    """The passes in which a drafter that looks at ids alone would have written a text that is known: those of
    `drafted`, without the model. room: tokens of a pass."""
    passes, done = 0, 1
    while done < len(text):
        taken = 0
        if passes >= FIRST and (most := min(room, len(text) - done) - 1) > 0:
            ids = torch.tensor([*prompt, *text[:done]])
            draft = proposer.propose(Written(0, ids, most, 63)).within(most, 63)
            taken = right(draft.tree, draft.tokens, text[done:])
        passes, done = passes + 1, done + taken + 1
    return passes


def right(tree: Tree, tokens: Sequence[int], text: Sequence[int]) -> int:
    """How many tokens of a text a draft's tree has, one after the other."""
    node = count = 0
    nexts = {(parent, tokens[at - 1]): at for at, parent in enumerate(tree.parents) if at}
    while count < len(text) and (node, text[count]) in nexts:
        node, count = nexts[node, text[count]], count + 1
    return count
