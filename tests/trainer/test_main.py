"""`python -m trainer`: sentences and exit codes, never a traceback; signals; what is shown."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CHECKOUT
from tests.trainer.tiny_runs import tiny_recipe
from trainer.progress import Progress

torch = pytest.importorskip("torch")

from trainer.__main__ import main  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.trainer.tiny_runs import PhotoSet

pytestmark = pytest.mark.slow


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command in this process; answers with its exit code and what it said on standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_recipe().to_toml())
    return path


def test_a_run_by_command(command: Any, photo_set: PhotoSet, recipe_file: Path, tmp_path: Path) -> None:
    arguments = ("fit", recipe_file, "--data", photo_set.prepared, "--out", tmp_path / "run", "--device", "cpu")
    code, said = command(*arguments)
    assert code == 0
    assert "device: CPU (as asked), fp32" in said
    assert "contrast, epoch 2 of 2: loss " in said
    assert "% of anchors have a positive" in said
    assert command(*arguments, "--quiet") == (0, "")
    code, said = command(
        "embed", tmp_path / "run/checkpoints/best.safetensors", "--data", photo_set.prepared, "--out", tmp_path / "e"
    )
    assert code == 0
    assert "36 embeddings in " in said
    # A run of it is taken up, not begun anew, with something else asked for.
    code, said = command(*arguments, "--set", "model.dim=8")
    assert (code, said.splitlines()[0]) == (
        2, f"trainer: {tmp_path / 'run'}: model.dim was 16 when the run was begun, and is 8 now",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--data", "{tmp}/nowhere"], 2, "trainer: {tmp}/nowhere: "),
        (["--data", "{tmp}/with\nline"], 2, r"trainer: {tmp}/with\nline: "),
        (["--device", "cuda"], 4, "trainer: --device cuda: torch sees no GPU"),
        (["--device", "gpu"], 2, "trainer: --device gpu: expected auto, cpu, cuda or cuda:N"),
        (["--set", "run.precision=fp16"], 2, "trainer: fp16 needs a GPU"),
        (["--set", "stages.0.train.backbone=last:99"], 2, "trainer: stages.0.train.backbone is 'last:99'"),
        (["--set", "model.backbone=resnet5o"], 2, "trainer: model.backbone is 'resnet5o'"),
        (["--set", "stages.0.epochs=0"], 2, "trainer: "),
        (["--set", "model.weights={tmp}/none.safetensors"], 2, "trainer: {tmp}/none.safetensors: "),
        (["--set", "model.start_from={tmp}/none.safetensors"], 2, "trainer: {tmp}/none.safetensors: "),
        (["--out", "{tmp}/set"], 2, "trainer: {tmp}/set: it holds files, and none of them is a run's"),
        (["--out", "/proc/no/such"], 2, "trainer: /proc/no/such: cannot be made: "),
        (["--images", "{tmp}"], 2, "trainer: --images: "),
    ],
)
def test_bad_input_is_a_sentence(
    command: Any, photo_set: PhotoSet, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: list[str], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plain = ["--data", str(photo_set.prepared), "--out", str(tmp_path / "run"), "--device", "cpu"]
    found, said = command("fit", recipe_file, *plain, *(part.format(tmp=tmp_path) for part in change))
    assert found == code
    last = [line for line in said.splitlines() if line.startswith("trainer: ")]
    assert len(last) == 1
    assert last[0].startswith(says.format(tmp=tmp_path))
    assert "Traceback" not in said


def test_a_fault_of_the_program_is_a_sentence_too(
    command: Any, photo_set: PhotoSet, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("trainer.fit.Run.go", fail)
    arguments = ("fit", recipe_file, "--data", photo_set.prepared, "--out", tmp_path / "run", "--device", "cpu")
    code, said = command(*arguments)
    assert code == 70
    assert said.splitlines()[-2] == "trainer: unexpected ZeroDivisionError: division by zero"
    monkeypatch.setenv("GEOINFER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        command(*arguments)


def test_ctrl_c_before_the_first_step(
    command: Any, photo_set: PhotoSet, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.launch.create_model", interrupt)
    arguments = ("fit", recipe_file, "--data", photo_set.prepared, "--out", tmp_path / "run", "--device", "cpu")
    assert command(*arguments) == (130, "trainer: interrupted\n")
    monkeypatch.undo()


def test_a_missing_package_is_a_sentence(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trainer.recipe", None)
    code, said = command("recipes")
    assert code in (2, 70)
    assert "Traceback" not in said


@contextlib.contextmanager
def files_no_larger_than(size_bytes: int) -> Any:
    """What a disk does that fills up: writing fails beyond so many bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(command: Any, photo_set: PhotoSet, recipe_file: Path, tmp_path: Path, train: Any) -> None:
    unbroken = train(tiny_recipe(), "unbroken")
    arguments = ("fit", recipe_file, "--data", photo_set.prepared, "--out", tmp_path / "run", "--device", "cpu")
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    for limit in (500_000, 100_000):  # `best` has room and `last` has not; neither has
        with files_no_larger_than(limit):
            code, said = command(*arguments)
        assert code == 130
        assert "the checkpoint cannot be written" in said
        assert "make room and run the same command again" in said
        assert "Traceback" not in said
        assert not last.exists()
    for limit in (3_000, 300):  # of the metrics and the events; the first write at all
        with files_no_larger_than(limit):
            code, said = command(*arguments)
        assert code in (2, 130), said
        assert "Traceback" not in said
        assert "cannot be written" in said
    code, _ = command(*arguments)
    assert code == 0
    run = type(unbroken)(tmp_path / "run")
    assert run.without_timing() == unbroken.without_timing()
    # A checkpoint that is there survives.
    longer = ("--set", "stages.0.epochs=3", "--restart")
    before = json.dumps(sorted(run.tensors()))
    with files_no_larger_than(100_000):
        assert command(*arguments)[0] == 0  # nothing is left to do, and nothing written
    assert json.dumps(sorted(run.tensors())) == before
    assert command(*arguments, *longer)[0] == 0


def child_environment() -> dict[str, str]:
    # As many threads as here: sums of floats depend on them.
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(CHECKOUT)}


def test_killed_in_mid_epoch_and_taken_up_again(photo_set: PhotoSet, tmp_path: Path, train: Any) -> None:
    changes = ("stages.0.epochs=8", "run.checkpoint_minutes=1e-9", "stages.0.batch_size=4", "stages.0.memory=9")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny_recipe(*changes).to_toml())
    metrics = tmp_path / "run" / "metrics.csv"
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "fit", str(recipe), "--data", str(photo_set.prepared), "--out",
         str(tmp_path / "run"), "--device", "cpu", "--workers", "2"],
        cwd=CHECKOUT, env=child_environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if last.exists() and metrics.read_text().count("\nstep") >= 10:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    steps = metrics.read_text().count("\nstep")
    assert 10 <= steps < 48
    again = train(tiny_recipe(*changes))
    assert "going on after step " in again.said
    unbroken = train(tiny_recipe(*changes), "unbroken")
    assert again.without_timing() == unbroken.without_timing()
    ours, theirs = again.tensors(), unbroken.tensors()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_the_first_signal_asks_and_a_second_ends_the_process(number: str) -> None:
    program = (
        "import os, signal\n"
        "from trainer.stopping import StopRequest\n"
        f"before = signal.getsignal(signal.{number})\n"
        "with StopRequest() as stop:\n"
        "    print(stop.requested)\n"
        "with StopRequest() as stop:\n"
        f"    assert signal.getsignal(signal.{number}) != before\n"
        f"    os.kill(os.getpid(), signal.{number})\n"
        "    print(stop.requested, flush=True)\n"
        f"    os.kill(os.getpid(), signal.{number})\n"
        "    print('still here', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 130
    assert result.stdout == "False\nTrue\n"
    assert result.stderr.splitlines() == [
        "trainer: stopping after this step (once more to stop at once)",
        "trainer: stopped at once; the last checkpoint is whole",
    ]


ROW = {
    "loss": 3.25, "validation_loss": 3.5, "best_k": 5, "median_km": 812.4, "accuracy_25_km": 2.1,
    "accuracy_200_km": 14.0, "accuracy_750_km": 48.2, "accuracy_2500_km": 77.5,
}  # fmt: skip


def test_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("trainer.progress.time.monotonic", lambda: clock[0])
    with Progress(quiet=False) as progress:
        progress.epoch_started("contrast, epoch 2 of 15", 1000, 200)
        for _ in range(100):
            clock[0] += 0.5
            progress.stepped(3.0, 64, 1 if clock[0] == 120.0 else 0, 2300.0)
        progress.epoch_ended(ROW, best=True)
    lines = capsys.readouterr().err.splitlines()
    # 60 steps in 30 s of 1000 - 260 that are left: 370 s.
    assert lines[0] == (
        "contrast, epoch 2 of 15: step 260 of 1000, loss 3.0000, 128 images/s, 6 min left, 2.2 GiB, 1 bad"
    )
    assert lines[1:] == [
        "contrast, epoch 2 of 15: loss 3.2500, validation 3.5000; median 812 km (k 5), 2.1/14.0/48.2/77.5 % within "
        "25/200/750/2500 km, the best so far"
    ]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    monkeypatch.setenv("COLUMNS", str(columns))  # rich asks the process's own terminal before this one
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.TextIOWrapper(os.fdopen(theirs, "wb", buffering=0), write_through=True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(quiet=False) as progress:
        progress.epoch_started("contrast, epoch 12 of 15", 10_000, 0)
        for _ in range(30):
            time.sleep(0.03)
            progress.stepped(3.25, 64, 1, 2300.0)
        progress.say("a line above the bar")
    written = b""
    while select.select([ours], [], [], 0.2)[0]:
        written += os.read(ours, 1 << 16)
    shown = written.decode()
    terminal.close()
    os.close(ours)
    assert "a line above the bar" in shown
    lines = [line for line in shown.replace("\r", "\n").splitlines() if "epoch" in line]
    assert re.search(
        r"contrast, epoch 12 of 15 (━+ )? *\d+/10000 0:\d\d:\d\d loss 3.2500 \d+/s 2.2 GiB \d+ bad", lines[-1]
    ), lines[-1]
