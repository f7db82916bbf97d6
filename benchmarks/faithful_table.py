"""The table of docs/contrast.md, from what `headwise faithful MODEL --out FILE` wrote:
python benchmarks/faithful_table.py FILE docs/data/contrast/MODEL.json"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

from headwise.cli.commands.faithful import COLUMNS, cells


def main(result: Path, out: Path) -> None:
    """Write the table."""
    found = json.loads(result.read_text(encoding="utf-8"))
    machine = found["machine"]
    table = {
        "source": f"{found['questions']['conflict']['count']} questions of each kind, {found['dtype']}",
        "command": f"headwise faithful {found['model']} --out faithful.json && "
        f"python benchmarks/faithful_table.py faithful.json docs/data/contrast/{out.name}",
        "machine": ", ".join(f"{key} {value}" for key, value in machine.items()),
        "date": date.today().isoformat(),
        "model": found["model"],
        "columns": list(COLUMNS),
        "rows": [cells(arm) for arm in found["arms"]],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
