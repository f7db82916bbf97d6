"""What decoders did on questions of faithfulness, as rows of a table.

`python -m headwise.report.faithful faithful.json docs/data/contrast/smollm2.json` makes a table of figures of what
`headwise faithful MODEL --out faithful.json` wrote.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

COLUMNS = (
    "decoder", "faithful to the passage", "over greedy", "over its control", "says what the world says",
    "says unknown where it should", "right of six documents", "over greedy there", "perplexity", "looks a token",
)  # fmt: skip


def cells(arm: dict[str, Any]) -> list[str]:
    """An arm as a row of the table."""
    right, over, control = arm["right"], arm["over_greedy"], arm["over_control"]
    greedy = arm["name"] == "greedy"
    return [
        arm["name"],
        _share(right["conflict"]["mean"]),
        "" if greedy else _interval(over["conflict"]),
        "" if control is None else _interval(control["conflict"]),
        _share(arm["known"]),
        _share(right["unanswerable"]["mean"]),
        _share(right["placed"]["mean"]),
        "" if greedy else _interval(over["placed"]),
        f"{arm['perplexity']:.2f}",
        f"{(arm['cost']['passes'] + arm['cost']['own']) / arm['steps']:.2f}",
    ]


def _share(mean: float) -> str:
    return f"{100 * mean:.0f} %"


def _interval(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:+.0f} [{100 * found['low']:+.0f}, {100 * found['high']:+.0f}]"


def figures(found: dict[str, Any], name: str) -> dict[str, Any]:
    """A result as a table of figures, of the file name `name`, with what it shows of published systems."""
    from headwise.report.faithful_findings import findings  # not above, as in `main`

    facts = {
        "command": f"headwise faithful {found['model']} --out faithful.json && "
        f"python -m headwise.report.faithful faithful.json docs/data/contrast/{name}",
        "machine": ", ".join(f"{key} {value}" for key, value in found["machine"].items()),
        "date": date.today().isoformat(),
    }
    return {
        "source": f"{found['questions']['conflict']['count']} questions of each kind, {found['dtype']}",
        **facts,
        "model": found["model"],
        "columns": list(COLUMNS),
        "rows": [cells(arm) for arm in found["arms"]],
        "findings": findings(found, facts),
    }


def main() -> None:
    """Write the table of a result."""
    from headwise.files import write_text  # not above: the command's help loads this file, and torch with that one

    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("result", type=Path)
    reader.add_argument("out", type=Path)
    given = reader.parse_args()
    told = figures(json.loads(given.result.read_text(encoding="utf-8")), given.out.name)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.out, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
