"""Run by test_training.py: gradients of two processes against those of one with the whole batch. Prints relative distances as JSON."""

import json
import os
import socket
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from models.batch_loss import gather_rows, show_losses
from models.catalog import MODELS
from models.objectives import contrastive_loss
from models.timestep_sampling import LossSecondMoment

NAMES = ("tiny-base", "tiny-noised-clip")


def loss_of(model: torch.nn.Module, name: str, rows: slice, gather: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 32, 32, generator=generator)[rows]
    t = torch.randint(1000, (8,), generator=generator)[rows]
    tokens = torch.randint(1, 4000, (8, 24), generator=generator)[rows]
    lengths = torch.randint(1, 24, (8,), generator=generator)[rows]
    if name == "tiny-noised-clip":
        z_image, z_text = model(x, t, tokens, lengths)
        return contrastive_loss(gather(z_image), gather(z_text))
    target = torch.randn(8, 6, 32, 32, generator=generator)[rows]
    return ((model(x, t, tokens, torch.arange(24)[None] < lengths[:, None]) - target) ** 2).mean()


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[name].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model


def work(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    differences = {}
    for name in NAMES:
        shared = make(name)
        wrapped = DistributedDataParallel(shared)  # must live until backward: it is what shares the gradients
        loss_of(wrapped, name, slice(4 * rank, 4 * rank + 4), gather_rows).backward()
        if rank == 0:
            alone = make(name)
            loss_of(alone, name, slice(None), lambda rows: rows).backward()
            one, other = (torch.cat([parameter.grad.flatten() for parameter in model.parameters()]) for model in (shared, alone))
            differences[name] = float((one - other).norm() / other.norm())
    # Both remember what one worker with both halves of the batch would.
    t, losses = torch.randint(5, (2, 64), generator=torch.Generator().manual_seed(1)), torch.rand(2, 64)
    mine, alone = LossSecondMoment(5), LossSecondMoment(5)
    dist.broadcast(losses, src=0)
    show_losses(mine, t[rank], losses[rank])
    alone.see(t.flatten(), losses.flatten().double())
    furthest = torch.tensor((mine.losses - alone.losses).abs().max())
    dist.all_reduce(furthest, dist.ReduceOp.MAX)
    differences["timesteps"] = furthest.item()
    if rank == 0:
        print(json.dumps(differences), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    mp.spawn(work, args=(free,), nprocs=2)
