from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_the_first_signal_raises_and_a_second_ends_the_process(number: str) -> None:
    program = (
        "import os, signal\n"
        "from geoinfer.cli.interrupts import interrupts_raise\n"
        "with interrupts_raise():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), signal.{number})\n"
        "    except KeyboardInterrupt:\n"
        "        print('raised', flush=True)\n"
        f"        os.kill(os.getpid(), signal.{number})\n"
        "        print('still here', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "raised\n", "geoinfer: interrupted\n")
