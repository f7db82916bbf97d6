"""Tiny hosts of every kind, of transformers' own classes with random weights, and what each of them reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from headwise.lens import HostScene, Reading, read_picture, read_sound, text
from headwise.observe.host import SOURCE, TARGET
from headwise.seams.transformers.model_host import ModelHost
from tests import tiny

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIDES: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WORDS: dict[str, Any] = {"vocab_size": 100}
PATCHES: dict[str, Any] = {"image_size": 32, "patch_size": 8}
MADE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "bert": lambda: (hf.BertModel, hf.BertConfig(**WORDS, **SIZES, max_position_embeddings=128)),
    "modernbert": lambda: (
        hf.ModernBertModel,
        hf.ModernBertConfig(**WORDS, **SIZES, **SPECIAL, local_attention=16, cls_token_id=1, sep_token_id=2),
    ),
    "albert": lambda: (hf.AlbertModel, hf.AlbertConfig(**WORDS, **SIZES, embedding_size=16)),
    "t5": lambda: (hf.T5Model, hf.T5Config(**WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
    "bart": lambda: (hf.BartModel, hf.BartConfig(**WORDS, **SIDES, max_position_embeddings=128)),
    "whisper": lambda: (
        hf.WhisperModel,
        hf.WhisperConfig(
            **WORDS, **SIDES, **SPECIAL, max_source_positions=50, max_target_positions=64, num_mel_bins=8,
            decoder_start_token_id=1,
        ),
    ),
    "vit": lambda: (hf.ViTModel, hf.ViTConfig(**SIZES, **PATCHES)),
    "siglip": lambda: (hf.SiglipVisionModel, hf.SiglipVisionConfig(**SIZES, **PATCHES)),
}  # fmt: skip


def model_of(name: str, attention: str = "sdpa") -> Any:
    """A host's model, the same again, with weights large enough for heads to differ."""
    kind, config = MADE[name]()
    torch.manual_seed(0)
    model = kind._from_config(config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            if one.dim() == 2:
                one.add_(0.15 * torch.randn(one.shape, generator=generator))
    return model


def words(tokens: int, seed: int) -> Reading:
    """Random tokens, some of which repeat and some delimit."""
    generator = torch.Generator().manual_seed(seed)
    return text(torch.randint(3, 100, (1, tokens), generator=generator), torch.rand(tokens, generator=generator) < 0.2)


def scene_of(model: Any, tokens: int = 61) -> HostScene:
    """A host over something to read: a text, a text and what is said of it, a picture, or sound."""
    host, generator = ModelHost(model), torch.Generator().manual_seed(2)
    if host.kind == "encoder":
        return HostScene(host, {"text": words(tokens, 3)})
    if host.kind == "image encoder":
        return HostScene(host, {"image": read_picture(host, torch.randn(1, 3, 32, 32, generator=generator))})
    target = words(37, 4)
    if model.main_input_name == "input_features":
        return HostScene(
            host, {SOURCE: read_sound(host, torch.randn(1, 8, 100, generator=generator), target), TARGET: target}
        )
    return HostScene(host, {SOURCE: words(tokens, 3), TARGET: target})


def build_hosts(folder: Path) -> None:
    """Folders `bert`, `t5`, `vit` of hosts and `tiny` of a decoder, texts, and a picture, in a folder."""
    from PIL import Image

    tiny.build(folder / "tiny")
    for name in ("bert", "t5", "vit", "whisper"):
        kind, config = MADE[name]()
        config.vocab_size = 512
        torch.manual_seed(0)
        kind(config).save_pretrained(folder / name)
        for one in (folder / "tiny").glob("*token*"):
            shutil.copy(one, folder / name / one.name)
    shutil.copytree(folder / "t5", folder / "half")
    half = hf.T5Model.from_pretrained(folder / "half")
    encoder = {name: one for name, one in half.state_dict().items() if not name.startswith("decoder.block.1")}
    half.save_pretrained(folder / "half", state_dict=encoder)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    Image.new("RGB", (50, 40), "gold").save(folder / "dot.png")
    (folder / "text.txt").write_text("The harbour of the town was quiet. <b>", encoding="utf-8")
    (folder / "long.txt").write_text("The harbour of the town was quiet. " * 40, encoding="utf-8")
