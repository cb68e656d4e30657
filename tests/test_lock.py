"""Who holds an output is said to those who would write it, too."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from geoinfer.errors import OutputError
from geoinfer.lock import OutputLock

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from geoinfer.lock import OutputLock
sys.argv = {argv!r}
with OutputLock(Path({lock!r}), Path("out.csv")):
    print("held", flush=True)
    sys.stdin.read()
"""


def refused(lock: Path) -> str:
    with pytest.raises(OutputError) as caught, OutputLock(lock, lock.with_name("out.csv")):
        pass
    assert caught.value.hint == "wait for it, stop it, or choose another --output"
    return str(caught.value)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/geoinfer", "predict", "my photos", "-o", "out.csv"], "geoinfer predict 'my photos' -o out.csv"),
        (["/x/geoinfer/__main__.py", "predict", "a\x1b[31m\n"], None),
        ([""], ""),
        (["geoinfer", "x" * 500], "geoinfer " + "x" * 188 + "..."),
    ],
    ids=["plain", "control characters", "none", "long"],
)
def test_the_holder_is_named(tmp_path: Path, argv: list[str], command: str | None) -> None:
    script = HOLD.format(argv=argv, lock=str(tmp_path / "lock"))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = refused(tmp_path / "lock")
        holder.communicate(timeout=30)
    found = re.fullmatch(
        rf"{tmp_path}/out\.csv: process {holder.pid} is writing it on (\S+) since "
        r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC)(?:: (.*))?",
        message,
        re.DOTALL,
    )
    assert found is not None, message
    assert found[1] == socket.gethostname()
    if command is not None:
        assert (found[3] or "") == command
    # It ended, and with it its claim.
    with OutputLock(tmp_path / "lock", tmp_path / "out.csv"):
        assert json.loads((tmp_path / "lock").read_bytes())["process"] == os.getpid()
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("content", [b"", b"process 12\n", b"{", b"[]", b'{"process": "x"}', b"\xff\xfe", b"null"])
def test_a_holder_that_has_not_said_who_it_is(tmp_path: Path, content: bytes) -> None:
    with OutputLock(tmp_path / "lock", tmp_path / "out.csv"):
        (tmp_path / "lock").write_bytes(content)
        assert refused(tmp_path / "lock") == f"{tmp_path}/out.csv: another process is writing it"


def test_what_a_killed_holder_left_behind_is_no_claim(tmp_path: Path) -> None:
    script = HOLD.format(argv=["geoinfer"], lock=str(tmp_path / "lock"))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    assert (tmp_path / "lock").exists()
    with OutputLock(tmp_path / "lock", tmp_path / "out.csv"):
        pass
