"""Which arithmetic a model's matrix products and convolutions run in, on which device."""

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 makes this device faster: GPUs, and CPUs with matrix units for it (AMX).

    On other CPUs it does not pay: bfloat16 has at most twice float32's arithmetic (AVX512-BF16), on some half of it, whereas
    models/winograd.py needs a quarter of the multiplications in float32. Asked of the CPU's features and not by a stopwatch, so that
    a machine computes the same numbers on every day.
    """
    if device.type != "cpu":
        return True
    return platform.machine() in ("x86_64", "AMD64") and bool(torch.cpu._is_amx_tile_supported())


def computing(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a model computes at `precision`: weights, norms and losses stay float32.

    "bfloat16" allows for it where it is faster; a CPU without matrix units computes in float32 (see `has_fast_bfloat16`).
    """
    if precision == "float32" or not has_fast_bfloat16(device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
