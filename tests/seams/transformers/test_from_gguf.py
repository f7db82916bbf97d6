"""A GGUF file becomes a folder with the same weights and tokenizer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from headwise.errors import HeadwiseError
from headwise.seams.transformers import from_gguf
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.forward import cache_argument
from headwise.seams.transformers.load import load_config, load_model, load_tokenizer

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


def write(file: Path, held: PreTrainedModel, kind: str = "F32") -> None:
    """The model as a GGUF file, its matrices of a kind of gguf's."""
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
        if kind == "F32" or weight.dim() == 1:
            out.add_tensor(f"{name}.weight", weight.numpy())
        else:
            raw = gguf.GGMLQuantizationType[kind]
            out.add_tensor(f"{name}.weight", gguf.quantize(weight.numpy(), raw), raw_dtype=raw)
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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "headwise" / "gguf"


def test_a_file_is_a_model_wherever_one_is_named_and_is_converted_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = model()
    write(tmp_path / "a.gguf", held)
    told: list[str] = []
    place = from_gguf.converted(tmp_path / "a.gguf", lambda what, *_: told.append(what))
    assert place.parent == cache and sorted(set(told)) == [
        "converting a.gguf to bfloat16, once",
        "looking at a.gguf",
    ]
    assert [one.name for one in cache.iterdir() if one.is_dir()] == [place.name]
    monkeypatch.setattr(from_gguf, "convert", None)
    (tmp_path / "elsewhere").mkdir()
    other = (tmp_path / "a.gguf").rename(tmp_path / "elsewhere" / "b.gguf")
    for name in (other, str(other), other.parent):
        made = load_model(name)
        assert torch.equal(made.lm_head.weight, held.lm_head.weight.bfloat16())
        assert (
            load_tokenizer(name).convert_ids_to_tokens([3]) == ["a"] and load_config(name).num_hidden_layers == LAYERS
        )


def test_a_conversion_that_was_killed_begins_anew(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.gguf", model())
    whole = from_gguf.convert

    def killed(file: Path, folder: Path) -> None:
        whole(file, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(from_gguf, "convert", killed)
        with pytest.raises(KeyboardInterrupt):
            from_gguf.converted(tmp_path / "a.gguf")
    assert not [one for one in cache.iterdir() if one.is_dir()]
    digest = from_gguf._sha256(tmp_path / "a.gguf", lambda *_: None)
    (cache / f".{digest[:32]}.part").mkdir()  # as a process leaves it that had no time to clean up
    (cache / f".{digest[:32]}.part" / "half.safetensors").write_bytes(b"half")
    place = from_gguf.converted(tmp_path / "a.gguf")
    assert [one.name for one in cache.iterdir() if one.is_dir()] == [place.name]
    assert not (place / "half.safetensors").exists()


def test_a_folder_with_other_weights_is_taken_as_it_is(tmp_path: Path) -> None:
    assert from_gguf.gguf_in(tmp_path) is None and from_gguf.gguf_in("someone/some-model") is None
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert from_gguf.gguf_in(tmp_path) == from_gguf.gguf_in(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(HeadwiseError, match=r"holds 2 GGUF files; give one of them: a.gguf, b.gguf"):
        from_gguf.gguf_in(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert from_gguf.gguf_in(tmp_path) is None


def test_a_disk_without_room_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.gguf", model())
    monkeypatch.setattr(from_gguf.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(HeadwiseError, match=r"a.gguf takes .* 100 B are free; free some, or set XDG_CACHE_HOME"):
        from_gguf.converted(tmp_path / "a.gguf")


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("recipe", ["", "snapkv(0.5) | int8"])
def test_a_model_that_transformers_read_from_the_file_runs_over_a_cache(
    tmp_path: Path, recipe: str, packed: bool, kind: str
) -> None:
    """Asked for it packed too, which transformers 5.24 does of three architectures, hybrids all; it decodes others."""
    write(tmp_path / "a.gguf", model(), kind)
    if packed and not hasattr(transformers, "GgufConfig"):
        pytest.skip("until transformers keeps GGUF weights packed (5.24)")
    how = {"quantization_config": transformers.GgufConfig()} if packed else {}
    made = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32, **how)
    check_runs(made, recipe)


def check_runs(made: PreTrainedModel, recipe: str) -> None:
    """Greedy text as with transformers' own cache under the empty recipe; under another one less is stored."""
    ids = torch.randint(3, len(WORDS), (1, 60), generator=torch.Generator().manual_seed(0))
    own = made.generate(ids, max_new_tokens=12, do_sample=False)
    cache = Cache(made, recipe)
    found = made.generate(ids, max_new_tokens=12, do_sample=False, **{cache_argument(type(made)): cache})
    if recipe:
        assert cache.session is not None and int(cache.session.lengths(0)[0].max()) < cache.get_seq_length()
    else:
        assert torch.equal(found, own)
