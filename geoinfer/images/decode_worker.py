"""The process that decodes for `geoinfer.images.isolated`: reads requests from a pipe until it is closed.

Requests and answers are lines of JSON; a photo's bytes and its pixels lie in memory that both processes have, an
unnamed file of which this one inherited the descriptor. Nothing has to be cleared away, however either of them ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from geoinfer.errors import ImageError
from geoinfer.images.decode_pillow import decode_by_pillow
from geoinfer.images.preprocessing import Preprocessing
from geoinfer.images.problems import damaged
from geoinfer.images.resize import resize_decoded

if TYPE_CHECKING:
    from collections.abc import Sequence

READY: Final = b"ready\n"


def main(memory: int, cores: Sequence[int], cpu_seconds: float, seconds: float) -> NoReturn:
    """Answers requests until there are no more.

    Args:
        memory: descriptor of the file that both processes have.
        cores: those that the parent may use; the thread that started this process may be tied to one of them.
        cpu_seconds: the system ends this process when one photo takes more of them.
        seconds: likewise by the clock, for a decoder that waits for ever when its parent is gone.
    """
    _settle(cores)
    requests = sys.stdin.buffer
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    os.write(answers, READY)
    for line in requests:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = _answer(json.loads(line), memory)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(answers, json.dumps(answer).encode() + b"\n")
    # Libraries' own clearing up could hang or crash, and nobody would know.
    os._exit(0)


def _settle(cores: Sequence[int]) -> None:
    # The default is to end the process, which needs no lock that a decoder may hold.
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)
        try:
            # Where memory runs out, this process is to go rather than the run itself.
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("800")
        except OSError:
            pass
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _answer(request: dict[str, Any], memory: int) -> dict[str, Any]:
    """Decodes what lies in the shared memory and puts the pixels in its place; what went wrong otherwise."""
    kind, size = request["kind"], request["bytes"]
    data = b""
    try:
        data = _whole(memory, size)
        pixels = resize_decoded(decode_by_pillow(data, kind), Preprocessing.from_dict(request["preprocessing"]))
        _store(memory, pixels.tobytes())
    except ImageError as error:
        failure = error
    except MemoryError as error:
        failure = damaged(error, data, kind)
    else:
        return {}
    return {"stage": failure.stage, "code": failure.code, "message": str(failure), "hint": failure.hint}


def _whole(memory: int, size: int) -> bytes:
    data = os.pread(memory, size, 0)
    if len(data) == size:
        return data
    # One call gives 2 GiB at most, and may give less for a signal.
    parts = [data]
    while (done := sum(map(len, parts))) < size:
        parts.append(os.pread(memory, size - done, done))
    return b"".join(parts)


def _store(memory: int, pixels: bytes) -> None:
    rest, done = memoryview(pixels), 0
    while done < len(rest):
        done += os.pwrite(memory, rest[done:], done)
