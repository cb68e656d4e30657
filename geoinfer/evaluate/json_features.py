"""The records of a JSON array, or the features of a GeoJSON file, one by one, so that no large file lies in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK: Final = 1 << 20
_SPACE: Final = " \t\n\r"
_IN_NUMBERS: Final = "0123456789+-.eE"


class MalformedJsonError(ValueError):
    """The text is no JSON of this shape; the message says where and why."""


def read_members(file: TextIO) -> Iterator[Any]:
    """Yields the members of the array that a text is, or of the array `features` of the object that it is.

    Raises:
        MalformedJsonError: while iterating: the text is no such JSON, or is cut short.
    """
    text = _Text(file)
    start = text.peek()
    if start == "[":
        yield from text.array()
    elif start == "{":
        yield from _features(text)
    else:
        raise MalformedJsonError("the text begins neither with [ nor with {" if start else "the file is empty")
    if text.peek():
        raise MalformedJsonError(f"there is more behind the end, in line {text.line}")


def _features(text: _Text) -> Iterator[Any]:
    text.take("{")
    found = False
    while text.peek() != "}":
        key = text.value()
        text.take(":")
        if key == "features" and not found:
            found = True
            if text.peek() != "[":
                raise MalformedJsonError(f"`features` is no array, in line {text.line}")
            yield from text.array()
        else:
            text.value()
        if text.peek() == ",":
            text.take(",")
        elif text.peek() != "}":
            raise text.broken()
    text.take("}")
    if not found:
        raise MalformedJsonError("the object has no `features`")


class _Text:
    """A file that is read as far as it is asked for."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._lines_before = 0

    @property
    def line(self) -> int:
        """That reading has come to, counted from 1."""
        return self._lines_before + self._buffer.count("\n", 0, self._at) + 1

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def take(self, expected: str) -> None:
        if self.peek() != expected:
            raise self.broken()
        self._at += 1

    def array(self) -> Iterator[Any]:
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() == ",":
                self.take(",")
            elif self.peek() != "]":
                raise self.broken()
        self.take("]")

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except ValueError as error:
                if not self._more():
                    raise self.broken() from error
                continue
            except RecursionError as error:
                raise MalformedJsonError(f"too many brackets within brackets in line {self.line}") from error
            # A number where the buffer ends may go on: of `1.5e3`, `1` and `1.5` are numbers, too.
            number = isinstance(value, (int, float)) and self._buffer[end : end + 3].strip(_IN_NUMBERS) == ""
            if not number or not self._more():
                self._at = end
                return value

    def broken(self) -> MalformedJsonError:
        """What to say of the place that reading has come to."""
        rest = self._buffer[self._at : self._at + 30]
        if not self._buffer[self._at :].strip():
            return MalformedJsonError(f"the text ends early, in line {self.line}")
        return MalformedJsonError(f"no JSON, or cut short, in line {self.line}, at {rest!r}")

    def _more(self) -> bool:
        """Reads on; as much again as is waiting, so that a huge value is not decoded again for each piece of it."""
        if self._ended:
            return False
        self._lines_before = self.line - 1
        rest = self._buffer[self._at :]
        piece = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not piece
        self._buffer, self._at = rest + piece, 0
        return bool(piece)
