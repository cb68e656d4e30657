"""The ledger: what it enters is safe, what it cannot vouch for never happened."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from geoinfer import lock as lock_module
from geoinfer.batch.ledger import InputDigest, RunLedger, earlier_run
from geoinfer.errors import OutputError, UsageError
from geoinfer.lock import OutputLock

PRINT = {"model": "m", "--k": 10, "--shard": None}


def row(number: int, status: str = "ok") -> dict:
    return {"path": f"naïve {number}\n\u2028.jpg", "status": status, "latitude": number / 8}


def opened(output: Path, fingerprint: dict | None = None, *, restart: bool = False) -> RunLedger:
    ledger = RunLedger(output, fingerprint or PRINT)
    ledger.open(restart=restart)
    return ledger


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out.csv"


@pytest.fixture
def three_parts(output) -> Path:
    """An unfinished run of three parts, of 2, 3 and 1 rows; its folder."""
    with opened(output) as ledger:
        ledger.commit([row(0), row(1, "error")], "d0")
        ledger.commit([row(2), row(3), row(4, "skipped")], "d1")
        ledger.commit([row(5)], "d2")
    return output.with_name("out.csv.run")


def test_what_was_committed_is_there_again(output, three_parts):
    with opened(output) as ledger:
        assert [(part.number, part.inputs, part.digest) for part in ledger.parts] == [
            (0, 2, "d0"), (1, 3, "d1"), (2, 1, "d2"),
        ]  # fmt: skip
        assert ledger.inputs == 6
        assert ledger.counts == {"ok": 4, "error": 1, "skipped": 1}
        assert list(ledger.rows()) == [
            row(0), row(1, "error"), row(2), row(3), row(4, "skipped"), row(5),
        ]  # fmt: skip


def test_the_part_is_on_the_disk_before_it_is_entered(output, monkeypatch):
    """Every write is synced, and the order is part, its name, ledger: recorded at the system calls."""
    events = []
    fsync, replace = os.fsync, os.replace

    def name_of(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    def rename(self, target):
        events.append(("rename", Path(target).name))
        replace(self, target)
        return Path(target)

    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("sync", name_of(fd))), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", rename)
    with opened(output) as ledger:
        events.clear()
        ledger.commit([row(0)], "d0")
    assert events == [
        ("sync", ".part-000000.jsonl.geoinfer-tmp"),
        ("rename", "part-000000.jsonl"),
        ("sync", "out.csv.run"),
        ("sync", "ledger.jsonl"),
        ("sync", "out.csv.run"),
    ]


def test_a_ledger_cut_anywhere_gives_back_a_prefix(output, three_parts):
    """A crash cuts the file at any byte: what is left is a number of whole parts, and the run goes on from there."""
    whole = (three_parts / "ledger.jsonl").read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    keep = output.with_name("keep")
    shutil.copytree(three_parts, keep)
    for cut in range(0, len(whole) + 1, 3):
        shutil.rmtree(three_parts)
        shutil.copytree(keep, three_parts)
        (three_parts / "ledger.jsonl").write_bytes(whole[:cut])
        safe = max(0, sum(end <= cut for end in ends) - 1)
        with opened(output) as ledger:
            assert len(ledger.parts) == safe, cut
            ledger.commit([row(100)], "dx")
        with opened(output) as ledger:
            assert len(ledger.parts) == safe + 1, cut
            assert list(ledger.rows())[-1] == row(100)


@pytest.mark.parametrize(
    "garbage", [b"\0" * 40, b"\xff\xfe\n", b"[]\n", b"7\n", b'{"part":3}\n', b'{"part":9,"inputs":1}\n', b"{\n"]
)
def test_garbage_behind_the_last_part_never_happened(output, three_parts, garbage):
    with (three_parts / "ledger.jsonl").open("ab") as file:
        file.write(garbage)
    with opened(output) as ledger:
        assert ledger.inputs == 6
        ledger.commit([row(6)], "d3")
    with opened(output) as ledger:
        assert ledger.inputs == 7


@pytest.mark.parametrize(("number", "safe"), [(0, 0), (1, 2), (2, 5)])
@pytest.mark.parametrize("damage", ["missing", "empty", "shorter", "longer"])
def test_a_part_that_is_not_as_it_was_written_is_done_again(output, three_parts, number, safe, damage):
    path = three_parts / f"part-{number:06d}.jsonl"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "shorter": data[:-1], "longer": data + data}[damage])
    with opened(output) as ledger:
        assert ledger.inputs == safe
        assert len(list(ledger.rows())) == safe


def test_stray_files_are_no_parts(output, three_parts):
    (three_parts / "part-000003.jsonl").write_text('{"path": "not entered"}\n')
    (three_parts / ".part-000004.jsonl.geoinfer-tmp").write_text("half")
    with opened(output) as ledger:
        assert len(list(ledger.rows())) == 6
        ledger.commit([row(6)], "d3")
        assert [r["path"] for r in ledger.rows()][-1] == row(6)["path"]
        ledger.discard()
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("field", ["model", "--k", "--shard", "new"])
def test_another_fingerprint_is_refused_naming_the_field(output, three_parts, field):
    other = PRINT | {field: "something else"}
    with pytest.raises(UsageError) as caught:
        opened(output, other)
    assert f"another {field} (" in str(caught.value)
    assert "something else" in str(caught.value)
    assert "--restart" in caught.value.hint
    with opened(output) as ledger:
        assert ledger.inputs == 6, "the refusal cost nothing"


def test_restart_forgets(output, three_parts):
    output.write_text("old")
    with opened(output, PRINT | {"--k": 1}, restart=True) as ledger:
        # The old result stays until there is a new one.
        assert (ledger.inputs, output.read_text()) == (0, "old")
        ledger.commit([row(0)], "e0")
    assert sorted(path.name for path in three_parts.iterdir()) == ["ledger.jsonl", "lock", "part-000000.jsonl"]


def test_a_file_that_no_run_made_is_refused_and_kept(output):
    output.write_text("precious")
    with pytest.raises(OutputError, match="exists already") as caught:
        opened(output)
    assert caught.value.exit_code == 2
    assert (output.read_text(), os.listdir(output.parent)) == ("precious", ["out.csv"])


def finish(output: Path) -> None:
    with opened(output) as ledger:
        ledger.commit([row(0)], "d0")
        output.write_text("result")
        ledger.finish({"inputs": 1})


def test_a_finished_run_is_known_by_its_record_and_the_size_of_its_output(output):
    finish(output)
    assert sorted(os.listdir(output.parent)) == ["out.csv", "out.csv.run.json"]
    with opened(output) as ledger:
        assert ledger.finished["inputs"] == 1
        ledger.discard()
    with pytest.raises(UsageError, match="a finished run is there, made with another model"):
        opened(output, PRINT | {"model": "n"})
    output.write_text("edited since")
    with pytest.raises(OutputError, match="not the unchanged output"):
        opened(output)
    assert sorted(os.listdir(output.parent)) == ["out.csv", "out.csv.run.json"]


def test_a_record_whose_output_was_deleted_is_not_taken_for_a_later_runs(output):
    """Else a kill just before the new record would make the old one, of other inputs, the new output's."""
    finish(output)
    output.unlink()
    with opened(output) as ledger:
        ledger.commit([row(7)], "d7")
        output.write_text("RESULT")  # as long as the first one, and then the power goes
    with opened(output) as ledger:
        assert ledger.finished is None
        assert ledger.inputs == 1


@pytest.mark.parametrize("left", ["part-000000.jsonl", "part-000002.jsonl", "lock"])
def test_a_kill_while_the_folder_is_cleared_leaves_a_finished_run(output, three_parts, monkeypatch, left):
    """The ledger goes first. Otherwise the parts that happen to be left would be an unfinished run of their own."""
    unlink = Path.unlink

    def dies(self, **more):
        if self.name == left:
            raise KeyboardInterrupt
        unlink(self, **more)

    with opened(output) as ledger:
        output.write_text("result")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dies)
            with pytest.raises(KeyboardInterrupt):
                ledger.finish({"inputs": 6})
    assert (three_parts / left).exists()
    with opened(output) as ledger:
        assert ledger.parts == []
        assert ledger.finished["inputs"] == 6
        ledger.discard()
    assert not three_parts.exists()


def hold(output: Path) -> subprocess.Popen[str]:
    code = (
        "import sys, pathlib; from geoinfer.batch.ledger import RunLedger\n"
        f"ledger = RunLedger(pathlib.Path(sys.argv[1]), {PRINT!r}); ledger.open(restart=False)\n"
        "print('held', flush=True); sys.stdin.read(); print('still mine' if ledger.folder.is_dir() else 'gone')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("restart", [False, True])
def test_one_process_at_a_time(output, restart):
    holder = hold(output)
    with pytest.raises(OutputError, match=f"process {holder.pid} is writing it") as caught:
        opened(output, restart=restart)
    assert caught.value.exit_code == 2
    assert holder.communicate("")[0] == "still mine\n"
    with opened(output) as ledger:  # the lock goes with its process, however that ended
        assert ledger.parts == []


def test_the_lock_of_a_folder_that_went_away_is_no_lock(output, monkeypatch):
    """A second run opens the lock file; the first ends and removes it; the second locks what nobody else will see."""
    first = opened(output)
    lock_file = OutputLock._lock
    calls = []

    def late(self, lock):
        calls.append(1)
        if len(calls) == 1:
            first.discard()
        lock_file(self, lock)

    monkeypatch.setattr(OutputLock, "_lock", late)
    with opened(output):
        assert len(calls) == 2
        with pytest.raises(OutputError, match=f"process {os.getpid()} is writing it"):
            opened(output)


def test_a_file_system_without_locks_does_not_stop_a_run(output, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock_module.fcntl, "flock", flock)
    with opened(output) as ledger:
        ledger.commit([row(0)], "d0")
        assert ledger.inputs == 1


class Full:
    """A disk that has no room for the last ten bytes of a file of this name."""

    def __init__(self, monkeypatch, name: str):
        self.name, self.armed, fsync = name, False, os.fsync

        def failing(descriptor):
            if self.armed and os.readlink(f"/proc/self/fd/{descriptor}").endswith(self.name):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - 10)
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)


@pytest.mark.parametrize("name", [".part-000003.jsonl.geoinfer-tmp", "ledger.jsonl"])
def test_a_full_disk_costs_only_the_part_it_stopped(output, three_parts, monkeypatch, name):
    full = Full(monkeypatch, name)
    with opened(output) as ledger:
        full.armed = True
        with pytest.raises(OSError, match="No space"):
            ledger.commit([row(6)], "d3")
        assert ledger.inputs == 6
        full.armed = False
        ledger.commit([row(6)], "d3")  # also in the same process
    with opened(output) as ledger:
        assert [part.digest for part in ledger.parts] == ["d0", "d1", "d2", "d3"]
    assert not list(three_parts.glob(".*"))


def test_a_disk_that_is_full_from_the_start_is_a_refusal_and_leaves_nothing(output, monkeypatch):
    Full(monkeypatch, "ledger.jsonl").armed = True
    with pytest.raises(OutputError, match="no space left on device"):
        opened(output)
    assert os.listdir(output.parent) == []


@pytest.mark.parametrize("place", ["file/out.csv", "/proc/out.csv", "folder", "x" * 246 + ".csv"])
def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        opened(tmp_path / place)
    assert caught.value.exit_code == 2
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_digest_names_a_sequence():
    def of(*paths):
        digest = InputDigest()
        for path in paths:
            digest.add(path)
        return digest.value

    different = [of(), of(b""), of(b"ab"), of(b"a", b"b"), of(b"b", b"a"), of(b"a", b"b", b""), of(b"a\0\0\0\1b")]
    assert len({*different}) == len(different)
    assert of(b"a", b"b") == of(b"a", b"b")


def test_the_ledger_is_lines_of_json_that_anyone_can_read(three_parts):
    lines = [json.loads(line) for line in (three_parts / "ledger.jsonl").read_text().splitlines()]
    assert lines[0] == {"fingerprint": PRINT}
    assert [line["inputs"] for line in lines[1:]] == [2, 3, 1]


def test_what_an_earlier_run_was_made_with_is_found_without_touching_it(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    assert earlier_run(output) == (None, False)
    with RunLedger(output, {"engine file": "a"}) as ledger:
        ledger.open(restart=False)
        # Also while another process holds the lock, and where a crash cut the ledger short.
        assert earlier_run(output) == ({"engine file": "a"}, False)
        with (ledger.folder / "ledger.jsonl").open("ab") as file:
            file.write(b'{"part": 0, "inp')
        before = (ledger.folder / "ledger.jsonl").read_bytes()
        assert earlier_run(output) == ({"engine file": "a"}, False)
        assert (ledger.folder / "ledger.jsonl").read_bytes() == before
        output.write_text("x")
        ledger.finish({})
    assert earlier_run(output) == ({"engine file": "a"}, True)
    output.unlink()
    assert earlier_run(output) == ({"engine file": "a"}, False)
    for content in (b"", b"{", b"[]", b'{"fingerprint": 5}', b"\xff"):
        ledger.record_path.write_bytes(content)
        assert earlier_run(output) == (None, False)
