"""Which device trains, in which precision, among how many ranks."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any, Final, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from geoinfer.errors import DeviceError, UsageError

_T = TypeVar("_T")

# How the allocator of the CPU says it, and the libraries of a GPU, which have no class of their own for it.
_OUT_OF_MEMORY: Final = ("not enough memory", "can't allocate memory", "out of memory", "alloc_failed")
_PRECISIONS: Final = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(device: str, precision: str) -> Fabric:
    """Lightning Fabric for this process: alone, or one of those that `torchrun` started.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `fp32`, `bf16` or `fp16`; the latter two are autocast, weights stay float32.

    Raises:
        UsageError: no such device name, a GPU's number beside `torchrun`, or fp16 without a GPU.
        DeviceError: the GPU asked for is not there.
    """
    kind, number = _parse(device)
    if kind == "cpu" and precision == "fp16":
        raise UsageError("fp16 needs a GPU", hint="--set run.precision=bf16, or fp32")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks > 1 else 1
    if ranks > 1 and number is not None:
        raise UsageError(f"--device {device}: torchrun gives each process its own GPU", hint="say --device cuda")
    for name in ("lightning_fabric", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it announces what we say ourselves
    devices: Any = [number] if number is not None else local
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises a GPU where the CPU was asked for
        fabric = Fabric(
            accelerator="cuda" if kind == "cuda" else "cpu",
            devices=devices,
            num_nodes=ranks // local,
            # Buffers are the same on every rank: pixel statistics, and those of frozen batch norms.
            strategy=DDPStrategy(broadcast_buffers=False) if ranks > 1 else "auto",
            precision=_PRECISIONS[precision],
        )
        fabric.launch()
    return fabric


def describe(fabric: Fabric, asked: str) -> str:
    """Which device, and why."""
    name = "CPU"
    if fabric.device.type == "cuda":
        name = torch.cuda.get_device_name(fabric.device)
    many = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    if asked != "auto":
        return f"{name}{many} (as asked)"
    return f"{name}{many} ({'a GPU is there' if name != 'CPU' else 'torch sees no GPU'})"


def gathered(fabric: Fabric, tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor of every rank, in rank order, without gradient; of one shape on all."""
    if fabric.world_size == 1:
        return [tensor]
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, tensor)
    return parts


def any_rank(fabric: Fabric, flag: bool) -> bool:
    """Whether it is so on any rank; all of them must ask."""
    if fabric.world_size == 1:
        return flag
    mark = torch.tensor(float(flag), device=fabric.device)
    torch.distributed.all_reduce(mark)
    return bool(mark > 0)


def from_all_ranks(fabric: Fabric, values: tuple[_T, ...]) -> tuple[_T, ...]:
    """The values of every rank, in rank order."""
    if fabric.world_size == 1:
        return values
    gathered: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(gathered, values)
    return tuple(value for part in gathered for value in part)


def used_memory_mib(device: torch.device) -> float:
    """The most that was in use: of the GPU by torch, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch's means that memory did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def _parse(device: str) -> tuple[str, int | None]:
    kind, colon, number = device.partition(":")
    if kind == "auto" and not colon:
        return ("cuda" if torch.cuda.is_available() else "cpu"), None
    if kind == "cpu" and not colon:
        return "cpu", None
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise UsageError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        raise DeviceError(f"--device {device}: torch sees no GPU", hint="--device cpu trains on the CPU")
    if colon and int(number) >= there:
        raise DeviceError(f"--device {device}: there are {there} GPUs, counted from 0")
    return "cuda", int(number) if colon else None
