"""`geoinfer index merge`, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from geoinfer.backends.base import EmbedderIdentity
from geoinfer.images import Preprocessing
from geoinfer.index import References, open_index, write_index

if TYPE_CHECKING:
    from pathlib import Path


def index(folder: Path, numbers: range, *, name: str = "fake", shift: float = 0.0) -> None:
    angles = np.array(numbers) / 10
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    digests = np.array([np.random.default_rng(n).integers(0, 256, 32, np.uint8) for n in numbers])
    references = References(
        [f"photo {n}" for n in numbers], np.array([(n + shift, n) for n in numbers], float), [""] * len(numbers),
        [""] * len(numbers), digests, digests,
    )  # fmt: skip
    write_index(folder, vectors, references, EmbedderIdentity(name, 2, Preprocessing(size=2)))


def test_merge(run, here: Path) -> None:
    index(here / "a", range(30))
    index(here / "b", range(20, 50))
    outcome = run("index", "merge", "a", "b", "--output", "c")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Merged 30 + 30 references into 50 in ")
    assert "; 10 were in more than one index, 0 gave way" in outcome.out
    assert "index:  c (flat, calibrated on 50 references)" in outcome.out
    assert outcome.err.splitlines()[0].startswith("kind: flat (")
    assert list(open_index(here / "c").references.ids) == [f"photo {n}" for n in range(50)]
    assert sorted(path.name for path in here.iterdir()) == ["a", "b", "c"]


def test_a_name_for_two_things(run, here: Path) -> None:
    index(here / "a", range(30))
    index(here / "b", range(20, 50), shift=0.5)
    outcome = run("index", "merge", "a", "b", "--output", "c")
    assert outcome.code == 2
    assert "photo 20 is in a and in b, with another place" in outcome.err
    assert not (here / "c").exists()
    assert run("index", "merge", "a", "b", "--output", "c", "--keep", "second").code == 2
    outcome = run("index", "merge", "a", "b", "--output", "c", "--keep", "first", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert open_index(here / "c").references.coordinates[20].tolist() == [20, 20]


@pytest.mark.parametrize("folders", [["a"], ["a", "a"], ["a", "nowhere"]])
def test_folders_that_make_no_sense(run, here: Path, folders: list[str]) -> None:
    index(here / "a", range(30))
    outcome = run("index", "merge", *folders, "--output", "c")
    assert outcome.code == 2
    assert not (here / "c").exists()


def test_two_models(run, here: Path) -> None:
    index(here / "a", range(30))
    index(here / "b", range(30, 50), name="other")
    outcome = run("index", "merge", "a", "b", "--output", "c")
    assert outcome.code == 3
    assert "a was made by fake (2 dimensions" in outcome.err
    assert "but b by other (2 dimensions" in outcome.err
