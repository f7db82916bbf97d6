"""What transformers asks of a Cache between forwards, answered as its own DynamicCache does or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from transformers.cache_utils import CacheLayerMixin

from headwise.errors import SessionError
from headwise.geometry import Kind


class NoAnswer(SessionError, AttributeError):
    """A headwise cache has nothing by this name. An AttributeError too, as `hasattr` is how transformers asks."""


def _refused(what: str) -> Callable[..., NoReturn]:
    """A method that refuses: `what` cannot be had of a headwise cache."""

    def refuse(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        raise SessionError(f"a headwise cache {what}")

    return refuse


class Layer(CacheLayerMixin):
    """One layer of a headwise cache as transformers looks at it. Keys and values are the session's, head by head."""

    def __init__(self, cache: Answers, window: int | None) -> None:
        self.cache, self.window = cache, window
        self.is_sliding = window is not None

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether tokens were read."""
        return self.cache.is_initialized

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether going back leaves no trace."""
        return self.cache.is_croppable

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        """No. Up to transformers 5.2 a layer is asked only before drafts are verified: the moment to refuse them."""
        self.cache.activate_past_recording()
        return False

    def get_seq_length(self) -> int:
        """Tokens passed."""
        return self.cache.get_seq_length()

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Key length and offset of a mask."""
        length = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + length, 0

    def get_max_length(self) -> int:
        """-1, no limit, as a layer that grows answers."""
        return -1

    get_max_cache_shape = get_max_length

    lazy_initialization = _refused("allocates as tokens come; leave early initialization out")
    update = _refused("is filled through cache.update, not through one layer")
    crop = reset = reorder_cache = batch_repeat_interleave = batch_select_indices = _refused(
        "changes in all layers together; call the method of the cache"
    )
    offload = prefetch = _refused("is not offloaded layer by layer; give it resident= bytes instead")

    def __getattr__(self, name: str) -> Any:
        raise NoAnswer(
            f"a layer of a headwise cache has no '{name}': keys and values lie by head, in cache.session.stores(layer)"
        )


class Answers:
    """The part of a Cache that is asked rather than run. `windows` and `kinds` by layer are all it needs to know."""

    windows: tuple[int | None, ...] = ()
    kinds: tuple[Kind, ...] = ()  # by layer; none where it is to be found out
    offloading = False
    layer_class_to_replicate = None

    @property
    def layers(self) -> list[Layer]:
        """The layers, made when asked for: they belong to the cache and do not keep it alive."""
        return [Layer(self, window) for window in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def get_seq_length(self, layer_idx: int = 0, cache_position: Any = None) -> int:
        """Tokens passed: none, where nothing is stored."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where the next query stands."""
        return self.get_seq_length()

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1, no limit of the cache's own; positions end where the model's do, which a step refuses."""
        return -1

    get_max_cache_shape = get_max_length

    @property
    def is_initialized(self) -> bool:
        """Whether tokens were read."""
        return self.get_seq_length() > 0

    @property
    def is_compileable(self) -> bool:
        """No: what a step reads differs from one to the next."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Whether going back leaves no trace."""
        return False

    @property
    def is_sliding(self) -> list[bool]:
        """By layer, whether a query sees a window of keys only."""
        return [window is not None for window in self.windows]

    @property
    def is_linear(self) -> list[bool]:
        """By layer, whether it keeps a state instead of tokens."""
        return [kind == "state" for kind in self.kinds] or [False] * len(self.windows)

    @property
    def is_dummy(self) -> list[bool]:
        """By layer, whether it keeps neither a state nor tokens."""
        return [kind == "none" for kind in self.kinds] or [False] * len(self.windows)

    def is_recording_past(self, layer_idx: int = 0) -> bool:
        """Whether more is kept than attention needs, to go back to: never."""
        return False

    def activate_past_recording(self) -> None:
        """Called where drafts are to be verified and taken back: refused at once where that cannot be exact."""
        if not self.is_croppable:
            raise SessionError(
                "drafts cannot be taken back exactly after an eviction, nor past a sliding window, nor out of a state: "
                "assisted generation and prompt lookup need a recipe that evicts nothing, such as 'int8', and a model "
                "whose layers all attend to every token"
            )

    early_initialization = _refused("allocates as tokens come; leave early initialization out")
    offload = prefetch = _refused("is not offloaded layer by layer; give it resident= bytes instead")
    update_indexer = _refused("keeps no index keys; run the model without headwise")
    to_legacy_cache = from_legacy_cache = __iter__ = __getitem__ = _refused(
        "cannot be taken apart into keys and values: they lie by head, in cache.session.stores(layer)"
    )

    def __getattr__(self, name: str) -> Any:
        raise NoAnswer(f"a headwise cache has no '{name}'; if a model asks for it, run that without headwise")
