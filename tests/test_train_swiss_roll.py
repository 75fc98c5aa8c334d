"""train_swiss_roll.py: its measurements against other ways to compute them, constraints, settings, figure."""
import argparse
import csv
import functools

import numpy as np
import pytest
import torch
from PIL import Image

import models
import runs
import train_swiss_roll as script
import wgan_gp
from conftest import rows, states

SMALL = ["--dim", "8", "--depth", "3", "--batch-size", "16", "--measure-every", "2", "--iterations", "4"]


@pytest.fixture
def call(call):
    return functools.partial(call, "train_swiss_roll.py")


# ---- measurements ----

def test_gradient_norms_are_what_the_chain_rule_gives():
    """h_i = relu(W_i h_{i-1} + b_i), D = w.h_3: the gradient is w at h_3, and W_i^T (mask_i * gradient) one before."""
    torch.manual_seed(0)
    D = models.toy_critic(dim=7, depth=3).double()
    for parameter in D.parameters():  # biases too
        torch.nn.init.normal_(parameter, std=0.5)
    linear = [layer for layer in D.modules() if isinstance(layer, torch.nn.Linear)]
    x, x_tilde = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    expected = np.zeros(3)
    for point in [*x, *x_tilde]:
        h, masks = point, []
        for layer in linear[:3]:
            a = layer.weight @ h + layer.bias
            masks.append(a > 0)
            h = a * masks[-1]
        gradient = linear[3].weight[0]
        for i in (2, 1, 0):
            expected[i] += gradient.norm().item() / 10
            gradient = linear[i].weight.T @ (masks[i] * gradient)
    assert np.allclose(script.gradient_norms(D, x, x_tilde), expected, rtol=1e-12, atol=0)


def test_gradient_norms_agree_with_finite_differences_of_the_loss():
    """Move the first layer's activations of one example: its term of the critic loss, +-D, moves along."""
    torch.manual_seed(1)
    D = models.toy_critic(dim=5, depth=2).double()
    x = torch.randn(1, 2).double()
    head, tail = D[:2], D[2:]
    h = head(x).detach()
    steps = 1e-6 * torch.eye(5).double()
    gradient = (tail(h + steps) - tail(h - steps)).detach() / 2e-6
    assert script.gradient_norms(D, x, x)[0] == pytest.approx(gradient.norm().item(), rel=1e-8)


def batch_normed(dim):
    """A critic with batch norm before its second ReLU alone."""
    D = models.toy_critic(dim=dim, depth=2).double()
    return torch.nn.Sequential(D[0], D[1], D[2], models.batch_norm(dim, flat=True).double(), D[3], D[4])


def test_with_batch_norm_the_gradient_is_that_of_the_whole_batchs_loss():
    """By finite differences: move one example's activations, and the scores of all its batch move."""
    torch.manual_seed(1)
    D, expected = batch_normed(5), []
    x, x_tilde = torch.randn(6, 2).double(), torch.randn(6, 2).double()
    for batch in (x, x_tilde):
        h = D[:2](batch).detach()
        for i in range(6):
            steps = torch.zeros(5, *h.shape).double()
            steps[range(5), i, range(5)] = 1e-6
            gradient = torch.stack([(D[2:](h + step) - D[2:](h - step)).sum() for step in steps]).detach() / 2e-6
            expected.append(gradient.norm().item())
    assert script.gradient_norms(D, x, x_tilde)[0] == pytest.approx(np.mean(expected), rel=1e-6)


def test_with_batch_norm_the_gradient_vanishes_where_all_examples_are_treated_alike():
    torch.manual_seed(1)
    D = batch_normed(5)
    with torch.no_grad():
        D[3].bias.fill_(10)  # every ReLU after it is alive: what comes out is linear in what batch norm has centred
    below, above = script.gradient_norms(D, torch.randn(6, 2), torch.randn(6, 2))
    assert below < 1e-12 and above > 0.1


def test_gradient_norms_are_measured_in_float64_and_leave_the_critic_alone():
    torch.manual_seed(2)
    D = models.toy_critic(dim=16, depth=12)
    with torch.no_grad():
        for w in D.parameters():
            w.copy_(1e-6 * torch.rand_like(w))  # all units alive; the product of 11 such layers underflows in float32
    before = [w.clone() for w in D.parameters()]
    norms = script.gradient_norms(D, torch.rand(4, 2), torch.rand(4, 2))
    assert len(norms) == 12 and 0 < norms[0] < 1e-45 and norms[11] > 1e-6
    assert all(w.dtype == torch.float32 and torch.equal(w, b) and w.grad is None
               for w, b in zip(D.parameters(), before))


def test_slope_is_that_of_the_exponent():
    assert script.slope([10 ** (0.3 * i - 4) for i in range(12)]) == pytest.approx(0.3)
    assert script.slope([0.0, 1e-4, 1e-2, 1.0]) == pytest.approx(2)  # what vanished altogether is left out
    assert np.isnan(script.slope([0.0, 0.0, 1.0]))


def test_geometric_mean_and_share_at_the_bounds():
    assert script.geometric_mean(np.array([np.nan, 1e-3, 0, 1e-5])) == pytest.approx(1e-4)
    assert script.geometric_mean(np.array([0.0, np.nan])) == 0
    assert script.at_bounds(torch.tensor([0.1, -0.0995, 0.0985, 0.0]), 0.1) == 0.5


# ---- constraints ----

def test_l2_norm_clipping_projects_onto_the_ball():
    torch.manual_seed(3)
    D = models.toy_critic(dim=6, depth=2)
    with torch.no_grad():
        D[0].bias.fill_(1e-3)
    before = [w.clone() for w in D.parameters()]
    script.clip_norms(D, 0.05)
    for w, old in zip(D.parameters(), before):
        rms = old.square().mean().sqrt()
        assert torch.allclose(w, old if rms <= 0.05 else old * 0.05 / rms)
        assert w.square().mean().sqrt() <= 0.05 * 1.0001


def test_weight_normalization_leaves_each_units_direction_alone():
    torch.manual_seed(3)
    D = models.toy_critic(dim=6, depth=2)
    before = [w.clone() for w in D.parameters()]
    script.normalize_weights(D, 0.05)
    for w, old in zip(D.parameters(), before):
        if w.dim() == 1:
            assert torch.equal(w, old)  # biases
        else:
            for row, was in zip(w, old):
                torch.testing.assert_close(row, was * 0.05 * len(row) ** 0.5 / was.norm())


def test_the_decays_are_in_the_critics_loss():
    torch.manual_seed(0)
    D = torch.nn.Linear(2, 1)
    for constraint, power in (("l2-decay", 2), ("l1-decay", 1)):
        method = script.constrain(D, torch.optim.RMSprop(D.parameters()), constraint, 0.25)
        gradient, = torch.autograd.grad(method.critic_term(D, None), D.weight)
        expected = 0.25 * (2 * D.weight if power == 2 else D.weight.sign())
        assert torch.allclose(gradient, expected) and not method.clip and not method.lam


@pytest.mark.parametrize("flags", [
    ["--constraint", "l2-clip"], ["--constraint", "weight-norm"], ["--constraint", "l2-decay"],
    ["--constraint", "l1-decay"], ["--batch-norm"]])
def test_other_constraints_and_batch_norm(call, tmp_path, flags):
    code, _, stderr = call(*SMALL, "--out", tmp_path, *flags)
    assert code == 0, stderr
    name = f"{flags[-1] if len(flags) == 2 else 'clip'}-0.01"
    critic = states(tmp_path)[name]["D"].values()
    if flags[-1] in ("l2-clip", "weight-norm"):
        rms = [w.square().mean().sqrt().item() for w in critic if w.dim() == 2]
        assert rms == pytest.approx([0.01] * 4, rel=1e-2)
    elif len(flags) == 2:
        assert max(w.abs().max() for w in critic) > 0.1  # nothing clips
    else:
        assert len(critic) == 8 + 3 * 2 and len(states(tmp_path)["penalty"]["D"]) == 8


# ---- the script ----

def test_what_the_four_wgans_are_trained_with(call, tmp_path, monkeypatch):
    seen = []

    def train(G, D, batches, latents, opt_G, opt_D, method, iterations, start, seed):
        seen.append(method)
        (x,), (z,) = next(batches), latents(3)
        assert str(G) == str(models.toy_generator(128, 12)) and str(D) == str(models.toy_critic(128, 12))
        assert len(x) == 256 and z.shape == (3, 2) and iterations == 600 and seed == 0
        lr = {group["lr"] for opt in (opt_G, opt_D) for group in opt.param_groups}
        adam = type(opt_G) is type(opt_D) is torch.optim.Adam
        assert lr == {method.lr} and adam == bool(method.lam)
        yield wgan_gp.Step(600, *[torch.zeros(())] * 4)
    monkeypatch.setattr(wgan_gp, "train", train)
    code, _, stderr = call("--out", tmp_path)
    assert code == 0, stderr
    wgan = wgan_gp.METHODS["wgan"]
    assert seen == [*[wgan._replace(clip=c) for c in (0.1, 0.01, 0.001)], wgan_gp.WGAN_GP]


def test_the_figure_its_numbers_and_four_runs(call, tmp_path):
    code, stdout, stderr = call(*SMALL, "--out", tmp_path, "--iterations", "6")
    assert code == 0, stderr
    assert sorted(rows(tmp_path)) == ["clip-0.001", "clip-0.01", "clip-0.1", "penalty"]
    for name in rows(tmp_path):
        log = runs.read_log(tmp_path / name)
        assert list(log) == [*runs.Run.COLUMNS, "layer_1", "layer_2", "layer_3"]
        assert np.isfinite(log["layer_1"]).tolist() == [False, True] * 3
        assert (log["penalty"] > 0).all() == (name == "penalty")
    picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    with open(tmp_path / "gradient_norms.csv") as file:
        header, *lines = csv.reader(file)
    labels = [*(f"weight clipping, c = {c:g}" for c in (0.1, 0.01, 0.001)), "gradient penalty"]
    assert header == ["layer", *labels] and "2/4 clip-0.01 6/6 " in stderr and "4/4 penalty 6/6 " in stderr
    table = np.array(lines, float)
    assert table[:, 0].tolist() == [1, 2, 3]
    log = runs.read_log(tmp_path / "penalty")  # of iterations 2, 4 and 6, the geometric mean of the last two
    expected = [np.sqrt(log[f"layer_{i}"][3] * log[f"layer_{i}"][5]) for i in (1, 2, 3)]
    assert table[:, 4] == pytest.approx(expected, 1e-4)
    expected = script.slope(table[:, 3])
    assert expected > 0.5 and f"10^{-expected:+.3f} under weight clipping, c = 0.001" in stdout
    critic = torch.cat([w.flatten() for w in states(tmp_path)["clip-0.1"]["D"].values() if w.dim() == 2])
    assert f"{((critic.abs() - 0.1).abs() <= 0.001).double().mean():.1%} of the weights at c = 0.1" in stdout
    critic = states(tmp_path)["clip-0.01"]["D"]
    assert max(w.abs().max() for w in critic.values()) <= 0.01
    assert stdout.splitlines()[-1].startswith(f"done: {tmp_path}/figure.png")


def test_the_generator_of_a_run_can_be_sampled(call, tmp_path):
    assert call(*SMALL, "--iterations", "1", "--out", tmp_path)[0] == 0
    args = argparse.Namespace(**runs.read_config(tmp_path / "penalty")["flags"])
    G, latents, to_bytes = script.generator(args)
    G.load_state_dict(states(tmp_path)["penalty"]["G"])
    samples = wgan_gp.sample(G, latents, 5, convert=to_bytes)
    assert samples.shape == (1, 3, 300, 300) and samples.dtype == torch.uint8


def test_each_variant_has_a_folder_of_its_own(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags in ([], ["--constraint", "l2-clip"], ["--batch-norm"], ["--data", "8gaussians"]):
        assert call(*SMALL, "--iterations", "1", *flags)[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "swiss-roll", "swiss-roll-8gaussians", "swiss-roll-batch-norm", "swiss-roll-l2-clip"]
