"""Options that the commands which write an ONNX model share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from geoinfer.engines.build_options import LARGEST_BATCH

Out = Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.", show_default=False)]
Precision = Annotated[
    Literal["fp32", "fp16", "int8"],
    typer.Option("--precision", help="fp16 is for GPUs; int8 needs photos to calibrate on."),
]
Photos = Annotated[
    Path | None,
    typer.Option("--photos", help="Photos that the parity gate compares on.", show_default="examples/photos"),
]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="Photos that int8 takes its ranges from.", show_default=False),
]
Int8Target = Annotated[
    Literal["any", "cpu"],
    typer.Option("--int8-target", help="any device, or a form that ONNX Runtime is faster with on a CPU."),
]
MinCosine = Annotated[
    float | None,
    typer.Option("--min-cosine", help="Limit of the gate.", show_default="fp32 0.99999, fp16 0.999, int8 0.98"),
]
MaxBatch = Annotated[
    int, typer.Option("--max-batch", min=1, max=LARGEST_BATCH, help="Largest batch that the gate runs.")
]
Explain = Annotated[bool, typer.Option("--explain", help="If the gate fails, name the first layer that departs.")]
