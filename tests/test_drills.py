"""Failure drills, with real processes, signals and files: whatever goes wrong, nothing is lost or half-written."""
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
from conftest import rows, same, states

ROOT = Path(__file__).resolve().parent.parent


def start(out, iterations, *flags):
    """Start a small run that saves a checkpoint at every iteration."""
    command = [sys.executable, "train_toy.py", "--train-generator", "--dim", "8", "--batch-size", "16",
               "--iterations", str(iterations), "--checkpoint-seconds", "0", "--device", "cpu"]
    return subprocess.Popen([*command, "--out", str(out), *flags], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_a_checkpoint(process, out):
    """Until the process has written one of its own, or ended."""
    path = out / "checkpoint.pt"
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.005)


def resumed_is_the_whole(cut, whole, iterations):
    process = start(cut, iterations, "--resume")
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert same(states(whole), states(cut)) and rows(whole) == rows(cut)


def one_line(stderr, *words):
    assert "Traceback" not in stderr and all(word in stderr.splitlines()[-1] for word in words), stderr


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_is_the_undisturbed_run(tmp_path, kills):
    """SIGKILL, which no program can catch, also in the middle of saving."""
    iterations = 40 * kills
    assert start(tmp_path / "whole", iterations).wait() == 0
    cut, killed, random = tmp_path / "cut", 0, np.random.default_rng(0)
    for wait in random.uniform(0, 0.25, kills):
        process = start(cut, iterations, *["--resume"] * (cut / "checkpoint.pt").exists())
        wait_for_a_checkpoint(process, cut)
        time.sleep(wait)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed >= kills / 2
    resumed_is_the_whole(cut, tmp_path / "whole", iterations)


def test_a_disk_that_fills_up_during_training(tmp_path):
    """The operating system refuses files beyond a kilobyte from some moment on, as a full disk would."""
    assert start(tmp_path / "whole", 80).wait() == 0
    process = start(tmp_path / "cut", 80)
    wait_for_a_checkpoint(process, tmp_path / "cut")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000, 1_000))
    _, stderr = process.communicate()
    assert process.returncode == 1
    one_line(stderr, "File too large")
    assert not list((tmp_path / "cut").glob(".*.tmp"))  # nothing half-written stays
    torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    resumed_is_the_whole(tmp_path / "cut", tmp_path / "whole", 80)


def test_two_runs_pointed_at_one_folder(tmp_path):
    first = start(tmp_path / "run", 80)
    wait_for_a_checkpoint(first, tmp_path / "run")
    first.send_signal(signal.SIGSTOP)  # so that it is not done before the others have begun
    for flags in ([], ["--resume"]):
        second = start(tmp_path / "run", 80, *flags)
        _, stderr = second.communicate()
        assert second.returncode == 2
        one_line(stderr, "another --out")
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0 and len(rows(tmp_path / "run")[""]) == 80


def test_corrupt_images_among_thousands(tmp_path, capsys):
    """Cut short, empty, of another kind, and with bytes overwritten: the others are used, these are counted and named."""
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(2_000):
        pixels = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((36, 33)).save(folder / f"{i:04}.jpg")
    whole = (folder / "0700.jpg").read_bytes()
    bad = {"0700": whole[:300], "0800": b"", "0900": b"<html>", "1000": b"\0" * len(whole)}
    for name, content in bad.items():
        (folder / f"{name}.jpg").write_bytes(content)
    pixels = data.image_folder(folder, 32, tmp_path)
    assert pixels.shape == (1_996, 3, 32, 32)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "4 of 2000 images skipped" in said and all(f"{name}.jpg" in said for name in list(bad)[:3])
    left = [i for i in range(2_000) if f"{i:04}" not in bad]
    for i in (0, 701, 1_001, 1_999):
        assert np.array_equal(pixels[left.index(i)], data._square(folder / f"{i:04}.jpg", 32))


watched, written = [], []  # an audit hook cannot be taken away: it heeds the folder in `watched`


@sys.addaudithook
def _note_writes(event, arguments):
    if watched and event in ("open", "os.mkdir", "os.remove", "os.rename", "os.truncate"):
        path = str(arguments[0])
        writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and path.startswith(watched[0]):
            written.append((event, path))


def test_nothing_is_written_where_the_data_are(call, tmp_path):
    """So a read-only folder of data will do, an archive or images."""
    photos = tmp_path / "data" / "photos"
    photos.mkdir(parents=True)
    for i in range(20):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(photos / f"{i}.png")
    watched.append(str(tmp_path / "data"))
    try:
        (tmp_path / "data" / "probe").write_text("the hook sees this")
        assert len(written) == 1
        code, _, stderr = call("train_cifar.py", "--data", photos, "--data-dir", tmp_path / "data", "--dim", 2, "--batch-size", 4,
                               "--score-every", 0, "--iterations", 1, "--out", tmp_path / "run")
    finally:
        watched.clear()
    assert code == 0, stderr
    assert len(written) == 1, written
