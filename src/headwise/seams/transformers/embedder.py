"""Sentence embeddings of an encoder: the mean of its last states over a text's tokens, of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer


def embeddings(folder: Path, texts: Sequence[str], longest: int = 256) -> torch.Tensor:
    """The embeddings [texts, width] of texts, of which `longest` tokens are read, by the encoder in a folder."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    read = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        states = model(**read).last_hidden_state
    live = read["attention_mask"][..., None].to(states)
    return torch.nn.functional.normalize((states * live).sum(1) / live.sum(1), dim=-1)
