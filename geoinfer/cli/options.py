"""Options that several commands share, declared once, and their defaults worked out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geoinfer.errors import UsageError

if TYPE_CHECKING:
    from geoinfer.images import Preprocessing

Engine = Annotated[
    Path | None,
    typer.Option("--engine", "-e", help="Bundle folder or .onnx model.", show_default="the shipped demonstration"),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N.", metavar="DEVICE")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Photos that the model sees at once.", show_default="1 on a CPU, 64 on a GPU"),
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="CPU threads.", show_default="all cores this process may use")
]
Pixels = Annotated[
    str | None,
    typer.Option(
        "--preprocessing",
        help="For a model without metadata: size=224,resize=crop|squash,interpolation=bicubic,mean=imagenet,"
        "std=0.5/0.5/0.5.",
    ),
]
MaxErrors = Annotated[
    str, typer.Option("--max-errors", help="Exit with 1 if more inputs fail than this.", metavar="N|P%")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def available_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def checked_workers(workers: int | None) -> int:
    """`--workers` or its default.

    Raises:
        UsageError: below 1 or above 1024.
    """
    if workers is not None and not 1 <= workers <= 1024:
        raise UsageError(f"--workers {workers}: expected 1 to 1024")
    return workers or available_cores()


def checked_batch_size(batch_size: int | None, device: str) -> int:
    """`--batch-size` or its default for the device.

    Raises:
        UsageError: below 1 or above 4096.
    """
    from geoinfer.batch.predict import CPU_BATCH, GPU_BATCH

    if batch_size is not None and not 1 <= batch_size <= 4096:
        raise UsageError(f"--batch-size {batch_size}: expected 1 to 4096")
    return batch_size or (CPU_BATCH if device == "cpu" else GPU_BATCH)


def parsed_preprocessing(text: str | None) -> Preprocessing | None:
    """`--preprocessing`, None when it is left out.

    Raises:
        UsageError: it makes no sense.
    """
    from geoinfer.images import Preprocessing

    return None if text is None else Preprocessing.parse(text)
