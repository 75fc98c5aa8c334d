"""fast.py. A CUDA graph is played here by something that records a CPU's operations and repeats them. The tests of real
ones are skipped where there is no GPU: python -m pytest tests/test_fast.py -k test_cuda"""
import io
import argparse
import contextlib
import copy
import functools
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import data
import fast
import models
import runs
import train_cifar_resnet
import wgan_gp

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


# ------------------------------------------------------------------------------------------- a pretended CUDA graph

class Recorder(TorchDispatchMode):
    """Takes down every operation with the tensors it has read and written, and can do it all again."""

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
                    old.copy_(new)  # to where the next operation reads it; views and in-place results are there


class Graph:
    """torch.cuda.CUDAGraph."""
    replays = 0

    def replay(self):
        Graph.replays += 1
        with torch.no_grad():
            self.recorder.replay()


@pytest.fixture
def pretend_cuda(monkeypatch):
    """Puts torch.cuda's graphs and streams on the CPU. A capture should compute nothing, so what it does to weights
    and optimisers is undone."""
    optimisers, init = [], torch.optim.Optimizer.__init__

    @contextlib.contextmanager
    def capture(graph, stream):
        tensors = [t for opt in optimisers for w, state in opt.state.items() for t in (w.detach(), *state.values())]
        before, random = [t.clone() for t in tensors], torch.get_rng_state()
        graph.recorder = Recorder()
        with graph.recorder:
            yield
        for t, value in zip(tensors, before):
            t.copy_(value)
        torch.set_rng_state(random)

    def register(self, *args, **kwargs):
        optimisers.append(self)
        init(self, *args, **kwargs)
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", register)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: argparse.Namespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(Graph, "replays", 0)
    for optimiser in ("adam", "rmsprop"):
        module = sys.modules[f"torch.optim.{optimiser}"]
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


# ------------------------------------------------------------------------------------------------ the same training

shapes = functools.cache(data.shapes)


def things(name, device="cpu", dim=4, method=None, batch=4):
    """G, D, batches, latents, opt_G, opt_D, method of a small (or not so small) training, from one seed."""
    torch.manual_seed(0)
    method = method or wgan_gp.WGAN_GP
    latents = lambda m: (torch.randn(m, models.LATENT, device=device),)
    images, labels = shapes(40)
    if name == "toy":
        G, D = models.toy_generator(dim), models.toy_critic(dim)
        batches = data.toy_batches(data.eight_gaussians, batch, device)
        latents = lambda m: (torch.randn(m, 2, device=device),)
    elif name == "dcgan":
        G, D = models.cifar_generator(dim), models.cifar_critic(dim, None if method.lam else "batch")
        batches = data.batches(images, batch, data.from_bytes, device)
    else:
        G, D = models.CifarResNetGenerator(dim, conditional=True), models.CifarResNetCritic(dim, conditional=True)
        method = method._replace(critic_term=train_cifar_resnet.critic_term,
                                 generator_term=train_cifar_resnet.generator_term)
        batches = data.batches(images, batch, data.from_bytes_noisy, device, labels)
        latents = lambda m: (torch.randn(m, models.LATENT, device=device), torch.randint(10, (m,), device=device))
    # foreach is what an optimiser does on a GPU unless told otherwise.
    method = method._replace(optimizer=partial(method.optimizer, foreach=True))
    G, D = G.to(device), D.to(device)
    return G, D, batches, latents, method.optimizer(G.parameters()), method.optimizer(D.parameters()), method


def losses(trained):
    return torch.stack([torch.stack(step[1:]) for step in trained]).cpu()


def close(a, b, tolerance):
    """Are the weights of two networks the same to a share `tolerance` of the largest of each tensor? Biases are left
    out: those before a batch norm, and the critic's last, have no gradient but rounding errors, which Adam enlarges."""
    pairs = [pair for pair in zip(a.parameters(), b.parameters()) if pair[0].dim() > 1]
    return all((v - w).abs().max() <= tolerance * v.abs().max() for v, w in pairs)


@pytest.mark.parametrize("name, method, decay", [
    ("toy", "wgan-gp", False), ("toy", "wgan-gp", True), ("toy", "wgan", False), ("toy", "wgan-gp-rmsprop", True),
    ("dcgan", "wgan-gp", False), ("dcgan", "dcgan", True), ("resnet", "wgan-gp", True)])
def test_a_graph_trains_as_algorithm_1_does(pretend_cuda, name, method, decay):
    kinds = [things(name, method=wgan_gp.METHODS[method]) for _ in range(2)]
    flags = dict(iterations=6, seed=5, decay=decay, generator_batch=6)
    eager, graphed = losses(wgan_gp.train(*kinds[0], **flags)), losses(fast.train(*kinds[1], **flags))
    assert Graph.replays == 6 - fast.WARM_UP
    assert len(graphed) == 6 and torch.allclose(eager, graphed, rtol=1e-5, atol=1e-5)
    assert all(close(kinds[0][i], kinds[1][i], 1e-5) for i in (0, 1))
    for a, b in zip(*[[opt.param_groups[0] for opt in things[4:6]] for things in kinds]):  # a checkpoint of any device
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}


def test_a_resumed_graph_goes_on_as_if_undisturbed(pretend_cuda):
    """Stopped after 5 of 10 iterations and restored from what a checkpoint holds, into either kind of training."""
    flags = dict(iterations=10, seed=1, decay=True)
    whole = things("toy")
    expected = losses(fast.train(*whole, **flags))
    cut = things("toy")
    for step in fast.train(*cut, **flags):
        if step.iteration == 5:
            held = [copy.deepcopy(cut[i].state_dict()) for i in (0, 1, 4, 5)]
            break
    for kind, tolerance in [(fast, 0), (wgan_gp, 1e-5)]:
        again = things("toy")
        for i, state in zip((0, 1, 4, 5), held):
            again[i].load_state_dict(copy.deepcopy(state))
        went_on = losses(kind.train(*again, start=5, **flags))
        assert torch.allclose(expected[5:], went_on, rtol=tolerance, atol=tolerance)
        assert close(whole[0], again[0], tolerance) and close(whole[1], again[1], tolerance)


def test_measuring_between_replays_disturbs_nothing(pretend_cuda):
    expected = losses(fast.train(*things("dcgan"), iterations=6))
    G, D, *others = things("dcgan")
    steps = []
    for step in fast.train(G, D, *others, iterations=6):
        steps.append(step)
        wgan_gp.held_out_loss(G, D, [(torch.rand(4, 3, 32, 32),)], others[1])
        wgan_gp.sample(G, others[1], 4)
    assert torch.equal(expected, losses(steps))


def test_nothing_waits_for_the_gpu_in_a_graph(pretend_cuda):
    """The recorder refuses to read a number, as a capture does; here it is shown to."""
    G, D, batches, *others = things("toy")
    reads = ((x,) for x, in batches if x.sum().item() < 1e9)
    with pytest.raises(RuntimeError, match="a number was read"):
        list(fast.train(G, D, reads, *others, iterations=5))


def test_a_mapped_folder_gives_the_same_batches_where_it_is_resident(tmp_path):
    """A graph cannot index what lies on a disk."""
    shapes(20)[0].numpy().tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=(20, 3, 32, 32))
    drawn = []
    for resident in (False, True):
        torch.manual_seed(0)
        drawn.append(next(data.batches(mapped, 8, data.from_bytes, resident=resident))[0])
    assert torch.equal(*drawn)


# -------------------------------------------------------------------------------------------------------- bfloat16

@pytest.mark.parametrize("name, kind", [("dcgan", "eager"), ("resnet", "eager"), ("dcgan", "graph")])
def test_bfloat16_is_near_float32_and_keeps_weights_in_float32(pretend_cuda, name, kind):
    train = wgan_gp.train if kind == "eager" else fast.train
    float32, (G, D, *others) = things(name, batch=8), things(name, batch=8)
    iterations = 2 if kind == "eager" else 5
    expected = losses(wgan_gp.train(*float32, iterations=iterations))
    found = losses(train(*fast.in_bfloat16(G, D), *others, iterations=iterations))
    assert found.dtype == torch.float32 and not torch.equal(expected, found)
    assert torch.allclose(expected, found, rtol=0.1, atol=0.1)
    for opt in others[2:4]:
        for w, state in opt.state.items():
            assert w.dtype == w.grad.dtype == torch.float32 and (w.dim() == 1 or w.grad.abs().max() > 0)
            assert all(value.dtype == torch.float32 for value in state.values())
    assert G(*others[1](4)).dtype == D(torch.rand(4, 3, 32, 32)).dtype == torch.float32  # what is measured and sampled


def test_bfloat16_penalty_has_the_gradient_of_float32s():
    """Differentiated twice: within bfloat16's rounding, weight by weight."""
    torch.manual_seed(0)
    D = models.cifar_critic(8)
    twin, = fast.in_bfloat16(D)
    x, x_tilde = torch.rand(2, 8, 3, 32, 32)
    gradients = []
    for network in (D, twin):
        torch.manual_seed(1)
        D.zero_grad()
        wgan_gp.gradient_penalty(network, x, x_tilde).backward()
        gradients.append(torch.cat([w.grad.flatten() for w in D.parameters() if w.grad is not None]))
    assert twin(x).dtype == torch.float32 and not torch.equal(twin(x), D(x))
    assert (gradients[0] - gradients[1]).norm() < 0.03 * gradients[0].norm()


def test_bfloat16_copies_of_the_weights_do_not_outlive_an_update():
    """Autocast would keep them until the outermost of its blocks is left, and a CUDA graph replays what it has kept."""
    D = models.Linear(3, 1)
    twin, = fast.in_bfloat16(D)
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        assert twin(torch.ones(1, 3)).item() == pytest.approx(D.weight.sum().item(), abs=0.02)
        with torch.no_grad():
            D.weight.fill_(7)
        assert twin(torch.ones(1, 3)).item() == 21


@pytest.mark.parametrize("script", ["train_cifar.py", "train_cifar_resnet.py"])
def test_scripts_train_in_bfloat16_and_resume_only_with_it(call, tmp_path, monkeypatch, script):
    monkeypatch.setattr(data, "shapes", lambda *_: shapes(20))
    command = [script, "--data", "shapes", "--dim", 2, "--batch-size", 4, "--score-every", 0, "--iterations", 1,
               "--out", tmp_path / "a"]
    assert call(*command, "--bf16")[0] == 0
    code, _, stderr = call(*command, "--resume")
    assert code == 2 and "was started with --bf16 True, not False" in stderr
    assert call(*command, "--bf16", "--resume")[0] == 0
    code, _, stderr = call(*command, "--fast")
    assert code == 2 and "--fast is a CUDA graph, and the device is cpu" in stderr.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------ on a GPU

@CUDA
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["toy", "dcgan", "resnet"])
def test_cuda_graph_trains_as_algorithm_1_does(name, bf16):
    """The first ten iterations, at the sizes that are trained; the differences are those of rounding, which grow."""
    runs_ = [things(name, "cuda", dim={"toy": 512, "dcgan": 64, "resnet": 128}[name], batch=64) for _ in range(2)]
    found = []
    for kind, (G, D, *others) in zip((wgan_gp, fast), runs_):
        networks = fast.in_bfloat16(G, D) if bf16 else (G, D)
        found.append(losses(kind.train(*networks, *others, iterations=10, decay=True)))
    tolerance = 0.05 if bf16 else 0.01
    assert torch.allclose(*found, rtol=tolerance, atol=tolerance)
    assert torch.allclose(found[0][:4], found[1][:4], rtol=tolerance / 10, atol=tolerance / 10)  # one replay among them


@CUDA
def test_cuda_replays_draw_what_eager_iterations_draw():
    """The seed that is set before a replay is the one that it draws from, and each replay draws anew."""
    drawn = []
    for kind in (wgan_gp, fast):
        G, D, batches, *others = things("toy", "cuda")
        seen = torch.zeros((), device="cuda")

        def watched():
            for x, in batches:
                seen.copy_(x.sum())
                yield x,
        drawn.append([seen.clone() for _ in kind.train(G, D, watched(), *others, iterations=8, seed=3)])
    assert torch.equal(torch.stack(drawn[0]), torch.stack(drawn[1])) and len(torch.stack(drawn[1]).unique()) == 8


@CUDA
@pytest.mark.parametrize("name", ["toy", "dcgan", "resnet"])
def test_cuda_replays_never_wait(name):
    try:
        for step in fast.train(*things(name, "cuda"), iterations=12, decay=True):
            if step.iteration > fast.WARM_UP:
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CUDA
def test_cuda_resumed_on_a_cpu():
    """What a graphed run leaves is a checkpoint like any other."""
    there, here = things("toy", "cuda"), things("toy")
    list(fast.train(*there, iterations=5))
    buffer = io.BytesIO()
    torch.save([there[i].state_dict() for i in (0, 1, 4, 5)], buffer)
    buffer.seek(0)
    for i, state in zip((0, 1, 4, 5), torch.load(buffer, map_location="cpu")):  # as runs.Run does
        here[i].load_state_dict(state)
    assert losses(wgan_gp.train(*here, iterations=7, start=5)).isfinite().all()


@CUDA
def test_cuda_script_resumes_with_and_without_fast(call, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "shapes", lambda *_: shapes(40))
    command = ["train_cifar_resnet.py", "--data", "shapes", "--dim", 8, "--batch-size", 4, "--score-every", 0,
               "--iterations", 8, "--device", "cuda", "--out", tmp_path / "a"]
    assert call(*command, "--fast")[0] == 0 and call(*command, "--resume")[0] == 0
    assert np.isfinite(runs.read_log(tmp_path / "a")["critic_loss"]).all()
