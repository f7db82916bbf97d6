"""What a lens found, as one safetensors file: to be read by other programs, and to be put beside a later look at the
same model (another text, a plan, another version of headwise)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from headwise.errors import FileError
from headwise.files import read_tensors, write_tensors

FORMAT = "headwise lens"
DRAWN = "drawn"  # the tensor that holds what patterns are drawn from, JSON in bytes
Look = tuple[dict[str, Any], dict[str, Any]]  # what was measured, and what its patterns are drawn from


class LensFacts(BaseModel):
    """What stands beside the tensors: all that `headwise lens --json` prints but for the figures."""

    model_config = ConfigDict(extra="allow")
    model: str
    fingerprint: str
    heads: list[int]
    tokens: int
    refused: dict[str, str]


def write_look(path: Path, look: Look) -> None:
    """Write a look. Figures are tensors [layers, heads] by the lens's name, NaN where a layer has no such head."""
    result, drawn = look
    figures = {
        name: torch.tensor([[float("nan") if one is None else one for one in row] for row in rows])
        for name, rows in result["figures"].items()
    }
    told = torch.frombuffer(bytearray(json.dumps(drawn).encode()), dtype=torch.uint8)
    facts = {name: value for name, value in result.items() if name != "figures"}
    write_tensors(path, FORMAT, facts, {f"figures.{name}": one for name, one in figures.items()} | {DRAWN: told})


def read_look(path: Path, fingerprint: str, model: str) -> Look:
    """Read what `write_look` wrote of the model with this fingerprint, told as the user did. FileError for a file that
    is missing, damaged, of another kind, or of another model."""
    facts, tensors = read_tensors(path, FORMAT, LensFacts, FileError)
    if facts.fingerprint != fingerprint:
        raise FileError(
            f"{path} is a look into '{facts.model}' with fingerprint {facts.fingerprint}, and {model} has "
            f"{fingerprint}; look into both at once with --beside-model, or save a look into {model} with --save"
        )
    result = facts.model_dump()
    result["figures"] = {
        name.removeprefix("figures."): [[None if x != x else x for x in row] for row in one.tolist()]
        for name, one in tensors.items()
        if name != DRAWN
    }
    return result, json.loads(bytes(tensors[DRAWN].tolist()))
