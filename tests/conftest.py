"""Settings of all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Of tests and of the commands that they start: of threads that wait for each other on a busy machine, one that waits
# keeps the others from their work, for minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs are interpreted; read as triton is imported, which torch may do

import torch


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep between calls lies in a folder of the tests, not among the user's caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def clean_folder() -> Iterator[None]:
    """Tests leave nothing in the folder that they run in, but what begins with a dot: caches of tools."""
    before = set(Path().iterdir())
    yield
    left = sorted(one.name for one in set(Path().iterdir()) - before if not one.name.startswith((".", "__pycache__")))
    assert not left, f"tests left {left} in {Path.cwd()}; write into tmp_path"


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """Commands that run in the tests' own process leave their models out of garbage collection; tests end them."""
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Whatever number of threads a test asks for, the next one has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
