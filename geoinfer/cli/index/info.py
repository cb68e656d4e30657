"""`geoinfer index info`."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from geoinfer.answer import Answer
    from geoinfer.index import StoredIndex
    from geoinfer.places import Coverage

_NAMED: Final = 10
"""Countries that are named; --json has all."""


def info(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.", show_default=False)],
    map_path: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="Draw the references on a map, .png or .svg.", show_default=False),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the checksums of large files too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in an index and where, and whether it is whole.

    \b
    Examples:
      geoinfer index info my-index
      geoinfer index info my-index --map references.png

    Countries are those of the nearest city, which needs the extra places; of more than a million references as many
    are counted, and stand for all.
    """
    from geoinfer.cli.console import answer
    from geoinfer.index import open_index, read_index_manifest

    if map_path is not None:
        from geoinfer.maps import check_map_path

        check_map_path(map_path)
    read_index_manifest(folder, verify=verify)
    stored = open_index(folder)
    about = _look_at(stored)
    if map_path is not None:
        from geoinfer.maps import draw_reference_map

        draw_reference_map(stored.references.coordinates, map_path)
    if as_json:
        values = _values(stored, about) | ({} if map_path is None else {"map": str(map_path)})
        answer(json.dumps(values, indent=2, ensure_ascii=False))
        return
    for line in _lines(stored, about, verified=verify):
        answer(line)
    if map_path is not None:
        answer(f"  map:        {map_path}")


@dataclass(frozen=True, slots=True)
class _About:
    """What is found out from the contents.

    Attributes:
        way: how the index answers where nobody says otherwise.
        errors_km: of the photos that calibration learns from, sorted.
        calibrated: whether they are enough.
        extent: south, west, north and east in degrees; the west is larger across the antimeridian.
        coverage: references by country; None where that cannot be counted.
        uncounted: why not.
    """

    way: Answer
    errors_km: NDArray[np.float64]
    calibrated: bool
    extent: tuple[float, float, float, float]
    coverage: Coverage | None
    uncounted: str


def _look_at(stored: StoredIndex) -> _About:
    import numpy as np

    from geoinfer.answer import DEFAULT_ANSWER
    from geoinfer.calibration import calibrate, leave_one_out_errors_km
    from geoinfer.errors import IndexFolderError
    from geoinfer.maps import extent

    coordinates = stored.references.coordinates
    try:
        edges = extent(coordinates)
    except ValueError as error:  # large files are not looked into when they are opened
        raise IndexFolderError(f"{stored.folder}: damaged: {error}", hint="build the index again") from error
    way = stored.manifest.answer or DEFAULT_ANSWER
    errors_km = np.sort(leave_one_out_errors_km(stored.leave_one_out, coordinates, way))
    calibrated = calibrate(stored.leave_one_out, coordinates, way).usable
    return _About(way, errors_km, calibrated, edges, *_covered(coordinates))


def _covered(coordinates: NDArray[np.float64]) -> tuple[Coverage | None, str]:
    """References by country, or why they are not counted: an index is described without that, too."""
    from geoinfer.errors import InputError, MissingPackageError
    from geoinfer.places import Places, measure_coverage

    try:
        return measure_coverage(Places.open(), coordinates), ""
    except MissingPackageError as error:
        return None, error.hint
    except InputError as error:
        return None, f"{error}; {error.hint}"


def _values(stored: StoredIndex, about: _About) -> dict[str, Any]:
    from geoinfer.places import continent_of, country_name

    manifest, coverage, errors_km = stored.manifest, about.coverage, about.errors_km
    total = _total_bytes(stored)
    return {
        "kind": manifest.kind,
        "parameters": manifest.parameters,
        "recall": manifest.recall,
        "tuning": manifest.tuning,
        "size": manifest.size,
        "dim": manifest.embedder.dim,
        "embedder": manifest.embedder.as_dict(),
        "bytes": total,
        "bytes_per_reference": round(total / manifest.size, 1),
        "geocells_level_6": manifest.geocells,
        "extent": list(about.extent),
        "coverage": None
        if coverage is None
        else {
            "counted": coverage.counted,
            "continents": coverage.continents,
            "countries": [
                {"code": code, "country": country_name(code), "continent": continent_of(code), "references": number}
                for code, number in coverage.countries.items()
            ],
        },
        "calibrated": about.calibrated,
        "calibrated_on": len(errors_km),
        "calibrated_by": "references" if stored.leave_one_out.places is None else "labelled photos",
        "answer": about.way.as_dict(),
        "logit_scale": manifest.logit_scale,
        "median_error_km": round(float(errors_km[len(errors_km) // 2]), 3) if len(errors_km) else None,
        "files": manifest.files,
    }


def _lines(stored: StoredIndex, about: _About, *, verified: bool) -> Iterator[str]:
    from geoinfer.cli.console import checksums

    manifest = stored.manifest
    total = _total_bytes(stored)
    count = f"{manifest.size:,} reference{'s' * (manifest.size != 1)}"
    article = "a" if manifest.kind.startswith("flat") else "an"
    yield f"{stored.folder}: {article} {manifest.kind} index of {count}, {total / 1e6:.1f} MB"
    yield f"  made by:    {manifest.embedder}"
    yield f"  on disk:    {total / manifest.size:,.0f} bytes a reference"
    if manifest.parameters:
        words = ", ".join(f"{name} {value:g}" for name, value in sorted(manifest.parameters.items()))
        yield f"  searches:   with {words}{', as tuned' if manifest.tuning else ''}"
    if found := _recall(manifest.recall or {}):
        yield f"  recall:     {found}"
    yield from _where(stored, about)
    if manifest.answer is not None:
        yield f"  answers by: {_way(about.way)}, unless told otherwise"
    if manifest.logit_scale is not None:
        yield f"  candidates: with probabilities, the softmax of {manifest.logit_scale:.6g} times the similarity"
    yield f"  calibrated: {_calibrated(stored, about)}"
    yield f"  checksums:  {checksums(manifest.files, verified=verified)}"


def _where(stored: StoredIndex, about: _About) -> Iterator[str]:
    """Geocells, extent, continents and countries."""
    from geoinfer.places import country_name

    south, west, north, east = about.extent
    cells = f"{stored.manifest.geocells:,} geocell{'s' * (stored.manifest.geocells != 1)}"
    across = ", across the antimeridian" * (west > east)
    yield (
        f"  coverage:   {cells} (S2 level 6), latitude {south:.2f} to {north:.2f}, longitude {west:.2f} to "
        f"{east:.2f}{across}"
    )
    coverage = about.coverage
    if coverage is None:
        yield f"  countries:  not counted: {about.uncounted}"
        return
    sampled = coverage.counted < coverage.total
    continents = [
        f"{name or 'unknown'} {_share(number, coverage.counted)}" for name, number in coverage.continents.items()
    ]
    yield f"  continents: {', '.join(continents)}"
    found = len(coverage.countries)
    named = [
        f"{country_name(code)} {_share(number, coverage.counted)}"
        for code, number in list(coverage.countries.items())[:_NAMED]
    ]
    more = f" and {found - _NAMED} more" if found > _NAMED else ""
    yield f"  countries:  {found}{' at least' if sampled else ''}: {', '.join(named)}{more}"
    if sampled:
        yield f"              (of {coverage.counted:,} references, chosen at random)"


def _recall(recall: dict[str, Any]) -> str:
    """What `geoinfer.index.recall` measured; empty where nothing was, or by another geoinfer in other words."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        shares = sorted((int(k), float(share)) for k, share in recall["recall_at"].items())
        words = ", ".join(f"{share:.2%} of the nearest{f' {k}' if k > 1 else ''}" for k, share in shares)
        queries, speed = int(recall["queries"]), float(recall["queries_per_s"])
        return f"{words}, against exact search, on {queries:,} queries; {speed:,.0f} queries/s"
    return ""


def _way(way: Answer) -> str:
    words = [f"--aggregate {way.aggregate}", f"--k {way.k}"]
    if way.temperature is not None:
        words.append(f"--temperature {way.temperature:g}")
    if way.bandwidth_km is not None:
        words.append(f"--bandwidth-km {way.bandwidth_km:g}")
    return " ".join(words)


def _calibrated(stored: StoredIndex, about: _About) -> str:
    from geoinfer.cli.console import kilometres

    count, by_labels = len(about.errors_km), stored.leave_one_out.places is not None
    if about.calibrated:
        half, most = about.errors_km[count // 2], about.errors_km[int(count * 0.9)]
        among = "labelled photos" if by_labels else "references, each located by the others"
        return f"on {count} {among}: half within {kilometres(half)}, 90% within {kilometres(most)}"
    if stored.manifest.calibrated_on == 0:
        return "no; give labelled photos when it is made"
    if by_labels:
        return f"no, {count} labelled photos are too few"
    return f"no, {count} references that others can locate are too few"


def _share(number: int, total: int) -> str:
    share = number / total
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}" if share >= 0.0005 else "below 0.1%"


def _total_bytes(stored: StoredIndex) -> int:
    return sum(file["bytes"] for file in stored.manifest.files.values())
