"""A GGUF file becomes a folder with the same weights and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from headwise.errors import HeadwiseError
from headwise.seams.transformers import from_gguf
from headwise.seams.transformers.load import load_model, load_tokenizer

HEADS, KV_HEADS, WIDTH, LAYERS = 4, 2, 32, 2
WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz.,", "Ġ", "th", "the"]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=128,
        )
    )  # fmt: skip


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of GGUF files: the two halves that rotate together side by side."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write(file: Path, held: PreTrainedModel) -> None:
    """The model as a GGUF file."""
    gguf: Any = pytest.importorskip("gguf", reason="until gguf is installed (pip install 'headwise[real]')")
    pytest.importorskip("accelerate", reason="until accelerate is installed (pip install 'headwise[real]')")
    out = gguf.GGUFWriter(file, "llama")
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(64)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(held.config.rms_norm_eps)
    out.add_vocab_size(len(WORDS))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(WORDS)
    out.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    out.add_token_merges(["t h", "th e"])
    out.add_unk_token_id(0)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    tensors = {"token_embd": held.model.embed_tokens, "output_norm": held.model.norm, "output": held.lm_head}
    for i, layer in enumerate(held.model.layers):
        tensors |= {f"blk.{i}.{short}": layer.get_submodule(name) for name, short in NAMES.items()}
    for name, module in tensors.items():
        weight = module.weight.detach()
        if name.endswith(("attn_q", "attn_k")):
            weight = interleaved(weight, HEADS if name.endswith("attn_q") else KV_HEADS)
        out.add_tensor(f"{name}.weight", weight.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_weights_and_words_are_the_same_in_bfloat16(tmp_path: Path) -> None:
    held = model()
    write(tmp_path / "a.gguf", held)
    from_gguf.convert(tmp_path / "a.gguf", tmp_path / "made")
    made = load_model(tmp_path / "made")
    assert made.dtype == torch.bfloat16
    found, expected = made.state_dict(), held.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in expected)
    tokenizer = load_tokenizer(tmp_path / "made")
    assert tokenizer.convert_ids_to_tokens(tokenizer("the cat").input_ids)[-5:] == ["the", "Ġ", "c", "a", "t"]
    assert '"PreTrainedTokenizerFast"' in (tmp_path / "made" / "tokenizer_config.json").read_text()


def test_a_file_without_a_weight_is_refused(tmp_path: Path) -> None:
    held = model()
    del held.model.layers[1].mlp.up_proj
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.NAMES", {name: short for name, short in NAMES.items() if short != "ffn_up"})
        write(tmp_path / "a.gguf", held)
    with pytest.raises(HeadwiseError, match=r"does not read every weight of a.gguf \(missing_keys: .*up_proj"):
        from_gguf.convert(tmp_path / "a.gguf", tmp_path / "made")


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_gguf, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(HeadwiseError, match=r"gguf is not installed.*pip install 'headwise\[real\]'"):
        from_gguf.check_converter()
    monkeypatch.setattr(from_gguf, "find_spec", lambda name: None)
    with pytest.raises(HeadwiseError, match="gguf and accelerate are not installed"):
        from_gguf.check_converter()
