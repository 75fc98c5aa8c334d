"""train_random_architectures.py: the set, its networks and methods, a run's result, the tables by brute force."""
import json
import math
import os
import random
import shlex
from fractions import Fraction

import pytest
import torch
from PIL import Image
from torch import nn

import data
import inception
import models
import runs
import train_random_architectures as script
import wgan_gp
from conftest import ctrl_c_after, rows, same, states

SCRIPT = "train_random_architectures.py"
SMALL = ["--data", "shapes", "--batch-size", "4", "--divide-filters", "32", "--score-samples", "0"]
NONLINEARITIES = list(script.NONLINEARITIES)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 40), seed, size))


def row(activation="ReLU", depth=4, norm=True, filters=32, **others):
    """A row of Table 1 with the same in both networks, but for `others`."""
    both = {"Nonlinearity": activation, "Depth": depth, "Batch norm": norm, "Base filter count": filters}
    return {f"{name} ({network})": value for name, value in both.items() for network in "GD"} | others


# --------------------------------------------------------------------------------------------------------- the set

def test_table_1_implies_9216_architectures():
    everything = script.architectures(0)
    assert len(everything) == script.SET_SIZE == 4 * 4 * 4 * 4 * 2 * 2 * 3 * 3 == 9216
    assert len({tuple(a.items()) for a in everything}) == 9216
    assert all(a[name] in values for a in everything[:200] for name, values in script.TABLE_1.items())
    assert row(script.SMOOTH, 20, False, 128) in everything and row("ELU") not in everything


def test_architecture_i_of_a_seed_never_changes():
    smooth = script.SMOOTH
    assert [list(a.values()) for a in script.architectures(0)[:3]] == [
        [smooth, "LeakyReLU", 20, 20, False, False, 64, 64],
        ["LeakyReLU", "ReLU", 12, 4, True, False, 128, 32],
        ["tanh", "ReLU", 4, 4, True, False, 128, 32]]
    assert list(script.architectures(0)[199].values()) == [smooth, "tanh", 12, 4, False, False, 32, 64]
    assert script.architectures(1)[:200] != script.architectures(0)[:200]


def test_the_order_depends_on_nothing_but_the_first_random_numbers_of_the_seed(monkeypatch):
    """By selection: architecture 0 is the one whose number is the smallest, and so on."""
    draw = random.Random(5)
    numbers = [draw.random() for _ in range(9216)]
    in_order = [dict(zip(script.TABLE_1, (a, b, c, d, e, f, g, h)))
                for a in NONLINEARITIES[:4] for b in NONLINEARITIES[:4] for c in (4, 8, 12, 20) for d in (4, 8, 12, 20)
                for e in (True, False) for f in (True, False) for g in (32, 64, 128) for h in (32, 64, 128)]
    found = script.architectures(5)
    for i in range(3):
        smallest = min(range(9216), key=lambda j: numbers[j])
        assert found[i] == in_order[smallest]
        numbers[smallest] = 2


def test_the_paper_says_200_in_every_row_of_table_5():
    assert len(script.TABLE_5) == 17 and list(script.TABLE_5) == [1 + i / 2 for i in range(17)]
    assert all(sum(counts) == 200 for counts in script.TABLE_5.values())
    assert [script.TABLE_5[t] for t in (1, 3, 5, 7, 9)] == [
        (0, 8, 192, 0), (1, 88, 110, 1), (0, 147, 42, 11), (1, 104, 5, 90), (0, 0, 0, 200)]  # Table 2


def test_list_prints_rows_of_table_1(call):
    code, stdout, _ = call(SCRIPT, "--list", 200)
    header, *lines = stdout.splitlines()
    assert code == 0 and len(lines) == 200 and all(name in header for name in script.TABLE_1)
    for i, architecture in enumerate(script.architectures(0)[:200]):
        assert lines[i].split() == [str(i), *map(str, architecture.values())]


def test_commands_train_every_architecture_both_ways_with_the_flags_given(call):
    code, stdout, _ = call(SCRIPT, "--data", "some photos", "--commands", 3, "--iterations=7")
    lines = [shlex.split(line) for line in stdout.splitlines()]
    assert code == 0 and len(lines) == 6
    for line, (i, method) in zip(lines, [(i, m) for i in "012" for m in ("gan", "wgan-gp")]):
        assert line[0] == "python" and line[1].endswith(SCRIPT) and line[2:6] == ["--index", i, "--method", method]
        assert line[-3:] == ["--data", "some photos", "--iterations=7"] and "--commands" not in line
    _, stdout, _ = call(SCRIPT, "--commands", 3, "--one-sided")
    assert stdout.count("--method wgan-gp") == stdout.count("--one-sided") == len(stdout.splitlines()) == 3
    _, stdout, _ = call(SCRIPT, "--commands", 3, "--method", "gan")
    assert stdout.count("--method gan") == stdout.count("--method") == 3


# ---------------------------------------------------------------------------------------------------- the networks

@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_depth_4_is_the_dcgan(norm):
    def shapes(network):
        return {name: value.shape for name, value in network.state_dict().items()}
    kinds = lambda network: [type(layer) for layer in network]
    G, D = models.variant_generator(64, 4), models.variant_critic(64, 4, norm=norm)
    assert shapes(G) == shapes(models.cifar_generator(64)) and kinds(G) == kinds(models.cifar_generator(64))
    assert shapes(D) == shapes(models.cifar_critic(64, norm)) and kinds(D) == kinds(models.cifar_critic(64, norm))


@pytest.mark.parametrize("depth, extra", [(4, (0, 0, 0)), (8, (2, 1, 1)), (12, (3, 3, 2)), (20, (6, 5, 5))])
@pytest.mark.parametrize("norm", [True, False])
def test_weights_of_every_depth_by_hand(depth, extra, norm):
    """d = 8 channels at 16 pixels a side, 16 at 8, 32 at 4; a norm has 2 numbers a channel, or a unit of the vector."""
    n4, n8, n16 = extra
    d, two = 8, 2 * norm
    same_size = sum(n * (c * c * 9 + c + two * c) for n, c in [(n4, 32), (n8, 16), (n16, 8)])
    G = (128 * 512 + 512 + two * 512) + (32 * 16 * 25 + 16 + two * 16) + (16 * 8 * 25 + 8 + two * 8) + (8 * 3 * 25 + 3)
    D = (3 * 8 * 25 + 8) + (8 * 16 * 25 + 16 + two * 16) + (16 * 32 * 25 + 32 + two * 32) + (512 + 1)
    generator = models.variant_generator(d, depth, norm=norm)
    critic = models.variant_critic(d, depth, norm="layer" if norm else None)
    assert count(generator) == G + same_size and count(critic) == D + same_size
    for network in (generator, critic):
        layers = [m for m in network if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
        assert len(layers) == depth
        extras = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert len(extras) == depth - 4 and all(m.stride == (1, 1) for m in extras)
    sides = []
    for m in [m for m in critic if isinstance(m, nn.Conv2d) and m.stride == (1, 1)]:
        m.register_forward_hook(lambda m, _, out: sides.append(out.shape[-1]))
    assert critic(torch.zeros(2, 3, 32, 32)).shape == (2,)
    assert sides == [16] * n16 + [8] * n8 + [4] * n4
    sides = []
    for m in [m for m in generator if isinstance(m, nn.Conv2d)]:
        m.register_forward_hook(lambda m, _, out: sides.append(out.shape[-1]))
    x_tilde = generator(torch.randn(2, 128))
    assert x_tilde.shape == (2, 3, 32, 32) and x_tilde.abs().max() <= 1
    assert sides == [4] * n4 + [8] * n8 + [16] * n16


@pytest.mark.parametrize("method, norm", [("gan", nn.BatchNorm2d), ("wgan-gp", nn.GroupNorm)])
def test_a_row_gets_its_nonlinearities_norms_and_widths(method, norm):
    different = row() | {"Nonlinearity (G)": "tanh", "Nonlinearity (D)": script.SMOOTH, "Depth (G)": 8, "Depth (D)": 12,
                         "Base filter count (G)": 64, "Base filter count (D)": 128}
    G, D = script.networks(different, method, divide=32)
    of = lambda network, kind: [m for m in network if isinstance(m, kind)]
    assert len(of(G, nn.Tanh)) == 8 and len(of(D, models.ShiftedSoftplus)) == 11 and not of(G, models.ShiftedSoftplus)
    assert len(of(G, (nn.BatchNorm1d, nn.BatchNorm2d))) == 7 and len(of(D, norm)) == 10
    assert not of(D, {nn.BatchNorm2d: nn.GroupNorm, nn.GroupNorm: nn.BatchNorm2d}[norm])
    assert G[-3].in_channels == 2 and D[1].out_channels == 4  # 64/32 and 128/32
    for G_norm, D_norm in [(True, False), (False, True)]:
        G, D = script.networks(different | {"Batch norm (G)": G_norm, "Batch norm (D)": D_norm}, method, divide=32)
        assert bool(of(G, (nn.BatchNorm1d, nn.BatchNorm2d))) == G_norm and bool(of(D, norm)) == D_norm
    G, D = script.networks(different, method, 32, activation="ELU")  # Appendix D: in both, everywhere but at G's end
    assert len(of(G, nn.ELU)) == 7 and len(of(G, nn.Tanh)) == 1 and isinstance(G[-2], nn.Tanh)
    assert len(of(D, nn.ELU)) == 11 and not of(D, models.ShiftedSoftplus)


def test_all_200_build():
    """Whole on torch's meta device, where nothing is computed or stored; and at 1/32 of the width, to call them. The
    methods' networks differ in the norm alone, so every other architecture has each."""
    for i, architecture in enumerate(script.architectures(0)[:200]):
        method = list(script.METHODS)[i % 2]
        with torch.device("meta"):
            whole = script.networks(architecture, method)
        thin = script.networks(architecture, method, divide=32)
        for network, small in zip(whole, thin):
            assert [type(m) for m in network] == [type(m) for m in small] and count(network) > 20 * count(small)
        G, D = thin
        with torch.no_grad():
            x_tilde = G(torch.randn(2, 128))
            assert x_tilde.shape == (2, 3, 32, 32) and D(x_tilde).shape == (2,)


def test_the_smooth_nonlinearity_and_its_derivatives():
    x = torch.linspace(-6, 6, 49, dtype=torch.float64, requires_grad=True)
    y = models.ShiftedSoftplus()(x)
    first, = torch.autograd.grad(y.sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.sum(), x)
    sigmoid = [1 / (1 + math.exp(-(2 * v + 2))) for v in x.tolist()]
    assert y.tolist() == pytest.approx([math.log1p(math.exp(2 * v + 2)) / 2 - 1 for v in x.tolist()], abs=1e-12)
    assert first.tolist() == pytest.approx(sigmoid, abs=1e-12)
    assert second.tolist() == pytest.approx([2 * s * (1 - s) for s in sigmoid], abs=1e-12)
    assert models.ShiftedSoftplus()(torch.tensor([-1e4, 1e4])).tolist() == pytest.approx([-1, 1e4])
    with torch.no_grad():  # "a very similar nonlinearity": its largest distance from ELU is at 0 and to the right
        assert (y - nn.functional.elu(x)).abs().max() < 0.08


def second_derivatives(activation, *points):
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    first, = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
    return torch.autograd.grad(first.sum(), x)[0].tolist()


def test_elus_second_derivative_jumps_where_the_smooth_ones_does_not():
    left, right = second_derivatives(nn.ELU(), -1e-7, 1e-7)
    assert left == pytest.approx(1, abs=1e-6) and right == 0
    for point in (0.0, -1.0, 9.0):  # 2x + 2 = 20, at 9, is where torch's softplus becomes the identity
        left, right = second_derivatives(models.ShiftedSoftplus(), point - 1e-7, point + 1e-7)
        assert left == pytest.approx(right, abs=1e-6)


# ------------------------------------------------------------------------------------------------------ the methods

def test_the_optimisers_are_appendix_bs():
    w = [nn.Parameter(torch.zeros(1))]
    for method, lr, betas, n_critic, lam in [("gan", 2e-4, (0.5, 0.999), 1, 0), ("wgan-gp", 1e-4, (0, 0.9), 5, 10)]:
        trained_with = script.training_method(row(), method)
        optimizer = trained_with.optimizer(w)
        assert isinstance(optimizer, torch.optim.Adam) and optimizer.defaults["weight_decay"] == 0
        assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (lr, betas)
        assert (trained_with.n_critic, trained_with.lam, trained_with.one_sided) == (n_critic, lam, False)
    assert script.training_method(row(), "wgan-gp", one_sided=True).one_sided


@pytest.mark.parametrize("method", script.METHODS)
def test_weight_decay_adds_a_thousandth_of_the_weights_to_the_gradient_where_d_is_normalised(method):
    torch.manual_seed(0)
    x, z = torch.rand(4, 3, 32, 32).double(), torch.randn(4, 128).double()
    for norm in (True, False):
        G, D = (network.double() for network in script.networks(row(norm=norm), method, 32))
        trained_with = script.training_method(row(norm=norm), method)
        gradients = []
        for this in (trained_with, trained_with._replace(critic_term=wgan_gp.no_term)):
            opt_D = torch.optim.SGD(D.parameters(), lr=0)
            torch.manual_seed(1)  # the same points x_hat
            wgan_gp.critic_step(G, D, opt_D, x, z, method=this)
            gradients.append([w.grad.clone() if w.grad is not None else torch.zeros_like(w) for w in D.parameters()])
        for w, a, b in zip(D.parameters(), *gradients, strict=True):
            expected = 1e-3 * w.detach() * (norm and w.dim() > 1)
            torch.testing.assert_close(a - b, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("activation", NONLINEARITIES)
@pytest.mark.parametrize("norm", [None, "layer"])
def test_the_gradient_of_the_penalty_is_its_finite_difference(activation, norm):
    """In a direction drawn at random, in float64; where the nonlinearities have kinks, the small step crosses none."""
    torch.manual_seed(3)
    D = models.variant_critic(2, 8, script.NONLINEARITIES[activation], norm).double()
    x, x_tilde = torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    parameters = list(D.parameters())
    middle, directions = [w.detach().clone() for w in parameters], [torch.randn_like(w) for w in parameters]

    def penalty(step):
        with torch.no_grad():
            for w, m, direction in zip(parameters, middle, directions):
                w.copy_(m + step * direction)
        torch.manual_seed(4)  # the same eps
        return wgan_gp.gradient_penalty(D, x, x_tilde)
    gradients = torch.autograd.grad(penalty(0), parameters, allow_unused=True)
    along = sum((g * d).sum().item() for g, d in zip(gradients, directions) if g is not None)
    h = 1e-7
    difference = (penalty(h) - penalty(-h)).item() / (2 * h)
    assert along == pytest.approx(difference, rel=1e-4) and abs(along) > 1e-3


def first_gradients(architecture, method, divide):
    """The gradients of a critic step, then of a generator step, from the first weights; both networks then moved."""
    torch.manual_seed(0)
    G, D = script.networks(architecture, method, divide)
    trained_with = script.training_method(architecture, method)
    opt_G, opt_D = trained_with.optimizer(G.parameters()), trained_with.optimizer(D.parameters())
    x, z = torch.rand(8, 3, 32, 32) * 2 - 1, torch.randn(8, 128)
    wgan_gp.critic_step(G, D, opt_D, x, z, method=trained_with)
    gradients = [w.grad.clone() for w in D.parameters() if w.grad is not None]
    wgan_gp.generator_step(G, D, opt_G, z, method=trained_with)
    return gradients, [w.grad.clone() for w in G.parameters()]


def assert_fine(architecture, method, divide):
    for gradients in first_gradients(architecture, method, divide):
        assert all(g.isfinite().all() for g in gradients), (architecture, method)
        assert any(g.abs().max() > 0 for g in gradients), (architecture, method)


@pytest.mark.parametrize("method", script.METHODS)
def test_both_methods_take_a_step(method):
    for activation, depth, norm in [("ReLU", 20, False), ("tanh", 20, False), (script.SMOOTH, 20, True),
                                    ("ELU", 12, True), ("LeakyReLU", 8, False)]:
        assert_fine(row(activation, depth, norm), method, 16)


@pytest.mark.slow
@pytest.mark.parametrize("method", script.METHODS)
def test_all_200_have_finite_gradients_at_the_start(method):
    """At an eighth of the width."""
    for architecture in script.architectures(0)[:200]:
        assert_fine(architecture, method, 8)


# --------------------------------------------------------------------------------------------------------- one run

def trained(call, out, *flags, index=2, method="wgan-gp", iterations=2, code=0):
    got, stdout, stderr = call(SCRIPT, "--index", index, "--method", method, "--iterations", iterations, "--out", out,
                               *SMALL, *flags)
    assert got == code, stderr
    return stdout, stderr


def test_a_run_leaves_a_result(call, tmp_path):
    stdout, _ = trained(call, tmp_path, "--seed", 3, "--one-sided")
    result = json.loads((tmp_path / "002-wgan-gp-one-sided.json").read_text())
    assert result["architecture"] == script.architectures(3)[2] and result["index"] == 2
    assert (result["method"], result["one_sided"], result["activation"]) == ("wgan-gp", True, None)
    assert len(result["settings"].pop("fingerprint")) == 8
    assert result["settings"] == {"data": "shapes", "images": 40, "seed": 3, "batch_size": 4, "iterations": 2,
                                  "divide_filters": 32}
    assert result["diverged"] is None and result["inception_score"] is None
    assert result["pixel_likeness"] < 1 and 0 < result["variation"] < 3
    assert result["seconds"] > 0 and result["seconds_per_iteration"] == pytest.approx(result["seconds"] / 2, abs=1e-3)
    assert 50 < result["peak_memory_mb"] < 100_000 and result["torch"] == torch.__version__ and result["hardware"]
    folder = tmp_path / "002-wgan-gp-one-sided"
    assert {"config.json", "log.csv", "curves.png", "checkpoint.pt"} <= {path.name for path in folder.iterdir()}
    assert Image.open(folder / "samples" / "000002.png").width == 10 * 34 - 2
    assert f"pixel likeness {result['pixel_likeness']:.3f}" in stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["002-wgan-gp-one-sided", "002-wgan-gp-one-sided.json"]


@pytest.mark.parametrize("flags, name, kind", [
    (["--activation", "elu"], "002-wgan-gp-elu", nn.ELU),
    (["--activation", "softplus"], "002-wgan-gp-softplus", models.ShiftedSoftplus),
])
def test_appendix_ds_nonlinearities_replace_those_of_both_networks(call, tmp_path, monkeypatch, flags, name, kind):
    seen, make = [], script.networks

    def networks(*settings):
        seen.extend(make(*settings))
        return seen
    monkeypatch.setattr(script, "networks", networks)
    trained(call, tmp_path, *flags)
    G, D = seen
    assert (tmp_path / f"{name}.json").exists()
    assert sum(isinstance(m, kind) for m in G) == 3 and sum(isinstance(m, kind) for m in D) == 3
    assert not any(isinstance(m, (nn.ReLU, models.LeakyReLU)) for m in [*G, *D])


def test_the_score_is_of_as_many_samples_as_asked_and_disturbs_nothing(call, tmp_path, monkeypatch):
    def score(images, net):
        assert images.dtype == torch.uint8 and images.shape == (120, 3, 32, 32)
        return 2.5, 0.1
    monkeypatch.setattr(inception, "load_or_warn", lambda *_: "a network")
    monkeypatch.setattr(inception, "inception_score", score)
    trained(call, tmp_path / "plain")
    trained(call, tmp_path / "scored", "--score-samples", 120)
    plain, scored = (json.loads((tmp_path / name / "002-wgan-gp.json").read_text()) for name in ("plain", "scored"))
    assert scored["inception_score"] == 2.5 and scored["inception_deviation"] == 0.1
    assert scored["settings"] == plain["settings"] | {"score_samples": 120}
    assert scored["pixel_likeness"] == plain["pixel_likeness"]
    assert same(states(tmp_path / "plain"), states(tmp_path / "scored"))


def test_without_the_inception_weights_there_is_a_warning_and_no_score(call, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "WEIGHTS_URL", "http://127.0.0.1:9/" + inception.WEIGHTS_FILE)
    _, stderr = trained(call, tmp_path / "a", "--score-samples", 100, "--data-dir", tmp_path)
    assert "without Inception scores" in stderr
    assert json.loads((tmp_path / "a" / "002-wgan-gp.json").read_text())["inception_score"] is None


def test_a_run_that_diverges_is_a_result(call, tmp_path, monkeypatch):
    """From iteration 3 on, G's weights are not numbers."""
    train = wgan_gp.train

    def breaks(G, *args, **kwargs):
        for step in train(G, *args, **kwargs):
            yield step
            if step.iteration == 2:
                with torch.no_grad():
                    next(G.parameters()).fill_(math.nan)
    monkeypatch.setattr(wgan_gp, "train", breaks)
    stdout, _ = trained(call, tmp_path, iterations=5)
    result = json.loads((tmp_path / "002-wgan-gp.json").read_text())
    assert result["diverged"] == 3 and "diverged at iteration 3" in stdout
    assert [result[k] for k in ("inception_score", "pixel_likeness", "variation")] == [None] * 3
    assert result["seconds"] > 0


def test_images_that_are_not_finite_at_the_end_are_a_divergence_too(call, tmp_path, monkeypatch):
    sample = wgan_gp.sample
    monkeypatch.setattr(wgan_gp, "sample", lambda G, latents, n, **more: sample(G, latents, n, **more) * math.nan)
    trained(call, tmp_path)
    result = json.loads((tmp_path / "002-wgan-gp.json").read_text())
    assert result["diverged"] == 2 and result["pixel_likeness"] is None


def test_interrupted_and_resumed_is_the_undisturbed_run(call, tmp_path):
    trained(call, tmp_path / "whole", iterations=4)
    with ctrl_c_after(2):
        trained(call, tmp_path / "cut", iterations=4, code=130)
    assert not list((tmp_path / "cut").glob("*.json"))
    trained(call, tmp_path / "cut", "--resume", iterations=4)
    assert same(states(tmp_path / "whole"), states(tmp_path / "cut"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    whole, cut = (json.loads((tmp_path / name / "002-wgan-gp.json").read_text()) for name in ("whole", "cut"))
    timed = {"seconds", "seconds_per_iteration", "peak_memory_mb"}
    assert {k: v for k, v in whole.items() if k not in timed} == {k: v for k, v in cut.items() if k not in timed}


def test_a_run_killed_after_training_and_before_its_result_still_gets_it(call, tmp_path, monkeypatch):
    """And the result is written whole or not at all."""
    def no_room(path, content, write=runs.write):
        if path.suffix == ".json" and path.name != "config.json":
            raise OSError("no space left on device")
        write(path, content)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write", no_room)
        _, stderr = trained(call, tmp_path, code=1)
        assert "no space left" in stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["002-wgan-gp"]
    trained(call, tmp_path, "--resume")
    trained(call, tmp_path / "undisturbed")
    folders = tmp_path, tmp_path / "undisturbed"
    late, undisturbed = (json.loads((folder / "002-wgan-gp.json").read_text()) for folder in folders)
    assert late["seconds"] > 0 and late["pixel_likeness"] == undisturbed["pixel_likeness"]


def test_a_result_is_renamed_into_place(call, tmp_path, monkeypatch):
    moved, replace = [], os.replace

    def watch(source, target):
        if str(target).endswith("002-wgan-gp.json"):
            moved.append(json.loads(open(source).read())["index"])
        replace(source, target)
    monkeypatch.setattr(os, "replace", watch)
    trained(call, tmp_path)
    assert moved == [2]


def test_what_is_finished_is_left_alone(call, tmp_path):
    trained(call, tmp_path)
    before = (tmp_path / "002-wgan-gp.json").read_bytes()
    _, stderr = trained(call, tmp_path, code=2)
    assert "is this run's result already" in stderr
    _, stderr = trained(call, tmp_path, "--resume")
    assert "is there already" in stderr and (tmp_path / "002-wgan-gp.json").read_bytes() == before
    trained(call, tmp_path, "--resume", index=3)  # and what was not begun begins
    assert (tmp_path / "003-wgan-gp.json").exists()


def test_runs_on_a_folder_of_images_share_its_cache(call, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 0, 100)).save(tmp_path / "photos" / f"{i:02d}.png")
    for method in script.METHODS:
        trained(call, tmp_path / "out", "--data", tmp_path / "photos", method=method)
    assert len(list((tmp_path / "out").rglob("*.uint8"))) == 1
    result = json.loads((tmp_path / "out" / "002-gan.json").read_text())
    assert (result["settings"]["data"], result["settings"]["images"]) == ("photos", 10)
    assert call(SCRIPT, "--table", "--out", tmp_path / "out")[0] == 0


def test_likeness_and_variation_of_images_that_are_known():
    torch.manual_seed(0)
    images = torch.randint(256, (1_000, 3, 4, 4), dtype=torch.uint8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    latents = lambda m: (torch.randn(m, 128),)

    def measured(generated):
        G = lambda z: generated(next(data.batches(images, len(z), data.from_bytes))[0])
        return script.measure(G, latents, images, "cpu")
    real = measured(lambda x: x)
    assert real["pixel_likeness"] > 0.9 and real["variation"] == pytest.approx(1, abs=0.02)
    mean = measured(lambda x: torch.zeros_like(x))
    assert mean["pixel_likeness"] == pytest.approx(0, abs=0.01) and mean["variation"] == 0
    half = measured(lambda x: x / 2)  # W2 of N(0, v) and N(0, v/4) is v/4
    assert half["pixel_likeness"] == pytest.approx(0.75, abs=0.02) and half["variation"] == pytest.approx(0.5, abs=0.01)
    moved = measured(lambda x: x + 1)  # 8x8 means of 4x4 blocks of deviation 1/sqrt(3): |1|^2 / (1/3) = 3 below
    assert moved["pixel_likeness"] == pytest.approx(-2, abs=0.1)
    assert all(math.isnan(v) for v in measured(lambda x: x * math.inf).values())
    alike = script.measure(lambda z: torch.randn(len(z), 3, 32, 32), latents, images[:1].repeat(9, 1, 1, 1), "cpu")
    assert alike["pixel_likeness"] < -1 and alike["variation"] > 1  # of what does not vary


# ---------------------------------------------------------------------------------------------------------- tables

def made_up(folder, index, method, score, one_sided=False, activation=None, diverged=None, likeness=0.5, **settings):
    """A result file, as a run would write it."""
    name = f"{index:03d}-{script.variant(method, one_sided, activation)}"
    settings = {"data": "shapes", "images": 40, "fingerprint": "12345678", "seed": 0, "batch_size": 64, "iterations": 9,
                "divide_filters": 1, **settings}
    (folder / f"{name}.json").write_text(json.dumps({
        "index": index, "method": method, "one_sided": one_sided, "activation": activation,
        "architecture": script.architectures(settings["seed"])[index], "settings": settings, "diverged": diverged,
        "pixel_likeness": None if diverged else likeness, "variation": None if diverged else 1.0,
        "inception_score": None if diverged else score, "inception_deviation": None, "seconds": 36.0,
        "seconds_per_iteration": 4.0, "peak_memory_mb": 100.0 + index, "hardware": "none", "torch": "0"}))


def table_rows(stdout, name):
    """{threshold: the counts in its line} of the table by this measure."""
    lines = stdout.split(f"Min. {name}")[1].split("\n\n")[0].splitlines()[1:]
    found = {}
    for line in lines:
        try:
            found[float(line.split()[0])] = [int(n) for n in line.split()[1:]]
        except ValueError:
            break
    return found


def test_table_counts_by_brute_force(call, tmp_path):
    draw, scores = random.Random(0), {}
    for i in range(30):
        for method in script.METHODS:
            if (i, method) in [(3, "gan"), (4, "wgan-gp"), (5, "gan"), (5, "wgan-gp")]:
                continue  # no such run yet
            scores[i, method] = round(draw.uniform(0.9, 9.1), 1)
            diverged = 7 if (i, method) in [(8, "gan"), (9, "wgan-gp")] else None
            if diverged:
                scores[i, method] = 0  # below every threshold
            made_up(tmp_path, i, method, scores[i, method], diverged=diverged)
    made_up(tmp_path, 6, "wgan-gp", 9.9, one_sided=True)  # not of Table 2
    made_up(tmp_path, 7, "gan", 9.9, activation="elu")
    scores[10, "gan"] = 3.0  # exactly at a threshold: not above
    made_up(tmp_path, 10, "gan", 3.0)
    made_up(tmp_path, 11, "gan", None)  # was trained without the weights
    code, stdout, _ = call(SCRIPT, "--table", "--out", tmp_path)
    assert code == 0
    pairs = [i for i in range(30) if i not in (3, 4, 5, 11)]
    assert f"{len(pairs)} architectures trained both ways; the paper's: 200" in stdout
    found = table_rows(stdout, "Inception score")
    assert list(found) == list(script.TABLE_5)
    for threshold, line in found.items():
        only_gan = only_wgan_gp = both = neither = 0
        for i in pairs:
            gan, wgan_gp = scores[i, "gan"] > threshold, scores[i, "wgan-gp"] > threshold
            only_gan += gan and not wgan_gp
            only_wgan_gp += wgan_gp and not gan
            both += gan and wgan_gp
            neither += not gan and not wgan_gp
        assert line == [only_gan, only_wgan_gp, both, neither, *script.TABLE_5[threshold]]
    for line in ("gan: 28 runs; diverged: 8 (iteration 7);", "wgan-gp: 28 runs; diverged: 9 (iteration 7);",
                 "gan-elu: 1 runs; diverged: none;", "58 runs in all: 34m48s of training; at most 129 MB"):
        assert f"  {line}" in stdout
    assert Image.open(tmp_path / "figure.png").width > 1_000


def test_without_scores_the_table_is_by_likeness_and_never_called_table_2(call, tmp_path):
    for i, (gan, wgan_gp) in enumerate([(0.05, 0.65), (0.75, 0.35), (0.55, 0.56)]):
        made_up(tmp_path, i, "gan", None, likeness=gan)
        made_up(tmp_path, i, "wgan-gp", None, likeness=wgan_gp)
    made_up(tmp_path, 3, "gan", None, diverged=2)
    made_up(tmp_path, 3, "wgan-gp", None, likeness=-0.5)
    code, stdout, _ = call(SCRIPT, "--table", "--out", tmp_path)
    assert code == 0 and "No result has the Inception score, so there is no Table 2 or 5" in stdout
    assert "Tables 2 and 5:" not in stdout and "the paper" not in stdout
    found = table_rows(stdout, "pixel likeness")
    assert found[0.1] == [0, 1, 2, 1] and found[0.6] == [1, 1, 0, 2] and found[0.9] == [0, 0, 0, 4]
    assert found[-0.1] == [0, 0, 3, 1]


def test_a_table_of_one_method_alone(call, tmp_path):
    made_up(tmp_path, 0, "gan", 2.0)
    code, stdout, _ = call(SCRIPT, "--table", "--out", tmp_path)
    assert code == 0 and "gan: 1 runs" in stdout and "0 architectures trained both ways" in stdout
    assert not (tmp_path / "figure.png").exists()


def test_the_sign_test_is_the_sum_of_binomial_probabilities():
    """The probability, in fractions, of all splits that are at least as uneven."""
    for wins, losses in [(0, 0), (1, 0), (5, 0), (8, 2), (2, 8), (7, 7), (100, 77), (60, 40)]:
        n = wins + losses
        exact = sum(Fraction(math.comb(n, k), 2 ** n) for k in range(n + 1) if abs(2 * k - n) >= abs(wins - losses))
        assert script.sign_test(wins, losses) == pytest.approx(float(exact), rel=1e-12)
    assert script.sign_test(5, 0) == 2 / 32 and script.sign_test(8, 2) == pytest.approx(0.109375)
    assert script.sign_test(60, 40) == pytest.approx(0.0569, abs=1e-4)
    assert 0.05 < script.sign_test(*script.APPENDIX_C) < 0.11  # "not statistically significant at p < .05"


def test_appendix_c_compares_pairs_and_quotes_the_paper(call, tmp_path):
    for i, (two_sided, one_sided) in enumerate([(5, 4), (5, 4), (5, 4), (3, 4), (4, 4), (6, None), (None, 6)]):
        if two_sided:
            made_up(tmp_path, i, "wgan-gp", two_sided, likeness=two_sided / 10)
        if one_sided:
            made_up(tmp_path, i, "wgan-gp", one_sided, one_sided=True, likeness=one_sided / 10)
    made_up(tmp_path, 7, "wgan-gp", 3)
    made_up(tmp_path, 7, "wgan-gp", 3, one_sided=True, diverged=4)
    code, stdout, _ = call(SCRIPT, "--table", "--out", tmp_path)
    i, = [i for i, line in enumerate(stdout.splitlines()) if "Appendix C" in line and "Inception score in 4" in line]
    ours, paper = stdout.splitlines()[i:i + 2]
    assert code == 0 and "of 6 architectures" in ours and "one-sided in 1;" in ours and "p = 0.375" in ours
    assert "100 and 77 of 174" in paper and "177" in paper and f"p = {script.sign_test(100, 77):.3g}" in paper
    assert "Appendix D" not in stdout


def test_appendix_d_compares_elu_with_its_smooth_twin(call, tmp_path):
    for i, (smooth, elu) in enumerate([(5, 4), (5, 4), (3, 4)]):
        made_up(tmp_path, i, "wgan-gp", None, activation="softplus", likeness=smooth / 10)
        made_up(tmp_path, i, "wgan-gp", None, activation="elu", likeness=elu / 10)
    code, stdout, _ = call(SCRIPT, "--table", "--out", tmp_path)
    line, = [line for line in stdout.splitlines() if "Appendix D" in line]
    assert code == 0 and "of 3 architectures the smooth softplus(2x+2)/2-1 has the higher pixel likeness in 2, ELU in 1" in line


# ------------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("flags, code, says", [
    ([], 2, "--index"),
    (["--index", "9216", "--method", "gan"], 2, "9216 is not below 9216"),
    (["--index", "-1", "--method", "gan"], 2, "less than 0"),
    (["--index", "1"], 2, "needs --method"),
    (["--index", "1", "--method", "wgan"], 2, "--method"),
    (["--index", "1", "--method", "gan", "--one-sided"], 2, "about the penalty"),
    (["--index", "1", "--method", "gan", "--activation", "relu"], 2, "--activation"),
    (["--index", "1", "--method", "gan", "--divide-filters", "3"], 2, "--divide-filters"),
    (["--index", "1", "--method", "gan", "--score-samples", "5"], 2, "10 parts"),
    (["--index", "1", "--method", "gan", "--data", "no-such"], 1, "choose cifar10, shapes or a folder of images"),
    (["--index", "1", "--method", "gan", *SMALL, "--batch-size", "100"], 1, "fewer than a batch"),
    (["--index", "1", "--method", "gan", *SMALL[:-2], "--inception", "/no/such/file"], 1, "no such file of weights"),
    (["--list", "0"], 2, "--list"),
    (["--table"], 1, "no results"),
    (["--table", "--list", "3"], 2, "not allowed with"),
])
def test_mistakes_are_one_line(call, tmp_path, flags, code, says):
    got, _, stderr = call(SCRIPT, *flags, "--out", tmp_path / "a")
    lines = [line for line in stderr.splitlines() if "usage" not in line and not line.startswith(" ")]
    assert got == code and says in lines[-1] and len(lines) == 1
    assert not list(tmp_path.rglob("*.json"))  # so that the mended command is not refused


def test_without_imagenet_the_message_says_where_it_comes_from(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, stderr = call(SCRIPT, "--index", 0, "--method", "gan")
    line, = stderr.splitlines()
    assert code == 1 and "data/imagenet32" in line and "image-net.org" in line
    assert "--data cifar10" in line and "--data shapes" in line and not (tmp_path / "runs").exists()


def test_results_of_different_studies_do_not_mix(call, tmp_path):
    made_up(tmp_path, 0, "gan", 2.0)
    for name, value in [("iterations", 10), ("data", "cifar10"), ("fingerprint", "0badcafe"), ("seed", 1),
                        ("divide_filters", 8)]:
        made_up(tmp_path, 1, "gan", 2.0, **{name: value})
        code, stdout, stderr = call(SCRIPT, "--table", "--out", tmp_path)
        line, = stderr.splitlines()
        assert code == 1 and name in line and str(value) in line and "001-gan.json" in line and not stdout
    made_up(tmp_path, 0, "gan", 2.0, score_samples=50_000)
    made_up(tmp_path, 1, "gan", None)  # without a score it may be beside any
    made_up(tmp_path, 2, "gan", 2.0, score_samples=1_000)
    assert "score_samples is 50000" in call(SCRIPT, "--table", "--out", tmp_path)[2]


@pytest.mark.parametrize("damage", [
    lambda text: text[:100], lambda text: "", lambda text: "[]", lambda text: text.replace('"settings"', '"other"'),
    lambda text: text.replace('"index": 0', '"index": 1'), lambda text: text.replace("LeakyReLU", "ReLU"),
    lambda text: text.replace('"pixel_likeness": 0.5', '"pixel_likeness": null'), lambda text: "\x00" * 50,
])
def test_a_damaged_result_is_named(call, tmp_path, damage):
    made_up(tmp_path, 0, "gan", 2.0)
    path = tmp_path / "000-gan.json"
    assert damage(path.read_text()) != path.read_text()
    path.write_text(damage(path.read_text()))
    code, _, stderr = call(SCRIPT, "--table", "--out", tmp_path)
    line, = stderr.splitlines()
    assert code == 1 and "000-gan.json is damaged" in line
