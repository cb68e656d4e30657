"""The real command, killed, interrupted, starved of disk, and run again: the bytes are those of an unbroken run.

A driver makes the parts small, so that forty photos are several of them; everything else is the command itself, with
the shipped model.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ["csv", "jsonl", "parquet", "geojson"]
INPUTS = 40
FAILURES = 5 + 3  # broken ones, and texts called .jpg; see `fill_input`


@pytest.fixture(scope="module")
def photos(tmp_path_factory, request) -> Path:
    """Links to the ten examples, and bad ones among them."""
    folder = tmp_path_factory.mktemp("crash") / "photos"
    folder.mkdir()
    kit = request.getfixturevalue("kit_module")
    examples = sorted((Path(__file__).parents[2] / "examples" / "photos").iterdir())
    for number in range(INPUTS):
        kit.fill_input(folder, number, examples)
    return folder


@pytest.fixture(scope="module")
def kit_module():
    import sys

    return next(m for m in list(sys.modules.values()) if hasattr(m, "fill_input") and hasattr(m, "FakeEmbedder"))


@pytest.fixture(scope="module")
def unbroken(photos, kit_module, tmp_path_factory):
    """Output and error report of runs that nothing stopped, by suffix; from the command without a driver."""
    made = {}

    def get(suffix: str) -> tuple[bytes, bytes]:
        if suffix not in made:
            output = tmp_path_factory.mktemp("unbroken") / f"o.{suffix}"
            done = kit_module.run(kit_module.COMMAND, "predict", photos, "-o", output, "--workers", 2)
            assert done.returncode == 1, done.stderr
            made[suffix] = output.read_bytes(), output.with_name("o.errors.csv").read_bytes()
            assert len(kit_module.table(made[suffix][1])) == FAILURES
        return made[suffix]

    return get


def result(output: Path) -> tuple[bytes, bytes]:
    return output.read_bytes(), output.with_name("o.errors.csv").read_bytes()


def assert_only_results(output: Path) -> None:
    names = {path.name for path in output.parent.iterdir()} - {"driver.py"}
    assert names == {output.name, "o.errors.csv", f"{output.name}.run.json"}


def kill_and_resume(kit, photos, output, seed, kills) -> int:
    """Kills at random moments, then lets it end; how many of the kills met a living process."""
    chance = random.Random(seed)
    command = kit.driver(output.parent, rows=8)
    met = 0
    for _ in range(kills):
        process = kit.start(command, "predict", photos, "-o", output, "--workers", chance.choice([1, 2]))
        # From a moment between none and all of the parts, and then a little later.
        target = kit.parts_in(output) + chance.choice([0, 1, 1, 2])
        alive = kit.wait_for(lambda target=target: kit.parts_in(output) >= target, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.random() * 0.25)
        met += alive and process.poll() is None
        kit.kill(process)
        assert process.returncode in (-signal.SIGKILL, 1), process.returncode
    done = kit.run(command, "predict", photos, "-o", output, "--workers", 2)
    assert done.returncode == 1, done.stderr
    return met


@pytest.mark.parametrize(
    ("suffix", "seed", "kills"), [("csv", 1, 3), ("jsonl", 2, 1), ("parquet", 3, 1), ("geojson", 4, 1)]
)
def test_killed_at_random_moments(kit, photos, unbroken, tmp_path, suffix, seed, kills):
    output = tmp_path / f"o.{suffix}"
    assert kill_and_resume(kit, photos, output, seed, kills) >= 1
    assert result(output) == unbroken(suffix)
    assert_only_results(output)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 124))
def test_killed_at_many_random_moments(kit, photos, unbroken, tmp_path, seed):
    suffix = FORMATS[seed % 4]
    output = tmp_path / f"o.{suffix}"
    kill_and_resume(kit, photos, output, seed, 5)
    assert result(output) == unbroken(suffix)
    assert_only_results(output)


DIE = "import os, signal\ndef die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
POINTS = {
    "in the middle of the output": """
write = predict.write_rows
def rows_and_death(rows):
    for number, row in enumerate(rows):
        if number == 30: die()
        yield row
predict.write_rows = lambda path, rows, **k: write(path, rows_and_death(rows), **k)
""",
    "when the output is there and the report is not": "predict.write_error_report = die",
    "when both are there and the record is not": "predict.RunLedger.finish = die",
    "when the record is there and the folder too": "predict.RunLedger.discard = die",
    "in the middle of clearing the folder": """
import pathlib
unlink = pathlib.Path.unlink
pathlib.Path.unlink = lambda path, **k: die() if path.name == 'part-000003.jsonl' else unlink(path, **k)
""",
    "when a part is there and not entered": """
append = predict.RunLedger._append
predict.RunLedger._append = lambda self, entry: die() if entry.get('part') == 2 else append(self, entry)
""",
    "in the middle of a line of the ledger": """
append = predict.RunLedger._append
def half(self, entry):
    if entry.get('part') == 2:
        with (self.folder / 'ledger.jsonl').open('ab') as file: file.write(b'{"bytes":17,"counts":{"ok":8},"dig')
        die()
    append(self, entry)
predict.RunLedger._append = half
""",
    "in the middle of the header": """
def half(self, entry):
    with (self.folder / 'ledger.jsonl').open('ab') as file: file.write(b'{"fingerp')
    die()
predict.RunLedger._append = half
""",
    "in the middle of a part": """
import json
dumps = json.dumps
def count(value, **k):
    count.calls += 1
    if count.calls > 20: die()
    return dumps(value, **k)
count.calls = 0
json.dumps = count
""",
}


@pytest.mark.parametrize(
    "point", [*list(POINTS)[:6], *(pytest.param(p, marks=pytest.mark.slow) for p in list(POINTS)[6:])]
)
def test_killed_where_it_would_hurt(kit, photos, unbroken, tmp_path, point):
    suffix = FORMATS[list(POINTS).index(point) % 4]
    output = tmp_path / f"o.{suffix}"
    broken = kit.run(
        kit.driver(tmp_path, rows=8, prelude=DIE + POINTS[point]), "predict", photos, "-o", output, "--workers", 2
    )
    assert broken.returncode == -signal.SIGKILL, broken.stderr
    # Not even half of a result may be seen under its name.
    assert not output.exists() or output.read_bytes() == unbroken(suffix)[0]
    assert (tmp_path / f"{output.name}.run").exists()
    done = kit.run(kit.driver(tmp_path, rows=8), "predict", photos, "-o", output, "--workers", 2)
    assert done.returncode == 1, done.stderr
    assert result(output) == unbroken(suffix)
    assert_only_results(output)
    if "header" not in point and "middle of a part" not in point:
        assert "done by an earlier run" in done.stdout or "Nothing to do" in done.stdout


def interrupted(kit, photos, output, number, *arguments) -> subprocess.CompletedProcess[str]:
    process = kit.start(kit.driver(output.parent, rows=8), "predict", photos, "-o", output, "--workers", 1, *arguments)
    assert kit.wait_for(lambda: kit.parts_in(output) >= 2, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, stdout, stderr)


@pytest.mark.parametrize(("number", "suffix"), [(signal.SIGINT, "csv"), (signal.SIGTERM, "parquet")])
def test_ctrl_c_and_sigterm_say_that_it_can_be_resumed(kit, photos, unbroken, tmp_path, number, suffix):
    output = tmp_path / f"o.{suffix}"
    stopped = interrupted(kit, photos, output, number)
    assert stopped.returncode == 130, stopped.stderr
    lines = [line for line in stopped.stderr.splitlines() if not line.startswith("device:")]
    assert len(lines) == 2, stopped.stderr
    assert lines[0].startswith("geoinfer: interrupted; ")
    assert "the same command goes on from there" in lines[1]
    safe = int(lines[0].split()[2])
    folder = tmp_path / f"{output.name}.run"
    assert safe == sum(path.read_bytes().count(b"\n") for path in folder.glob("part-*.jsonl")) >= 16
    assert not output.exists()
    done = kit.run(kit.COMMAND, "predict", photos, "-o", output, "--workers", 2)  # not the driver: parts of any size
    assert done.returncode == 1
    assert f"resuming after {safe} inputs" in done.stderr
    assert result(output) == unbroken(suffix)
    assert_only_results(output)


def test_a_finished_run_is_not_done_twice_and_ends_as_it_did(kit, photos, unbroken, tmp_path):
    output = tmp_path / "o.csv"
    command = (*kit.COMMAND, "predict", str(photos), "-o", str(output), "--workers", "2")
    first = kit.run(command)
    again = kit.run(command)
    assert (first.returncode, again.returncode) == (1, 1)
    assert "Nothing to do" in again.stdout
    assert f"{FAILURES} inputs failed, more than --max-errors 0" in again.stderr
    assert kit.run(command, "--max-errors", FAILURES).returncode == 0
    assert kit.run(command, "--max-errors", FAILURES - 1).returncode == 1
    assert result(output) == unbroken("csv")
    assert_only_results(output)


def test_two_processes_on_one_output(kit, photos, unbroken, tmp_path):
    """The second is refused, naming the first, which is not disturbed. The first is stopped meanwhile, not timed."""
    output = tmp_path / "o.csv"
    first = kit.start(kit.driver(tmp_path, rows=8), "predict", photos, "-o", output, "--workers", 1)
    assert kit.wait_for(lambda: kit.parts_in(output) >= 1, first)
    first.send_signal(signal.SIGSTOP)
    for more in ((), ("--restart",)):
        second = kit.run(kit.COMMAND, "predict", photos, "-o", output, *more)
        assert second.returncode == 2
        assert f"process {first.pid} is writing it" in second.stderr
    first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 1, stderr
    assert result(output) == unbroken("csv")
    assert_only_results(output)


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize(
    "suffix", ["csv", "parquet", *(pytest.param(s, marks=pytest.mark.slow) for s in ("jsonl", "geojson"))]
)
def test_files_that_may_not_grow_stop_the_final_assembly_and_cost_nothing(kit, photos, unbroken, tmp_path, suffix):
    output = tmp_path / f"o.{suffix}"
    # Larger than any part of eight rows and the ledger, smaller than the output.
    limit = {"csv": 4000, "parquet": 6000}.get(suffix, 9000)
    limit = min(limit, len(unbroken(suffix)[0]) - 500)
    prelude = LIMITED.format(limit=limit)
    broken = kit.run(
        kit.driver(tmp_path, rows=4, prelude=prelude), "predict", photos, "-o", output, "--workers", 2, "--top", 1
    )
    assert broken.returncode == 130, broken.stderr
    lines = [line for line in broken.stderr.splitlines() if not line.startswith("device:")]
    assert len(lines) == 2, broken.stderr
    assert f"geoinfer: {output}: cannot be written: file too large; {INPUTS} inputs are done and safe in" in lines[0]
    assert "make room" in lines[1]
    assert {path.name for path in tmp_path.iterdir()} == {"driver.py", f"{output.name}.run"}
    done = kit.run(kit.driver(tmp_path, rows=4), "predict", photos, "-o", output, "--workers", 2, "--top", 1)
    assert done.returncode == 1
    assert f"{INPUTS} of them had been done" in done.stdout
    if suffix in ("csv", "geojson"):  # the others hold one candidate here, not five
        assert result(output) == unbroken(suffix)
    assert_only_results(output)


def test_a_part_that_may_not_grow_costs_only_itself(kit, photos, unbroken, tmp_path):
    output = tmp_path / "o.csv"
    # The ledger reaches this within the run: each of its lines is about 110 bytes, the header about 800.
    broken = kit.run(kit.driver(tmp_path, rows=2, prelude=LIMITED.format(limit=1600)), "predict", photos, "-o", output)
    assert broken.returncode == 130, broken.stderr
    assert "file too large" in broken.stderr
    safe = int(broken.stderr.split("file too large; ")[1].split()[0])
    assert 0 < safe < INPUTS
    done = kit.run(kit.driver(tmp_path, rows=2), "predict", photos, "-o", output)
    assert f"{safe} of them had been done by an earlier run" in done.stdout
    assert result(output) == unbroken("csv")
    assert_only_results(output)


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", *options, "none", folder], capture_output=True, check=False)
    if made.returncode != 0:
        folder.rmdir()
        pytest.skip(f"nothing can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
@pytest.mark.parametrize("moment", ["part", "assembly"])
def test_a_disk_that_is_full(kit, photos, unbroken, tmp_path, moment):
    with mounted(tmp_path / "disk", "-o", "size=256k") as disk:
        output = disk / "o.csv"
        ballast = disk / "ballast"
        # Pages are 4 KB: the lock, the ledger and five parts take one each, the output two.
        blocks = 256 // 4
        free = {"part": 4, "assembly": 8}[moment]
        ballast.write_bytes(b"\0" * 4096 * (blocks - free))
        driver = kit.driver(tmp_path, rows=8)
        broken = kit.run(driver, "predict", photos, "-o", output, "--workers", 2)
        assert broken.returncode == 130, broken.stderr
        lines = [line for line in broken.stderr.splitlines() if not line.startswith("device:")]
        assert len(lines) == 2, broken.stderr
        assert "no space left on device" in lines[0]
        safe = int(lines[0].split("device; ")[1].split()[0])
        assert 0 < safe < INPUTS if moment == "part" else safe == INPUTS
        assert not output.exists()
        ballast.unlink()
        done = kit.run(driver, "predict", photos, "-o", output, "--workers", 2)
        assert done.returncode == 1, done.stderr
        assert f"{safe} of them had been done by an earlier run" in done.stdout
        assert result(output) == unbroken("csv")
        assert_only_results(output)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
def test_a_read_only_disk_is_refused(kit, photos, tmp_path):
    with mounted(tmp_path / "disk", "-o", "size=64k,ro") as disk:
        done = kit.run(kit.COMMAND, "predict", photos, "-o", disk / "o.csv")
        assert done.returncode == 2
        assert str(disk / "o.csv") in done.stderr
        assert os.listdir(disk) == []
        assert len([line for line in done.stderr.splitlines() if not line.startswith("device:")]) <= 2


@pytest.mark.parametrize("place", ["file/o.csv", "/proc/o.csv", "folder.csv"])
def test_a_place_that_cannot_be_written_is_refused(kit, photos, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    done = kit.run(kit.COMMAND, "predict", photos, "-o", tmp_path / place)
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / place).removesuffix(".csv") in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.csv"]


def test_ctrl_c_while_standard_input_is_silent(kit, photos, tmp_path):
    """The feeder hangs in a read that nothing ends; the process ends all the same, and with 130."""
    names = sorted(photos.glob("*[0-9].jpg"))[:16]
    output = tmp_path / "o.csv"
    process = subprocess.Popen(
        [*kit.driver(tmp_path, rows=8), "predict", "-", "-o", str(output)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdin.write("".join(f"{name}\n" for name in names))
    process.stdin.flush()
    assert kit.wait_for(lambda: kit.parts_in(output) >= 2, process)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=60)
    stderr = process.stderr.read()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    assert code == 130, stderr
    assert "interrupted; 16 inputs are done and safe" in stderr
