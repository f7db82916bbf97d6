"""Whatever cites a system by its number cites one of the list that ships."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise.errors import HeadwiseError
from headwise.registry import all_methods
from headwise.systems import standing, system, systems

ROOT = Path(__file__).parents[1]
CITED = re.compile(r"\b[Rr]ows? (\d+(?:(?:, and |, | and )\d+)*)\b")
NUMBERS = {one.number for one in systems()}


def cited(text: str) -> list[int]:
    """The numbers of "row 7" and of "rows 1, 2 and 3"."""
    return [int(number) for found in CITED.findall(text) for number in re.findall(r"\d+", found)]


def sources() -> Iterator[Path]:
    """Everything written by people that may cite a system."""
    yield ROOT / "README.md"
    yield ROOT / "CHANGELOG.md"
    for folder, pattern in (("src", "*.py"), ("tests", "*.py"), ("docs", "*.md"), ("benchmarks", "*.py")):
        yield from sorted((ROOT / folder).rglob(pattern))


def test_citations_are_found() -> None:
    assert cited("Rows 120, 183 and 247: selections; row 7, three arrows 9, row 8") == [120, 183, 247, 7, 8]


def test_numbers_are_those_of_the_lines() -> None:
    assert [one.number for one in systems()] == list(range(len(systems())))


def test_every_cited_row_is_a_system() -> None:
    found = {path.relative_to(ROOT): cited(path.read_text(encoding="utf-8")) for path in sources()}
    assert sum(map(len, found.values())) > 50
    unknown = {path: wrong for path, numbers in found.items() if (wrong := sorted(set(numbers) - NUMBERS))}
    assert not unknown, f"numbers go from 0 to {max(NUMBERS)}: see `headwise systems`"


def test_every_system_of_a_card_is_one() -> None:
    unknown = {name: wrong for name, cls in all_methods().items() if (wrong := set(cls.card.systems) - NUMBERS)}
    assert not unknown
    assert not set(standing()) - NUMBERS


def test_drafters_stand_for_their_rows() -> None:
    assert {"drafter hierarchy", "drafter lookup"} <= set(system("144").here)
    assert system("Sparse-to-Dense (StD)").here == ("drafter itself",)


def test_a_system_is_found_by_number_or_name() -> None:
    first = systems()[0]
    assert system("0") == system(first.name.upper()) == first
    with pytest.raises(HeadwiseError, match=f"numbers go from 0 to {len(systems()) - 1}"):
        system("no such system")
