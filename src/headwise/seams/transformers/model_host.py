"""A transformers model as a host that is looked at: encoders, encoder-decoders and image encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from headwise.errors import HeadwiseError, UnsupportedModel
from headwise.observe.host import (
    BOTH,
    ENCODER,
    IMAGE,
    IMAGES,
    READ,
    SOURCE,
    TARGET,
    TEXT,
    Host,
    HostAttention,
    See,
    Stack,
)
from headwise.seams.transformers.fingerprint import fingerprint
from headwise.seams.transformers.load import WRITERS, load_any_config, load_whole
from headwise.seams.transformers.seen import Called, looked_into

READ_FIRST, READ_SECOND = 7, 5  # tokens of the forward by which layers are found: another number of each input
ZERO, ONE = [0.0] * 3, [1.0] * 3
LAST = "last_hidden_state"


def kind_of(config: Any) -> str | None:
    """Which kind of host a model with this config is, None for a decoder that foretells a next token. Raises
    HeadwiseError for a model of several towers, of which it is not known what it reads."""
    if config.is_encoder_decoder:
        return BOTH
    named = config.architectures or []
    if any(one.endswith(WRITERS) for one in named):
        return None
    own = MODEL_MAPPING.get(type(config), None)
    read = getattr(own, "main_input_name", "")
    if read == "pixel_values":
        return IMAGES
    decodes = getattr(config, "is_decoder", None) is not False and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return None if decodes or read != "input_ids" or not named else ENCODER


def kind_at(name: str | Path) -> str | None:
    """The same of the model at a path or hub id, by its config.json alone, refused where files do not hold what it
    reads: sound."""
    config = load_any_config(name)
    kind, read = kind_of(config), getattr(MODEL_MAPPING.get(type(config), None), "main_input_name", "input_ids")
    if kind == BOTH and read != "input_ids":
        raise HeadwiseError(
            f"'{name}' reads {read} and no text; look into it from Python: headwise.lens.read_sound(host, features, "
            "target)"
        )
    return kind


def load_host(name: str | Path, dtype: str = "auto", device: str = "cpu") -> ModelHost:
    """The host at a path or hub id, ready to be looked at."""
    return ModelHost(load_whole(name, dtype, device))


def read_image(name: str | Path, picture: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture in colours as the model at a path or hub id takes it, [1, 3, height, width], and the same as people see
    it, bytes [height, width, 3]: resized and cut as the model's own processor does."""
    try:
        own = AutoImageProcessor.from_pretrained(str(name))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise HeadwiseError(
            f"'{name}' holds no image processor that can be read ({str(error).splitlines()[0][:160]}); put the "
            "model's preprocessor_config.json beside its weights"
        ) from None
    pixels: torch.Tensor = own(picture, return_tensors="pt")["pixel_values"]
    seen = pixels[0].movedim(0, -1)
    if getattr(own, "do_normalize", True):
        seen = seen * torch.tensor(own.image_std or ONE) + torch.tensor(own.image_mean or ZERO)
    return pixels, (seen * 255).round().clamp(0, 255).to(torch.uint8)


class ModelHost(Host):
    """Looks into `model`, on which nothing is left behind.

    Which layers there are is found by one small forward: those inside of the encoder are its own; of a decoder's, those
    whose keys are as many as the source's tokens read the encoder.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.name, self.device = model.eval(), type(model).__name__, model.device
        config = model.config
        kind = BOTH if config.is_encoder_decoder else IMAGES if model.main_input_name == "pixel_values" else ENCODER
        self.kind, self.fingerprint = kind, fingerprint(config.to_dict(), model.named_parameters())
        self.vocabulary = 0 if kind == IMAGES else _vocabulary(model)
        self.positions = dict.fromkeys(READ[kind], _positions(model))
        if model.main_input_name not in ("input_ids", "pixel_values"):
            self.positions = {SOURCE: None, TARGET: getattr(config, "max_target_positions", None)}
        self.start: int = getattr(config, "decoder_start_token_id", None) or 0  # before what a decoder writes
        self._layers: list[tuple[Stack, int]] = []  # of the calls of attention in a forward, in their order
        self.stacks = self._found(self._probed())

    def look(self, inputs: Mapping[str, torch.Tensor], see: See) -> torch.Tensor:
        wanted = READ[self.kind]
        if missing := [one for one in wanted if one not in inputs]:
            raise HeadwiseError(f"{self.name} reads {' and '.join(wanted)}, {missing[0]} was not given; give it")

        layers = iter(self._layers)

        def listen(one: Called) -> None:
            see(HostAttention(*next(layers), one.q, one.k, one.scale, one.first, one.last, one.bias))

        return self._read(inputs, listen)

    def grid(self, image: torch.Tensor) -> tuple[int, int]:
        config = self.model.config
        size = getattr(config, "patch_size", None)
        if size is None:
            raise UnsupportedModel(f"{self.name} does not cut pictures into patches; give a ViT")
        high, wide = (size, size) if isinstance(size, int) else size
        return image.shape[2] // high, image.shape[3] // wide

    @torch.no_grad()
    def _read(self, inputs: Mapping[str, torch.Tensor], listen: Callable[[Called], None]) -> torch.Tensor:
        """The model's final states of inputs by name, as `listen` is told of each attention."""
        own = self.model.main_input_name
        names = {TEXT: own, IMAGE: own, SOURCE: own, TARGET: "decoder_input_ids"}
        given = {names[one]: value.to(self.device) for one, value in inputs.items()}
        if self.kind == BOTH:
            given["use_cache"] = False  # type: ignore[assignment]
        with looked_into(self.model, listen):
            out = self.model(**{n: x.to(self.model.dtype) if _floats(x) else x for n, x in given.items()})
        states: torch.Tensor = getattr(out, LAST) if hasattr(out, LAST) else out[0]
        return states

    def _probed(self) -> list[Called]:
        """The calls of attention of one small forward, in their order."""
        calls: list[Called] = []
        try:
            self._read(self._small(), calls.append)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UnsupportedModel(
                f"{self.name} does not run on {' and '.join(READ[self.kind])} alone ({type(error).__name__}: "
                f"{str(error)[:160]}); give an encoder, an encoder-decoder or an image encoder"
            ) from error
        if not calls:
            raise UnsupportedModel(
                f"no layer of {self.name} attends through transformers' AttentionInterface, so that nothing is seen "
                "of it; give another model, such as a BERT, T5 or ViT"
            )
        return calls

    def _small(self) -> dict[str, torch.Tensor]:
        """Small inputs of this kind of host, each of another number of tokens."""
        config = self.model.config
        first = (torch.arange(READ_FIRST) % max(1, self.vocabulary))[None]
        if self.kind == ENCODER:
            return {TEXT: first}
        if self.kind == IMAGES:
            size = getattr(config, "image_size", 224)
            high, wide = (size, size) if isinstance(size, int) else size
            return {IMAGE: torch.zeros(1, getattr(config, "num_channels", 3), high, wide)}
        if self.model.main_input_name == "input_features":
            first = torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
        return {SOURCE: first, TARGET: (torch.arange(READ_SECOND) % self.vocabulary)[None]}

    def _found(self, calls: list[Called]) -> tuple[Stack, ...]:
        """The stacks that these calls are of, the encoder's first; and what is known of each module from then on."""
        inside = set(self.model.get_encoder().modules()) if self.kind == BOTH else {one.module for one in calls}
        names = [
            "encoder" if one.module in inside else "decoder" if one.q.shape[1] == one.k.shape[1] else "cross"
            for one in calls
        ]
        source, stacks = READ[self.kind][0], {}
        for name in dict.fromkeys(("encoder", "decoder", *names)):
            if own := [one for one, own in zip(calls, names, strict=True) if own == name]:
                sides = (source if name == "encoder" else TARGET, TARGET if name == "decoder" else source)
                heads = tuple(len(one.q) for one in own)
                stacks[name] = Stack(name, *sides, name == "decoder", heads)
        self._layers = [(stacks[name], names[:at].count(name)) for at, name in enumerate(names)]
        return tuple(stacks.values())


def _floats(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _vocabulary(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    return len(weight) if isinstance(weight, torch.Tensor) else 0


def _positions(model: PreTrainedModel) -> int | None:
    """The most tokens that a text may have: of embedded positions, those before which padding is not counted."""
    most: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding) and name.endswith("position_embeddings"):
            most = part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    return most
