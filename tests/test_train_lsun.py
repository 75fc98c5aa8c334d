"""train_lsun.py: the 28 runs, Figure 2 drawn from them, and mistakes."""
import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import data
import runs
import train_lsun
import wgan_gp

SMALL = ["train_lsun.py", "--data", "shapes", "--dim", "4", "--batch-size", "4"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few shapes instead of 20,000."""
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 24), seed, size))


def photographs(folder, n, size=(80, 70)):
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def parsed(monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["train_lsun.py", *flags])
    return train_lsun.parse()


# ------------------------------------------------------------------------------------------------------------- runs

ALL = [(architecture, method) for architecture in train_lsun.ROWS for method in train_lsun.COLUMNS]
QUICK = [("gated", "wgan-gp"), ("mlp", "lsgan"), ("no-norm", "wgan"), ("tanh", "dcgan")]


@pytest.mark.parametrize("architecture, method", [
    pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in ALL])
def test_each_of_the_28_trains(call, tmp_path, architecture, method):
    code, _, stderr = call(*SMALL, "--architecture", architecture, "--method", method, "--iterations", 2, "--out", tmp_path)
    assert code == 0, stderr
    log = runs.read_log(tmp_path)
    assert log["iteration"].tolist() == [1, 2] and np.isfinite(log["held_out_loss"][1])
    assert all(np.isfinite(log[column]).all() for column in runs.Run.COLUMNS)
    assert (log["penalty"] > 0).all() == (method == "wgan-gp")
    assert Image.open(tmp_path / "samples" / "000002.png").size == (8 * 66 - 2, 8 * 66 - 2)
    assert Image.open(tmp_path / "figure5a.png").size == (560, 360)


@pytest.mark.parametrize("architecture, expected", [
    ("dcgan", {"layer": 3, "batch": 0}), ("no-norm", {"layer": 0, "batch": 0})])
def test_the_critic_has_layer_norm_under_the_penalty_alone(monkeypatch, architecture, expected):
    for method in train_lsun.COLUMNS:
        args = parsed(monkeypatch, "--architecture", architecture, "--method", method, "--dim", "4", "--device", "cpu")
        _, _, D = train_lsun.make(args)
        kinds = [type(m) for m in D.modules()]
        layer, batch = kinds.count(torch.nn.GroupNorm), kinds.count(torch.nn.BatchNorm2d)
        if method == "wgan-gp":
            assert (layer, batch) == (expected["layer"], expected["batch"])
        else:
            assert (layer, batch) == (expected["batch"], expected["layer"])


def test_the_hyperparameters_of_appendix_e(monkeypatch):
    optimisers = {}
    for method in train_lsun.COLUMNS:
        made, G, _ = train_lsun.make(parsed(monkeypatch, "--method", method, "--dim", "4", "--device", "cpu"))
        optimisers[method] = made.optimizer(G.parameters())
    settings = {name: (type(o).__name__, o.defaults["lr"], o.defaults.get("betas")) for name, o in optimisers.items()}
    assert settings == {"wgan-gp": ("Adam", 1e-4, (0.5, 0.9)), "wgan": ("RMSprop", 5e-5, None),
                        "dcgan": ("Adam", 2e-4, (0.5, 0.999)), "lsgan": ("RMSprop", 1e-4, None)}
    args = parsed(monkeypatch, "--beta1", "0", "--dim", "4", "--device", "cpu")
    assert train_lsun.make(args)[0].optimizer.keywords["betas"] == (0, 0.9)


def test_128_pixels_from_a_folder_whose_cache_all_runs_share(call, tmp_path):
    photos = photographs(tmp_path / "photos", 20, (140, 130))
    command = ["train_lsun.py", "--data", photos, "--size", 128, "--architecture", "resnet", "--dim", "4",
               "--batch-size", "2", "--iterations", 1]
    code, _, stderr = call(*command, "--out", tmp_path / "runs" / "a")
    assert code == 0 and "caching images: 18 of 18" in stderr, stderr
    assert Image.open(tmp_path / "runs" / "a" / "samples" / "000001.png").width == 8 * 130 - 2
    code, _, stderr = call(*command, "--out", tmp_path / "runs" / "b", "--seed", 1)
    assert code == 0 and "caching" not in stderr
    assert len(list((tmp_path / "runs").glob("*.uint8"))) == 2  # to train on, and held out


def test_pictures_are_always_of_the_same_latents_and_in_the_bytes_of_64_pixels(call, tmp_path, monkeypatch):
    drawn, sample = [], wgan_gp.sample

    def spy(G, latents, n, *rest, **conversion):
        if n == 64:
            drawn.append((latents(n)[0], conversion["convert"](torch.tensor([-1.0, 0.997]))))
        return sample(G, latents, n, *rest, **conversion)
    monkeypatch.setattr(wgan_gp, "sample", spy)
    code, _, stderr = call(*SMALL, "--iterations", 3, "--sample-every", 1, "--out", tmp_path)
    assert code == 0, stderr
    assert len(drawn) == 3 and all(torch.equal(z, drawn[0][0]) for z, _ in drawn) and drawn[0][0].std() > 0.9
    assert drawn[0][1].tolist() == [0, 255]  # 1.997 * 255.99/2 is 255.6; with 255 it would be 254


def test_the_negative_critic_loss_is_drawn_with_its_sign(monkeypatch):
    drawn = []
    monkeypatch.setattr(runs, "line_chart", lambda series, *texts, **rest: drawn.append((series[""], rest["pale"][""])))
    log = {"iteration": np.arange(1.0, 101), "critic_loss": -np.linspace(9, 3, 100) + np.tile([1, -1], 50)}
    train_lsun.negative_critic_loss(log, (100, 100))
    (_, smoothed), (_, raw) = drawn[0]
    assert np.array_equal(raw, -log["critic_loss"])
    assert np.allclose(smoothed[5:-5], np.linspace(9, 3, 100)[5:-5], atol=0.1)


# ------------------------------------------------------------------------------------------------- Figure 2, commands

def test_28_commands_that_parse_and_keep_the_other_flags(call, monkeypatch):
    code, stdout, _ = call("train_lsun.py", "--commands", "--data", "my photos", "--iterations", 7, "--out", "there",
                           "--beta1", 0.25, "--architecture", "tanh")
    lines = stdout.splitlines()
    assert code == 0 and len(lines) == 28
    seen = set()
    for line in lines:
        python, script, *flags = shlex.split(line)
        args = parsed(monkeypatch, *flags)
        assert (python, script) == ("python", "train_lsun.py") and not args.commands
        assert (args.data, args.iterations) == ("my photos", 7) and ("--beta1" in flags) == (args.method in ("wgan-gp", "dcgan"))
        assert args.out == f"there/{args.architecture}-{args.method}"
        seen.add((args.architecture, args.method))
    assert seen == set(ALL)


def test_figure_2_has_each_runs_samples_in_its_cell(call, tmp_path):
    colours = {("mlp", "wgan"): (200, 0, 0), ("tanh", "wgan-gp"): (0, 200, 0)}
    for (architecture, method), colour in colours.items():
        out = tmp_path / f"{architecture}-{method}"
        assert call(*SMALL, "--architecture", architecture, "--method", method, "--iterations", 1, "--out", out)[0] == 0
        Image.new("RGB", (526, 526), colour).save(out / "samples" / "000001.png")
    assert call("train_cifar.py", "--data", "shapes", "--dim", "2", "--batch-size", "4", "--score-every", "0",
                "--iterations", 1, "--out", tmp_path / "another")[0] == 0  # of another script: left out
    code, stdout, stderr = call("train_lsun.py", "--grid", "--out", tmp_path)
    assert code == 0 and "drew 2 of 28" in stdout, stderr
    pixels = np.asarray(Image.open(tmp_path / "figure2.png")).astype(int)
    at = {}
    for pair, colour in colours.items():
        y, x = np.nonzero((abs(pixels - colour) < 3).all(2))
        assert len(y) == 262 * 130
        at[pair] = y.mean(), x.mean()
    assert at["tanh", "wgan-gp"][0] > at["mlp", "wgan"][0] and at["tanh", "wgan-gp"][1] > at["mlp", "wgan"][1]
    assert Image.open(tmp_path / "figure5a.png").width > 1_000


# ---------------------------------------------------------------------------------------------------------- mistakes

@pytest.mark.parametrize("flags, says", [
    (["--size", "128"], "dcgan has 64 x 64 networks alone"),
    (["--size", "96"], "--size"),
    (["--architecture", "resnet101", "--dim", "6"], "multiple of 4"),
    (["--method", "wgan", "--beta1", "0"], "--beta1 is Adam's"),
    (["--commands", "--dim", "6"], "multiple of 4"),
    (["--commands", "--grid"], "not allowed with"),
    (["--architecture", "vgg"], "--architecture"),
])
def test_flags_that_cannot_be(call, tmp_path, flags, says):
    code, _, stderr = call("train_lsun.py", "--data", "shapes", "--out", tmp_path / "a", *flags)
    assert code == 2 and says in stderr.splitlines()[-1] and not (tmp_path / "a").exists()


def one_line(result, *says):
    code, _, stderr = result
    line = stderr.splitlines()[-1]
    assert code == 1 and "Traceback" not in stderr and all(word in line for word in says), stderr


def test_folders_that_do_not_do(call, tmp_path, monkeypatch):
    run = ["--dim", "4", "--iterations", "1", "--out", tmp_path / "runs" / "a"]
    monkeypatch.chdir(tmp_path)
    one_line(call("train_lsun.py", *run), "data/lsun", "README", "--data shapes")
    one_line(call("train_lsun.py", "--data", "nowhere", *run), "nowhere")
    (tmp_path / "empty").mkdir()
    one_line(call("train_lsun.py", "--data", tmp_path / "empty", *run), "has no image that can be used")
    few = photographs(tmp_path / "few", 20)
    one_line(call("train_lsun.py", "--data", few, "--batch-size", 19, *run), "18 images", "fewer than a batch of 19", "--batch-size")
    small = photographs(tmp_path / "small", 20, (70, 63))
    one_line(call("train_lsun.py", "--data", small, "--batch-size", 4, *run), "at least 64 x 64")
    one_line(call("train_lsun.py", "--data", "cifar10", *run), "32 x 32")
    assert not (tmp_path / "runs" / "a").exists()


def test_a_damaged_cache_is_made_again(call, tmp_path):
    photos = photographs(tmp_path / "photos", 20)
    command = ["train_lsun.py", "--data", photos, "--dim", "4", "--batch-size", "4", "--iterations", 1]
    assert call(*command, "--out", tmp_path / "runs" / "a")[0] == 0
    cache, = (tmp_path / "runs").glob("photos-train-64-*.uint8")
    whole = cache.read_bytes()
    cache.write_bytes(whole[:1000])
    code, _, stderr = call(*command, "--out", tmp_path / "runs" / "b")
    assert code == 0 and "again" in stderr and cache.read_bytes() == whole


def test_figures_that_cannot_be_drawn(call, tmp_path):
    one_line(call("train_lsun.py", "--grid", "--out", tmp_path), "no run of train_lsun.py", "--commands")
    for name, dim in [("a", 4), ("b", 8)]:
        assert call("train_lsun.py", "--data", "shapes", "--dim", dim, "--batch-size", "4", "--iterations", 1,
                    "--architecture", "mlp", "--method", ["lsgan", "wgan"][name == "b"], "--out", tmp_path / name)[0] == 0
    one_line(call("train_lsun.py", "--grid", "--out", tmp_path), "do not belong in one figure", "width 4", "width 8")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["flags"].update(dim=4, method="lsgan")
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    one_line(call("train_lsun.py", "--grid", "--out", tmp_path), "both mlp with lsgan")
    (tmp_path / "b" / "config.json").write_text("{")
    one_line(call("train_lsun.py", "--grid", "--out", tmp_path), "damaged")
