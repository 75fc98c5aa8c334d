"""data.py: what comes out is what went in, and every file that is not what it should be gets one line."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import math
import os
import random
import socket
import struct
import tarfile
import threading

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


# ---------------------------------------------------------------------------------------------------- toys


def check_mixture(x, centres, deviation):
    """Points x lie about `centres`, equally many at each, with Gaussian residuals of `deviation`."""
    nearest = torch.cdist(x, centres).argmin(1)
    share = torch.bincount(nearest, minlength=len(centres)) / len(x)
    assert (share * len(centres) - 1).abs().max() < 5 * math.sqrt(len(centres) / len(x))
    residual = (x - centres[nearest]) / deviation
    assert (residual.std(0) - 1).abs().max() < 0.02
    assert residual.mean(0).abs().max() < 0.02
    assert abs((residual**4).mean() / 3 - 1) < 0.05  # a Gaussian's fourth moment


def test_eight_gaussians():
    torch.manual_seed(0)
    r = 2 / 1.414
    d = r * math.sqrt(0.5)
    expected = torch.tensor([[r, 0], [d, d], [0, r], [-d, d], [-r, 0], [-d, -d], [0, -r], [d, -d]])
    x = data.eight_gaussians(40_000)
    assert x.shape == (40_000, 2) and x.dtype == torch.float32
    check_mixture(x, expected, 0.02 / 1.414)
    centres, deviation = data.modes("8gaussians")
    assert torch.allclose(centres, expected, atol=1e-6) and deviation == 0.02 / 1.414


def test_twenty_five_gaussians():
    torch.manual_seed(0)
    expected = torch.tensor([[i, j] for i in (-4, -2, 0, 2, 4) for j in (-4, -2, 0, 2, 4)]) / 2.828
    check_mixture(data.twenty_five_gaussians(50_000), expected, 0.05 / 2.828)
    centres, deviation = data.modes("25gaussians")
    assert torch.allclose(centres, expected) and deviation == 0.05 / 2.828


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


# ------------------------------------------------------------------------------------------------- CIFAR-10


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


def tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
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


def test_cifar_archive(cifar):
    folder, pixels, labels, _ = cifar
    check_cifar(folder, pixels, labels)
    assert os.listdir(folder) == ["cifar-10-python.tar.gz"]  # nothing unpacked


def test_cifar_folder(cifar):
    folder, pixels, labels, files = cifar
    (folder / "cifar-10-python.tar.gz").unlink()
    (folder / "cifar-10-batches-py").mkdir()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
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
    refused(lambda: data.cifar10(folder), "it has no data_batch_1")

    good = files["cifar-10-batches-py/test_batch"]
    x = pixels[5].numpy()
    for raw, words in {
        b"": "", good[:500]: "", b"\x80\x02]." + good: "", b"\x80\x02}.": "data",
        python2_batch(x, [1, 2]): "3 x 32 x 32", python2_batch(x[:, :768], [1, 2, 3]): "3 x 32 x 32",
        python2_batch(x, [1, 2, 3], b"i1"): "3 x 32 x 32", python2_batch(x, [1, 2, 10]): "0 to 9",
    }.items():
        tar(archive, {**files, "cifar-10-batches-py/test_batch": raw})
        refused(lambda: data.cifar10(folder, train=False), words, "delete it")


# ---------------------------------------------------------------------------------------------------- MNIST


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
    x, y = data.mnist(folder)
    assert x.dtype == torch.uint8 and torch.equal(x, pixels[:, None])
    assert y.dtype == torch.int64 and torch.equal(y, labels.long())
    x, y = data.images("mnist", folder, train=False)
    assert torch.equal(x, pixels[:, None].flip(0)) and torch.equal(y, labels.long().flip(0))


def test_mnist_bad_files(digits):
    folder, pixels, _ = digits
    path = folder / "train-images-idx3-ubyte.gz"
    good = idx(pixels.numpy())
    for raw in (b"", good[:9], good[:-1], good + b"\0", gzip.compress(good)[:-99], b"\0\0\x08\x01" + good[4:],
                b"\0\0\x0d\x03" + good[4:], idx(pixels[:, :27].numpy()), b"\x1f\x8bnonsense"):
        path.write_bytes(raw)
        refused(lambda: data.mnist(folder), str(path), "delete it")
    path.write_bytes(idx(pixels[:4].numpy()))
    refused(lambda: data.mnist(folder), "5 labels for 4 images")


# ------------------------------------------------------------------------------------------------ downloads


@pytest.fixture
def server(tmp_path):
    """(address, folder it serves, names asked for)"""
    folder = tmp_path / "published"
    folder.mkdir()
    asked = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder.parent))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/published/", folder, asked
        running.shutdown()


@pytest.fixture
def nowhere():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{s.getsockname()[1]}/"  # bound but not listening: refuses every connection


def publish(monkeypatch, path):
    monkeypatch.setitem(data.SHA256, path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_download_cifar(cifar, server, monkeypatch, tmp_path):
    folder, pixels, labels, _ = cifar
    address, published, asked = server
    archive = published / "cifar-10-python.tar.gz"
    (folder / archive.name).rename(archive)
    publish(monkeypatch, archive)
    monkeypatch.setattr(data, "CIFAR10_URLS", [address])
    fresh = tmp_path / "made" / "anew"
    check_cifar(fresh, pixels, labels)
    assert os.listdir(fresh) == [archive.name] and len(asked) == 1  # the second reading found it


def test_download_with_wrong_checksum_is_not_kept(cifar, server, monkeypatch, tmp_path):
    folder = cifar[0]
    address, published, _ = server
    (folder / "cifar-10-python.tar.gz").rename(published / "cifar-10-python.tar.gz")
    monkeypatch.setattr(data, "CIFAR10_URLS", [address])  # but the checksum stays the true archive's
    fresh = tmp_path / "fresh"
    refused(lambda: data.cifar10(fresh), address + "cifar-10-python.tar.gz", "sha256", "--data shapes")
    assert os.listdir(fresh) == []


def test_download_cut_short_is_not_kept_though_no_checksum_is_known(monkeypatch, tmp_path):
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(bytes(5_000))

        def log_message(self, *_):
            pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(data, "BILLION_WORD_URLS", [f"http://127.0.0.1:{running.server_port}/"])
        refused(lambda: data.text("billion-word", tmp_path), "cut short of its 100,000 bytes", "--data the path")
        running.shutdown()
    assert os.listdir(tmp_path) == []


def test_download_without_network(nowhere, monkeypatch, tmp_path):
    for urls in ("CIFAR10_URLS", "MNIST_URLS", "BILLION_WORD_URLS"):
        monkeypatch.setattr(data, urls, [nowhere])
    for call, name, way_out in (
            (data.cifar10, "cifar-10-python.tar.gz", "--data shapes"),
            (data.mnist, "train-images-idx3-ubyte.gz", "--data shapes"),
            (lambda folder: data.text("billion-word", folder), data.BILLION_WORD + ".tar.gz", "a text file")):
        refused(lambda: call(tmp_path), nowhere + name, f"put {name} into {tmp_path}", way_out)
    assert os.listdir(tmp_path) == [] and socket.getdefaulttimeout() is None


def test_download_tries_the_second_address(digits, server, nowhere, monkeypatch, tmp_path):
    folder, pixels, _ = digits
    address, published, _ = server
    for path in folder.glob("train-*"):
        path.rename(published / path.name)
        publish(monkeypatch, published / path.name)
    monkeypatch.setattr(data, "MNIST_URLS", [nowhere, address + "missing/", address])
    assert torch.equal(data.mnist(tmp_path / "fresh")[0], pixels[:, None])


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refused(lambda: data.cifar10(tmp_path / "file" / "data"), "cannot write", "--data-dir")


# --------------------------------------------------------------------------------------------------- shapes


def test_shapes_are_the_same_everywhere():
    before = torch.get_rng_state()
    x, y = data.shapes(600)
    assert torch.equal(torch.get_rng_state(), before)
    assert x.shape == (600, 3, 32, 32) and x.dtype == torch.uint8 and y.dtype == torch.int64
    assert hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()[:16] == "e993033ae7576c2c"
    few, labels = data.shapes(7)
    assert torch.equal(few, x[:7]) and torch.equal(labels, y[:7])
    assert not torch.equal(data.shapes(7, seed=1)[0], few)


def test_shapes_are_ten_and_varied():
    x, y = data.shapes(3000)
    assert (torch.bincount(y, minlength=10) - 300).abs().max() < 80 and len(data.SHAPE_NAMES) == 10
    assert len(torch.unique(x.flatten(1), dim=0)) == 3000
    # The shape stands out from all four corners of the background.
    grey = x.float().mean(1)
    corners = torch.stack([grey[:, i, j] for i in (0, -1) for j in (0, -1)], 1)
    apart = (grey.flatten(1)[:, :, None] - corners[:, None]).abs().amin(2).amax(1)
    assert apart.quantile(0.05) > 25
    assert (x.float().mean((2, 3)).std(0) > 35).all()  # all colours


def test_shapes_at_twice_the_size_are_the_same_drawings():
    """A coarse pixel is the mean of the four fine ones it covers: what anti-aliasing means."""
    coarse, fine = data.shapes(500)[0].float(), data.shapes(500, size=64)[0].float()
    off = (torch.nn.functional.avg_pool2d(fine, 2) - coarse).abs()
    assert off.mean() < 0.6 and (off > 16).float().mean() < 0.002
    assert data.shapes(3, size=128)[0].shape == (3, 3, 128, 128)


def test_shapes_have_their_areas():
    side = (np.arange(800, dtype=np.float32) + 0.5) / 400 - 1
    x, y = np.meshgrid(side, side)
    star = 10 * 0.5 * 0.42 * math.sin(math.pi / 5)
    half = math.acos(0.6 / 1.35)  # the drop: at the disc's centre, from the tip to where the tangent touches
    # The crescent's two discs overlap in two segments, seen from their centres under these half angles.
    a = math.acos((0.45**2 + 0.95**2 - 0.75**2) / (2 * 0.45 * 0.95))
    b = math.acos((0.45**2 + 0.75**2 - 0.95**2) / (2 * 0.45 * 0.75))
    overlap = 0.95**2 * (a - math.sin(2 * a) / 2) + 0.75**2 * (b - math.sin(2 * b) / 2)
    exact = {
        "circle": math.pi * 0.85**2,
        "ring": math.pi * (0.9**2 - 0.5**2),
        "crescent": math.pi * 0.95**2 - overlap,
        "drop": 0.6 * 1.35 * math.sin(half) + 0.36 * (math.pi - half),
        "heart": 0.78**2 * 2 + math.pi * 0.5515**2,
        "square": 2,
        "triangle": 0.75 * 3**0.5,
        "cross": 4 * 0.6 * 0.95 - 0.6**2,
        "star": star,
        "arrow": 0.9 * 0.8 + 0.56 * 1.05,
    }
    for name in data.SHAPE_NAMES:
        inside = data._distance(name, x, y) < 0
        assert inside.any() and not inside[x * x + y * y > 1.05].any()
        assert abs(inside.mean() * 4 / exact[name] - 1) < 0.01, name


def test_polygon_distance():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1.2, 1.2, (2, 300)).astype(np.float32)
    for corners in data.POLYGONS.values():
        edges = zip(corners, corners[1:] + corners[:1])
        along = np.linspace(0, 1, 2000)[:, None]
        outline = np.concatenate([np.array(a) * (1 - along) + np.array(b) * along for a, b in edges])
        nearest = np.hypot(outline[:, 0] - x[:, None], outline[:, 1] - y[:, None]).min(1)
        assert np.allclose(np.abs(data._polygon(x, y, corners)), nearest, atol=2e-3)


def test_images_is_the_door_to_shapes():
    x, y = data.images("shapes")
    held, _ = data.images("shapes", train=False, size=32)
    assert x.shape == (20_000, 3, 32, 32) and y.shape == (20_000,) and held.shape == (2_000, 3, 32, 32)
    assert len({image.tobytes() for image in torch.cat([x, held]).numpy()}) == 22_000  # none is in both


def test_images_refuses_what_there_is_not(cifar, digits):
    folder = cifar[0]
    refused(lambda: data.images("cifar10", folder, size=64), "32", "64")
    refused(lambda: data.images("mnist", folder, size=32), "28", "32")
    refused(lambda: data.images("imagenet", folder), "'imagenet'", "choose cifar10, mnist, shapes")
    refused(lambda: data.images("imagenet", folder, size=64), "choose shapes or a folder")
    assert data.images("cifar10", folder, size=32)[0].shape[2:] == (32, 32)


# -------------------------------------------------------------------------------------------------- batches


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


def test_batches_draw_with_replacement_and_uniformly():
    torch.manual_seed(0)
    stream = data.batches(numbered(20), 20, lambda x: x[:, 0, 0, 0].long())
    drawn = torch.stack([next(stream)[0] for _ in range(2000)])
    assert len(next(stream)) == 1
    distinct = torch.tensor([len(row.unique()) for row in drawn]).float().mean()
    assert abs(distinct - 20 * (1 - (19 / 20)**20)) < 0.15  # without replacement it would be 20
    assert (torch.bincount(drawn.flatten()) / 2000 - 1).abs().max() < 0.12


def test_batches_of_a_memory_map_are_those_of_the_tensor(tmp_path):
    x = numbered(40)
    (tmp_path / "raw").write_bytes(x.numpy().tobytes())
    mapped = np.memmap(tmp_path / "raw", np.uint8, "r", shape=(40, 3, 4, 4))
    torch.manual_seed(1)
    expected = next(data.batches(x, 16, data.from_bytes))
    torch.manual_seed(1)
    assert torch.equal(next(data.batches(mapped, 16, data.from_bytes))[0], expected[0])


def test_in_order_gives_everything_once(tmp_path):
    x, y = numbered(20), torch.arange(20) * 3
    (tmp_path / "raw").write_bytes(x.numpy().tobytes())
    mapped = np.memmap(tmp_path / "raw", np.uint8, "r", shape=(20, 3, 4, 4))
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
    with pytest.raises(data.DataError, match="1 images are too few"):
        list(data.in_order(numbered(1), 4, data.from_bytes))


def test_batches_need_a_batch():
    refused(lambda: data.batches(numbered(7), 8, data.from_bytes), "7 images", "batch of 8")
    next(data.batches(numbered(8), 8, data.from_bytes))


# --------------------------------------------------------------------------------------------------- pixels

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


# -------------------------------------------------------------------------------------------- image folders


def paint(path, colour, size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def album(tmp_path):
    """A folder of 24 images in two subfolders, the k-th by path having k in its first channel, and a note."""
    for k in range(24):
        paint(tmp_path / "album" / ("a" if k < 10 else "b") / f"{k:02}.png", (k, 100, 200))
    (tmp_path / "album" / "note.txt").write_text("not an image, and not meant to be")
    return tmp_path / "album"


def firsts(pixels):
    return pixels[:, 0, 0, 0].tolist()


def test_image_folder(album, tmp_path, capsys):
    pixels = data.image_folder(album, 16, tmp_path / "cache")
    assert isinstance(pixels, np.memmap) and pixels.shape == (24, 3, 16, 16) and pixels.dtype == np.uint8
    assert firsts(pixels) == list(range(24))
    assert (pixels[:, 1] == 100).all() and (pixels[:, 2] == 200).all()
    assert "24 of 24" in (said := capsys.readouterr().err) and "skipped" not in said


def test_image_folder_split(album, tmp_path):
    train, labels = data.images(str(album), size=16, cache_dir=tmp_path / "c")
    held, _ = data.images(str(album), size=16, cache_dir=tmp_path / "c", train=False)
    assert labels is None and firsts(held) == [0, 10, 20]
    assert sorted(firsts(train) + firsts(held)) == list(range(24)) and firsts(train) == sorted(firsts(train))
    assert next(data.batches(train, 4, data.from_bytes))[0].shape == (4, 3, 16, 16)


def test_image_folder_crops_the_centre_and_antialiases(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (16, 40, 3), np.uint8)
    tall = rng.integers(0, 256, (41, 16, 3), np.uint8)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    for name, pixels in {"1wide": wide, "2tall": tall, "3stripes": stripes}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    Image.fromarray(wide[:, :, 0]).save(tmp_path / "4grey.png")
    camera = Image.Exif()
    camera[0x112] = 6  # "turn me a quarter clockwise"
    Image.fromarray(wide).save(tmp_path / "5turned.png", exif=camera)
    pixels = data.image_folder(tmp_path, 16, tmp_path / "cache")
    assert np.array_equal(pixels[0], wide[:, 12:28].transpose(2, 0, 1))
    assert np.array_equal(pixels[1], tall[12:28].transpose(2, 0, 1))
    assert np.abs(pixels[2].astype(int) - 100)[:, :, 2:-2].max() <= 3  # without averaging: 0 or 200
    assert all(np.array_equal(channel, wide[:, 12:28, 0]) for channel in pixels[3])
    assert np.array_equal(pixels[4], np.rot90(wide[:, 12:28], -1).transpose(2, 0, 1))


def test_image_folder_is_read_once(album, tmp_path, monkeypatch):
    first = data.image_folder(album, 16, tmp_path / "cache")
    monkeypatch.setattr(data, "_square", None)
    monkeypatch.chdir(album.parent)
    again = data.image_folder("album", 16, tmp_path / "cache")
    assert np.array_equal(first, again)
    refused(lambda: data.image_folder(album, 8, tmp_path / "cache"))  # another size is another cache


def interrupted(*_):
    raise KeyboardInterrupt


def interrupt(monkeypatch, after):
    square, count = data._square, iter(range(after))

    def until(path, size):
        return interrupted() if next(count, None) is None else square(path, size)

    monkeypatch.setattr(data, "_square", until)


def test_image_folder_interrupted(album, tmp_path):
    cache = tmp_path / "cache"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 9)
        data.image_folder(album, 16, cache)
    assert os.listdir(cache) == []
    whole = data.image_folder(album, 16, cache)
    assert firsts(whole) == list(range(24))

    # The second making, of a changed folder, is interrupted: the first must not pass for it.
    paint(album / "a" / "00.png", (77, 7, 7))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 9)
        data.image_folder(album, 16, cache)
    assert firsts(data.image_folder(album, 16, cache))[0] == 77

    # A process that is killed cleans nothing up: bytes without their .json, and a partial file.
    for path in cache.glob("*.json"):
        path.unlink()
    for path in cache.glob("*.uint8"):
        path.write_bytes(bytes(path.stat().st_size))
    (cache / "something.partial").write_bytes(b"half")
    assert firsts(data.image_folder(album, 16, cache)) == [77, *range(1, 24)]


def test_image_folder_interrupted_between_its_two_files(album, tmp_path):
    """The bytes of the changed folder beside the .json of the old one, and then the change is undone."""
    cache, image = tmp_path / "cache", album / "a" / "00.png"
    data.image_folder(album, 16, cache)
    before, times = image.read_bytes(), image.stat()
    paint(image, (77, 7, 7))
    replace = os.replace
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda a, b: interrupted() if b.suffix == ".json" else replace(a, b))
        data.image_folder(album, 16, cache)
    image.write_bytes(before)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert firsts(data.image_folder(album, 16, cache)) == list(range(24))


def test_image_folder_changed(album, tmp_path, capsys):
    cache = tmp_path / "cache"
    data.image_folder(album, 16, cache)
    paint(album / "b" / "99.png", (99, 0, 0))
    assert firsts(data.image_folder(album, 16, cache))[-1] == 99
    assert "the folder has changed" in capsys.readouterr().err
    size = (album / "b" / "99.png").stat().st_size
    paint(album / "b" / "99.png", (98, 0, 0))
    assert (album / "b" / "99.png").stat().st_size == size  # only the time tells
    assert firsts(data.image_folder(album, 16, cache))[-1] == 98
    (album / "a" / "03.png").unlink()
    assert firsts(data.image_folder(album, 16, cache)) == [0, 1, 2, *range(4, 24), 98]
    for image in album.rglob("*.png"):
        image.unlink()
    with pytest.raises(data.DataError, match="has no image that can be used"):
        data.image_folder(album, 16, cache)


def test_image_folder_broken_cache(album, tmp_path, capsys):
    cache = tmp_path / "cache"
    whole = np.array(data.image_folder(album, 16, cache))
    (about,), (pixels,) = cache.glob("*.json"), cache.glob("*.uint8")
    good = about.read_text()
    capsys.readouterr()
    raw = whole.tobytes()
    for text, raw in ((good, raw[:-1]), (good, raw + b"x"), (good, b""), ("", raw), ("[]", raw),
                      (good[:-9], raw), (json.dumps({**json.loads(good), "count": None}), b"")):
        about.write_text(text)
        pixels.write_bytes(raw)
        assert np.array_equal(data.image_folder(album, 16, cache), whole)
        assert f"making {pixels} again" in capsys.readouterr().err
    pixels.unlink()
    assert np.array_equal(data.image_folder(album, 16, cache), whole)


def test_image_folder_skips_and_names(album, tmp_path, capsys):
    (album / "a" / "broken.jpg").write_bytes(b"not a JPEG")
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(noise).save(album / "b" / "12.png")
    (album / "b" / "12.png").write_bytes((album / "b" / "12.png").read_bytes()[:700])
    paint(album / "b" / "small.png", (1, 2, 3), (15, 400))
    (album / "b" / "to-nothing.png").symlink_to(tmp_path / "nothing")
    paint(album / "b" / "._hidden.png", (1, 2, 3))
    assert firsts(data.image_folder(album, 16, tmp_path / "cache")) == [k for k in range(24) if k != 12]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert "4 of 27 images skipped" in line and line.endswith("...") and "hidden" not in line
    assert all(word in line for word in ("broken.jpg", "12.png", "small.png (15 x 400 is smaller than 16)"))
    (known,) = (json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*.json"))
    assert known["count"] == 23


def test_image_folder_refused(album, tmp_path):
    cache = tmp_path / "cache"
    refused(lambda: data.image_folder(tmp_path / "missing", 16, cache), "no folder", "missing")
    refused(lambda: data.image_folder(album, 32, cache), "at least 32 x 32", "20 x 20 is smaller than 32")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "note.txt").write_text("words")
    refused(lambda: data.image_folder(tmp_path / "bare", 16, cache), "no image")
    refused(lambda: data.image_folder(album, 16, album / "note.txt" / "cache"), "cannot cache")
    assert os.listdir(cache) == []


# ----------------------------------------------------------------------------------------------------- text


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_text_codes(tmp_path):
    path = write(tmp_path / "t", "aaabb\n\nc`d\n   \naé日😀\nabcdefgh and so on\n")
    codes, alphabet = data.text(path, length=6)
    assert codes.dtype == torch.uint8 and codes.shape == (4, 6)
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
    for size, dtype, length in ((256, torch.uint8, 256), (257, torch.int16, 257), (2048, torch.int16, 2048),
                                (9999, torch.int16, 3001)):
        codes, alphabet = data.text(path, length=1, alphabet_size=size)
        assert codes.dtype == dtype and len(alphabet) == length
        assert codes.max() == length - 1 and codes.min() >= 0


def test_text_lines(tmp_path):
    path = write(tmp_path / "t", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree")
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


def test_text_refused(tmp_path):
    refused(lambda: data.text(write(tmp_path / "empty", "")), "empty", "no lines")
    refused(lambda: data.text(write(tmp_path / "blank", "\n \n")), "no lines")
    refused(lambda: data.text(write(tmp_path / "latin", "caf\xe9\n".encode("latin-1"))), "latin", "not UTF-8")
    refused(lambda: data.text(write(tmp_path / "image", bytes(range(256)))), "not UTF-8")
    refused(lambda: data.text(str(tmp_path / "missing")), "missing", "billion-word")
    (tmp_path / "bare").mkdir()
    refused(lambda: data.text(tmp_path / "bare"), "no lines")


def test_images_of_more_than_8_bits_are_skipped_and_a_changed_target_of_a_link_is_seen(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.full((32, 32), 30_000, np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "target.png")
    (folder / "link.png").symlink_to(tmp_path / "target.png")
    images = data.image_folder(str(folder), 32, tmp_path / "cache")
    assert images.shape == (1, 3, 32, 32) and (images == 9).all()
    assert "1 of 2 images skipped" in (said := capsys.readouterr().err) and "more than 8 bits" in said
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "target.png")
    assert data.image_folder(str(folder), 32, tmp_path / "cache")[0, 0].min() == 200
