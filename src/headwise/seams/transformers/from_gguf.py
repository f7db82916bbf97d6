"""From a GGUF file to a folder that every loader here takes: through transformers' own reader of such files.

A file of the user's own is converted once, into the user's caches, and known again by what it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwise.caches import cache_folder
from headwise.drafts import alone
from headwise.errors import HeadwiseError
from headwise.shapes import format_bytes
from headwise.watch import Watch

BLOCK = 1 << 22  # bytes that are hashed at a time
WEIGHTS = ("*.safetensors", "*.bin")  # in a folder with these, a GGUF file is only another form of the model
NEEDED = ("gguf", "accelerate")
_DIGESTS: dict[tuple[Path, int, int], str] = {}  # by file, its size and when it was changed
LOST = ("missing_keys", "mismatched_keys", "unexpected_keys")


def gguf_in(place: str | Path) -> Path | None:
    """The GGUF file that a path means: itself, or the one in a folder without other weights; None for any other."""
    path = Path(place).expanduser()
    if path.suffix == ".gguf":
        return path if path.is_file() else None
    if not path.is_dir() or any(any(path.glob(kind)) for kind in WEIGHTS):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise HeadwiseError(
            f"{path} holds {len(files)} GGUF files; give one of them: {', '.join(file.name for file in files[:4])}"
        )
    return files[0] if files else None


def converted(file: Path, watch: Watch = lambda *_: None) -> Path:
    """The folder of the model in a GGUF file, converted to bfloat16 where that was not done before.

    It is named after the file's sha256, and put in place whole: where a call was killed, the next one begins to convert
    anew. HeadwiseError for what is no whole GGUF file of a model, and what this version of transformers does not read.
    """
    digest = _sha256(file, watch)
    folder = cache_folder() / "gguf" / digest[:32]
    if (folder / "config.json").is_file():
        return folder
    check_converter()
    needed = check_file(file)
    draft = folder.with_name(f".{folder.name}.part")
    with alone(folder.with_name(f".{folder.name}.lock"), f"converting {file.name}"):
        shutil.rmtree(draft, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free
        if free < needed:
            raise HeadwiseError(
                f"{file.name} takes {format_bytes(needed)} as bfloat16 in {folder.parent}, {format_bytes(free)} are "
                "free; free some, or set XDG_CACHE_HOME to a folder of another disk"
            )
        watch(f"converting {file.name} to bfloat16, once", 0, 0)
        try:
            convert(file, draft)
            put_in_place(draft, folder, f"Made by headwise from {file.name}, the GGUF file of sha256 {digest}.\n")
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def check_file(file: Path) -> int:
    """Refuse what is no whole GGUF file of one model; the bytes of its weights as bfloat16."""
    import gguf

    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise HeadwiseError(
            f"{file} is no GGUF file: it begins with {magic!r}, not b'GGUF'; check what was downloaded (a page that "
            "asks for a login, or a pointer of git-lfs, may lie in its place)"
        )
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError) as error:
        said = _first_line(error)
        if "QuantizationType" in said:
            raise HeadwiseError(
                f"{file} has weights of a kind that gguf {version('gguf')} does not know ({said}); update it (pip "
                "install --upgrade gguf), or take another quantisation of the model, such as Q4_K_M or Q8_0"
            ) from None
        raise HeadwiseError(
            f"{file} is damaged, or was downloaded in part: it has {format_bytes(file.stat().st_size)}, which end "
            f"before what it lists ({said}); download it again"
        ) from None
    kind, parts = _told(reader, "general.type") or "model", _told(reader, "split.count") or 1
    if kind != "model":
        raise HeadwiseError(f"{file} holds a GGUF '{kind}', not a model; give the file of the model itself")
    if parts > 1:
        raise HeadwiseError(
            f"{file} is one of {parts} parts of a model; join them (llama-gguf-split --merge FIRST JOINED.gguf) and "
            "give what comes of it"
        )
    if not reader.tensors:
        raise HeadwiseError(f"{file} holds a vocabulary alone, and no weights; give the file of the whole model")
    return sum(int(tensor.n_elements) for tensor in reader.tensors) * torch.bfloat16.itemsize


def put_in_place(made: Path, folder: Path, page: str) -> None:
    """Give a converted model its place, once it is on the disk, with a page that says what it is."""
    (made / "README.md").write_text(page, encoding="utf-8")
    for file in made.iterdir():
        shutil.copymode(made / "README.md", file)  # the weights' writer gives nobody else a right
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(folder, ignore_errors=True)  # without a config.json, it was no model
    os.replace(made, folder)


def _sha256(file: Path, watch: Watch) -> str:
    """Of all that a file holds; of one that did not change since it was asked for, as it was found then."""
    status = file.stat()
    known = (file.resolve(), status.st_size, status.st_mtime_ns)
    if known not in _DIGESTS:
        digest, done = hashlib.sha256(), 0
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
                done += len(block)
                watch(f"looking at {file.name}", done, status.st_size)
        _DIGESTS[known] = digest.hexdigest()
    return _DIGESTS[known]


def _told(reader: Any, key: str) -> Any:
    """What a GGUF file says of itself under a key; None where it says nothing."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


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
        raise HeadwiseError(
            f"{_version()} cannot read {file.name} ({_first_line(error)}); install the newest transformers, or give "
            "the model that the file was made from"
        ) from None
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
