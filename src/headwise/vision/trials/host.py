"""The vision-language model that trials train: transformers' own Llava, over pictures of a few coloured glyphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from headwise.theory.fitting import adam

SIDE, PIXELS = 4, 2  # cells along a side of a picture, each a patch; pixels along a side of a patch
CELLS = SIDE * SIDE
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
GLYPHS = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 0]], [[1, 0], [1, 0]]])
KINDS = 4  # of colours, and of glyphs
NOISE = 0.15
RATE, ROWS, SEEING = 3e-3, 64, 150  # of trainings: rate, pictures a step, steps of the encoder alone
IMAGE = 0  # the id of an image's places; the ids of a trial's words come after it
IGNORED = -100

Batch = Callable[[], tuple[dict[str, Any], Tensor]]  # what a model is given, and labels [b, n]


def host(words: int, seed: int, width: int = 64, layers: int = 2) -> Any:
    """The model with so many words beside the image's: an encoder of one layer, which is trained to tell cells and
    then frozen, and an untrained decoder of `layers`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = LlamaConfig(
            vocab_size=words + 1, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            initializer_range=0.2, num_attention_heads=4, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        config = LlavaConfig(
            vision_config=encoder_config(), text_config=text, image_token_index=IMAGE, vision_feature_layer=-1,
            vision_feature_select_strategy="default", tie_word_embeddings=False,
        )  # fmt: skip
        model = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(_seeing(seed))
        model.model.vision_tower.requires_grad_(False)
        return model


def encoder_config() -> CLIPVisionConfig:
    """An encoder of one layer, of a picture whose cells are its patches."""
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=SIDE * PIXELS,
        patch_size=PIXELS,
    )  # fmt: skip


@cache
def _seeing(seed: int) -> dict[str, Tensor]:
    """The weights of an encoder that was trained to tell the colour and the glyph of every cell."""
    torch.manual_seed(seed)
    tower, chance = CLIPVisionModel(encoder_config()), torch.Generator().manual_seed(seed)
    told = nn.Linear(tower.config.hidden_size, 2 * KINDS)

    def loss() -> Tensor:
        cells = drawn(ROWS, chance)
        found = told(tower(painted(cells, chance), output_hidden_states=True).hidden_states[-1][:, 1:])
        return F.cross_entropy(found.unflatten(-1, (2, KINDS)).flatten(0, 2), cells.flatten())

    adam([*tower.parameters(), *told.parameters()], loss, SEEING, RATE)
    return dict(tower.state_dict())


def drawn(rows: int, chance: torch.Generator) -> Tensor:
    """The colour and the glyph of every cell of so many pictures [rows, CELLS, 2]."""
    return torch.randint(KINDS, (rows, CELLS, 2), generator=chance)


def painted(cells: Tensor, chance: torch.Generator, noise: float = NOISE) -> Tensor:
    """Pictures [rows, 3, SIDE * PIXELS, SIDE * PIXELS] of such cells; a colour below 0 leaves a cell empty."""
    there = (cells[..., 0] >= 0)[..., None, None, None]
    patches = COLOURS[cells[..., 0]][..., None, None] * GLYPHS[cells[..., 1]][:, :, None] * there
    own = patches.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return own + noise * torch.randn(own.shape, generator=chance)


def prompts(*after: Tensor) -> Tensor:
    """Ids [rows, CELLS + n] of a picture's places and what comes after them, columns of ids [rows] or [rows, k]."""
    columns = [one[:, None] if one.dim() == 1 else one for one in after]
    return torch.cat([torch.full((len(columns[0]), CELLS), IMAGE), *columns], dim=1)


def trained(model: Any, batch: Batch, steps: int, rate: float = RATE) -> Any:
    """The model after so many steps of Adam: cross-entropy of the labels that are not IGNORED, each at the place where
    it is to be said."""

    def loss() -> Tensor:
        given, labels = batch()
        return F.cross_entropy(model(**given, use_cache=False).logits.flatten(0, 1), labels.flatten())

    adam([one for one in model.parameters() if one.requires_grad], loss, steps, rate)
    return model.eval()
