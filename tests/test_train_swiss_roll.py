"""train_swiss_roll.py: its measurements against other ways to compute them, constraints, settings, figure."""
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


@pytest.mark.parametrize("norm", [False, True])
def test_gradient_norms_agree_with_finite_differences_of_a_batchs_loss(norm):
    """Move one example's activations after the first layer. With batch norm the scores of all its batch move."""
    torch.manual_seed(1)
    D, expected = models.toy_critic(dim=5, depth=2).double(), []
    if norm:
        D.insert(3, models.batch_norm(5, flat=True).double())  # before the second ReLU alone
    x, x_tilde = torch.randn(6, 2).double(), torch.randn(6, 2).double()
    for batch in (x, x_tilde):
        h = D[:2](batch).detach()
        for i in range(6):
            steps = torch.zeros(5, *h.shape).double()
            steps[range(5), i, range(5)] = 1e-6
            gradient = torch.stack([(D[2:](h + step) - D[2:](h - step)).sum() for step in steps]).detach() / 2e-6
            expected.append(gradient.norm().item())
    assert script.gradient_norms(D, x, x_tilde)[0] == pytest.approx(np.mean(expected), rel=1e-6)
    if norm:  # every ReLU after it is alive: what comes out is linear in what batch norm has centred
        torch.nn.init.constant_(D[3].bias, 10)
        below, above = script.gradient_norms(D, x, x_tilde)
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
    for w, old in zip(D.parameters(), before):
        assert w.dtype == torch.float32 and torch.equal(w, old) and w.grad is None


def test_slope_is_that_of_the_exponent_and_the_mean_is_geometric():
    assert script.slope([10 ** (0.3 * i - 4) for i in range(12)]) == pytest.approx(0.3)
    assert script.slope([0.0, 1e-4, 1e-2, 1.0]) == pytest.approx(2)  # what vanished altogether is left out
    assert np.isnan(script.slope([0.0, 0.0, 1.0]))
    assert script.geometric_mean(np.array([np.nan, 1e-3, 0, 1e-5])) == pytest.approx(1e-4)
    assert script.geometric_mean(np.array([0.0, np.nan])) == 0


# ---- constraints ----

@pytest.mark.parametrize("constraint", ["l2-clip", "weight-norm"])
def test_norm_clipping_projects_tensors_and_weight_normalization_rescales_units(constraint):
    torch.manual_seed(3)
    D = models.toy_critic(dim=6, depth=2)
    with torch.no_grad():
        D[0].bias.fill_(1e-3)
    before = [w.clone() for w in D.parameters()]
    script.rescale(D, constraint, 0.05)
    for w, old in zip(D.parameters(), before):
        rms = old.square().mean().sqrt()
        if constraint == "l2-clip":
            torch.testing.assert_close(w, old if rms <= 0.05 else old * 0.05 / rms)
        elif w.dim() == 1:
            assert torch.equal(w, old)  # biases
        else:
            torch.testing.assert_close(w, old * 0.05 * old.shape[1] ** 0.5 / old.norm(dim=1, keepdim=True))


def test_the_decays_are_in_the_critics_loss():
    torch.manual_seed(0)
    D = torch.nn.Linear(2, 1)
    for constraint, power in (("l2-decay", 2), ("l1-decay", 1)):
        method = script.constrain(D, torch.optim.RMSprop(D.parameters()), constraint, 0.25)
        gradient, = torch.autograd.grad(method.critic_term(D, None), D.weight)
        expected = 0.25 * (2 * D.weight if power == 2 else D.weight.sign())
        assert torch.allclose(gradient, expected) and not method.clip and not method.lam


@pytest.mark.parametrize("constraint", ["l2-clip", "weight-norm", "l2-decay", "l1-decay", "batch-norm"])
def test_other_constraints_and_batch_norm_have_folders_of_their_own(call, tmp_path, monkeypatch, constraint):
    monkeypatch.chdir(tmp_path)
    flags, out = ["--constraint", constraint], f"constraint-{constraint}"
    if constraint == "batch-norm":
        flags, out = ["--batch-norm"], constraint
    code, _, stderr = call(*SMALL, *flags)
    assert code == 0, stderr
    found = states(tmp_path / "runs" / f"swiss-roll-{out}")
    state = found["clip-0.01" if constraint == "batch-norm" else f"{constraint}-0.01"]["D"]
    critic = state.values()
    if constraint in ("l2-clip", "weight-norm"):
        rms = [w.square().mean().sqrt().item() for w in critic if w.dim() == 2]
        assert rms == pytest.approx([0.01] * 4, rel=1e-2)
    elif constraint == "batch-norm":
        assert all(state[f"{i}.weight"].shape == (8,) for i in (1, 4, 7))  # after the linear layers 0, 3, 6
        assert len(critic) == 8 + 3 * 2 and len(found["penalty"]["D"]) == 8
    else:
        assert max(w.abs().max() for w in critic) > 0.1  # nothing clips


# ---- the script ----

def test_what_the_four_wgans_are_trained_with(call, tmp_path, monkeypatch):
    seen = []

    def train(G, D, batches, latents, opt_G, opt_D, method, iterations, start, seed):
        seen.append(method)
        assert str(G) == str(models.toy_generator(128, 12)) and str(D) == str(models.toy_critic(128, 12))
        assert next(batches).shape == (256, 2) and (iterations, seed) == (600, 0)
        for opt in (opt_G, opt_D):
            assert opt.param_groups[0]["lr"] == method.lr and isinstance(opt, torch.optim.Adam) == bool(method.lam)
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
