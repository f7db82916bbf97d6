"""Row 301: small models trained with a mask each. Only PowerAttention's lets three layers reach a passkey far away."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import headwise
from headwise.forms import Where
from headwise.methods.prefill.dilated import Dilated
from headwise.methods.prefill.power import Power
from headwise.recipe import Recipe
from headwise.seams.transformers.drive import prefill
from tests.methods.views import make_view

TOKENS, VALUES, NOISE, LAYERS, ENTRIES = 64, 8, 24, 3, 8
ASKING = VALUES  # ids: values, then the question, then noise
VOCABULARY = VALUES + 1 + NOISE
MASKS = {
    "power": Power(first=0, nearest=4),  # 0 to 3, and 4, 8, 16, 32: a row of 8
    "window": Dilated(nearest=ENTRIES, gap=1, reach=1),
    "dilated": Dilated(nearest=1, gap=2, reach=2 * (ENTRIES - 1)),
}
FAR = LAYERS * (ENTRIES - 1) + 1  # a window of as many entries reaches no further


def drawn(random: torch.Generator, rows: int, nearest: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise [rows, TOKENS] with one value at least `nearest` tokens before the question at its end; the value."""
    ids = torch.randint(VALUES + 1, VOCABULARY, (rows, TOKENS), generator=random)
    value = torch.randint(0, VALUES, (rows, 1), generator=random)
    ids.scatter_(1, torch.randint(0, TOKENS - nearest, (rows, 1), generator=random), value)
    ids[:, -1] = ASKING
    return ids, value[:, 0]


def trained(where: Where) -> LlamaForCausalLM:
    """A model that learns to say the value, whose layers all attend by the mask."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2 * TOKENS,
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
        )
    )  # fmt: skip
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, 0.0, 1.0 / weight.shape[1] ** 0.5)
    random, steps = torch.Generator().manual_seed(0), 300
    mask = where.dense(TOKENS, TOKENS)[:1, None]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 20, 2 * (steps - step) / steps)
        ids, value = drawn(random, 32)
        logits = model(ids, attention_mask=mask.expand(len(ids), -1, -1, -1), logits_to_keep=1).logits[:, -1]
        loss = cross_entropy(logits, value)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def test_power_301_retrieves_a_passkey_that_windows_of_equal_rows_cannot_reach() -> None:
    """64 texts whose passkey lies 22 tokens or more before the question, read by headwise's own patterns. FIGURES"""
    view, found = make_view(TOKENS, h=1), {}
    for name, mask in MASKS.items():
        where = mask.where(replace(view, heads=(0,)))
        assert int(where.dense(TOKENS, TOKENS)[0].sum(1).max()) == ENTRIES
        model = trained(where)
        texts, values = drawn(torch.Generator().manual_seed(1), 64, FAR + 1)
        said = [prefill(model, headwise.Cache(model, Recipe(prefill=mask)), one[None], None).argmax(-1) for one in texts]
        found[name] = float((torch.cat(said) == values).double().mean())
    print(f"row 301: {found}; by chance {1 / VALUES}")
    assert found["power"] >= 0.9
    assert found["window"] < 0.3 and found["dilated"] < 0.5
