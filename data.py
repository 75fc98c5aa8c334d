"""Load every data set: bytes and text in, tensors out.

Images stay bytes (uint8, channels first) until a batch of them becomes floats. Archives are looked
for in `data_dir`, else downloaded, and read without unpacking. A problem with a file is a DataError.
"""
import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import math
import os
import pickle
import re
import sys
import tarfile
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps


class DataError(OSError):
    """A problem with data. The message says what is wrong and what to do."""


# ---- images, batches, pixels ----

def images(name, data_dir="data", size=None, train=True, leave_out=None):
    """Return the images that `name` stands for: (uint8 N x C x size x size, int64 labels or None).

    name is "cifar10" (32 x 32), "mnist" (28 x 28), "shapes" or a folder of images, which has no labels.
    train=False gives the held-out part, a tenth of a folder. leave_out: a subfolder to skip, --out.
    """
    if name == "cifar10" and size in (None, 32):
        return cifar10(data_dir, train)
    if name == "mnist" and size in (None, 28):
        return mnist(data_dir, train)
    size = size or 32
    if name == "shapes":
        return shapes(20_000, 0, size) if train else shapes(2_000, 1, size)
    if not os.path.isdir(name):
        sets = {32: "cifar10, shapes"}.get(size, "shapes")
        raise DataError(f"no data set or folder is called {name!r} at {size} x {size}: choose {sets} or a folder")
    return image_folder(name, size, Path(data_dir, "cache"), train, leave_out), None


def batches(images, batch_size, to_float, device="cpu", labels=None):
    """Yield x, or (x, y) where there are labels, without end: line 4 of Algorithm 1.

    images are uint8 N x C x H x W. They move to `device` unless they would fill half of a GPU's memory.
    Indices are drawn with replacement, from the global RNG of `device`.
    """
    if len(images) < batch_size:
        raise DataError(f"{len(images)} examples are fewer than a batch of {batch_size}: lower --batch-size")
    images, device = torch.as_tensor(images), torch.device(device)
    if device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        images = images.to(device)
    if labels is not None:
        labels = labels.to(device)

    def draw():  # apart, so that the checks above do not wait for the first batch
        while True:
            index = torch.randint(len(images), (batch_size,), device=device)
            x = to_float(images[index.to(images.device)].to(device))
            yield x if labels is None else (x, labels[index])
    return draw()


def in_order(images, batch_size, to_float, device="cpu", labels=None):
    """Yield every image once, in order, in batches like those of `batches`."""
    images, parts = torch.as_tensor(images), max(len(images) // batch_size, 1)
    cuts = [len(images) * k // parts for k in range(parts + 1)]  # a tiny last batch breaks batch norm
    for i, end in zip(cuts, cuts[1:]):
        x = to_float(images[i:end].to(device))
        yield x if labels is None else (x, labels[i:end].to(device))


def from_bytes(x):
    """Convert bytes to [-1, 1]: 2 (x/255 - 1/2). The CIFAR-10 DCGAN and 64 x 64 networks."""
    return 2 * (x.float() / 255 - 0.5)


def from_bytes_noisy(x):
    """Convert bytes to [-1, 1): 2 (x/256 - 1/2) + U[0, 1/128). The CIFAR-10 ResNet."""
    return 2 * (x.float() / 256 - 0.5) + torch.rand_like(x, dtype=torch.float32) / 128


def to_bytes(x, top=255):
    """Convert [-1, 1] to bytes: (x + 1) top/2. top is 255.99 for the CIFAR-10 ResNet and 64 x 64."""
    # Without the 1e-4 rounding errors would lower a quarter of the bytes on the way there and back.
    return ((x.float() + 1) * (top / 2) + 1e-4).clamp(0, 255).to(torch.uint8)


def unit_from_bytes(x):
    """Convert bytes to [0, 1]: x/255. MNIST, whose generator ends in a sigmoid."""
    return x.float() / 255


def unit_to_bytes(x):
    """Convert [0, 1] to bytes: 255.99 x, clamped and truncated."""
    return (x.float() * 255.99).clamp(0, 255).to(torch.uint8)


# ---- toys and shapes, made here ----

@functools.cache  # so that the centres are copied to a GPU once
def modes(name, device="cpu"):
    """Return (centres, k x 2; deviation) of the Gaussians of a toy, or None for the Swiss roll."""
    if name == "8gaussians":  # 8 on a circle of radius 2, all divided by 1.414
        angle = torch.arange(8) * (math.pi / 4)
        return (torch.stack([angle.cos(), angle.sin()], 1) * (2 / 1.414)).to(device), 0.02 / 1.414
    if name == "25gaussians":  # 25 on {-4, -2, 0, 2, 4}^2, all divided by 2.828
        side = torch.arange(-4.0, 5.0, 2.0)
        return (torch.cartesian_prod(side, side) / 2.828).to(device), 0.05 / 2.828


def _mixture(name, n, device="cpu"):
    """Draw n points, float32 n x 2, from the global RNG of `device`."""
    centres, deviation = modes(name, device)
    which = torch.randint(len(centres), (n,), device=device)
    return centres[which] + deviation * torch.randn(n, 2, device=device)


def swiss_roll(n, device="cpu"):
    """Draw n points of scikit-learn's Swiss roll, without its depth and scaled, as the authors do."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, device=device))
    roll = torch.stack([t * t.cos(), t * t.sin()], 1)
    return (roll + 0.25 * torch.randn(n, 2, device=device)) / 7.5


TOYS = {name: functools.partial(_mixture, name) for name in ("8gaussians", "25gaussians")}
TOYS["swissroll"] = swiss_roll


def toy_batches(sample, batch_size, device="cpu"):
    """Yield x without end: new points from one of TOYS."""
    while True:
        yield sample(batch_size, device)


def _regular(*radii):
    """Return corners at these distances from the centre, at equal angles: k x 2."""
    angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
    return np.array(radii)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], 1)


SHAPES = {
    "circle": _regular(*[1] * 40), "triangle": _regular(1, 1, 1), "diamond": _regular(1, 0.5, 1, 0.5),
    "square": _regular(*[1] * 4), "pentagon": _regular(*[1] * 5), "hexagon": _regular(*[1] * 6),
    "star": _regular(*[1, 0.42] * 5), "cross": _regular(*[1, 0.35] * 4), "half": _regular(*[1] * 20)[:11],
    "arrow": np.array([[0, -1], [0.8, 0], [0.3, 0], [0.3, 1], [-0.3, 1], [-0.3, 0], [-0.8, 0]]),
}


def shapes(n, seed=0, size=32):
    """Draw n pictures of ten classes: (uint8 n x 3 x size x size, labels int64 n).

    Each is one of SHAPES at a random place, size, angle and colour, on a shaded background.
    """
    random, corners = np.random.default_rng(seed), list(SHAPES.values())
    images, labels = np.empty((n, 3, size, size), np.uint8), np.empty(n, np.int64)
    across = (np.arange(size) + 0.5) * (2 / size) - 1
    for i in range(n):
        kind, scale, turn, shade, swap, *place = random.random(7)
        labels[i], radius, turn, shade = 10 * kind, 0.45 + 0.4 * scale, 2 * math.pi * turn, 2 * math.pi * shade
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        outline = radius * corners[labels[i]] @ rotation + (1 - radius) * (2 * np.array(place) - 1)
        mask = Image.new("L", (4 * size, 4 * size))  # reduced below, for smooth edges
        ImageDraw.Draw(mask).polygon(((outline + 1) * 2 * size - 0.5).ravel().tolist(), fill=255)
        front, near, far = 110 * random.random((3, 3, 1, 1))  # dark on light, or the reverse
        ramp = 0.5 + 0.35 * (math.cos(shade) * across + math.sin(shade) * across[:, None])
        ground = 145 + near + ramp * (far - near)
        picture = ground + np.asarray(mask.reduce(4)) * ((front - ground) / 255)
        images[i] = picture if swap < 0.5 else 255 - picture
    return torch.from_numpy(images), torch.from_numpy(labels)


# ---- CIFAR-10 and MNIST ----

class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle numpy arrays only. A plain unpickler can run arbitrary code."""
    def find_class(self, module, name):
        module = module.replace("numpy.core.", "numpy._core.")  # as it was called before numpy 2
        needed = ("_reconstruct", "_frombuffer", "scalar", "ndarray", "dtype", "encode")
        if name not in needed or module.split(".")[0] not in ("numpy", "_codecs"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return super().find_class(module, name)


def cifar10(data_dir="data", train=True):
    """Return CIFAR-10: (uint8 N x 3 x 32 x 32, int64 labels): 50,000 for training or the other 10,000.

    Reads the published archive in `data_dir`, however compressed or unpacked, or downloads it (170 MB).
    """
    source = _get(data_dir, "cifar-10-python.tar.gz", "use --data shapes",
                  "cifar-10-python.t*", "cifar-10-batches-py", "*/cifar-10-batches-py")
    names, found = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"], {}
    try:
        for path, file in _contents(source):
            name = os.path.basename(path)
            if name in names and name not in found:  # some archives have everything twice
                batch = _ArrayUnpickler(io.BytesIO(file.read(LARGEST)), encoding="latin1").load()
                x, y = (batch.get(key, batch.get(key.encode())) for key in ("data", "labels"))
                found[name] = x.view(np.uint8).reshape(len(y), 3, 32, 32), np.array(y, np.int64)
        pixels, labels = map(np.concatenate, zip(*[found[name] for name in names]))
    except Exception as error:  # a damaged archive or pickle can raise nearly anything
        raise DataError(f"{source} is damaged or not CIFAR-10 ({error}): delete it to download it, "
                        "or use --data shapes") from None
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def mnist(data_dir="data", train=True):
    """Return MNIST: (uint8 N x 1 x 28 x 28, int64 labels): 60,000 for training or the other 10,000.

    Reads the published files in `data_dir` or below, gzipped or not, or downloads them (11 MB).
    """
    part, arrays = "train" if train else "t10k", []
    for name, shape in (f"{part}-images-idx3-ubyte", [28, 28]), (f"{part}-labels-idx1-ubyte", []):
        either = name.replace("-idx", "[-.]idx")
        path = _get(data_dir, f"{name}.gz", "give --data-dir the folder that has it",
                    f"{either}*", f"mnist/{either}*", f"MNIST/raw/{either}*")
        try:
            (raw,) = [file.read(LARGEST) for _, file in _contents(path)]
            # The format: bytes 0, 0, 8, number of dimensions; each dimension, big-endian; the elements.
            n, elements = int.from_bytes(raw[4:8], "big"), bytearray(raw[8 + 4 * len(shape):])
            arrays.append(torch.frombuffer(elements, dtype=torch.uint8).reshape(n, *shape))
        except Exception as error:  # gzip, zlib and numpy have many
            raise DataError(f"{path} is damaged or not MNIST's ({error}): delete it to download it") from None
    return arrays[0][:, None], arrays[1].long()


# ---- folders of images ----

def image_folder(folder, size, cache_dir, train=None, leave_out=None):
    """Return the images in `folder` and below: memory-mapped, uint8 N x 3 x size x size.

    Each is the largest centre square, resized with the Lanczos filter, on white where transparent.
    Equal pictures are used once. Every tenth is held out: train=False returns those, True the others.
    They are cached in `cache_dir`, under a digest of the files' names, sizes and times.
    """
    files, unused = _files(folder, [cache_dir, leave_out])
    name = os.path.realpath(folder)
    stem = f"{Path(name).name}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-{size}"
    cache = Path(cache_dir, f"{stem}-{hashlib.sha256(repr(files).encode()).hexdigest()[:16]}.uint8")
    with warnings.catch_warnings(action="ignore"):  # Pillow's on odd files, torch's on read-only arrays
        if not cache.exists():
            _make(cache, _squares(files, unused, size))
            for old in set(cache.parent.glob(f"{stem}-*.uint8")) - {cache}:
                old.unlink(missing_ok=True)
        pixels = torch.from_numpy(np.memmap(cache, np.uint8, "r").reshape(-1, 3, size, size))
    held_out = math.ceil(len(pixels) / 10)
    return {None: pixels, True: pixels[:-held_out], False: pixels[-held_out:]}[train]


def _squares(files, unused, size):
    """Yield the centre crop of each of `files`, every tenth last. Report files that were not used."""
    seen = set()
    files = [file for i, file in enumerate(files) if i % 10] + files[::10]
    for i, (path, *_) in enumerate(files, 1):
        if i % 10_000 == 0:
            print(f"caching images: {i:,} of {len(files):,}", file=sys.stderr)
        try:
            square = _square(path, size)
            if (digest := hashlib.sha256(square).digest()) in seen:
                raise DataError("duplicates")
        except Exception as error:  # Pillow's many readers have many exceptions
            ending = os.path.splitext(path)[1][1:].upper() or "other"
            kinds = {DataError: str(error), FileNotFoundError: "broken links"}
            kind = kinds.get(type(error), f"{ending}, which Pillow cannot read here")
            unused.setdefault(kind, []).append(path)
        else:
            seen.add(digest)
            yield square
    summary = f"{len(seen):,} of {len(files):,} files used"
    for kind, paths in unused.items():
        summary += f"; {len(paths):,} {kind} ({paths[0]})"
    if len(seen) <= 10:  # a tenth is a single image, or none
        raise DataError(f"too few images to hold out a tenth: {summary}: give 11 of {size} x {size} pixels or "
                        "more, and export databases (LMDB) and arrays to image files first")
    if unused:
        print(summary, file=sys.stderr)


def _square(path, size):
    """Return the largest centre square of an image file, resized: uint8 3 x size x size."""
    formats = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"]  # no EPS: it runs programs
    image = Image.open(path, formats=formats)
    if image.mode[0] in "IF" or re.search(r";16|ppm.*, \d{4,}\)\)", str(image.tile)):  # 16-bit
        raise DataError("of more than 8 bits per channel")
    image = ImageOps.exif_transpose(image)
    if min(image.size) < size:
        raise DataError(f"smaller than {size} x {size}")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


# ---- text ----

PAD, UNKNOWN = "`", "\ufffd"


def text(name, data_dir="data", max_lines=10_000_000, length=32, alphabet_size=2048):
    """Return sentences as codes: (integers N x length, alphabet), where alphabet[code] is a character.

    name is "billion-word" (its folder or archive in `data_dir`, or 1.7 GB to download), or a UTF-8 text
    file, one sentence a line, or a folder of those. Empty lines are skipped. Long lines are truncated,
    short ones padded with backquotes. Code 0 is "unknown". Then follow the most frequent characters.
    """
    def numbers(chunk):  # the code points
        return np.frombuffer(chunk.encode("utf-32-le"), "<u4")

    lines = itertools.islice(_lines(name, data_dir), max_lines)
    # Until the alphabet is known, text stays strings: mostly a byte a character, not four.
    chunks, counts = [], np.zeros(sys.maxunicode + 1, np.int64)
    while chunk := "".join(line[:length].ljust(length, PAD) for line in itertools.islice(lines, 10_000)):
        chunks.append(chunk)
        counts += np.bincount(numbers(chunk), minlength=len(counts))
    counts[ord(UNKNOWN)] = 0
    ranked = np.argsort(-counts, kind="stable")[:min(alphabet_size - 1, np.count_nonzero(counts))]
    alphabet = UNKNOWN + "".join(map(chr, ranked))
    code = np.zeros(len(counts), np.min_scalar_type(-len(alphabet)))
    code[ranked] = np.arange(1, len(alphabet))
    codes = np.concatenate([code[numbers(chunk)] for chunk in chunks])
    return torch.from_numpy(codes.reshape(-1, length)), alphabet


def decode(codes, alphabet):
    """Return the strings that codes (integers N x length) stand for, pads included: a list of N."""
    return ["".join(alphabet[code] for code in row) for row in codes.tolist()]


def _lines(name, data_dir):
    """Yield the lines that are not empty of the text that `name` stands for."""
    source, part = Path(name), ""
    if name == "billion-word":
        part, archive = "training-monolingual.tokenized.shuffled", f"{BILLION_WORD}.tar.gz"
        source = _get(data_dir, archive, "give --data the path of a text file",
                      f"{BILLION_WORD}/{part}", archive)
    elif not source.exists():
        raise DataError(f"no text is called {name!r}: choose billion-word, a text file or a folder")
    path, empty = source, True
    try:
        for path, file in _contents(source):
            if part not in path:
                continue
            lines = io.TextIOWrapper(file, "utf-8-sig")  # -sig: skip a byte order mark
            while line := lines.readline(LARGEST):
                if len(line) == LARGEST or "\0" in line:
                    raise ValueError(f"it has NULs, or a line of {LARGEST:,} characters or more")
                if line.strip():
                    yield line.rstrip("\n")
                    empty = False
    except Exception as error:  # gzip, tar, zlib and the disk each have exceptions of their own
        raise DataError(f"{path} is damaged or not UTF-8 text ({error}): replace it, or convert "
                        "it, for instance with iconv -f utf-16 -t utf-8") from None
    if empty:
        raise DataError(f"{source} has no lines of text: give --data a text file, one sentence a line")


# ---- files and downloads ----

LARGEST = 100_000_000  # limit on bytes per array file and characters per line. Published: 47 million
TOOLS = {"__macosx", "@eadir", "thumbs.db", "thumbnails", "desktop.ini", "lost+found", "$recycle.bin"}
BILLION_WORD = "1-billion-word-language-modeling-benchmark-r13output"
CIFAR10, MNIST = "https://www.cs.toronto.edu/~kriz/", "https://ossci-datasets.s3.amazonaws.com/mnist/"
DOWNLOADS = {  # name: (address, sha256)
    "cifar-10-python.tar.gz": (CIFAR10, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    "train-images-idx3-ubyte.gz": (MNIST, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": (MNIST, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": (MNIST, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": (MNIST, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    f"{BILLION_WORD}.tar.gz": ("http://www.statmt.org/lm-benchmark/", None),  # none is published
}


def _files(folder, leave_out=()):
    """Return (path, bytes, time of change) of every file in `folder` and below, and {reason: paths unused}.

    Links are followed, but nothing counts twice. Hidden files, TOOLS, `leave_out`, pipes do not count.
    """
    folder, found, unused = Path(folder).resolve(), [], {}
    known = (folder, *folder.parents, *filter(None, leave_out))
    seen = {os.stat(path)[1:3] for path in known if os.path.exists(path)}  # inodes and devices
    for here, folders, names in os.walk(folder, followlinks=True):
        inside, folders[:] = sorted(folders + names), []
        if here != str(folder) and {"config.json", "log.csv"} <= set(names):
            unused.setdefault("training runs, not data", []).append(here)
            continue
        for name in inside:
            path = os.path.join(here, name)
            about = os.stat(path) if os.path.exists(path) else os.lstat(path)  # for broken links
            if name[0] == "." or name.lower() in TOOLS or about[1:3] in seen:
                continue
            seen.add(about[1:3])
            if os.path.isdir(path):
                folders.append(name)
            elif os.path.isfile(path) or os.path.islink(path):
                found.append((path, about.st_size, about.st_mtime_ns))
    return sorted(found), unused


def _contents(path):
    """Yield (name, open file) of a file, or of each one in a folder or tar archive, uncompressed."""
    if os.path.isdir(path):
        for file, *_ in _files(path)[0]:
            yield from _contents(file)
    elif not os.path.isfile(path):
        raise OSError("not a regular file")
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield f"{path}/{member.name}", archive.extractfile(member)
            while rest := archive.fileobj.read(1 << 20):  # tar stops before gzip's checksum
                if rest.strip(b"\0"):
                    raise ValueError("it is damaged in the middle")
    else:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # names may say otherwise
        with (gzip.open if packed else open)(path, "rb") as file:
            yield str(path), file


def _get(folder, name, way_out, *patterns):
    """Return the first path in `folder` that fits one of `patterns`, or else download `name`."""
    for pattern in patterns:
        for path in sorted(Path(folder).glob(pattern)):
            return path
    address, sha256 = DOWNLOADS[name]

    def download():
        digest, start = hashlib.sha256(), None
        print(f"downloading {address}{name} into {folder}", file=sys.stderr)
        try:
            with urllib.request.urlopen(address + name, timeout=30) as reply:
                while chunk := reply.read(1 << 20):
                    digest.update(chunk)
                    start = start or chunk[:2]
                    yield chunk
            if start != b"\x1f\x8b" or reply.length or sha256 not in (None, digest.hexdigest()):
                raise ValueError("truncated or not the published file, so it was discarded")
        except Exception as error:  # urllib and http.client have many
            raise DataError(f"cannot download {address}{name} ({error}): put {name} into "
                            f"{folder} yourself, or {way_out}") from None
    _make(Path(folder, name), download())
    return Path(folder, name)


def _make(path, chunks):
    """Write `chunks` into the file `path`, atomically. Other processes wait until it is there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(".lock"), "w") as lock:
            with contextlib.suppress(ImportError, OSError):  # Windows, some network disks
                import fcntl
                fcntl.flock(lock, fcntl.LOCK_EX)
                for left in path.parent.glob(".*.partial"):  # by a process that was killed
                    left.unlink()
            if not path.exists():
                with open(partial, "wb") as out:
                    out.writelines(chunks)
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(partial, path)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot write {path} ({error}): choose another --data-dir") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
