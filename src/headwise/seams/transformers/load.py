"""Models and tokenizers by path or hub id, through transformers' own loaders, with errors that name the fix."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from headwise.errors import HeadwiseError, did_you_mean
from headwise.pretrained import PRETRAINED, folder_of, is_here
from headwise.seams.transformers.from_gguf import converted, gguf_in
from headwise.shapes import format_bytes

DTYPES = ("auto", "float32", "bfloat16", "float16")
STORED_BYTES = {"I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
WRITERS = "ForCausalLM", "LMHeadModel", "ForConditionalGeneration"  # how architectures end that write text
SECONDS = 5  # that the hub may take to answer at all
HOSTS = "headwise.models.host"  # imported by name, as rooms are: it makes folders of hosts known to the Auto classes
LOCAL_FIX = "give a folder that holds config.json, a GGUF file, or a hub id such as Qwen/Qwen2.5-0.5B"


def located(name: str | Path) -> str:
    """Where a model lies, as transformers takes it: the folder of a pretrained model that was fetched, by its short
    name; the one that a GGUF file is converted into; else the path or hub id given. What can only be a path and is no
    model's is refused at once, as transformers would ask the hub for it."""
    if str(name) in PRETRAINED and not Path(name).is_dir():
        return str(_fetched(str(name)))
    if (file := gguf_in(name)) is not None:
        return str(converted(file))
    _check_folder(name)
    return str(Path(name).expanduser())


def _fetched(name: str) -> Path:
    """The folder of a pretrained model, refused where it was not fetched."""
    if not is_here(name):
        one = PRETRAINED[name]
        raise HeadwiseError(
            f"the pretrained model '{name}' is not here; get it with `headwise models get {name}` "
            f"({format_bytes(one.download)} to download; licence: {one.licence})"
        )
    return folder_of(name)


def load_pair(
    name: str | Path, dtype: str = "auto", device: str = "cpu", remote_code: bool = False
) -> tuple[Any, PreTrainedModel]:
    """Tokenizer and model at a path or hub id, refused where they do not belong together."""
    tokenizer = load_tokenizer(name, remote_code)
    model = load_model(name, dtype, device, remote_code)
    check_pair(tokenizer, model)
    return tokenizer, model


def check_pair(tokenizer: Any, model: PreTrainedModel) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings. Tokens that were added to it are not counted:
    some stand for images, which a text model never meets."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    known, rows = tokenizer.vocab_size, weight.shape[0]
    if known > rows:
        raise HeadwiseError(
            f"the tokenizer has {known} tokens, the model embeddings of {rows}: they are not of one model; put the "
            "tokenizer's files of this model beside its weights"
        )


def load_model(
    name: str | Path, dtype: str = "auto", device: str = "cpu", remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model at a path or hub id, ready to run; `dtype` "auto" leaves weights as stored.

    remote_code: whether programs that come with the model may run, here and in the other loaders.
    """
    check_dtype(dtype)
    _refuse_encoder(name, _loaded(AutoConfig, name, "config", remote_code))
    return _placed(AutoModelForCausalLM, name, dtype, device, remote_code)


def load_encoder(name: str | Path, dtype: str = "auto", device: str = "cpu", remote_code: bool = False) -> Any:
    """The model at a path or hub id without an output embedding, ready to run: it gives the states of tokens."""
    check_dtype(dtype)
    return _placed(AutoModel, name, dtype, device, remote_code)


def load_whole(name: str | Path, dtype: str = "auto", device: str = "cpu") -> Any:
    """`load_encoder`, refused where weights are missing, which transformers would draw at random: all but those of a
    pooling behind the last layer."""
    check_dtype(dtype)
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    model, told = _loaded(AutoModel, name, "model", dtype=kind, output_loading_info=True)
    if missing := sorted(one for one in told["missing_keys"] if "pooler" not in one):
        raise HeadwiseError(
            f"'{name}' lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}; give a folder "
            "that holds all of them"
        )
    return _on_device(model, device)


def writes(name: str | Path, remote_code: bool = False) -> bool:
    """Whether the model at a path or hub id is one that writes text, by what its config.json calls it; one that it does
    not name is taken for one that does."""
    named = _loaded(AutoConfig, name, "config", remote_code).architectures or []
    return not named or any(one.endswith(WRITERS) for one in named)


def _placed(loader: Any, name: str | Path, dtype: str, device: str, remote_code: bool) -> Any:
    """A model on a device, ready to run."""
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    return _on_device(_loaded(loader, name, "model", remote_code, dtype=kind), device)


def _on_device(model: Any, device: str) -> Any:
    """A model on a device, ready to run."""
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise HeadwiseError(f"device '{device}' cannot be used ({_first_line(error)}); try --device cpu") from None


def _refuse_encoder(name: str | Path, config: Any) -> None:
    """Refuse a model of an encoder and a decoder, of which transformers would load the decoder alone, and an encoder,
    which it would load as a model that writes, with attention in both directions."""
    if config.is_encoder_decoder:
        raise HeadwiseError(
            f"'{name}' is a model of an encoder and a decoder ({config.model_type}), and commands take models of a "
            "decoder alone; from Python, give generate a headwise.EncoderDecoderCache(model, recipe, cross)"
        )
    kinds = config.architectures or []
    if kinds and getattr(config, "is_decoder", None) is False and not any(one.endswith(WRITERS) for one in kinds):
        raise HeadwiseError(
            f"'{name}' holds a {', '.join(kinds)}, which foretells no next token, and commands take models that do; "
            "give a causal language model"
        )


def check_dtype(dtype: str) -> None:
    """Refuse an element type that weights cannot be loaded in."""
    if dtype not in DTYPES:
        raise HeadwiseError(f"no dtype '{dtype}'; {did_you_mean(dtype, DTYPES)}")


def load_config(name: str | Path, remote_code: bool = False) -> Any:
    """The configuration of the text model at a path or hub id: its config.json alone."""
    return _loaded(AutoConfig, name, "config", remote_code).get_text_config(decoder=True)


def load_any_config(name: str | Path) -> Any:
    """The configuration of the model at a path or hub id, whatever it reads."""
    return _loaded(AutoConfig, name, "config")


def load_meta(name: str | Path, dtype: str = "auto") -> PreTrainedModel:
    """The model at a path or hub id without its weights, on torch's "meta" device: made of config.json alone."""
    check_dtype(dtype)
    config = _loaded(AutoConfig, name, "config")
    _refuse_encoder(name, config)
    kind = getattr(config, "dtype", None) or torch.float32
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=kind if dtype == "auto" else getattr(torch, dtype)
            )
    except ValueError as error:
        raise HeadwiseError(f"'{name}' is no causal language model ({_first_line(error)}); {LOCAL_FIX}") from None
    return model.eval()


def weight_bytes(name: str | Path, meta: PreTrainedModel) -> int:
    """Bytes of the weights once loaded: as the headers of local safetensors files say, floating ones in the element
    type of the `meta` model; where there is no such file, by the meta model itself."""
    folder = Path(located(name))
    files = sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []
    total = 0
    for file in files:
        with safe_open(file, framework="pt") as held:
            for key in held.keys():  # noqa: SIM118 (safe_open is no mapping)
                one = held.get_slice(key)
                floating = one.get_dtype().startswith(("F", "BF"))
                size = meta.dtype.itemsize if floating else STORED_BYTES[one.get_dtype()]
                total += math.prod(one.get_shape()) * size
    return total or sum(one.numel() * one.element_size() for one in meta.parameters())


def load_tokenizer(name: str | Path, remote_code: bool = False) -> Any:
    """The tokenizer that belongs to the model at a path or hub id."""
    return _loaded(AutoTokenizer, name, "tokenizer", remote_code)


def numbered_tokens(model: PreTrainedModel) -> dict[str, int]:
    """The tokens of the tokenizer in the folder that a model was loaded from, with their numbers; none where there is
    no such file."""
    folder = Path(model.name_or_path or "nowhere")
    tokens: dict[str, int] = load_tokenizer(folder).get_vocab() if (folder / "tokenizer.json").is_file() else {}
    return tokens


def quiet() -> None:
    """Turn off transformers' bars and advice in this process. For programs that show their own, not for libraries."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _check_folder(name: str | Path) -> None:
    """Refuse what can only be a path and is no model's."""
    path = Path(name).expanduser()
    if path.is_file():
        raise HeadwiseError(f"{path} is a single file; give the folder that holds it and the model's config.json")
    looks_local = path.is_absolute() or str(name).startswith((".", "~")) or len(path.parts) > 2
    if path.is_dir() and not (path / "config.json").is_file():
        raise HeadwiseError(f"{path} is no model: it has no config.json; {LOCAL_FIX}")
    if path.suffix == ".gguf":
        raise HeadwiseError(f"there is no file {path}; check the path")
    if looks_local and not path.is_dir():
        raise HeadwiseError(f"there is no folder {path}; {LOCAL_FIX}")


def _loaded(loader: Any, name: str | Path, what: str, remote_code: bool = False, **how: Any) -> Any:
    """What transformers' loader makes of a path or hub id: of files that are here already, else from the hub, where
    that answers."""
    how["trust_remote_code"] = remote_code  # said outright, or transformers asks in the terminal
    local = located(name)
    importlib.import_module(HOSTS)
    if not Path(local).is_dir():
        if _is_cached(local):
            try:
                return loader.from_pretrained(local, local_files_only=True, **how)
            except (OSError, ValueError) as error:  # not all of its files are here
                _refuse_programs(name, error)
        _refuse_unreachable(local)
    try:
        return loader.from_pretrained(local, **how)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, UnpicklingError, RuntimeError) as error:
        _refuse_programs(name, error)
        raise HeadwiseError(f"cannot load a {what} from '{name}' ({_first_line(error)}); {LOCAL_FIX}") from None


def _refuse_programs(name: str | Path, error: BaseException) -> None:
    """Say how a model is loaded that transformers refused for the programs that come with it."""
    if "trust_remote_code" in str(error):
        raise HeadwiseError(
            f"'{name}' comes with programs of its own, which are not run unasked; read them, and if you trust them "
            "say --trust-remote-code (headwise run, headwise chat)"
        ) from None


def _is_cached(name: str) -> bool:
    """Whether some of a hub id's files are here; of a name that can be no hub id there are none."""
    try:
        return isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)
    except ValueError:
        return False


def _refuse_unreachable(name: str) -> None:
    """Refuse a hub id whose files are not here where the hub does not answer: transformers would try for minutes."""
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        huggingface_hub.utils.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise HeadwiseError(
            f"'{name}' is no folder here, its files are not all in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} "
            f"does not answer ({_first_line(error)}); give a folder that holds config.json, or fetch the model where "
            f"there is a network (hf download {name}) and copy it"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
