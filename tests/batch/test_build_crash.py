"""`index build` and `index add`, killed, starved of disk and run again: the files are those of an unbroken run.

A driver makes the shards small, so that forty photos are several of them; everything else is the command itself, with
the shipped model.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MODEL = Path(__file__).parents[2] / "geoinfer" / "bundles" / "demo" / "model.onnx"
INPUTS = 40
FAILURES = 5 + 3  # broken ones, and texts called .jpg; see `fill_input`
BAD = FAILURES + 4  # and duplicates


@pytest.fixture(scope="module")
def kit_module(request):
    return next(m for m in list(sys.modules.values()) if hasattr(m, "fill_input") and hasattr(m, "FakeEmbedder"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory, kit_module) -> Path:
    """A CSV of links to the ten examples, with bad ones and names that come twice among them."""
    folder = tmp_path_factory.mktemp("crash") / "photos"
    folder.mkdir()
    examples = sorted((Path(__file__).parents[2] / "examples" / "photos").iterdir())
    for number in range(INPUTS):
        kit_module.fill_input(folder, number, examples)
    names = sorted(path.name for path in folder.iterdir())
    names = [name for name in names if not name.endswith(".nef")]
    assert len(names) > 30
    names[20:20] = names[2:6]
    path = folder / "labels.csv"
    path.write_text("path,lat,lon\n" + "".join(f"{name},{n},{-n}\n" for n, name in enumerate(names)))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(labels, kit_module, tmp_path_factory) -> tuple[dict[str, bytes], bytes]:
    """Index and error report of a run that nothing stopped; of the command without a driver."""
    output = tmp_path_factory.mktemp("unbroken") / "idx"
    done = kit_module.run(kit_module.COMMAND, *arguments(labels, output))
    assert done.returncode == 1, done.stderr
    report = output.with_name("idx.errors.csv").read_bytes()
    codes = [row["code"] for row in kit_module.table(report)]
    assert codes.count("duplicate_id") >= 2
    return files(output), report


def driver(folder: Path, *, rows: int = 5, prelude: str = "") -> tuple[str, ...]:
    path = folder / "driver.py"
    path.write_text(
        "import geoinfer.batch.build as build\n"
        "import geoinfer.batch.build_rows as build_rows\n"
        "import geoinfer.batch.build_shards as build_shards\n"
        "import geoinfer.batch.labelled as labelled\n"
        f"build_rows._COMMIT_ROWS, labelled._BLOCK = {rows}, {rows}\n"
        f"{prelude}\n"
        "from geoinfer.cli import main\n"
        "main()\n"
    )
    return (sys.executable, str(path))


def shards_in(output: Path) -> int:
    try:
        return (output.with_name("idx.building") / "ledger.jsonl").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def arguments(labels: Path, output: Path, workers: int = 2) -> tuple[object, ...]:
    return ("index", "build", labels, "-o", output, "-e", MODEL, "--kind", "flat", "--workers", workers)


def assert_as_unbroken(output: Path, unbroken) -> None:
    assert (files(output), output.with_name("idx.errors.csv").read_bytes()) == unbroken
    names = {path.name for path in output.parent.iterdir()} - {"driver.py"}
    assert names == {"idx", "idx.errors.csv"}


def kill_and_resume(kit, labels, output, seed, kills) -> int:
    """Kills at random moments, then lets it end; how many of the kills met a living process."""
    chance = random.Random(seed)
    command = driver(output.parent)
    met = 0
    for _ in range(kills):
        process = kit.start(command, *arguments(labels, output, chance.choice([1, 2])))
        target = shards_in(output) + chance.choice([0, 1, 2, 3])
        alive = kit.wait_for(lambda target=target: shards_in(output) >= target, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.random() * 0.3)
        met += alive and process.poll() is None
        kit.kill(process)
        if process.returncode == 1:
            return met
        if process.returncode != -signal.SIGKILL:
            break
    done = kit.run(command, *arguments(labels, output))
    if done.returncode == 2:
        # The last kill came when all was done, while the process wound up: the index that is there is the whole one.
        assert "idx: exists already" in done.stderr
        assert met
    else:
        assert done.returncode == 1, done.stderr
    return met


@pytest.mark.parametrize(("seed", "kills"), [(1, 3), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kit, labels, unbroken, tmp_path, seed, kills):
    assert kill_and_resume(kit, labels, tmp_path / "idx", seed, kills) >= 1
    assert_as_unbroken(tmp_path / "idx", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_killed_at_many_random_moments(kit, labels, unbroken, tmp_path, seed):
    kill_and_resume(kit, labels, tmp_path / "idx", seed, 5)
    assert_as_unbroken(tmp_path / "idx", unbroken)


DIE = "import os, signal\ndef die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
POINTS = {
    "when a shard is there and not entered": """
append = build_shards.append_entry
build_shards.append_entry = lambda path, entry: die() if entry.get('shard') == 2 else append(path, entry)
""",
    "between the two renames of the exchange": """
import geoinfer.index.exchange as exchange
replace = os.replace
exchange.os.replace = lambda a, b: die() if str(a).endswith('.new') else replace(a, b)
""",
    "when the index is there and the shards too": "build_shards.BuildShards.discard = die",
    "in the middle of a line of the ledger": """
append = build_shards.append_entry
def half(path, entry):
    if entry.get('shard') == 2:
        with path.open('ab') as file: file.write(b'{"bytes":17,"digest":"ab')
        die()
    append(path, entry)
build_shards.append_entry = half
""",
    "in the middle of a shard": """
import geoinfer.batch.build_shards as shards
write = shards._write_shard
def half(path, rows, failed):
    if path.name == 'shard-000003.arrow':
        with path.with_name('.shard-000003.arrow.geoinfer-tmp').open('wb') as file: file.write(b'half of a shard')
        die()
    write(path, rows, failed)
shards._write_shard = half
""",
    "when all is embedded and nothing written": "build.reported = die",
    "before the first shard": "build_shards._write_shard = die",
    "in the middle of clearing the folder": """
import pathlib
unlink = pathlib.Path.unlink
pathlib.Path.unlink = lambda path, **k: die() if path.name == 'shard-000003.arrow' else unlink(path, **k)
""",
}


@pytest.mark.parametrize(
    "point", [*list(POINTS)[:3], *(pytest.param(p, marks=pytest.mark.slow) for p in list(POINTS)[3:])]
)
def test_killed_where_it_would_hurt(kit, labels, unbroken, tmp_path, point):
    output = tmp_path / "idx"
    overwrite = ("--overwrite",) if "renames" in point else ()
    old = None
    if overwrite:
        assert kit.run(driver(tmp_path), *arguments(labels, output), "--source", "old").returncode == 1
        old = files(output)
    broken = kit.run(driver(tmp_path, prelude=DIE + POINTS[point]), *arguments(labels, output), *overwrite)
    assert broken.returncode == -signal.SIGKILL, broken.stderr
    if output.exists():  # whole, or not under its name
        assert files(output) in (old, unbroken[0])
    done = kit.run(driver(tmp_path), *arguments(labels, output), *overwrite)
    if point == "in the middle of clearing the folder":  # the ledger went first: this is a build anew, of what is there
        assert done.returncode == 2
        assert "exists already" in done.stderr
        done = kit.run(driver(tmp_path), *arguments(labels, output), "--overwrite")
    assert done.returncode == 1, done.stderr
    if "first shard" not in point and "clearing" not in point:
        assert "resuming after" in done.stderr
    assert_as_unbroken(output, unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_and_sigterm_say_that_it_can_be_resumed(kit, labels, unbroken, tmp_path, number):
    output = tmp_path / "idx"
    process = kit.start(driver(tmp_path), *arguments(labels, output, 1))
    assert kit.wait_for(lambda: shards_in(output) >= 2, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    lines = [line for line in stderr.splitlines() if line.startswith(("geoinfer:", "  "))]
    assert len(lines) == 2, stderr
    safe = int(lines[0].removeprefix("geoinfer: interrupted; ").split()[0])
    assert safe >= 10
    assert "the same command goes on from there" in lines[1]
    done = kit.run(kit.COMMAND, *arguments(labels, output))  # not the driver: shards of any size
    assert done.returncode == 1
    assert f"resuming after {safe} inputs" in done.stderr
    assert_as_unbroken(output, unbroken)


def test_two_builds_of_one_index(kit, labels, unbroken, tmp_path):
    """The second is refused, naming the first, which is not disturbed. The first is stopped meanwhile, not timed."""
    output = tmp_path / "idx"
    first = kit.start(driver(tmp_path), *arguments(labels, output, 1))
    assert kit.wait_for(lambda: shards_in(output) >= 1, first)
    first.send_signal(signal.SIGSTOP)
    for more in ((), ("--restart",), ("--overwrite",)):
        second = kit.run(kit.COMMAND, *arguments(labels, output), *more)
        assert second.returncode == 2
        assert f"process {first.pid} is writing it" in second.stderr
    first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 1, stderr
    assert_as_unbroken(output, unbroken)


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("limit", [10_000, 60_000], ids=["shard", "index"])
def test_files_that_may_not_grow(kit, labels, unbroken, tmp_path, limit):
    """A shard of five rows of 1280 numbers takes 30 KB, the vectors of the index 150 KB."""
    output = tmp_path / "idx"
    broken = kit.run(driver(tmp_path, prelude=LIMITED.format(limit=limit)), *arguments(labels, output))
    assert "file too large" in broken.stderr.lower()
    assert "Traceback" not in broken.stderr
    assert not output.exists()
    if limit == 10_000:
        assert broken.returncode == 2
        assert {path.name for path in tmp_path.iterdir()} == {"driver.py"}
    else:
        assert broken.returncode == 130
        assert "photos are embedded and safe in" in broken.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"driver.py", "idx.building"}
    done = kit.run(driver(tmp_path), *arguments(labels, output))
    assert done.returncode == 1, done.stderr
    assert ("resuming after" in done.stderr) == (limit == 60_000)
    assert_as_unbroken(output, unbroken)


def test_a_full_disk_keeps_the_old_index_when_embeddings_are_added(kit, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 1280)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name, part in (("a", vectors[:100]), ("b", vectors[100:])):
        np.save(tmp_path / f"{name}.npy", part)
        lines = [f"{name}{n},{n % 90},{n % 180}" for n in range(len(part))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,lat,lon", *lines]))
    built = kit.run(
        kit.COMMAND, "index", "build", tmp_path / "a.csv", "--embeddings", tmp_path / "a.npy", "-e", MODEL, "--kind",
        "flat", "-o", tmp_path / "idx",
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    before = files(tmp_path / "idx")
    add = ("index", "add", tmp_path / "idx", tmp_path / "b.csv", "--embeddings", tmp_path / "b.npy", "-e", MODEL)
    broken = kit.run(driver(tmp_path, prelude=LIMITED.format(limit=1_000_000)), *add)
    assert broken.returncode == 2, broken.stderr
    assert "file too large" in broken.stderr.lower()
    assert files(tmp_path / "idx") == before
    killed = kit.run(driver(tmp_path, prelude=DIE + "import geoinfer.batch.add as add\nadd.reported = die"), *add)
    assert killed.returncode == -signal.SIGKILL
    assert files(tmp_path / "idx") == before
    assert kit.run(kit.COMMAND, *add).returncode == 0
    stored = np.load(tmp_path / "idx" / "vectors.npy")
    np.testing.assert_array_equal(stored, vectors)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["a.csv", "a.npy", "b.csv", "b.npy", "driver.py", "idx", "idx.errors.csv"]
    )
