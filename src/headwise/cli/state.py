"""Where a long command keeps what it finished, so that the same command goes on after a kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwise.cli.progress import Watcher
from headwise.errors import HeadwiseError


def cache_folder() -> Path:
    """The user's caches: tuned plans, tables of what heads can do without, and what stopped commands finished."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwise"


def place_for(command: str, facts: Any, state: Path | None) -> Path:
    """Where a call of `command` keeps what it finished: the same for the same `facts`, versions and machine."""
    from headwise.bench.protocol import digest
    from headwise.bench.provenance import machine, versions

    place = cache_folder() / "unfinished" if state is None else state
    return place / f"{command}-{digest([facts, versions(), machine()])}"


@contextmanager
def unfinished(command: str, facts: Any, watch: Watcher, *, state: Path | None, fresh: bool) -> Iterator[Path]:
    """The folder where a call of `command` keeps each finished result; facts: JSON data, all that decides these.

    It lasts until the call is through, and for good in a `state` folder of the user's. With `fresh` what it holds is
    forgotten first.
    """
    from headwise.kept import forget, kept_keys

    folder = place_for(command, facts, state)
    if fresh and folder.is_dir():
        forget(folder, kept_keys(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadwiseError(
            f"finished rows cannot be kept in {folder} ({error.strerror}); give --state FOLDER, one that can be written"
        ) from None
    tell_kept(watch, folder, len(kept_keys(folder)))
    yield folder
    if state is None:
        forget(folder, kept_keys(folder))


def tell_kept(watch: Watcher, folder: Path, count: int) -> None:
    """Say where finished rows are kept, how many are there already, and how to go on."""
    if count:
        watch.say(f"{count} finished taken over from {folder}; --fresh begins anew")
    else:
        watch.say(f"what is finished is kept in {folder}")
    watch.resume = f"the same command goes on from here ({folder}); --fresh begins anew"
