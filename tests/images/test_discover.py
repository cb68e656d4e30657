from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoinfer.errors import InputError
from geoinfer.images import check_sources, discover
from geoinfer.images.discover import IMAGE_SUFFIXES, Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

discover_module = sys.modules["geoinfer.images.discover"]


def touch(folder: Path | bytes, *names: str | bytes) -> None:
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass


def found(*arguments: object) -> list[bytes]:
    return [source.path for source in discover([os.fsdecode(os.fspath(a)) for a in arguments])]  # type: ignore[call-overload]


def below(folder: Path, *arguments: str) -> list[str]:
    """What is found, relative to the folder, as text."""
    names = found(*(folder / argument for argument in arguments)) if arguments else found(folder)
    return [os.fsdecode(os.path.relpath(name, os.fsencode(folder))) for name in names]


def by_walking(folder: Path) -> list[bytes]:
    paths = []
    for parent, folders, files in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if not name.startswith(b".") and (suffix in IMAGE_SUFFIXES or suffix == b".nef"):
                paths.append(os.path.join(parent, name))
    return sorted(paths)


names = st.text("ab.A é~-", min_size=1, max_size=4).filter(lambda name: name.strip("."))
trees = st.lists(
    st.tuples(
        st.lists(names, max_size=3), names, st.sampled_from([".jpg", ".JPG", ".png", ".txt", "", ".nef", ".heic"])
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(tree=trees, limit=st.integers(1, 6))
def test_order_is_that_of_a_sorted_walk_in_memory_and_out(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[list[str], str, str]], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for folders, name, suffix in tree:
        try:
            touch(folder, "/".join([*folders, name + suffix]))
        except OSError:  # a file of that name is there, where a folder should be, or the other way round
            continue
    expected = by_walking(folder)
    assert found(folder) == expected
    assert found(folder) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discover_module, "_SORTED_IN_MEMORY", limit)
        assert found(folder) == expected


def test_external_sort_of_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = [f"{number * 7919 % 1000:04d}\n{'x' * (number % 90)}.jpg" for number in range(1000)]
    touch(tmp_path, *written)
    in_memory = found(tmp_path)
    monkeypatch.setattr(discover_module, "_SORTED_IN_MEMORY", 37)
    monkeypatch.setattr(discover_module, "_LONGEST_PATH", 128)
    assert found(tmp_path) == in_memory == by_walking(tmp_path)


def test_hidden_entries_and_other_files_are_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.jpg", ".b.jpg", "._a.jpg", ".git/c.jpg", "d/.e/f.jpg", "notes.txt", "g", "h.jpg.part", "d/I.JPEG"
    )
    assert below(tmp_path) == ["a.jpg", "d/I.JPEG"]


def test_files_that_are_named_may_be_called_anything(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden.jpg", "notes.txt")
    assert below(tmp_path, "notes.txt", ".hidden.jpg") == ["notes.txt", ".hidden.jpg"]


def test_a_path_named_twice_is_two_inputs_in_the_order_given(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.jpg")
    assert below(tmp_path, "b.jpg", ".", "b.jpg") == ["b.jpg", "a.jpg", "b.jpg", "b.jpg"]


def test_raw_files_are_skipped_and_not_silently(tmp_path: Path) -> None:
    touch(tmp_path, "a.CR2", "b.nef", "c.jpg")
    sources = list(discover([str(tmp_path)]))
    assert [source.problem and (source.problem.code, source.problem.status) for source in sources] == [
        ("camera_raw", "skipped"),
        ("camera_raw", "skipped"),
        None,
    ]
    (named,) = discover([str(tmp_path / "a.CR2")])
    assert named.problem is not None
    assert "CR2" in str(named.problem)


def test_names_of_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wild = sorted(
        [b"caf\xe9.jpg", b'a,"b".jpg', b"c\nd.jpg", b" e .jpg", b"\xff\xfe.jpg", b"[f].jpg", b"g\\h.jpg", b"*.jpg"]
    )
    touch(tmp_path, *wild)
    monkeypatch.chdir(tmp_path)
    assert [os.path.basename(path) for path in found(tmp_path)] == wild
    assert found(".") == [b"./" + name for name in wild]
    for name in wild:
        assert found(os.fsdecode(name)) == [name]
    assert found("*.jpg") == [b"*.jpg"]  # a file of that very name comes before the pattern
    assert found("?*.jpg") == wild


# ---------------------------------------------------------------- links


def test_loops_of_links_are_walked_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "b/y.jpg")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "other").symlink_to("../a")
    (tmp_path / "b" / "self").symlink_to(".")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("nothing")
    assert below(tmp_path) == ["a/x.jpg", "b/y.jpg", "itself.jpg", "nowhere.jpg"]


def test_linked_folder_is_followed(tmp_path: Path) -> None:
    touch(tmp_path, "real/x.jpg", "photos/y.jpg")
    (tmp_path / "photos" / "link").symlink_to("../real")
    assert below(tmp_path, "photos") == ["photos/link/x.jpg", "photos/y.jpg"]


@pytest.mark.parametrize("pattern", ["**", "**/*.jpg", "**/*", "*", "**/**/*.jpg"])
def test_patterns_end_where_links_go_round(tmp_path: Path, pattern: str) -> None:
    # Three links up: Python's own glob follows them 3 ** 40 times.
    touch(tmp_path, "a/x.jpg", "b/y.jpg")
    for name in ("one", "two", "three"):
        (tmp_path / "a" / name).symlink_to("..")
    results: list[list[str]] = []
    thread = threading.Thread(target=lambda: results.append(below(tmp_path, pattern)), daemon=True)
    thread.start()
    thread.join(20)
    # Under whichever of its names, each photo is found once.
    (names,) = results
    assert sorted(os.path.realpath(tmp_path / name) for name in names) == [
        os.path.realpath(tmp_path / name) for name in ("a/x.jpg", "b/y.jpg")
    ]


def test_very_deep_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _level in range(1100):
        os.mkdir("d")
        os.chdir("d")
    touch(b".", "x.jpg")
    monkeypatch.chdir(tmp_path)
    assert found(".") == [b"./" + b"d/" * 1100 + b"x.jpg"]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


# ---------------------------------------------------------------- patterns


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "2020/a.jpg", "2020/b.txt", "2021/deep/c.png", "x/2020/d.jpg", "e.jpg", ".h/f.jpg", "x/2020.jpg")
    everything = ["2020/a.jpg", "2021/deep/c.png", "e.jpg", "x/2020.jpg", "x/2020/d.jpg"]
    assert below(tmp_path, "*.jpg") == ["e.jpg"]
    assert below(tmp_path, "20*") == ["2020/a.jpg", "2021/deep/c.png"]
    assert below(tmp_path, "20[2]1") == ["2021/deep/c.png"]
    assert sorted(below(tmp_path, "**")) == everything
    assert sorted(below(tmp_path, "**/*")) == everything
    assert below(tmp_path, "**/*.jpg") == ["2020/a.jpg", "e.jpg", "x/2020.jpg", "x/2020/d.jpg"]
    assert below(tmp_path, "**/2020") == ["2020/a.jpg", "x/2020/d.jpg"]
    assert below(tmp_path, "x/**/*.jpg") == ["x/2020.jpg", "x/2020/d.jpg"]
    assert below(tmp_path, "*/**/c.*") == ["2021/deep/c.png"]


def test_relative_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/b/c.jpg", "d.jpg")
    monkeypatch.chdir(tmp_path)
    assert found("**/*.jpg") == [b"a/b/c.jpg", b"d.jpg"]
    assert found("**") == [b"./a/b/c.jpg", b"./d.jpg"]


def test_nested_patterns_do_not_repeat_photos(tmp_path: Path) -> None:
    touch(tmp_path, "a/a/a.jpg", "a/a.jpg")
    assert sorted(below(tmp_path, "**/a*")) == ["a/a.jpg", "a/a/a.jpg"]
    assert below(tmp_path, "**/a/**/*.jpg") == ["a/a.jpg", "a/a/a.jpg"]


# ---------------------------------------------------------------- lists


class Pipe(io.RawIOBase):
    """A stream that gives its parts one at a time, and says how much was asked of it."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self.given = 0

    def read1(self, size: int = -1) -> bytes:
        del size
        if self.given == len(self.parts):
            return b""
        self.given += 1
        return self.parts[self.given - 1]


class Stdin:
    def __init__(self, buffer: object) -> None:
        self.buffer = buffer


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    def give(*parts: bytes) -> Pipe:
        pipe = Pipe(list(parts))
        monkeypatch.setattr(sys, "stdin", Stdin(pipe))
        return pipe

    return give  # type: ignore[return-value]


def listed(data: bytes, folder: Path) -> list[bytes]:
    (folder / "list.txt").write_bytes(data)
    return found(f"@{folder}/list.txt")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a.jpg\nb.jpg\n", [b"a.jpg", b"b.jpg"]),
        (b"a.jpg\r\nb.jpg\r\n", [b"a.jpg", b"b.jpg"]),
        (b"a.jpg\nb.jpg", [b"a.jpg", b"b.jpg"]),
        (b"\xef\xbb\xbfa.jpg\n", [b"a.jpg"]),
        (b"\n\na.jpg\n\r\n\n", [b"a.jpg"]),
        (b"a\nb.jpg\0c,\"d\".jpg\0", [b"a\nb.jpg", b'c,"d".jpg']),
        (b"a\r\0b\n", [b"a\r", b"b\n"]),
        (b"caf\xe9.jpg\n", [b"caf\xe9.jpg"]),
        (b" a .jpg \n", [b" a .jpg "]),
        (b"@a.jpg\n-\n*.jpg\n", [b"@a.jpg", b"-", b"*.jpg"]),
        (b"x.cr2\n", [b"x.cr2"]),
        (b"", []),
        (b"\n", []),
        (b"\0\0", []),
    ],
)  # fmt: skip
def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list[bytes]) -> None:
    monkeypatch.chdir(tmp_path)
    assert listed(data, tmp_path) == expected


nul_names = st.lists(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(
    names=nul_names,
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    separator=st.sampled_from([b"\0", b"\n"]),
)
def test_list_is_the_same_however_it_arrives(names: list[bytes], cuts: list[int], separator: bytes) -> None:
    if separator == b"\n":
        names = [name.replace(b"\n", b"x").replace(b"\r", b"y") for name in names]
        if names[0].startswith(b"\xef\xbb\xbf"):
            names[0] = b"x"
    # A newline within the first piece, before any NUL has come, is the one thing that cannot be told.
    first = [names[0].replace(b"\n", b"x")] if separator == b"\0" else names[:1]
    names = [b"/nonexistent/" + name for name in first + names[1:]]
    data = separator.join(names) + separator
    parts, at = [], 0
    for cut in cuts:
        parts.append(data[at : at + cut])
        at += cut
    parts = [part for part in [*parts, data[at:]] if part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", Stdin(Pipe(parts)))
        assert [source.path for source in discover(["-"])] == names


def test_standard_input_is_worked_on_as_it_arrives(stdin) -> None:
    pipe = stdin(b"a.jpg\nb.", b"jpg\n", b"c.jpg\n")
    sources = discover(["-"])
    assert next(sources).path == b"a.jpg"
    assert pipe.given == 1
    assert [source.path for source in sources] == [b"b.jpg", b"c.jpg"]


def test_long_list_is_streamed_in_linear_time(stdin) -> None:
    block = b"".join(b"/none/%07d.jpg\0" % number for number in range(4000))
    pipe = stdin(*[block] * 25)
    started = time.perf_counter()
    sources = discover(["-"])
    next(sources)
    assert pipe.given == 1  # no more was taken than was needed
    assert sum(1 for _ in sources) == 100_000 - 1
    assert time.perf_counter() - started < 10


def test_what_is_not_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="longer than any path"):
        listed(b"x" * 300_000, tmp_path)


def test_folder_in_a_list_is_walked(tmp_path: Path) -> None:
    touch(tmp_path, "photos/b.jpg", "photos/a.jpg", "photos/n.txt", "z.jpg")
    data = b"%s\n%s\n" % (os.fsencode(tmp_path / "z.jpg"), os.fsencode(tmp_path / "photos"))
    base = os.fsencode(tmp_path)
    assert listed(data, tmp_path) == [base + b"/z.jpg", base + b"/photos/a.jpg", base + b"/photos/b.jpg"]


def test_file_whose_name_begins_with_at_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "@a.jpg")
    (tmp_path / "a.jpg").write_bytes(b"never.jpg\n")
    assert found("@a.jpg") == [b"@a.jpg"]


# ---------------------------------------------------------------- what cannot be read


def unreadable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Root may read anything, so the refusal is the test's own."""
    real = os.scandir

    def scandir(path: object) -> object:
        if os.fsencode(path) == os.fsencode(folder):  # type: ignore[arg-type]
            raise PermissionError(13, "Permission denied")
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)


def test_unreadable_sub_folder_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/x.jpg", "b/y.jpg", "c/z.jpg")
    unreadable(monkeypatch, tmp_path / "b")
    sources = list(discover([str(tmp_path)]))
    assert [os.path.basename(source.path) for source in sources] == [b"x.jpg", b"b", b"z.jpg"]
    assert [source.problem and source.problem.code for source in sources] == [None, "unreadable_folder", None]
    assert sources[1].problem is not None
    assert sources[1].problem.stage == "discover"


def test_unreadable_folder_that_was_named_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "x.jpg")
    unreadable(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="permission denied"):
        found(tmp_path)
    with pytest.raises(InputError, match="permission denied"):
        check_sources([str(tmp_path)])


@pytest.mark.parametrize("argument", ["", "nowhere.jpg", "nowhere/", "@nolist.txt", "no*.jpg", "**/no*.jpg", "@folder"])
def test_argument_that_names_nothing_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.jpg", "folder/b.jpg")
    with pytest.raises(InputError):
        check_sources(["a.jpg", argument])
    with pytest.raises(InputError):
        list(discover(["a.jpg", argument]))


def test_good_arguments_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.jpg", "[b].jpg", "list.txt", "folder/c.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    good = ["a.jpg", "[b].jpg", "@list.txt", "folder", "*.jpg", "**", "-", "dangling.jpg"]
    check_sources(good)
    assert list(discover(good[:1])) == [Source(b"a.jpg")]


def test_checking_a_list_that_is_a_pipe_neither_waits_nor_takes_from_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")
    thread = threading.Thread(target=check_sources, args=([f"@{tmp_path}/list"],), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_named_pipe_in_a_folder_is_listed_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    assert below(tmp_path) == ["x.jpg"]
