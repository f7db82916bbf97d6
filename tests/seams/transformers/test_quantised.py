"""Models whose weights are of another kind than plain tensors: greedy text is what it is without headwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.fingerprint import fingerprint
from headwise.seams.transformers.forward import cache_argument
from tests.tiny import build


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


def check_runs(model: Any) -> None:
    ids = torch.randint(3, 500, (1, 90), generator=torch.Generator().manual_seed(0))
    own = model.generate(ids, max_new_tokens=12, do_sample=False)
    for recipe in ("", "snapkv(0.5) | int8"):
        cache = Cache(model, recipe)
        found = model.generate(ids, max_new_tokens=12, do_sample=False, **{cache_argument(type(model)): cache})
        assert recipe or torch.equal(found, own)


@pytest.mark.parametrize("where", ["cpu", {"model": "cpu", "lm_head": "cpu"}], ids=["name", "map"])
def test_a_model_that_was_placed_by_a_device_map(place: Path, where: Any) -> None:
    pytest.importorskip("accelerate", reason="until accelerate is installed (pip install 'headwise[real]')")
    check_runs(AutoModelForCausalLM.from_pretrained(place, device_map=where, dtype=torch.float32))


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(place: Path, kind: str) -> None:
    quantization = pytest.importorskip(
        "torchao.quantization", reason="until torchao is installed (pip install torchao)"
    )
    config = transformers.TorchAoConfig(getattr(quantization, kind)())
    check_runs(AutoModelForCausalLM.from_pretrained(place, quantization_config=config, dtype=torch.bfloat16))


def test_bitsandbytes_in_four_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="until bitsandbytes is installed (pip install bitsandbytes)")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 512, "num_hidden_layers": 2}  # whole blocks
    shape = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    transformers.LlamaForCausalLM(shape).save_pretrained(tmp_path)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    ids = torch.randint(3, 500, (1, 90), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model(ids).logits
        found = model(ids, **{cache_argument(type(model)): Cache(model, "")}).logits
    assert float((found - own).norm() / own.norm()) < 1e-2
    check_runs(model)


class Packed(torch.Tensor):
    """A weight that lies in two tensors, and cannot be viewed, as a quantiser's own kinds."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Packed:
        made = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Packed(args[0].codes, args[0].scale)
        raise TypeError(f"{func} of a packed weight")


def test_a_fingerprint_is_of_the_tensors_inside() -> None:
    codes, scale = torch.arange(32, dtype=torch.int8).view(4, 8), torch.rand(4, 1)
    found = {
        fingerprint({}, [("w", Packed(a, b))]) for a, b in ((codes, scale), (codes + 1, scale), (codes, scale + 1))
    }
    assert len(found) == 3
    assert fingerprint({}, [("w", Packed(codes, scale))]) in found
