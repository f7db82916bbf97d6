"""The page and the picture of every method on really pretrained models."""

from __future__ import annotations

from typing import Any

import pytest

from headwise.cli.real_page import real_page
from headwise.errors import HeadwiseError
from headwise.report.pictures import as_png
from headwise.report.real import picture


def row(arm: str, asked: str, at: float | None, mean: float, equal: str = "bytes held") -> dict[str, Any]:
    text = {"nats": 3.2, "kl": 0.125, "top1": 0.9} if asked == "after" else {}
    facts = {"arm": arm, "equal": equal, "asked": asked, "at": at, "sentence": arm, "asks": 64, "cost": at or 0.26}
    return facts | {"answers": [mean, mean - 0.1, mean + 0.1], "text": text}


RESULT = {
    "host": {"name": "small_4k", "about": "a small model over 4096 tokens"},
    "machine": {"processor": "some processor", "cores": 2},
    "command": "headwise front small_4k --share 0.25,0.1",
    "dense": {"after": 0.75, "before": 0.75, "along": 0.7},
    "rows": [
        *(row(f"{name}({{share}})", asked, share, mean + share)
          for name, mean in (("random", 0.1), ("snapkv", 0.4))
          for asked in ("after", "before") for share in (0.25, 0.1)),
        row("balanced", "after", None, 0.88),
        {"arm": "xkv", "equal": "bytes held", "asked": "after", "at": None, "refused": "one layer alone"},
        row("quest({share})", "after", 0.25, 0.5, "tokens read"),
        row("qada({share})", "after", 0.25, 0.9, "tokens read") | {"cost": 1.0},
    ],
}  # fmt: skip


def test_the_page_has_a_table_for_each_thing_that_is_spared() -> None:
    page = real_page("<!-- made -->", [RESULT])
    assert "## small_4k" in page and "0.75 asked after" in page and RESULT["command"] in page
    assert "| `snapkv` | 0.65 [0.55, 0.75] | 0.50 [0.40, 0.60] | 0.125 | 0.125 |" in page
    assert "| `qada` | 0.90 [0.80, 1.00], takes 1.00 |" in page, "at a quarter it is not"
    assert page.index("| `snapkv` |") < page.index("| `random` |"), "those that keep most come first"
    assert "| `balanced` | 0.260 | 0.88 [0.78, 0.98] | 0.125 |" in page
    assert "| `xkv` |  | refused |  |" in page
    assert page.count("### ") == 3, "nothing was computed in the prompt, so that there is no table of it"


def test_without_a_run_the_page_says_so() -> None:
    assert "Not run yet" in real_page("<!-- made -->", [])


def test_the_picture_has_a_bar_for_every_method_and_way_of_asking() -> None:
    figure = picture([(RESULT, 0.25)])
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert names == [["random", "snapkv"], ["random", "snapkv", "balanced, 26%"]]
    for axes, widths in zip(figure.axes, ([0.35, 0.65], [0.35, 0.65, 0.88]), strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(widths)
    assert as_png(figure)[:4] == b"\x89PNG"


def test_one_way_of_asking_is_one_panel_and_plans_have_a_colour_of_their_own() -> None:
    after = [row for row in RESULT["rows"] if row["asked"] == "after"]
    figure = picture([(RESULT | {"rows": [*after, row("some/tuned-25.plan", "after", None, 0.9)]}, 0.25)])
    assert len(figure.axes) == 1
    labels, bars = figure.axes[0].get_yticklabels(), figure.axes[0].patches
    assert labels[-1].get_text() == "tuned-25, 26%"
    assert len({bar.get_facecolor() for bar in bars}) == 3, "controls, methods and plans"


def test_a_share_that_was_not_measured_is_named() -> None:
    with pytest.raises(HeadwiseError, match=r"at a share of 0\.4; there are 0\.1, 0\.25"):
        picture([(RESULT, 0.4)])
