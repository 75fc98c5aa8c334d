"""train_toy.py: what its critics and its GAN are trained on and with, the pictures, the animation."""
import argparse
import functools

import numpy as np
import pytest
import torch
from PIL import Image

import data
import models
import runs
import train_toy as script
import wgan_gp
from conftest import ctrl_c_after

SMALL = ["--dim", "8", "--batch-size", "16"]


@pytest.fixture
def call(call):
    return functools.partial(call, "train_toy.py")


@pytest.fixture
def steps(monkeypatch):
    """Record (G, D, opt_D, rate, x, z, y, method) of each critic step, and compute nothing."""
    steps = []

    def step(G, D, opt_D, x, z, *y, method):
        steps.append((G, D, opt_D, opt_D.param_groups[0]["lr"], x, z, y, method))
        return torch.zeros(3)
    monkeypatch.setattr(wgan_gp, "critic_step", step)
    monkeypatch.setattr(runs.Run, "draw_curves", lambda *_: None)
    return steps


# ---- the figure ----

def test_the_figure_has_six_surfaces_in_two_rows_and_the_progress_says_which(call, tmp_path, monkeypatch):
    drawn, draw = {}, script.draw_surface
    monkeypatch.setattr(script, "draw_surface", lambda D, args: drawn.setdefault(
        f"{args.data} {args.method}", draw(D, args)))
    code, stdout, stderr = call(*SMALL, "--iterations", 2, "--out", tmp_path)
    assert code == 0 and stdout.splitlines()[-1] == f"done: {tmp_path}/figure.png"
    names = [f"{toy} {method}" for method in ("wgan", "wgan-gp") for toy in data.TOYS]
    assert list(drawn) == names and all(f"{i}/6 {name} 2/2 " in stderr for i, name in enumerate(names, 1))
    figure = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    corners = []
    for panel in map(np.asarray, drawn.values()):
        views = np.lib.stride_tricks.sliding_window_view(figure, (1, panel.shape[1], 3))[..., 0, 0, :, :]
        (y, x), = np.argwhere((views == panel[150]).all((2, 3)))
        corners.append((x, y))
        assert (figure[y - 150:y + 150, x:x + 300] == panel).all()
    top, bottom = corners[:3], corners[3:]
    assert len({y for _, y in top}) == len({y for _, y in bottom}) == 1 and top[0][1] + 300 <= bottom[0][1]
    assert [x for x, _ in top] == [x for x, _ in bottom] == sorted({x for x, _ in top})


def test_the_fixed_generator_is_the_data_plus_unit_noise_paired(call, tmp_path, steps):
    assert call("--data", "8gaussians", "--batch-size", 4000, "--iterations", 2, "--out", tmp_path)[0] == 0
    assert len(steps) == 4
    for G, _, _, _, x, z, y, _ in steps:
        assert torch.equal(G(z, *y), x + z)
        assert [z.mean().item(), z.std().item()] == pytest.approx([0, 1], abs=0.05)
        assert x.norm(dim=1).mean().item() == pytest.approx(2 / 1.414, rel=0.01)
    assert not torch.equal(steps[0][5], steps[1][5])


@pytest.mark.parametrize("name, flags, width, batch, lr", [
    ("wgan-gp", [], 128, 128, 3e-3), ("wgan", [], 128, 128, 5e-5), ("wgan-gp", ["--dim", "9"], 9, 128, 3e-3),
    ("wgan-gp", ["--paper"], 512, 256, 1e-4), ("wgan", ["--paper"], 512, 256, 5e-5)])
def test_what_a_critic_is_trained_with(call, tmp_path, monkeypatch, steps, name, flags, width, batch, lr):
    monkeypatch.setattr(script, "ROWS", {name: ""})
    assert call("--data", "25gaussians", "--iterations", 100, *flags, "--out", tmp_path)[0] == 0
    falls = flags != ["--paper"]
    assert [step[3] for step in steps] == pytest.approx([lr * (1 - i / 100 * falls) for i in range(100)])
    _, D, opt_D, _, x, _, _, method = steps[0]
    assert str(D) == str(models.toy_critic(width)) and x.shape == (batch, 2)
    assert method == wgan_gp.METHODS[name]._replace(lr=lr)
    assert type(opt_D) is {"wgan": torch.optim.RMSprop, "wgan-gp": torch.optim.Adam}[name]


@pytest.mark.parametrize("flags, lengths", [
    ([], {"wgan": 2_000, "wgan-gp": 11_000}), (["--paper"], {"wgan": 500_000, "wgan-gp": 500_000})])
def test_how_long_critics_are_trained(call, tmp_path, monkeypatch, flags, lengths):
    seen = {}

    def start(run, **_):
        seen[run.args.method] = run.args.iterations
        return run.args.iterations
    monkeypatch.setattr(runs.Run, "start", start)
    monkeypatch.setattr(runs.Run, "finish", lambda *_: None)
    assert call(*SMALL, "--data", "8gaussians", *flags, "--out", tmp_path)[0] == 0
    assert seen == lengths


def test_the_surface_is_upright():
    """D grows upwards: bright at the top. The row y, column x of a grid is the point (x, y)."""
    args = argparse.Namespace(device="cpu", seed=0, data="8gaussians")
    for D, bright in ((lambda x: x[:, 1], (150, 3)), (lambda x: x[:, 0], (296, 150))):
        picture = script.draw_surface(D, args)
        brightness = {at: sum(picture.getpixel(at)) for at in [(150, 3), (296, 150), (150, 296), (3, 150)]}
        assert max(brightness, key=brightness.get) == bright


# ---- the GAN ----

def test_what_the_gan_is_trained_with(call, tmp_path, monkeypatch):
    def train(G, D, batches, latents, opt_G, opt_D, method, iterations, start, seed, decay):
        x, z = next(batches), latents(20_000)
        assert str(G) == str(models.toy_generator(128)) and str(D) == str(models.toy_critic(128))
        rates = {(group["lr"], group["betas"]) for opt in (opt_G, opt_D) for group in opt.param_groups}
        assert rates == {(4e-3, (0.0, 0.9))} and method == wgan_gp.WGAN_GP._replace(lam=0.1, lr=4e-3)
        assert z.shape == (20_000, 2) and z.std().item() == pytest.approx(1, abs=0.02)
        assert (iterations, len(x), decay, seed) == (5_000, 128, True, 0)
        raise KeyboardInterrupt
    monkeypatch.setattr(wgan_gp, "train", train)
    assert call("--train-generator", "--out", tmp_path)[0] == 130


def test_the_animation_is_a_loop_of_all_samples_also_after_resuming(call, tmp_path):
    command = ["--train-generator", *SMALL, "--iterations", 6, "--sample-every", 2, "--out", tmp_path]
    with ctrl_c_after(3):
        assert call(*command)[0] == 130
    code, _, stderr = call(*command, "--resume")
    assert code == 0 and stderr.splitlines()[-1] == f"done: {tmp_path}/training.gif"
    gif = Image.open(tmp_path / "training.gif")
    assert gif.info["loop"] == 0 and gif.n_frames == 4  # after 2, 3 (Ctrl-C), 4 and 6 iterations
    for i, name in enumerate(("000002", "000003", "000004", "000006")):
        gif.seek(i)
        frame = np.asarray(gif.convert("RGB").crop((12, 12, 312, 312)), float)
        assert np.abs(frame - np.asarray(Image.open(tmp_path / "samples" / f"{name}.png"))).mean() < 8
    assert gif.info["duration"] > 1_000
    log = runs.read_log(tmp_path)
    assert np.isfinite(log["share_near_modes"]).tolist() == [False, True, True, True, False, True]


def test_a_long_animation_is_thinned_and_ends_with_the_last_picture(tmp_path):
    for i in range(25):
        Image.new("RGB", (40, 40), (10 * i, 0, 0)).save(tmp_path / f"{10 ** 5 * (i + 1):06d}.png")
    (tmp_path / "a.gif").write_bytes(script.animate(tmp_path, most=10))
    gif, reds = Image.open(tmp_path / "a.gif"), []
    for i in range(gif.n_frames):
        gif.seek(i)
        reds.append(gif.convert("RGB").getpixel((30, 30))[0])
    assert reds == pytest.approx([0, 30, 60, 90, 120, 150, 180, 210, 240], abs=3)


def test_samples_near_modes_are_counted(monkeypatch):
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[0.0, 0.29], [0.0, 0.31], [1.0, 0.0], [1.1, 0.1], [5.0, 5.0]])
    monkeypatch.setattr(data, "modes", lambda name: (centres, 0.1))
    assert script.near_modes(x, "8gaussians") == {"share_near_modes": pytest.approx(0.6), "modes_hit": 2}
    assert script.near_modes(x, "swissroll") == {}
