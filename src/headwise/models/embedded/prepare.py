"""Corpus folder -> byte-level BPE tokenizer files and uint16 token files with document offsets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from headwise.drafts import replaced
from headwise.files import write_text

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def train_tokenizer(texts: Iterable[str], vocab: int = 4096) -> Tokenizer:
    """A byte-level BPE of `vocab` entries; every digit is a token, BOS is put in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_positions: int = 16_384) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    specials = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        **specials,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    write_text(folder / "special_tokens_map.json", json.dumps(specials, indent=2) + "\n")


def _documents(corpus: Path, split: str) -> list[tuple[str, str]]:
    """(path, text) of every document of a split, in the order of splits.json."""
    splits_path = corpus / "splits.json"
    if not splits_path.exists():
        raise FileNotFoundError(f"{splits_path} is missing; give a corpus folder with its splits.json")
    paths = json.loads(splits_path.read_text())[split]
    return [(p, (corpus / p).read_text(encoding="utf-8")) for p in paths]


def _pieces(texts: Iterable[str], size: int = 1 << 16) -> Iterator[str]:
    """Texts cut near `size` characters at line ends, so that training sees moderate strings."""
    for text in texts:
        start = 0
        while start < len(text):
            end = text.find("\n", start + size)
            end = len(text) if end < 0 else end
            yield text[start:end]
            start = end


def _write_split(tokenizer: Tokenizer, documents: list[tuple[str, str]], out: Path) -> dict[str, object]:
    """Write one token file; every document is its tokens followed by EOS."""
    offsets, total = [], 0
    with replaced(out) as file:
        for _, text in documents:
            pieces = tokenizer.encode_batch(list(_pieces([text])), add_special_tokens=False)
            ids = np.concatenate([np.asarray(p.ids, np.uint16) for p in pieces] + [np.array([EOS_ID], np.uint16)])
            offsets.append(total)
            total += len(ids)
            file.write(ids.tobytes())
    characters = sum(len(text) for _, text in documents)
    return {
        "file": out.name,
        "tokens": total,
        "offsets": offsets,
        "paths": [path for path, _ in documents],
        "characters_per_token": round(characters / max(1, total), 3),
    }


def prepare(corpus: Path, out: Path, vocab: int = 4096) -> dict[str, object]:
    """Train the tokenizer on the train split and write train.bin, valid.bin and meta.json into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    train = _documents(corpus, "train")
    tokenizer = train_tokenizer(_pieces(text for _, text in train), vocab)
    write_tokenizer(tokenizer, out)
    meta: dict[str, object] = {"vocab": tokenizer.get_vocab_size()}
    meta["train"] = _write_split(tokenizer, train, out / "train.bin")
    meta["valid"] = _write_split(tokenizer, _documents(corpus, "valid"), out / "valid.bin")
    write_text(out / "meta.json", json.dumps(meta, indent=1) + "\n")
    return meta
