"""The Inception score and the Frechet Inception distance (FID): needs torch, numpy, Pillow.

    python inception.py FOLDER       score of a folder of images, or of a .npy or .npz file
    python inception.py A B          FID of two sets; either may be a .npz file of statistics (mu, sigma)
    python inception.py --check      score of CIFAR-10's training images, which must be 11.24

    net = inception.load()                             # downloads 95 MB into data/ the first time
    mean, std = inception.inception_score(x, net)      # x: N x 3 x H x W bytes (uint8), any H and W

Scores can be compared only if every step is the same: TensorFlow's Inception v3 of 2015-12-05
(torchvision's differs), TensorFlow 1's resize, no bias in p(y|x), 50,000 images in 10 parts.
"""
import argparse
import contextlib
import hashlib
import math
import re
import socket
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/" + WEIGHTS_FILE
WEIGHTS_SHA256 = "6726825d"  # its first 8 digits
IMAGE_FORMATS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]  # EPS would run Ghostscript
NOTE = "read as RGB; the network knows photographs, so a score of grey digits means little"


class InceptionError(OSError):
    """The weights cannot be used. The message is one line."""


class ImageError(ValueError):
    """The images cannot be scored. The message is one line."""


# ---- the Inception score ----

def inception_score(images, net, splits=10, batch_size=50, progress=True):
    """Return the Inception score, (mean, standard deviation) over `splits` consecutive parts.

    images: uint8 tensor or array, N x 3 x H x W, or N x 1 x H x W for grey. net: from `load`.
    Few images score lower than many (Table 3: 50,000), images sorted by class far too low.
    Raises ImageError for other shapes or types, or fewer images than splits.
    """
    images = check_images(images)
    check_splits(len(images), splits)
    p = activations(images, net, batch_size, progress)[1]
    mean, deviation = score_from_probabilities(p, splits)
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
    shuffled, spread = score_from_probabilities(p[order], splits)
    if shuffled - mean > max(0.1 * shuffled, 3 * spread):
        say(f"note: the images seem sorted by class: they score {shuffled:.2f} when shuffled")
    return mean, deviation


def score_from_probabilities(p, splits=10):
    """Return the Inception score, (mean, standard deviation), from class probabilities p, N x classes.

    Salimans et al. 2016, "Improved Techniques for Training GANs", Section 4. The score of one part is
        exp( mean over x of KL(p(y|x) || p(y)) ),    p(y) = mean over x of p(y|x),    both over that part.
    Part i is images i*N//splits up to (i+1)*N//splits, as in the original code.
    Raises ValueError for rows that are not probabilities.
    """
    p, n = torch.as_tensor(p), len(p)
    check_splits(n, splits)
    scores = []
    for i in range(splits):
        part = p[i * n // splits:(i + 1) * n // splits].cpu().double()
        if not ((part >= 0).all() and ((part.sum(1) - 1).abs() < 1e-3).all()):  # False for NaN, too
            raise ValueError("need probabilities: each row from 0 to 1 and with sum 1")
        kl = torch.xlogy(part, part) - torch.xlogy(part, part.mean(0))  # xlogy(0, 0) = 0
        scores.append(math.exp(kl.sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def check_splits(n, splits):
    if splits < 1 or n < splits:
        raise ImageError(f"{n} images cannot be cut into {splits} splits: need at least one in each")


# ---- the Frechet Inception distance ----

def fid(features1, features2):
    """Return the FID of two sets of features, N x d and M x d. Few images give too large a distance."""
    return frechet_distance(*mean_and_covariance(features1), *mean_and_covariance(features2))


def mean_and_covariance(features):
    """Return the mean, d, and the covariance (divided by N - 1), d x d, of features, N x d, in float64."""
    features = torch.as_tensor(features).cpu()
    n = len(features)
    if n < 2:
        raise ImageError("the distance needs at least two images in each set")
    mu = sum(rows.double().sum(0) for rows in features.split(1000)) / n
    cov = sum((rows.double() - mu).T @ (rows.double() - mu) for rows in features.split(1000)) / (n - 1)
    return mu, cov


def frechet_distance(mu1, cov1, mu2, cov2):
    """Return the distance of the Gaussians N(mu1, cov1) and N(mu2, cov2), mu: d, cov: d x d, in float64.

    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6:
        |mu1 - mu2|^2 + trace(cov1 + cov2 - 2 (cov1 cov2)^(1/2)).
    With cov = R R^T, cov1 cov2 has the eigenvalues of (R1^T R2)(R1^T R2)^T. So the trace of its root
    is the sum of the singular values of R1^T R2. Raises ValueError for other shapes, NaN, infinity.
    """
    mu1, cov1, mu2, cov2 = (torch.as_tensor(a).cpu().double() for a in (mu1, cov1, mu2, cov2))
    d = mu1.numel()
    if not (mu1.shape == mu2.shape == (d,) and cov1.shape == cov2.shape == (d, d)):
        raise ValueError("need means of length d and covariances d x d, the same d for both")
    if not all(a.isfinite().all() for a in (mu1, cov1, mu2, cov2)):
        raise ValueError("NaN or infinity among the means and covariances")
    roots = []
    for cov in (cov1, cov2):
        values, vectors = torch.linalg.eigh(cov)
        roots.append(vectors * values.clamp(min=0).sqrt())  # rounding makes some zeros negative
    trace_of_root = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    traces = cov1.trace() + cov2.trace() - 2 * trace_of_root
    return max(0.0, float((mu1 - mu2).square().sum() + traces))


# ---- from bytes to features and probabilities ----

@torch.no_grad()
def activations(images, net, batch_size=50, progress=True):
    """Return features, N x 2048, and class probabilities, N x 1008, both float32 on the CPU.

    Takes what `inception_score` takes. Computes in plain float32, whatever the caller trains with.
    """
    images = check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    net.eval()
    device = net.fc.weight.device
    features, probabilities = torch.empty(len(images), 2048), torch.empty(len(images), 1008)
    with torch.autocast(device.type, enabled=False), plain_float32():
        for part in slices(len(images), batch_size, progress):
            x = images[part]
            if not isinstance(x, torch.Tensor):
                x = torch.from_numpy(np.array(x))
            f = net((tf1_resize(x.to(device)) - 128) / 128)
            features[part], probabilities[part] = f.cpu(), net.probabilities(f).cpu()
    return features, probabilities


@contextlib.contextmanager
def plain_float32():
    """Turn off TF32 and bfloat16 inside float32 products, and restore the caller's settings."""
    b, before = torch.backends, []
    try:  # general settings first: an unset setting inherits from its parent
        for setting in b, b.cudnn, b.cudnn.conv, b.cuda.matmul, b.mkldnn.conv, b.mkldnn.matmul:
            before.append((setting, setting.fp32_precision))
            setting.fp32_precision = "none"
        yield
    finally:
        for setting, precision in before:
            setting.fp32_precision = precision


def tf1_resize(images, size=299):
    """Resize N x C x H x W to size x size bilinearly as TensorFlow 1 did, in float32, in the same range.

    Output row i lies at s = i * H / size, between rows floor(s) and floor(s) + 1. The last row repeats.
    Columns come first, as in TensorFlow, so that the rounding agrees too.
    """
    x = images.to(torch.float32)
    for axis in (3, 2):
        n = x.shape[axis]
        s = torch.arange(size, dtype=torch.float32, device=x.device) * (n / size)
        low = s.floor().long()
        high = (low + 1).clamp(max=n - 1)
        weight = (s - low).view(-1, *[1] * (3 - axis))
        a, b = x.index_select(axis, low), x.index_select(axis, high)
        x = a + (b - a) * weight
    return x


def check_images(images, name="images"):
    """Return N x 3 x H x W bytes, with a grey channel repeated. Raises ImageError for anything else."""
    shape, kind = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ImageError(f"{name}: need N x 3 x height x width, not {' x '.join(map(str, shape))}")
    if kind != "uint8":
        raise ImageError(f"{name}: need uint8, 0 to 255, not {kind}; scale floats to 0 to 255 and clip them, "
                         f"for instance ((x + 1) * 127.5).clip(0, 255), then convert to uint8")
    if shape[1] == 3:
        return images
    say(f"note: {name}: one channel, {NOTE}")
    return images[:, [0, 0, 0]]


# ---- the network: Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision" ----

# 3x3 pooling at the same size, or at half of it. Padding does not count in the mean, as in TensorFlow.
mean_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
max_pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve = partial(F.max_pool2d, kernel_size=3, stride=2)


def conv(c_in, c_out, kernel, stride=1, padding="same"):
    """Return convolution, batch normalization with the stored statistics, ReLU."""
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False),
        bn=nn.BatchNorm2d(c_out, eps=1e-3),
        relu=nn.ReLU(inplace=True)))


def branches(grid, c_in, c=None, pool=mean_pool):
    """Return the branches of a block on a grid of 35x35, 17x17 or 8x8 pixels, or between two grids.

    A branch is a list of steps: a pooling, a convolution (its name in the published file, then the
    arguments of `conv`), or the name of an earlier convolution whose output it continues.
    """
    return {
        "35": [
            [("branch1x1", c_in, 64, 1)],
            [("branch5x5_1", c_in, 48, 1), ("branch5x5_2", 48, 64, 5)],
            [("branch3x3dbl_1", c_in, 64, 1), ("branch3x3dbl_2", 64, 96, 3), ("branch3x3dbl_3", 96, 96, 3)],
            [pool, ("branch_pool", c_in, c, 1)]],
        "35 to 17": [
            [("branch3x3", c_in, 384, 3, 2, 0)],
            [("branch3x3dbl_1", c_in, 64, 1), ("branch3x3dbl_2", 64, 96, 3), ("branch3x3dbl_3", 96, 96, 3, 2, 0)],
            [halve]],
        "17": [
            [("branch1x1", c_in, 192, 1)],
            [("branch7x7_1", c_in, c, 1), ("branch7x7_2", c, c, (1, 7)), ("branch7x7_3", c, 192, (7, 1))],
            [("branch7x7dbl_1", c_in, c, 1), ("branch7x7dbl_2", c, c, (7, 1)), ("branch7x7dbl_3", c, c, (1, 7)),
             ("branch7x7dbl_4", c, c, (7, 1)), ("branch7x7dbl_5", c, 192, (1, 7))],
            [pool, ("branch_pool", c_in, 192, 1)]],
        "17 to 8": [
            [("branch3x3_1", c_in, 192, 1), ("branch3x3_2", 192, 320, 3, 2, 0)],
            [("branch7x7x3_1", c_in, 192, 1), ("branch7x7x3_2", 192, 192, (1, 7)),
             ("branch7x7x3_3", 192, 192, (7, 1)), ("branch7x7x3_4", 192, 192, 3, 2, 0)],
            [halve]],
        "8": [
            [("branch1x1", c_in, 320, 1)],
            [("branch3x3_1", c_in, 384, 1), ("branch3x3_2a", 384, 384, (1, 3))],
            ["branch3x3_1", ("branch3x3_2b", 384, 384, (3, 1))],
            [("branch3x3dbl_1", c_in, 448, 1), ("branch3x3dbl_2", 448, 384, 3), ("branch3x3dbl_3a", 384, 384, (1, 3))],
            ["branch3x3dbl_2", ("branch3x3dbl_3b", 384, 384, (3, 1))],
            [pool, ("branch_pool", c_in, 192, 1)]],
    }[grid]


class Mixed(nn.Module):
    """A block: branches side by side, with concatenated outputs. Takes what `branches` takes."""
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.branches = branches(*args, **kwargs)
        for branch in self.branches:
            for step in branch:
                if isinstance(step, tuple):
                    self.add_module(step[0], conv(*step[1:]))

    def forward(self, x):
        ends, outputs = [], {}
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step, tuple):
                    y = outputs[step[0]] = self.get_submodule(step[0])(y)
                elif isinstance(step, str):
                    y = outputs[step]
                else:
                    y = step(y)
            ends.append(y)
        return torch.cat(ends, 1)


class Inception(nn.Module):
    """Inception v3 of 2015-12-05 without its auxiliary head: 23,850,960 parameters, frozen."""
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = conv(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = conv(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = conv(32, 64, 3)
        self.Conv2d_3b_1x1 = conv(64, 80, 1)
        self.Conv2d_4a_3x3 = conv(80, 192, 3, 1, 0)
        self.Mixed_5b = Mixed("35", 192, 32)
        self.Mixed_5c = Mixed("35", 256, 64)
        self.Mixed_5d = Mixed("35", 288, 64)
        self.Mixed_6a = Mixed("35 to 17", 288)
        self.Mixed_6b = Mixed("17", 768, 128)
        self.Mixed_6c = Mixed("17", 768, 160)
        self.Mixed_6d = Mixed("17", 768, 160)
        self.Mixed_6e = Mixed("17", 768, 192)
        self.Mixed_7a = Mixed("17 to 8", 768)
        self.Mixed_7b = Mixed("8", 1280)
        self.Mixed_7c = Mixed("8", 2048, pool=max_pool)  # as published: a maximum in this block only
        self.fc = nn.Linear(2048, 1008)
        self.eval()
        self.requires_grad_(False)

    def forward(self, x):
        """Return features, N x 2048, of images resized by `tf1_resize` and scaled to [-1, 1)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # 147 x 147
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halve(x)))  # 71 x 71
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halve(x))))  # 35 x 35
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # 17 x 17
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # 8 x 8
        return x.mean((2, 3))

    def probabilities(self, features):
        """Return p(y|x), N x 1008, from features, N x 2048. The score's original code has no bias."""
        return torch.softmax(features @ self.fc.weight.T, dim=1)


# ---- the weights ----

def load(data_dir="data", path=None, device="cpu"):
    """Return the network with the published weights, in eval mode, without gradients, on `device`.

    The weights come from `path`, else from `data_dir`, where they are downloaded if absent (95 MB).
    Raises InceptionError if the download fails, or the file is damaged or has other weights.
    """
    path = Path(path or download(data_dir))
    net = Inception()
    try:
        if not path.is_file():
            raise ValueError("no such file")
        # torch.load checks no checksums. Zip files have them. The published file has an older format.
        intact = zipfile.is_zipfile(path) and not zipfile.ZipFile(path).testzip()
        if not intact and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(WEIGHTS_SHA256):
            raise ValueError("wrong checksum")
        weights = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(dict(weights))  # a plain dict may lack batch norm's counters
    except Exception as e:  # damaged bytes raise many kinds of errors
        raise InceptionError(f"{path}: cannot be used as the Inception weights ({one_line(e)[:200]}):"
                             f" get {WEIGHTS_URL} and put it there") from e
    if torch.device(device).type == "cpu":
        net = net.to(memory_format=torch.channels_last)  # 1.2 to 1.4 times as fast on a CPU
    return net.to(device)


def load_or_warn(data_dir="data", path=None, device="cpu"):
    """Call `load`. If it fails and the user named no file, warn and return None."""
    try:
        return load(data_dir, path, device)
    except InceptionError as e:
        if path:
            raise
        say(f"warning: training goes on without Inception scores (a flag turns them off: see --help): {e}")


def download(folder):
    """Return the path of the weights in `folder`, downloaded if absent. A failed download leaves nothing."""
    path = Path(folder) / WEIGHTS_FILE
    if path.exists():
        return path
    timeout = socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        say(f"downloading 95 MB from {WEIGHTS_URL} to {path}")
        socket.setdefaulttimeout(30)  # torch.hub sets none
        torch.hub.download_url_to_file(WEIGHTS_URL, str(path), WEIGHTS_SHA256, progress=False)
    except Exception as e:  # disk, network, checksum
        raise InceptionError(f"cannot download the Inception weights ({one_line(e)}): get {WEIGHTS_URL}"
                             f" by hand and put it at {path}") from e
    finally:
        socket.setdefaulttimeout(timeout)
    return path


# ---- images from files ----

class Folder:
    """A folder's images by name, N x 3 x H x W bytes, read when sliced. All are tried at the start."""
    dtype = np.dtype("uint8")

    def __init__(self, folder, skip_broken=False):
        found = sorted(f for f in Path(folder).iterdir() if f.is_file() and f.name[0] != ".")
        self.files, modes, sizes, broken = [], set(), {}, []
        for part in slices(len(found), 1):
            file = found[part.start]
            try:
                pixels, mode = read_image(file)
            except ImageError as e:
                broken.append(e)
                continue
            self.files.append(file)
            modes.add(mode)
            sizes[pixels.shape[:2]] = f"{pixels.shape[1]} x {pixels.shape[0]} ({file.name})"
            if len(sizes) > 1:
                raise ImageError(f"{folder}: images of {' and '.join(sizes.values())}: resize or crop all to one size")
        if broken:
            text = f"{len(broken)} of {len(found)} files cannot be used, the first: {broken[0]}"
            if not skip_broken:
                raise ImageError(f"{text}; remove them, or leave them out with --skip-broken")
            say(f"note: {text}")
        if not self.files:
            raise ImageError(f"{folder}: no images in this folder (folders inside it are not searched)")
        if modes != {"RGB"}:
            say(f"note: {folder}: images of mode {', '.join(sorted(modes))}, {NOTE}")
        self.shape = (len(self.files), 3, *pixels.shape[:2])

    def __len__(self):
        return len(self.files)

    def __getitem__(self, part):
        return np.stack([read_image(file)[0] for file in self.files[part]]).transpose(0, 3, 1, 2)


def read_image(file):
    """Return an image file's pixels, H x W x 3 bytes, and its mode. Raises ImageError."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=IMAGE_FORMATS) as image:
            # 16-bit colour has mode RGB, too. The layout in the file shows it, or a PPM's maximum.
            if image.mode[0] in "IF" or re.search(";16[BLN]|, 65535", str(image.tile)):
                raise ValueError("more than 8 bits per channel")
            return np.asarray(image.convert("RGB")), image.mode
    except Exception as e:  # damaged bytes raise many kinds of errors
        raise ImageError(f"{file}: not an image that can be used ({one_line(e)})") from e


def open_set(path, skip_broken=False):
    """Return N x 3 x H x W bytes from a folder of images or a .npy or .npz file, or (mu, sigma).

    A .npz file has `mu` and `sigma`, or else `images`, `samples`, `arr_0`, or any array. Raises ImageError.
    """
    path = Path(path)
    if path.is_dir():
        return Folder(path, skip_broken)
    if not path.is_file() or path.suffix not in (".npy", ".npz"):
        raise ImageError(f"{path}: need a folder of images, or a .npy or .npz file; this is another file, or none")
    try:
        array = np.load(path, mmap_mode="r")  # a .npy file is read from disk only as needed
        if path.suffix == ".npz":
            if "mu" in array and "sigma" in array:
                return array["mu"].reshape(2048), array["sigma"].reshape(2048, 2048)
            array = array[next(key for key in ("images", "samples", "arr_0", *array) if key in array)]
        if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
            array = array.transpose(0, 3, 1, 2)
    except Exception as e:  # damaged bytes raise many kinds of errors
        raise ImageError(f"{path}: cannot be read as an array of numbers ({one_line(e)})") from e
    return check_images(array, path)


def one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def say(text, end="\n"):
    """Write to standard error. If that is closed, only the text is lost."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def slices(n, size, progress=True):
    """Yield slices of n images, with a progress line: on a terminal redrawn, else one a minute."""
    pause, end = 60, "\n"
    if sys.stderr and sys.stderr.isatty():
        pause, end = 0.2, "\r"
    start = last = time.monotonic()
    for i in range(0, n, size):
        done = min(i + size, n)
        yield slice(i, done)
        if progress and time.monotonic() - last > pause:
            last = time.monotonic()
            say(f"{done} of {n} images, {(n / done - 1) * (last - start) / 60:.1f} minutes left   ", end)


# ---- the command ----

def run(args):
    """Print the score of one set or the FID of two. Return the exit code, 1 if --check fails."""
    names = args.images
    sets = [open_set(path, args.skip_broken) for path in names]  # mistakes show before the download
    if args.check:
        from data import cifar10
        names, sets, args.splits = ["CIFAR-10's training set"], [cifar10(args.data_dir)[0]], 10
    if isinstance(sets[0], tuple) and len(sets) == 1:
        raise ImageError("FID statistics have no score: give a set of images beside them for the FID")
    net = load(args.data_dir, args.inception, args.device)
    if len(sets) == 2:
        moments = []
        for i, images in enumerate(sets):
            if not isinstance(images, tuple):
                names[i] = f"{len(images)} images in {names[i]}"
                images = mean_and_covariance(activations(images, net, args.batch_size)[0])
            moments += images
        print(f"FID {frechet_distance(*moments):.4f} ({names[0]}, {names[1]})", flush=True)
        return 0
    mean, std = inception_score(sets[0], net, args.splits, args.batch_size)
    print(f"Inception score {mean:.4f} +/- {std:.4f} ({len(sets[0])} images in {names[0]}, {args.splits} splits)",
          flush=True)
    passed = abs(mean - 11.24) <= 0.02
    if args.check:
        verdict = {True: "passed", False: "failed, or this CIFAR-10 is not the published archive"}[passed]
        print(f"known score 11.24, difference {mean - 11.24:+.4f}, tolerance 0.02: {verdict}", flush=True)
    return int(args.check and not passed)


def main(argv=None):
    """Run the command. Exit code 0; 1 for bad data or a failed check; 2 for bad flags; 130 for Ctrl-C."""
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("images", nargs="*", metavar="FOLDER|FILE.npy|FILE.npz", help="one: score; two: FID")
    flag("--check", action="store_true", help="score CIFAR-10 (by data.py), which must give 11.24")
    flag("--data-dir", default="data", help="folder of weights and CIFAR-10 (default data)")
    flag("--inception", metavar="FILE", help=f"the weights (default: {WEIGHTS_FILE} in --data-dir)")
    flag("--splits", type=int, default=10, help="parts of the score (default 10)")
    flag("--batch-size", type=int, default=50, help="images at a time (default 50)")
    flag("--skip-broken", action="store_true", help="leave out files that are not images, or damaged")
    gpu = torch.accelerator.current_accelerator(check_available=True)
    flag("--device", default=str(gpu or "cpu"), help="cpu, cuda, mps ... (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    if len(args.images) not in ((0,) if args.check else (1, 2)):
        parser.error("give one set of images to score, two for the FID, or --check alone")
    if args.splits < 1 or args.batch_size < 1:
        parser.error("--splits and --batch-size must be at least 1")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as e:  # AssertionError: torch without CUDA
        parser.error(f"--device {args.device}: {one_line(e)}")
    try:
        return run(args)
    except KeyboardInterrupt:
        say("inception.py: interrupted")
        return 130
    except (OSError, ValueError, ImportError, MemoryError, RuntimeError) as e:  # RuntimeError: torch's
        say(f"inception.py: {one_line(e)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
