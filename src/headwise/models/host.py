"""The decoder host: a causal language model whose attention layers are sentences, as a transformers model of its own.

    config = HostConfig(layers="3*kda, mla(rank=64)", num_hidden_layers=8)
    model = HeadwiseForCausalLM(config)

`generate`, `save_pretrained` and `from_pretrained` are transformers' own, and once this module is imported the Auto
classes know its folders too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, Cache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from headwise.errors import RecipeError, SessionError, ShapeError, UnsupportedModel
from headwise.layer_parts import parse_feed
from headwise.layers.base import PADDING, Dims, State
from headwise.layers.layer import AttentionLayer, LayerState
from headwise.layers.norms import RmsNorm
from headwise.layers.projections import linear
from headwise.layers.sentence import LayerSentence, parse_pattern
from headwise.seams.transformers.door import Door
from headwise.seams.transformers.forward import generation_argument
from headwise.seams.transformers.host_layers import Reading, begin
from headwise.seams.transformers.layer_states import LayerStates
from headwise.shapes import Rope

IGNORED = -100  # label of a token that is not scored


class HostConfig(PretrainedConfig):
    """The sizes of a host, its layers as a pattern of sentences that is repeated, and what follows attention in each.

    A pattern that this version cannot read, or of another number of layers, is refused when the config is made.
    """

    model_type = "headwise_host"

    def __init__(
        self,
        layers: str = "heads | rope",
        vocab_size: int = 256,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        intermediate_size: int = 128,
        feed: str = "gated_feed",
        initializer_range: float = 0.02,
        **other: Any,
    ) -> None:
        self.layers = layers
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.feed = feed
        self.initializer_range = initializer_range
        parse_feed(feed)
        parse_pattern(layers, num_hidden_layers)
        if hidden_size % num_attention_heads:
            raise RecipeError(
                f"a width of {hidden_size} channels is no multiple of {num_attention_heads} heads; change one of them"
            )
        super().__init__(**{"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None} | other)

    @property
    def sentences(self) -> tuple[LayerSentence, ...]:
        """The sentence of each layer."""
        return parse_pattern(self.layers, self.num_hidden_layers)

    def dims(self, layer: int) -> Dims:
        """The sizes of a layer."""
        heads = self.num_attention_heads
        return Dims(self.hidden_size, heads, self.hidden_size // heads, layer, self.num_hidden_layers)

    def state_bytes(self, tokens: int, element: int) -> int:
        """Bytes of a cache after `tokens` tokens of one sequence, at `element` bytes an element."""
        found = enumerate(self.sentences)
        feed = self.num_hidden_layers * parse_feed(self.feed).state_bytes(self.hidden_size, tokens, element)
        return feed + sum(sentence.state_bytes(self.dims(layer), tokens, element) for layer, sentence in found)


class DecoderLayer(nn.Module):
    """An attention layer and what follows it, each after a norm and added to what came in."""

    def __init__(self, config: HostConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(config.hidden_size)
        self.attention = AttentionLayer(config.sentences[layer], config.dims(layer))
        self.mlp_norm = RmsNorm(config.hidden_size)
        self.feed = parse_feed(config.feed).build(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Tensor, state: LayerState | None, segments: Tensor, positions: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """`x [batch, tokens, width]` -> the same shape, and the state after it."""
        read, after = self.attention(self.attention_norm(x), state, segments, positions)
        out, feed = self.fed(x + read, segments, None if state is None else state.feed)
        return out, replace(after, feed=feed)

    def fed(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """`x`, with what attention read, and what the feed-forward layer makes of it added; and that one's state."""
        more, after = self.feed(self.mlp_norm(x), segments, state)
        return x + more, after


class HeadwiseForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder whose attention layers are those of its config's sentences."""

    config_class = HostConfig
    base_model_prefix = "host"
    _no_split_modules = ["DecoderLayer"]
    _is_stateful = True  # a running state cannot go back to an earlier token

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Normal matrices; what parts make of themselves (decays, convolutions) stays."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                nn.init.zeros_(bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **other: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next tokens, as transformers' decoders give them.

        cache: the host's own, or a headwise.Cache, whose plan its softmax layers follow. attention_mask [batch, tokens
        so far] with 0 at padding. labels: as input_ids, or -100 where a token is not scored. logits_to_keep: the last
        so many, or places. other: segments [batch, tokens], packed texts, each with a number of its own, which do not
        see one another; past_key_values, the cache by the name that older versions of transformers give it.
        """
        if input_ids is None:
            raise ShapeError("a host was given no input_ids; it takes no inputs_embeds in their place")
        x = self.embed(input_ids)
        own = _segments(x, attention_mask, other.get("segments"))
        given = other.get("past_key_values", cache)
        if isinstance(given, Door):
            if other.get("segments") is not None:
                raise SessionError("packed texts have no place in a headwise cache; give each a row of its own")
            x = self._over(begin(given, own, attention_mask, position_ids), x)
            after: Cache = given
        else:
            after = states = _states(given, len(self.layers), bool(use_cache))
            for layer, held in zip(self.layers, states.layers, strict=True):
                x, held.state = layer(x, held.state, own, position_ids)
        places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.norm(x[:, places]))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        kept: dict[str, Any] = {generation_argument(): after} if use_cache else {}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **kept)

    def _over(self, reading: Reading, x: Tensor) -> Tensor:
        """The hidden states of new tokens `x [batch, tokens, width]` over a headwise cache."""
        for index, layer in enumerate(self._decoders):
            read = reading.layer(index, layer.attention, layer.attention_norm(x))
            x, state = layer.fed(x + read, reading.segments, None)
            if state is not None:
                raise UnsupportedModel(
                    f"what follows attention in layer {index} of the host, '{self.config.feed}', keeps a state of its "
                    "own, which a headwise cache has no place for; leave the cache out"
                )
        return x

    @property
    def _decoders(self) -> list[DecoderLayer]:
        """The layers, as what they are."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def rotations(self) -> tuple[Rope | None, ...]:
        """How each layer turns the keys that it stores."""
        return tuple(layer.attention.rotation for layer in self._decoders)

    def exact_numbers(self) -> tuple[int, ...]:
        """By layer, numbers of a row's state that are held in float32 whatever the model's type."""
        return tuple(layer.attention.exact_numbers for layer in self._decoders)

    def own_cache(self) -> LayerStates:
        """An empty cache of the kind that a forward makes where it is given none."""
        return LayerStates(len(self.layers))

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *told: Any
    ) -> None:
        """Give `generate` the one cache that holds all kinds of states."""
        if generation_config.use_cache is not False and model_kwargs.get(generation_argument()) is None:
            model_kwargs[generation_argument()] = self.own_cache()


def _states(given: Any, layers: int, keep: bool) -> LayerStates:
    """The cache that a forward writes into: the one that is given, or a new one."""
    if given is None:
        return LayerStates(layers)
    if not isinstance(given, LayerStates):
        raise SessionError(
            f"a host was given a {type(given).__name__}, which has no place for running states; leave the cache out, "
            "or give headwise.Cache(model, recipe), or its own_cache()"
        )
    return given if keep else given.fork()


def _segments(x: Tensor, mask: Tensor | None, segments: Tensor | None) -> Tensor:
    """The segments [batch, tokens] of the new tokens: those given, and padding where a mask has 0."""
    found = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device) if segments is None else segments
    return found if mask is None else found.masked_fill(mask[:, -x.shape[1] :] == 0, PADDING)


AutoConfig.register(HostConfig.model_type, HostConfig, exist_ok=True)
AutoModelForCausalLM.register(HostConfig, HeadwiseForCausalLM, exist_ok=True)
