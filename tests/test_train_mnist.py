"""train_mnist.py: the subset, the two losses, the slopes and the figure."""
import gzip

import numpy as np
import pytest
import torch
from PIL import Image

import data
import models
import runs
import train_mnist as script
import wgan_gp
from conftest import rows, states

SMALL = ["--dim", "2", "--batch-size", "8", "--subset", "24", "--measure-every", "2", "--sample-every", "3",
         "--iterations", "5"]


def write_digits(folder):
    """Write MNIST's four files, with 60 and 20 images of noise."""
    random = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 20)):
        arrays = {"images-idx3": random.integers(0, 256, (n, 28, 28)), "labels-idx1": random.integers(0, 10, n)}
        for name, array in arrays.items():
            head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            content = gzip.compress(head + array.astype(np.uint8).tobytes())
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(content)


@pytest.fixture
def call(call, tmp_path):
    """call(*flags) trains on the digits in tmp_path, with an exit code of 0. It returns the standard output."""
    def trained(*flags):
        code, stdout, stderr = call("train_mnist.py", *SMALL, "--data-dir", tmp_path, *flags)
        assert code == 0, stderr
        return stdout
    write_digits(tmp_path)
    return trained


def test_the_subset_has_its_size_no_image_twice_and_comes_from_the_seed():
    images = torch.arange(500)
    some = script.choose(images, 200, seed=3)
    assert len(some) == 200 == len(set(some.tolist())) and set(some.tolist()) < set(range(500))
    assert torch.equal(some, script.choose(images, 200, seed=3))
    assert not torch.equal(some, script.choose(images, 200, seed=4))
    assert not torch.equal(some.sort()[0], torch.arange(200))  # not the first 200
    assert len(script.choose(images, None, 0)) == len(script.choose(images, 501, 0)) == 500


def test_the_slope_and_an_error_that_repeated_measurements_do_not_shrink():
    x = np.arange(1_000) / 10
    assert script.slope(x, 3 - 0.25 * x) == (pytest.approx(-0.25), pytest.approx(0, abs=1e-6))
    random = np.random.default_rng(0)
    found = [script.slope(x, 0.5 * x + random.normal(size=1_000)) for _ in range(300)]
    rises, errors = np.array(found).T
    assert rises.mean() == pytest.approx(0.5, abs=1e-3)
    assert np.sqrt((errors ** 2).mean()) == pytest.approx(rises.std(), rel=0.15)
    slow = [np.repeat(random.normal(size=100), 10) for _ in range(300)]  # ten neighbours alike
    rises, errors = np.array([script.slope(x, y) for y in slow]).T
    assert np.sqrt((errors ** 2).mean()) == pytest.approx(rises.std(), rel=0.15)


def test_slopes_are_those_of_the_negative_losses_in_the_second_half(capsys):
    x = np.arange(1.0, 401)
    measured = x % 2 == 0
    log = {"iteration": x, "train_loss": np.where(measured, np.where(x < 201, 9, -0.002 * x), np.nan),
           "held_out_loss": np.where(measured, np.where(x < 201, -9, 0.001 * x), np.nan)}
    script.describe({"wgan": log})
    training, validation = capsys.readouterr().out.splitlines()
    assert training.startswith("weight clipping, training images: slope +2 ±")
    assert validation.startswith("weight clipping, validation images: slope -1 ±")
    script.describe({"wgan": {name: column[:30] for name, column in log.items()}})
    assert capsys.readouterr().out == ""  # 7 measurements say nothing


def test_the_figure_has_a_chart_for_each_of_two_runs(call, tmp_path):
    call("--out", tmp_path / "run")
    assert sorted(rows(tmp_path / "run")) == ["wgan", "wgan-gp"]
    figure = Image.open(tmp_path / "run" / "figure.png").convert("RGB")
    assert figure.width > 2 * 560 and len(figure.getcolors(1 << 24)) > 20
    for method in ("wgan", "wgan-gp"):
        log = runs.read_log(tmp_path / "run" / method)
        assert np.isfinite(log["train_loss"]).tolist() == [False, True, False, True, True]
        assert runs.read_config(tmp_path / "run" / method)["flags"]["method"] == method  # for sample.py
    found = states(tmp_path / "run")
    assert max(w.abs().max() for w in found["wgan"]["D"].values()) <= 0.01
    assert len(found["wgan"]["D"]) == len(found["wgan-gp"]["D"]) + 4  # two batch norms, under clipping only
    assert np.nanmax(np.abs(runs.read_log(tmp_path / "run/wgan")["train_loss"])) < 1  # without a penalty, near 10


def test_the_losses_are_those_of_the_last_networks_on_subset_and_test_images(call, tmp_path):
    call("--out", tmp_path / "run", "--method", "wgan-gp", "--seed", "2")
    assert (tmp_path / "run" / "figure.png").exists()
    state, log = states(tmp_path / "run")[""], runs.read_log(tmp_path / "run")
    G, D = models.mnist_generator(2), models.mnist_critic(2)
    G.load_state_dict(state["G"])
    D.load_state_dict(state["D"])
    for column, train in (("train_loss", True), ("held_out_loss", False)):
        images = data.mnist(tmp_path, train)[0]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
        # The subset of 24 was drawn, then drawn from again for the measurement. The 20 others make two batches of 10.
        again = torch.randperm(24, generator=torch.Generator().manual_seed(2))
        x, m = (images[order[:24]][again], 8) if train else (images[order], 10)
        torch.manual_seed(5)  # the iteration
        losses = []
        for i in range(0, len(x), m):
            real = x[i:i + m] / 255
            with torch.no_grad():
                fake = G(torch.randn(m, 128))
            loss = D(fake).mean() - D(real).mean() + 10 * wgan_gp.gradient_penalty(D, real, fake)
            losses.append(loss.item())
        assert log[column][-1] == pytest.approx(np.mean(losses), rel=1e-4)


def test_all_of_mnist_is_one_run_with_samples(call, tmp_path, monkeypatch):
    drawn, batches = [], data.batches
    monkeypatch.setattr(data, "batches", lambda images, *rest: drawn.append(images) or batches(images, *rest))
    assert call("--subset", "0", "--out", tmp_path / "all") == ""
    assert not (tmp_path / "all" / "figure.png").exists()
    assert Image.open(tmp_path / "all" / "samples" / "000005.png").size == (298, 298)
    everything = data.mnist(tmp_path)[0]
    assert len(drawn[0]) == 60 and torch.equal(drawn[0].double().sum(0), everything.double().sum(0))
