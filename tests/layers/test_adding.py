"""A paper is one file in the folder of its slot: lists, the page and the laws know it, and nothing else is edited."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLANTED = '''
"""A planted normalisation."""

from dataclasses import dataclass

import torch

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.pairs import Normalise


@layer_part("normalise", "planted")
@dataclass(frozen=True)
class Planted(Normalise):
    """Weights are squares of positive scores, over how many keys a query sees."""

    card = LayerCard("Planted", "own", "keys of negative score have no weight", "w_ij = max(s_ij, 0)^2 / n_i")

    def weights(self, scores, block):
        return scores.clamp_min(0).square() * block.seen / block.count

    def alone(self, scores, row):
        return scores.clamp_min(0) ** 2 / len(scores)
'''
LOOK = """
import sys
import headwise.layers.normalise as room
room.__path__.append(sys.argv[1])
from headwise.cli.layers_page import layers_page
from tests.contract.layers import test_forms
assert "### planted" in layers_page("") and "planted" in test_forms.PARTS
for law in (
    test_forms.test_a_text_in_chunks_or_steps_is_the_text_at_once,
    test_forms.test_a_layer_equals_its_plain_form,
    test_forms.test_padded_and_packed_texts_are_as_alone,
    test_forms.test_a_sentence_is_read_back,
):
    law("planted")
print("kept")
"""


def test_one_file_adds_a_part_and_the_laws_are_asked_of_it(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED.lstrip())
    command = [sys.executable, "-c", LOOK, str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == "kept\n", found.stderr[-2000:]
