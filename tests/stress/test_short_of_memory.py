"""Huge photos on a machine with little memory: one at a time, or an error row, and never the end of the run."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from geoinfer.images.memory_gate import decode_bytes
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.read import read_image_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

pytestmark = pytest.mark.slow

MB = 1 << 20
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain.jpg": ("RGB", {}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "fine-progressive.jpg": ("RGB", {"progressive": True, "subsampling": 0}),
    "grey.jpg": ("L", {}),
    "print.jpg": ("CMYK", {}),
    "colour.png": ("RGB", {}),
    "alpha.png": ("RGBA", {}),
    "grey-alpha.png": ("LA", {}),
    "palette.png": ("P", {}),
    "palette-hole.png": ("P", {"transparency": 0}),
    "wide.png": ("I;16", {}),
    "animation.gif": ("P", {}),
    "lossy.webp": ("RGB", {"method": 0}),
    "lossless.webp": ("RGB", {"lossless": True, "method": 0, "quality": 0}),
    "plain.bmp": ("RGB", {}),
    "plain.tif": ("RGB", {}),
    "packed.tif": ("RGBA", {"compression": "tiff_lzw"}),
    "wide.tif": ("I;16", {}),
    "floats.tif": ("F", {}),
    "wave.jp2": ("RGB", {"quality_layers": [30]}),
    "film.avif": ("RGB", {"speed": 10}),
}
MEASURE = """
import sys
from geoinfer.images.decode import decode_pixels
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.read import read_image_file
def status(name):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(name)).split()[1]) * 1024
small, large = (read_image_file(path.encode()) for path in sys.argv[1:])
decode_pixels(*small, Preprocessing(size=260))  # whatever is imported and set up once
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
decode_pixels(*large, Preprocessing(size=260))
print(status("VmHWM") - before)
"""


def picture(kit: ModuleType, mode: str, size: tuple[int, int]) -> Image.Image:
    made = Image.fromarray(kit.gradient(*size))
    if mode == "I;16":
        return Image.fromarray(np.asarray(made.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(made.convert("L")).astype(np.float32) / 255)
    return made.convert(mode)


@pytest.mark.parametrize("name", KINDS)
def test_decoding_takes_no_more_than_foretold(kit: ModuleType, tmp_path: Path, name: str) -> None:
    mode, options = KINDS[name]
    paths = [tmp_path / f"small-{name}", tmp_path / f"large-{name}"]
    for path, size in zip(paths, [(90, 60), (5200, 4000)], strict=True):
        picture(kit, mode, size).save(path, **options)
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, timeout=120, check=True
        )
    except subprocess.CalledProcessError as error:
        if "clear_refs" in error.stderr:
            pytest.skip("this system does not measure peaks anew")
        raise AssertionError(error.stderr) from error
    data, kind = read_image_file(os.fsencode(paths[1]))
    foretold = decode_bytes(data, kind, Preprocessing(size=260))
    assert int(done.stdout) <= foretold


@pytest.fixture
def group(request: pytest.FixtureRequest, kit: ModuleType) -> Iterator[Callable[[], None]]:
    yield from kit.limited(request.param * MB)


def huge_ones(kit: ModuleType, folder: Path, side: int, count: int) -> list[str]:
    kit.huge_png(folder / "huge-0.png", side, side)
    names = ["huge-0.png"] + [f"huge-{number}.png" for number in range(1, count)]
    for name in names[1:]:
        (folder / name).symlink_to(folder / names[0])
    return names


@pytest.mark.parametrize("group", [1200], indirect=True)
def test_huge_photos_take_turns(kit: ModuleType, examples: Path, tmp_path: Path, group: Callable[[], None]) -> None:
    """Each takes about 400 MB of the 1200 that there are: four at once would be the end of the process."""
    names = huge_ones(kit, examples, 5000, 8)
    done = kit.run(examples, tmp_path / "o.csv", "--workers", 4, preexec_fn=group)
    found = kit.outcome(done, tmp_path / "o.csv", 38)
    assert found.code == 0
    assert all(found.rows[name]["status"] == "ok" for name in names)


@pytest.mark.parametrize("group", [600], indirect=True)
def test_what_does_not_fit_at_all_costs_its_own_row(
    kit: ModuleType, examples: Path, tmp_path: Path, group: Callable[[], None]
) -> None:
    names = huge_ones(kit, examples, 7000, 3)  # about 800 MB each
    done = kit.run(examples, tmp_path / "o.csv", "--workers", 2, preexec_fn=group)
    found = kit.outcome(done, tmp_path / "o.csv", 33)
    assert found.code == 1
    assert found.codes == dict.fromkeys(names, "not_enough_memory")


def address_space(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.parametrize("megabytes", [400, 700, 1000, 1600, 2400, 4500])
def test_an_address_space_that_is_too_small_ends_in_a_sentence(
    kit: ModuleType, examples: Path, tmp_path: Path, megabytes: int
) -> None:
    huge_ones(kit, examples, 5000, 2)
    done = kit.run(examples, tmp_path / "o.csv", "--workers", 2, preexec_fn=address_space(megabytes * MB), timeout=120)
    assert "Traceback" not in done.stderr
    # 3 and 4: the model could not be opened or run; 130: out of memory, to be resumed. Libraries that do not look at
    # what an allocation gives them die of a signal, which is as good as a kill. None hangs.
    assert done.returncode in (0, 1, 2, 3, 4, 130, -signal_of_the_system("SIGSEGV"), -signal_of_the_system("SIGABRT"))
    assert "this is a fault of geoinfer" not in done.stderr
    if done.returncode in (0, 1):
        kit.outcome(done, tmp_path / "o.csv", 32)
    again = kit.outcome(kit.run(examples, tmp_path / "o.csv"), tmp_path / "o.csv", 32)
    assert set(again.codes.values()) <= {"not_enough_memory"}


def signal_of_the_system(name: str) -> int:
    import signal

    return int(getattr(signal, name))
