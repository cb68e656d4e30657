"""The toy world: photos whose look follows from where they were taken, as many as one likes, for nothing.

It answers one question: does training on places teach an embedding something that its frozen backbone did not know?
Every signal is at hand in the pixels, and none of them is what the pictures differ by most.

What follows from the coordinates (`trainer.world.fields`):

- colours of soil, grass, leaves and roofs, and brightness of asphalt: climate by latitude, plus sums of random waves on
  the sphere from continental length down to 500 km, seeded;
- share of grass on the ground, number, height and kind of trees (cones, palms, round crowns), hills on the horizon,
  strength and direction of field lines, width of the road: as above, some with waves of 120 to 200 km on top;
- snow by latitude and season; sea on the horizon near real coasts;
- height of the sun by latitude, season and hour, and its side: roads lead east, give or take forty degrees, so the sun
  stands on the right in the north and on the left in the south; shadows and glow follow;
- by real regions, as coarse boxes: side of the road, yellow lines in the Americas, diamond or round signs, wooden or
  concrete poles.

What does not, and is shared by the frames of a drive: hour, season, clouds, fog, exposure, white balance, saturation,
gamma, vignette, height of the horizon, roll, zoom, sensor noise, how built-up the place is. What is new in each frame:
cars and buildings of random colours, signs, where trees stand, textures, grain, JPEG quality.

Frames of a drive look alike and stand a few kilometres apart. A random split of them leaks, as it does with
street-level photos; split by sequence or by geocell.
"""

from __future__ import annotations

import concurrent.futures
import csv
import io
import multiprocessing
import os
from typing import TYPE_CHECKING, Final

import numpy as np
import simplejpeg

from geoinfer.errors import OutputError, UsageError
from geoinfer.geodesy import destination, from_unit_vectors
from geoinfer.integrity import atomic_file
from geoinfer.machine import available_cores
from geoinfer.maps import is_land
from trainer.world.fields import drives_left, in_boxes
from trainer.world.render import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["drives_left", "make_toy_world", "render", "sample_drives"]

COLUMNS: Final = ("id", "latitude", "longitude", "country", "sequence", "captured_at")
SOUTHERNMOST_DEG: Final = -60.0
"""South of it lies Antarctica alone, where nobody drives."""

_FRAMES: Final = 100
"""Room for frames in an id: id = drive * 100 + frame."""
_STEP_KM: Final = (0.5, 4.0)
_STARTS: Final = 1000
_PER_FOLDER: Final = 1000
_PER_TASK: Final = 256
_NAMIBIA: Final = ((-29.0, -17.0, 11.5, 21.0),)
_FIRST_CAPTURE_S: Final = 1_325_376_000  # 2012-01-01
_CAPTURE_SPAN_S: Final = 12 * 365 * 86_400


def make_toy_world(
    folder: Path,
    *,
    count: int = 20_000,
    size: int = 64,
    seed: int = 0,
    photos_per_scene: int = 4,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a set of photos laid out as OSV-5M is: `images/train/NN/<id>.jpg` and `train.csv`.

    The same arguments give the same files, whatever the number of workers. `train.csv` is written last, so a folder
    that has one is complete.

    Args:
        folder: made if missing; must be empty.
        count: number of photos.
        size: side of each in pixels.
        seed: of the places, the photos and the world itself.
        photos_per_scene: mean number of frames in a drive.
        workers: processes; one for each core of this process if left out.
        progress: called with photos done and `count`, from this process.

    Raises:
        UsageError: a number makes no sense.
        OutputError: the folder holds something, or cannot be written.
    """
    for name, value, least, most in (
        ("count", count, 1, 10_000_000),
        ("size", size, 16, 1024),
        ("seed", seed, 0, 2**31 - 1),
        ("photos_per_scene", photos_per_scene, 1, _FRAMES // 2),
        ("workers", 1 if workers is None else workers, 1, 1024),
    ):
        if not least <= value <= most:
            raise UsageError(f"{name} is {value}; it must be from {least} to {most}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise OutputError(
                f"{folder}: is not empty", hint="name a new folder; one without train.csv was left unfinished"
            )
        coordinates, ids = sample_drives(count, seed=seed, photos_per_scene=photos_per_scene)
        for number in range(-(-count // _PER_FOLDER)):
            (folder / "images" / "train" / f"{number:02d}").mkdir(parents=True)
        tasks = [
            (
                os.fspath(folder),
                coordinates[start : start + _PER_TASK],
                ids[start : start + _PER_TASK],
                start,
                size,
                seed,
            )
            for start in range(0, count, _PER_TASK)
        ]
        done = 0
        for written in _run(tasks, workers or available_cores()):
            done += written
            if progress is not None:
                progress(done, count)
        _write_csv(folder / "train.csv", coordinates, ids, seed)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def sample_drives(
    count: int, *, seed: int = 0, photos_per_scene: int = 4
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Where photos are taken: drives that start anywhere on land, evenly by area, Antarctica left out.

    A larger count adds drives and leaves the first ones as they are.

    Args:
        count: number of photos.
        seed: of the drives.
        photos_per_scene: mean number of frames in a drive.

    Returns:
        coordinates: (count, 2) degrees, [latitude, longitude], rounded to 1e-6 as the CSV holds them.
        ids: (count,) int64, ascending; `id // 100` is the drive. Frames stand 0.5 to 4 km apart on a bent line, and a
            drive ends where the land does.
    """
    rng = np.random.default_rng([seed, 1])
    most = 2 * photos_per_scene - 1
    coordinates, ids = np.empty((0, 2)), np.empty(0, np.int64)
    drive = 0
    while len(ids) < count:
        starts = _even_on_land(rng, _STARTS)
        n = len(starts)
        frames = rng.integers(1, most + 1, n)
        bearing = rng.uniform(0, 360, n)[:, None] + np.cumsum(rng.normal(0, 15, (n, most)), axis=1)
        step_km = rng.uniform(*_STEP_KM, (n, most))
        track = np.empty((n, most, 2))
        track[:, 0] = starts
        for frame in range(1, most):
            track[:, frame] = destination(track[:, frame - 1], bearing[:, frame], step_km[:, frame])
        track = np.round(track, 6)
        on_land = is_land(track.reshape(-1, 2)).reshape(n, most) & (track[..., 0] > SOUTHERNMOST_DEG)
        kept = np.logical_and.accumulate(on_land, axis=1) & (np.arange(most) < frames[:, None])
        numbers = (drive + np.arange(n))[:, None] * _FRAMES + np.arange(most)
        coordinates = np.concatenate([coordinates, track[kept]])
        ids = np.concatenate([ids, numbers[kept]])
        drive += n
    return coordinates[:count], ids[:count]


def _even_on_land(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """About n points, evenly over the land north of Antarctica."""
    points = from_unit_vectors(rng.normal(size=(4 * n, 3)))
    points = np.round(points, 6)
    return points[is_land(points) & (points[:, 0] > SOUTHERNMOST_DEG)]


_Task = tuple[str, "NDArray[np.float64]", "NDArray[np.int64]", int, int, int]


def _run(tasks: list[_Task], workers: int) -> Iterator[int]:
    """Photos written, task by task, in their order."""
    if workers == 1 or len(tasks) == 1:
        yield from map(_write_photos, tasks)
        return
    # A fresh interpreter each: forking a process that has threads of its own can hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        futures = [pool.submit(_write_photos, task) for task in tasks]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_photos(task: _Task) -> int:
    """Renders and writes one run of photos; answers how many."""
    folder, coordinates, ids, start, size, seed = task
    # Two seeds give two worlds, and also other weather and other cars: seeds of photos start at their world's own.
    base = seed << 32
    pictures = render(coordinates, base + ids, scene_seeds=base + ids // _FRAMES, size=size, world_seed=seed)
    for i, (number, picture) in enumerate(zip(ids.tolist(), pictures, strict=True)):
        quality = 55 + int(np.random.default_rng([seed, number]).integers(40))
        data = simplejpeg.encode_jpeg(picture, quality=quality, colorspace="RGB", colorsubsampling="420")
        path = os.path.join(folder, "images", "train", f"{(start + i) // _PER_FOLDER:02d}", f"{number}.jpg")
        with open(path, "xb") as file:
            file.write(data)
    return len(ids)


def _write_csv(path: Path, coordinates: NDArray[np.float64], ids: NDArray[np.int64], seed: int) -> None:
    drives = ids // _FRAMES
    rng = np.random.default_rng([seed, 2])
    starts = _FIRST_CAPTURE_S + rng.integers(0, _CAPTURE_SPAN_S, int(drives[-1]) + 1)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    codes = _country_codes(coordinates)
    for number, drive, pair, code in zip(ids.tolist(), drives.tolist(), coordinates.tolist(), codes, strict=True):
        captured_ms = (int(starts[drive]) + 60 * (number % _FRAMES)) * 1000
        writer.writerow([number, f"{pair[0]:.6f}", f"{pair[1]:.6f}", code, f"toy-{seed}-{drive}", captured_ms])
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _country_codes(coordinates: NDArray[np.float64]) -> list[str]:
    """A made-up code for each box of 10 by 20 degrees; `NA` over Namibia, as programs trip over it."""
    row = np.clip((coordinates[:, 0] + 90) // 10, 0, 17).astype(int)
    column = np.clip((coordinates[:, 1] + 180) // 20, 0, 17).astype(int)
    codes = np.array([chr(65 + a) + chr(65 + b) for a, b in zip(row, column, strict=True)])
    named: list[str] = np.where(in_boxes(coordinates, _NAMIBIA), "NA", codes).tolist()
    return named
