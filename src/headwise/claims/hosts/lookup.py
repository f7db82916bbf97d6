"""Small models that look facts up, each trained in a minute or two of one core.

Documents are noise with facts in them. A fact is one of ten values of its class, a single token; a class asked for is
to be answered by its value. In training documents are half as long, and facts are written three times. All layers but
`full` see a window of WINDOW tokens, so that nothing can be looked up in them and little spreads to neighbours: a
method that leaves the first layers whole gains nothing by it. Nothing is planted but this: the embedding of a token
starts as a sum of what it is, kind, class and value, which spares the plateau of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from headwise.bench.protocol import digest
from headwise.claims.hosts import Document, Host, Stage, add_host
from headwise.errors import FileError
from headwise.files import copied, read_tensors, write_tensors
from headwise.schema import Facts

CLASSES, VALUES, NOISE = 24, 10, 64
ASKING = CLASSES * VALUES  # ids: values by class, then questions by class, then noise
VOCABULARY = ASKING + CLASSES + NOISE
FACTS = 8  # in a document
TOKENS, WRITTEN = 512, 1
TRAINED_TOKENS, TRAINED_WRITTEN = 256, 3
WINDOW = 2
RECENT = 16  # last tokens of a document, that hold no fact
STEPS, ROWS = 350, 8
FORMAT = "headwise-host-1"


@dataclass(frozen=True)
class Lookup(Host):
    """seed: of weights and training. layers: how many; full: those that see all tokens."""

    seed: int = 1
    layers: int = 6
    full: tuple[int, ...] = (4,)

    def load(self, folder: Path) -> Stage:
        made = digest([self.facts(), Path(__file__).read_text(encoding="utf-8")])
        path = folder / f"{self.name}-{made}.weights"
        if path.exists():
            return Trained(restored(self, path))
        model = trained(self)
        write_tensors(path, FORMAT, {"host": self.name}, dict(model.state_dict()))
        return Trained(model)


class Weights(Facts):
    """What a file of weights says."""

    host: str


class Trained(Stage):
    """The trained model."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self.model = model

    def document(self, number: int) -> Document:
        ids, classes, facts = drawn(torch.Generator().manual_seed(10_000 + number), 1, TOKENS, WRITTEN)
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


def restored(host: Lookup, path: Path) -> Qwen3ForCausalLM:
    """The model whose weights were written to `path`."""
    model = untrained(host)
    _, tensors = read_tensors(path, FORMAT, Weights, FileError)
    model.load_state_dict(copied(tensors))
    return model.eval()


def untrained(host: Lookup) -> Qwen3ForCausalLM:
    """The model before its training."""
    torch.manual_seed(host.seed)
    kinds = ["full_attention" if layer in host.full else "sliding_attention" for layer in range(host.layers)]
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=host.layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4 * TOKENS,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, layer_types=kinds,
        use_sliding_window=True, sliding_window=WINDOW, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    start(model, CLASSES, VALUES)
    return model


def trained(host: Lookup) -> Qwen3ForCausalLM:
    """A model trained on documents followed by questions about all their facts."""
    model = untrained(host)
    generator = torch.Generator().manual_seed(host.seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 20, 2 * (STEPS - step) / STEPS)
        ids, classes, facts = drawn(generator, ROWS, TRAINED_TOKENS, TRAINED_WRITTEN)
        logits = model(torch.cat((ids, ASKING + classes), 1)).logits[:, TRAINED_TOKENS:]
        loss = cross_entropy(logits.flatten(0, 1), facts.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def start(model: Any, classes: int, values: int) -> None:
    """Weights that let a signal through, and embeddings that say kind, class and value. Ids are values by class, then
    questions by class, then noise."""
    embedding, asking = model.get_input_embeddings().weight, classes * values
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2 and weight is not embedding:
                torch.nn.init.normal_(weight, 0.0, 0.7 / weight.shape[1] ** 0.5)
        kind, own, value = (0.1 * torch.randn(n, embedding.shape[1]) for n in (3, classes, values))
        embedding[:asking] = (kind[0] + own[:, None] + value).flatten(0, 1)
        embedding[asking : asking + classes] = kind[1] + own
        embedding[asking + classes :] += kind[2]


for _name, _seed, _layers, _full in (
    ("lookup_late", 1, 6, (4,)),
    ("lookup_middle", 2, 6, (2, 3)),
    ("lookup_deep", 3, 10, (5, 8)),
):
    add_host(
        Lookup(
            _name,
            f"a small model of {_layers} layers trained from seed {_seed} to look facts up; only layers {_full} see "
            f"more than {WINDOW} tokens, so that layers left whole elsewhere help nothing",
            asks=128,
            seed=_seed,
            layers=_layers,
            full=_full,
        )
    )
