"""`geoinfer index reliability`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geoinfer.cli import options
from geoinfer.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.reliability import Reliability, RiskCoverage


def reliability(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and pictures.", show_default=False)],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Photos whose place is known and that are not in the index: a CSV, or a folder with GPS in the EXIF.",
            show_default="the index's own calibration photos, cross-fitted",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Folder that the CSV's paths are relative to.", show_default="the CSV's own"),
    ] = None,
    engine: options.Engine = None,
    split_by: Annotated[
        str,
        typer.Option(
            "--split-by",
            help="What is never split between learning and testing: source, sequence, geocell, or auto: sequences, and "
            "geocells where no sequence is known.",
        ),
    ] = "auto",
    k: options.K = None,
    aggregate: options.Aggregate = None,
    temperature: options.Temperature = None,
    bandwidth_km: options.BandwidthKm = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Test radius_km and score on photos that the calibration never saw.

    \b
    Examples:
      geoinfer index reliability my-index --out report
      geoinfer index reliability my-index --labels val.csv --images ./val --out report

    Without --labels each of the photos that the index was calibrated on is tested on what the others teach, those of
    its own sequence, source or geocell left out. With them, the calibration is tested as it is.
    """
    from geoinfer.cli.console import answer
    from geoinfer.reliability import SPLITS
    from geoinfer.reliability.report import check_report_folder, write_report

    if split_by not in ("auto", *SPLITS):
        raise UsageError(f"--split-by {split_by}: expected one of auto, {', '.join(SPLITS)}")
    if labels is None and (images is not None or engine is not None):
        raise UsageError("--images and --engine are for --labels", hint="give the photos to test on, too")
    options.check_batch_size(batch_size)
    worker_count = options.checked_workers(workers)
    check_report_folder(out)
    by = "sequence" if split_by == "auto" else split_by
    way = (k, aggregate, temperature, bandwidth_km)
    if labels is None:
        result, how, regions = _own(folder, by, way)
    else:
        result, how, regions = _new(folder, by, way, labels, images, engine, device, batch_size, worker_count, quiet)
    risk = write_report(result, out, how)
    if as_json:
        answer(json.dumps(_values(result, risk, how, out), indent=2, ensure_ascii=False))
    elif not quiet:
        for line in _lines(result, risk, how, out, regions=regions):
            answer(line)


def _own(folder: Path, split_by: str, way: tuple[Any, ...]) -> tuple[Reliability, str, bool]:
    import numpy as np

    from geoinfer.answer import DEFAULT_ANSWER, check_answer
    from geoinfer.index import open_index
    from geoinfer.reliability import group_photos, reliability

    check_answer(*way)
    stored = open_index(folder)
    answer = (stored.manifest.answer or DEFAULT_ANSWER).chosen(*way)
    held_out, references = stored.leave_one_out, stored.references
    if len(held_out.rows) == 0:
        raise UsageError(f"{folder}: was calibrated on no photos", hint="give photos to test on: --labels")
    coordinates = references.coordinates
    places = np.asarray(held_out.true_places(coordinates), np.float64)
    # Photos outside the index, which a calibration may have learnt from as well, are known by their places alone.
    known = [] if held_out.places is not None else held_out.rows.tolist()
    if split_by == "source" and not known:
        raise UsageError("--split-by source: it is not known where the photos come from", hint="use geocell")
    sequences = [references.sequences[row] for row in known] if len(references.sequences) else []
    groups = group_photos(split_by, places, sequences, [references.sources[row] for row in known])  # type: ignore[arg-type]  # checked
    regions = _continents(places)
    result = reliability(held_out, coordinates, answer, groups, regions=regions)
    how = (
        f"{len(result.judged):,} photos that the index {folder.resolve().name} was calibrated on, answered by "
        f"{answer.as_options()}; each tested on what photos of other {_PLURALS[split_by]} teach."
    )
    return result, how, regions is not None


def _new(
    folder: Path,
    split_by: str,
    way: tuple[Any, ...],
    labels: Path,
    images: Path | None,
    engine: Path | None,
    device: str,
    batch_size: int | None,
    workers: int,
    quiet: bool,
) -> tuple[Reliability, str, bool]:
    from geoinfer.batch.labelled import embed_labelled, open_labelled
    from geoinfer.calibration import calibrate
    from geoinfer.cli.console import Console, device_line, say
    from geoinfer.cli.interrupts import interrupts_raise
    from geoinfer.geolocator import Geolocator
    from geoinfer.reliability import group_photos, reliability_on_new
    from geoinfer.tuning.held_out import find_neighbors

    opened = open_labelled(labels, images)
    k, aggregate, temperature, bandwidth_km = way
    with Geolocator.open(
        engine, folder, device=device, k=k, aggregate=aggregate, temperature=temperature, bandwidth_km=bandwidth_km,
        index_device="cpu", threads=1,
    ) as geolocator:  # fmt: skip
        embedder, stored = geolocator.embedder, geolocator.index
        if not geolocator.calibrated:
            raise UsageError(f"{folder}: cannot be tested, as {geolocator.why_not_calibrated}")
        with Console(quiet=quiet, doing="embedding", count=opened.count) as console:
            device_line(console, embedder)
            with interrupts_raise():
                photos = embed_labelled(
                    embedder, labels, images, batch_size=options.chosen_batch_size(batch_size, embedder),
                    workers=workers, observer=console,
                )  # fmt: skip
                console.writing()
                held_out = find_neighbors(
                    stored.index, stored.references, photos.embeddings, photos.references,
                    of_photos=stored.manifest.of_photos,
                )  # fmt: skip
        answer = geolocator.answer
    if photos.failures:
        say("left out: " + ", ".join(f"{count} {code}" for code, count in photos.failures.items()))
    places = photos.references.coordinates
    groups = group_photos(split_by, places, photos.references.sequences, photos.references.sources)  # type: ignore[arg-type]  # checked
    regions = _continents(places)
    coordinates = stored.references.coordinates
    learnt = calibrate(stored.leave_one_out, coordinates, answer)
    result = reliability_on_new(learnt, held_out, coordinates, answer, groups, regions=regions)
    how = (
        f"{len(result.judged):,} photos of {labels.name}, answered by the index {folder.resolve().name} with "
        f"{answer.as_options()}; no answer is made of relatives of its photo. "
        "Photos that the index was calibrated or tuned on would look better than new ones."
    )
    return result, how, regions is not None


_PLURALS = {"sequence": "sequences", "source": "sources", "geocell": "geocells"}


def _continents(places: NDArray[np.float64]) -> list[str] | None:
    """The continent of each place (m, 2); None without the package that knows them."""
    from geoinfer.places import Places

    try:
        return [place.continent or "unknown" for place in Places.open().names(places)]
    except MissingPackageError:
        return None


def _values(result: Reliability, risk: RiskCoverage, how: str, out: Path) -> dict[str, Any]:
    from geoinfer.reliability.report import FILES

    return {
        "how": how,
        "photos": len(result.judged),
        "rows": [dataclasses.asdict(row) for row in result.rows],
        "unlike_references": float(result.judged.unlike.mean()),
        "geoscore_area": {"score": risk.scored.area, "ideal": risk.ideal.area, "random": risk.random.area},
        "score_gain": risk.gain,
        "files": [str(out / name) for name in FILES],
    }


def _lines(result: Reliability, risk: RiskCoverage, how: str, out: Path, *, regions: bool) -> list[str]:
    from geoinfer.cli.console import kilometres
    from geoinfer.reliability.table import ALL

    lines = [how]
    lines += [
        f"  within the {row.level:.0%} radius: {row.coverage:.1%} (95% interval {row.low:.1%} to {row.high:.1%}); half "
        f"of the radii are below {kilometres(row.median_radius_km)}"
        for row in result.rows
        if row.region == ALL
    ]
    lines.append(f"  the score goes {risk.gain:.0%} of the way from no order of the answers to the best there is")
    if not regions:
        lines.append("  by continent as well: pip install 'geoinfer-toolkit[places]'")
    lines.append(f"  report: {out / 'report.md'}")
    return lines
