"""sample.py: samples from a run of every script."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import data
import inception
import sample
import train_cifar_resnet
from test_scripts import SMALL, few_shapes, folder, run  # noqa: F401

PIXELS = {"cifar": (3, 32, 32), "cifar resnet": (3, 32, 32), "mnist": (1, 28, 28), "lsun": (3, 64, 64),
          "random": (3, 32, 32)}
PART = {"mnist": "wgan", "swiss roll": "penalty"}  # one with batch norm, one without
WITHOUT = {"toy": "generator", "proposition": "generator"}  # what these do not have


@pytest.fixture(scope="module")
def finished():
    return {}


@pytest.fixture
def trained(run, finished, tmp_path_factory):  # noqa: F811
    """trained(name) returns the folder of a small run, for all tests."""
    def trained(name):
        if name not in finished:
            finished[name] = tmp_path_factory.mktemp("run") / "run"
            run(name, finished[name], 1)
        found = sorted(finished[name].parent.rglob(f"{PART.get(name, '*')}/checkpoint.pt"))
        return found[0].parent
    return trained


@pytest.fixture
def sampled(call):
    """sampled(*flags, code=0) runs sample.py and returns the last word of its last line."""
    def sampled(*flags, code=0):
        got, stdout, stderr = call(sample.main, *flags)
        assert got == code, stderr
        assert len((stdout + stderr).splitlines()) == 1
        return stderr if code else stdout.split()[-1]
    return sampled


@pytest.mark.parametrize("name", SMALL)
def test_a_run_of_every_script(trained, sampled, tmp_path, name):
    out = trained(name)
    if name in WITHOUT:
        assert WITHOUT[name] in sampled(out, code=1)
        return
    if name == "language":
        path = sampled(out)
        lines = open(path, encoding="utf-8").read().splitlines()
        assert path == str(out / "sample.txt") and len(lines) == 100 and len(set(lines)) > 1
        assert "--npy" in sampled(out, "--npy", tmp_path / "x.npy", code=2)
        return
    path = sampled(out, "-n", 20)
    assert path == str(out / "sample-n20.png")
    picture = Image.open(path).size
    assert sampled(out, "-n", 120, "--npy", tmp_path / "x.npy") == str(tmp_path / "x.npy")
    x = np.load(tmp_path / "x.npy")
    if name in PIXELS:
        assert x.shape == (120, *PIXELS[name]) and x.dtype == np.uint8 and len(np.unique(x)) > 10
        assert inception.check_images(x).shape == (120, 3, *x.shape[2:])
        assert picture == (10 * (x.shape[3] + 2) - 2, 2 * (x.shape[2] + 2) - 2)
    else:
        assert x.shape == (120, 2) and x.dtype == np.float32 and picture == (300, 300)


def test_samples_are_those_of_the_training_script(trained, sampled, tmp_path):
    """The generator's own batches, converted as the script does, batch norm and all."""
    out = trained("cifar resnet")
    args = sample.argparse.Namespace(conditional=True, dim=2, device="cpu")
    G, latents, _ = train_cifar_resnet.generator(args)
    G.load_state_dict(torch.load(out / "checkpoint.pt")["objects"]["G"])
    torch.manual_seed(7)
    with torch.no_grad():
        first, second = G(*latents(100)), G(*latents(100))
    expected = data.to_bytes(torch.cat([first, second])[:150], top=255.99)
    sampled(out, "-n", 150, "--seed", 7, "--npy", tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)


def test_class_and_interpolation(trained, sampled, tmp_path, monkeypatch):
    seen, forward = [], train_cifar_resnet.models.CifarResNetGenerator.forward

    def record(self, z, y):
        seen.append((z, y))
        return forward(self, z, y)
    monkeypatch.setattr(train_cifar_resnet.models.CifarResNetGenerator, "forward", record)
    out = trained("cifar resnet")
    seen.clear()
    assert sampled(out, "--class", 3, "--seed", 2) == str(out / "sample-class3-seed2.png")
    assert sampled(out, "--interpolate") == str(out / "interpolate.png")
    (_, same), (z, y) = seen
    assert set(same.tolist()) == {3}
    rows, labels = z.view(10, 10, 128), y.view(10, 10)
    assert (labels == labels[:, :1]).all() and len(labels.unique()) > 2
    steps = (rows[:, 1:] - rows[:, :-1]).norm(dim=2)
    assert torch.allclose(steps, steps.mean(1, keepdim=True).expand_as(steps), rtol=0.2)  # even ones
    assert (steps.sum(1) > 10).all()  # from one latent to another: random ones are about 16 apart
    assert "conditional" in sampled(trained("cifar"), "--class", 3, code=2)


def test_latents_on_the_way_are_normal():
    torch.manual_seed(0)
    z = sample.walk(torch.randn(2_000, 8), torch.randn(2_000, 8)).view(2_000, 10, 8)
    assert (z.std((0, 2)) - 1).abs().max() < 0.05
    a, b = torch.randn(3, 8), torch.randn(3, 8)
    walk = sample.walk(a, b).view(3, 10, 8)
    assert torch.allclose(walk[:, 0], a, atol=1e-6) and torch.allclose(walk[:, -1], b, atol=1e-6)


def test_the_seed_and_a_running_run(trained, sampled, tmp_path):
    out = trained("cifar")
    arrays = []
    for flags in (["--seed", 1], ["--seed", 1], ["--seed", 2]):
        sampled(out, *flags, "-n", 30, "--npy", tmp_path / "x.npy", "--out", tmp_path / "x.png")
        arrays.append(np.load(tmp_path / "x.npy"))
    assert np.array_equal(arrays[0], arrays[1]) and not np.array_equal(arrays[0], arrays[2])
    assert Image.open(tmp_path / "x.png").size == (10 * 34 - 2, 3 * 34 - 2)


def test_mistakes_are_one_line(trained, sampled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs/a"
    assert "no-such is not a run: choose one of these (none)" in sampled("no-such", code=1)
    shutil.copytree(trained("cifar"), out)
    assert "no-such is not a run: choose one of these (runs/a)" in sampled("no-such", code=1)
    assert "runs is not a run: choose one of these (runs/a)" in sampled("runs", code=1)
    assert "sample.py: error: the following arguments are required: RUN" in sampled(code=2)
    good, config = (out / "checkpoint.pt").read_bytes(), (out / "config.json").read_text()
    (out / "checkpoint.pt").unlink()
    assert "runs/a is not a run" in sampled(out, code=1)
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 16  # a flipped bit, which torch.load accepts
    (out / "checkpoint.pt").write_bytes(damaged)
    assert "damaged" in sampled(out, code=1)
    (out / "checkpoint.pt").write_bytes(good)
    for old, new, says in [('"dim": 2', '"dim": 3', "does not fit"), ('"dim": 2', '"other": 2', "does not fit"),
                           ("train_cifar.py", "os.py", "none of the scripts"),
                           ("train_cifar.py", "../x/train_cifar.py", "none of the scripts")]:
        assert old in config
        (out / "config.json").write_text(config.replace(old, new))
        assert says in sampled(out, code=1)
