"""Every data set: bytes and text in, tensors out.

    toys      eight_gaussians, twenty_five_gaussians, swiss_roll, modes, toy_batches             (Figure 1)
    images    cifar10, mnist, shapes, image_folder; `images` is the door to all four;
              batches, in_order
    pixels    from_bytes and to_bytes, in the three conventions of the authors' code
    text      text, decode                                                                       (Table 4)

Images stay bytes (uint8, channels first) until a batch of them is turned into floats, and a batch is an index
operation, so there is no loader to configure. Published archives are looked for in `data_dir`, downloaded if
they are not there, and read as they are: nothing is unpacked to disk. Every problem with a file is a
DataError.
"""

import functools
import gzip
import hashlib
import http.client
import io
import itertools
import json
import math
import os
import pickle
import socket
import sys
import tarfile
import tempfile
import time
import urllib.request
import uuid
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

CIFAR10_URLS = ["https://www.cs.toronto.edu/~kriz/"]
MNIST_URLS = [
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
]
BILLION_WORD_URLS = ["http://www.statmt.org/lm-benchmark/"]
BILLION_WORD = "1-billion-word-language-modeling-benchmark-r13output"
SHA256 = {  # none is published for the Billion Word archive
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


class DataError(OSError):
    """A problem with a data file; the message is one line that says what is wrong and what to do."""


def _reason(error):
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _download(name, urls, folder, way_out):
    """Download `name` into `folder` from the first of `urls` that gives it, and return its path.

    torch.hub writes under a temporary name and renames once the sha256 is right, so a download that is cut
    off or wrong leaves nothing behind; where none is published, the length is compared. `way_out` ends the error
    message: what to do without the file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = _reason(error)
        raise DataError(f"cannot write {name} into {folder} ({reason}): choose another --data-dir") from None
    failures = []
    timeout = socket.getdefaulttimeout()
    for url in urls:
        print(f"downloading {url}{name} into {folder}", file=sys.stderr)
        try:
            socket.setdefaulttimeout(30)  # torch.hub sets none, and would wait minutes for a silent firewall
            torch.hub.download_url_to_file(url + name, str(folder / name), hash_prefix=SHA256.get(name))
            if name not in SHA256:
                with urllib.request.urlopen(url + name) as reply:
                    whole = int(reply.headers.get("Content-Length", 0))
                if (folder / name).stat().st_size < whole:
                    (folder / name).unlink()
                    raise OSError(f"not kept, as it was cut short of its {whole:,} bytes")
            return folder / name
        except RuntimeError:  # what torch.hub raises when the hash is wrong
            failures.append(f"{url}{name}: not kept, as its sha256 is not the published one")
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}{name}: {_reason(error)}")
        finally:
            socket.setdefaulttimeout(timeout)
    raise DataError(f"cannot download {'; '.join(failures)}: put {name} into {folder} yourself, or {way_out}")


# ---------------------------------------------------------------------------------------------------- toys


def modes(name):
    """(centres, k x 2; deviation) of the Gaussians of a toy; None for the Swiss roll. Unknown: DataError.

    As in the authors' code: 8 on a circle of radius 2, deviation .02, everything divided by 1.414; or 25 on
    {-4, -2, 0, 2, 4}^2, deviation .05, everything divided by 2.828.
    """
    if name == "8gaussians":
        angle = torch.arange(8) * (math.pi / 4)
        return torch.stack([angle.cos(), angle.sin()], 1) * (2 / 1.414), 0.02 / 1.414
    if name == "25gaussians":
        side = torch.arange(-4.0, 5.0, 2.0)
        return torch.cartesian_prod(side, side) / 2.828, 0.05 / 2.828
    if name == "swissroll":
        return None
    raise DataError(f"there is no toy {name!r}: choose {', '.join(TOYS)}")


@functools.cache
def _modes_on(name, device):
    """modes(name), on a device: copied there once, as a CUDA graph can hold no copying from the CPU."""
    centres, deviation = modes(name)
    return centres.to(device), deviation


def _mixture(name, n, device):
    centres, deviation = _modes_on(name, device)
    which = torch.randint(len(centres), (n,), device=device)
    return centres[which] + deviation * torch.randn(n, 2, device=device)


def eight_gaussians(n, device="cpu"):
    """n points (float32, n x 2) of the 8 Gaussians (see `modes`), from the global generator of `device`."""
    return _mixture("8gaussians", n, device)


def twenty_five_gaussians(n, device="cpu"):
    """n points (float32, n x 2) of the 25 Gaussians (see `modes`), from the global generator of `device`."""
    return _mixture("25gaussians", n, device)


def swiss_roll(n, device="cpu"):
    """n points (float32, n x 2) of the Swiss roll, from the global generator of `device`.

    The authors' code takes scikit-learn's roll, (t cos t, 21 v, t sin t) with t = 1.5 pi (1 + 2u) and u, v
    uniform on [0, 1); adds noise of deviation .25 to each coordinate; keeps the first and the third; divides
    by 7.5. The second is thrown away there, so it is not drawn here.
    """
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, device=device))
    roll = torch.stack([t * t.cos(), t * t.sin()], 1)
    return (roll + 0.25 * torch.randn(n, 2, device=device)) / 7.5


TOYS = {"8gaussians": eight_gaussians, "25gaussians": twenty_five_gaussians, "swissroll": swiss_roll}


def toy_batches(sample, batch_size, device="cpu"):
    """Yield `(x,)` for ever: fresh points, float32 batch_size x 2, from one of the three above."""
    while True:
        yield (sample(batch_size, device),)


# -------------------------------------------------------------------------------------------------- images


def images(name, data_dir="data", size=None, train=True, cache_dir="."):
    """The images that `name` stands for: (uint8 N x C x size x size, int64 labels of length N or None).

    name   "cifar10", "mnist", "shapes", or the path of a folder of images (see `image_folder`, and
           `cache_dir` there), which has no labels
    size   pixels a side: by default 28 for MNIST and 32 otherwise. Shapes are drawn, and folders resized, to
           any size; CIFAR-10 and MNIST have only their own
    train  the training images, or the held-out ones: as published for CIFAR-10 and MNIST; 20,000 and 2,000
           shapes, from two seeds; of a folder every tenth file is held out

    An unknown name, a size that the data set does not have, any problem with the files: DataError.
    """
    sides = {"cifar10": 32, "mnist": 28}
    fitting = ", ".join([*(known for known, side in sides.items() if size in (None, side)), "shapes"])
    size = size or sides.get(name, 32)
    if size != sides.get(name, size):
        raise DataError(f"{name} is {sides[name]} x {sides[name]}, not {size} x {size}: choose {fitting} or a folder of "
                        f"images")
    if name == "cifar10":
        return cifar10(data_dir, train)
    if name == "mnist":
        return mnist(data_dir, train)
    if name == "shapes":
        return shapes(20_000, 0, size) if train else shapes(2_000, 1, size)
    if not os.path.isdir(name):
        raise DataError(f"no data set or folder is called {name!r}: choose {fitting} or a folder of images")
    return image_folder(name, size, cache_dir, train), None


def batches(images, batch_size, to_float, device="cpu", labels=None, resident=False):
    """Yield `(x,)`, or `(x, y)` where there are labels, for ever.

    images    uint8 N x C x H x W: a tensor, which moves to `device` once and is indexed there, or a (memory-
              mapped) array, which is indexed where it is, each batch then moving to `device`
    to_float  one of the conversions below; it is given the bytes of a batch, on `device`
    labels    int64, length N
    resident  a memory-mapped array moves to `device` too, which must have room for it

    Line 4 of Algorithm 1, "sample real data x ~ P_r": indices are drawn with replacement from the global
    generator of `device`. No permutation, epoch or position is kept, so where the training loop seeds that
    generator from (seed, iteration), a batch is a function of those two alone and a run can resume anywhere.
    Fewer images than a batch: DataError, at once.
    """
    if len(images) < batch_size:
        raise DataError(f"{len(images)} images are fewer than a batch of {batch_size}: lower --batch-size")
    if resident and isinstance(images, np.ndarray):
        images = torch.from_numpy(np.array(images))
    mapped = isinstance(images, np.ndarray)
    images = images if mapped else images.to(device)
    labels = None if labels is None else labels.to(device)

    def draw():  # apart, because a generator runs nothing, not even the check above, before its first batch
        while True:
            index = torch.randint(len(images), (batch_size,), device=device)
            x = torch.from_numpy(images[index.cpu().numpy()]).to(device) if mapped else images[index]
            yield (to_float(x),) if labels is None else (to_float(x), labels[index])

    return draw()


def in_order(images, batch_size, to_float, device="cpu", labels=None):
    """Yield every image once, in order, in batches as `batches` has them, but of `batch_size` or a few more: as
    many whole batches as there are share what is left over, because batch norm needs company. (Fewer images than
    `batch_size` are one batch; a single image, or none: DataError.)

    For a measure over a whole set, such as the critic's loss on held-out images.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} images are too few to measure anything on: add images")
    parts = max(len(images) // batch_size, 1)
    cuts = [len(images) * k // parts for k in range(parts + 1)]
    for i, end in zip(cuts, cuts[1:]):
        x = images[i:end]
        x = torch.from_numpy(x.copy()) if isinstance(x, np.ndarray) else x  # a mapped one is read-only
        x = to_float(x.to(device))
        yield (x,) if labels is None else (x, labels[i:end].to(device))


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what an array needs and nothing else: a pickle can call any function that it can name."""

    rebuild = np.empty(0).__reduce__()[0]  # wherever this numpy has it; the published pickles are old
    admitted = {
        ("numpy.core.multiarray", "_reconstruct"): rebuild,
        ("numpy._core.multiarray", "_reconstruct"): rebuild,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return self.admitted[module, name]


def _cifar10_files(source, names):
    """The bytes of the files `names`, from the published archive or from the folder that it unpacks to."""
    if source.is_dir():
        return [(source / name).read_bytes() for name in names]
    found = {}
    with gzip.open(source) as whole, tarfile.open(fileobj=whole) as archive:
        for member in archive:  # in no particular order
            name = member.name.rpartition("/")[2]
            if name in names and member.isfile():
                found[name] = archive.extractfile(member).read()
        whole.read()  # gzip compares its checksum at the end, and only there
    if len(found) < len(names):
        raise ValueError(f"it has no {min(set(names) - set(found))}")
    return [found[name] for name in names]


def cifar10(data_dir="data", train=True):
    """CIFAR-10: (images uint8 N x 3 x 32 x 32, labels int64 N), 50,000 for training or the other 10,000.

    Read from cifar-10-python.tar.gz in `data_dir`, else from cifar-10-batches-py, the folder that it unpacks
    to, else downloaded (170 MB). A file found there need only parse. The order is the published one,
    data_batch_1 to 5. No file and no network, a damaged archive, one of something else: DataError.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    source = Path(data_dir) / "cifar-10-python.tar.gz"
    if not os.path.exists(source):
        source = source.with_name("cifar-10-batches-py")
    if not os.path.exists(source):
        source = _download("cifar-10-python.tar.gz", CIFAR10_URLS, source.parent, "use --data shapes")
    pixels, labels = [], []
    try:
        for raw in _cifar10_files(source, names):
            batch = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()  # Python 2's strings are bytes
            x, y = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
            if x.dtype != np.uint8 or x.shape != (len(y), 3 * 32 * 32):
                raise ValueError("its images are not 3 x 32 x 32 bytes")
            if y.dtype.kind != "i" or y.min() < 0 or y.max() > 9:
                raise ValueError("its labels are not 0 to 9")
            pixels.append(x)
            labels.append(y)
    except Exception as error:  # a damaged archive or pickle can raise nearly anything
        raise DataError(f"{source} is damaged or not CIFAR-10 ({_reason(error)}): delete it, and it will be "
                        "downloaded again, or use --data shapes") from None
    pixels, labels = np.concatenate(pixels).reshape(-1, 3, 32, 32), np.concatenate(labels).astype(np.int64)
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def _idx(path, dimensions):
    """The contents of an IDX file of bytes, gzipped or not, as a uint8 tensor of so many dimensions.

    The format: 0, 0, 8 for bytes, the number of dimensions; each dimension, a big-endian 32-bit integer; the
    rest.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":  # by content: some browsers unpack a .gz file and leave its name
            raw = gzip.decompress(raw)
        if raw[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"it does not begin like an IDX file of bytes in {dimensions} dimensions")
        start = 4 + 4 * dimensions
        shape = [int.from_bytes(raw[i:i + 4], "big") for i in range(4, start, 4)]
        if len(raw) != start + math.prod(shape):
            raise ValueError(f"it has {len(raw)} bytes, where its header says {start + math.prod(shape)}")
        if dimensions == 3 and shape[1:] != [28, 28]:
            raise ValueError(f"its images are {shape[1]} x {shape[2]}, not 28 x 28")
    except Exception as error:  # zlib, gzip and the disk each have exceptions of their own
        raise DataError(f"{path} is damaged or not MNIST's ({_reason(error)}): delete it, and it will be "
                        "downloaded again, or use --data shapes") from None
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())


def mnist(data_dir="data", train=True):
    """MNIST: (images uint8 N x 1 x 28 x 28, labels int64 N), 60,000 for training or the other 10,000.

    Read from the published IDX files in `data_dir`, gzipped or not; what is not there is downloaded (11 MB).
    A file found there need only parse. No file and no network, a damaged file, one of something else:
    DataError.
    """
    parts = []
    for kind, dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
        path = Path(data_dir) / f"{'train' if train else 't10k'}-{kind}"
        if not os.path.exists(path):
            path = path.with_name(path.name + ".gz")
        if not os.path.exists(path):
            _download(path.name, MNIST_URLS, path.parent, "use --data shapes")
        parts.append(_idx(path, dimensions))
    pixels, labels = parts
    if len(pixels) != len(labels):
        raise DataError(f"{path} has {len(labels)} labels for {len(pixels)} images: delete the MNIST files, "
                        "and they will be downloaded again")
    return pixels[:, None], labels.long()


# -------------------------------------------------------------------------------------------------- shapes

SHAPE_NAMES = ["circle", "ring", "crescent", "drop", "heart", "square", "triangle", "cross", "star", "arrow"]


def _disc(x, y, cx, cy, radius):
    """Signed distance of points (x, y) from a disc, negative inside it."""
    return np.sqrt((x - cx) * (x - cx) + (y - cy) * (y - cy)) - radius


def _polygon(x, y, corners):
    """Signed distance of points (x, y) from a polygon, negative inside it."""
    nearest, inside = np.float32(np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)  # where on the edge
        dx, dy = px - along * ex, py - along * ey
        nearest = np.minimum(nearest, dx * dx + dy * dy)
        if ey:  # from a point inside, a ray to the right crosses an odd number of edges
            inside ^= ((ay > y) != (by > y)) & (px < py * (ex / ey))
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def _around(radii, turn=0.0):
    """Corners at these distances from the centre, at equal angles from `turn` radians off the top."""
    angles = [turn + math.pi / 2 + 2 * math.pi * k / len(radii) for k in range(len(radii))]
    return [(round(r * math.cos(a), 4), round(r * math.sin(a), 4)) for r, a in zip(radii, angles)]


POLYGONS = {
    "square": _around([1] * 4, math.pi / 4),
    "triangle": _around([1] * 3),
    "star": _around([1, 0.42] * 5),
    "cross": [(-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3), (-0.3, -0.95),
              (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3), (0.3, 0.95)],
    "arrow": [(0, 1), (-0.8, 0.1), (-0.28, 0.1), (-0.28, -0.95), (0.28, -0.95), (0.28, 0.1), (0.8, 0.1)],
}


def _distance(name, x, y):
    """Signed distance of points (x, y) from a shape that just fits the unit circle."""
    if name == "circle":
        return _disc(x, y, 0, 0, 0.85)
    if name == "ring":
        return np.abs(_disc(x, y, 0, 0, 0.7)) - 0.2
    if name == "crescent":  # one disc without another
        return np.maximum(_disc(x, y, 0, 0, 0.95), -_disc(x, y, 0.45, 0, 0.75))
    if name == "drop":  # a disc and the triangle under its two tangents from the tip
        tip = _polygon(x, y, [(0, 1), (-0.5375, -0.0833), (0.5375, -0.0833)])
        return np.minimum(_disc(x, y, 0, -0.35, 0.6), tip)
    if name == "heart":  # a square on its corner, with a disc on each of its upper sides
        lobes = np.minimum(_disc(x, y, -0.39, 0.26, 0.5515), _disc(x, y, 0.39, 0.26, 0.5515))
        return np.minimum(lobes, _polygon(x, y, [(0, -0.91), (0.78, -0.13), (0, 0.65), (-0.78, -0.13)]))
    return _polygon(x, y, POLYGONS[name])


def _turn(u):
    """Cosine and sine of u turns, rounded, as machines differ in the last digits and pixels should not."""
    return [np.round(f(2 * math.pi * u), 4).astype(np.float32) for f in (np.cos, np.sin)]


def _rgb(hue, saturation, value):
    """Colours, n x 3 x 1 x 1 and in 0..1, from hue, saturation and value, each of length n and in 0..1."""
    k = (np.array([5, 3, 1], np.float32) + 6 * hue[:, None]) % 6
    wedge = np.clip(np.minimum(k, 4 - k), 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * wedge))[:, :, None, None]


def shapes(n, seed=0, size=32):
    """n drawings of ten classes, made here: (images uint8 n x 3 x size x size, labels int64 n).

    Each is one of SHAPE_NAMES, filled and anti-aliased, at a random place, size, angle and colour: dark on a
    light background or light on a dark one, which shades from one hue into another. They depend on `seed`
    alone, from a generator of their own, and the first m are the same for every n >= m. Past a few rounded
    cosines there are only operations that IEEE 754 rounds correctly, so that the bytes are the same on every
    machine.
    """
    random = np.random.default_rng(seed)
    drawings, labels = [], []
    centres = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)  # of the pixels, on [-1, 1]
    across, up = centres[None, None, :], -centres[None, :, None]
    for done in range(0, n, 500):  # few at a time, so that the arrays stay in the processor's cache
        u = random.random((min(500, n - done), 14))[:, :, None, None]  # a row per image, a number per choice
        tilt, shade = _turn(u[:, 1]), _turn(u[:, 2])
        u = u.astype(np.float32)
        label = np.minimum(10 * u[:, 0, 0, 0], 9).astype(np.int64)

        # The pixel centres in the coordinates of the shape: moved, turned, scaled.
        radius = 0.45 + 0.4 * u[:, 3]
        x, y = across - (1 - radius) * (2 * u[:, 4] - 1), up - (1 - radius) * (2 * u[:, 5] - 1)
        x, y = (tilt[0] * x + tilt[1] * y) / radius, (tilt[0] * y - tilt[1] * x) / radius
        distance = np.empty(x.shape, np.float32)
        for i, name in enumerate(SHAPE_NAMES):
            distance[label == i] = _distance(name, x[label == i], y[label == i])
        cover = np.clip(0.5 - distance * radius * (size / 2), 0, 1)[:, None]  # nearly the share of each pixel

        # A light and a dark colour, of two hues; the background goes on into a third.
        u = u[:, :, 0, 0]
        light = 0.15 + 0.6 * u[:, 6], 0.85 + 0.15 * u[:, 7]  # saturation and value
        dark = 0.5 + 0.5 * u[:, 8], 0.1 + 0.4 * u[:, 9]
        swap = u[:, 10] < 0.5
        hue, other = u[:, 11], u[:, 11] + 0.2 + 0.6 * u[:, 12]
        shape = _rgb(hue, *np.where(swap, light, dark))
        saturation, value = np.where(swap, dark, light)
        near = _rgb(other, saturation, value)
        far = _rgb(other + 0.25 * (u[:, 13] - 0.5), saturation, 0.7 * value)
        ramp = np.clip(0.5 + 0.35 * (shade[0] * across + shade[1] * up), 0, 1)[:, None]
        ground = near + ramp * (far - near)
        drawings.append((255 * (ground + cover * (shape - ground)) + 0.5).astype(np.uint8))
        labels.append(label)
    return torch.from_numpy(np.concatenate(drawings)), torch.from_numpy(np.concatenate(labels))


# ------------------------------------------------------------------------------------------- image folders


def _image_files(folder):
    """[path, bytes, time of change] of each file in `folder` whose name ends like an image's, by path."""
    Image.init()
    endings = {ending for ending, format in Image.registered_extensions().items() if format in Image.OPEN}
    found = []
    for here, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if os.path.splitext(name)[1].lower() in endings and name[0] != ".":  # macOS makes ._x.jpg
                path = os.path.join(here, name)
                stat = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link that leads nowhere
                found.append([path, stat.st_size, stat.st_mtime_ns])
    return sorted(found)


def _square(path, size):
    """The largest centre square of an image file, resized: uint8 3 x size x size."""
    with Image.open(path) as image:
        if image.mode[0] in "IF":  # convert() would clip them, to white or to black
            raise ValueError(f"more than 8 bits a pixel, mode {image.mode}")
        image = ImageOps.exif_transpose(image).convert("RGB")
    side = min(image.size)
    if side < size:
        raise ValueError(f"{image.width} x {image.height} is smaller than {size}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


def _build(files, size, out):
    """Write the squares of `files` to the open file `out`; returns what had to be skipped, and why."""
    skipped, said, terminal = [], time.monotonic(), sys.stderr.isatty()
    for i, (path, _, _) in enumerate(files, 1):
        try:
            square = _square(path, size)
        except Exception as error:  # Pillow's many readers have many exceptions
            skipped.append(f"{path} ({_reason(error)})")
        else:
            out.write(square.tobytes())
        if i == len(files) or time.monotonic() - said > (0.2 if terminal else 30):
            said = time.monotonic()
            end = "\r" if terminal and i < len(files) else "\n"
            print(f"caching images: {i:,} of {len(files):,}", end=end, file=sys.stderr, flush=True)
    return skipped


def image_folder(folder, size, cache_dir=".", train=None):
    """The images in `folder` and its subfolders, by path: memory-mapped, uint8 N x 3 x size x size.

    Of each image that Pillow reads, the largest centre square, resized with the Lanczos filter (antialiased).
    With train=False every tenth file, the first included, with True the others, with None all. Files that
    cannot be read, and images whose short side is less than `size`, are skipped, counted and named on
    standard error.

    The bytes are cached in `cache_dir`, so that millions of images need no memory, as NAME.uint8; NAME.json
    says what is in it. Both are written under other names (*.partial, to be deleted if the power fails), then
    renamed, the .json last, so that an unfinished cache is never used. It is made again if it is damaged or
    the folder has changed (names, sizes or times). No folder, no image that can be used, no room for the
    cache: DataError.
    """
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}: give the path of a folder of images")
    folder, cache_dir = Path(folder).resolve(), Path(cache_dir)
    part = {None: "all", True: "train", False: "held-out"}[train]
    found = _image_files(folder)
    files = [f for i, f in enumerate(found) if train is None or (i % 10 > 0) == train]
    expected = {"folder": str(folder), "part": part, "size": size,
                "files": hashlib.sha256(json.dumps(files).encode()).hexdigest()}
    name = f"{folder.name}-{part}-{size}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    pixels, about = cache_dir / f"{name}.uint8", cache_dir / f"{name}.json"
    partial = cache_dir / f"{name}.{uuid.uuid4().hex}.partial"  # two processes may be at it
    try:
        if about.exists():
            try:
                known = json.loads(about.read_text())
                if known != {**expected, "count": known["count"]}:
                    raise ValueError("the folder has changed")
                if pixels.stat().st_size != known["count"] * 3 * size * size:
                    raise ValueError("its size is wrong")
                return np.memmap(pixels, np.uint8, "r", shape=(known["count"], 3, size, size))
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"making {pixels} again: {_reason(error)}", file=sys.stderr)
                about.unlink(missing_ok=True)
        cache_dir.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as out:
            skipped = _build(files, size, out)
        some = "; ".join(skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
        if found and not files:
            raise DataError(f"no image of {folder} is left for the {part} part (every tenth is held out): add images")
        if len(skipped) == len(files):
            some = f" ({some})" if some else ""
            raise DataError(f"{folder} ({part}) has no image that can be used{some}: add images of at least "
                            f"{size} x {size} pixels")
        if skipped:
            print(f"{len(skipped)} of {len(files)} images skipped: {some}", file=sys.stderr)
        count = len(files) - len(skipped)
        os.replace(partial, pixels)
        partial.write_text(json.dumps({**expected, "count": count}, indent=1))
        os.replace(partial, about)
        return np.memmap(pixels, np.uint8, "r", shape=(count, 3, size, size))
    except DataError:
        raise
    except OSError as error:
        reason = _reason(error)
        raise DataError(f"cannot cache {folder} in {cache_dir} ({reason}): choose another --out") from None
    finally:
        if partial.exists():  # Ctrl-C or an error came between
            partial.unlink()


# -------------------------------------------------------------------------------------------------- pixels


def from_bytes(x):
    """Bytes to [-1, 1]: 2 (x/255 - 1/2). The authors' CIFAR-10 DCGAN and 64 x 64 networks."""
    return 2 * (x.float() / 255 - 0.5)


def from_bytes_noisy(x):
    """Bytes to [-1, 1): 2 (x/256 - 1/2) + U[0, 1/128). The authors' CIFAR-10 ResNet.

    The noise is one grey level wide, so that the values are no longer discrete; it comes from the global
    generator of x's device.
    """
    x = x.float()
    return 2 * (x / 256 - 0.5) + torch.rand_like(x) / 128


def to_bytes(x, top=255):
    """[-1, 1] to bytes: (x + 1) top/2, clamped and truncated, as the authors have it.

    top is 255 for the CIFAR-10 DCGAN, 255.99 for the CIFAR-10 ResNet and 64 x 64. A ten-thousandth of a grey
    level is added, or with 255 rounding errors would take a quarter of the 256 bytes one down on their way
    through floats.
    """
    return ((x.float() + 1) * (top / 2) + 1e-4).clamp(0, 255).to(torch.uint8)


def unit_from_bytes(x):
    """Bytes to [0, 1]: x/255. MNIST, whose generator ends in a sigmoid."""
    return x.float() / 255


def unit_to_bytes(x):
    """[0, 1] to bytes: 255.99 x, clamped and truncated."""
    return (x.float() * 255.99).clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------- text

PAD, UNKNOWN = "`", "\ufffd"


def _text_files(name, data_dir):
    """Yield (path, open binary file) for each file of the text that `name` stands for."""
    billion, part = Path(data_dir) / BILLION_WORD, "training-monolingual.tokenized.shuffled"
    path = billion / part if name == "billion-word" else Path(name)
    if os.path.isdir(path):
        paths = [p for p in sorted(path.rglob("*"))
                 if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)]
    elif name != "billion-word":
        if not os.path.exists(path):
            raise DataError(f"no text is called {name!r}: choose billion-word, or a text file or folder")
        paths = [path]
    else:
        archive = Path(data_dir) / f"{BILLION_WORD}.tar.gz"
        if not os.path.exists(archive):
            _download(archive.name, BILLION_WORD_URLS, archive.parent, "give --data the path of a text file")
        with tarfile.open(archive, "r:gz") as members:  # read no further than the lines wanted
            for member in members:
                if member.isfile() and f"{part}/news.en-" in member.name:
                    yield archive, members.extractfile(member)
        return
    for path in paths:
        with open(path, "rb") as file:
            yield path, file


def _lines(name, data_dir):
    """Yield the lines that are not empty of the text that `name` stands for."""
    path = f"{Path(data_dir) / BILLION_WORD}.tar.gz" if name == "billion-word" else name
    try:
        for path, file in _text_files(name, data_dir):
            for line in io.TextIOWrapper(file, "utf-8-sig"):  # -sig: some editors begin a file with a mark
                if line.strip():
                    yield line.rstrip("\n")
    except DataError:
        raise
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: convert it, for instance with iconv -t utf-8") from None
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({_reason(error)}): replace it by a whole one") from None


def text(name, data_dir="data", max_lines=10_000_000, length=32, alphabet_size=2048):
    """Sentences as codes: (integers N x length, alphabet), where alphabet[code] is the character.

    name           "billion-word": that benchmark's folder in `data_dir`, else its archive there, else
                   downloaded (1.7 GB); or the path of a UTF-8 text file, one sentence a line, or of a folder
                   of such files
    max_lines      how many to take, in the order of the files, empty ones not counted
    length         longer lines are cut to so many characters, shorter ones padded with the backquote, whose
                   code a backquote in the text shares (the authors' code)
    alphabet_size  at most: code 0 is "unknown", U+FFFD; from 1 the most frequent characters, pads counted,
                   the most frequent first and equals by code point. (The authors' code, in Python 2, has
                   bytes.)

    The codes are uint8 for up to 256 characters, int16 up to 32,768, else int32. No such file, no lines in
    it, not UTF-8, a damaged archive, no network: DataError.
    """
    rows = (line[:length].ljust(length, PAD) for line in _lines(name, data_dir))
    rows = itertools.islice(rows, max_lines)

    def numbers(chunk):  # the code points
        return np.frombuffer(chunk.encode("utf-32-le"), "<u4")

    # Until the alphabet is known, text stays strings: a byte a character where it is plain, not four.
    chunks, counts = [], np.zeros(sys.maxunicode + 1, np.int64)
    while chunk := "".join(itertools.islice(rows, 10_000)):
        chunks.append(chunk)
        counts += np.bincount(numbers(chunk), minlength=len(counts))
    if not chunks:
        raise DataError(f"{name} has no lines of text: give the path of a text file, one sentence a line")
    counts[ord(UNKNOWN)] = 0
    ranked = np.argsort(-counts, kind="stable")[:min(alphabet_size - 1, np.count_nonzero(counts))]
    alphabet = UNKNOWN + "".join(map(chr, ranked))

    smallest = np.uint8 if len(alphabet) <= 256 else np.int16 if len(alphabet) <= 32_768 else np.int32
    code = np.zeros(len(counts), smallest)
    code[ranked] = np.arange(1, len(alphabet))
    codes = np.concatenate([code[numbers(chunk)] for chunk in chunks])
    return torch.from_numpy(codes.reshape(-1, length)), alphabet


def decode(codes, alphabet):
    """The strings that codes (integers N x length) stand for, pads included: a list of N."""
    return ["".join(alphabet[code] for code in row) for row in codes.tolist()]
