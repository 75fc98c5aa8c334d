"""train_lsun.py: the 28 runs, their commands, Figure 2 drawn from them."""
import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import data
import plots
import runs
import train_lsun

SMALL = ["train_lsun.py", "--data", "shapes", "--dim", "4", "--batch-size", "4"]
ALL = [(architecture, method) for architecture in train_lsun.ROWS for method in train_lsun.COLUMNS]
QUICK = [("gated", "wgan-gp"), ("mlp", "lsgan"), ("no-norm", "wgan"), ("tanh", "dcgan")]


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 24), seed, size))


def parsed(monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["train_lsun.py", "--device", "cpu", *flags])
    return train_lsun.parse()


# ---- runs ----

@pytest.mark.parametrize("architecture, method", [
    pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in ALL])
def test_each_of_the_28_trains(call, tmp_path, architecture, method):
    code, _, stderr = call(*SMALL, "--architecture", architecture, "--method", method, "--iterations", 2,
                           "--out", tmp_path)
    assert code == 0, stderr
    log = runs.read_log(tmp_path)
    assert log["iteration"].tolist() == [1, 2] and np.isfinite(log["held_out_loss"][1])
    assert all(np.isfinite(log[column]).all() for column in runs.Run.COLUMNS)
    assert (log["penalty"] > 0).all() == (method == "wgan-gp")
    assert Image.open(tmp_path / "samples" / "000002.png").size == (8 * 66 - 2, 8 * 66 - 2)
    assert Image.open(tmp_path / "figure5a.png").size == (560, 360)


def test_128_pixels_from_a_folder_that_is_cached_once(call, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(20):
        image = Image.fromarray(random.integers(0, 256, (130, 140, 3), dtype=np.uint8))
        image.save(tmp_path / "photos" / f"{i}.png")
    command = ["train_lsun.py", "--data", tmp_path / "photos", "--data-dir", tmp_path / "data", "--size", 128,
               "--architecture", "resnet", "--dim", "4", "--batch-size", "2", "--iterations", 1]
    code, _, stderr = call(*command, "--out", tmp_path / "photos" / "a")  # the samples there are no data
    assert code == 0, stderr
    made = [path.stat() for path in (tmp_path / "data").rglob("*.*")]
    assert Image.open(tmp_path / "photos" / "a" / "samples" / "000001.png").width == 8 * 130 - 2
    code, _, stderr = call(*command, "--out", tmp_path / "photos" / "a", "--resume")
    assert code == 0 and made and made == [path.stat() for path in (tmp_path / "data").rglob("*.*")], stderr


def test_pictures_are_always_of_the_same_latents(call, tmp_path, monkeypatch):
    generator, latents = train_lsun.generator, []

    def fixed(args):
        G, draw, to_bytes = generator(args)
        G.register_forward_pre_hook(lambda G, z: latents.append(z[0]) if len(z[0]) == 64 else None)
        return G, draw, to_bytes
    monkeypatch.setattr(train_lsun, "generator", fixed)
    assert call(*SMALL, "--iterations", 3, "--sample-every", 1, "--out", tmp_path)[0] == 0
    assert len(latents) == 3 and latents[0].std() > 0.9
    assert all(torch.equal(z, latents[0]) for z in latents)


# ---- figures and commands ----

def test_the_negative_critic_loss_is_drawn_with_its_sign(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "line_chart", lambda series, *_, pale, **__: drawn.extend([series[""], pale[""]]))
    loss = -np.linspace(9, 3, 100) + np.tile([1, -1], 50)
    runs.write_csv(tmp_path / "log.csv", ["iteration", "critic_loss"], [[i + 1, v] for i, v in enumerate(loss)])
    train_lsun.negative_critic_loss(tmp_path)
    (_, smoothed), (_, raw) = drawn
    assert np.allclose(raw, -loss, atol=1e-4) and np.allclose(smoothed[5:-5], np.linspace(9, 3, 100)[5:-5], atol=0.1)


def test_28_commands_that_parse_and_keep_the_other_flags(call, monkeypatch):
    code, stdout, _ = call("train_lsun.py", "--commands", "--data", "my photos", "--iterations", 7, "--out", "there",
                           "--beta1", 0.25, "--architecture", "tanh")
    assert code == 0
    seen = []
    for line in stdout.splitlines():
        python, script, *flags = shlex.split(line)
        args = parsed(monkeypatch, *flags)
        assert (python, script, args.commands) == ("python", "train_lsun.py", False)
        assert (args.data, args.iterations) == ("my photos", 7)
        assert ("--beta1" in flags) == (args.method in ("wgan-gp", "dcgan"))
        assert args.beta1 == (0.25 if "--beta1" in flags else 0.5)
        assert args.out == f"there/{args.architecture}-{args.method}"
        seen.append((args.architecture, args.method))
    assert seen == ALL
    _, stdout, _ = call("train_lsun.py", "--commands", "--data", "shapes")
    folders = [parsed(monkeypatch, *shlex.split(line)[2:]).out for line in stdout.splitlines()]
    assert len(set(folders)) == 28 and "runs/shapes-gated-lsgan" in folders


@pytest.fixture
def two_runs(call, tmp_path):
    """Two runs with samples of one colour, and a run of another script: {(architecture, method): colour}."""
    colours = {("mlp", "wgan-gp"): (200, 0, 0), ("tanh", "wgan"): (0, 200, 0)}
    for (architecture, method), colour in colours.items():
        out = tmp_path / f"{architecture}-{method}"
        code, *_ = call(*SMALL, "--architecture", architecture, "--method", method, "--iterations", 1, "--out", out)
        assert code == 0
        Image.new("RGB", (526, 526), "white").save(out / "samples" / "000001.png")
        Image.new("RGB", (526, 526), colour).save(out / "samples" / "000002.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"script": "train_cifar.py", "flags": {}}')
    return colours


def test_figure_2_has_each_runs_newest_samples_in_its_cell(call, tmp_path, two_runs):
    code, stdout, stderr = call("train_lsun.py", "--grid", "--out", tmp_path)
    assert code == 0 and "drew 2 of 28" in stdout, stderr
    assert stdout.split()[-1] == str(tmp_path / "figure2.png")
    pixels = np.asarray(Image.open(tmp_path / "figure2.png")).astype(int)
    at = {}
    for pair, colour in two_runs.items():
        y, x = np.nonzero((abs(pixels - colour) < 3).all(2))
        assert len(y) == 262 * 130
        at[pair] = y.mean(), x.mean()
    assert at["tanh", "wgan"][0] > at["mlp", "wgan-gp"][0] and at["tanh", "wgan"][1] < at["mlp", "wgan-gp"][1]
    assert Image.open(tmp_path / "figure5a.png").width > 1_000


@pytest.mark.parametrize("name", ["config.json", "log.csv", "samples/000002.png"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:len(raw) // 2], lambda raw: b"", lambda raw: bytes(len(raw)),
                                    lambda raw: raw.replace(b"critic", b"citric").replace(b"PNG", b"GNP")])
def test_a_damaged_file_is_named_or_does_not_matter(call, tmp_path, two_runs, name, damage):
    path = tmp_path / "mlp-wgan-gp" / name
    path.write_bytes(damage(path.read_bytes()))
    code, _, stderr = call("train_lsun.py", "--grid", "--out", tmp_path)
    if code:
        line, = stderr.splitlines()
        assert code == 1 and str(path) in line and ":" in line
    else:
        assert name != "samples/000002.png"


def test_two_runs_of_a_cell_are_not_mixed(call, tmp_path, two_runs):
    path = tmp_path / "tanh-wgan" / "config.json"
    config = json.loads(path.read_text())
    config["flags"].update(architecture="mlp", method="wgan-gp")
    path.write_text(json.dumps(config))
    code, _, stderr = call("train_lsun.py", "--grid", "--out", tmp_path)
    assert code == 1 and "a second mlp by wgan-gp: move one" in stderr
    code, _, stderr = call("train_lsun.py", "--grid", "--out", tmp_path / "none")
    assert code == 1 and "no run of Figure 2" in stderr and "--commands" in stderr
