"""One training run in several processes, one per GPU, started by `torchrun` or by `UNPOISON_PROCESSES`.

Every process draws the same order and augmentation for the whole batch and takes its share; gradients are summed, so the
step is that of one process. Batch norm sees the share alone, as is usual in data-parallel training. It needs two samples
to average over, so an epoch's last batch joins the one before where it has fewer than two per process.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among those that train together: number `rank`, from 0, of `size`."""

    rank: int = 0
    size: int = 1

    def share(self, batch: Tensor) -> Tensor:
        """This process's samples of a batch: every `size`-th, so shares differ by one sample at most."""
        return batch[self.rank :: self.size]

    def sum(self, values: Tensor) -> None:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)

    def total(self, count: int, device: torch.device) -> int:
        """The sum of a number over all processes; a GPU is waited for only where there are several."""
        if self.size == 1:
            return count
        summed = torch.tensor(count, device=device)
        self.sum(summed)
        return int(summed)

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, as one message."""
        if self.size > 1:
            self._sum_together([parameter.grad for parameter in parameters if parameter.grad is not None])

    @torch.no_grad()
    def average_buffers(self, model: nn.Module) -> None:
        """Average batch norm's running statistics over the processes, in place."""
        if self.size > 1:
            # Floating-point buffers only: batch norm's count of batches is the same everywhere, and an integer.
            buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
            self._sum_together(buffers)
            for buffer in buffers:
                buffer /= self.size

    def _sum_together(self, tensors: list[Tensor]) -> None:
        if not tensors:
            return
        # Hundreds of small messages cost their latency each; one flat message costs it once.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.sum(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view(tensor.shape))


def started() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def world() -> World:
    """This process's place among the others. The first call joins the group, over NCCL for GPUs and gloo for CPUs."""
    if not started():
        return World()
    if not dist.is_initialized():
        # The rule by which `compute.device.pick_device` chooses.
        on_gpu = torch.cuda.is_available() and os.environ.get("UNPOISON_DEVICE", "cuda").startswith("cuda")
        dist.init_process_group("nccl" if on_gpu else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size())
