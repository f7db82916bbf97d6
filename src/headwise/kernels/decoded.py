"""Pages that no kernel reads in place: read out as tensors, run by run, and attended to like any others."""

from __future__ import annotations

import torch

from headwise.forms import Attended
from headwise.kernels import ops
from headwise.kernels.dispatch import BACKENDS, Backend, Kernel
from headwise.kernels.request import PagesRequest, Request


def attend_pages(request: PagesRequest) -> Attended:
    """Attention over decoded pages; lanes of equal length go together."""
    runs = request.paged.dense()
    if request.where.heads is not None and len(runs) > 1:  # its lists are not cut
        lanes = slice(0, len(request.paged.lengths))
        runs = [(lanes, torch.cat([k for _, k, _ in runs]), torch.cat([v for _, _, v in runs]))]
    parts = []
    for lanes, k, v in runs:
        part = Request(request.q[lanes], k, v, request.where, request.scoring)
        part.check()
        parts.append(ops.attend(part))
    if len(parts) == 1:
        return parts[0]
    return Attended(torch.cat([part.out for part in parts]), torch.cat([part.lse for part in parts]))


def available() -> tuple[bool, str]:
    """Always."""
    return True, "decodes what no kernel reads in place; the attention itself is another backend's"


KERNELS = {ops.attend_pages.name: Kernel(lambda request: [], attend_pages)}
BACKENDS.add(ops.READ_OUT, Backend(ops.READ_OUT, 90, available, KERNELS))
