"""Sentence embeddings of an encoder: its last states over a text's tokens, pooled into one vector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from headwise.seams.transformers.load import load_encoder, load_tokenizer
from headwise.seams.transformers.pooling import Pooling


class Encoder:
    """The encoder at a path or hub id, which reads one text at a time: no padding, so that a text's vector depends on
    nothing but itself."""

    def __init__(
        self, name: str | Path, pooling: Pooling, dtype: str = "auto", device: str = "cpu", remote_code: bool = False
    ) -> None:
        self.tokenizer = load_tokenizer(name, remote_code)
        self.model = load_encoder(name, dtype, device, remote_code)
        self.pooling = pooling
        config = self.model.config
        self.width, self.tokens = int(config.hidden_size), int(config.vocab_size)
        positions = int(getattr(config, "max_position_embeddings", self.tokenizer.model_max_length))
        self.longest = pooling.longest or min(positions, self.tokenizer.model_max_length)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts around any."""
        found: list[int] = self.tokenizer(text.lower() if self.pooling.lowers else text, verbose=False)["input_ids"]
        return found

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> list[float]:
        """The vector of a text's tokens, of which there are `longest` at most."""
        states = self.model(input_ids=torch.tensor([list(ids)], device=self.model.device)).last_hidden_state[0]
        found: list[float] = self.pooling.vector(self.pooling.add(None, states), len(ids)).tolist()
        return found


def embeddings(folder: Path, texts: Sequence[str], longest: int = 256) -> torch.Tensor:
    """The embeddings [texts, width] of texts, of which `longest` tokens are read, by the encoder in a folder: the mean
    of its last states, of length 1."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    read = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        states = model(**read).last_hidden_state
    live = read["attention_mask"][..., None].to(states)
    return torch.nn.functional.normalize((states * live).sum(1) / live.sum(1), dim=-1)
