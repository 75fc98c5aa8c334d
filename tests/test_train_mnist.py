"""train_mnist.py: the subset, the curves and what is said of them, and the script through its command line."""
import functools
import gzip
import os

import numpy as np
import pytest
import torch
from PIL import Image

import data
import models
import runs
import train_mnist as script
import wgan_gp
from conftest import ctrl_c_after, rows, same, states

SMALL = ["--dim", "2", "--batch-size", "8", "--subset", "24", "--measure-every", "2", "--sample-every", "3",
         "--iterations", "5"]


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture
def digits(tmp_path):
    """A folder with MNIST's four files, of 60 and 20 images."""
    random, folder = np.random.default_rng(0), tmp_path / "digits"
    folder.mkdir()
    for part, n in (("train", 60), ("t10k", 20)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", random.integers(0, 256, (n, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", random.integers(0, 10, n))
    return folder


@pytest.fixture
def call(call):
    return functools.partial(call, "train_mnist.py")


# -------------------------------------------------------------------------------------------- the subset, the curves

def test_the_subset_has_its_size_no_image_twice_and_comes_from_the_seed():
    images = torch.arange(500)
    some = script.choose(images, 200, seed=3)
    assert len(some) == 200 == len(set(some.tolist())) and set(some.tolist()) < set(range(500))
    assert torch.equal(some, script.choose(images, 200, seed=3))
    assert not torch.equal(some, script.choose(images, 200, seed=4))
    assert not torch.equal(some.sort()[0], torch.arange(200))  # not the first 200
    torch.manual_seed(1)
    a = torch.rand(())
    torch.manual_seed(1)
    script.choose(images, 10, seed=0)
    assert torch.rand(()) == a  # the global generator is left alone
    with pytest.raises(runs.Mistake, match="500 images to choose from: lower --subset 501"):
        script.choose(images, 501, 0)


def log_of(training, validation):
    """A log with a measurement at every second of 40 iterations, from two functions of the iteration."""
    i = np.arange(1.0, 41)
    measured = i % 2 == 0
    return {"iteration": i, "train_loss": np.where(measured, -training(i), np.nan),
            "held_out_loss": np.where(measured, -validation(i), np.nan)}


def test_trend_is_the_last_gap_and_the_slopes_of_the_last_half(capsys):
    rising = log_of(lambda i: np.where(i < 20, 100, 3 + 0.002 * i), lambda i: np.where(i < 20, -100, 3 - 0.001 * i))
    gap, rise, fall = script.trend(rising)
    assert (rise, fall) == (pytest.approx(2), pytest.approx(-1)) and gap == pytest.approx(0.003 * 39)  # at 38 and 40
    falling = log_of(lambda i: 5 - 0.001 * i, lambda i: 4.9 - 0.002 * i)
    script.report({"wgan-gp": rising, "wgan": falling})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("Section 5.6: gradient penalty: the curves part; training rises, validation falls; "
                    "weight clipping: the curves part")
    script.report({"wgan-gp": falling, "wgan": log_of(lambda i: 4 - 0.002 * i, lambda i: 3 - 0.001 * i)})
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Section 5.6: gradient penalty: the curves part; training does not rise, validation falls; "
        "weight clipping: the curves do not part")


# ----------------------------------------------------------------------------------------------- the command line

def test_the_figure_and_two_runs(call, tmp_path, digits):
    out = tmp_path / "run"
    code, stdout, stderr = call(*SMALL, "--data-dir", digits, "--out", out)
    assert code == 0, stderr
    assert sorted(rows(out)) == ["wgan", "wgan-gp"] and "Section 5.6: gradient penalty" in stdout
    figure = Image.open(out / "figure.png")
    assert figure.width > 2 * 560 and len(figure.convert("RGB").getcolors(1 << 24)) > 20
    for method in ("wgan", "wgan-gp"):
        log = runs.read_log(out / method)
        assert list(log) == [*runs.Run.COLUMNS, "train_loss", "held_out_loss"]
        assert np.isfinite(log["train_loss"]).tolist() == [False, True, False, True, True]
        assert sorted(os.listdir(out / method / "samples")) == ["000003.png", "000005.png"]
        assert Image.open(out / method / "samples" / "000005.png").size == (298, 298)
        assert Image.open(out / method / "curves.png").width > 1000
    # Batch norm under clipping only, in G and in D.
    for method, norms in (("wgan", 3 + 2), ("wgan-gp", 0)):
        state = states(out)[method]
        gains = [w for part in "GD" for name, w in state[part].items() if name.endswith("weight") and w.dim() == 1]
        assert len(gains) == norms
    assert max(w.abs().max() for w in states(out)["wgan"]["D"].values()) <= 0.01


def test_the_losses_are_those_of_the_last_networks_on_subset_and_test_images(call, tmp_path, digits):
    out = tmp_path / "run"
    assert call(*SMALL, "--data-dir", digits, "--out", out, "--method", "wgan-gp", "--seed", "2")[0] == 0
    assert not (out / "wgan-gp").exists() and (out / "figure.png").exists()
    state, log = torch.load(out / "checkpoint.pt", weights_only=True)["objects"], runs.read_log(out)
    G, D = models.mnist_generator(2), models.mnist_critic(2)
    G.load_state_dict(state["G"])
    D.load_state_dict(state["D"])
    for column, train in (("train_loss", True), ("held_out_loss", False)):
        images = data.mnist(digits, train)[0]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
        # The subset of 24 was drawn, then drawn from again for the measurement; the 20 others make two batches of 10.
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


def test_all_of_mnist_is_one_run_with_samples(call, tmp_path, digits, monkeypatch):
    drawn, batches = [], data.batches
    monkeypatch.setattr(data, "batches", lambda images, *rest: drawn.append(images) or batches(images, *rest))
    flags = [*SMALL, "--subset", "0", "--data-dir", digits]
    code, stdout, stderr = call(*flags, "--out", tmp_path / "all")
    assert code == 0, stderr
    assert not (tmp_path / "all" / "figure.png").exists() and (tmp_path / "all" / "samples" / "000005.png").exists()
    everything = data.mnist(digits)[0]
    assert len(drawn[0]) == 60 and torch.equal(drawn[0].double().sum(0), everything.double().sum(0))
    assert call(*flags, "--out", tmp_path / "clipped", "--method", "wgan")[0] == 0


@pytest.mark.parametrize("stop_in", ["wgan-gp", "wgan"])
def test_interrupted_and_resumed_is_the_undisturbed_run_bit_for_bit(call, tmp_path, digits, stop_in):
    command = [*SMALL, "--data-dir", digits]
    assert call(*command, "--out", tmp_path / "whole")[0] == 0
    with ctrl_c_after(3, stop_in):
        code, _, stderr = call(*command, "--out", tmp_path / "cut")
    assert code == 130 and "saved iteration 3" in stderr
    code, _, stderr = call(*command, "--out", tmp_path / "cut", "--resume")
    assert code == 0, stderr
    assert same(states(tmp_path / "whole"), states(tmp_path / "cut"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    for name in ("figure.png", "wgan/samples/000005.png", "wgan-gp/samples/000005.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_one_run_is_resumed_only_where_there_is_one(call, tmp_path, digits):
    command = [*SMALL, "--data-dir", digits, "--method", "wgan", "--out", tmp_path / "run"]
    code, _, stderr = call(*command, "--resume")
    assert code == 2 and "no checkpoint" in stderr
    assert call(*command)[0] == 0 and call(*command, "--resume")[0] == 0


def test_defaults(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_mnist.py"])
    args = script.parse()
    assert (args.subset, args.batch_size, args.method, args.iterations) == (1_000, 50, None, 20_000)
    monkeypatch.setattr("sys.argv", ["train_mnist.py", "--subset", "0"])
    args = script.parse()
    assert (args.batch_size, args.method, args.iterations, args.dim) == (50, "wgan-gp", 200_000, 64)


def test_mistakes_are_one_line(call, tmp_path, digits):
    code, _, stderr = call(*SMALL, "--data", "cifar10", "--out", tmp_path / "none")
    assert code == 2 and "--data cifar10" in stderr.splitlines()[-1]
    code, _, stderr = call(*SMALL, "--data-dir", digits, "--subset", "61", "--out", tmp_path / "none")
    assert code == 2 and "lower --subset 61" in stderr and len(stderr.splitlines()) == 1
    code, _, stderr = call(*SMALL, "--data-dir", digits, "--batch-size", "25", "--out", tmp_path / "none")
    assert code == 1 and "lower --batch-size" in stderr and len(stderr.splitlines()) == 1
    path = digits / "t10k-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    for content, words in [(whole[:-100], "its header says"), (b"\0\0\x0d\3" + whole[4:], "does not begin like an IDX"),
                           (gzip.compress(whole)[:200], "damaged")]:
        path.write_bytes(content)
        code, _, stderr = call(*SMALL, "--data-dir", digits, "--out", tmp_path / "none")
        assert code == 1 and words in stderr and len(stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()
