"""Failure drills with real processes, signals and files: whatever goes wrong, nothing is lost or half-written."""
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import objects, rows
from test_scripts import assert_same_run

ROOT = Path(__file__).resolve().parent.parent


def start(out, iterations=1_000_000, *flags):
    """Start a small run that saves a checkpoint after every iteration, too long to end by itself unless told so."""
    command = [sys.executable, "train_toy.py", "--train-generator", "--paper", "--dim", "8", "--batch-size", "16",
               "--device", "cpu", "--sample-every", "50", "--checkpoint-seconds", "0",
               "--iterations", str(iterations), "--out", str(out), *flags]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_iterations(process, out, n=3):
    """Wait until the process has saved n checkpoints of its own."""
    path, seen = out / "checkpoint.pt", set()
    while len(seen) < n + 1:
        assert process.poll() is None, process.stderr.read()
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.001)


def check_resumed(cut, whole):
    """Go on for 5 iterations, and compare with a run of that length that nothing disturbed."""
    done = objects(cut)[""]["iteration"]
    processes = start(cut, done + 5, "--resume"), start(whole, done + 5)
    for process in processes:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    assert_same_run(whole, cut)


def check_stopped(process, code, says):
    """Wait for the end of the process, with this exit code and these words in its last line."""
    _, stderr = process.communicate()
    assert process.returncode == code and "Traceback" not in stderr and says in stderr.splitlines()[-1], stderr


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_is_the_undisturbed_run(tmp_path, kills):
    """SIGKILL, which no program can catch, also while it saves."""
    cut, flags = tmp_path / "cut", []
    for wait in np.random.default_rng(kills).uniform(0, 0.05, kills):
        process = start(cut, 1_000_000, *flags)
        wait_for_iterations(process, cut)
        time.sleep(wait)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        flags = ["--resume"]
    check_resumed(cut, tmp_path / "whole")


def test_a_disk_that_fills_up_during_training(tmp_path):
    """The operating system refuses files beyond a kilobyte from some moment on, as a full disk would."""
    cut = tmp_path / "cut"
    process = start(cut)
    wait_for_iterations(process, cut)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000, 1_000))
    check_stopped(process, 1, "File too large")
    assert not list(cut.rglob(".*.tmp"))  # nothing half-written stays
    check_resumed(cut, tmp_path / "whole")


def test_two_runs_pointed_at_one_folder(tmp_path):
    out = tmp_path / "run"
    first = start(out)
    wait_for_iterations(first, out)
    others = start(out), start(out, 1_000_000, "--resume")
    for other in others:
        check_stopped(other, 2, "another --out")
    first.send_signal(signal.SIGTERM)
    check_stopped(first, 128 + signal.SIGTERM, "--resume")
    assert len(rows(out)[""]) == objects(out)[""]["iteration"]


watched, written = [], []  # an audit hook cannot be removed: it heeds the folder in `watched`


@sys.addaudithook
def note_writes(event, arguments):
    if watched and event in ("open", "os.mkdir", "os.remove", "os.rename", "os.truncate"):
        flags = arguments[2] if event == "open" else os.O_WRONLY
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) and str(arguments[0]).startswith(watched[0]):
            written.append((event, arguments[0]))


def test_nothing_is_written_among_images(call, tmp_path):
    """So that a folder of images can be read-only, and is not changed by training on it."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(20):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(photos / f"{i}.png")
    watched.append(str(photos))
    try:
        (photos / "probe").write_text("the hook sees this")
        assert len(written) == 1
        code, _, stderr = call("train_cifar.py", "--data", photos, "--data-dir", tmp_path / "data", "--dim", 2,
                               "--batch-size", 4, "--score-every", 0, "--iterations", 1, "--out", tmp_path / "run")
    finally:
        watched.clear()
    assert code == 0, stderr
    assert len(written) == 1, written
