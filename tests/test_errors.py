from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from geoinfer import errors
from geoinfer.errors import GeoInferError, ImageError

ALL = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, GeoInferError)
]  # fmt: skip


# House.md's table, by class: exit code, and the builtin that a caller would expect to catch.
WANTED = {
    "GeoInferError": (2, Exception),
    "UsageError": (2, ValueError),
    "InputError": (2, OSError),
    "OutputError": (2, OSError),
    "LabelsError": (2, ValueError),
    "MissingPackageError": (2, ImportError),
    "ModelError": (3, ValueError),
    "IndexFolderError": (3, ValueError),
    "MismatchError": (3, ValueError),
    "DeviceError": (4, RuntimeError),
    "InterruptedRunError": (130, OSError),
    "ImageError": (2, ValueError),
}


def test_none_is_missing_from_the_table() -> None:
    assert {error.__name__ for error in ALL} == set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_exit_code_and_builtin(name: str) -> None:
    code, builtin = WANTED[name]
    error = getattr(errors, name)
    assert error.exit_code == code
    assert issubclass(error, builtin)


@pytest.mark.parametrize("error", [error for error in ALL if error is not ImageError])
def test_message_and_hint(error: type[GeoInferError]) -> None:
    raised = error("it broke", hint="mend it")
    # An OSError made of two arguments would print "[Errno …]"; an ImportError would lose its message.
    assert str(raised) == "it broke"
    assert raised.hint == "mend it"
    assert error("it broke").hint == ""


def test_image_error() -> None:
    error = ImageError("decode", "truncated", "cut short", size_bytes=12)
    assert (error.stage, error.code, str(error), error.size_bytes, error.status) == (
        "decode", "truncated", "cut short", 12, "error"
    )  # fmt: skip
    assert ImageError("read", "missing", "m").size_bytes == -1


def test_codes_of_the_house() -> None:
    codes = (
        errors.EXIT_OK, errors.EXIT_FAILED_INPUTS, errors.EXIT_USAGE, errors.EXIT_MISMATCH, errors.EXIT_DEVICE,
        errors.EXIT_INTERRUPTED,
    )  # fmt: skip
    assert codes == (0, 1, 2, 3, 4, 130)


def test_no_bare_exception_is_raised_for_users() -> None:
    """`raise Exception` or `raise RuntimeError` in the runtime would reach users as a fault of geoinfer."""
    package = Path(errors.__file__).parent
    sources = sorted(package.rglob("*.py"))
    assert len(sources) > 30
    for path in sources:
        found = re.findall(r"raise (?:Exception|RuntimeError|OSError|SystemError)\(", path.read_text())
        assert found == [], path
