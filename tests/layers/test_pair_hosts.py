"""Hosts whose layers learn numbers of their own: saved, loaded, and generating by steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwise.models.host import HeadwiseForCausalLM, HostConfig

SENTENCES = (
    "cope | qk_norm | threshold",
    "mhe | bam | ssmax | selective | gated_heads",
    "short_conv(act='none') | relative | sink_softmax",
    "optimised | t5_bias | neural | softplus | gin",
)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_host_is_loaded_as_it_was_saved_and_generates_alike(sentence: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = HeadwiseForCausalLM(HostConfig(sentence, **sizes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, 20, (2, 9))
    again = HeadwiseForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)
    stepped = model.generate(ids, max_new_tokens=4, do_sample=False)
    whole = ids
    for _ in range(4):
        whole = torch.cat((whole, model(whole).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(stepped, whole)
