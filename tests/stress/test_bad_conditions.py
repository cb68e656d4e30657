"""An hour of bad luck in minutes: mixed, huge and damaged files, many processes, kills, pauses, vanishing photos.

Every case ends with one row for each input, or says in a sentence why it stopped and goes on when asked again. Full
disks and files that may not grow are in `tests/batch/test_crash_safety.py`.
"""

from __future__ import annotations

import io
import os
import random
import signal
import struct
import sys
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytestmark = pytest.mark.slow


def bomb(path: Path, side: int) -> None:
    """A PNG of a few hundred bytes whose header promises side x side pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 5000))
        + chunk(b"IEND", b"")
    )


def fill_with_trouble(kit: ModuleType, folder: Path) -> dict[str, str]:
    """Huge, odd and damaged files; the error code of each, empty where it is to be located."""
    original = next(iter(sorted(folder.glob("good-*.jpg")))).read_bytes()
    expected = {"bomb.png": "too_many_pixels", "lie.png": "truncated"}
    bomb(folder / "bomb.png", 60_000)
    bomb(folder / "lie.png", 12_000)  # within the limit, and there is nothing in it
    grey = Image.fromarray(kit.gradient(15_000, 10_000, 1))
    grey.save(folder / "150mp.jpg", quality=60)
    grey.resize((10_000, 8_000)).save(folder / "80mp-progressive.jpg", quality=60, progressive=True)
    del grey
    wide = (kit.gradient(5000, 4000, 1).astype(np.uint16) * 257).astype(np.uint16)
    Image.fromarray(wide).save(folder / "16bit.tif")
    kit.huge_png(folder / "alpha.png", 6000, 5000)
    expected |= dict.fromkeys(("150mp.jpg", "80mp-progressive.jpg", "16bit.tif", "alpha.png"), "")
    for number in range(12):
        (folder / f"cut-{number:02d}.jpg").write_bytes(original[: 2000 + number * 700])
        expected[f"cut-{number:02d}.jpg"] = "truncated"
    (folder / "empty.jpg").touch()
    (folder / "words.jpg").write_text("no photo, only words")
    (folder / "film.jpg").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jpg")
    expected |= {
        "empty.jpg": "empty_file", "words.jpg": "not_an_image", "film.jpg": "wrong_type", "gone.jpg": "missing",
        "pipe.jpg": "not_a_file",
    }  # fmt: skip
    noise = random.Random(0)
    for number in range(10):  # bytes turned over anywhere: located or not, it has a row
        damaged = bytearray(original)
        for _ in range(40):
            damaged[noise.randrange(600, len(damaged))] ^= 1 << noise.randrange(8)
        (folder / f"noisy-{number}.jpg").write_bytes(damaged)
    (folder / "camera.nef").write_bytes(b"II*\0raw")
    return expected


def test_mixed_huge_and_damaged_files(kit: ModuleType, examples: Path, tmp_path: Path) -> None:
    expected = fill_with_trouble(kit, examples)
    # Named one by one: a search would leave the pipe and the link to a folder out.
    names = sorted(os.listdir(examples))
    (tmp_path / "list.txt").write_text("".join(f"{examples / name}\n" for name in names))
    process = kit.start(f"@{tmp_path / 'list.txt'}", tmp_path / "o.csv", "--workers", 4)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.02)
    found = kit.outcome(kit.ended(process), tmp_path / "o.csv", len(names))
    assert found.code == 1
    for name, code in expected.items():
        assert found.codes.get(name, "") == code, name
    assert found.rows["camera.nef"]["status"] == "skipped"
    assert all(found.rows[f"good-{number:02d}.jpg"]["status"] == "ok" for number in range(30))
    assert peak < 3 << 30


def resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def test_errors_of_the_disk_cost_their_photos(kit: ModuleType, examples: Path, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import builtins, errno, os\n"
        "import geoinfer.images.read as read\n"
        "def opened(path, *a, **k):\n"
        "    if b'good-07' in os.fsencode(path): raise OSError(errno.EIO, os.strerror(errno.EIO), path)\n"
        "    return builtins.open(path, *a, **k)\n"
        "read.open = opened\n"
        "from geoinfer.cli import main\nmain()\n"
    )
    command = [sys.executable, str(driver), *kit.arguments(examples, tmp_path / "o.csv")[3:]]
    done = kit.subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = kit.outcome(done, tmp_path / "o.csv", 30)
    assert found.codes == {"good-07.jpg": "unreadable"}


def test_photos_that_vanish_while_it_runs(kit: ModuleType, examples: Path, tmp_path: Path) -> None:
    names = sorted(os.listdir(examples))
    (tmp_path / "list.txt").write_text("".join(f"{examples / name}\n" for name in names))
    process = kit.start(f"@{tmp_path / 'list.txt'}", tmp_path / "o.csv", "--workers", 1)
    assert kit.wait_for(lambda: (tmp_path / "o.csv.run").exists(), process)
    for name in names[-8:]:
        (examples / name).unlink()
    found = kit.outcome(kit.ended(process), tmp_path / "o.csv", 30)
    assert set(found.codes.values()) <= {"missing"}
    assert set(found.codes) <= set(names[-8:])


def test_many_processes_on_one_output(kit: ModuleType, examples: Path, tmp_path: Path) -> None:
    """One does it; the others say who, and leave it alone."""
    first = kit.start(examples, tmp_path / "o.csv", "--workers", 1)
    assert kit.wait_for(lambda: (tmp_path / "o.csv.run" / "ledger.jsonl").exists(), first)
    first.send_signal(signal.SIGSTOP)
    others = [kit.start(examples, tmp_path / "o.csv", *more) for more in ((), (), ("--restart",), ("--workers", 2))]
    refused = [kit.ended(process) for process in others]
    first.send_signal(signal.SIGCONT)
    assert kit.outcome(kit.ended(first), tmp_path / "o.csv", 30).code == 0
    host = os.uname().nodename
    for process in refused:
        assert process.returncode == 2
        assert f"o.csv: process {first.pid} is writing it on {host} since 20" in process.stderr
        assert "UTC: geoinfer predict" in process.stderr
        assert "wait for it, stop it, or choose another --output" in process.stderr


def test_paused_and_continued(kit: ModuleType, examples: Path, tmp_path: Path) -> None:
    whole = kit.outcome(kit.run(examples, tmp_path / "whole.csv"), tmp_path / "whole.csv", 30)
    process = kit.start(examples, tmp_path / "o.csv")
    for _ in range(4):
        time.sleep(0.35)
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            process.send_signal(signal.SIGCONT)
    found = kit.outcome(kit.ended(process), tmp_path / "o.csv", 30)
    assert (found.output, found.report) == (whole.output, whole.report)


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_moments_among_huge_and_damaged_files(
    kit: ModuleType, examples: Path, tmp_path: Path, seed: int
) -> None:
    fill_formats(examples)
    inputs = len(os.listdir(examples))
    whole = kit.outcome(kit.run(examples, tmp_path / "whole.csv"), tmp_path / "whole.csv", inputs)
    chance = random.Random(seed)
    for _ in range(4):
        process = kit.start(examples, tmp_path / "o.csv", "--workers", chance.choice([1, 2, 4]))
        time.sleep(0.4 + chance.random() * 1.5)
        process.kill()
        kit.ended(process)
    found = kit.outcome(kit.run(examples, tmp_path / "o.csv"), tmp_path / "o.csv", inputs)
    assert (found.output, found.report) == (whole.output, whole.report)


def fill_formats(folder: Path) -> None:
    """Formats that are decoded in processes of their own, each several times, and damaged ones."""
    picture = Image.open(next(iter(sorted(folder.glob("good-*.jpg"))))).convert("RGB")
    made = io.BytesIO()
    picture.save(made, "JPEG2000", quality_layers=[30])
    for number in range(8):
        (folder / f"wave-{number}.jp2").write_bytes(made.getvalue() if number % 4 else made.getvalue()[:4000])
        (folder / f"cut-{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100 + number))


def test_what_it_started_may_be_killed(kit: ModuleType, examples: Path, tmp_path: Path) -> None:
    """Workers that decode for it: the system takes one now and then, and no photo is lost with it."""
    fill_formats(examples)
    for number in range(40):
        (examples / f"more-{number:02d}.jp2").symlink_to(examples / "wave-1.jp2")
    inputs = len(os.listdir(examples))
    whole = kit.outcome(kit.run(examples, tmp_path / "whole.csv"), tmp_path / "whole.csv", inputs)
    process = kit.start(examples, tmp_path / "o.csv", "--workers", 2)
    killed = 0
    while process.poll() is None:
        for child in kit.children(process.pid):
            try:
                os.kill(child, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
        time.sleep(0.6)
    found = kit.outcome(kit.ended(process), tmp_path / "o.csv", inputs)
    if killed == 0:
        assert found.output == whole.output
        pytest.skip("it decodes all formats by itself")
    # Each photo is tried twice; only one that lost both workers is given up.
    assert {code for name, code in found.codes.items() if code != whole.codes.get(name)} <= {"decoder_died"}
    assert len(found.codes) - len(whole.codes) <= killed // 2
