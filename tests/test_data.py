"""Tests of data.py: what comes out is what went in, and every bad file gets one line."""
import gzip
import hashlib
import http.server
import io
import math
import os
import pickle
import random
import socket
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
        (x,), (y,) = next(stream), next(stream)
        assert torch.equal(x, first) and torch.equal(y, second) and not torch.equal(x, y)
    refused(lambda: data.modes("moons"), "'moons'", "8gaussians, 25gaussians, swissroll")


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


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("encoding", ["bytes", "latin1"])
def test_cifar_pickled_again(cifar, protocol, encoding):
    folder, pixels, labels, files = cifar
    for name, raw in files.items():
        if name != "cifar-10-batches-py/batches.meta":
            files[name] = pickle.dumps(pickle.loads(raw, encoding=encoding), protocol)
    tar(folder / "cifar-10-python.tar.gz", files)
    check_cifar(folder, pixels, labels)


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-py", "unpacked"])
def test_cifar_folder(cifar, inside):
    folder, pixels, labels, files = cifar
    (folder / "cifar-10-python.tar.gz").unlink()
    (folder / inside / "cifar-10-batches-py").mkdir(parents=True)
    for name, raw in files.items():
        (folder / inside / name).write_bytes(raw)
    check_cifar(folder, pixels, labels)


def test_cifar_pickle_may_not_call(cifar, tmp_path):
    folder, _, _, files = cifar
    trap = tmp_path / "trap"
    for call in (f"cos\nmkdir\n(S'{trap}'\ntR.", f"cnumpy\nfromfile\n(S'{trap}'\ntR.",
                 f"c__builtin__\neval\n(S'__import__(\"os\").mkdir(\"{trap}\")'\ntR."):
        files["cifar-10-batches-py/test_batch"] = call.encode()
        tar(folder / "cifar-10-python.tar.gz", files)
        refused(lambda: data.cifar10(folder, train=False), "which no array needs")
        assert not trap.exists()


def test_cifar_bad_archives(cifar):
    folder, pixels, _, files = cifar
    archive = folder / "cifar-10-python.tar.gz"
    whole = archive.read_bytes()
    bad = {
        "empty": b"",
        "cut short": whole[:len(whole) // 2],
        "not gzip": b"<html>404</html>" * 999,
        "not tar": gzip.compress(b"hello" * 999),
        "flipped": whole[:3000] + bytes(99) + whole[3099:],
    }
    for raw in bad.values():
        archive.write_bytes(raw)
        refused(lambda: data.cifar10(folder), str(archive), "delete it", "--data shapes")
    tar(archive, {"holiday/photo.jpg": b"x"})
    refused(lambda: data.cifar10(folder), "data_batch_1")
    good = files["cifar-10-batches-py/test_batch"]
    x = pixels[5].numpy()
    for raw in (b"", good[:500], b"\x80\x02]." + good, b"\x80\x02}.", python2_batch(x, [1, 2]),
                python2_batch(x[:, :768], [1, 2, 3])):
        tar(archive, {**files, "cifar-10-batches-py/test_batch": raw})
        refused(lambda: data.cifar10(folder, train=False), "damaged or not CIFAR-10", "delete it")


def test_cifar_archive_with_a_damaged_header_in_the_middle(cifar):
    folder, _, _, files = cifar
    archive = folder / "cifar-10-python.tar.gz"
    raw = bytearray(gzip.decompress(archive.read_bytes()))
    end = raw.index(b"cifar-10-batches-py/data_batch_2")  # the last one, which the test set does not need
    raw[end:end + 512] = os.urandom(512)
    archive.write_bytes(gzip.compress(raw))
    refused(lambda: data.cifar10(folder, train=False), "damaged in the middle")


# ---- MNIST ----

def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.fixture
def digits(tmp_path):
    """(folder, pixels, labels): four MNIST files, the training ones gzipped."""
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (5, 28, 28), np.uint8), np.array([3, 1, 4, 1, 5], np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(pixels[::-1]))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(labels[::-1]))  # unpacked, but not renamed
    return tmp_path, torch.from_numpy(pixels), torch.from_numpy(labels)


def test_mnist(digits):
    folder, pixels, labels = digits
    for train, order in ((True, [0, 1, 2, 3, 4]), (False, [4, 3, 2, 1, 0])):
        x, y = data.images("mnist", folder, train=train)
        assert x.dtype == torch.uint8 and torch.equal(x, pixels[order, None])
        assert y.dtype == torch.int64 and torch.equal(y, labels[order].long())


@pytest.mark.parametrize("inside", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("dot", "-.")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_mnist_names_of_mirrors_and_unpackers(tmp_path, inside, dot, pack):
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = np.arange(2 * 784, dtype=np.int64).astype(np.uint8).reshape(2, 28, 28), np.array([7, 8], np.uint8)
    ending = ".gz" if pack is gzip.compress else ""
    for part in ("train", "t10k"):
        (folder / f"{part}-images{dot}idx3-ubyte{ending}").write_bytes(pack(idx(pixels)))
        (folder / f"{part}-labels{dot}idx1-ubyte{ending}").mkdir()  # an unpacker's folder around the file
        (folder / f"{part}-labels{dot}idx1-ubyte{ending}" / "labels").write_bytes(pack(idx(labels)))
        x, y = data.mnist(tmp_path, part == "train")
        assert np.array_equal(x[:, 0], pixels) and y.tolist() == [7, 8]


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


def publish(server, path):
    """Serve a file under its name and take its sha256 for the published one."""
    content = path.read_bytes()
    server[path.name] = content, len(content)
    data.DOWNLOADS[path.name] = data.DOWNLOADS[path.name][0], hashlib.sha256(content).hexdigest()
    path.unlink()


def visible(folder):
    return sorted(set(os.listdir(folder)) - {".lock"})


def test_download(cifar, digits, server, tmp_path):
    folder, pixels, labels, _ = cifar
    for path in [*folder.glob("cifar*"), *folder.glob("train-*")]:
        publish(server, path)
    made = tmp_path / "new" / "folder"
    check_cifar(made, pixels, labels)
    server.clear()
    check_cifar(made, pixels, labels)  # from the file
    assert visible(made) == ["cifar-10-python.tar.gz"]


def test_download_with_wrong_checksum_is_not_kept(cifar, server, tmp_path):
    content = (cifar[0] / "cifar-10-python.tar.gz").read_bytes()
    server["cifar-10-python.tar.gz"] = content, len(content)  # but the checksum stays that of the true archive
    fresh = tmp_path / "fresh"
    refused(lambda: data.cifar10(fresh), "not the published file", f"put cifar-10-python.tar.gz into {fresh}", "shapes")
    assert visible(fresh) == []


@pytest.mark.parametrize("content, length", [(b"\x1f\x8b" + bytes(5_000), 100_000), (b"<html>log in</html>", 19),
                                             (b"", None), (b"\n<!doctype html>", None)])
def test_download_cut_short_is_not_kept_though_no_checksum_is_known(server, tmp_path, content, length):
    """Neither is a login page that is served as 200."""
    server[data.BILLION_WORD + ".tar.gz"] = content, length
    refused(lambda: data.text("billion-word", tmp_path), "was not kept", "--data the path")
    assert visible(tmp_path) == []


def test_download_without_network(monkeypatch, tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound but not listening: refuses every connection
        nowhere = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        monkeypatch.setattr(data, "DOWNLOADS", {name: (nowhere, None) for name in data.DOWNLOADS})
        for call, name, way_out in (
                (data.cifar10, "cifar-10-python.tar.gz", "--data shapes"),
                (data.mnist, "train-images-idx3-ubyte.gz", "--data-dir"),
                (lambda folder: data.text("billion-word", folder), data.BILLION_WORD + ".tar.gz", "a text file")):
            refused(lambda: call(tmp_path), nowhere + name, f"put {name} into {tmp_path}", way_out)
    assert visible(tmp_path) == []


def test_folder_that_cannot_be_written(album, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("cifar10", str(album)):
        refused(lambda: data.images(name, tmp_path / "file" / "data"), "cannot write", "--data-dir")


# ---- shapes ----

def test_shapes_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    x, y = data.shapes(60)
    assert torch.equal(torch.get_rng_state(), before)
    assert x.shape == (60, 3, 32, 32) and x.dtype == torch.uint8 and y.dtype == torch.int64
    few, labels = data.shapes(7)
    assert torch.equal(few, x[:7]) and torch.equal(labels, y[:7])
    assert not torch.equal(data.shapes(7, seed=1)[0], few)


def test_shapes_are_ten_and_varied():
    x, y = data.shapes(3000)
    assert (torch.bincount(y, minlength=10) - 300).abs().max() < 80 and len(data.SHAPES) == 10
    assert len(torch.unique(x.flatten(1), dim=0)) == 3000
    # The shape stands out from all four corners of the background.
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


def test_images_is_the_door_to_shapes(monkeypatch):
    asked = []
    monkeypatch.setattr(data, "shapes", lambda *arguments: asked.append(arguments))
    data.images("shapes")
    data.images("shapes", train=False, size=64)
    assert asked == [(20_000, 0, 32), (2_000, 1, 64)]


def test_images_refuses_what_there_is_not(cifar, digits):
    folder = cifar[0]
    refused(lambda: data.images("cifar10", folder, size=64), "cifar10", "64", "shapes")
    refused(lambda: data.images("mnist", folder, size=32), "mnist", "32", "cifar10")
    refused(lambda: data.images("imagenet", folder), "'imagenet'", "a folder of images")


# ---- batches ----

def numbered(n):
    """n images, each of a value of its own."""
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 4, 4).contiguous()


def test_batches_follow_the_seed_alone():
    x, y = numbered(50), torch.arange(50) * 3
    stream = data.batches(x, 64 // 2, data.unit_from_bytes, labels=y)
    for _ in range(5):
        next(stream)
    torch.manual_seed(7)
    late = next(stream)
    torch.manual_seed(7)
    early = next(data.batches(x, 32, data.unit_from_bytes, labels=y))
    assert torch.equal(late[0], early[0]) and torch.equal(late[1], early[1])
    pixels = (early[0] * 255).round()
    assert early[0].dtype == torch.float32 and early[0].shape == (32, 3, 4, 4)
    assert torch.equal(pixels[:, 0, 0, 0] * 3, early[1].float())  # images and labels stay together
    torch.manual_seed(8)
    assert not torch.equal(next(stream)[0], early[0])
    refused(lambda: data.batches(x, 51, data.from_bytes), "50 examples", "batch of 51")


def test_batches_draw_with_replacement_and_uniformly():
    torch.manual_seed(0)
    stream = data.batches(numbered(20), 20, lambda x: x[:, 0, 0, 0].long())
    drawn = torch.stack([next(stream)[0] for _ in range(2000)])
    assert len(next(stream)) == 1
    distinct = torch.tensor([len(row.unique()) for row in drawn]).float().mean()
    assert abs(distinct - 20 * (1 - (19 / 20)**20)) < 0.15  # without replacement it would be 20
    assert (torch.bincount(drawn.flatten()) / 2000 - 1).abs().max() < 0.12


def test_in_order_gives_everything_once_and_memory_maps_are_like_tensors(tmp_path):
    x, y = numbered(20), torch.arange(20) * 3
    (tmp_path / "raw").write_bytes(x.numpy().tobytes())
    mapped = np.memmap(tmp_path / "raw", np.uint8, "c", shape=(20, 3, 4, 4))
    torch.manual_seed(1)
    drawn = next(data.batches(x, 16, data.from_bytes))[0]
    torch.manual_seed(1)
    assert torch.equal(next(data.batches(mapped, 16, data.from_bytes))[0], drawn)
    before = torch.get_rng_state()
    for given in (x, mapped):
        got = list(data.in_order(given, 8, data.unit_from_bytes, labels=y))
        assert [len(pixels) for pixels, _ in got] == [10, 10]  # two whole batches, and their share of the rest
        assert torch.equal(torch.cat([pixels for pixels, _ in got]), data.unit_from_bytes(x))
        assert torch.equal(torch.cat([labels for _, labels in got]), y)
        assert all(len(batch) == 1 for batch in data.in_order(given, 8, data.from_bytes))
    assert torch.equal(torch.get_rng_state(), before)


def test_in_order_never_leaves_an_image_alone():
    """Batch norm has no statistics of one image."""
    for n in range(2, 40):
        for batch_size in range(2, 12):
            sizes = [len(x) for x, in data.in_order(numbered(n), batch_size, data.from_bytes)]
            assert sum(sizes) == n and min(sizes) >= min(n, batch_size) and max(sizes) < max(2 * batch_size, n + 1)


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


def test_floats_to_bytes_are_cut_off_and_clamped():
    levels = torch.tensor([0, 0.9, 100.0, 100.9, 254.9, 255])
    assert data.to_bytes(levels * 2 / 255 - 1).tolist() == [0, 0, 100, 100, 254, 255]
    x = torch.tensor([-1.5, -1, 0, 0.999, 1, 1.5])
    assert data.to_bytes(x).tolist() == [0, 0, 127, 254, 255, 255]
    assert data.to_bytes(x, 255.99).tolist() == [0, 0, 127, 255, 255, 255]
    assert data.unit_to_bytes(torch.tensor([-1, 0, 0.5, 0.99, 1, 2])).tolist() == [0, 0, 127, 253, 255, 255]
    assert data.to_bytes(torch.zeros(2, 3, 4, 4)).dtype == torch.uint8


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
    assert next(data.batches(train, 4, data.from_bytes))[0].shape == (4, 3, 16, 16)
    assert len(list((tmp_path / "cache").glob("*"))) == 1 + (sys.platform != "win32")  # with .lock


def test_image_folder_crops_the_centre_and_antialiases(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (16, 40, 3), np.uint8)
    tall = rng.integers(0, 256, (40, 16, 3), np.uint8)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    camera = Image.Exif()
    camera[0x112] = 6  # "turn me a quarter clockwise"
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    Image.fromarray(wide[:, :, 0]).save(tmp_path / "grey.png")
    Image.fromarray(wide).save(tmp_path / "turned.png", exif=camera)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(tall).save(tmp_path / "tall.png")
    squares = {name: data._square(tmp_path / name, 16).astype(int) for name in os.listdir(tmp_path)}
    assert np.array_equal(squares["wide.png"], wide[:, 12:28].transpose(2, 0, 1))
    assert np.array_equal(squares["tall.png"], tall[12:28].transpose(2, 0, 1))
    assert np.abs(squares["stripes.png"] - 100)[:, :, 2:-2].max() <= 3  # without averaging: 0 or 200
    assert all(np.array_equal(channel, wide[:, 12:28, 0]) for channel in squares["grey.png"])
    assert np.array_equal(squares["turned.png"], np.rot90(wide[:, 12:28], -1).transpose(2, 0, 1))


def test_image_folder_is_read_once(album, monkeypatch):
    first = cached(album)
    monkeypatch.setattr(data, "_square", None)
    monkeypatch.chdir(album.parent)
    assert torch.equal(data.image_folder("album", 16, "cache"), first)
    refused(lambda: data.image_folder(album, 8, album.parent / "cache"))  # another size is another cache


def test_image_folder_changed(album):
    def caches():
        return [path.name for path in (album.parent / "cache").glob("*.uint8")]

    cached(album)
    (before,) = caches()
    paint(album / "b" / "99.png", (99, 0, 0))
    assert firsts(cached(album))[-1] == 99
    size = (album / "b" / "99.png").stat().st_size
    paint(album / "b" / "99.png", (98, 0, 0))
    assert (album / "b" / "99.png").stat().st_size == size  # only the time tells
    assert firsts(cached(album))[-1] == 98
    (album / "a" / "03.png").unlink()
    assert firsts(cached(album)) == [0, 1, 2, *range(4, 24), 98]
    assert len(caches()) == 1 and caches() != [before]  # the old ones are gone


def test_image_folder_interrupted(album, monkeypatch):
    """Neither Ctrl-C nor a killed process leaves anything that passes for a cache, or stays."""
    def until(path, size, count=iter(range(9)), square=data._square):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return square(path, size)

    monkeypatch.setattr(data, "_square", until)
    with pytest.raises(KeyboardInterrupt):
        cached(album)
    cache = album.parent / "cache"
    assert visible(cache) == []
    (cache / ".album-16.uint8.77.partial").write_bytes(b"half")
    (cache / "its.partial").write_bytes(b"of another program")
    monkeypatch.undo()
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


def test_image_folder_counts_each_file_once(album):
    """However links run. Hidden files, those of tools, and the run's own folder do not count."""
    (album / "again").symlink_to(album)
    (album / "a" / "up").symlink_to(album.parent)
    (album / "b" / "twin").symlink_to(album / "a")
    (album / "b" / "copy.png").symlink_to(album / "a" / "00.png")
    os.link(album / "a" / "01.png", album / "b" / "hard.png")
    paint(album.parent / "elsewhere" / "linked.png", (77, 0, 0))
    (album / "z").symlink_to(album.parent / "elsewhere")
    for name in (".ipynb_checkpoints/1.png", "__MACOSX/2.png", "b/@eaDir/3.png", "a/._4.png", "Thumbnails/5.png",
                 "Thumbs.db.png/6.png", "run/samples/7.png"):
        paint(album / name, (100 + int(name[-5]), 0, 0))
    (album / "Thumbs.db.png").rename(album / "Thumbs.db")
    os.mkfifo(album / "pipe.png")
    assert firsts(cached(album, leave_out=album / "run")) == [*range(24), 77]
    assert firsts(cached(album)) == [*range(24), 77, 107]


def test_image_folder_never_has_a_picture_in_both_parts(album, capsys):
    for k in range(24):
        paint(album / "again" / f"{k:02}.bmp", (k, 100, 200))  # other bytes, equal pixels
    parts = [firsts(cached(album, train=train)) for train in (True, False)]
    assert sorted(sum(parts, [])) == list(range(24)) and min(map(len, parts)) == 3
    assert "24 of 48 files used; 24 equal to others" in capsys.readouterr().err


def test_image_folder_skips_and_names(album, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program came as data"))
    (album / "a" / "note.txt").write_text("words")
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(noise).save(album / "b" / "12.png")
    (album / "b" / "12.png").write_bytes((album / "b" / "12.png").read_bytes()[:700])
    (album / "b" / "13.png").rename(album / "b" / "13.jpg")  # tried by content
    paint(album / "b" / "small.png", (1, 2, 3), (15, 400))
    for k in range(3):
        (album / "b" / f"{k}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (album / "b" / "eps.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n")
    (album / "b" / "to-nothing.png").symlink_to(tmp_path / "nothing")
    for k, format in enumerate(("BMP", "GIF", "PPM", "TIFF", "WEBP"), 15):
        Image.open(album / "b" / f"{k}.png").save(album / "b" / f"{k}.png", format)
    Image.new("RGB", (20, 20), (200, 9, 9)).save(album / "b" / "23.png", "JPEG")
    assert len(cached(album)) == 23
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("23 of 31 files used;")
    for words in ("3 HEIC, which Pillow cannot read here", "1 TXT, which", "1 PNG, which", "b/12.png", "1 JPG, which",
                  "1 smaller than 16 x 16", "small.png", "1 broken links"):
        assert words in line
    cached(album)
    assert capsys.readouterr().err == ""  # once


def test_transparent_pixels_are_white_and_warnings_are_not_shown(album, capsys, recwarn, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # so that Pillow warns of each
    rgba = np.full((20, 20, 4), (255, 0, 255, 0), np.uint8)
    rgba[:, 10:] = (0, 0, 255, 255)
    Image.fromarray(rgba).save(album / "rgba.png")
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([255, 0, 255, 9, 9, 9])
    palette.save(album / "palette.png", transparency=b"\xff\x80")  # half transparent
    squares = {name: data._square(album / name, 20) for name in ("rgba.png", "palette.png")}
    assert squares["rgba.png"][:, 0, 0].tolist() == [255] * 3 and squares["rgba.png"][:, 0, 19].tolist() == [0, 0, 255]
    assert abs(int(squares["palette.png"][0, 0, 0]) - 132) <= 1
    recwarn.clear()
    assert len(cached(album)) == 26 and len(recwarn) == 0 and capsys.readouterr().err == ""


def png16(colour, channels):
    """A PNG of 20 x 20 with 16 bits a channel, which Pillow reads but does not write."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    rows = (b"\0" + bytes(20 * channels * 2)) * 20
    header = struct.pack(">IIBBBBB", 20, 20, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [
    png16(0, 1), png16(2, 3), png16(4, 2), png16(6, 4), b"P6 20 20 65535\n" + bytes(2400),
    b"P5 20 20 4095\n" + bytes(800), b"P3 20 20 1023\n" + b"9 " * 1200,
], ids=["grey", "RGB", "grey and alpha", "RGBA", "PPM", "PGM", "plain PPM"])
def test_images_of_more_than_8_bits_are_skipped(album, capsys, content):
    (album / "deep").write_bytes(content)
    assert len(cached(album)) == 24 and "1 of more than 8 bits a channel" in capsys.readouterr().err


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

def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_text_codes(tmp_path):
    path = write(tmp_path / "t", "aaabb\n\nc`d\n   \naé日😀\nabcdefgh and so on\n")
    codes, alphabet = data.text(path, length=6)
    assert codes.dtype == torch.int8 and codes.shape == (4, 6)
    assert data.decode(codes, alphabet) == ["aaabb`", "c`d```", "aé日😀``", "abcdef"]
    # Pads (7 with the backquote), a (5), b (3), c and d (2), then those found once, by code point.
    assert alphabet == "\ufffd`abcdefé日😀"
    assert codes[1].tolist() == [4, 1, 5, 1, 1, 1]  # the backquote of the text is the pad


def test_text_rare_characters_are_unknown(tmp_path):
    path = write(tmp_path / "t", "zzz\nyyy\nx\ufffd\n")
    codes, alphabet = data.text(path, length=3, alphabet_size=3)
    assert alphabet == "\ufffdyz"  # equally frequent: the lower code point first
    assert codes.tolist() == [[2, 2, 2], [1, 1, 1], [0, 0, 0]]
    assert data.decode(codes, alphabet) == ["zzz", "yyy", "\ufffd" * 3]
    assert data.text(path, length=3)[1] == "\ufffdyz`x"


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


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_text_lines(tmp_path, pack):
    path = write(tmp_path / "t", pack(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree"))
    assert data.decode(*data.text(path, length=5)) == ["one``", "two``", "three"]
    assert data.decode(*data.text(path, length=5, max_lines=2)) == ["one``", "two``"]


def test_text_folder(tmp_path):
    write(tmp_path / "f" / "2", "second\n")
    write(tmp_path / "f" / "1", "first")
    write(tmp_path / "f" / "sub" / "3", "third\n")
    write(tmp_path / "f" / ".hidden", b"\xff")
    assert data.decode(*data.text(tmp_path / "f", length=6)) == ["first`", "second", "third`"]
    part = tmp_path / "d" / data.BILLION_WORD / "training-monolingual.tokenized.shuffled"
    write(part / "news.en-00002-of-00100", "later\n")
    write(part / "news.en-00001-of-00100", "sooner\n")
    write(part.parent / "heldout-monolingual.tokenized.shuffled" / "news.en-00000-of-00100", "never\n")
    assert data.decode(*data.text("billion-word", tmp_path / "d", length=6)) == ["sooner", "later`"]


def test_text_archive_is_read_no_further_than_needed(tmp_path):
    rng = random.Random(0)
    lines = ["%030x" % rng.getrandbits(120) for _ in range(20_000)]  # hard to compress
    part = f"{data.BILLION_WORD}/training-monolingual.tokenized.shuffled"
    archive = tar(tmp_path / f"{data.BILLION_WORD}.tar.gz", {
        f"{data.BILLION_WORD}/README": b"read me",
        f"{data.BILLION_WORD}/heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100": b"held out",
        f"{part}/news.en-00001-of-00100": "\n".join(lines[:100]).encode(),
        f"{part}/news.en-00002-of-00100": "\n".join(lines[100:]).encode(),
    })
    assert data.decode(*data.text("billion-word", tmp_path)) == [line + "``" for line in lines]
    raw = archive.read_bytes()
    archive.write_bytes(raw[:100_000] + b"garbage" * 30_000)
    few = data.decode(*data.text("billion-word", tmp_path, max_lines=500))
    assert few == [line + "``" for line in lines[:500]]
    assert os.listdir(tmp_path) == [archive.name]
    refused(lambda: data.text("billion-word", tmp_path), str(archive))
    for bad in (b"", b"<html>", raw[:90_000], gzip.compress(b"words")):
        archive.write_bytes(bad)
        refused(lambda: data.text("billion-word", tmp_path), str(archive))
    tar(archive, {"something/else": b"words"})
    refused(lambda: data.text("billion-word", tmp_path), "no lines")


def test_text_archive_damaged_in_the_middle(tmp_path):
    """The reader stops at a bad header, and would lose the rest of the text silently."""
    part = f"{data.BILLION_WORD}/training-monolingual.tokenized.shuffled"
    files = {f"{part}/news.en-0000{i}-of-00100": b"line %d\n" % i * 99 for i in range(1, 4)}
    archive = tar(tmp_path / f"{data.BILLION_WORD}.tar.gz", files)
    raw = gzip.compress(gzip.decompress(archive.read_bytes()), 0)  # not compressed: zlib itself notices nothing
    for place in (raw.index(b"line 2"), raw.index(b"ustar", raw.index(b"line 1"))):  # a text, a header
        archive.write_bytes(raw[:place] + b"x" + raw[place + 1:])
        assert len(data.text("billion-word", tmp_path, max_lines=99)[0]) == 99  # does not get there
        refused(lambda: data.text("billion-word", tmp_path), str(archive), "damaged")


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
    refused(lambda: data.text(tmp_path / "pipe"), "no regular file")
