"""Files written whole or not at all: text, and facts with tensors as safetensors with a checksum."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from headwise.errors import HeadwiseError


def write_tensors(path: Path, form: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write `facts` (JSON data) and `tensors` as one safetensors file of the kind `form`, by rename, so that an
    interrupted write never replaces a good file."""
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    held = held or {"empty": torch.zeros(0)}
    text = json.dumps(facts, sort_keys=True)
    ours = json.dumps({"format": form, "facts": text, "checksum": _checksum(text, held)})
    # one entry, as safetensors writes several in any order: equal data are equal files
    _replace(path, lambda draft: save_file(held, draft, metadata={"headwise": ours}))


def write_text(path: Path, text: str) -> None:
    """Write a text file by rename, so that an interrupted write never leaves half of it or loses the old one."""
    _replace(path, lambda draft: Path(draft).write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[str], object]) -> None:
    """Have `write` fill a draft beside `path`, and put it in place once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        write(draft)
        with open(draft, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(draft, path)
    finally:
        if os.path.exists(draft):
            os.unlink(draft)


def read_tensors(path: Path, form: str, error: type[HeadwiseError]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read what `write_tensors` wrote; raises `error` for a missing, truncated, altered or foreign file."""
    if not path.is_file():
        raise error(f"no file at {path}; check the path")
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = json.loads((stream.metadata() or {}).get("headwise", "{}"))
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as problem:
        raise error(f"{path} is damaged or not a {form} file ({problem}); make or copy it again") from None
    if metadata.get("format") != form:
        raise error(f"{path} is a '{metadata.get('format', 'plain safetensors')}' file, expected '{form}'")
    if metadata.get("checksum") != _checksum(metadata.get("facts", ""), tensors):
        raise error(f"{path} was altered after it was written (checksum differs); make or copy it again")
    tensors.pop("empty", None)
    return json.loads(metadata["facts"]), tensors


def _checksum(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
