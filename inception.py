"""The Inception score and the Frechet Inception distance (FID): one file that needs torch, numpy and Pillow.

    python inception.py FOLDER             score of the images in a folder, or in a .npy or .npz file
    python inception.py A B                FID between two sets of images
    python inception.py --check            scores CIFAR-10's 50,000 training images, which must give 11.24

    net = inception.load()                             # downloads 95 MB into data/ the first time
    mean, std = inception.inception_score(x, net)      # x: N x 3 x H x W bytes (uint8), any H and W

A score can be compared with others' only if every step is the same:

    the network   Inception                  v3 as TensorFlow published it on 2015-12-05, which is not torchvision's
    the resize    tf1_resize                 to 299x299, TensorFlow 1's corner convention; then (x - 128) / 128
    p(y|x)        Inception.probabilities    softmax of features times weights, 1,008 numbers, without the bias
    the score     score_from_probabilities   10 consecutive parts of 50,000 images, mean and population deviation
"""
import argparse
import hashlib
import http.client
import math
import pickle
import socket
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/" + WEIGHTS_FILE
WEIGHTS_SHA256 = "6726825d"                            # the first 8 digits, which are also in the name
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CIFAR_SCORE, TOLERANCE = 11.24, .02


class InceptionError(OSError):
    """The weights (or the CIFAR-10 archive) cannot be had, or are not what they should be. One line."""


class ImageError(ValueError):
    """The images are not what can be scored. One line."""


# ----------------------------------------------------------------------------------------------------------
# The network: Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision". The
#    attributes have torchvision's names, because the published file has. "valid" means no padding.

class Conv(nn.Module):
    """Convolution without bias, batch normalisation with the stored statistics, ReLU."""

    def __init__(self, c_in, c_out, kernel, stride=1, padding="same"):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


def mean_pool(x):
    """3x3 mean at the same size. TensorFlow averages the pixels there are: padding does not count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def halve(x):
    """3x3 maximum, stride 2, no padding."""
    return F.max_pool2d(x, 3, stride=2)


class Mixed35(nn.Module):
    """A block on the 35x35 grid (Mixed_5b to 5d): N x c x 35 x 35 to N x (224 + c_pool) x 35 x 35."""

    def __init__(self, c, c_pool):
        super().__init__()
        self.branch1x1 = Conv(c, 64, 1)
        self.branch5x5_1 = Conv(c, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5)
        self.branch3x3dbl_1 = Conv(c, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(c, c_pool, 1)

    def forward(self, x):
        return torch.cat([
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(mean_pool(x))], 1)


class Mixed35to17(nn.Module):
    """Mixed_6a: N x 288 x 35 x 35 to N x 768 x 17 x 17."""

    def __init__(self):
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, stride=2, padding="valid")
        self.branch3x3dbl_1 = Conv(288, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2, padding="valid")

    def forward(self, x):
        return torch.cat([
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            halve(x)], 1)


class Mixed17(nn.Module):
    """A block on the 17x17 grid (Mixed_6b to 6e), 768 channels in and out; 7x7 is done as 1x7 and 7x1."""

    def __init__(self, c):
        super().__init__()
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1 = Conv(768, c, 1)
        self.branch7x7_2 = Conv(c, c, (1, 7))
        self.branch7x7_3 = Conv(c, 192, (7, 1))
        self.branch7x7dbl_1 = Conv(768, c, 1)
        self.branch7x7dbl_2 = Conv(c, c, (7, 1))
        self.branch7x7dbl_3 = Conv(c, c, (1, 7))
        self.branch7x7dbl_4 = Conv(c, c, (7, 1))
        self.branch7x7dbl_5 = Conv(c, 192, (1, 7))
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x):
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return torch.cat([
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(mean_pool(x))], 1)


class Mixed17to8(nn.Module):
    """Mixed_7a: N x 768 x 17 x 17 to N x 1280 x 8 x 8."""

    def __init__(self):
        super().__init__()
        self.branch3x3_1 = Conv(768, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2, padding="valid")
        self.branch7x7x3_1 = Conv(768, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2, padding="valid")

    def forward(self, x):
        return torch.cat([
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))),
            halve(x)], 1)


class Mixed8(nn.Module):
    """A block on the 8x8 grid (Mixed_7b, 7c): N x c x 8 x 8 to N x 2048 x 8 x 8.

    The published network pools with a mean in 7b but with a *maximum* in 7c."""

    def __init__(self, c, pool):
        super().__init__()
        self.pool = pool
        self.branch1x1 = Conv(c, 320, 1)
        self.branch3x3_1 = Conv(c, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3))
        self.branch3x3_2b = Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = Conv(c, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1))
        self.branch_pool = Conv(c, 192, 1)

    def forward(self, x):
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = mean_pool(x) if self.pool == "mean" else F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([
            self.branch1x1(x),
            self.branch3x3_2a(single), self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double),
            self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """Inception v3 of 2015-12-05 without its auxiliary head: 23,850,960 numbers, made for evaluation only."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, padding="valid")
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padding="valid")
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padding="valid")
        self.Mixed_5b = Mixed35(192, 32)
        self.Mixed_5c = Mixed35(256, 64)
        self.Mixed_5d = Mixed35(288, 64)
        self.Mixed_6a = Mixed35to17()
        self.Mixed_6b = Mixed17(128)
        self.Mixed_6c = Mixed17(160)
        self.Mixed_6d = Mixed17(160)
        self.Mixed_6e = Mixed17(192)
        self.Mixed_7a = Mixed17to8()
        self.Mixed_7b = Mixed8(1280, "mean")
        self.Mixed_7c = Mixed8(2048, "max")
        self.fc = nn.Linear(2048, 1008)
        self.eval()
        self.requires_grad_(False)

    def forward(self, x):
        """Features, N x 2048, of images resized by `tf1_resize` and scaled to [-1, 1), N x 3 x 299 x 299."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))           # 147 x 147
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halve(x)))                        # 71 x 71
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halve(x))))                   # 35 x 35
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))                          # 8 x 8
        return x.mean((2, 3))

    def probabilities(self, features):
        """p(y|x), N x 1008, from features, N x 2048. The score's original code takes the last layer's weights
        and leaves its bias out; with the bias, scores come out differently."""
        return torch.softmax(features @ self.fc.weight.T, dim=1)


# ----------------------------------------------------------------------------------------------------------
# From bytes to features and probabilities

def tf1_resize(images, size=299):
    """Bilinear resize as TensorFlow 1 did it (align_corners=False, no half-pixel centres), in float32.

    images: tensor N x C x H x W; returns N x C x size x size, float32, in the same range.
    Output row i lies at s = i * H / size, between rows floor(s) and floor(s) + 1; the row after the last is
    the last again. So the picture is shifted by up to half a pixel and its end repeats, which no mode of
    torch's `interpolate` does. As s depends on one axis at a time, each axis is done for itself: gather the
    two neighbours, mix them. Columns first, as TensorFlow does, so that the rounding agrees too.
    """
    x = images.to(torch.float32)
    for axis in (3, 2):
        n = x.shape[axis]
        s = torch.arange(size, dtype=torch.float32, device=x.device) * (n / size)
        low = s.floor().long()
        high = (low + 1).clamp(max=n - 1)
        weight = s - low if axis == 3 else (s - low)[:, None]
        a, b = x.index_select(axis, low), x.index_select(axis, high)
        x = a + (b - a) * weight
    return x


def check_images(images, name="images"):
    """Raises ImageError unless `images` is N x 3 x H x W bytes, N > 0: a tensor, an array, or a `Folder`.

    Floats are refused, not guessed: whether 1.0 is white or almost black, only the caller knows."""
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        raise ImageError(f"{name}: need an array or tensor, N x 3 x H x W bytes, not {type(images).__name__}")
    shape, kind = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise ImageError(f"{name}: need N x 3 x height x width, not {' x '.join(map(str, shape))}")
    if "float" in kind:
        low, high = float(images.min()), float(images.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ImageError(f"{name}: NaN or infinity among the pixels; need uint8, 0 to 255")
        raise ImageError(f"{name}: need uint8, 0 to 255, not {kind} from {low:.4g} to {high:.4g}; convert by"
                         " (255 * x).round() if black is 0 and white 1, by (127.5 * (x + 1)).round() if black"
                         " is -1 and white 1")
    if kind != "uint8":
        raise ImageError(f"{name}: need uint8, 0 to 255, not {kind}")


def check_splits(n, splits):
    """Raises ImageError if n images cannot be cut into `splits` parts none of which is empty."""
    if splits < 1 or n < splits:
        raise ImageError(f"{n} images cannot be cut into {splits} splits: give more images, or fewer splits")


@torch.no_grad()
def activations(images, net, batch_size=50, progress=True):
    """Features, N x 2048, and class probabilities, N x 1008: float32 on the CPU, 12 kB an image.

    images: N x 3 x H x W bytes, 0 to 255; ImageError for anything else. Only `batch_size` of them at a time
    are enlarged and moved to the network's device: memory stays bounded. progress: a line on stderr."""
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    net.eval()
    device = net.fc.weight.device
    features, probabilities = torch.empty(len(images), 2048), torch.empty(len(images), 1008)
    # Plain float32, whatever the caller trains with: no mixed precision, and none of the TF32 that cuDNN uses
    # unless told otherwise, which rounds the factors of every product to 10 bits.
    full_precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), full_precision:
        for part in batches(len(images), batch_size, progress):
            x = images[part]
            x = x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x))
            f = net((tf1_resize(x.to(device)) - 128) / 128)
            features[part], probabilities[part] = f.cpu(), net.probabilities(f).cpu()
    return features, probabilities


def batches(n, size, progress):
    """The slices 0:size, size:2*size, ... of n things, with a progress line on standard error: on a terminal
    redrawn in place, elsewhere one a minute."""
    start = last = time.monotonic()
    terminal = sys.stderr.isatty()
    for i in range(0, n, size):
        done = min(i + size, n)
        yield slice(i, done)
        now = time.monotonic()
        if progress and now - last > (.2 if terminal else 60):
            rate, last = done / (now - start), now
            line = f"{done}/{n} images, {rate:.3g}/s, {(n - done) / rate / 60:.1f} minutes left"
            sys.stderr.write(f"\r{line:<60}" if terminal else line + "\n")
            sys.stderr.flush()
    if progress and terminal:
        sys.stderr.write(f"\r{'':<60}\r")


# ----------------------------------------------------------------------------------------------------------
# The score

def score_from_probabilities(p, splits=10):
    """Inception score, (mean, standard deviation) over splits, from class probabilities p, N x classes.

    Salimans et al. 2016, "Improved Techniques for Training GANs", section 4; the measure of Figure 3 and
    Table 3 in Gulrajani et al. 2017. The score of one part is
        exp( mean over x of KL(p(y|x) || p(y)) ),    p(y) = mean over x of p(y|x),    both over that part:
    1 if all images get the same p(y|x); the number of classes if each is certain and all equally frequent.
    Part i is images i*N//splits up to (i+1)*N//splits, as in the original code: consecutive, and of sizes
    that differ by at most one. The deviation is the population's; the arithmetic is in float64.
    Raises ImageError for fewer images than splits, ValueError for rows that are no probabilities.
    """
    p = torch.as_tensor(p)
    if p.ndim != 2 or not p.is_floating_point():
        raise ValueError(f"need floats, N x classes, not {p.dtype} of shape {tuple(p.shape)}")
    n = len(p)
    check_splits(n, splits)
    scores = []
    for i in range(splits):
        part = p[i * n // splits:(i + 1) * n // splits].cpu().double()
        if not ((part >= 0).all() and ((part.sum(1) - 1).abs() < 1e-3).all()):              # NaN fails, too
            raise ValueError("need probabilities: each row from 0 to 1 and with sum 1")
        kl = torch.xlogy(part, part) - torch.xlogy(part, part.mean(0))                      # xlogy(0, 0) = 0
        scores.append(math.exp(kl.sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def inception_score(images, net, splits=10, batch_size=50, progress=True):
    """Inception score of N x 3 x H x W bytes, any H and W: (mean, standard deviation) over `splits` parts.

    images: uint8 tensor or array, 0 to 255; net: what `load` returned. The order counts, since parts are
    consecutive; and few images score lower than many, so compare scores of equally many (Table 3: 50,000).
    Raises ImageError for other shapes or types, or fewer than `splits` images."""
    check_images(images)
    check_splits(len(images), splits)
    return score_from_probabilities(activations(images, net, batch_size, progress)[1], splits)


# ----------------------------------------------------------------------------------------------------------
# The Frechet Inception distance

def statistics(features):
    """Mean, d, and covariance (divided by N - 1), d x d, of features, N x d; float64, in parts of 1,000."""
    features = torch.as_tensor(features).cpu()
    n = len(features)
    if n < 2:
        raise ImageError("the distance needs at least two images in each set")
    mu = sum(rows.double().sum(0) for rows in features.split(1000)) / n
    cov = sum((rows.double() - mu).T @ (rows.double() - mu) for rows in features.split(1000)) / (n - 1)
    return mu, cov


def frechet_distance(mu1, cov1, mu2, cov2):
    """Distance of the Gaussians N(mu1, cov1) and N(mu2, cov2), mu: d, cov: d x d; a float, 0 if equal.

    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6:
        |mu1 - mu2|^2 + trace(cov1 + cov2 - 2 (cov1 cov2)^(1/2)).
    cov1 cov2 is not symmetric, but has the eigenvalues of the symmetric R cov2 R with R = cov1^(1/2). So the
    root's trace is the sum of their square roots, and R comes from the eigenvectors of cov1. Rounding leaves
    eigenvalues of -1e-15 where 0 is meant, hence the clamps. In float64.
    Raises ValueError for shapes that do not fit, NaN or infinity.
    """
    mu1, cov1, mu2, cov2 = (torch.as_tensor(a).cpu().double() for a in (mu1, cov1, mu2, cov2))
    d = mu1.numel()
    if not (mu1.shape == mu2.shape == (d,) and cov1.shape == cov2.shape == (d, d)):
        raise ValueError("need means of length d and covariances d x d, the same d for both")
    if not all(a.isfinite().all() for a in (mu1, cov1, mu2, cov2)):
        raise ValueError("NaN or infinity among the means and covariances")
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ cov2 @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return max(0., float((mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace))


def fid(features1, features2):
    """FID of two sets of features, N x d and M x d, from `activations`. Few images give a distance that is
    too large (below d images a covariance is singular): compare like with like; published ones use 50,000.
    Raises ImageError for a set of fewer than two."""
    return frechet_distance(*statistics(features1), *statistics(features2))


# ----------------------------------------------------------------------------------------------------------
# Weights

def one_line(error):
    """What an exception says, or what it is called, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def fetch(url, folder, sha256, progress=True):
    """The file of this URL in `folder`: as it is if it is there, else downloaded and its sha256 compared with
    the given first digits. Raises InceptionError."""
    path = Path(folder) / url.rsplit("/", 1)[1]
    if path.exists():
        return path
    timeout = socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if progress:
            print(f"downloading {url} to {path}", file=sys.stderr)
        socket.setdefaulttimeout(30)                # torch.hub sets none, and would wait minutes for a silent firewall
        torch.hub.download_url_to_file(url, str(path), sha256, progress=progress and sys.stderr.isatty())
    except (OSError, http.client.HTTPException, RuntimeError) as e:       # RuntimeError: the checksum differs
        raise InceptionError(f"{path.name} is not in {path.parent}, and downloading it from {url} failed"
                             f" ({one_line(e)}): get it by hand and put it at {path}") from e
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def load(data_dir="data", path=None, device="cpu", progress=True):
    """The network with the published weights, in eval mode, without gradients, on `device`.

    Weights come from `path` if given; else from `data_dir`, where they are downloaded to if need be (95 MB,
    the conversion that the pytorch-fid project publishes) and checked. A file that you put there yourself
    need only hold the right tensors. Raises InceptionError: no file and no network, a download with another
    checksum, a file cut short, another network's file."""
    path = Path(path or fetch(WEIGHTS_URL, data_dir, WEIGHTS_SHA256, progress))
    if not path.is_file():
        raise InceptionError(f"{path}: there is no such file of weights")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        names = [name for name in weights if isinstance(weights[name], torch.Tensor)]
        if not all(weights[name].isfinite().all() for name in names):
            raise ValueError("numbers that are none")
    except Exception as e:             # torch.load has many errors for bytes that torch.save did not write
        raise InceptionError(f"{path}: cut short, or no dictionary of weights ({type(e).__name__}); delete it"
                             f" and get {WEIGHTS_FILE} again") from e
    net = Inception()
    wanted = net.state_dict()
    # Batch normalisation counts its training batches; a file older than this habit lacks the counters.
    given = {name: t for name, t in wanted.items() if name.endswith("num_batches_tracked")}
    given.update((name, weights[name]) for name in names)
    wrong = [name for name in {**wanted, **given}
             if name not in wanted or name not in given or wanted[name].shape != given[name].shape]
    if wrong:
        raise InceptionError(f"{path}: not the weights of this network, {len(wrong)} tensors are missing,"
                             f" foreign or of another shape (first: {wrong[0]}); need {WEIGHTS_FILE}")
    net.load_state_dict(given, strict=True)
    if torch.device(device).type == "cpu":
        net = net.to(memory_format=torch.channels_last)         # the same numbers, 1.2 to 1.4 times as fast on a CPU
    return net.to(device)


def load_or_warn(data_dir="data", path=None, device="cpu"):
    """`load`, for a training that should go on without scores when the weights cannot be had: then a warning on
    standard error, and None. A path that the user gave must hold them: InceptionError."""
    try:
        return load(data_dir, path, device)
    except InceptionError as e:
        if path:
            raise
        print(f"warning: training without Inception scores: {one_line(e)}", file=sys.stderr)
        return None


# ----------------------------------------------------------------------------------------------------------
# Images from files

class Folder:
    """A folder's images in order of their names: N x 3 x H x W bytes, read only when sliced, so that any
    number fits into memory. Raises ImageError: no images, a file that is none, different sizes, 16 bits."""

    dtype = np.dtype("uint8")

    def __init__(self, folder):
        self.files = sorted(f for f in Path(folder).iterdir() if f.is_file() and not f.name.startswith("."))
        if not self.files:
            raise ImageError(f"{folder}: no images in this folder (folders inside it are not searched)")
        heads = [self.read(f, lambda image: (*image.size, image.mode)) for f in self.files]
        width, height = heads[0][:2]
        for file, (w, h, mode) in zip(self.files, heads):
            if (w, h) != (width, height):
                raise ImageError(f"{file}: {w}x{h} pixels, but {self.files[0].name} has {width}x{height}: all"
                                 " must have one size")
            if mode[0] in "IF":
                raise ImageError(f"{file}: more than 8 bits a pixel (mode {mode}); save it with 8")
        other = [mode for *_, mode in heads if mode != "RGB"]
        if other:
            print(f"note: {len(other)} of {len(heads)} images in {folder} converted to RGB from"
                  f" {', '.join(sorted(set(other)))} (grey repeated, transparency dropped)", file=sys.stderr)
        self.shape = (len(heads), 3, height, width)

    @staticmethod
    def read(file, what):
        try:
            with Image.open(file) as image:
                return what(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
            raise ImageError(f"{file}: not an image, or a broken one ({one_line(e)})") from e

    def __len__(self):
        return len(self.files)

    def __getitem__(self, part):
        pixels = [self.read(f, lambda image: np.asarray(image.convert("RGB"))) for f in self.files[part]]
        return np.stack(pixels).transpose(0, 3, 1, 2)


def open_images(path):
    """N x 3 x H x W bytes from a folder of images, a .npy file or a .npz file (its array `images`, `samples`
    or `arr_0`, else its first); N x H x W x 3 is turned round, and said. Raises ImageError."""
    path = Path(path)
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise ImageError(f"{path}: there is no such file or folder")
    if path.suffix not in (".npy", ".npz"):
        raise ImageError(f"{path}: need a folder of images, a .npy file or a .npz file")
    try:
        array = np.load(path, mmap_mode="r")                       # .npy: read from disk only as needed
        if isinstance(array, np.lib.npyio.NpzFile):
            array = array[next(key for key in ("images", "samples", "arr_0", *array) if key in array)]
        if not isinstance(array, np.ndarray):
            raise ValueError("no array")
    except Exception as e:                 # numpy, zipfile, zlib and tokenize have their own errors for damaged bytes
        raise ImageError(f"{path}: cannot be read as an array of numbers ({one_line(e)})") from e
    if array.ndim == 4 and array.shape[3] == 3 and array.shape[1] != 3:
        print(f"note: {path} is read as N x height x width x 3", file=sys.stderr)
        array = array.transpose(0, 3, 1, 2)
    check_images(array, path)
    return array


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickled numpy arrays and nothing else: a pickle may otherwise run any program it likes."""

    def find_class(self, module, name):
        if f"{module}.{name}".replace("_core", "core") in (
                "numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")


def cifar_train(data_dir="data"):
    """CIFAR-10's training images in the archive's order, 50000 x 3 x 32 x 32 bytes, and whether the archive
    is the published one to the byte; downloaded if `data_dir` has none. Raises InceptionError."""
    path = fetch(CIFAR_URL, data_dir, CIFAR_SHA256)
    try:
        published = hashlib.sha256(path.read_bytes()).hexdigest() == CIFAR_SHA256
        with tarfile.open(path) as archive:
            members = [archive.extractfile(f"cifar-10-batches-py/data_batch_{i}") for i in range(1, 6)]
            parts = [ArrayUnpickler(member, encoding="bytes").load()[b"data"] for member in members]
        return np.concatenate(parts).reshape(-1, 3, 32, 32), published
    except Exception as e:                  # tarfile, zlib and pickle each have their own errors for nonsense
        raise InceptionError(f"{path}: cut short, or not CIFAR-10's Python archive ({one_line(e)})") from e


# ----------------------------------------------------------------------------------------------------------
# The command

def positive(text):
    """An argparse type: a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"need a whole number of at least 1, not {text!r}")
    return int(text)


def run(args, device):
    """Does what the flags ask; returns the exit code."""
    published, names = True, args.images
    if args.check:
        images, published = cifar_train(args.data_dir)
        sets, names = [images], ["CIFAR-10's training set"]
    else:
        sets = [open_images(name) for name in names]                # bad images show before the long download
    if len(sets) == 1:
        check_splits(len(sets[0]), args.splits)
    for name, images in zip(names, sets):
        if len(sets) == 2 and len(images) < 2:
            raise ImageError(f"{name}: a single image; the distance needs at least two in each set")
    net = load(args.data_dir, args.inception, device)
    if len(sets) == 2:
        moments = [statistics(activations(images, net, args.batch_size)[0]) for images in sets]
        print(f"FID {frechet_distance(*moments[0], *moments[1]):.4f}"
              f" ({len(sets[0])} images in {names[0]}, {len(sets[1])} in {names[1]})")
        if min(map(len, sets)) < 2048:
            print("note: fewer than 2,048 images give much too large a distance; published ones use 50,000")
        return 0
    mean, std = inception_score(sets[0], net, args.splits, args.batch_size)
    print(f"Inception score {mean:.4f} +/- {std:.4f}"
          f" ({len(sets[0])} images in {names[0]}, {args.splits} splits)")
    if not args.check:
        return 0
    difference = mean - CIFAR_SCORE
    trusted = abs(difference) <= TOLERANCE
    print(f"known score {CIFAR_SCORE}, difference {difference:+.4f}")
    if not published:
        print("the comparison does not hold: this archive is not the published one (its sha256 differs), and"
              " other bytes, JPEG copies for instance, score differently")
    elif trusted:
        print(f"this installation can be trusted: the difference is at most {TOLERANCE}")
    else:
        print(f"this installation cannot be trusted: the difference is more than {TOLERANCE}")
    return 0 if published and trusted else 1


def main(argv=None):
    """The command. Exit code 0; 1 for bad data, and for a check that does not show 11.24; 2 for bad flags; 130."""
    parser = argparse.ArgumentParser(description="Inception score of a set of images, or FID of two sets.")
    parser.add_argument("images", nargs="*", metavar="FOLDER|FILE.npy|FILE.npz", help="one: score; two: FID")
    parser.add_argument("--check", action="store_true",
                        help="score CIFAR-10's training images; exit code 0 only if that gives 11.24")
    parser.add_argument("--data-dir", default="data", help="folder of weights and CIFAR-10 (default data)")
    parser.add_argument("--inception", metavar="FILE", help=f"the weights (default: {WEIGHTS_FILE} in --data-dir)")
    parser.add_argument("--splits", type=positive, default=10, help="parts of the score (default 10)")
    parser.add_argument("--batch-size", type=positive, default=50, help="images at a time (default 50)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    args = parser.parse_args(argv)
    if len(args.images) not in ((0,) if args.check else (1, 2)):
        parser.error("give one set of images to score, two for the FID, or --check alone")
    if args.check and args.splits != 10:
        parser.error(f"--check is for 10 splits, of which {CIFAR_SCORE} is the mean")
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = next(d for d in have if have[d]) if args.device == "auto" else args.device
    if not have[device]:
        parser.error(f"--device {device}: torch finds no such device here")
    try:
        return run(args, device)
    except (OSError, ImageError) as e:
        print(f"inception.py: {one_line(e)}", file=sys.stderr)
    except (RuntimeError, MemoryError) as e:
        known = isinstance(e, (MemoryError, torch.OutOfMemoryError))    # but for the CPU's, which is a RuntimeError
        if not known and "tried to allocate" not in str(e):
            raise
        print(f"inception.py: not enough memory on {device}: use a smaller --batch-size", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninception.py: interrupted", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
