"""Tests of fast.py. A CUDA graph is played by a recorder of CPU operations. tests/gpu.py tests the real thing."""
import argparse
import contextlib
import copy
import itertools
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fast
import gpu
import models
import wgan_gp

METHODS = wgan_gp.METHODS


# ---- a stand-in for CUDA graphs ----

class Recorder(TorchDispatchMode):
    """Records every operation with the tensors it read and wrote, and repeats them."""
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number was read while capturing")
        out = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, out))
        return out

    def replay(self):
        for operation, args, kwargs, out in self.operations:
            again = operation(*args, **kwargs)
            pairs = zip(*(x if isinstance(x, (tuple, list)) else (x,) for x in (out, again)))
            for old, new in pairs:
                if torch.is_tensor(old) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)  # views and in-place results are there already


class Graph:
    """Stands for torch.cuda.CUDAGraph."""
    replays, fault = 0, None

    def replay(self):
        Graph.replays += 1
        with torch.no_grad():
            self.recorder.replay()
            if Graph.fault:
                Graph.fault()


@pytest.fixture
def pretend_cuda(monkeypatch):
    """Put torch.cuda's graphs and streams on the CPU. A capture computes nothing, so what it changes is undone."""
    optimizers, init = [], torch.optim.Optimizer.__init__

    @contextlib.contextmanager
    def capture(graph, stream):
        tensors = [t for opt in optimizers for w, state in opt.state.items() for t in (w.detach(), *state.values())]
        before, random = [t.clone() for t in tensors], torch.get_rng_state()
        graph.recorder = Recorder()
        with graph.recorder:
            yield
        for t, value in zip(tensors, before):
            t.copy_(value)
        torch.set_rng_state(random)

    def register(self, *args, **kwargs):
        optimizers.append(self)
        init(self, *args, **kwargs)
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", register)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: argparse.Namespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(Graph, "replays", 0)
    monkeypatch.setattr(Graph, "fault", None)
    for name in ("adam", "rmsprop"):
        module = sys.modules[f"torch.optim.{name}"]
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
        monkeypatch.setattr(module, "_default_to_fused_or_foreach", lambda *_, **__: (False, True))  # as on a GPU


def trained(name, train, method="wgan-gp", **flags):
    """Return (the losses of every iteration, [G, D, opt_G, opt_D]) of a small training from one seed."""
    kept = []

    def keep(G, D, batches, latents, opt_G, opt_D, *args, **kwargs):
        kept.extend((G, D, opt_G, opt_D))
        return train(G, D, batches, latents, opt_G, opt_D, *args, **kwargs)
    steps = gpu.training(name, 4, METHODS[method], "cpu", 4, keep, **flags)
    return torch.stack([torch.stack(step[1:]) for step in steps]), kept


def weights(kept):
    """Return all weights but biases, which may have no gradient but rounding errors, in one vector."""
    return torch.cat([w.detach().flatten() for network in kept[:2] for w in network.parameters() if w.dim() > 1])


# ---- the same training ----

@pytest.mark.parametrize("name, method, decay", [
    ("toy", "wgan-gp", False), ("toy", "wgan", False), ("toy", "wgan-gp-rmsprop", True), ("dcgan", "dcgan", True),
    ("resnet", "wgan-gp", True)])
def test_a_graph_trains_like_the_eager_loop(pretend_cuda, capsys, name, method, decay):
    flags = dict(method=method, iterations=6, seed=5, decay=decay, generator_batch=6)
    expected, eager = trained(name, wgan_gp.train, **flags)
    found, replayed = trained(name, fast.graphed, **flags)
    assert Graph.replays == 1 + 6 - fast.WARM_UP and capsys.readouterr().err == ""
    assert torch.allclose(expected, found, rtol=1e-4, atol=1e-5)
    assert torch.allclose(weights(eager), weights(replayed), atol=1e-5)
    for a, b in zip(eager[2:], replayed[2:]):  # a checkpoint can be resumed on any device
        assert not b.param_groups[0]["capturable"]
        assert a.param_groups[0]["lr"] == b.param_groups[0]["lr"] and type(b.param_groups[0]["lr"]) is float


@pytest.mark.parametrize("fault", ["wrong replay", "NaN", "failed capture", "reads", "waits"])
def test_a_graph_that_does_not_prove_itself_is_not_used(pretend_cuda, monkeypatch, capsys, fault):
    """The run goes on eagerly after one line, and ends as the eager one."""
    flags = dict(iterations=6, seed=5, decay=True)
    expected, eager = trained("toy", wgan_gp.train, **flags)
    copied, renewed = [], []
    if fault in ("failed capture", "reads"):
        generator = types.SimpleNamespace(graphsafe_get_state=lambda: "new", graphsafe_set_state=renewed.append)
        monkeypatch.setattr(torch, "Generator", lambda device: generator)
        monkeypatch.setattr(torch.cuda, "default_generators", [generator])
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    if fault == "failed capture":
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: (_ for _ in ()).throw(RuntimeError("no graph\nhere")))
    elif fault == "waits":  # torch's warning, which the debug mode turns on
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode",
                            lambda mode: warnings.warn("called a synchronizing CUDA operation"))
    else:
        monkeypatch.setattr(Graph, "fault", lambda: copied[0].mul_(float("nan") if fault == "NaN" else 1.5))

    def train(G, D, *args, **kwargs):
        copied.append(next(D.parameters()).data)
        return graphed(G, D, *args, **kwargs)
    graphed = gpu.reading if fault == "reads" else fast.graphed
    found, kept = trained("toy", train, **flags)
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("--fast: ") and line.endswith("training goes on without it")
    assert ("recorded (no graph)" in line) == (fault == "failed capture")
    assert ("recorded (a number was read" in line) == (fault == "reads")
    assert renewed == ["new"] * ("recorded" in line)
    assert torch.allclose(expected, found, rtol=1e-5, atol=1e-6)
    assert torch.allclose(weights(eager), weights(kept), atol=1e-6)


def test_a_resumed_graph_continues_the_run(pretend_cuda):
    """Stopped after 5 of 10 iterations, and restored into both kinds of training."""
    flags = dict(iterations=10, seed=1, decay=True)
    expected, whole = trained("toy", fast.graphed, **flags)
    _, stopped = trained("toy", lambda *args, **more: itertools.islice(fast.graphed(*args, **more), 5), **flags)
    states = copy.deepcopy([thing.state_dict() for thing in stopped])
    for train in (fast.graphed, wgan_gp.train):
        def resumed(G, D, batches, latents, opt_G, opt_D, *args, **kwargs):
            for thing, state in zip((G, D, opt_G, opt_D), copy.deepcopy(states)):
                thing.load_state_dict(state)
            return train(G, D, batches, latents, opt_G, opt_D, *args, start=5, **kwargs)
        found, kept = trained("toy", resumed, **flags)
        assert torch.allclose(expected[5:], found, atol=1e-5)
        assert torch.allclose(weights(whole), weights(kept), atol=1e-5)


# ---- bfloat16 ----

@pytest.mark.parametrize("name, train", [("dcgan", wgan_gp.train), ("resnet", wgan_gp.train), ("dcgan", fast.graphed)])
def test_bfloat16_is_near_float32_and_keeps_weights_in_float32(pretend_cuda, name, train):
    iterations = 5 if train is fast.graphed else 2
    expected, _ = trained(name, wgan_gp.train, iterations=iterations)
    found, (G, D, *optimizers) = trained(name, fast.in_bfloat16(train), iterations=iterations)
    assert found.dtype == torch.float32 and not torch.equal(expected, found)
    assert torch.allclose(expected, found, rtol=0.1, atol=0.1)
    for opt in optimizers:
        for w, state in opt.state.items():
            assert w.dtype == w.grad.dtype == torch.float32
            assert all(value.dtype == torch.float32 for value in state.values())
    assert D(torch.rand(4, 3, 32, 32)).dtype == torch.float32  # the network itself, for measuring, is not changed


def test_bfloat16_copies_of_the_weights_do_not_outlive_an_update():
    D = models.Linear(3, 1)
    twin = fast.autocasting(D)
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        assert twin(torch.ones(1, 3)).item() == pytest.approx(D.weight.sum().item(), abs=0.02)
        with torch.no_grad():
            D.weight.fill_(7)
        assert twin(torch.ones(1, 3)).item() == 21
    assert fast.autocasting(lambda z: D(z))(torch.ones(1, 3)).dtype == torch.float32  # any function


# ---- the door ----

def test_choose_returns_algorithm_1_itself_without_flags():
    assert fast.choose(argparse.Namespace(fast=False, bf16=False)) is wgan_gp.train
    assert fast.choose(argparse.Namespace(fast=True, bf16=False)) is fast.graphed


@pytest.mark.parametrize("flags, size, message", [
    (["--fast"], "1", "--fast is a CUDA graph, and the device is cpu"),
    (["--batch-size", "7"], "2", "--batch-size 7 must be a multiple of 2 processes"),
    ([], "two", "WORLD_SIZE is 'two'")])
def test_impossible_flags_are_one_line(call, monkeypatch, flags, size, message):
    monkeypatch.setenv("WORLD_SIZE", size)
    code, _, stderr = call("train_cifar.py", *flags)
    line, = (stderr or code).splitlines()
    assert line.startswith("train_cifar.py: ") and message in line


def test_gpu_py_works_on_a_cpu(tmp_path):
    """The script for a new GPU, at tiny sizes."""
    done = subprocess.run([sys.executable, Path(gpu.__file__), "--device", "cpu", "--minutes", "1", "--out", tmp_path],
                          capture_output=True, text=True)
    table = (tmp_path / "table.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All passed" in table and "FAILED" not in table
    assert all(f"## {stage}" in table for stage in ("right", "fast", "speed", "training"))
    assert all((tmp_path / name / "log.csv").exists() for name in ("cifar", "resnet", "language"))
