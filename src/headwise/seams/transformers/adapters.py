"""Adapters of PEFT, put onto a model that transformers loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedModel

from headwise.errors import HeadwiseError


def check_adapter(folder: Path) -> None:
    """Refuse, before a model is loaded, what cannot be put onto one."""
    if not (folder / "adapter_config.json").is_file():
        raise HeadwiseError(
            f"--adapter: {folder} holds no adapter_config.json; give the folder that PEFT's save_pretrained wrote"
        )
    if find_spec("peft") is None:
        raise HeadwiseError("--adapter needs PEFT, which is not installed; pip install peft")


def put_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapter in a folder onto a model, to run with it; before the model is attached, as it then is another
    one, with plans of its own."""
    check_adapter(folder)
    try:
        model.load_adapter(str(folder))
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise HeadwiseError(
            f"the adapter in {folder} does not go onto {type(model).__name__} ({said}); give the model that it was "
            "trained for, or install the newest peft"
        ) from None
    model.eval()
