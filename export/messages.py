"""What libraries say, in one line that a sentence of ours can end with."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, or the error's kind where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch begins with the class, and says what is wrong on the second line.
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        lines = [line[:200] for line in lines[1:]]
    return (lines or [type(error).__name__])[0].rstrip(".")
