"""The flat table of `headwise bench --csv` says what the result says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from headwise.report.bench_csv import COLUMNS, write_csv
from tests.cli.conftest import Command, headwise, tiny  # noqa: F401
from tests.report.test_bench_page import result


def test_every_row_on_every_task_is_a_line(headwise: Command, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    found = headwise(
        "bench", tiny, "--recipe", "keydiff", "--recipe", "l2norm", "--share", 0.1, "--workers", 1,
        "--task", "tests.bench.tiny_task:Recall(facts=2)", "--context", "500,600", "--items", 1, "--json",
        "--csv", tmp_path / "a.csv", "--report", tmp_path / "a.html",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert len(lines) == 2 * len(told["rows"])
    assert {line["data"] for line in lines} == {told["protocol"]["hashes"]["data"]}
    by_place = {(line["method"], f"{line['task']} {line['context']}"): line for line in lines}
    for row in told["rows"]:
        for place, task in row.get("tasks", {}).items():
            line = by_place[row["name"], place]
            assert float(line["score"]) == task["mean"]
            assert int(line["asks"]) == task["count"] == 2
            assert float(line["row_of_dense"]) == row["of_dense"]
            assert line["refused"] == ""
    refused = [line for line in lines if line["method"] == "l2norm @ 0.1"]
    assert [line["context"] for line in refused] == ["500", "600"]
    assert all("takes at least" in line["refused"] and line["score"] == line["row_score"] == "" for line in refused)


def test_a_file_that_cannot_be_written_is_refused_before_any_work(headwise: Command, tmp_path: Path) -> None:  # noqa: F811
    found = headwise("bench", "--csv", tmp_path / "nosuch" / "a.csv")
    assert found.exit_code == 2
    assert "--csv" in found.stderr


def test_pandas_reads_it_as_the_docs_say(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="until pandas is installed: it comes with headwise[eval]")
    made = result()
    made["protocol"]["seeds"] = {"items": 0}
    made["rows"][-1]["refused"] = {"t<1> 100": "takes at least, more"}
    write_csv(made, tmp_path / "a.csv")
    lines = pandas.read_csv(tmp_path / "a.csv")
    plans = lines[lines.role == "plan"]
    table = plans.pivot_table(index="method", columns=["task", "context"], values="score")
    assert table.loc["snapkv @ 0.25", ("t<1>", 100)] == 0.5
    ranked = plans.drop_duplicates("method").sort_values("row_score")[
        ["method", "row_score", "row_of_dense", "row_verdict"]
    ]
    assert list(ranked.method) == ["keydiff @ 0.25", "snapkv @ 0.25", "h2o @ 0.25"], "a refused row comes last"
    assert ranked.row_score.isna().sum() == 1
