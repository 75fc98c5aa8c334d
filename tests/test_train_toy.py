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
    return steps


# ---- the figure ----

def test_the_figure_has_six_surfaces_in_two_rows_and_the_progress_says_which(call, tmp_path):
    code, stdout, stderr = call(*SMALL, "--iterations", 2, "--out", tmp_path)
    assert code == 0 and stdout.splitlines()[-1] == f"done: {tmp_path}/figure.png"
    names = [f"{toy} {method}" for method in ("wgan", "wgan-gp") for toy in data.TOYS]
    assert all(f"{i}/6 {name} 2/2 " in stderr for i, name in enumerate(names, 1))
    figure = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    corners = []
    for name in names:
        panel = np.asarray(Image.open(tmp_path / name.replace(" ", "-") / "surface.png").convert("RGB"))
        views = np.lib.stride_tricks.sliding_window_view(figure, (1, panel.shape[1], 3))[..., 0, 0, :, :]
        corner, = np.argwhere((views == panel[150]).all((2, 3)))
        corners.append(tuple(corner))
        y, x = corner
        assert (figure[y - 150:y + 150, x:x + 300] == panel).all()
    top, bottom = corners[:3], corners[3:]
    assert len({y for y, _ in top}) == len({y for y, _ in bottom}) == 1 and top[0][0] + 300 <= bottom[0][0]
    assert [x for _, x in top] == [x for _, x in bottom] == sorted({x for _, x in top})


def test_the_fixed_generator_is_the_data_plus_unit_noise_paired(call, tmp_path, steps):
    assert call("--data", "8gaussians", "--batch-size", 4000, "--iterations", 2, "--out", tmp_path)[0] == 0
    assert len(steps) == 4
    for G, _, _, _, x, z, y, _ in steps:
        assert torch.equal(G(z, *y), x + z)
        assert z.std().item() == pytest.approx(1, abs=0.05) and z.mean().item() == pytest.approx(0, abs=0.05)
        assert x.norm(dim=1).mean().item() == pytest.approx(2 / 1.414, rel=0.01)
    assert not torch.equal(steps[0][5], steps[1][5])


@pytest.mark.parametrize("flags, iterations, width, batch, rates, lam", [
    (["--iterations", "100"], 100, 128, 128, [3e-3 * (1 - i / 100) for i in range(100)], 10),
    (["--paper", "--iterations", "5"], 5, 512, 256, [1e-4] * 5, 10),
    (["--lr", "0.5", "--lam", "3", "--iterations", "4", "--dim", "9"], 4, 9, 128, [0.5, 0.375, 0.25, 0.125], 3)])
def test_what_a_critic_is_trained_with(call, tmp_path, monkeypatch, steps, flags, iterations, width, batch, rates, lam):
    monkeypatch.setattr(runs.Run, "log", lambda *_, **__: None)
    monkeypatch.setattr(runs.Run, "draw_curves", lambda *_: None)
    monkeypatch.setattr(script, "METHODS", {"wgan-gp": ""})
    assert call("--data", "25gaussians", *flags, "--beta1", "0.25", "--out", tmp_path)[0] == 0
    assert [step[3] for step in steps] == pytest.approx(rates) and len(steps) == iterations
    _, D, opt_D, _, x, _, _, method = steps[0]
    assert str(D) == str(models.toy_critic(width)) and x.shape == (batch, 2)
    assert type(opt_D) is torch.optim.Adam and opt_D.param_groups[0]["betas"] == (0.25, 0.9)
    assert method.lam == lam and not method.clip and not method.one_sided


def test_what_a_clipped_critic_is_trained_with(call, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(runs.Run, "log", lambda *_, **__: None)
    monkeypatch.setattr(runs.Run, "draw_curves", lambda *_: None)
    monkeypatch.setattr(script, "METHODS", {"wgan": ""})
    assert call("--data", "8gaussians", "--iterations", 100, "--out", tmp_path)[0] == 0
    assert [step[3] for step in steps] == pytest.approx([5e-5 * (1 - i / 100) for i in range(100)])
    assert steps[0][7] == wgan_gp.METHODS["wgan"] and type(steps[0][2]) is torch.optim.RMSprop
    assert len(steps[0][4]) == 128


@pytest.mark.parametrize("flags, lengths", [([], (11_000, 2_000)), (["--paper"], (500_000, 500_000))])
def test_how_long_critics_are_trained(call, tmp_path, monkeypatch, flags, lengths):
    for name, iterations in zip(("wgan-gp", "wgan"), lengths):
        monkeypatch.setattr("sys.argv", ["train_toy.py", *flags])
        args = script.parse()
        script.settle(args, name)
        assert args.iterations == iterations


# ---- the GAN ----

@pytest.mark.parametrize("flags, expected", [
    ([], (5_000, 128, 128, True, 0.1, 4e-3)), (["--paper"], (100_000, 512, 256, False, 10, 1e-4))])
def test_what_the_gan_is_trained_with(call, tmp_path, monkeypatch, flags, expected):
    def train(G, D, batches, latents, opt_G, opt_D, method, iterations, start, seed, decay):
        (x,), (z,) = next(batches), latents(20_000)
        assert [str(G), str(D)] == [str(models.toy_generator(expected[1])), str(models.toy_critic(expected[1]))]
        rates = {(group["lr"], group["betas"]) for opt in (opt_G, opt_D) for group in opt.param_groups}
        assert rates == {(method.lr, (0.0, 0.9))} and method.n_critic == 5 and seed == 0
        assert z.shape == (20_000, 2) and z.std().item() == pytest.approx(1, abs=0.02)
        assert (iterations, expected[1], len(x), decay, method.lam, method.lr) == expected
        raise KeyboardInterrupt
    monkeypatch.setattr(wgan_gp, "train", train)
    assert call("--train-generator", *flags, "--out", tmp_path)[0] == 130


def test_the_animation_is_a_loop_of_all_samples_also_after_resuming(call, tmp_path):
    command = ["--train-generator", *SMALL, "--iterations", 6, "--sample-every", 2, "--out", tmp_path]
    with ctrl_c_after(3):
        assert call(*command)[0] == 130
    code, _, stderr = call(*command, "--resume")
    assert code == 0 and stderr.splitlines()[-1] == f"done: {tmp_path}/training.gif"
    gif, frames = Image.open(tmp_path / "training.gif"), []
    assert gif.info["loop"] == 0 and gif.n_frames == 4  # after 2, 3 (Ctrl-C), 4 and 6 iterations
    for i, name in enumerate(("000002", "000003", "000004", "000006")):
        gif.seek(i)
        frames.append(gif.convert("RGB").crop((12, 12, 312, 312)))
        difference = np.asarray(frames[i], float) - np.asarray(Image.open(tmp_path / "samples" / f"{name}.png"))
        assert np.abs(difference).mean() < 8
    assert gif.info["duration"] > 1_000
    log = runs.read_log(tmp_path)
    assert np.isfinite(log["share_near_modes"]).tolist() == [False, True, True, True, False, True]


def test_a_long_animation_is_thinned_and_ends_with_the_last_picture(tmp_path):
    for i in range(25):
        Image.new("RGB", (40, 40), (10 * i, 0, 0)).save(tmp_path / f"{10 ** 5 * (i + 1):06d}.png")
    (tmp_path / "a.gif").write_bytes(script.animate(tmp_path, most=10))
    gif = Image.open(tmp_path / "a.gif")
    reds = []
    for i in range(gif.n_frames):
        gif.seek(i)
        reds.append(gif.convert("RGB").getpixel((30, 30))[0])
    assert reds == pytest.approx([0, 30, 60, 90, 120, 150, 180, 210, 240], abs=3)


def test_samples_near_modes_are_counted():
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[0.0, 0.29], [0.0, 0.31], [1.0, 0.0], [1.1, 0.1], [5.0, 5.0]])
    assert script.near_modes(x, centres, 0.1) == {"share_near_modes": pytest.approx(0.6), "modes_hit": 2}


def test_the_surface_is_upright():
    """D grows upwards: bright at the top. The row y, column x of a grid is the point (x, y)."""
    args = argparse.Namespace(device="cpu", seed=0, data="8gaussians")
    for D, bright in ((lambda x: x[:, 1], (150, 3)), (lambda x: x[:, 0], (296, 150))):
        picture = script.draw_surface(D, args)
        brightness = {at: sum(picture.getpixel(at)) for at in [(150, 3), (296, 150), (150, 296), (3, 150)]}
        assert max(brightness, key=brightness.get) == bright


def test_a_run_of_the_gan_can_be_sampled_and_the_figure_cannot(call, tmp_path):
    assert call("--train-generator", *SMALL, "--iterations", 1, "--out", tmp_path)[0] == 0
    args = argparse.Namespace(**runs.read_config(tmp_path)["flags"])
    G, latents, to_bytes = script.generator(args)
    G.load_state_dict(torch.load(tmp_path / "checkpoint.pt")["objects"]["G"])
    samples = wgan_gp.sample(G, latents, 2, 50, convert=to_bytes)
    assert samples.shape == (1, 3, 300, 300) and samples.dtype == torch.uint8
    args.train_generator = False
    with pytest.raises(runs.Mistake, match="no generator"):
        script.generator(args)
