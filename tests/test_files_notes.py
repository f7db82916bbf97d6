"""Sessions whose notes were changed, checksums made anew: what belongs together has to fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.engine.persist import load_session, save_session
from headwise.errors import SessionError
from tests.fuzz.files import opened
from tests.test_files import changed_session, session_of

LTRI = "ltri(24, sinks=2, recent=4)"


def noted(path: Path, name: str) -> tuple[str, torch.Tensor]:
    """The place and the tensor of a note of layer 0, head 1."""
    save_session(session_of(LTRI), path)
    _, held = opened(path)
    own = {place: one for place, one in held.items() if place.startswith("memory.0.0.1.")}
    return next((place, one) for place, one in own.items() if place.endswith(name))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("firsts", lambda one: torch.cat((one, one[-1:] + 1)), "notes that belong together are of"),
        ("vectors", lambda one: one[:0], "notes that belong together are of"),
        ("firsts", lambda one: one.flip(0), "has positions that do not ascend"),
        ("vectors", lambda one: one.half(), "is torch.float16"),
        ("firsts", lambda one: one.short(), "is torch.int16"),
    ],
)
def test_notes_that_do_not_fit_are_refused(name: str, change: Any, message: str, tmp_path: Path) -> None:
    place, tensor = noted(tmp_path / "session", name)
    plan = changed_session(tmp_path / "session", LTRI, {}, {place: change(tensor)})
    with pytest.raises(SessionError, match=message):
        load_session(tmp_path / "session", plan)
