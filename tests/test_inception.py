"""Tests of inception.py, with random weights: the published ones are too large for a test."""
import functools
import hashlib
import io
import math
import os
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import inception
from inception import ImageError, InceptionError
from test_data import png16

# ---- a second description of the network, independent of inception.py ----

# Every block as its branches, every branch as its convolutions "name out kernel [s2] [v]" (s2: stride 2; v: no
# padding), "avg", "max", or "half" (3x3 maximum, stride 2). One in brackets reads its left neighbour's input.

BLOCK_A = "branch1x1 64 1 | branch5x5_1 48 1, branch5x5_2 64 5 | " \
          "branch3x3dbl_1 64 1, branch3x3dbl_2 96 3, branch3x3dbl_3 96 3 | avg, branch_pool {} 1"
BLOCK_B = "branch3x3 384 3 s2 v | branch3x3dbl_1 64 1, branch3x3dbl_2 96 3, branch3x3dbl_3 96 3 s2 v | half"
BLOCK_C = "branch1x1 192 1 | branch7x7_1 {0} 1, branch7x7_2 {0} 1x7, branch7x7_3 192 7x1 | " \
          "branch7x7dbl_1 {0} 1, branch7x7dbl_2 {0} 7x1, branch7x7dbl_3 {0} 1x7, branch7x7dbl_4 {0} 7x1, " \
          "branch7x7dbl_5 192 1x7 | avg, branch_pool 192 1"
BLOCK_D = "branch3x3_1 192 1, branch3x3_2 320 3 s2 v | branch7x7x3_1 192 1, branch7x7x3_2 192 1x7, " \
          "branch7x7x3_3 192 7x1, branch7x7x3_4 192 3 s2 v | half"
BLOCK_E = "branch1x1 320 1 | branch3x3_1 384 1, branch3x3_2a 384 1x3, [branch3x3_2b 384 3x1] | " \
          "branch3x3dbl_1 448 1, branch3x3dbl_2 384 3, branch3x3dbl_3a 384 1x3, " \
          "[branch3x3dbl_3b 384 3x1] | {}, branch_pool 192 1"
STEM = "Conv2d_1a_3x3 32 3 s2 v, Conv2d_2a_3x3 32 3 v, Conv2d_2b_3x3 64 3, half, Conv2d_3b_1x1 80 1, " \
       "Conv2d_4a_3x3 192 3 v, half"
NETWORK = {"": STEM,
           "Mixed_5b.": BLOCK_A.format(32), "Mixed_5c.": BLOCK_A.format(64), "Mixed_5d.": BLOCK_A.format(64),
           "Mixed_6a.": BLOCK_B,
           "Mixed_6b.": BLOCK_C.format(128), "Mixed_6c.": BLOCK_C.format(160),
           "Mixed_6d.": BLOCK_C.format(160), "Mixed_6e.": BLOCK_C.format(192),
           "Mixed_7a.": BLOCK_D,
           "Mixed_7b.": BLOCK_E.format("avg"), "Mixed_7c.": BLOCK_E.format("max")}


def walk(x, convolution, pool, concatenate):
    """Run an input through NETWORK. What the three functions do with it is up to them."""
    for prefix, block in NETWORK.items():
        outputs = []
        for branch in block.split(" | "):
            y = before = x
            ends = []
            for step in branch.split(", "):
                sibling = step.startswith("[")
                name, *spec = step.strip("[]").split()
                if sibling:
                    ends.append(y)
                    y = before
                before = y
                if not spec:
                    y = pool(y, name)
                else:
                    out, kernel, *flags = spec
                    kernel = [int(k) for k in kernel.split("x")]
                    stride, valid = 2 if "s2" in flags else 1, "v" in flags
                    y = convolution(y, prefix + name, int(out), (kernel[0], kernel[-1]), stride, valid)
            outputs += [*ends, y]
        x = concatenate(outputs)
    return x


def published_shapes():
    """Name and shape of every tensor of the published file, by the description above."""
    shapes = {}

    def convolution(channels, name, out, kernel, stride, valid):
        shapes[name + ".conv.weight"] = (out, channels, *kernel)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{tensor}"] = (out,)
        shapes[name + ".bn.num_batches_tracked"] = ()
        return out

    assert walk(3, convolution, lambda channels, name: channels, sum) == 2048
    return {**shapes, "fc.weight": (1008, 2048), "fc.bias": (1008,)}


def features_float64(x, weights):
    """The network in float64 by the description above, out of convolutions and loops alone."""
    def convolution(x, name, out, kernel, stride, valid):
        w = {k: weights[f"{name}.{k}"].double() for k in
             ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")}
        x = F.conv2d(x, w["conv.weight"], None, stride, (0, 0) if valid else (kernel[0] // 2, kernel[1] // 2))
        x = x - w["bn.running_mean"][:, None, None]
        x = x / (w["bn.running_var"] + 0.001).sqrt()[:, None, None]
        return (x * w["bn.weight"][:, None, None] + w["bn.bias"][:, None, None]).clamp(min=0)

    def pool(x, name):
        if name == "half":
            size = (x.shape[2] - 3) // 2 + 1
            end = 2 * size - 1
            windows = [x[:, :, i:i + end:2, j:j + end:2] for i in range(3) for j in range(3)]
            return torch.stack(windows).amax(0)
        padded = F.pad(x, (1, 1, 1, 1), value=math.nan)  # nan: not in the picture
        windows = torch.stack([padded[:, :, i:i + x.shape[2], j:j + x.shape[3]]
                               for i in range(3) for j in range(3)])
        return windows.nanmean(0) if name == "avg" else windows.nan_to_num(-math.inf).amax(0)

    return walk(x, convolution, pool, functools.partial(torch.cat, dim=1)).flatten(2).mean(2)


@pytest.fixture(scope="module")
def weights():
    """Random weights under the published names, such that activations neither vanish nor explode, class
    probabilities are far from uniform, and the bias matters."""
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in published_shapes().items():
        if name.endswith("conv.weight"):
            tensors[name] = torch.randn(shape, generator=g) * math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith(("running_var", "bn.weight")):
            tensors[name] = 0.5 + torch.rand(shape, generator=g)
        elif name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
        else:
            tensors[name] = torch.randn(shape, generator=g) * (0.01 if "fc.weight" in name else 0.3)
    return tensors


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / inception.WEIGHTS_FILE
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def net(file):
    return inception.load(path=file)


class Tiny(torch.nn.Module):
    """Stands in for the network where only the use of its outputs matters."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.fc = torch.nn.Linear(2048, 1008)
        self.fc.weight.data = torch.randn(1008, 2048, generator=g)
        self.mix = torch.randn(3, 2048, generator=g)
        self.largest = 0

    def forward(self, x):
        assert x.shape[1:] == (3, 299, 299) and -1 <= x.min() and x.max() < 1
        self.largest = max(self.largest, len(x))
        return torch.tanh(x.std((2, 3)) @ self.mix)

    probabilities = inception.Inception.probabilities


def random_images(n, height=8, width=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    tint = torch.rand(n, 3, 1, 1, generator=g)
    return (torch.rand(n, 3, height, width, generator=g) * 256 * tint).to(torch.uint8)


# ---- the network ----

def test_names_shapes_and_count(net):
    shapes = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    assert shapes == published_shapes()
    trained = [s for name, s in shapes.items() if "running" not in name and "tracked" not in name]
    assert sum(map(math.prod, trained)) == 23_850_960
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    # a few entries by hand, so that one mistake in both descriptions would show
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_1.conv.weight"] == (448, 2048, 1, 1)


def test_features_against_float64(net, weights):
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = net(x)
    expected = features_float64(x.double(), weights)
    assert features.shape == (1, 2048) and expected.std() > 0.1 and (expected > 0).float().mean() > 0.5
    torch.testing.assert_close(features.double(), expected, rtol=1e-4, atol=1e-4)


# ---- the resize ----

def test_resize_by_hand():
    x = torch.tensor([[0., 8.], [16., 40.]]).view(1, 1, 2, 2)  # s = 0, 1/2, 1, 3/2: the last repeats
    assert inception.tf1_resize(x, 4)[0, 0].tolist() == [
        [0, 4, 8, 8], [8, 16, 24, 24], [16, 28, 40, 40], [16, 28, 40, 40]]
    assert inception.tf1_resize(x, 3)[0, 0, 0].tolist() == pytest.approx([0, 16 / 3, 8])  # s = 0, 2/3, 4/3
    x = random_images(1, 299, 598)
    y = inception.tf1_resize(x)
    assert y.dtype == torch.float32 and torch.equal(y, x[:, :, :, ::2].float())  # halved: every second pixel


def resize_by_loops(x):
    """Bilinear, source = output index * in/out, last row and column repeated: C x H x W, float64."""
    (height, width), big = x.shape[1:], np.empty((len(x), 299, 299))
    for i in range(299):
        for j in range(299):
            top, left = i * height // 299, j * width // 299
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, h = i * height / 299 - top, j * width / 299 - left
            upper = (1 - h) * x[:, top, left] + h * x[:, top, right]
            big[:, i, j] = (1 - v) * upper + v * ((1 - h) * x[:, bottom, left] + h * x[:, bottom, right])
    return big


@pytest.mark.parametrize("height, width", [(32, 32), (28, 48), (300, 7), (1, 1)])
def test_resize_against_loops(height, width):
    x = random_images(1, height, width)[0].double().numpy()
    got = inception.tf1_resize(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(got, resize_by_loops(x), atol=2e-2)  # s in float32, as in TensorFlow: up to 3e-5 off


def test_resize_rounds_as_tensorflow_does():  # in float32, first along a row, then between rows
    x = random_images(1, 32, 32)[0, 0].numpy().astype(np.float32)
    s = np.arange(299, dtype=np.float32) * np.float32(32 / 299)
    low = np.floor(s).astype(int)
    high, w = np.minimum(low + 1, 31), s - low.astype(np.float32)
    rows = x[:, low] + (x[:, high] - x[:, low]) * w
    expected = rows[low] + (rows[high] - rows[low]) * w[:, None]
    assert np.array_equal(inception.tf1_resize(torch.from_numpy(x)[None, None])[0, 0].numpy(), expected)


# ---- the score ----

def random_probabilities(n, classes, seed=0):
    return torch.softmax(2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed)), 1)


def score_by_loops(p, splits):
    """Mean and population deviation over consecutive splits, one number at a time, in float64."""
    n, scores = len(p), []
    for k in range(splits):
        rows = [[float(v) for v in p[i]] for i in range(n) if k * n // splits <= i < (k + 1) * n // splits]
        marginal = [sum(column) / len(rows) for column in zip(*rows)]
        kls = [sum(v * (math.log(v) - math.log(m)) for v, m in zip(row, marginal) if v > 0) for row in rows]
        scores.append(math.exp(sum(kls) / len(kls)))
    mean = sum(scores) / splits
    return mean, math.sqrt(sum((s - mean) ** 2 for s in scores) / splits)


@pytest.mark.parametrize("p, splits, mean, deviation", [
    (torch.full((40, 10), 0.1), 10, 1, 0), (torch.eye(2).repeat(3, 1), 3, 2, 0),
    (torch.eye(1008).repeat(3, 1), 3, 1008, 0),
    # 5 images in 2 splits: 0, 1 and 2, 3, 4. One class in the first, three in the second.
    (torch.eye(4)[[0, 0, 1, 2, 3]], 2, 2, 1)])
def test_score_in_closed_form(p, splits, mean, deviation):
    got = inception.score_from_probabilities(p, splits)
    assert got == (pytest.approx(mean, rel=1e-6), pytest.approx(deviation, abs=1e-6))


@pytest.mark.parametrize("n, splits", [(40, 10), (47, 10), (7, 3), (10, 10), (23, 1)])
def test_score_by_brute_force(n, splits):
    p = random_probabilities(n, 12)
    expected = score_by_loops(p, splits)
    for q in (p, p.numpy()):
        assert inception.score_from_probabilities(q, splits) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_score_is_computed_in_float64():
    p = random_probabilities(30_000, 5).double()
    tilted = p * (1 + 1e-9 * torch.arange(5.).double())  # too little for float32 to see
    a, b = (inception.score_from_probabilities(q / q.sum(1, keepdim=True), 3)[0] for q in (p, tilted))
    assert 0 < abs(a - b) < 1e-6


def test_score_refuses_what_is_no_probability():
    p = random_probabilities(20, 5)
    for bad in (p.log(), p * 2, torch.full_like(p, math.nan), (p * 10).long()):
        with pytest.raises(ValueError):
            inception.score_from_probabilities(bad)
    for n, splits in ((9, 10), (0, 1), (5, 0)):
        with pytest.raises(ImageError, match=f"{n} images cannot be cut into {splits} splits"):
            inception.score_from_probabilities(random_probabilities(n, 5), splits)


def test_whole_score_against_float64(net, weights):
    """Bytes to score by loops in float64. The network only turns prepared pixels into features."""
    images = random_images(5)  # very different, for a random network
    images[0], images[1], images[2, 1:], images[3, :, ::2] = 0, 255, 0, 255
    mean, std = inception.inception_score(images, net, splits=2, batch_size=2, progress=False)
    big = np.stack([(resize_by_loops(x) - 128) / 128 for x in images.double().numpy()])
    p = []
    for image in torch.from_numpy(big).float():
        exps = np.exp(weights["fc.weight"].double().numpy() @ net(image[None])[0].double().numpy())
        p.append(exps / exps.sum())
    assert (mean, std) == pytest.approx(score_by_loops(p, 2), rel=1e-4)
    assert mean > 1.05 and std > 0.01  # not a trivial case


def test_activations_do_not_depend_on_batches_kind_of_array_mode_and_mixed_precision(net):
    images = random_images(3, 16, 16)
    features, p = inception.activations(images, net, batch_size=2, progress=False)
    assert features.shape == (3, 2048) and p.shape == (3, 1008) and features.dtype == p.dtype == torch.float32
    torch.testing.assert_close(p, net.probabilities(features))
    net.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, q = inception.activations(images.numpy(), net, batch_size=3, progress=False)
    torch.testing.assert_close(again, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-6)
    assert int(net.Conv2d_1a_3x3.bn.num_batches_tracked) == 0 and not features.requires_grad
    inception.activations(random_images(203), tiny := Tiny(), batch_size=10, progress=False)
    assert tiny.largest == 10
    with pytest.raises(ValueError, match="batch_size"):
        inception.activations(images, tiny, batch_size=0)


# Callers' ways of allowing TF32 and bfloat16 inside products: old switches, new settings, both.
SWITCHES = [
    "pass", "b.cudnn.allow_tf32 = b.cuda.matmul.allow_tf32 = True", "b.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('high')", "torch.set_float32_matmul_precision('medium')",
    "b.fp32_precision = 'tf32'", "b.fp32_precision = 'bf16'", "b.cudnn.fp32_precision = 'tf32'",
    "b.cudnn.conv.fp32_precision = 'ieee'", "b.cudnn.conv.fp32_precision = b.cuda.matmul.fp32_precision = 'tf32'",
    "b.cudnn.conv.fp32_precision = 'none'; b.fp32_precision = 'tf32'",
    "torch.set_float32_matmul_precision('high'); b.cuda.matmul.fp32_precision = 'ieee'"]
PRODUCTS = [(backend, kind) for backend in ("cuda", "mkldnn") for kind in ("conv", "matmul")]


def precisions():
    """Every setting's own value. An unset one reads as the more general one: those are off meanwhile."""
    keys, values = [("generic", "all"), ("cuda", "all"), ("cuda", "rnn"), *PRODUCTS], []
    for key in keys:
        values.append(torch._C._get_fp32_precision_getter(*key))
        torch._C._set_fp32_precision_setter(*key, "none")
    for key, value in zip(keys, values):
        torch._C._set_fp32_precision_setter(*key, value)
    return values


@pytest.fixture
def restore_precisions():
    yield
    b = torch.backends
    b.fp32_precision = b.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    b.cudnn.allow_tf32 = True


@pytest.mark.filterwarnings("ignore:Please use the new API")
@pytest.mark.parametrize("switch", SWITCHES)
def test_no_tf32_whatever_the_caller_has_set(switch, file, weights, restore_precisions):
    exec(switch, {"torch": torch, "b": torch.backends})
    before, inside, images = precisions(), [], random_images(2, 32, 32)

    class Look(Tiny):
        def forward(self, x):
            inside.extend(torch._C._get_fp32_precision_getter(*key) for key in PRODUCTS)
            return super().forward(x)
    inception.activations(images, Look(), progress=False)
    assert len(inside) == 4 and set(inside) <= {"none", "ieee"}
    with pytest.raises(ZeroDivisionError), inception.plain_float32():
        1 / 0
    assert precisions() == before
    if torch.cuda.is_available():  # TF32 would be off by 1e-3
        features, p = inception.activations(images, inception.load(path=file, device="cuda"), progress=False)
        expected = features_float64((inception.tf1_resize(images).double() - 128) / 128, weights)
        assert (features - expected).norm() / expected.norm() < 2e-5
        q = torch.softmax(features.double() @ weights["fc.weight"].double().T, 1)
        assert ((p - q).abs() / q).max() < 5e-5


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_line(capsys, monkeypatch, terminal):
    clock = iter(range(0, 10_000, 30))  # half a minute a look
    monkeypatch.setattr(inception.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert list(inception.slices(5, 3, False)) == [slice(0, 3), slice(3, 5)]
    assert capsys.readouterr().err == ""
    assert len(list(inception.slices(40, 2, True))) == 20
    err = capsys.readouterr().err
    assert err.count("minutes left") == {True: 20, False: 6}[terminal] == err.count("\n\r"[terminal])


@pytest.mark.parametrize("n, classes, splits", [(1000, 10, 10), (990, 9, 10), (5000, 100, 10), (200, 2, 2)])
def test_images_sorted_by_class_are_noticed(n, classes, splits, monkeypatch, capsys):
    p = 0.9 * torch.eye(classes).repeat_interleave(n // classes, 0) + 0.1 / classes
    in_random_order = [random_probabilities(20 + n // 10 * seed, 12, seed) for seed in range(20)]
    for order in (p, p[torch.randperm(n)], *in_random_order):
        monkeypatch.setattr(inception, "activations", lambda *args: (None, order))
        state, images = torch.get_rng_state(), random_images(len(order), 1, 1)
        assert inception.inception_score(images, None, splits) == inception.score_from_probabilities(order, splits)
        assert ("seem sorted by class" in capsys.readouterr().err) == (order is p)
        assert torch.equal(torch.get_rng_state(), state)


# ---- the distance ----

def test_distance_of_equal_sets_and_in_closed_form():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert inception.fid(x, x) == pytest.approx(0, abs=1e-9)
    few = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)).double()  # singular covariance
    assert inception.fid(few, few) == pytest.approx(0, abs=1e-9)
    assert inception.fid(few, few + 1e-3) == pytest.approx(200e-6, rel=1e-5)
    zero, one = np.zeros(3), np.eye(3)
    assert inception.frechet_distance(zero, one, np.array([1., 2., 2.]), one) == pytest.approx(9)  # means
    s1, s2 = np.diag([1., 4., 9.]), np.diag([4., 4., 1.])  # commuting: sum (sqrt a - sqrt b)^2
    assert inception.frechet_distance(zero, s1, zero, s2) == pytest.approx(1 + 0 + 4)
    # not commuting, 2 x 2: trace sqrt(A) = sqrt(trace A + 2 sqrt(det A)) with A = S1 S2
    s1, s2 = np.array([[2., 1.], [1., 3.]]), np.array([[1., -0.5], [-0.5, 4.]])
    a = s1 @ s2
    root = math.sqrt(np.trace(a) + 2 * math.sqrt(np.linalg.det(a)))
    got = inception.frechet_distance(torch.zeros(2), s1, np.zeros(2), torch.from_numpy(s2))
    assert got == pytest.approx(np.trace(s1) + np.trace(s2) - 2 * root, rel=1e-12)
    # one dimension: (difference of means)^2 + (difference of deviations)^2
    assert inception.frechet_distance([1.], [[4.]], [3.], [[25.]]) == pytest.approx(4 + 9)


@pytest.mark.parametrize("rank", [None, 3])
def test_distance_against_general_eigenvalues(rank):
    a, b = (np.random.default_rng(d).normal(size=(6, d)) for d in (rank or 7, 8))
    s1, s2 = a @ a.T, b @ b.T
    root = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()  # the product as it stands
    got = inception.frechet_distance(np.zeros(6), s1, np.zeros(6), s2)
    assert got == pytest.approx(np.trace(s1) + np.trace(s2) - 2 * root, rel=1e-6)
    assert got == pytest.approx(inception.frechet_distance(np.zeros(6), s2, np.zeros(6), s1), rel=1e-6)


def test_mean_and_covariance_are_those_of_numpy():
    x = np.random.default_rng(0).normal(3, 2, (2500, 4)).astype(np.float32)  # more than one part of 1,000
    mu, cov = inception.mean_and_covariance(torch.from_numpy(x))
    np.testing.assert_allclose(mu, x.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.astype(float), rowvar=False), rtol=1e-10)
    with pytest.raises(ValueError, match="d x d"):
        inception.frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="NaN"):
        inception.frechet_distance(np.zeros(2), np.eye(2) * math.nan, np.zeros(2), np.eye(2))
    with pytest.raises(ImageError, match="two images"):
        inception.fid(torch.zeros(1, 4), torch.zeros(5, 4))


# ---- images that cannot be scored ----

@pytest.mark.parametrize("images, words", [
    (torch.linspace(0, 1, 480).view(10, 3, 4, 4), "need uint8, 0 to 255, not float32.*clip"),
    (np.full((10, 3, 4, 4), np.nan), "not float64"), (torch.zeros(10, 3, 4, 4, dtype=torch.int64), "int64"),
    (np.zeros((10, 4, 4, 3), np.uint8), "N x 3 x height x width, not 10 x 4 x 4 x 3"),
    (torch.zeros(3, 4, 4, dtype=torch.uint8), "not 3 x 4 x 4"),
    (torch.zeros(10, 2, 4, 4, dtype=torch.uint8), "not 10 x 2 x 4 x 4"),
    (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "not 0 x 3 x 4 x 4")])
def test_bad_images(images, words):
    for call in (inception.inception_score, inception.activations):
        with pytest.raises(ImageError, match=words):
            call(images, Tiny())


def test_one_channel_is_grey(tmp_path, capsys):
    """One grey channel scores as three equal ones, from a tensor, an array, a file, a folder."""
    grey = random_images(12)[:, :1]
    expected = inception.inception_score(grey.repeat(1, 3, 1, 1), Tiny(), 3, progress=False)
    np.save(tmp_path / "a.npy", grey.numpy())
    np.save(tmp_path / "b.npy", grey.numpy().transpose(0, 2, 3, 1))
    (tmp_path / "c").mkdir()
    for i, image in enumerate(grey):
        Image.fromarray(image[0].numpy()).save(tmp_path / "c" / f"{i:02}.png")
    for images in (grey, grey.numpy(), tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "c"):
        if isinstance(images, Path):
            images = inception.open_set(images)
        assert inception.inception_score(images, Tiny(), 3, progress=False) == expected
        assert capsys.readouterr().err.count("grey digits means little") == 1


# ---- the file of weights ----

def refused(call, *words, error=InceptionError):
    """Check that `call` ends in an error of one line with all of `words` in it."""
    with pytest.raises(error) as e:
        call()
    line = str(e.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_load_without_counters_and_in_the_old_format(weights, tmp_path, monkeypatch):
    """The published file is of the format before zip, without checksums: its own is compared."""
    old, path = {name: t for name, t in weights.items() if "num_batches_tracked" not in name}, tmp_path / "old.pth"
    torch.save(old, path, _use_new_zipfile_serialization=False)
    refused(lambda: inception.load(path=path), "wrong checksum")
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    net = inception.load(path=path)
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


class Evil:
    def __reduce__(self):
        return print, ("this pickle ran a program",)


def test_load_refuses_wrong_files(file, weights, tmp_path, capsys):
    """Missing, no file, damaged, other contents or tensors, a flipped bit. It says where to get it."""
    raw, path = bytearray(file.read_bytes()), tmp_path / "w.pth"
    raw[len(raw) // 2] ^= 1
    contents = [None, b"", b"<html>lost</html>\n", raw[:len(raw) // 2], raw[:100], pickle.dumps([1, 2], 2), bytes(raw),
                torch.zeros(3), [torch.zeros(3)], {"state_dict": {}}, {"a": Evil()},
                {**weights, "fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1000)}]
    reasons = {0: "no such file", 6: "checksum", 11: "AuxLogits.fc.bias"}
    for i, content in enumerate(contents):
        if isinstance(content, (bytes, bytearray)):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        words = str(path), "cannot be used as the Inception weights", f"get {inception.WEIGHTS_URL}"
        refused(lambda: inception.load(path=path), *words, reasons.get(i, ""))
    path.unlink()
    os.mkfifo(path)
    refused(lambda: inception.load_or_warn(path=path), "no such file")
    assert "ran" not in capsys.readouterr().out


def test_download(file, weights, tmp_path, monkeypatch, capsys):
    served, data = tmp_path / inception.WEIGHTS_FILE, tmp_path / "not" / "there"
    monkeypatch.setattr(inception, "WEIGHTS_URL", served.as_uri())
    for content in (None, file.read_bytes(), b"<html>please log in</html>"):  # random weights, a page
        if content:
            served.write_bytes(content)
        refused(lambda: inception.load(data), "file://", "by hand", f"put it at {data / served.name}")
        assert list(data.iterdir()) == []  # nothing kept
    assert inception.load_or_warn(data) is None  # training goes on
    warning = capsys.readouterr().err.splitlines()[-1]
    assert all(word in warning for word in ("without Inception scores", "a flag turns them off", str(data / served.name)))
    np.save(tmp_path / "a.npy", random_images(20, 4, 4).numpy())
    assert inception.main([str(tmp_path / "a.npy"), "--device", "cpu", "--data-dir", str(data)]) == 1
    served.write_bytes(file.read_bytes())
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    assert torch.equal(inception.load(data).fc.weight, weights["fc.weight"])
    assert [f.name for f in data.iterdir()] == [inception.WEIGHTS_FILE]
    assert "downloading" in capsys.readouterr().err
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", "00000000")  # there already: must only parse
    served.unlink()
    inception.load(data)
    assert capsys.readouterr().err == ""


# ---- images from files ----

def save(folder, images):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


def test_folder(tmp_path, capsys):
    images = random_images(12, 5, 7)
    folder = save(tmp_path / "a", images)
    (folder / ".DS_Store").write_text("hidden files do not count")
    (folder / "inside").mkdir()
    os.mkfifo(folder / "pipe.png")
    got = inception.open_set(folder)
    assert got.shape == (12, 3, 5, 7) == (len(got), *got[:1].shape[1:])
    assert np.array_equal(got[3:9], images[3:9].numpy())
    assert capsys.readouterr().err == ""
    from_files, from_memory = (inception.inception_score(x, Tiny(), 3, 5, False) for x in (got, images))
    assert from_files == from_memory
    Image.new("L", (7, 5), 77).save(folder / "x.png")
    Image.new("RGBA", (7, 5), (1, 2, 3, 128)).save(folder / "y.png")
    pixels = inception.open_set(folder)[12:14]
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "L, RGB, RGBA" in err and "digits means little" in err
    assert pixels[0, :, 0, 0].tolist() == [77] * 3 and pixels[1, :, 2, 3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("content, reason", [
    (b"no image", "cannot identify"), (b"P6\n4 4\n255\n" + bytes(40), "truncated"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", "cannot identify"),
    (png16(0, 1), "more than 8 bits"), (png16(2, 3), "more than 8 bits"),
    (b"P6\n4 4\n65535\n" + bytes(96), "more than 8 bits")])
def test_broken_images_are_found_first_and_can_be_left_out(content, reason, tmp_path, capsys):
    images = random_images(3, 4, 4)
    folder = save(tmp_path / "a", images)
    (folder / "001b.jpg").write_bytes(content)
    (folder / "zz.png").write_bytes(b"another")
    words = "2 of 5 files cannot be used", "001b.jpg", reason
    refused(lambda: inception.open_set(folder), *words, "--skip-broken", error=ImageError)
    assert np.array_equal(inception.open_set(folder, skip_broken=True)[0:3], images.numpy())
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words)


def test_arrays(tmp_path):
    images = random_images(4, 5, 7).numpy()
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "b.npy", images.transpose(0, 2, 3, 1))
    assert all(np.array_equal(inception.open_set(tmp_path / name), images) for name in ("a.npy", "b.npy"))
    for names in (["arr_0"], ["labels", "samples"], ["other", "images", "samples"], ["whatever", "labels"]):
        wanted = next((n for n in ("images", "samples", "arr_0") if n in names), names[0])
        np.savez(tmp_path / "c.npz", **{n: images if n == wanted else np.zeros(4) for n in names})
        assert np.array_equal(inception.open_set(tmp_path / "c.npz"), images), names


def test_sets_that_cannot_be_scored(tmp_path):
    for name, content in (("a.npy", b""), ("b.npy", b"nonsense"), ("c.npz", b"PK\x03\x04 cut short"), ("d.npz", b""),
                          ("e.npy", pickle.dumps([1])), ("f.png", b"x"), ("photos.zip", b"PK")):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.npy")
    np.savez(tmp_path / "g.npz")
    np.save(tmp_path / "h.npy", np.array([{}, {}], object))
    np.save(tmp_path / "i.npy", np.zeros((0, 3, 4, 4), np.uint8))
    np.save(tmp_path / "floats.npy", np.zeros((4, 3, 5, 7), np.float32))
    np.savez(tmp_path / "j.npz", mu=np.zeros(64), sigma=np.eye(64))
    with zipfile.ZipFile(tmp_path / "l.npz", "w") as odd:
        odd.writestr("a.txt", "no array")
    Image.new("RGB", (5, 4)).save(save(tmp_path / "mixed", random_images(3, 4, 4)) / "b.png")
    (tmp_path / "empty").mkdir()
    words = {"photos.zip": "need a folder of images, or a .npy or .npz file", "floats.npy": "need uint8",
             "missing": "need a folder of images", "empty": "no images in this folder",
             "mixed": "images of 4 x 4 (002.png) and 5 x 4 (b.png): resize or crop all to one size"}
    for path in (*tmp_path.iterdir(), tmp_path / "missing"):
        refused(lambda: inception.open_set(path), str(path), words.get(path.name, ""), error=ImageError)


# ---- the command ----

@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command with the tiny network, on the CPU: exit code, standard output and error."""
    monkeypatch.setattr(inception, "load", lambda *args: Tiny())

    def run(*args):
        try:
            code = inception.main(["--device", "cpu", *map(str, args)])
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()
    return run


def test_command(command, tmp_path, monkeypatch):
    """The score of a folder and an array; the FID of two arrays, and of an array and statistics."""
    a, b = random_images(20, 4, 4), random_images(30, 4, 4, seed=1)
    mean, std = inception.inception_score(a, Tiny(), 4, progress=False)
    folder = save(tmp_path / "a", a)
    np.save(tmp_path / "a.npy", a.numpy())
    for path in (folder, tmp_path / "a.npy"):
        code, out, err = command(path, "--splits", 4, "--batch-size", 7)
        assert code == 0 and err == ""
        assert f"Inception score {mean:.4f} +/- {std:.4f} (20 images" in out and "4 splits" in out

    np.save(tmp_path / "b.npy", b.numpy())
    x, y = (inception.activations(images, Tiny(), progress=False)[0] for images in (a, b))
    np.savez(tmp_path / "b.npz", mu=y.double().mean(0), sigma=np.cov(y.double(), rowvar=False))
    wanted = *inception.mean_and_covariance(x), *inception.mean_and_covariance(y)
    for other, words in (("b.npy", "30 images in"), ("b.npz", "b.npz")):
        distances = []
        monkeypatch.setattr(inception, "frechet_distance", lambda *moments: distances.append(moments) or 1.5)
        code, out, err = command(tmp_path / "a.npy", tmp_path / other)
        assert code == 0 and err == "" and "FID 1.5000 (20 images in" in out and words in out
        for moment, expected in zip(distances[0], wanted):
            np.testing.assert_allclose(moment, expected, atol=1e-6)


@pytest.mark.parametrize("args, code, words", [
    ([], 2, "error"), (["a", "b", "c"], 2, "error"), (["a", "--check"], 2, "error"), (["a", "--no"], 2, "error"),
    (["a", "--splits", "0"], 2, "error"), (["a", "--batch-size", "-1"], 2, "error"),
    (["a", "--device", "nonsense"], 2, "error"),
    pytest.param(["a", "--device", "cuda"], 2, "CUDA",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    (["nowhere"], 1, "need a folder"), (["few.npy"], 1, "9 images cannot be cut into 10 splits"),
    (["one.npy", "few.npy"], 1, "two images"), (["fid.npz"], 1, "statistics have no score")])
def test_command_refuses(command, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", random_images(9, 4, 4).numpy())
    np.save("one.npy", random_images(1, 4, 4).numpy())
    np.savez("fid.npz", mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))
    got, out, err = command(*args)
    assert got == code and out == "" and words in err and (code == 2 or err.count("\n") == 1)


def test_the_result_survives_the_terminal(command, tmp_path, monkeypatch):
    """A name that the terminal cannot print; standard error and output that are closed or full."""
    folder = save(tmp_path / "Äpfel", random_images(20, 4, 4))
    Image.new("L", (4, 4)).save(folder / "grey.png")  # gives a note
    full = types.SimpleNamespace(isatty=bool, write=lambda text: open("/dev/full", "w").write(9999 * text))
    for stderr in (full, None):
        stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            assert command(folder)[0] == 0
        assert "Inception score" in stdout.buffer.getvalue().decode()
    program = ("import sys, time; sys.path[:0] = ['.', 'tests']; import inception, test_inception as t;"
               "inception.load = lambda *a: time.sleep(0.5) or t.Tiny();"
               f"sys.exit(inception.main([{str(folder)!r}, '--device', 'cpu']))")
    done = subprocess.run(["bash", "-c", '("$0" -c "$1"; echo $? >&2) | true', sys.executable, program],
                          text=True, capture_output=True, cwd=Path(inception.__file__).parent)
    assert done.stderr.endswith("Broken pipe\n1\n") and done.stderr.count("\n") == 3  # a note, one line, the code


def test_check(command, monkeypatch):
    """With a stand-in for data.py."""
    monkeypatch.setitem(sys.modules, "data", types.SimpleNamespace(cifar10=lambda data_dir: (images, None)))
    images = random_images(50, 32, 32)
    for score, passed in ((11.24 + 0.019, True), (11.24 + 0.021, False), (11.24 - 0.021, False)):
        monkeypatch.setattr(inception, "inception_score", lambda *_: (score, 0.1))
        code, out, err = command("--check")
        assert code == int(not passed) and err == "" and f"Inception score {score:.4f}" in out and "10 splits" in out
        assert f"difference {score - 11.24:+.4f}" in out and ("passed" in out, "failed" in out) == (passed, not passed)
    monkeypatch.setitem(sys.modules, "data", types.ModuleType("data"))  # as a folder called data gives
    code, out, err = command("--check")
    assert code == 1 and out == "" and err.count("\n") == 1 and "data" in err
