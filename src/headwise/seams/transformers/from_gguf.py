"""From a GGUF file to a folder that every loader here takes: through transformers' own reader of such files."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwise.errors import HeadwiseError

NEEDED = ("gguf", "accelerate")
LOST = ("missing_keys", "mismatched_keys", "unexpected_keys")


def check_converter() -> None:
    """Refuse, before there is anything to convert, an environment without the packages that converting needs."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise HeadwiseError(
            f"{' and '.join(missing)} {verb} not installed, which converting a model needs; "
            "pip install 'headwise[real]'"
        )


def convert(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into `folder`, weights as bfloat16 safetensors.

    HeadwiseError where this version of transformers does not read every weight of the file.
    """
    check_converter()
    where = {"gguf_file": file.name}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.bfloat16, output_loading_info=True, **where, **_decoding()
        )
        model, told = loaded
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    except (ImportError, KeyError, NotImplementedError, OSError, TypeError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise HeadwiseError(f"{_version()} cannot read {file.name} ({said}); install the newest transformers") from None
    if lost := [f"{kind}: {', '.join(sorted(map(str, told[kind]))[:3])}" for kind in LOST if told.get(kind)]:
        raise HeadwiseError(
            f"{_version()} does not read every weight of {file.name} ({'; '.join(lost)}); install the newest one"
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _name_class(folder / "tokenizer_config.json")


def _name_class(config: Path) -> None:
    """Have every version of transformers read tokenizer.json as it stands: it names here the class of the version that
    wrote it, which earlier ones do not know."""
    told = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(told | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2), encoding="utf-8")


def _decoding() -> dict[str, Any]:
    """What tells from_pretrained to decode the weights: earlier versions of transformers do nothing else."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _version() -> str:
    return f"transformers {transformers.__version__}"
