"""Many processes, on the CPU: two started by torchrun (backend gloo), as a user starts them."""
import argparse
import os
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
import models
import runs
import wgan_gp
from conftest import rows, same, states

ROOT = Path(__file__).resolve().parent.parent


def torchrun(*command):
    """Two processes under torchrun."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                             *map(str, command)], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process, code=0):
    """What the two processes said on standard error, without torchrun's own lines: its warnings, then its report."""
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == code, stderr
    lines = [line for line in stderr.splitlines() if "torch/distributed/" not in line or line.startswith("  ")]
    return lines[:lines.index("Traceback (most recent call last):")] if code else lines


# -------------------------------------------------------------------------- a step is one on the whole batch

def two_steps(mine, average=None):
    """The losses, gradients and weights of a critic and a generator step of networks without batch statistics, on the
    examples `mine` of 8. average: the hook, where there are many processes."""
    torch.manual_seed(0)
    G, D = models.mnist_generator(2), models.mnist_critic(2)
    x, z, eps = torch.rand(8, 1, 28, 28), torch.randn(8, 128), torch.rand(8, 1, 1, 1)
    opt_G, opt_D = (torch.optim.SGD(network.parameters(), lr=0.1) for network in (G, D))
    for opt in (opt_G, opt_D) if average else ():
        opt.register_step_pre_hook(average)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, **_: eps[mine])  # gradient_penalty's numbers
        critic = wgan_gp.critic_step(G, D, opt_D, x[mine], z[mine])
    step = wgan_gp.Step(1, *critic, wgan_gp.generator_step(G, D, opt_G, z[mine]))
    return step, [w.grad for network in (D, G) for w in network.parameters()], [D.state_dict(), G.state_dict()]


def process(folder):
    """What each of the two processes of the next test does."""
    step, gradients, weights = two_steps(slice(4 * runs.RANK, 4 * runs.RANK + 4), runs.average_gradients)
    held = {"steps": (runs.average_losses(step)._asdict(), gradients, weights), "drawn": []}
    # A run with batch norm and Adam, in which the networks of rank 1 begin with other weights.
    args = argparse.Namespace(out=str(folder / "run"), resume=False, fast=False, device="cpu", seed=0, iterations=3,
                              checkpoint_seconds=0)
    run = runs.Run(args, None)
    torch.manual_seed(runs.RANK)
    G, D = models.cifar_generator(2), models.cifar_critic(2, norm="batch")
    method = wgan_gp.METHODS["dcgan-gp"]
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())

    def batches():
        while True:
            held["drawn"].append(torch.randn(4, 3, 32, 32))
            yield held["drawn"][-1],
    run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    for step in wgan_gp.train(G, D, batches(), lambda m: (torch.randn(m, 128),), opt_G, opt_D, method,
                              iterations=3, seed=runs.own_seed(0)):
        run.log(step)
        run.checkpoint(step.iteration)
    run.finish()
    held["trained"] = [thing.state_dict() for thing in (G, D, opt_G, opt_D)]
    torch.save(held, folder / f"{runs.RANK}.pt")


def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import pathlib, sys, test_distributed as t, runs\n"
                      "runs.main(lambda: t.process(pathlib.Path(sys.argv[1])))")
    ended(torchrun(script, tmp_path))
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(a["steps"], b["steps"]) and same(a["trained"], b["trained"])  # bit for bit
    step, gradients, weights = two_steps(slice(8))
    assert all(torch.allclose(torch.as_tensor(value), torch.as_tensor(a["steps"][0][name]), rtol=1e-5)
               for name, value in step._asdict().items())
    for one, two in zip(gradients, a["steps"][1], strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6) and (one.abs().max() > 1e-4 or one.numel() == 1)
    for one, two in zip(weights, a["steps"][2], strict=True):
        assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert len(a["drawn"]) == 3 and not any(torch.equal(x, y) for x, y in zip(a["drawn"], b["drawn"]))
    log = runs.read_log(tmp_path / "run")
    assert log["iteration"].tolist() == [1, 2, 3]
    assert same(states(tmp_path / "run")[""]["D"], a["trained"][1])


def test_no_two_processes_draw_the_same(monkeypatch):
    """CPU generators take the low 32 bits of seed * 1_000_003 + iteration: over a million iterations, no two meet."""
    seeds = []
    for rank in range(64):
        monkeypatch.setattr(runs, "RANK", rank)
        seeds.append(runs.own_seed(2 ** 32 - 3))
    assert seeds[0] == 2 ** 32 - 3 and all(0 <= seed < 2 ** 32 for seed in seeds)
    first = sorted(seed * 1_000_003 % 2 ** 32 for seed in seeds)
    assert min(np.diff([*first, first[0] + 2 ** 32])) > 1_000_000


def test_a_batch_is_shared_out_evenly_or_refused(monkeypatch):
    assert runs.share(3) == 3
    monkeypatch.setattr(runs, "PROCESSES", 4)
    assert runs.share(64) == 16
    for size in (66, 4):
        with pytest.raises(runs.Mistake, match=f"--generator-batch {size} .* multiple of 4"):
            runs.share(size, "--generator-batch")


# ------------------------------------------------------------------------------------------ scripts and signals

@pytest.fixture
def command(tmp_path):
    """A command that trains on a folder of 40 images, and so need not draw 20,000 shapes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(data.shapes(40)[0]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return ["train_cifar.py", "--data", folder, "--dim", 2, "--batch-size", 8, "--score-every", 0, "--device", "cpu",
            "--iterations", 6]


def wait_for(path, iterations):
    """Until a log has so many rows."""
    for _ in range(1200):
        if path.exists() and len(path.read_text().splitlines()) > iterations:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not grow")


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["torchrun", "one of the two"])
def test_a_signal_stops_both_and_resume_goes_on(tmp_path, command, whom):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command[-1] = 60
    lines = ended(torchrun(*command, "--out", whole))
    assert [line for line in lines if "done:" in line] == [f"done: {whole}"]  # said once
    assert sorted(path.name for path in whole.iterdir() if path.suffix != ".uint8" and "images-" not in path.name) == [
        ".lock", "checkpoint.pt", "config.json", "curves.png", "log.csv", "samples"]
    process = torchrun(*command, "--out", cut, "--checkpoint-seconds", 0)
    wait_for(cut / "log.csv", 3)
    if whom == "torchrun":
        process.send_signal(signal.SIGINT)  # Ctrl-C: torchrun passes it on
    else:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGTERM)
    lines = ended(process, code=1)
    saved = torch.load(cut / "checkpoint.pt")["iteration"]
    assert 3 <= saved < 60 and [line for line in lines if line.startswith("saved")] == [
        f"saved iteration {saved} in {cut}; the same command with --resume goes on"]
    assert len(rows(cut)[""]) == saved
    ended(torchrun(*command, "--out", cut, "--resume"))
    assert same(states(whole), states(cut)) and rows(whole) == rows(cut)


@pytest.mark.slow
@pytest.mark.parametrize("flags, says", [
    (["--batch-size", 5], "train_cifar.py: --batch-size 5 cannot be shared out among 2 processes"),
    (["--dim", 0], "train_cifar.py: error: argument --dim"),
    (["--data", "no-such"], "train_cifar.py: no data set or folder is called 'no-such'"),
    (["--resume"], "train_cifar.py: there is no checkpoint"),
])
def test_a_mistake_is_said_once(tmp_path, command, flags, says):
    lines = ended(torchrun(*command, "--out", tmp_path / "run", *flags), code=1)
    lines = [line for line in lines if line.startswith("train_cifar.py")]
    assert len(lines) == 1 and lines[0].startswith(says)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_both_and_is_said_once(tmp_path, command, rank):
    """A disk that fills up, on either: the other is not left waiting, and the checkpoint is that of iteration 2."""
    script = tmp_path / "train_cifar.py"
    script.write_text(f"""import sys; sys.path.insert(0, "{ROOT}")
import importlib.util, runs
spec = importlib.util.spec_from_file_location("script", "{ROOT}/train_cifar.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
log = runs.Run.log
def full(self, step, **extra):
    log(self, step, **extra)
    if step.iteration == 3 and runs.RANK == {rank}:
        raise OSError(28, "No space left on device")
runs.Run.log = full
runs.main(module.main)
""")
    lines = ended(torchrun(script, *command[1:], "--checkpoint-seconds", 0, "--out", tmp_path / "run"), code=1)
    lines = [line for line in lines if "caching" not in line and "/s  " not in line]
    assert lines == ["train_cifar.py: [Errno 28] No space left on device"]
    assert torch.load(tmp_path / "run" / "checkpoint.pt")["iteration"] == 2
