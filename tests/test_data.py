"""Tests of data.py: what comes out is what went in, and every bad file gets one line."""
import gzip
import hashlib
import http.server
import io
import math
import os
import pickle
import random
import struct
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data


def refused(call, *words):
    """Check that `call` ends in a DataError of one line with `words` in it; returns the line."""
    with pytest.raises(data.DataError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line
    return line


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def visible(folder):
    return sorted(set(os.listdir(folder)) - {".lock"})


# ---- toys ----

R, D = 2 / 1.414, 2 / 1.414 * math.sqrt(0.5)
CENTRES = {
    "8gaussians": ([[R, 0], [D, D], [0, R], [-D, D], [-R, 0], [-D, -D], [0, -R], [D, -D]], 0.02 / 1.414),
    "25gaussians": ([[i / 2.828, j / 2.828] for i in (-4, -2, 0, 2, 4) for j in (-4, -2, 0, 2, 4)], 0.05 / 2.828),
}


@pytest.mark.parametrize("name", CENTRES)
def test_gaussians(name):
    """Points lie about the centres, equally many at each, with Gaussian residuals of the deviation."""
    torch.manual_seed(0)
    centres, deviation = torch.tensor(CENTRES[name][0]), CENTRES[name][1]
    assert torch.allclose(data.modes(name)[0], centres, atol=1e-6) and data.modes(name)[1] == deviation
    x = data.TOYS[name](50_000)
    assert x.shape == (50_000, 2) and x.dtype == torch.float32
    nearest = torch.cdist(x, centres).argmin(1)
    share = torch.bincount(nearest, minlength=len(centres)) / len(x)
    assert (share * len(centres) - 1).abs().max() < 5 * math.sqrt(len(centres) / len(x))
    residual = (x - centres[nearest]) / deviation
    assert (residual.std(0) - 1).abs().max() < 0.02
    assert residual.mean(0).abs().max() < 0.02
    assert abs((residual**4).mean() / 3 - 1) < 0.05  # a Gaussian's fourth moment


def test_swiss_roll():
    torch.manual_seed(0)
    x = data.swiss_roll(200_000)
    # For t uniform on [1.5 pi, 4.5 pi]: E[t cos t] = 2, E[t sin t] = 2 / (3 pi), E[t^2] = 9.75 pi^2.
    assert torch.allclose(x.mean(0), torch.tensor([2.0, 2 / (3 * math.pi)]) / 7.5, atol=0.01)
    assert abs((x**2).sum(1).mean() * 7.5**2 / (9.75 * math.pi**2 + 2 * 0.25**2) - 1) < 0.005
    # The noise: how far points are from the curve, at right angles to it, its two ends left out.
    t = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 3000)
    away, which = torch.cdist(x[:5000], torch.stack([t * t.cos(), t * t.sin()], 1) / 7.5).min(1)
    away = away[(which > 30) & (which < 2970)]
    assert abs(away.square().mean().sqrt() / (0.25 / 7.5) - 1) < 0.04
    assert data.modes("swissroll") is None
    assert torch.bincount(which // 300, minlength=10).min() > 400  # t is uniform


def test_toys_come_from_the_global_generator():
    for name, toy in data.TOYS.items():
        torch.manual_seed(3)
        first, second = toy(5), toy(5)
        torch.manual_seed(3)
        stream = data.toy_batches(toy, 5, "cpu")
        x, y = next(stream), next(stream)
        assert torch.equal(x, first) and torch.equal(y, second) and not torch.equal(x, y)


# ---- CIFAR-10 ----

def python2_string(raw):
    return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw


def python2_batch(pixels, labels, dtype=b"u1"):
    """A batch of CIFAR-10 as Python 2 and the numpy of its day pickled it, instruction by instruction."""
    kind = (b"cnumpy\ndtype\n" + python2_string(dtype) + b"K\x00K\x01\x87R"
            b"(K\x03" + python2_string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb")
    shape = b"".join(b"J" + struct.pack("<i", side) for side in pixels.shape) + b"\x86"
    array = (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
             b"K\x00\x85" + python2_string(b"b") + b"\x87R"
             b"(K\x01" + shape + kind + b"\x89" + python2_string(pixels.tobytes()) + b"tb")
    numbers = b"](" + b"".join(b"J" + struct.pack("<i", label) for label in labels) + b"e"
    return (b"\x80\x02}(" + python2_string(b"batch_label") + python2_string(b"a batch")
            + python2_string(b"labels") + numbers + python2_string(b"data") + array + b"u.")


def tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


@pytest.fixture
def cifar(tmp_path):
    """(folder, pixels, labels, files) of a tiny archive: 5 x 3 training images, then 3 for testing."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 3, 3072), np.uint8)
    labels = rng.integers(0, 10, (6, 3))
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    batches = dict(zip(names, (python2_batch(x, y.tolist()) for x, y in zip(pixels, labels))))
    order = ["data_batch_4", "test_batch", "data_batch_1", "data_batch_5", "data_batch_3", "data_batch_2"]
    files = {"cifar-10-batches-py/batches.meta": b"not needed"}
    files |= {f"cifar-10-batches-py/{name}": batches[name] for name in order}
    tar(tmp_path / "cifar-10-python.tar.gz", files)
    return tmp_path, torch.from_numpy(pixels), torch.from_numpy(labels), files


def check_cifar(folder, pixels, labels):
    x, y = data.cifar10(folder)
    assert x.dtype == torch.uint8 and y.dtype == torch.int64
    assert torch.equal(x, pixels[:5].reshape(15, 3, 32, 32)) and torch.equal(y, labels[:5].reshape(15))
    x, y = data.images("cifar10", folder, train=False)
    assert torch.equal(x, pixels[5].reshape(3, 3, 32, 32)) and torch.equal(y, labels[5])


@pytest.mark.parametrize("name, mode", [("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.xz", "w:xz"), ("tar.bz2", "w:bz2"),
                                        ("tar", "w"), ("tar.gz", "w")])
@pytest.mark.parametrize("places", [[""], ["./", "./copy/"]])
def test_cifar_archive(cifar, name, mode, places):
    folder, pixels, labels, files = cifar
    (folder / "cifar-10-python.tar.gz").unlink()
    packed = {place + file: raw for place in places for file, raw in files.items()}
    tar(folder / f"cifar-10-python.{name}", packed, mode)
    check_cifar(folder, pixels, labels)
    assert len(os.listdir(folder)) == 1  # nothing unpacked


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-py", "unpacked"])
@pytest.mark.parametrize("protocol, encoding", [(None, ""), (2, "bytes"), (2, "latin1"), (4, "bytes"), (5, "latin1")])
def test_cifar_folder_and_pickled_again(cifar, inside, protocol, encoding):
    folder, pixels, labels, files = cifar
    (folder / "cifar-10-python.tar.gz").unlink()
    for name, raw in files.items():
        if protocol and "meta" not in name:
            raw = pickle.dumps(pickle.loads(raw, encoding=encoding), protocol)
        write(folder / inside / name, raw)
    check_cifar(folder, pixels, labels)


def test_cifar_bad_archives(cifar, tmp_path):
    folder, pixels, _, files = cifar
    archive, trap, x = folder / "cifar-10-python.tar.gz", tmp_path / "trap", pixels[5].numpy()
    whole = archive.read_bytes()
    raw = bytearray(gzip.decompress(whole))
    end = raw.index(b"cifar-10-batches-py/data_batch_2")  # the last one, which the test set does not need
    raw[end:end + 512] = os.urandom(512)
    for bad in (b"", whole[:len(whole) // 2], b"<html>404</html>" * 999, gzip.compress(b"hello" * 999),
                whole[:3000] + bytes(99) + whole[3099:], gzip.compress(raw)):
        archive.write_bytes(bad)
        refused(lambda: data.cifar10(folder, train=False), str(archive), "damaged or not CIFAR-10", "delete it",
                "--data shapes")
    good = files["cifar-10-batches-py/test_batch"]
    calls = [f"cos\nmkdir\n(S'{trap}'\ntR.", f"cnumpy\nfromfile\n(S'{trap}'\ntR.",
             f"c__builtin__\neval\n(S'__import__(\"os\").mkdir(\"{trap}\")'\ntR."]
    for bad, words in ([(call.encode(), "which no array needs") for call in calls]
                       + [(bad, "damaged or not CIFAR-10") for bad in (
                           b"", good[:500], b"\x80\x02]." + good, b"\x80\x02}.", python2_batch(x, [1, 2]),
                           python2_batch(x[:, :768], [1, 2, 3]))]):
        tar(archive, {**files, "cifar-10-batches-py/test_batch": bad})
        refused(lambda: data.cifar10(folder, train=False), words)
    tar(archive, {"holiday/photo.jpg": b"x"})
    refused(lambda: data.cifar10(folder), "data_batch_1")
    assert not trap.exists()


# ---- MNIST ----

def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.fixture
def digits(tmp_path):
    """(folder, pixels, labels): four MNIST files, gzipped or not, whatever they are called."""
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (5, 28, 28), np.uint8), np.array([3, 1, 4, 1, 5], np.uint8)
    write(tmp_path / "train-images-idx3-ubyte.gz", gzip.compress(idx(pixels)))
    write(tmp_path / "train-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    write(tmp_path / "t10k-images-idx3-ubyte", idx(pixels[::-1]))
    write(tmp_path / "t10k-labels-idx1-ubyte.gz", idx(labels[::-1]))  # unpacked, but not renamed
    return tmp_path, torch.from_numpy(pixels), torch.from_numpy(labels)


@pytest.mark.parametrize("inside", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("dot", "-.")
@pytest.mark.parametrize("around", [False, True])
def test_mnist(digits, inside, dot, around):
    """Also the names that mirrors give, and the folders that unpackers make around a file."""
    folder, pixels, labels = digits
    for path in folder.glob("*ubyte*"):
        name = path.name.replace("-idx", f"{dot}idx")
        raw = path.read_bytes()
        path.unlink()
        write(folder / inside / name / "file" if around else folder / inside / name, raw)
    for train, order in ((True, [0, 1, 2, 3, 4]), (False, [4, 3, 2, 1, 0])):
        x, y = data.images("mnist", folder, train=train)
        assert x.dtype == torch.uint8 and torch.equal(x, pixels[order, None])
        assert y.dtype == torch.int64 and torch.equal(y, labels[order].long())


def test_mnist_bad_files(digits):
    folder, pixels, _ = digits
    path = folder / "train-images-idx3-ubyte.gz"
    good = idx(pixels.numpy())
    for raw in (b"", good[:9], good[:-1], good + b"\0", gzip.compress(good)[:-99],
                b"<html>", idx(pixels[:, :27].numpy()), b"\x1f\x8bnonsense"):
        path.write_bytes(raw)
        assert "shapes" not in refused(lambda: data.mnist(folder), str(path), "delete it")  # as train_mnist.py is


# ---- downloads ----

@pytest.fixture
def server(monkeypatch):
    """{path: (content, length that the header says or None)}, served in place of every published address."""
    published = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content, length = published.get(self.path[1:], (None, None))
            self.send_response(404 if content is None else 200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}/"
        monkeypatch.setattr(data, "DOWNLOADS", {name: (address, sha) for name, (_, sha) in data.DOWNLOADS.items()})
        yield published
        running.shutdown()


def test_download(cifar, server, tmp_path):
    folder, pixels, labels, _ = cifar
    archive = (folder / "cifar-10-python.tar.gz").read_bytes()
    server["cifar-10-python.tar.gz"] = archive, len(archive)
    refused(lambda: data.cifar10(tmp_path / "other"), "not the published file")  # by its checksum
    assert visible(tmp_path / "other") == []
    address, _ = data.DOWNLOADS["cifar-10-python.tar.gz"]
    data.DOWNLOADS["cifar-10-python.tar.gz"] = address, hashlib.sha256(archive).hexdigest()
    made = tmp_path / "new" / "folder"
    check_cifar(made, pixels, labels)
    server.clear()
    check_cifar(made, pixels, labels)  # from the file
    assert visible(made) == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("content, length, words", [
    (None, None, "404"), (b"\x1f\x8b" + bytes(5_000), 100_000, "was discarded"), (b"", None, "was discarded"),
    (b"<html>log in</html>", 19, "was discarded"), (b"\n<!doctype html>", None, "was discarded")])
@pytest.mark.parametrize("name, call, way_out", [
    ("cifar-10-python.tar.gz", data.cifar10, "--data shapes"), ("train-images-idx3-ubyte.gz", data.mnist, "--data-dir"),
    (f"{data.BILLION_WORD}.tar.gz", lambda folder: data.text("billion-word", folder), "--data the path of a text")])
def test_download_that_fails(server, tmp_path, content, length, words, name, call, way_out):
    """No file, a file cut short, a login page served as 200: nothing is kept, also where no checksum is known."""
    server[name] = content, length
    address = data.DOWNLOADS[name][0]
    refused(lambda: call(tmp_path), address + name, words, f"put {name} into {tmp_path}", way_out)
    assert visible(tmp_path) == []


def test_folder_that_cannot_be_written(album, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("cifar10", str(album)):
        refused(lambda: data.images(name, tmp_path / "file" / "data"), "cannot write", "--data-dir")


# ---- shapes ----

def test_shapes():
    """They depend on the seed alone, are of ten kinds and many colours, and stand out from the background."""
    before = torch.get_rng_state()
    x, y = data.shapes(3000)
    assert torch.equal(torch.get_rng_state(), before)
    assert x.shape == (3000, 3, 32, 32) and x.dtype == torch.uint8 and y.dtype == torch.int64
    few, labels = data.shapes(7)
    assert torch.equal(few, x[:7]) and torch.equal(labels, y[:7])
    assert not torch.equal(data.shapes(7, seed=1)[0], few)
    assert (torch.bincount(y, minlength=10) - 300).abs().max() < 80 and len(data.SHAPES) == 10
    assert len(torch.unique(x.flatten(1), dim=0)) == 3000
    grey = x.float().mean(1)
    corners = torch.stack([grey[:, i, j] for i in (0, -1) for j in (0, -1)], 1)
    apart = (grey.flatten(1)[:, :, None] - corners[:, None]).abs().amin(2).amax(1)
    assert apart.quantile(0.05) > 25
    assert (x.float().mean((2, 3)).std(0) > 35).all()  # all colours


def test_shapes_at_twice_the_size_are_the_same_drawings():
    """A coarse pixel is the mean of the four fine ones it covers: what anti-aliasing means."""
    coarse, fine = data.shapes(300)[0].float(), data.shapes(300, size=64)[0].float()
    off = (torch.nn.functional.avg_pool2d(fine, 2) - coarse).abs()
    assert off.mean() < 1 and (off > 48).float().mean() < 0.001
    assert all(np.hypot(*corners.T).max() < 1.05 for corners in data.SHAPES.values())  # they fit their circle


def test_images_names(cifar, digits, monkeypatch):
    """What is suggested works at the size that was asked for."""
    asked = []
    monkeypatch.setattr(data, "shapes", lambda *arguments: asked.append(arguments))
    data.images("shapes")
    data.images("shapes", train=False, size=64)
    assert asked == [(20_000, 0, 32), (2_000, 1, 64)]
    for name, size, choices in (("cifar10", 64, "choose shapes or a folder"), ("mnist", 32, "choose cifar10, shapes"),
                                ("cifar10", 128, "choose shapes"), ("imagenet", 32, "cifar10, shapes or a folder")):
        refused(lambda: data.images(name, cifar[0], size), f"{name!r} at {size} x {size}", choices)


# ---- batches ----

def numbered(n):
    """n images, each of a value of its own."""
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 4, 4).contiguous()


def test_batches(tmp_path):
    """Batches follow the seed alone, draw uniformly with replacement, and memory maps are like tensors."""
    x, y = numbered(50), torch.arange(50) * 3
    (tmp_path / "raw").write_bytes(x.numpy().tobytes())
    mapped = np.memmap(tmp_path / "raw", np.uint8, "c", shape=(50, 3, 4, 4))
    streams = [data.batches(given, 32, data.unit_from_bytes, labels=y) for given in (x, x, mapped)]
    for _ in range(5):
        next(streams[0])
    got = []
    for stream in streams:
        torch.manual_seed(7)
        got.append(next(stream))
    pixels, labels = got[0]
    assert all(torch.equal(pixels, other[0]) and torch.equal(labels, other[1]) for other in got[1:])
    assert pixels.dtype == torch.float32 and pixels.shape == (32, 3, 4, 4)
    assert torch.equal((pixels * 255).round()[:, 0, 0, 0] * 3, labels.float())  # images and labels stay together
    refused(lambda: data.batches(x, 51, data.from_bytes), "50 examples", "batch of 51")
    stream = data.batches(x[:20], 20, lambda x: x[:, 0, 0, 0].long())
    drawn = torch.stack([next(stream) for _ in range(2000)])
    distinct = torch.tensor([len(row.unique()) for row in drawn]).float().mean()
    assert abs(distinct - 20 * (1 - (19 / 20)**20)) < 0.15  # without replacement it would be 20
    assert (torch.bincount(drawn.flatten()) / 2000 - 1).abs().max() < 0.12


def test_in_order_gives_everything_once_and_never_an_image_alone():
    """Batch norm has no statistics of one image."""
    before = torch.get_rng_state()
    for n in range(2, 40):
        x, y = numbered(n), torch.arange(n) * 3
        for batch_size in range(2, 12):
            got = list(data.in_order(x, batch_size, data.unit_from_bytes, labels=y))
            sizes = [len(pixels) for pixels, _ in got]
            assert min(sizes) >= min(n, batch_size) and max(sizes) < max(2 * batch_size, n + 1)
            assert torch.equal(torch.cat([pixels for pixels, _ in got]), data.unit_from_bytes(x))
            assert torch.equal(torch.cat([labels for _, labels in got]), y)
    assert all(batch.shape[1:] == x.shape[1:] for batch in data.in_order(x.numpy(), 8, data.from_bytes))
    assert torch.equal(torch.get_rng_state(), before)


# ---- pixels ----
BYTES = torch.arange(256, dtype=torch.uint8)


def test_bytes_to_floats():
    exact = BYTES.double()
    assert torch.allclose(data.from_bytes(BYTES).double(), 2 * (exact / 255 - 0.5), atol=1e-7, rtol=0)
    assert torch.allclose(data.unit_from_bytes(BYTES).double(), exact / 255, atol=1e-7, rtol=0)
    torch.manual_seed(0)
    noise = data.from_bytes_noisy(BYTES.repeat(1000, 1)).double() - 2 * (exact / 256 - 0.5)
    assert noise.min() > -1e-7 and noise.max() < 1 / 128 + 1e-7
    assert abs(noise.mean() * 256 - 1) < 0.01 and abs(noise.var() * 12 * 128**2 - 1) < 0.02  # uniform


def test_bytes_survive_the_way_there_and_back():
    for top in (255, 255.99):
        assert torch.equal(data.to_bytes(data.from_bytes(BYTES), top), BYTES)
    assert torch.equal(data.unit_to_bytes(data.unit_from_bytes(BYTES)), BYTES)
    # The authors' pair for the ResNet, 256 one way and 255.99 back, now and then loses a level.
    back = data.to_bytes(data.from_bytes_noisy(BYTES.repeat(1000, 1)), 255.99).int() - BYTES.int()
    assert back.min() >= -1 and back.max() == 0 and 0 < (back < 0).float().mean() < 0.01
    # Floats in between are truncated, those outside clamped.
    levels = torch.tensor([0, 0.9, 100.0, 100.9, 254.9, 255])
    assert data.to_bytes(levels * 2 / 255 - 1).tolist() == [0, 0, 100, 100, 254, 255]
    x = torch.tensor([-1.5, -1, 0, 0.999, 1, 1.5])
    assert data.to_bytes(x).tolist() == [0, 0, 127, 254, 255, 255]
    assert data.to_bytes(x, 255.99).tolist() == [0, 0, 127, 255, 255, 255]
    assert data.unit_to_bytes(torch.tensor([-1, 0, 0.5, 0.99, 1, 2])).tolist() == [0, 0, 127, 253, 255, 255]


# ---- image folders ----

def paint(path, colour, size=(20, 20), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def album(tmp_path):
    """A folder of 24 images in two subfolders, the k-th by path having k in its first channel."""
    for k in range(24):
        paint(tmp_path / "album" / ("a" if k < 10 else "b") / f"{k:02}.png", (k, 100, 200))
    return tmp_path / "album"


def firsts(pixels):
    return sorted(pixels[:, 0, 0, 0].tolist())


def cached(album, **options):
    """What the folder holds, cached beside it."""
    return data.image_folder(album, 16, album.parent / "cache", **options)


def test_image_folder(album, tmp_path):
    train, labels = data.images(str(album), tmp_path, size=16)
    held, _ = data.images(str(album), tmp_path, size=16, train=False)
    assert labels is None and train.dtype == torch.uint8 and train.shape == (21, 3, 16, 16)
    assert firsts(held) == [0, 10, 20] and firsts(torch.cat([train, held])) == list(range(24))
    assert (train[:, 1] == 100).all() and (train[:, 2] == 200).all()
    assert next(data.batches(train, 4, data.from_bytes)).shape == (4, 3, 16, 16)
    assert len(list((tmp_path / "cache").glob("*"))) == 1 + (sys.platform != "win32")  # with .lock


def test_squares(tmp_path):
    """The centre, antialiased, turned as the camera says, grey as three channels, white where transparent."""
    rng = np.random.default_rng(0)
    wide, tall = (rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((16, 40), (40, 16)))
    stripes, rgba = np.zeros((64, 64, 3), np.uint8), np.full((20, 20, 4), (255, 0, 255, 0), np.uint8)
    stripes[:, ::2] = 200
    rgba[:, 10:] = (0, 0, 255, 255)
    camera, palette = Image.Exif(), Image.new("P", (20, 20), 1)
    camera[0x112] = 6  # "turn me a quarter clockwise"
    palette.putpalette([255, 0, 255, 9, 9, 9])
    palette.save(tmp_path / "palette.png", transparency=b"\xff\x80")  # half transparent
    Image.fromarray(wide).save(tmp_path / "turned.png", exif=camera)
    for name, pixels in (("stripes", stripes), ("grey", wide[:, :, 0]), ("wide", wide), ("tall", tall), ("rgba", rgba)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    square = {path.stem: data._square(path, 16).astype(int) for path in tmp_path.iterdir()}
    assert np.array_equal(square["wide"], wide[:, 12:28].transpose(2, 0, 1))
    assert np.array_equal(square["tall"], tall[12:28].transpose(2, 0, 1))
    assert np.abs(square["stripes"] - 100)[:, :, 2:-2].max() <= 3  # without averaging: 0 or 200
    assert all(np.array_equal(channel, wide[:, 12:28, 0]) for channel in square["grey"])
    assert np.array_equal(square["turned"], np.rot90(wide[:, 12:28], -1).transpose(2, 0, 1))
    assert square["rgba"][:, 0, 0].tolist() == [255] * 3 and square["rgba"][:, 0, 15].tolist() == [0, 0, 255]
    assert abs(square["palette"][0, 0, 0] - 132) <= 1


def test_image_folder_is_read_once_until_it_changes(album, monkeypatch):
    cache, first = album.parent / "cache", cached(album)
    with monkeypatch.context() as patch:
        patch.setattr(data, "_square", None)
        patch.chdir(album.parent)
        assert torch.equal(data.image_folder("album", 16, "cache"), first)
        refused(lambda: data.image_folder(album, 8, cache))  # another size is another cache
    (before,) = cache.glob("*.uint8")
    paint(album / "b" / "99.png", (99, 0, 0))
    assert firsts(cached(album))[-1] == 99
    size = (album / "b" / "99.png").stat().st_size
    paint(album / "b" / "99.png", (98, 0, 0))
    assert (album / "b" / "99.png").stat().st_size == size  # only the time tells
    assert firsts(cached(album))[-1] == 98
    (album / "a" / "03.png").unlink()
    assert firsts(cached(album)) == [0, 1, 2, *range(4, 24), 98]
    assert len(list(cache.glob("*.uint8"))) == 1 and not before.exists()  # the old ones are gone


def test_image_folder_interrupted(album, monkeypatch):
    """Neither Ctrl-C nor a killed process leaves anything that passes for a cache, or stays."""
    def stopped(*_):
        yield from [b"a square"] * 9
        raise KeyboardInterrupt

    cache = album.parent / "cache"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "_squares", stopped)
        cached(album)
    assert visible(cache) == []
    write(cache / ".album-16.uint8.77.partial", b"half")
    write(cache / "its.partial", b"of another program")
    assert firsts(cached(album)) == list(range(24))
    assert sorted(Path(name).suffix for name in visible(cache)) == [".partial", ".uint8"]  # the other program's


def test_image_folder_by_several_at_once(album, monkeypatch):
    """One makes the cache while the others wait for it. (Locks of two open files are as those of two processes.)"""
    calls, square, got = [], data._square, []
    monkeypatch.setattr(data, "_square", lambda *args: (calls.append(args), time.sleep(0.01), square(*args))[-1])
    threads = [threading.Thread(target=lambda: got.append(firsts(cached(album)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [list(range(24))] * 4 and len(calls) == 24


def test_image_folder_counts_each_file_once(album, capsys):
    """However links run. Hidden files, those of tools, the run's own folder and other runs do not count."""
    (album / "again").symlink_to(album)
    (album / "a" / "up").symlink_to(album.parent)
    (album / "b" / "twin").symlink_to(album / "a")
    (album / "b" / "copy.png").symlink_to(album / "a" / "00.png")
    os.link(album / "a" / "01.png", album / "b" / "hard.png")
    paint(album.parent / "elsewhere" / "linked.png", (77, 0, 0))
    (album / "z").symlink_to(album.parent / "elsewhere")
    for name in (".ipynb_checkpoints/1.png", "__MACOSX/2.png", "b/@eaDir/3.png", "a/._4.png", "Thumbnails/5.png",
                 "Thumbs.db.png/6.png", "run/samples/7.png", "old/run/samples/8.png", "old/run/curves9.png"):
        paint(album / name, (100 + int(name[-5]), 0, 0))
    (album / "Thumbs.db.png").rename(album / "Thumbs.db")
    os.mkfifo(album / "pipe.png")
    write(album / "old/run/config.json", "{}")
    write(album / "config.json", "{}")  # the folder itself may be a run: its samples were asked for
    write(album / "log.csv", "")
    assert firsts(cached(album, leave_out=album / "run")) == [*range(24), 77, 108, 109]  # no log: not a run
    write(album / "old/run/log.csv", "")
    capsys.readouterr()
    assert firsts(cached(album, leave_out=album / "run")) == [*range(24), 77]
    assert f"1 training runs, not data ({album}/old/run)" in capsys.readouterr().err
    assert firsts(cached(album)) == [*range(24), 77, 107]


def test_image_folder_never_has_a_picture_in_both_parts(album, capsys, recwarn, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # so that Pillow warns of each, which nobody sees
    for k in range(24):
        paint(album / "again" / f"{k:02}.bmp", (k, 100, 200))  # other bytes, equal pixels
    parts = [firsts(cached(album, train=train)) for train in (True, False)]
    assert sorted(sum(parts, [])) == list(range(24)) and min(map(len, parts)) == 3 and len(recwarn) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("24 of 48 files used; 24 duplicates")


def png16(colour, channels):
    """A PNG of 20 x 20 with 16 bits per channel, which Pillow reads but does not write."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    rows = (b"\0" + bytes(20 * channels * 2)) * 20
    header = struct.pack(">IIBBBBB", 20, 20, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


DEEP = {"grey": png16(0, 1), "RGB": png16(2, 3), "grey-alpha": png16(4, 2), "RGBA": png16(6, 4),
        "PPM": b"P6 20 20 65535\n" + bytes(2400), "PGM": b"P5 20 20 4095\n" + bytes(800),
        "plain-PPM": b"P3 20 20 1023\n" + b"9 " * 1200}


def test_image_folder_skips_and_names(album, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program came as data"))
    noise, b = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8), album / "b"
    Image.fromarray(noise).save(b / "12.png")
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n"
    for name, content in ({"note.txt": "words", "12.png": (b / "12.png").read_bytes()[:700], "eps.jpg": eps}
                          | {f"{k}.HEIC": b"\0\0\0\x18ftypheic" + bytes(99) for k in range(3)} | DEEP).items():
        write(b / name, content)
    (b / "13.png").rename(b / "13.jpg")  # tried by content
    paint(b / "small.png", (1, 2, 3), (15, 400))
    (b / "to-nothing.png").symlink_to(tmp_path / "nothing")
    for k, format in enumerate(("BMP", "GIF", "PPM", "TIFF", "WEBP"), 15):
        Image.open(b / f"{k}.png").save(b / f"{k}.png", format)
    Image.new("RGB", (20, 20), (200, 9, 9)).save(b / "23.png", "JPEG")
    assert len(cached(album)) == 23
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("23 of 38 files used;")
    for words in ("3 HEIC, which Pillow cannot read here", "1 TXT, which", "1 PNG, which", "b/12.png", "1 JPG, which",
                  "1 smaller than 16 x 16", "small.png", "1 broken links", "7 of more than 8 bits per channel"):
        assert words in line
    cached(album)
    assert capsys.readouterr().err == ""  # once


@pytest.mark.parametrize("files, words", [
    ({}, "0 of 0 files"), ({"note.txt": b"words"}, "1 TXT, which Pillow cannot read here"),
    ({"data.mdb": bytes(99), "lock.mdb": b""}, "(LMDB)"), ({"x.npy": b"\x93NUMPY"}, "1 NPY"),
    ({f"{k}.ppm": b"P6 20 20 255\n" + bytes([k]) * 1200 for k in range(10)}, "10 of 10 files used"),
])
def test_image_folder_refused(tmp_path, files, words):
    """Too few images for one of the parts is said before the training, and nothing is left behind."""
    (tmp_path / "bare").mkdir()
    for name, content in files.items():
        (tmp_path / "bare" / name).write_bytes(content)
    for train in (True, False):
        refused(lambda: data.images(str(tmp_path / "bare"), tmp_path, 16, train), words, "11", "16 x 16", "arrays")
    assert visible(tmp_path / "cache") == []

# ---- text ----

def test_text_codes(tmp_path):
    path = write(tmp_path / "t", "aaabb\n\nc`d\n   \naé日😀\nabcdefgh and so on\n")
    codes, alphabet = data.text(path, length=6)
    assert codes.dtype == torch.int8 and codes.shape == (4, 6)
    assert data.decode(codes, alphabet) == ["aaabb`", "c`d```", "aé日😀``", "abcdef"]
    # Pads (7 with the backquote), a (5), b (3), c and d (2), then those found once, by code point.
    assert alphabet == "\ufffd`abcdefé日😀"
    assert codes[1].tolist() == [4, 1, 5, 1, 1, 1]  # the backquote of the text is the pad
    codes, alphabet = data.text(write(tmp_path / "u", "zzz\nyyy\nx\ufffd\n"), length=3, alphabet_size=3)
    assert alphabet == "\ufffdyz"  # equally frequent: the lower code point first
    assert codes.tolist() == [[2, 2, 2], [1, 1, 1], [0, 0, 0]]  # rare ones are unknown


def test_text_against_counting(tmp_path):
    """More lines than are taken at a time, against a count in plain Python."""
    rng = random.Random(0)
    letters, weights = "abcdefghij `é€", range(1, 15)
    lines = ["".join(rng.choices(letters, weights, k=rng.randrange(1, 12))) for _ in range(23_000)]
    codes, alphabet = data.text(write(tmp_path / "t", "\n".join(lines)), length=8, alphabet_size=10)
    rows = [line[:8].ljust(8, "`") for line in lines if line.strip()]
    joined = "".join(rows)
    kept = sorted(set(joined), key=lambda c: (-joined.count(c), c))[:9]
    assert alphabet == "\ufffd" + "".join(kept)
    for c in set(joined) - set(kept):
        rows = [row.replace(c, "\ufffd") for row in rows]
    assert data.decode(codes, alphabet) == rows


def test_text_of_many_characters(tmp_path):
    path = write(tmp_path / "t", "\n".join(chr(c) for c in range(0x4E00, 0x4E00 + 3000)))
    for size, dtype, length in ((128, torch.int8, 128), (129, torch.int16, 129), (2048, torch.int16, 2048),
                                (9999, torch.int16, 3001)):
        codes, alphabet = data.text(path, length=1, alphabet_size=size)
        assert codes.dtype == dtype and len(alphabet) == length
        assert codes.max() == length - 1 and codes.min() >= 0


def test_text_lines_and_folders(tmp_path):
    for pack in bytes, gzip.compress:
        path = write(tmp_path / "t", pack(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree"))
        assert data.decode(*data.text(path, length=5)) == ["one``", "two``", "three"]
        assert data.decode(*data.text(path, length=5, max_lines=2)) == ["one``", "two``"]
    for name, content in (("2", "second\n"), ("1", "first"), ("sub/3", "third\n"), (".hidden", b"\xff"),
                          ("run/config.json", b"{}"), ("run/log.csv", "a"), ("run/samples/000100.txt", "generated")):
        write(tmp_path / "f" / name, content)
    assert data.decode(*data.text(tmp_path / "f", length=6)) == ["first`", "second", "third`"]
    part = tmp_path / "d" / data.BILLION_WORD / "training-monolingual.tokenized.shuffled"
    write(part / "news.en-00002-of-00100", "later\n")
    write(part / "news.en-00001-of-00100", "sooner\n")
    write(part.parent / "heldout-monolingual.tokenized.shuffled" / "news.en-00000-of-00100", "never\n")
    assert data.decode(*data.text("billion-word", tmp_path / "d", length=6)) == ["sooner", "later`"]


def test_text_archive(tmp_path):
    """An archive is read no further than needed. A damaged one is refused, also where its reader notices nothing."""
    chance = random.Random(0)
    lines = ["%030x" % chance.getrandbits(120) for _ in range(20_000)]  # hard to compress
    part = f"{data.BILLION_WORD}/training-monolingual.tokenized.shuffled"
    archive = tar(tmp_path / f"{data.BILLION_WORD}.tar.gz", {
        f"{data.BILLION_WORD}/README": b"read me",
        f"{data.BILLION_WORD}/heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100": b"held out",
        f"{part}/news.en-00001-of-00100": "\n".join(lines[:100]).encode(),
        f"{part}/news.en-00002-of-00100": "\n".join(lines[100:]).encode()})
    assert data.decode(*data.text("billion-word", tmp_path)) == [line + "``" for line in lines]
    raw = archive.read_bytes()
    stored = gzip.compress(gzip.decompress(raw), 0)  # not compressed: zlib itself notices nothing
    header = stored.index(b"ustar", stored.index(lines[99].encode()))
    damaged = [raw[:100_000] + b"garbage" * 30_000, stored[:header] + b"x" + stored[header + 1:],
               stored.replace(lines[9_999].encode(), b"x" * 30)]
    for bad in damaged:
        archive.write_bytes(bad)
        few = data.decode(*data.text("billion-word", tmp_path, max_lines=99))
        assert few == [line + "``" for line in lines[:99]]
        refused(lambda: data.text("billion-word", tmp_path), str(archive), "damaged")
    assert os.listdir(tmp_path) == [archive.name]
    for bad in (b"", b"<html>", raw[:90_000], gzip.compress(b"words")):
        archive.write_bytes(bad)
        refused(lambda: data.text("billion-word", tmp_path), str(archive))
    tar(archive, {"something/else": b"words"})
    refused(lambda: data.text("billion-word", tmp_path), "no lines")


@pytest.mark.parametrize("content, words", [
    (b"", "no lines"), (b"\n \n", "no lines"), ("café\n".encode("latin-1"), "not UTF-8"),
    (bytes(range(256)), "not UTF-8"), (b"PK\x03\x04\x14\0\0\0", "NUL"),
    ("a line\n".encode("utf-16"), "iconv"), ("a line\n".encode("utf-16-le"), "NUL"),
    ("a line\n".encode("utf-32"), "iconv"), ("a line\n".encode("utf-32-be"), "NUL"),
    (gzip.compress(b"a line\n" * 99)[:-9], "damaged"), (gzip.compress(b"x" * 5_000), "4,096 characters"),
])
def test_text_refused(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(data, "LARGEST", 4_096)
    refused(lambda: data.text(write(tmp_path / "bad", content)), "bad", words)


def test_text_that_is_not_there(tmp_path):
    refused(lambda: data.text(str(tmp_path / "missing")), "missing", "billion-word")
    (tmp_path / "bare").mkdir()
    refused(lambda: data.text(tmp_path / "bare"), "no lines")
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: data.text(tmp_path / "pipe"), "not a regular file")
