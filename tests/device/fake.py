"""A device called "cuda" that computes on the CPU and refuses what a real one would; numbers are true.

A `Fake` holds a CPU tensor and says that it lies on cuda:0; below Python it is one of "meta", which every build of
torch knows. Within `fake_cuda()` every operation of torch's passes by `Watch`, which fails where a tensor of the CPU
meets one of the device, where a generator of the one draws for the other, and where CUDA has no such product; and which
counts what is copied between the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
COPIES = (_aten._to_copy.default, _aten.copy_.default)  # the ways between devices that are written out
PRODUCTS = {_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default, _aten.mv.default}
# Where CUDA takes a single number from the CPU: as one of its operands, not as what it indexes, sorts or multiplies.
NOT_ELEMENTWISE = {_aten.index.Tensor, _aten.index_select.default, _aten.gather.default, _aten.cat.default, *PRODUCTS}


def _flash(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, **how: Any) -> Any:
    """What CUDA's flash kernel gives, and its refusal of float32."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(f"Expected query to have dtype Half or BFloat16, got {q.dtype}")
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, causal, **how)
    none = q.new_empty(0)
    return out, lse, none, none, q.shape[2], k.shape[2], none, none, none


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, bias: Any, lse: bool, dropout: float = 0.0, causal: bool = False, **how: Any
) -> Any:
    """What CUDA's memory-efficient kernel gives: its log-sum-exp is as long as a multiple of 32 queries."""
    out, found = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, causal, **how)
    return out, torch.nn.functional.pad(found, (0, -found.shape[2] % 32)), q.new_empty(0), q.new_empty(0)


# Kernels that only CUDA has, by what is the same on a CPU.
STAND_INS = {
    _aten._scaled_dot_product_flash_attention.default: _flash,
    _aten._scaled_dot_product_efficient_attention.default: _efficient,
}


class Fake(Tensor):
    """A CPU tensor, `held`, that says it lies on cuda:0."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Fake:
        self = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("meta"),
            requires_grad=held.requires_grad,
        )
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of the fake device, outside of fake_cuda()")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it lies."""
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Always."""
        return True

    def tolist(self) -> Any:
        """Of a copy on the CPU."""
        return self.cpu().tolist()

    def as_subclass(self, cls: type[Tensor]) -> Tensor:  # type: ignore[override]
        """Of both classes."""
        if cls is Tensor:
            return Fake(self.held)
        return Fake.__new__(type(cls.__name__, (cls, Fake), {}), self.held)

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Made on the device."""
        return torch.tensor(data, **({"dtype": self.dtype, "device": DEVICE} | kwargs))

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as CUDA does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def data_ptr(self) -> int:
        """Refused: a kernel for CPUs must not be handed this."""
        raise AssertionError("the address of a tensor on the device was asked for")

    def __repr__(self) -> str:  # type: ignore[override]  # of the tensor inside
        return f"Fake({self.held!r})"


class Watch(TorchDispatchMode):
    """Computes for the fake device. copies: how often bytes went "to host" and "to device"."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        fakes = [one for one in tensors if isinstance(one, Fake)]
        wanted = kwargs.get("device")
        there = bool(fakes) if wanted is None else torch.device(wanted).type in ("cuda", "meta")
        self._refuse(func, args, kwargs, tensors, there)
        if func is _aten._local_scalar_dense.default and fakes:
            self.copies["to host"] += 1
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        if func is _aten._to_copy.default:
            kwargs.pop("non_blocking", None)
        known = {id(one.held): one for one in fakes}
        with _disable_current_modes():
            own_args, own_kwargs = tree_map_only(Fake, lambda one: one.held, (args, kwargs))
            out = STAND_INS.get(func, func)(*own_args, **own_kwargs)
        if not there:
            return out
        return tree_map_only(Tensor, lambda one: known[id(one)] if id(one) in known else Fake(one), out)

    def _refuse(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], there: bool) -> None:
        """AssertionError where CUDA would fail, or copy without being told."""
        generator = kwargs.get("generator")
        if generator is not None and (generator.device.type == "cuda") != there:
            raise AssertionError(f"{func}: a generator of {generator.device.type} draws on another device")
        here = [one for one in tensors if not isinstance(one, Fake)]
        if func in COPIES:
            source = args[0] if func is COPIES[0] else args[1]
            if there and not isinstance(source, Fake) and (source.dim() or func is COPIES[0]):
                self.copies["to device"] += 1
            elif not there and isinstance(source, Fake):
                self.copies["to host"] += 1
            return
        if len(here) < len(tensors):
            strict = func in NOT_ELEMENTWISE
            if met := [list(one.shape) for one in here if one.dim() or strict]:
                raise AssertionError(f"{func}: tensors of the CPU {met} meet some of the device")
        if there and func in PRODUCTS and not tensors[0].is_floating_point() and not tensors[0].is_complex():
            raise AssertionError(f"{func}: CUDA has no product of {tensors[0].dtype}")


@contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Inside, there is a device "cuda". Outside, its tensors are no good."""
    watch = Watch()
    # the mode below computes nothing: while it is there torch does not try to start CUDA
    with FakeTensorMode(), watch:
        yield watch
