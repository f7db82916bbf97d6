"""What users typed stays what it is: in a terminal, a spreadsheet, a picture and a page."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

import pytest
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from rich.console import Console

from headwise.cli.main import app
from headwise.report.bench_csv import write_csv
from headwise.report.bench_page import page as bench_page
from headwise.report.bench_table import terminal_table as bench_table
from headwise.report.fronts import families, fronts, points
from headwise.report.page import page
from headwise.report.pictures import as_png, overview
from headwise.report.table import terminal_table
from headwise.report.terminal import plain, visible
from tests.report.test_bench_page import result as comparison
from tests.report.test_report import result as run

NAMES = ("my[/x].plan", "[bold]a[/bold]", ":smile:", "$x^2$ and $y", "<script>alert(1)</script>", "=1+1", "a\x1b[31mb")


def shown(what: object) -> str:
    out = io.StringIO()
    Console(file=out, width=300).print(what)
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_shows_names_as_they_were_typed(name: str) -> None:
    told, rows = run(), comparison()
    told["rows"][1]["recipe"] = told["title"] = told["model"] = name
    rows["rows"][1]["name"] = rows["protocol"]["model"]["name"] = name
    safe = name.replace("\x1b", "\\x1b")
    for table in (terminal_table(told, 200), bench_table(rows)):
        text = shown(table)
        assert text.count(safe) == 2, "in the title and in the row"
        assert "\x1b" not in text
    assert shown(plain(name)) == f"{safe}\n"


def test_what_a_terminal_would_act_on_is_shown_as_an_escape() -> None:
    assert visible("a\x07b\x9bc\u202ed\udcffe\nf\tg é 漢") == "a\\x07b\\x9bc\\u202ed\\udcffe\nf\tg é 漢"


def test_spreadsheets_run_no_text_and_numbers_stay_numbers(tmp_path: Path) -> None:
    made = comparison()
    made["protocol"]["seeds"] = {"items": -5}
    made["rows"][-1]["refused"] = {"t<1> 100": "takes at least, more"}
    begins = ("=1+1", "+1", "-1", "@x", "\tx", "\nx")
    for name in begins:
        made["protocol"]["model"]["name"] = name
        write_csv(made, tmp_path / "a.csv")
        with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        assert {line["model"] for line in lines} == {f"'{name}"}
        assert {line["seed"] for line in lines} == {"-5"}
    made["protocol"]["model"]["name"] = "\r=1+1"
    write_csv(made, tmp_path / "a.csv")
    assert "\r" not in (tmp_path / "a.csv").read_bytes().decode()
    made["protocol"]["model"]["name"] = "a=b, -c"
    write_csv(made, tmp_path / "a.csv")
    assert '"a=b, -c"' in (tmp_path / "a.csv").read_text()


@pytest.mark.parametrize("name", ["$x^2$", "$\\frac{$", "a$b", "$$"])
def test_pictures_write_dollars(name: str) -> None:
    told, rows = run(), comparison()
    told["rows"][1]["recipe"] = told["model"] = name
    for place, one in enumerate(rows["rows"]):
        one["name"] = one["recipe"] = f"{name} {place}"
    rows["timings"] = {row["name"]: {"token_ms": 1.0} for row in rows["rows"]}
    for figure in (overview(told), fronts(rows), families(points(rows))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            as_png(figure)
        texts = [one.get_text() for one in figure.findobj(Text)]
        named = [text for text in texts if name.replace("$", r"\$") in text]
        assert named, texts
        assert not any(is_math_text(text) for text in named)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a'b&c"])
def test_pages_escape_names(name: str) -> None:
    told, rows = run(), comparison()
    told["rows"][1]["recipe"] = told["title"] = told["model"] = name
    told["rows"][1]["recipes"] = {name: 6}
    rows["rows"][1]["name"] = rows["protocol"]["model"]["name"] = name
    rows["timings"] = {row["name"]: {"token_ms": 1.0} for row in rows["rows"]}
    for text in (page(told), bench_page(rows)):
        assert name not in text.split("<script>const")[0]


def test_an_error_of_the_command_line_shows_its_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["check", "my[/x]:smile:.plan"])
    assert ended.value.code == 2
    assert "my[/x]:smile:.plan" in capsys.readouterr().err
