"""Finished results: made once, and read back as they were made."""

from __future__ import annotations

from pathlib import Path

from headwise.kept import forget, kept, kept_keys, once


def test_a_result_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"n": len(made)}

    assert once(tmp_path, "a", make) == once(tmp_path, "a", make) == kept(tmp_path, "a") == {"n": 1}
    assert once(tmp_path, "b", make) == {"n": 2} and kept_keys(tmp_path) == ["a", "b"]
    forget(tmp_path, ["a"])
    assert once(tmp_path, "a", make) == {"n": 3}


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    assert once(None, "a", lambda: {"n": 1}) == {"n": 1} and not kept_keys(tmp_path)
