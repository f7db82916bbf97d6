"""Files: written whole or not at all, and read only once what they say was checked.

Facts with tensors are safetensors files with a checksum; all others are text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from headwise.drafts import replaced
from headwise.errors import FileError, HeadwiseError
from headwise.schema import checked_json

MOST_HEADER = 64 << 20  # bytes; what is beyond cannot be ours, and is not read
MOST_FACTS = 16 << 20
MOST_TEXT = 1 << 30

Said = TypeVar("Said", bound=BaseModel)
AGAIN = "make or copy it again"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: Path, form: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write `facts` (JSON data) and `tensors` as one safetensors file of the kind `form`."""
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()} or {"empty": torch.zeros(0)}
    # wide elements first, so that each begins at a multiple of its width
    held = dict(sorted(held.items(), key=lambda one: (-one[1].element_size(), one[0])))
    text = json.dumps(facts, sort_keys=True)
    if len(text) > MOST_FACTS:
        raise FileError(f"{path}: {len(text)} bytes of facts beside the tensors, at most {MOST_FACTS} can be read back")
    ours = {"format": form, "facts": text, "checksum": _checksum(text, held)}
    with replaced(path) as stream:
        stream.write(_header(held, {"headwise": json.dumps(ours)}))
        for tensor in held.values():
            stream.write(_bytes(tensor))


def _header(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """What a safetensors file begins with, for tensors whose bytes follow in this order.

    The library's own writer makes a draft of its own, with rights of its own, that a killed process leaves behind; and
    several entries of metadata in any order, so that equal data would not be equal files.
    """
    told: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        told[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_text(path: Path, text: str) -> None:
    """Write a text file. What cannot be written as UTF-8 (names from an odd file system) is written as its escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file of bytes, such as a picture."""
    with replaced(path) as stream:
        stream.write(data)


def read_text(path: Path, error: type[HeadwiseError] = FileError) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, line ends as they are."""
    _refuse_missing(path, error, MOST_TEXT)
    with _readable(path, error):
        return path.read_bytes().decode("utf-8-sig")


def text_lines(path: Path, error: type[HeadwiseError] = FileError) -> Iterator[str]:
    """The lines of a UTF-8 file, one after the other. A line ends with a line feed and nothing else: a text in it may
    hold any other character that ends lines elsewhere."""
    _refuse_missing(path, error)
    with _readable(path, error), path.open("rb") as stream:
        for number, line in enumerate(stream):
            yield line.decode("utf-8" if number else "utf-8-sig").rstrip("\n")


@contextmanager
def _readable(path: Path, error: type[HeadwiseError]) -> Iterator[None]:
    """Turn what may go wrong while a text is read into `error`."""
    try:
        yield
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}; check the path and who may read it") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path} is no UTF-8 text (byte {problem.start}: {problem.reason}); write it in UTF-8") from None


def read_json(path: Path, model: type[Said], error: type[HeadwiseError] = FileError, fix: str = AGAIN) -> Said:
    """What a JSON file says, as a `model`."""
    return checked_json(model, read_text(path, error), str(path), error, fix)


def read_tensors(
    path: Path, form: str, model: type[Said], error: type[HeadwiseError]
) -> tuple[Said, dict[str, torch.Tensor]]:
    """Read what `write_tensors` wrote; raises `error` for a missing, truncated, altered or foreign file, or one whose
    facts are not a `model`.

    The tensors lie in the file until they are `copied`: nothing is allocated for them here.
    """
    _refuse_missing(path, error)
    _refuse_header(path, form, error)
    try:
        with safe_open(str(path), framework="pt") as stream:
            ours = _Ours.of((stream.metadata() or {}).get("headwise"), path, form, error)
            facts = checked_json(model, ours.facts, str(path), error, f"{AGAIN} with this version of headwise")
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as problem:
        raise error(f"{path} is damaged or not a {form} file ({problem}); {AGAIN}") from None
    if ours.checksum != _checksum(ours.facts, tensors):
        raise error(f"{path} was altered after it was written (checksum differs); {AGAIN}")
    tensors.pop("empty", None)
    return facts, tensors


def copied(tensors: dict[str, torch.Tensor], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """The same tensors in memory: what another program does to the file does not reach them."""
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}


class _Ours(BaseModel):
    """The entry of the metadata that is headwise's."""

    format: str
    facts: str
    checksum: str

    @classmethod
    def of(cls, text: str | None, path: Path, form: str, error: type[HeadwiseError]) -> _Ours:
        """From its JSON text; `error` where there is none, or of another kind."""
        if text is None:
            raise error(f"{path} is a 'plain safetensors' file, expected '{form}'; check the path")
        ours = checked_json(cls, text, f"{path} is not a {form} file", error, AGAIN)
        if ours.format != form:
            raise error(f"{path} is a '{ours.format[:60]}' file, expected '{form}'; check the path")
        if len(ours.facts) > MOST_FACTS:
            raise error(f"{path} holds {len(ours.facts)} bytes of facts, more than {MOST_FACTS}; {AGAIN}")
        return ours


def _refuse_missing(path: Path, error: type[HeadwiseError], most: int | None = None) -> None:
    """Refuse what is no file, or a longer one than `most` bytes."""
    try:
        found = path.is_file()
        size = path.stat().st_size if found else 0
    except (OSError, ValueError) as problem:
        raise error(f"cannot read {path!s:.200}: {getattr(problem, 'strerror', problem)}; check the path") from None
    if not found:
        raise error(f"{path} is a folder; give a file in it" if path.is_dir() else f"no file at {path}; check the path")
    if most is not None and size > most:
        raise error(f"{path} has {size} bytes, at most {most} are read; check the path")


def _refuse_header(path: Path, form: str, error: type[HeadwiseError]) -> None:
    """Refuse a file whose first number cannot be the length of the header that follows it."""
    try:
        with path.open("rb") as stream:
            declared = int.from_bytes(stream.read(8), "little")
            size = os.fstat(stream.fileno()).st_size
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}; check the path and who may read it") from None
    if not 2 <= declared <= min(MOST_HEADER, size - 8):
        told = f"a header of {declared} bytes in a file of {size}"
        raise error(f"{path} is damaged or not a {form} file ({told}); {AGAIN}")


def _checksum(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
