"""Finished results of a long command, each one file from the moment it is made, so that a killed command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headwise.errors import HeadwiseError
from headwise.files import read_json, write_text


def keep(folder: Path | None, key: str, result: dict[str, Any]) -> dict[str, Any]:
    """Write a result into `folder`, whole or not at all, unless that is None; returns it as `kept` reads it."""
    text = json.dumps(result)
    if folder is not None:
        write_text(_path(folder, key), text)
    found: dict[str, Any] = json.loads(text)
    return found


class Kept(BaseModel):
    """Any result: an object of names and values."""

    model_config = ConfigDict(strict=True, extra="allow")


def kept(folder: Path | None, key: str, model: type[BaseModel] = Kept) -> dict[str, Any] | None:
    """The result that was kept under `key`, which says what a `model` does; None where there is none."""
    if folder is None or not (path := _path(folder, key)).is_file():
        return None
    return read_json(path, model, HeadwiseError, "delete it to have it made again").model_dump(exclude_unset=True)


def once(folder: Path | None, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result that was kept under `key`, else what `make` finds, which is kept from now on."""
    found = kept(folder, key)
    return keep(folder, key, make()) if found is None else found


def kept_keys(folder: Path) -> list[str]:
    """The keys of all results in `folder`."""
    return sorted(path.stem for path in folder.glob("*.json"))


def forget(folder: Path, keys: Iterable[str]) -> None:
    """Delete these results, and the folder when nothing else is in it."""
    for key in keys:
        _path(folder, key).unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty, or gone: the same command may run twice
        folder.rmdir()


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"
