"""A small model trained in seconds, whose rotary embedding breaks beyond the 128 positions it was trained on.

Its texts are noise with eight facts in it. A fact is one of ten values of its class, written as three equal tokens; a
class asked for is to be answered by its value. Embeddings start as sums of what a token is, which spares the plateau.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import headwise
from headwise.claims.hosts.small import start
from headwise.plan import Plan

CLASSES, VALUES, NOISE, WRITTEN = 8, 10, 32, 3
ASKING = CLASSES * VALUES  # ids: values by class, then questions by class, then noise
VOCAB = ASKING + CLASSES + NOISE
TRAINED = 128
STEPS, ROWS = 150, 16


@dataclass(frozen=True)
class Texts:
    """ids [rows, tokens]; labels where a question stands in them, else -100; a last question [rows, 1], its answer."""

    ids: torch.Tensor
    labels: torch.Tensor
    question: torch.Tensor
    answer: torch.Tensor


def draw(generator: torch.Generator, rows: int, tokens: int, asked: float = 0.0, within: int | None = None) -> Texts:
    """Texts with their facts in the first `within` tokens and a share `asked` of questions about earlier facts."""
    ids = torch.randint(ASKING + CLASSES, VOCAB, (rows, tokens), generator=generator)
    spots = torch.rand(rows, (within or tokens) // WRITTEN, generator=generator).argsort(1)[:, :CLASSES] * WRITTEN
    facts = torch.arange(CLASSES) * VALUES + torch.randint(0, VALUES, (rows, CLASSES), generator=generator)
    classes = torch.randint(0, CLASSES, (rows, tokens), generator=generator)
    asks = torch.rand(rows, tokens, generator=generator) < asked
    asks &= spots.gather(1, classes) + WRITTEN <= torch.arange(tokens)
    ids = torch.where(asks, ASKING + classes, ids)
    labels = torch.where(asks, facts.gather(1, classes), -100)
    for place in range(WRITTEN):
        ids.scatter_(1, spots + place, facts)
        labels.scatter_(1, spots + place, -100)
    last = torch.randint(0, CLASSES, (rows, 1), generator=generator)
    return Texts(ids, labels, ASKING + last, facts.gather(1, last)[:, 0])


@lru_cache(maxsize=1)
def lookup_model() -> PreTrainedModel:
    """The model, trained on texts of its 128 positions; about five seconds of one core."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=32, max_position_embeddings=TRAINED, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 300.0}, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    return trained(model)


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """A model of VOCAB words, trained on texts of TRAINED positions."""
    start(model, CLASSES, VALUES)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1.0, (step + 1) / 10, 2 * (STEPS - step) / STEPS)
        texts = draw(generator, ROWS, TRAINED, asked=0.25)
        loss = cross_entropy(model(texts.ids).logits.flatten(0, 1), texts.labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def accuracy(model: PreTrainedModel, recipe: str | Plan | None, tokens: int, within: int | None = None) -> float:
    """Share of 48 last questions answered, each after a text of `tokens` read in chunks of at most 32 tokens.

    recipe None: the model by itself, in one pass and with no limit of length.
    """
    texts = draw(torch.Generator().manual_seed(7), 48, tokens - 1, within=within)
    with torch.no_grad():
        if recipe is None:
            logits = model(torch.cat((texts.ids, texts.question), 1), use_cache=False).logits
        else:
            cache = headwise.Cache(model, recipe)
            for piece in (*texts.ids.tensor_split(-(-tokens // 32), 1), texts.question):
                logits = model(input_ids=piece, past_key_values=cache, use_cache=True).logits
    return float((logits[:, -1].argmax(-1) == texts.answer).float().mean())
