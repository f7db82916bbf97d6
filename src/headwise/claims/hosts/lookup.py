"""Small models that look facts up, each trained in a minute or two of one core.

Documents are noise with facts in them. A fact is one of ten values of its class, a single token; a class asked for is
to be answered by its value. In training documents are half as long, and facts are written three times. All layers but
`full` see a window of WINDOW tokens, so that nothing can be looked up in them and little spreads to neighbours: a
method that leaves the first layers whole gains nothing by it. Nothing is planted but this: the embedding of a token
starts as a sum of what it is, kind, class and value, which spares the plateau of training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from headwise.claims.hosts import Document, Stage, add_host
from headwise.claims.hosts.small import WINDOW, learn, model_of, start
from headwise.claims.hosts.trained import Trained
from headwise.seams.transformers.cache import PreTrainedModel

CLASSES, VALUES, NOISE = 24, 10, 64
ASKING = CLASSES * VALUES  # ids: values by class, then questions by class, then noise
VOCABULARY = ASKING + CLASSES + NOISE
FACTS = 8  # in a document
TOKENS, WRITTEN = 512, 1
TRAINED_TOKENS, TRAINED_WRITTEN = 256, 3
RECENT = 16  # last tokens of a document, that hold no fact
STEPS, ROWS = 350, 8


@dataclass(frozen=True)
class Lookup(Trained):
    """layers: how many; full: those that see all tokens."""

    layers: int = 6
    full: tuple[int, ...] = (4,)

    def untrained(self) -> PreTrainedModel:
        """A model of the host's shape, as `start` begins it."""
        full = [layer in self.full for layer in range(self.layers)]
        model = model_of(full, VOCABULARY, 2, 4 * TOKENS, self.seed)
        start(model, CLASSES, VALUES)
        return model

    def train(self, model: PreTrainedModel) -> None:
        """Train on documents followed by questions about all their facts, each with its answer."""
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 20, 2 * (STEPS - step) / STEPS)
            ids, classes, facts = drawn(generator, ROWS, TRAINED_TOKENS, TRAINED_WRITTEN)
            asked = torch.stack((ASKING + classes, facts), 2).flatten(1)
            logits = model(torch.cat((ids, asked), 1)).logits[:, TRAINED_TOKENS::2]
            loss = cross_entropy(logits.flatten(0, 1), facts.flatten())
            learn(model, optimizer, loss)

    def stage(self, model: PreTrainedModel) -> Stage:
        return Asked(model)


class Asked(Stage):
    """The trained model and its documents."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def document(self, number: int, share: float = 1.0) -> Document:
        generator = torch.Generator().manual_seed(10_000 + number)
        ids, classes, facts = drawn(generator, 1, round(share * TOKENS), WRITTEN)
        pairs = zip((ASKING + classes[0]).split(1), facts[0].split(1), strict=True)
        return Document(ids, tuple((question[None], answer[None]) for question, answer in pairs))


def drawn(
    generator: torch.Generator, rows: int, tokens: int, written: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Documents [rows, tokens] with facts of `written` equal tokens, the classes [rows, FACTS] of these, and the facts'
    own ids [rows, FACTS]."""
    ids = torch.randint(ASKING + CLASSES, VOCABULARY, (rows, tokens), generator=generator)
    spots = torch.rand(rows, (tokens - RECENT) // written, generator=generator).argsort(1)[:, :FACTS] * written
    classes = torch.rand(rows, CLASSES, generator=generator).argsort(1)[:, :FACTS]
    facts = classes * VALUES + torch.randint(0, VALUES, (rows, FACTS), generator=generator)
    for place in range(written):
        ids.scatter_(1, spots + place, facts)
    return ids, classes, facts


for _name, _seed, _layers, _full in (
    ("lookup_late", 1, 6, (4,)),
    ("lookup_middle", 2, 6, (2, 3)),
    ("lookup_deep", 3, 10, (5, 8)),
):
    add_host(
        Lookup(
            _name,
            f"a small model of {_layers} layers trained from seed {_seed} to look facts up; only layers "
            f"{', '.join(map(str, _full))} see more than {WINDOW} tokens, so that layers left whole elsewhere help "
            "nothing",
            asks=128,
            seed=_seed,
            layers=_layers,
            full=_full,
        )
    )
