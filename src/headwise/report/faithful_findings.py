"""What decoders on questions of faithfulness show of the rows of the list that they stand for."""

from __future__ import annotations

from typing import Any

from headwise.findings import Finding, Part, as_data
from headwise.report.findings import measured

# Of a decoder: its row, what is said of it, and what of the row is not asked.
STATED = {
    "decore": (209, "Less what is said without its retrieval heads, a model says what the passage says more often",
               "that masking the retrieval heads takes 50 points of copying"),
    "layercake": (219, "Less what is said without attention to punctuation and to the most attended tokens, a model "
                  "says what the passage says more often", "facts that are recalled without a passage"),
    "largepig": (70, "With the tokens mixed in that the last layer attends to, a model says what the passage says more "
                 "often", "answers of several sentences"),
    "dagcd": (138, "With the tokens raised that a detector finds used, a model says what the passage says more often",
              ""),
}  # fmt: skip
HARM = -0.1  # of right answers about one of six documents, which no decoder is to lose


def findings(found: dict[str, Any], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the arms of a result of `headwise faithful`. facts: command, machine and date."""
    host = f"{found['model']}, {found['questions']['conflict']['count']} passages that say otherwise than the world"
    made = []
    for arm in found["arms"]:
        known = STATED.get(arm["name"].partition("(")[0])
        if known is None or arm["control"] is None:
            continue
        row, says, leaves_out = known
        over = {"greedy decoding": arm["over_greedy"], arm["control"].partition(" [")[0]: arm["over_control"]}
        parts = tuple(
            Part(says="says the passage's word more often", found=measured(one["conflict"]), above=0, control=control)
            for control, one in over.items()
        )
        harmless = Part(
            says="of facts in one of six documents, loses less than 10 points",
            found=measured(arm["over_greedy"]["placed"]), above=HARM,
        )  # fmt: skip
        made.append(Finding(row=row, says=says, host=host, **facts, parts=(*parts, harmless), leaves_out=leaves_out))
    return as_data(made)
