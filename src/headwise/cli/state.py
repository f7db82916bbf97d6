"""Where a long command keeps what it finished, so that the same command goes on after a kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwise.caches import cache_folder
from headwise.cli.progress import Watcher
from headwise.errors import HeadwiseError


def _base(state: Path | None) -> Path:
    """The folder of all calls: the user's own `state`, else among the user's caches."""
    return cache_folder() / "unfinished" if state is None else state


def check_state(state: Path | None) -> None:
    """Refuse, before there is any work to lose, a folder in which nothing can be kept."""
    folder = _base(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise HeadwiseError(
            f"finished rows cannot be kept in {folder} ({problem}); give --state FOLDER, one that can be written"
        )


def place_for(command: str, facts: Any, state: Path | None) -> Path:
    """Where a call of `command` keeps what it finished: the same for the same `facts`, versions and machine."""
    from headwise.bench.protocol import digest
    from headwise.bench.provenance import machine, versions

    return _base(state) / f"{command}-{digest([facts, versions(), machine()])}"


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
    check_state(folder)
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
