"""Kernels for CPUs, compiled from C++ (native/ in the repository) and called through plain pointers."""

from headwise.kernels.dispatch import BACKENDS, Backend, Kernel
from headwise.kernels.native import append, best, codecs, linear, masses, topk
from headwise.kernels.native.backend import Native

_native = Native()

BACKENDS.add(
    "native",
    Backend(
        "native",
        10,
        _native.available,
        {
            "attend": Kernel(_native.refuse, _native.attend),
            "attend_pages": Kernel(_native.refuse_pages, _native.attend_pages),
            "prepare_pages": Kernel(_native.refuse_prepare, _native.prepare_pages),
            "column_mass": Kernel(masses.refuse_column_mass, masses.column_mass),
            "column_peaks": Kernel(masses.refuse_scores, masses.column_peaks),
            "group_mass": Kernel(masses.refuse_group_mass, masses.group_mass),
            "row_lse": Kernel(masses.refuse_scores, masses.row_lse),
            "row_entropy": Kernel(masses.refuse_scores, masses.row_entropy),
            "block_maxima": Kernel(masses.refuse_block_maxima, masses.block_maxima),
            "estimated_maxima": Kernel(masses.refuse_estimated_maxima, masses.estimated_maxima),
            "best_scores": Kernel(best.refuse, best.best_scores),
            "choose_blocks": Kernel(topk.refuse, topk.topk),
            "prepare_append": Kernel(append.refuse, append.Append),
            "encode": Kernel(codecs.refuse_encode, codecs.encode),
            "decode": Kernel(codecs.refuse_decode, codecs.decode),
            "linear": Kernel(linear.refuse, linear.linear),
        },
    ),
)
