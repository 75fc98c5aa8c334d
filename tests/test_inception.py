"""Tests of inception.py, with random weights: the published ones are too large to download in a test."""
import functools
import hashlib
import http.server
import io
import math
import pickle
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import inception
from inception import ImageError, InceptionError

# ----------------------------------------------------------------------------------------------------------
# A second description of the network, independent of inception.py: every block as its branches, every branch
# as its convolutions "name out kernel [s2] [v]" (s2: stride 2; v: no padding), "avg", "max", or "half" (3x3
# maximum, stride 2). A convolution in brackets reads the same input as its left neighbour.

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
    """Runs an input through NETWORK; what it is, and what the three functions do with it, is up to them."""
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
    """The network in float64 by the description above, out of convolutions and loops over windows alone."""
    def convolution(x, name, out, kernel, stride, valid):
        w = {k: weights[f"{name}.{k}"].double() for k in
             ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")}
        x = F.conv2d(x, w["conv.weight"], None, stride, (0, 0) if valid else (kernel[0] // 2, kernel[1] // 2))
        x = x - w["bn.running_mean"][:, None, None]
        x = x / (w["bn.running_var"] + .001).sqrt()[:, None, None]
        return (x * w["bn.weight"][:, None, None] + w["bn.bias"][:, None, None]).clamp(min=0)

    def pool(x, name):
        if name == "half":
            size = (x.shape[2] - 3) // 2 + 1
            end = 2 * size - 1
            windows = [x[:, :, i:i + end:2, j:j + end:2] for i in range(3) for j in range(3)]
            return torch.stack(windows).amax(0)
        padded = F.pad(x, (1, 1, 1, 1), value=math.nan)                     # nan: not in the picture
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
            tensors[name] = .5 + torch.rand(shape, generator=g)
        elif name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
        else:
            tensors[name] = torch.randn(shape, generator=g) * (.01 if "fc.weight" in name else .3)
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
    """Stands in for the network where only what is done with its outputs matters: fast, and deterministic."""

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


# ----------------------------------------------------------------------------------------------------------
# The network

def test_names_shapes_and_count():
    shapes = {name: tuple(t.shape) for name, t in inception.Inception().state_dict().items()}
    assert shapes == published_shapes()
    trained = [s for name, s in shapes.items() if "running" not in name and "tracked" not in name]
    assert sum(map(math.prod, trained)) == 23_850_960
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    # a few entries by hand, so that one mistake in both descriptions would show
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_1.conv.weight"] == (448, 2048, 1, 1)
    assert shapes["Mixed_7a.branch7x7x3_4.bn.running_mean"] == (192,)


def test_layer_shapes(net):
    seen = {}
    hooks = [m.register_forward_hook(lambda m, i, o, name=name: seen.update({name: tuple(o.shape[1:])}))
             for name, m in net.named_children() if name != "fc"]
    net(torch.zeros(1, 3, 299, 299))
    for hook in hooks:
        hook.remove()
    assert seen == {
        "Conv2d_1a_3x3": (32, 149, 149), "Conv2d_2a_3x3": (32, 147, 147), "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73), "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5b": (256, 35, 35), "Mixed_5c": (288, 35, 35), "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17), "Mixed_6b": (768, 17, 17), "Mixed_6c": (768, 17, 17),
        "Mixed_6d": (768, 17, 17), "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8), "Mixed_7b": (2048, 8, 8), "Mixed_7c": (2048, 8, 8)}


def test_mean_pool_leaves_out_the_padding():
    y = inception.mean_pool(torch.arange(9.).view(1, 1, 3, 3))[0, 0]
    assert y[0, 0] == (0 + 1 + 3 + 4) / 4 and y[0, 1] == (0 + 1 + 2 + 3 + 4 + 5) / 6 and y[1, 1] == 4
    assert torch.equal(inception.mean_pool(torch.ones(1, 2, 5, 5)), torch.ones(1, 2, 5, 5))


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_pool_of_the_last_blocks(kind):
    block = inception.Mixed8(2, kind).eval()
    seen = []
    block.branch_pool.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    x = torch.randn(1, 2, 4, 4) - 5                           # negative: zero padding in a maximum would show
    with torch.no_grad():
        assert block(x).shape == (1, 2048, 4, 4)
    corner = x[:, :, :2, :2].flatten(2)
    expected = corner.mean(2) if kind == "mean" else corner.amax(2)
    torch.testing.assert_close(seen[0][:, :, 0, 0], expected)


def test_the_maximum_is_in_the_last_block_only(net):
    assert (net.Mixed_7b.pool, net.Mixed_7c.pool) == ("mean", "max")


def test_features_against_float64(net, weights):
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = net(x)
    expected = features_float64(x.double(), weights)
    assert features.shape == (1, 2048) and expected.std() > .1 and (expected > 0).float().mean() > .5
    torch.testing.assert_close(features.double(), expected, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------
# The resize

def test_resize_by_hand():
    x = torch.tensor([[0., 8.], [16., 40.]]).view(1, 1, 2, 2)           # s = 0, 1/2, 1, 3/2: the last repeats
    assert inception.tf1_resize(x, 4)[0, 0].tolist() == [
        [0, 4, 8, 8], [8, 16, 24, 24], [16, 28, 40, 40], [16, 28, 40, 40]]
    assert inception.tf1_resize(x, 3)[0, 0, 0].tolist() == pytest.approx([0, 16 / 3, 8])   # s = 0, 2/3, 4/3


def test_resize_same_size_and_down():
    x = random_images(1, 299, 598)
    y = inception.tf1_resize(x)
    assert y.dtype == torch.float32 and torch.equal(y, x[:, :, :, ::2].float())  # halved: every second pixel


@pytest.mark.parametrize("height, width", [(32, 32), (28, 48), (300, 7), (1, 1)])
def test_resize_against_loops(height, width):
    x = random_images(1, height, width)[0, 0].double().numpy()
    got = inception.tf1_resize(torch.from_numpy(x)[None, None])[0, 0].numpy()
    expected = np.empty((299, 299))
    for i in range(299):
        for j in range(299):
            top, left = i * height // 299, j * width // 299
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, h = i * height / 299 - top, j * width / 299 - left
            expected[i, j] = ((1 - v) * (1 - h) * x[top, left] + (1 - v) * h * x[top, right]
                              + v * (1 - h) * x[bottom, left] + v * h * x[bottom, right])
    np.testing.assert_allclose(got, expected, atol=2e-2)      # s in float32, as in TensorFlow: up to 3e-5 off
    if height == width == 32:
        assert (got[290:] == got[290]).all() and (got[289] != got[290]).any()   # 31 * 299/32 = 289.7
        assert (got[290:, 290:] == x[31, 31]).all() and got[0, 0] == x[0, 0]


def test_resize_rounds_as_tensorflow_does():
    """Bit for bit: positions in float32; first along a row, then between rows."""
    x = random_images(1, 32, 32)[0, 0].numpy().astype(np.float32)
    s = np.arange(299, dtype=np.float32) * np.float32(32 / 299)
    low = np.floor(s).astype(int)
    high, w = np.minimum(low + 1, 31), s - low.astype(np.float32)
    rows = x[:, low] + (x[:, high] - x[:, low]) * w
    expected = rows[low] + (rows[high] - rows[low]) * w[:, None]
    assert np.array_equal(inception.tf1_resize(torch.from_numpy(x)[None, None])[0, 0].numpy(), expected)


# ----------------------------------------------------------------------------------------------------------
# The score

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


def test_score_of_uniform_predictions_is_1():
    mean, std = inception.score_from_probabilities(torch.full((40, 7), 1 / 7))
    assert mean == pytest.approx(1, abs=1e-6) and std == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 1008])
def test_score_of_certain_balanced_predictions_is_the_number_of_classes(classes):
    p = torch.eye(classes).repeat(3, 1)
    assert inception.score_from_probabilities(p, 3) == (pytest.approx(classes), pytest.approx(0, abs=1e-9))


@pytest.mark.parametrize("n, splits", [(40, 10), (47, 10), (7, 3), (10, 10), (23, 1)])
def test_score_by_brute_force(n, splits):
    p = random_probabilities(n, 12)
    expected = score_by_loops(p, splits)
    if splits == n:
        assert expected[0] == 1                                 # one image a split: nothing to tell apart
    for q in (p, p.numpy()):
        assert inception.score_from_probabilities(q, splits) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_splits_are_consecutive_and_uneven_as_in_the_original():
    # 5 images in 2 splits: 0, 1 and 2, 3, 4. One class in the first, three in the second: scores 1 and 3.
    p = torch.eye(4)[[0, 0, 1, 2, 3]]
    assert inception.score_from_probabilities(p, 2) == (pytest.approx(2), pytest.approx(1))


def test_score_arithmetic_is_float64():
    p = random_probabilities(30_000, 5).double()
    tilted = p * (1 + 1e-9 * torch.arange(5.).double())                   # too little for float32 to see
    a, b = (inception.score_from_probabilities(q / q.sum(1, keepdim=True), 3)[0] for q in (p, tilted))
    assert 0 < abs(a - b) < 1e-6


def test_score_refuses_what_is_no_probability():
    p = random_probabilities(20, 5)
    for bad in (p.log(), p * 2, torch.full_like(p, math.nan), p[0], (p * 10).long()):
        with pytest.raises(ValueError):
            inception.score_from_probabilities(bad)


@pytest.mark.parametrize("n, splits", [(9, 10), (0, 1), (5, 0)])
def test_fewer_images_than_splits(n, splits):
    with pytest.raises(ImageError, match=f"{n} images cannot be cut into {splits} splits"):
        inception.score_from_probabilities(random_probabilities(n, 5), splits)
    if n:
        with pytest.raises(ImageError, match="splits"):
            inception.inception_score(random_images(n), Tiny(), splits)


def test_whole_score_against_float64(net, weights):
    """Bytes to score, once by the module and once by loops in float64: resize, scale, softmax without bias,
    splits. The network has its own float64 test above; here it only turns prepared pixels into features."""
    images = random_images(5)                       # a random network tells only very different images apart
    images[0], images[1], images[2, 1:], images[3, :, ::2] = 0, 255, 0, 255
    mean, std = inception.inception_score(images, net, splits=2, batch_size=2, progress=False)
    x, big = images.double().numpy(), np.empty((5, 3, 299, 299))
    for i in range(299):
        for j in range(299):
            top, left = i * 8 // 299, j * 8 // 299
            bottom, right = min(top + 1, 7), min(left + 1, 7)
            v, h = i * 8 / 299 - top, j * 8 / 299 - left
            upper = x[:, :, top, left] + h * (x[:, :, top, right] - x[:, :, top, left])
            lower = x[:, :, bottom, left] + h * (x[:, :, bottom, right] - x[:, :, bottom, left])
            big[:, :, i, j] = (upper + v * (lower - upper) - 128) / 128
    p = []
    for image in torch.from_numpy(big).float():
        exps = np.exp(weights["fc.weight"].double().numpy() @ net(image[None])[0].double().numpy())
        p.append(exps / exps.sum())
    assert (mean, std) == pytest.approx(score_by_loops(p, 2), rel=1e-4)
    assert mean > 1.05 and std > .01                                # not a trivial case


def test_probabilities_leave_out_the_bias(net, weights):
    features = torch.rand(3, 2048)
    got = net.probabilities(features)
    without = torch.softmax(features @ weights["fc.weight"].T, 1)
    with_bias = torch.softmax(features @ weights["fc.weight"].T + weights["fc.bias"], 1)
    torch.testing.assert_close(got, without)
    assert (got - with_bias).abs().max() > 1e-3
    assert got.shape == (3, 1008)


def test_activations_do_not_depend_on_batches_or_kind_of_array(net):
    images = random_images(3, 16, 16)
    features, p = inception.activations(images, net, batch_size=2, progress=False)
    assert features.shape == (3, 2048) and p.shape == (3, 1008) and features.dtype == p.dtype == torch.float32
    again, q = inception.activations(images.numpy(), net, batch_size=3, progress=False)
    torch.testing.assert_close(again, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(p, net.probabilities(features))


def test_training_mode_and_mixed_precision_around_do_not_matter(net):
    images = random_images(2)
    expected, _ = inception.activations(images, net, progress=False)
    net.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = inception.activations(images, net, progress=False)
    assert torch.equal(features, expected) and not features.requires_grad
    assert int(net.Conv2d_1a_3x3.bn.num_batches_tracked) == 0


def test_memory_is_bounded_by_the_batch():
    """However many images: never more than a batch is enlarged, and what is kept is 12 kB an image."""
    tiny = Tiny()
    images = np.zeros((1, 3, 4, 4), np.uint8).repeat(203, 0)
    features, p = inception.activations(images, tiny, batch_size=10, progress=False)
    assert tiny.largest == 10
    assert (features.nbytes + p.nbytes) / len(images) == 4 * (2048 + 1008)


def test_progress_line(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 30))                                           # half a minute a batch
    monkeypatch.setattr(inception.time, "monotonic", lambda: next(clock))
    assert list(inception.batches(5, 3, True)) == [slice(0, 3), slice(3, 5)]
    assert capsys.readouterr().err == ""                     # a minute has not passed since a line
    assert len(list(inception.batches(40, 2, True))) == 20
    lines = capsys.readouterr().err.splitlines()
    assert 5 < len(lines) < 10 and all("images" in line and "minutes left" in line for line in lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(inception.batches(40, 2, True))
    err = capsys.readouterr().err
    assert "\n" not in err and err.count("\r") >= 20
    list(inception.batches(40, 2, False))
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------------------------------------
# The distance

def random_covariance(d, seed, rank=None):
    a = np.random.default_rng(seed).normal(size=(d, rank or d))
    return a @ a.T / d


def test_equal_sets_have_distance_0():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert inception.fid(x, x) == pytest.approx(0, abs=1e-9)
    few = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))          # singular covariance
    assert inception.fid(few, few) == pytest.approx(0, abs=1e-5)


def test_distance_in_closed_form():
    zero, one = np.zeros(3), np.eye(3)
    assert inception.frechet_distance(zero, one, np.array([1., 2., 2.]), one) == pytest.approx(9)     # means
    s1, s2 = np.diag([1., 4., 9.]), np.diag([4., 4., 1.])                 # commuting: sum (sqrt a - sqrt b)^2
    assert inception.frechet_distance(zero, s1, zero, s2) == pytest.approx(1 + 0 + 4)
    # not commuting, 2 x 2: trace sqrt(A) = sqrt(trace A + 2 sqrt(det A)) with A = S1 S2
    s1, s2 = np.array([[2., 1.], [1., 3.]]), np.array([[1., -.5], [-.5, 4.]])
    a = s1 @ s2
    root = math.sqrt(np.trace(a) + 2 * math.sqrt(np.linalg.det(a)))
    got = inception.frechet_distance(torch.zeros(2), s1, np.zeros(2), torch.from_numpy(s2))
    assert got == pytest.approx(np.trace(s1) + np.trace(s2) - 2 * root, rel=1e-12)
    # one dimension: (difference of means)^2 + (difference of deviations)^2
    assert inception.frechet_distance([1.], [[4.]], [3.], [[25.]]) == pytest.approx(4 + 9)


@pytest.mark.parametrize("rank", [None, 3])
def test_distance_against_general_eigenvalues(rank):
    s1, s2 = random_covariance(6, 1, rank), random_covariance(6, 2)
    root = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()         # the product as it stands
    got = inception.frechet_distance(np.zeros(6), s1, np.zeros(6), s2)
    assert got == pytest.approx(np.trace(s1) + np.trace(s2) - 2 * root, rel=1e-6)
    assert got == pytest.approx(inception.frechet_distance(np.zeros(6), s2, np.zeros(6), s1), rel=1e-6)


def test_statistics_are_those_of_numpy():
    x = np.random.default_rng(0).normal(3, 2, (2500, 4)).astype(np.float32)      # more than one part of 1,000
    mu, cov = inception.statistics(torch.from_numpy(x))
    np.testing.assert_allclose(mu, x.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.astype(float), rowvar=False), rtol=1e-10)
    y = x @ np.diag([1., 2., 3., 4.]).astype(np.float32) + 1
    d = inception.fid(x, y)
    variance = np.cov(x.astype(float), rowvar=False).diagonal()
    scale = np.array([1, 2, 3, 4])
    closed = (((scale - 1) * x.mean(0) + 1) ** 2).sum() + (variance * (scale - 1) ** 2).sum()
    assert d == pytest.approx(closed, rel=1e-2)                                  # covariances nearly diagonal


def test_distance_refuses():
    with pytest.raises(ValueError, match="d x d"):
        inception.frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="NaN"):
        inception.frechet_distance(np.zeros(2), np.eye(2) * math.nan, np.zeros(2), np.eye(2))
    with pytest.raises(ImageError, match="two images"):
        inception.fid(torch.zeros(1, 4), torch.zeros(5, 4))


# ----------------------------------------------------------------------------------------------------------
# Images that cannot be scored

@pytest.mark.parametrize("images, words", [
    (torch.linspace(0, 1, 480).view(10, 3, 4, 4), "float32 from 0 to .*255 \\* x"),
    (np.random.rand(10, 3, 4, 4) * 2 - 1, "float64 from -.*127.5"),
    (np.full((10, 3, 4, 4), 300.), "float64 from 300 to 300"),
    (torch.full((10, 3, 4, 4), math.nan), "NaN or infinity"),
    (np.array([0., np.inf] * 240).reshape(10, 3, 4, 4), "NaN or infinity"),
    (torch.zeros(10, 3, 4, 4, dtype=torch.bfloat16), "bfloat16"),
    (torch.zeros(10, 3, 4, 4, dtype=torch.int64), "int64"),
    (np.zeros((10, 4, 4, 3), np.uint8), "N x 3 x height x width, not 10 x 4 x 4 x 3"),
    (torch.zeros(3, 4, 4, dtype=torch.uint8), "not 3 x 4 x 4"),
    (torch.zeros(10, 1, 4, 4, dtype=torch.uint8), "not 10 x 1 x 4 x 4"),
    (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "not 0 x 3 x 4 x 4"),
    ([[1, 2]], "not list")])
def test_bad_images(images, words):
    for call in (inception.inception_score, inception.activations):
        with pytest.raises(ImageError, match=words) as e:
            call(images, Tiny())
        assert "\n" not in str(e.value) and isinstance(e.value, ValueError)
    with pytest.raises(ValueError, match="batch_size"):
        inception.activations(random_images(3), Tiny(), batch_size=0)


# ----------------------------------------------------------------------------------------------------------
# The file of weights

def test_load_gives_a_network_for_evaluation(net, weights):
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_load_with_and_without_counters_and_in_the_old_format(weights, tmp_path):
    old = {name: t for name, t in weights.items() if "num_batches_tracked" not in name}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    net = inception.load(path=tmp_path / "old.pth")
    assert torch.equal(net.fc.bias, weights["fc.bias"])
    assert int(net.Mixed_7c.branch1x1.bn.num_batches_tracked) == 0


def test_load_refuses_wrong_files(file, weights, tmp_path):
    raw = file.read_bytes()
    path = tmp_path / "w.pth"

    def refused(words):
        with pytest.raises(InceptionError, match=words) as e:
            inception.load(path=path)
        assert "\n" not in str(e.value) and str(path) in str(e.value) and isinstance(e.value, OSError)

    refused("no such file")
    for content in (b"", b"<html>lost</html>\n", raw[:len(raw) // 2], raw[:100], pickle.dumps([1, 2], 2)):
        path.write_bytes(content)
        refused("cut short, or no dictionary")
    for content in (torch.zeros(3), [torch.zeros(3)], 5):
        torch.save(content, path)
        refused("cut short, or no dictionary|564 tensors|not the weights")
    torch.save({"state_dict": {}}, path)
    refused("not the weights of this network")
    google = {**weights, "fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1000)}
    torch.save(google, path)
    refused("2 tensors .*fc.weight.*pt_inception")
    torch.save({name: t for name, t in weights.items() if name != "Mixed_6a.branch3x3.bn.running_var"}, path)
    refused("1 tensors .*Mixed_6a.branch3x3.bn.running_var")
    torch.save({**weights, "fc.bias": torch.full((1008,), torch.nan)}, path)
    refused("cut short, or no dictionary")


class Evil:
    def __reduce__(self):
        return print, ("this pickle ran a program",)


def test_no_pickle_runs_a_program(tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "w.pth")
    with pytest.raises(InceptionError):
        inception.load(path=tmp_path / "w.pth")
    with pytest.raises(pickle.UnpicklingError):
        inception.ArrayUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()
    assert "ran" not in capsys.readouterr().out


@pytest.fixture
def server(tmp_path):
    """An http server on this machine; the folder it serves, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{httpd.server_address[1]}/"
    httpd.shutdown()
    httpd.server_close()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_download(server, file, weights, tmp_path, monkeypatch, capsys):
    folder, address = server
    (folder / inception.WEIGHTS_FILE).write_bytes(file.read_bytes())
    monkeypatch.setattr(inception, "WEIGHTS_URL", address + inception.WEIGHTS_FILE)
    data = tmp_path / "not" / "there"
    with pytest.raises(InceptionError, match="6726825d.*by hand.*put it at") as e:            # random weights
        inception.load(data)
    assert "\n" not in str(e.value) and list(data.iterdir()) == []                # nothing kept
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", sha256(file)[:8])
    net = inception.load(data)
    assert torch.equal(net.fc.weight, weights["fc.weight"])
    assert [f.name for f in data.iterdir()] == [inception.WEIGHTS_FILE]
    assert "downloading" in capsys.readouterr().err
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", "00000000")              # there already: must only parse
    (folder / inception.WEIGHTS_FILE).unlink()
    inception.load(data)
    assert capsys.readouterr().err == ""


def test_download_fails(server, tmp_path, monkeypatch):
    _, address = server
    for url in (address + "absent/" + inception.WEIGHTS_FILE, "http://127.0.0.1:9/" + inception.WEIGHTS_FILE):
        monkeypatch.setattr(inception, "WEIGHTS_URL", url)
        with pytest.raises(InceptionError) as e:
            inception.load(tmp_path / "data", progress=False)
        for words in (url, str(tmp_path / "data" / inception.WEIGHTS_FILE), "by hand"):
            assert words in str(e.value)
        assert "\n" not in str(e.value) and list((tmp_path / "data").iterdir()) == []


def test_published_addresses():
    assert inception.WEIGHTS_URL == ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                                     "pt_inception-2015-12-05-6726825d.pth")
    assert inception.WEIGHTS_SHA256 == "6726825d"
    assert inception.CIFAR_SHA256.startswith("6d958be0") and len(inception.CIFAR_SHA256) == 64


# ----------------------------------------------------------------------------------------------------------
# Images from files

def save(folder, images, pattern="{:03}.png"):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / pattern.format(i))
    return folder


def test_folder(tmp_path, capsys):
    images = random_images(12, 5, 7)
    folder = save(tmp_path / "a", images)
    (folder / ".DS_Store").write_text("hidden files do not count")
    (folder / "inside").mkdir()
    got = inception.open_images(folder)
    assert got.shape == (12, 3, 5, 7) == (len(got), *got[:1].shape[1:])
    assert np.array_equal(got[3:9], images[3:9].numpy())
    assert capsys.readouterr().err == ""
    tiny = Tiny()
    from_files, from_memory = (inception.inception_score(x, tiny, 3, 5, False) for x in (got, images))
    assert from_files == from_memory


def test_grey_and_transparent_images_are_converted_and_it_is_said_once(tmp_path, capsys):
    folder = save(tmp_path / "a", random_images(3, 4, 4))
    Image.new("L", (4, 4), 77).save(folder / "x.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 128)).save(folder / "y.png")
    Image.new("L", (4, 4), 5).save(folder / "z.png")
    got = inception.open_images(folder)
    pixels = got[0:6]
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "3 of 6 images" in err and "L, RGBA" in err
    assert pixels[3, :, 0, 0].tolist() == [77] * 3 and pixels[4, :, 2, 3].tolist() == [1, 2, 3]


def bad_folders(folder):
    """Name, what to do to a folder of three good images, and what must be said."""
    def text(): (folder / "notes.txt").write_text("no image")
    def other_size(): Image.new("RGB", (5, 4)).save(folder / "b.png")
    def deep(): Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "deep.png")
    def empty():
        for f in folder.iterdir():
            f.unlink()
    return {"text": (text, "notes.txt: not an image"), "empty": (empty, "no images in this folder"),
            "size": (other_size, "b.png: 5x4 pixels.*000.png has 4x4"),
            "16 bits": (deep, "deep.png: more than 8 bits")}


@pytest.mark.parametrize("kind", ["text", "size", "16 bits", "empty"])
def test_bad_folders(kind, tmp_path):
    folder = save(tmp_path / "a", random_images(3, 4, 4))
    action, words = bad_folders(folder)[kind]
    action()
    with pytest.raises(ImageError, match=words) as e:
        inception.open_images(folder)
    assert "\n" not in str(e.value)


def test_truncated_image(tmp_path):
    folder = save(tmp_path / "a", random_images(3, 64, 64))
    file = folder / "001.png"
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(ImageError, match="001.png"):
        inception.open_images(folder)[0:3]


def test_arrays(tmp_path, capsys):
    images = random_images(4, 5, 7).numpy()
    np.save(tmp_path / "a.npy", images)
    assert np.array_equal(inception.open_images(tmp_path / "a.npy"), images) and capsys.readouterr().err == ""
    np.save(tmp_path / "b.npy", images.transpose(0, 2, 3, 1))
    assert np.array_equal(inception.open_images(tmp_path / "b.npy"), images)
    assert "N x height x width x 3" in capsys.readouterr().err
    for names in (["arr_0"], ["labels", "samples"], ["other", "images", "samples"], ["whatever", "labels"]):
        wanted = next((n for n in ("images", "samples", "arr_0") if n in names), names[0])
        np.savez(tmp_path / "c.npz", **{n: images if n == wanted else np.zeros(4) for n in names})
        assert np.array_equal(inception.open_images(tmp_path / "c.npz"), images), names
    np.save(tmp_path / "f.npy", images / np.float32(255))
    with pytest.raises(ImageError, match="f.npy: need uint8.*255 \\* x"):
        inception.open_images(tmp_path / "f.npy")


@pytest.mark.parametrize("name, content", [
    ("a.npy", b""), ("a.npy", b"nonsense"), ("a.npz", b"PK\x03\x04 cut short"), ("a.npz", b""),
    ("a.npy", pickle.dumps([1])), ("a.png", b"x"), ("missing.npy", None)])
def test_bad_arrays(name, content, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=name) as e:
        inception.open_images(tmp_path / name)
    assert "\n" not in str(e.value)


def test_empty_and_object_arrays(tmp_path):
    np.savez(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.array([{}, {}], object))
    np.save(tmp_path / "c.npy", np.zeros((0, 3, 4, 4), np.uint8))
    for name in ("a.npz", "b.npy", "c.npy"):
        with pytest.raises(ImageError, match=name):
            inception.open_images(tmp_path / name)


# ----------------------------------------------------------------------------------------------------------
# The command

@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command with the tiny network, on the CPU; gives exit code, standard output and error."""
    monkeypatch.setattr(inception, "load", lambda *args: Tiny())

    def run(*args):
        try:
            code = inception.main([str(a) for a in args] + ["--device", "cpu"])
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()
    return run


def test_command_scores(command, tmp_path):
    images = random_images(20, 4, 4)
    mean, std = inception.inception_score(images, Tiny(), 4, progress=False)
    folder = save(tmp_path / "a", images)
    np.save(tmp_path / "a.npy", images.numpy())
    for path in (folder, tmp_path / "a.npy"):
        code, out, err = command(path, "--splits", 4, "--batch-size", 7)
        assert code == 0 and err == ""
        assert f"Inception score {mean:.4f} +/- {std:.4f} (20 images" in out and "4 splits" in out


def test_command_distance(command, tmp_path):
    a, b = random_images(20, 4, 4), random_images(30, 4, 4, seed=1)
    np.save(tmp_path / "a.npy", a.numpy())
    np.save(tmp_path / "b.npy", b.numpy())
    # With few images, the root's trace is the sum of singular values of X Y^T, X and Y the centred features.
    x, y = (inception.activations(images, Tiny(), progress=False)[0].double().numpy() for images in (a, b))
    dm, x, y = x.mean(0) - y.mean(0), (x - x.mean(0)) / math.sqrt(19), (y - y.mean(0)) / math.sqrt(29)
    expected = dm @ dm + (x ** 2).sum() + (y ** 2).sum() - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
    code, out, err = command(tmp_path / "a.npy", tmp_path / "b.npy")
    assert code == 0 and " (20 images in" in out and "30 in" in out and "fewer than 2,048" in out
    assert float(out.split()[1]) == pytest.approx(expected, abs=2e-4) and expected > 1


@pytest.mark.parametrize("args", [
    [], ["a", "b", "c"], ["a", "--check"], ["--check", "--splits", "5"], ["a", "--splits", "0"],
    ["a", "--batch-size", "-1"], ["a", "--batch-size", "x"], ["a", "--nonsense"], ["a", "--device", "tpu"]])
def test_command_bad_flags(command, args):
    code, out, err = command(*args)
    assert code == 2 and out == "" and "error" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device that must be missing")
def test_command_device_not_there(monkeypatch, capsys):
    with pytest.raises(SystemExit) as e:
        inception.main(["x", "--device", "cuda"])
    assert e.value.code == 2 and "--device cuda" in capsys.readouterr().err


def test_command_bad_data(command, tmp_path):
    np.save(tmp_path / "few.npy", random_images(9, 4, 4).numpy())
    np.save(tmp_path / "one.npy", random_images(1, 4, 4).numpy())
    np.save(tmp_path / "nan.npy", np.full((20, 3, 4, 4), np.nan, np.float32))
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as odd:
        odd.writestr("a.txt", "no array")
    for args, words in (
            (["odd.npz"], "cannot be read as an array"), (["few.npy"], "9 images cannot be cut into 10 splits"),
            (["one.npy", "few.npy"], "one.npy: a single image"),
            (["nan.npy"], "NaN"), (["empty"], "no images"), (["nowhere"], "no such file or folder")):
        code, out, err = command(*(tmp_path / a for a in args))
        assert code == 1 and out == "" and err.count("\n") == 1 and words in err and "Traceback" not in err


def test_command_without_weights(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "a.npy", random_images(20, 4, 4).numpy())
    monkeypatch.setattr(inception, "WEIGHTS_URL", "http://127.0.0.1:9/" + inception.WEIGHTS_FILE)
    flags = [str(tmp_path / "a.npy"), "--device", "cpu"]
    assert inception.main(flags + ["--data-dir", str(tmp_path / "data")]) == 1
    *first, last = capsys.readouterr().err.splitlines()
    assert len(first) == 1 and first[0].startswith("downloading") and "by hand" in last
    assert inception.main(flags + ["--inception", str(tmp_path / "w.pth")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "w.pth: there is no such file" in err


def cifar_archive(folder, images, python2=False, names=range(1, 6), key=b"data"):
    folder.mkdir(exist_ok=True)
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for i in reversed(names):                         # the archive's order is not the order of the images
            part = images[(i - 1) * len(images) // 5:i * len(images) // 5]
            raw = pickle.dumps({key: part.flatten(1).numpy(), b"labels": [0] * len(part)}, protocol=2)
            if python2:                               # where the published pickles look for numpy's functions
                raw = raw.replace(b"numpy._core.", b"numpy.core.")
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{i}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


@pytest.mark.parametrize("python2", [False, True])
def test_cifar_train(python2, tmp_path):
    images = random_images(50, 32, 32)
    cifar_archive(tmp_path, images, python2)
    got, published = inception.cifar_train(tmp_path)
    assert np.array_equal(got, images.numpy()) and not published and got.dtype == np.uint8


def test_bad_cifar(tmp_path):
    path = cifar_archive(tmp_path, random_images(50, 32, 32))
    whole = path.read_bytes()
    for make in (lambda: path.write_bytes(b"nonsense"), lambda: path.write_bytes(whole[:len(whole) // 2]),
                 lambda: cifar_archive(tmp_path, random_images(50, 32, 32), names=range(1, 5)),
                 lambda: cifar_archive(tmp_path, random_images(50, 32, 32), key=b"pixels")):
        make()
        with pytest.raises(InceptionError, match="cut short, or not CIFAR-10") as e:
            inception.cifar_train(tmp_path)
        assert "\n" not in str(e.value)


def test_check(command, tmp_path, monkeypatch):
    images = random_images(50, 32, 32)
    path = cifar_archive(tmp_path, images)
    score, _ = inception.inception_score(images, Tiny(), progress=False)
    code, out, err = command("--check", "--data-dir", tmp_path)                      # not the published bytes
    assert code == 1 and err == "" and f"Inception score {score:.4f}" in out
    assert f"difference {score - 11.24:+.4f}" in out and "does not hold" in out and "trusted" not in out
    monkeypatch.setattr(inception, "CIFAR_SHA256", sha256(path))
    for off, trusted in ((.019, True), (.021, False), (-.021, False)):
        monkeypatch.setattr(inception, "CIFAR_SCORE", score - off)
        code, out, err = command("--check", "--data-dir", tmp_path)
        assert code == (0 if trusted else 1)
        assert ("can be trusted" in out, "cannot be trusted" in out) == (trusted, not trusted)
        assert f"difference {off:+.4f}" in out and "does not hold" not in out
