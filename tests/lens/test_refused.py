"""What the lens cannot do is refused with the fix: parts that are not there, long texts, plans of another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from headwise.calibrate.subject import ModelSubject
from headwise.cli.main import app
from headwise.errors import ContextError, HeadwiseError, UnsupportedModel
from headwise.lens import Head, Scene, Text, ablated, recorded, scaled, steered
from headwise.lens.tracing import Contrast, Patch, along, traced
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model
from tests.contract.lens.hosts import build_hosts

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


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of an encoder, an encoder-decoder and an image encoder, and a picture."""
    made = tmp_path_factory.mktemp("hosts")
    build_hosts(made)
    return made


@pytest.mark.parametrize(
    ("host", "asked", "why"),
    [
        ("t5", (), "--prompt-file text.txt: 't5' is an encoder-decoder, which reads --source-file and --target-file"),
        ("t5", ("--source-file", "text.txt"), "is an encoder-decoder, which reads --source-file and --target-file; "
         "give --target-file as well"),
        ("t5", ("--target-file", "text.txt"), "give --source-file as well"),
        ("bert", ("--image", "dot.png"), "--image dot.png: 'bert' is an encoder, which reads --prompt-file; give that"),
        ("vit", (), "--prompt-file text.txt: 'vit' is an image encoder, which reads --image; give that"),
        ("vit", ("--image", "text.txt"), "text.txt is no picture that can be read"),
        ("vit", ("--image", "none.png"), "none.png is no picture that can be read"),
        ("bert", ("--prompt-file", "long.txt"), "tokens, BertModel has positions for 128; give that many or fewer"),
        ("bert", ("--prompt-file", "text.txt", "--plan", "streaming(0.3)"), "--plan is for decoders, and this is an"),
        ("bert", ("--prompt-file", "text.txt", "--heads", "decoder.0.1"), "model is STACK.LAYER.HEAD, of encoder"),
        ("bert", ("--prompt-file", "text.txt", "--heads", "2.0"), "the encoder has layers 0 to 1 of 4 heads"),
        ("tiny", ("--image", "dot.png"), "--image dot.png: 'tiny' is a decoder, which reads --prompt-file; give that"),
        ("whisper", ("--source-file", "text.txt", "--target-file", "text.txt"), "reads input_features and no text"),
        ("half", ("--source-file", "text.txt", "--target-file", "text.txt"), "of a T5Model, such as decoder.block.1"),
        ("tiny", ("--source-file", "text.txt"), "'tiny' is a decoder, which reads --prompt-file"),
    ],
)  # fmt: skip
def test_what_a_host_does_not_read(
    hosts: Path, monkeypatch: pytest.MonkeyPatch, host: str, asked: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(hosts)
    prompt = asked or ("--prompt-file", "text.txt")
    found = CliRunner().invoke(app, ["lens", host, "--out", "page.html", *prompt])
    assert found.exit_code == 2 and not list(hosts.glob("*.html"))
    assert why in " ".join(found.output.split())


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
