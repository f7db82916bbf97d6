"""What the package carries beside code: the embedded model with its plans, a novel to read, the list of systems."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from headwise.errors import HeadwiseError

NOVEL = "the_war_of_the_worlds.txt"
NOVEL_TITLE = "The War of the Worlds (H. G. Wells)"


def _folder(name: str) -> Path:
    return Path(str(files(__name__) / name))


def embedded_model() -> Path:
    """The folder of the embedded model, as transformers' from_pretrained takes it."""
    folder = _folder("embedded")
    if not (folder / "config.json").is_file():
        raise HeadwiseError(
            f"this copy of headwise carries no embedded model ({folder} has no config.json); name a model instead, as "
            "in `headwise run PATH_OR_HUB_ID`, or make one with `headwise train embedded`"
        )
    return folder


def embedded_scores() -> Path:
    """Where the embedded model's scores on the tasks stand, as `benchmarks/tasks.py` writes them."""
    return _folder("embedded") / "tasks.json"


def embedded_calibration() -> Path:
    """What `headwise calibrate` measured of the embedded model's heads, as `make calibration` writes it."""
    return _folder("embedded") / "heads.calibration"


def embedded_plan(share: float) -> Path | None:
    """The embedded model's ready plan for the largest share of dense bytes up to `share`; None when there is none."""
    plans = {int(match[1]): path for path in _folder("embedded").glob("plan-*.plan") if (match := _percent(path))}
    fitting = [percent for percent in plans if percent <= 100 * share + 1e-6]
    return plans[max(fitting)] if fitting else None


def _percent(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"plan-(\d+)\.plan", path.name)


def systems_list() -> Path:
    """The list of published systems, a table with tabs between."""
    return _folder("systems.tsv")


def claims_file() -> Path:
    """What became of the claims, as `make claims` writes it; a file that may not be there."""
    return _folder("claims.json")


def novel() -> str:
    """A whole public-domain novel that the embedded model was not trained on."""
    return (_folder("novel") / NOVEL).read_text(encoding="utf-8")


def findings_file() -> Path:
    """What runs found out about systems, as `headwise.report.findings` collects it; a file that may not be there."""
    return _folder("findings.json")


def theory_file() -> Path:
    """What became of the experiments, as `make theory` writes it; a file that may not be there."""
    return _folder("theory.json")


def context_folder() -> Path:
    """What was measured of models for arrangers of documents: slot profiles and sentence probes."""
    return _folder("context")
