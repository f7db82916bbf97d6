"""The fake device fails where it should."""

from __future__ import annotations

import pytest
import torch

from tests.device.fake import DEVICE, fake_cuda


def test_what_cuda_refuses_is_refused() -> None:
    here = torch.arange(3)
    with fake_cuda() as watch:
        there = here.to(DEVICE)
        assert there.is_cuda and (there + 1).tolist() == [1, 2, 3]
        assert watch.copies == {"to device": 1, "to host": 1}
        for wrong in (
            lambda: there + here,
            lambda: here[there],
            lambda: there[here],
            lambda: there[None] @ there[:, None],
            lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
        ):
            with pytest.raises(AssertionError):
                wrong()
        assert (there + torch.tensor(1)).is_cuda  # a single number of the CPU is one operand
