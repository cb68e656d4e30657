from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import subprocess

import pytest

from geoinfer.errors import OutputError
from geoinfer.integrity import atomic_file, canonical_json, sha256_of, sync_file, sync_folder, write_json


class TestSha256:
    @pytest.mark.parametrize(
        ("data", "digest"),
        [
            # FIPS 180-2, appendix B
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"a" * 1_000_000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ],
    )
    def test_published_digests(self, tmp_path, data, digest):
        (tmp_path / "f").write_bytes(data)
        assert sha256_of(tmp_path / "f") == digest

    def test_equals_the_command(self, tmp_path):
        (tmp_path / "f").write_bytes(os.urandom(300_001))
        try:
            out = subprocess.run(["sha256sum", tmp_path / "f"], capture_output=True, check=True).stdout
        except FileNotFoundError:
            pytest.skip("no sha256sum here")
        assert sha256_of(tmp_path / "f") == out.split()[0].decode()

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            sha256_of(tmp_path / "gone")


class TestAtomicFile:
    def test_appears_when_the_block_ends(self, tmp_path):
        path = tmp_path / "out.bin"
        with atomic_file(path) as file:
            file.write(b"half")
            file.flush()
            assert not path.exists()
            file.write(b" and half")
        assert path.read_bytes() == b"half and half"
        assert os.listdir(tmp_path) == ["out.bin"]

    def test_replaces_what_was_there_only_when_whole(self, tmp_path):
        path = tmp_path / "out.bin"
        path.write_bytes(b"old")
        with atomic_file(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"

    @pytest.mark.parametrize("fault", [ValueError, OSError, KeyboardInterrupt, SystemExit])
    def test_an_error_leaves_what_was_there(self, tmp_path, fault):
        path = tmp_path / "out.bin"
        for before in (None, b"old"):
            if before is not None:
                path.write_bytes(before)
            with pytest.raises(fault), atomic_file(path) as file:
                file.write(b"new")
                raise fault
            assert (path.read_bytes() if path.exists() else None) == before
            assert os.listdir(tmp_path) == ([] if before is None else ["out.bin"])

    def test_a_folder_in_the_way_stays(self, tmp_path):
        path = tmp_path / "out"
        path.mkdir()
        (path / "kept").write_bytes(b"x")
        with pytest.raises(OSError, match="directory"), atomic_file(path) as file:
            file.write(b"new")
        assert os.listdir(tmp_path) == ["out"]
        assert os.listdir(path) == ["kept"]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
    def test_a_pipe_in_the_way_stays(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("pipe")
        for name in ("pipe", "link"):
            with pytest.raises(OutputError, match="not a regular file") as caught, atomic_file(tmp_path / name):
                pytest.fail("the block must not run")
            assert str(caught.value).startswith(str(tmp_path / name))
        assert (tmp_path / "pipe").is_fifo()
        assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]

    @pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no sockets with names here")
    def test_a_socket_in_the_way_stays(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
            listening.bind("here")
            with pytest.raises(OutputError, match="not a regular file"), atomic_file(tmp_path / "here"):
                pytest.fail("the block must not run")
        assert (tmp_path / "here").is_socket()

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "gone" / "out"):
            pytest.fail("the block must not run")

    def test_the_bytes_are_on_the_disk_before_the_name(self, tmp_path, monkeypatch):
        # A power cut cannot be provoked, so the order of the calls is looked at.
        calls = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(f"sync {os.fstat(fd).st_size}"), fsync(fd))[1])
        monkeypatch.setattr(os, "replace", lambda *a, **k: (calls.append("rename"), replace(*a, **k))[1])
        with atomic_file(tmp_path / "out") as file:
            file.write(b"12345")
        assert calls[:2] == ["sync 5", "rename"]
        assert len(calls) == 3  # and then the folder


def test_syncing_what_is_not_there(tmp_path):
    sync_folder(tmp_path / "gone")  # quietly: not every system can
    with pytest.raises(FileNotFoundError):
        sync_file(tmp_path / "gone")
    assert os.listdir(tmp_path) == []


def test_syncing_a_file_leaves_its_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    sync_file(tmp_path / "f")
    sync_folder(tmp_path)
    assert (tmp_path / "f").read_bytes() == b"abc"


class TestJson:
    def test_canonical(self):
        assert canonical_json({"b": [1, 2.5, None], "a": "é", "c": {"z": True, "y": 1}}) == (
            '{"a":"é","b":[1,2.5,null],"c":{"y":1,"z":true}}'
        )
        assert canonical_json({"x": 1, "y": 2}) == canonical_json({"y": 2, "x": 1})

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_canonical_refuses_what_is_not_json(self, value):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": value})

    def test_written_json(self, tmp_path):
        path = tmp_path / "m.json"
        write_json(path, {"b": 1, "a": ["ü", 0.1]})
        assert path.read_bytes() == '{\n  "a": [\n    "ü",\n    0.1\n  ],\n  "b": 1\n}\n'.encode()
        assert json.loads(path.read_bytes()) == {"a": ["ü", 0.1], "b": 1}

    @pytest.mark.parametrize("value", [math.nan, object(), "\udcff"])
    def test_what_cannot_be_written_leaves_what_was_there(self, tmp_path, value):
        path = tmp_path / "m.json"
        path.write_bytes(b"old")
        with pytest.raises((ValueError, TypeError)):
            write_json(path, {"a": value})
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["m.json"]

    def test_the_digest_of_a_manifest_does_not_depend_on_its_order(self, tmp_path):
        for name, value in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1})):
            write_json(tmp_path / name, value)
        assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
        with contextlib.closing((tmp_path / "a").open("rb")) as file:
            assert sha256_of(tmp_path / "a") == hashlib.sha256(file.read()).hexdigest()


class TestKnownDigests:
    """A large file is read once, unless there is any reason to think that it is another by now."""

    @pytest.fixture
    def large(self, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(os.urandom(1 << 21))
        old = 1_600_000_000
        os.utime(path, (old, old))
        return path

    def at(self, monkeypatch, path, seconds):
        """As if it were so many seconds after the file was changed."""
        moment = path.stat().st_ctime + seconds
        monkeypatch.setattr("geoinfer.integrity.time.time", lambda: moment)

    def count(self, monkeypatch):
        read = []
        real = hashlib.file_digest
        monkeypatch.setattr(
            "geoinfer.integrity.hashlib.file_digest", lambda file, name: read.append(1) or real(file, name)
        )
        return read

    def test_read_once(self, large, monkeypatch):
        self.at(monkeypatch, large, 60)
        read = self.count(monkeypatch)
        assert sha256_of(large) == sha256_of(large) == hashlib.sha256(large.read_bytes()).hexdigest()
        assert len(read) == 1

    def test_read_again_after_a_change_that_restores_size_and_time(self, large, monkeypatch):
        self.at(monkeypatch, large, 60)
        before = sha256_of(large)
        changed = bytearray(large.read_bytes())
        changed[1000] ^= 1
        large.write_bytes(changed)
        os.utime(large, (1_600_000_000, 1_600_000_000))
        assert sha256_of(large) == hashlib.sha256(changed).hexdigest() != before

    def test_what_is_new_is_read_each_time(self, large, monkeypatch):
        self.at(monkeypatch, large, 1)
        read = self.count(monkeypatch)
        assert sha256_of(large) == sha256_of(large)
        assert len(read) == 2

    def test_another_file_in_its_place(self, large, monkeypatch):
        self.at(monkeypatch, large, 60)
        before = sha256_of(large)
        large.with_name("other").write_bytes(b"x" * (1 << 21))
        large.with_name("other").replace(large)
        assert sha256_of(large) == hashlib.sha256(b"x" * (1 << 21)).hexdigest() != before
