"""What the lens cannot do is refused with the fix: parts that are not there, long texts, plans of another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from headwise.calibrate.subject import ModelSubject
from headwise.cli.main import app
from headwise.errors import ContextError, HeadwiseError, UnsupportedModel
from headwise.lens import Head, Scene, Text, ablated, recorded, scaled, steered
from headwise.lens.tracing import Contrast, Patch, along, traced
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model
from tests import tiny

ASIDE = ("--measure", "previous", "--prompt-file", "text.txt", "--out", "page.html")


def refused(model: Path, here: Path, *asked: str) -> str:
    """What `headwise lens` says as it refuses, and that it wrote no page."""
    (here / "text.txt").write_text(20 * "The harbour of the town was quiet. ", encoding="utf-8")
    found = CliRunner().invoke(app, ["lens", str(model), *ASIDE, *asked])
    assert found.exit_code == 2 and not list(here.glob("*.html"))
    return " ".join(found.output.split())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ((3, 0), r"head 3\.0: the model has layers 0 to 2"),
        ((-1, 0), r"head -1\.0: the model has layers 0 to 2"),
        ((0, 4), r"head 0\.4: layer 0 has .*heads 0 to 3"),
    ],
)
def test_a_head_or_layer_that_is_not_there(subject: ModelSubject, text: Text, head: Head, why: str) -> None:
    model, one = subject.model, Contrast(text.ids[:, :20], text.ids[:, 20:40], 7, 9)
    for tried in (
        lambda: ablated(model, [head]).__enter__(),
        lambda: scaled(model, {head: 0.5}).__enter__(),
        lambda: steered(model, {head: torch.zeros(16)}).__enter__(),
        lambda: recorded(model, [head]).__enter__(),
        lambda: traced(model, one, [Patch(head)]),
    ):
        with pytest.raises(HeadwiseError, match=why):
            tried()


def test_a_head_or_layer_that_is_not_there_of_the_command(folder: Path, here: Path) -> None:
    assert "head 3.0: the model has layers 0 to 2" in refused(folder, here, "--heads", "3.0")
    assert "head 0.4: layer 0 has" in refused(folder, here, "--heads", "0.4")


def test_an_encoder_and_a_decoder(here: Path) -> None:
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(here / "t5")
    tiny_tokenizer(here / "t5")
    said = refused(here / "t5", here)
    assert "is a model of an encoder and a decoder (t5)" in said and "headwise.EncoderDecoderCache" in said


def test_an_encoder_alone(here: Path) -> None:
    config = BertConfig(
        vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(here / "bert")
    tiny_tokenizer(here / "bert")
    said = refused(here / "bert", here)
    assert "holds a BertModel, which foretells no next token" in said and "give a causal language model" in said


def tiny_tokenizer(folder: Path) -> None:
    """The tiny model's tokenizer, in another model's folder."""
    built = tiny.build(folder / "other")
    for one in built.glob("*token*"):
        (folder / one.name).write_bytes(one.read_bytes())


def test_a_model_whose_feed_forward_layers_are_not_found(subject: ModelSubject, text: Text) -> None:
    model = subject.model
    for layer in model.model.layers:
        layer.wide = layer.mlp
        del layer.mlp
        layer.forward = None
    one = Contrast(text.ids[:, :20], text.ids[:, 20:40], 7, 9)
    with pytest.raises(UnsupportedModel, match="feed-forward layers of this model are not found"):
        along(model, one, (0, 0), (1, 0))


def test_a_text_beyond_the_trained_positions(subject: ModelSubject, folder: Path, here: Path) -> None:
    long = torch.zeros(1, 2049, dtype=torch.int64)
    with pytest.raises(ContextError, match="has 2049 tokens, the model was trained on 2048; give that many or fewer"):
        Scene(subject, Text(long, torch.zeros(2049, dtype=torch.bool)))
    (here / "long.txt").write_text("many words " * 1500, encoding="utf-8")
    said = refused(folder, here, "--prompt-file", "long.txt")
    assert "the model was trained on 2048; give that many or fewer" in said


def test_a_plan_of_another_model(folder: Path, here: Path) -> None:
    seam = attach(load_model(folder, "float32"))
    Plan.uniform(seam.geometry, "streaming(0.5)", "of another").save("other.plan")
    said = refused(folder, here, "--plan", "other.plan")
    assert "the plan was made for model of another" in said and "make a plan for this model" in said
