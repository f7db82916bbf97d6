"""Looking takes hardly more memory than the model itself does, as torch's own allocations tell."""

from __future__ import annotations

import torch

from headwise.assets import embedded_model
from headwise.bench.allocations import peak
from headwise.calibrate.subject import ModelSubject
from headwise.lens import Text, looked_at
from headwise.lens.measured import text_lenses
from headwise.lenses import LENSES, AttentionLens
from headwise.seams.transformers.load import load_model

TOKENS = 2048


@torch.no_grad()
def test_looking_with_all_lenses_of_the_text_takes_a_twentieth_more_at_most() -> None:
    model = load_model(embedded_model(), "float32")
    subject = ModelSubject(model)
    ids = torch.randint(4000, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    text = Text(ids, torch.zeros(TOKENS, dtype=torch.bool))
    lenses = [one for name in text_lenses() if isinstance(one := LENSES.get(name), AttentionLens)]
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    bare = weights + peak(lambda: model(ids, use_cache=False, logits_to_keep=1))
    looking = weights + peak(lambda: looked_at(subject, text, lambda look: [one.of(look) for one in lenses]))
    print(f"{looking / bare:.3f} of {bare / 2**20:.0f} MiB, weights {weights / 2**20:.0f}")
    assert looking <= 1.05 * bare
