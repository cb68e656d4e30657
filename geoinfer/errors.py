"""Every error geoinfer raises on purpose: a sentence, a hint that mends it, and the exit code of the command.

Each class also inherits the builtin that a caller of the Python API would expect to catch. The exit codes are a
contract of the command line:

    0    all well
    1    finished, with more failed inputs than `--max-errors`
    2    usage: arguments, missing or unreadable inputs, an output that cannot be written
    3    model, engine and index do not fit together, or one of them is broken
    4    the device that was asked for is not there
    130  interrupted (Ctrl-C, a full disk, no memory left); the same command resumes
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED_INPUTS = 1
EXIT_USAGE = 2
EXIT_MISMATCH = 3
EXIT_DEVICE = 4
EXIT_INTERRUPTED = 130


class GeoInferError(Exception):
    """Base of all errors.

    Attributes:
        hint: what to do about it, a command where there is one; may be empty.
        exit_code: what the `geoinfer` command exits with.
    """

    exit_code: ClassVar[int] = EXIT_USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(GeoInferError, ValueError):
    """An argument, or a combination of arguments, makes no sense."""


class InputError(GeoInferError, OSError):
    """A file or folder named by the user is missing, unreadable or empty of what it should hold."""


class OutputError(GeoInferError, OSError):
    """An output cannot be written, or holds something that must not be overwritten."""


class LabelsError(GeoInferError, ValueError):
    """A labels CSV lacks columns, or is not a CSV."""


class MissingPackageError(GeoInferError, ImportError):
    """An optional package is needed and not installed; the hint names the extra."""


class ModelError(GeoInferError, ValueError):
    """A model file or bundle is broken, foreign or lacks what geoinfer needs to use it."""

    exit_code = EXIT_MISMATCH


class IndexFolderError(GeoInferError, ValueError):
    """A reference index is broken, foreign or of another format version."""

    exit_code = EXIT_MISMATCH


class MismatchError(GeoInferError, ValueError):
    """Model and index were not made for each other."""

    exit_code = EXIT_MISMATCH


class DeviceError(GeoInferError, RuntimeError):
    """The device asked for is missing or cannot run the model."""

    exit_code = EXIT_DEVICE


class InterruptedRunError(GeoInferError, OSError):
    """The run stopped before its end; what was committed is safe and the same command resumes."""

    exit_code = EXIT_INTERRUPTED


class ImageError(GeoInferError, ValueError):
    """One input could not be located. Costs that input its answer, and nothing else.

    Attributes:
        stage: `discover`, `read`, `decode`, `embed` or, when an index is built, `labels`.
        code: a stable word for programs, such as `truncated`; docs/error-codes.md lists them.
        size_bytes: size of the file, -1 when it is not known.
        status: `error`, or `skipped` for an input that geoinfer leaves out on purpose.
    """

    def __init__(
        self, stage: str, code: str, message: str, *, hint: str = "", size_bytes: int = -1, status: str = "error"
    ) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.code = code
        self.size_bytes = size_bytes
        self.status = status
