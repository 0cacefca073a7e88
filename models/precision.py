"""Which arithmetic a model's matrix products and convolutions run in, on which device."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 makes this device faster: GPUs, CPUs with matrix units for it (AMX), and AMD's with AVX512-BF16.

    Those multiply bfloat16 twice as fast as float32. Intel's without AMX know the same instructions, at half the speed: there
    models/winograd.py, with a quarter of the multiplications, is faster in float32. Asked of the CPU's features and not by a
    stopwatch, so that a machine computes the same numbers on every day.
    """
    return device.type != "cpu" or has_fast_cpu_bfloat16(torch.backends.cpu.get_cpu_capability(), cpu_flags())


def has_fast_cpu_bfloat16(capability: str, flags: frozenset[str]) -> bool:
    """
    Args:
        capability: what torch says of the CPU; flags help only if its kernels may use them.
        flags: as `cpu_flags` has them.
    """
    return capability == "AVX512" and ("amx_bf16" in flags or {"AuthenticAMD", "avx512_bf16"} <= flags)


@cache
def cpu_flags() -> frozenset[str]:
    """Features of the CPU and the name of its vendor, as Linux has them; none on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    of_interest = ("flags", "vendor_id")
    return frozenset(
        word
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines()
        if line.startswith(of_interest)
        for word in line.split(":")[1].split()
    )


def computing(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a model computes at `precision`: weights, norms and losses stay float32.

    "bfloat16" allows for it where it is faster; other CPUs compute in float32 (see `settled_precision`).
    """
    if settled_precision(device, precision) == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def settled_precision(device: torch.device, precision: Precision) -> Precision:
    """What a device computes in if it is allowed `precision`."""
    return precision if precision == "float32" or has_fast_bfloat16(device) else "float32"


def bfloat16_advice(device: torch.device, uses_bfloat16: bool) -> str | None:
    """What to tell people whose choice of precision is not the faster one on this device; None if it is.

    Only told, never done: features of one precision do not fit filters that were made on those of another.
    """
    if uses_bfloat16 == has_fast_bfloat16(device):
        return None
    if uses_bfloat16:
        return f"bf16 is slower than fp32 on this {device_kind(device)} CPU (no AMX, no AMD AVX512-BF16); precision: fp32 would be faster"
    return (
        f"this machine ({device_kind(device)}) is faster with precision: bf16. Choose it before filters are fitted: the features are others"
    )


def device_kind(device: torch.device) -> str:
    """What decides which kernels run, for receipts: a GPU's name, or the vector instructions that torch uses on a CPU and its vendor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "a GPU of another machine"
    vendor = sorted(cpu_flags() & {"GenuineIntel", "AuthenticAMD"})
    return " ".join([torch.backends.cpu.get_cpu_capability(), *vendor])
