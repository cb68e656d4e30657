"""`geoinfer index info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def info(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Check the checksums of large files too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in an index, and whether it is whole.

    \b
    Example:
      geoinfer index info my-index
    """
    from geoinfer.answer import DEFAULT_ANSWER
    from geoinfer.calibration import calibrate, leave_one_out_errors_km
    from geoinfer.cli.console import answer, checksums, kilometres
    from geoinfer.index import open_index, read_index_manifest

    manifest = read_index_manifest(folder, verify=verify)
    stored = open_index(folder)
    coordinates = stored.references.coordinates
    way = manifest.answer or DEFAULT_ANSWER
    errors = leave_one_out_errors_km(stored.leave_one_out, coordinates, way.aggregate, way.k)
    calibrated = calibrate(stored.leave_one_out, coordinates, way.aggregate, way.k).usable
    errors.sort()
    extent = [*coordinates.min(axis=0).tolist(), *coordinates.max(axis=0).tolist()]
    if as_json:
        values = {
            "kind": manifest.kind,
            "size": manifest.size,
            "embedder": manifest.embedder.as_dict(),
            "geocells_level_6": manifest.geocells,
            "calibrated": calibrated,
            "calibrated_on": len(errors),
            "calibrated_by": "references" if stored.leave_one_out.places is None else "labelled photos",
            "answer": way.as_dict(),
            "logit_scale": manifest.logit_scale,
            "median_error_km": round(float(errors[len(errors) // 2]), 3) if len(errors) else None,
            "extent": extent,
            "files": manifest.files,
        }
        answer(json.dumps(values, indent=2, ensure_ascii=False))
        return
    total = sum(file["bytes"] for file in manifest.files.values())
    answer(f"{folder}: a {manifest.kind} index of {manifest.size} references, {total / 1e6:.1f} MB")
    answer(f"  made by:    {manifest.embedder}")
    answer(
        f"  coverage:   {manifest.geocells} geocells (S2 level 6), latitude {extent[0]:.2f} to {extent[2]:.2f}, "
        f"longitude {extent[1]:.2f} to {extent[3]:.2f}"
    )
    if manifest.answer is not None:
        answer(f"  answers by: --aggregate {way.aggregate} --k {way.k}, unless told otherwise")
    if manifest.logit_scale is not None:
        answer(f"  candidates: with probabilities, the softmax of {manifest.logit_scale:.6g} times the similarity")
    among = "references, each located by the others" if stored.leave_one_out.places is None else "labelled photos"
    if calibrated:
        half, most = errors[len(errors) // 2], errors[int(len(errors) * 0.9)]
        answer(f"  calibrated: on {len(errors)} {among}: half within {kilometres(half)}, 90% within {kilometres(most)}")
    elif manifest.calibrated_on == 0:
        answer("  calibrated: no; give labelled photos when it is made")
    elif stored.leave_one_out.places is not None:
        answer(f"  calibrated: no, {len(errors)} labelled photos are too few")
    else:
        answer(f"  calibrated: no, {len(errors)} references that others can locate are too few")
    answer(f"  checksums:  {checksums(manifest.files, verified=verify)}")
