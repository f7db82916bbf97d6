"""Kernels for GPUs, written in Triton: decoding over pages. They have run under Triton's interpreter alone so far."""

from headwise.kernels.dispatch import BACKENDS, Backend, Kernel
from headwise.kernels.triton.backend import Triton

_triton = Triton()

BACKENDS.add(
    "triton",
    Backend(
        "triton",
        12,
        _triton.available,
        {
            "attend_pages": Kernel(_triton.refuse_pages, _triton.attend_pages),
            "prepare_pages": Kernel(_triton.refuse_prepare, _triton.prepare_pages),
        },
    ),
)
