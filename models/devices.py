"""From the CPU to a GPU without waiting for it."""

import torch
from torch import Tensor


def onto(x: Tensor, device: torch.device | str) -> Tensor:
    """x on a device; a GPU is not waited for.

    A plain `.to` returns when the GPU has done all that it was given, which then stands idle while the CPU thinks of the next step.
    From page-locked memory the copy takes its turn like any other work.
    """
    device = torch.device(device)
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
