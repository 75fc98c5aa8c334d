"""Several processes, on the CPU: two started by torchrun (backend gloo), as a user starts them."""
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
import torch.distributed as dist
from PIL import Image

import data
import fast
import models
import runs
import wgan_gp
from conftest import objects, same
from test_scripts import assert_same_run

ROOT = Path(__file__).resolve().parent.parent


def torchrun(*command):
    """Start two processes under torchrun."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                             *map(str, command)], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process, code=0):
    """Return what the two processes printed, without torchrun's own lines: its warnings, then its report."""
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == code, stderr
    lines = [line for line in stderr.splitlines() if "torch/distributed/" not in line or line.startswith("  ")]
    if code:
        lines = lines[:lines.index("Traceback (most recent call last):")]
    return lines + stdout.splitlines()


# ---- an update is one on the whole batch ----

def two_steps(mine, average=None):
    """Return the losses, gradients and weights of a critic and a generator step on the examples `mine` of 8.

    The networks have no batch statistics. average: called before each update.
    """
    torch.manual_seed(0)
    G, D = models.mnist_generator(2), models.mnist_critic(2)
    x, z, eps = torch.rand(8, 1, 28, 28), torch.randn(8, 128), torch.rand(8, 1, 1, 1)
    opt_G, opt_D = (torch.optim.SGD(network.parameters(), lr=0.1) for network in (G, D))
    if average:
        opt_G.register_step_pre_hook(average)
        opt_D.register_step_pre_hook(average)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, **_: eps[mine])  # gradient_penalty's numbers
        critic = wgan_gp.critic_step(G, D, opt_D, x[mine], z[mine])
    generator = wgan_gp.generator_step(G, D, opt_G, z[mine])
    gradients = [w.grad for network in (D, G) for w in network.parameters()]
    return torch.stack([*critic, generator]), gradients, [*D.parameters(), *G.parameters()]


def process(folder):
    """Do what each of the two processes of the next test does: the two steps, then train."""
    rank, drawn = dist.get_rank(), []
    steps = two_steps(slice(4 * rank, 4 * rank + 4), fast.average_gradients)
    args = argparse.Namespace(out=str(folder / "run"), resume=False, fast=False, bf16=False, device="cpu", seed=0,
                              iterations=3, checkpoint_seconds=0, threads=1, data="noise")
    run = runs.Run(args)
    torch.manual_seed(rank)  # other first weights on rank 1
    G, D = models.cifar_generator(2), models.cifar_critic(2, norm="batch")
    method = wgan_gp.METHODS["dcgan-gp"]
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)

    def batches():
        while True:
            drawn.append(torch.randn(8, 3, 32, 32))
            yield drawn[-1],

    def latents(m):
        drawn.append(torch.randn(m, 128))
        return drawn[-1],
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    losses = []
    for step in fast.choose(args)(G, D, batches(), latents, opt_G, opt_D, method, 3, start, args.seed):
        run.log(step)
        run.checkpoint(step)
        losses.append(step[1:])
    run.finish()
    trained = [thing.state_dict() for thing in (G, D, opt_G, opt_D)], losses
    torch.save({"steps": steps, "drawn": drawn, "trained": trained}, folder / f"{rank}.pt")


def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import pathlib, sys, test_distributed as t, fast, runs\n"
                      "runs.main(fast.processes(lambda: t.process(pathlib.Path(sys.argv[1]))))")
    ended(torchrun(script, tmp_path))
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(a["steps"][1:], b["steps"][1:]) and same(a["trained"], b["trained"])  # bit for bit
    losses, gradients, weights = two_steps(slice(8))
    assert torch.allclose(losses, (a["steps"][0] + b["steps"][0]) / 2, rtol=1e-5)
    for one, two in zip(gradients, a["steps"][1], strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6) and (one.abs().max() > 1e-4 or one.numel() == 1)
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(weights, a["steps"][2], strict=True))
    assert [len(x) for x in a["drawn"]] == [8, 4, 4] * 3  # 4 of a batch of 8, and as many latents
    assert not any(torch.equal(x, y) for x, y in zip(a["drawn"], b["drawn"], strict=True))
    log = runs.read_log(tmp_path / "run")
    assert log["iteration"].tolist() == [1, 2, 3]
    assert log["generator_loss"].tolist() == pytest.approx([float(step[-1]) for step in a["trained"][1]], rel=1e-5)
    assert same(objects(tmp_path / "run")[""]["objects"]["D"], a["trained"][0][1])


def test_no_two_processes_draw_the_same(monkeypatch):
    """CPU generators take the low 32 bits of a seed. Over a million iterations no two processes share one."""
    seeds, opt = [], argparse.Namespace(param_groups=[], register_step_pre_hook=lambda hook: None)
    train = fast.shared(lambda *args, **_: seeds.append(args[9]) or ())
    monkeypatch.setattr(dist, "get_world_size", lambda: 64)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: drawn.append(seed % 2 ** 32))
    drawn = []
    for rank in range(64):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        list(train(None, None, [], None, opt, opt, seed=2 ** 32 - 3))
        wgan_gp.seed_iteration(seeds[-1], 0)
    assert seeds[0] == 2 ** 32 - 3
    first = sorted(drawn)
    assert min(np.diff([*first, first[0] + 2 ** 32])) > 1_000_000


# ---- scripts ----

@pytest.fixture
def command(tmp_path):
    """A command that trains on a folder of 40 images, which is faster than drawing 20,000 shapes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(data.shapes(40)[0]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return ["train_cifar.py", "--data", folder, "--data-dir", tmp_path, "--dim", 2, "--batch-size", 8,
            "--score-every", 0, "--checkpoint-seconds", 0, "--device", "cpu"]


def wait_for_rows(process, path, n):
    """Wait until a log has n rows."""
    while not path.exists() or path.read_text().count("\n") <= n:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["torchrun", "rank 0", "rank 1"])
def test_a_signal_stops_both_and_resume_goes_on(tmp_path, command, whom):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = torchrun(*command, "--out", cut, "--iterations", 1_000_000)
    wait_for_rows(process, cut / "log.csv", 3)
    if whom == "torchrun":
        process.send_signal(signal.SIGINT)  # Ctrl-C: torchrun passes it on
    else:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[int(whom[-1])]), signal.SIGTERM)
    lines = ended(process, code=1)
    saved = objects(cut)[""]["iteration"]
    assert saved >= 3 and len([line for line in lines if line.startswith(f"saved iteration {saved}")]) == 1
    lines = ended(torchrun(*command, "--out", whole, "--iterations", saved + 5))
    assert len([line for line in lines if line.startswith("done: ")]) == 1
    ended(torchrun(*command, "--out", cut, "--iterations", saved + 5, "--resume"))
    assert_same_run(whole, cut)


@pytest.mark.parametrize("flags, says", [
    (["--data", "no-such"], "no data set or folder is called 'no-such'"),
    pytest.param(["--batch-size", 5], "error: --batch-size 5 must be a multiple", marks=pytest.mark.slow),
    pytest.param(["--dim", 0], "error: argument --dim", marks=pytest.mark.slow),
    pytest.param(["--resume"], "no checkpoint", marks=pytest.mark.slow),
])
def test_a_mistake_is_said_once(tmp_path, command, flags, says):
    lines = ended(torchrun(*command, "--out", tmp_path / "run", *flags), code=1)
    lines = [line for line in lines if line.startswith("train_cifar.py")]
    assert len(lines) == 1 and lines[0].startswith(f"train_cifar.py: {says}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_both_and_is_said_once(tmp_path, command, rank):
    """A disk that fills up, on either: the other is not left waiting, and the checkpoint is good."""
    script = tmp_path / "train_cifar.py"
    script.write_text(f"""import sys; sys.path.insert(0, "{ROOT}")
import importlib.util, fast, runs
from torch import distributed as dist
spec = importlib.util.spec_from_file_location("script", "{ROOT}/train_cifar.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
log = runs.Run.log
def full(self, step, **extra):
    log(self, step, **extra)
    if step.iteration == 3 and dist.get_rank() == {rank}:
        raise OSError(28, "No space left on device")
runs.Run.log = full
runs.main(fast.processes(module.main))
""")
    lines = ended(torchrun(script, *command[1:], "--iterations", 6, "--out", tmp_path / "run"), code=1)
    lines = [line for line in lines if "caching" not in line and "/s  " not in line]
    assert lines == ["train_cifar.py: [Errno 28] No space left on device"]
    assert objects(tmp_path / "run")[""]["iteration"] in (2, 2 + rank)  # rank 0 may save before it notices
