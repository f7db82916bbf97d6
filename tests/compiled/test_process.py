"""What a process that keeps a model leaves out of garbage collection."""

from __future__ import annotations

import gc
from pathlib import Path

from transformers import AutoModelForCausalLM

from headwise.compiled.fast import fast
from headwise.compiled.process import fast_process
from tests import tiny


def test_a_kept_model_is_compiled_and_never_looked_through_again(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.build(tmp_path))
    before = gc.get_freeze_count()
    assert fast_process(model) == fast(model)
    assert gc.get_freeze_count() > before + 1000
    looked_through = {id(one) for one in gc.get_objects()}
    assert id(model.__dict__) not in looked_through and id(model) not in looked_through
