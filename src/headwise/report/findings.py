"""What runs found out about systems, collected into the file that `headwise systems` reads.

python -m headwise.report.findings docs/data src/headwise/assets/findings.json

Every JSON file below the folder that is an object with `findings` is read. A row's findings stand in the order of the
rows, and of the names of their files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pydantic import ValidationError

from headwise.errors import HeadwiseError
from headwise.files import write_json
from headwise.findings import Finding, as_data


def collected(folder: Path) -> list[Finding]:
    """The findings of all runs below a folder, by row; HeadwiseError that names the file of one that is none."""
    found: list[Finding] = []
    for path in sorted(folder.rglob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        for data in kept.get("findings", []) if isinstance(kept, dict) else []:
            try:
                found.append(Finding.model_validate(data))
            except ValidationError as error:
                raise HeadwiseError(f"{path}: a finding cannot be read ({error}); run its command again") from error
    return sorted(found, key=lambda one: one.row)


def main() -> None:
    """Collect, write, and say how many there are of each state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    found = collected(given.folder)
    write_json(given.out, {"findings": as_data(found)})
    states = [one.state for one in found]
    print(", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) or "no findings")


if __name__ == "__main__":
    main()
