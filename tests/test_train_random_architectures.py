"""train_random_architectures.py: the set, its networks and methods, a run's result, the tables by brute force."""
import argparse
import functools
import itertools
import json
import math
import random
import shlex
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import data
import inception
import models
import train_random_architectures as script
import wgan_gp
from conftest import ctrl_c_after

SCRIPT = "train_random_architectures.py"
SMALL = ["--data", "shapes", "--batch-size", "4", "--divide-filters", "32", "--score-samples", "0"]
NONLINEARITIES = ["ReLU", "LeakyReLU", script.SMOOTH, "tanh"]
METHODS = ["gan", "wgan-gp"]
ARCHITECTURES = functools.cache(script.architectures)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Few shapes instead of 20,000, and the set sorted once."""
    monkeypatch.setattr(script, "architectures", ARCHITECTURES)
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 40), seed, size))


def row(activation="ReLU", depth=4, norm=True, filters=32, **others):
    """A row of Table 1 with the same in both networks, except for `others`."""
    both = {"Nonlinearity": activation, "Depth": depth, "Batch norm": norm, "Base filter count": filters}
    return {f"{name} ({network})": value for name, value in both.items() for network in "GD"} | others


def networks(architecture, method, divide=32, activation=None, one_sided=False):
    """G, D and the method that trains them, of a run of this row of Table 1."""
    args = argparse.Namespace(index=script.architectures(0).index(architecture), seed=0, method=method, device="cpu",
                              divide_filters=divide, activation=activation, one_sided=one_sided)
    return script.generator(args)[0], *script.critic(args)


# ---- the set ----

def test_table_1_implies_9216_architectures_in_an_order_that_depends_on_the_seed_alone():
    """By selection: architecture 0 is the one whose random number is the smallest, and so on."""
    both = itertools.product(NONLINEARITIES, NONLINEARITIES, (4, 8, 12, 20), (4, 8, 12, 20), (True, False),
                             (True, False), (32, 64, 128), (32, 64, 128))
    in_order = [dict(zip(script.TABLE_1, values)) for values in both]
    found, draw = script.architectures(5), random.Random(5)
    numbers = [draw.random() for _ in in_order]
    assert len(found) == 9216 and sorted(map(str, found)) == sorted(map(str, in_order))
    for i in range(3):
        smallest = numbers.index(min(numbers))
        assert found[i] == in_order[smallest]
        numbers[smallest] = 2
    first = [script.SMOOTH, "LeakyReLU", 20, 20, False, False, 64, 64]
    assert list(script.architectures(0)[0].values()) == first and found[:200] != script.architectures(0)[:200]


def test_the_paper_says_200_in_every_row_of_table_5():
    table = dict(zip(script.THRESHOLDS["inception_score"], script.TABLE_5.tolist(), strict=True))
    assert list(table) == [1 + i / 2 for i in range(17)] and all(sum(counts) == 200 for counts in table.values())
    assert [table[t] for t in (1, 3, 5, 7, 9)] == [
        [0, 8, 192, 0], [1, 88, 110, 1], [0, 147, 42, 11], [1, 104, 5, 90], [0, 0, 0, 200]]  # Table 2


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
    for line, (i, method) in zip(lines, [(i, m) for i in "012" for m in METHODS]):
        assert line[:2] == ["python", SCRIPT] and line[-4:] == ["--index", i, "--method", method]
        assert line[-7:-4] == ["--data", "some photos", "--iterations=7"] and "--commands" not in line
    for flags, counted in ((["--one-sided"], "--method wgan-gp"), (["--method", "gan"], "--method gan")):
        _, stdout, _ = call(SCRIPT, "--commands", 3, *flags)
        assert stdout.count(flags[0]) == stdout.count(counted) == len(stdout.splitlines()) == 3


# ---- networks ----

@pytest.mark.parametrize("method, norm", [("gan", nn.BatchNorm2d), ("wgan-gp", nn.GroupNorm)])
def test_a_row_gets_its_nonlinearities_norms_and_widths(method, norm):
    different = row() | {"Nonlinearity (G)": "tanh", "Nonlinearity (D)": script.SMOOTH, "Depth (G)": 8, "Depth (D)": 12,
                         "Base filter count (G)": 64, "Base filter count (D)": 128}
    G, D, _ = networks(different, method)
    batch_norms = nn.BatchNorm1d, nn.BatchNorm2d
    of = lambda network, kind: [m for m in network if isinstance(m, kind)]
    assert len(of(G, nn.Tanh)) == 8 and len(of(D, models.ShiftedSoftplus)) == 11 and not of(G, models.ShiftedSoftplus)
    assert len(of(G, batch_norms)) == 7 and len(of(D, norm)) == 10
    assert not of(D, {nn.BatchNorm2d: nn.GroupNorm, nn.GroupNorm: nn.BatchNorm2d}[norm])
    assert G[-2].in_channels == 2 and D[0].out_channels == 4  # 64/32 and 128/32
    for G_norm, D_norm in [(True, False), (False, True)]:
        G, D, _ = networks(different | {"Batch norm (G)": G_norm, "Batch norm (D)": D_norm}, method)
        assert bool(of(G, batch_norms)) == G_norm and bool(of(D, norm)) == D_norm
    for name, kind in [("elu", nn.ELU), ("softplus", models.ShiftedSoftplus)]:  # Appendix D: in both networks
        G, D, _ = networks(different, method, activation=name)
        assert len(of(G, kind)) == 7 and len(of(G, nn.Tanh)) == 1 and isinstance(G[-1], nn.Tanh)
        assert len(of(D, kind)) == 11 and len(of(D, (nn.ELU, models.ShiftedSoftplus))) == 11


def test_all_200_build():
    """At 1/32 of the width. The methods' networks differ only in the norm, so each gets every other row."""
    for i, architecture in enumerate(script.architectures(0)[:200]):
        G, D, _ = networks(architecture, METHODS[i % 2])
        for network, name in [(G, "G"), (D, "D")]:
            layers = [m for m in network if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
            assert len(layers) == architecture[f"Depth ({name})"]
        with torch.no_grad():
            x_tilde = G(torch.randn(2, 128))
            assert x_tilde.shape == (2, 3, 32, 32) and D(x_tilde).shape == (2,)


def test_elus_second_derivative_jumps_where_the_smooth_ones_does_not():
    def second(activation, point):  # just below the point, and just above
        x = torch.tensor([point - 1e-7, point + 1e-7], dtype=torch.float64, requires_grad=True)
        first, = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x)[0].tolist()
    assert second(nn.ELU(), 0.0) == pytest.approx([1, 0], abs=1e-6)
    for point in (0.0, -1.0, 9.0):  # 2x + 2 = 20, at 9, is where torch's softplus becomes the identity
        left, right = second(models.ShiftedSoftplus(), point)
        assert left == pytest.approx(right, abs=1e-6)


# ---- methods ----

@pytest.mark.parametrize("method", METHODS)
def test_weight_decay_adds_a_thousandth_of_the_weights_to_the_gradient_where_d_is_normalised(method):
    torch.manual_seed(0)
    x, z = torch.rand(4, 3, 32, 32).double(), torch.randn(4, 128).double()
    for norm, one_sided in ((True, False), (False, method == "wgan-gp")):
        G, D, trained_with = networks(row(norm=norm), method, one_sided=one_sided)
        assert trained_with.one_sided == one_sided
        G, D, gradients = G.double(), D.double(), []
        for this in (trained_with, trained_with._replace(critic_term=lambda D, x, *y: 0.0)):
            torch.manual_seed(1)  # the same points x_hat
            wgan_gp.critic_step(G, D, torch.optim.SGD(D.parameters(), lr=0), x, z, method=this)
            gradients.append([w.grad.clone() if w.grad is not None else torch.zeros_like(w) for w in D.parameters()])
        for w, a, b in zip(D.parameters(), *gradients, strict=True):
            expected = 1e-3 * w.detach() * (norm and w.dim() > 1)
            torch.testing.assert_close(a - b, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("activation", [*NONLINEARITIES, "elu"])
@pytest.mark.parametrize("norm", [None, "layer"])
def test_the_gradient_of_the_penalty_is_its_finite_difference(activation, norm):
    """In a direction drawn at random, in float64. The step is too small to cross a kink."""
    torch.manual_seed(3)
    D = models.variant_critic(2, 8, script.NONLINEARITIES[activation], norm).double()
    x, x_tilde = torch.randn(2, 3, 3, 32, 32, dtype=torch.float64)
    weights, h = list(D.parameters()), 1e-7
    directions = [torch.randn_like(w) for w in weights]

    def penalty(step):
        for w, direction in zip(weights, directions):
            w.data += step * direction
        torch.manual_seed(4)  # the same eps
        return wgan_gp.gradient_penalty(D, x, x_tilde)
    gradients = torch.autograd.grad(penalty(0), weights, materialize_grads=True)
    along = sum((g * direction).sum().item() for g, direction in zip(gradients, directions))
    difference = (penalty(h) - penalty(-2 * h)).item() / (2 * h)
    assert along == pytest.approx(difference, rel=1e-4) and abs(along) > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_all_200_have_finite_gradients_at_the_start(method, n):
    """At an eighth of the width. Of a critic step and then of a generator step. Not all of them are 0."""
    x, z = torch.rand(8, 3, 32, 32) * 2 - 1, torch.randn(8, 128)
    for architecture in script.architectures(0)[:n]:
        G, D, trained_with = networks(architecture, method, 8)
        wgan_gp.critic_step(G, D, trained_with.make_optimizer(D), x, z, method=trained_with)
        gradients = [w.grad for w in D.parameters() if w.grad is not None]
        wgan_gp.generator_step(G, D, trained_with.make_optimizer(G), z, method=trained_with)
        for some in gradients, [w.grad for w in G.parameters()]:
            assert all(g.isfinite().all() for g in some) and any(g.abs().max() > 0 for g in some), architecture


# ---- one run ----

@pytest.fixture
def trained(call):
    """Train a small architecture, and return its result and what was printed on stderr."""
    def trained(out, *flags, iterations=2, name="002-wgan-gp", code=0):
        got, _, stderr = call(SCRIPT, "--index", 2, "--method", "wgan-gp", "--iterations", iterations, "--out", out,
                              *SMALL, *flags)
        assert got == code, stderr
        path = out / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None, stderr
    return trained


@pytest.mark.parametrize("flags, name", [
    (["--one-sided"], "002-wgan-gp-one-sided-seed3"), (["--activation", "elu"], "002-wgan-gp-elu-seed3"),
    ([], "002-wgan-gp-seed3")])
def test_a_run_leaves_a_result(trained, tmp_path, flags, name):
    result, stderr = trained(tmp_path, "--seed", 3, *flags, name=name)
    assert result["architecture"] == script.architectures(3)[2]
    assert result["settings"].items() >= {"data": "shapes", "index": 2, "seed": 3, "iterations": 2}.items()
    assert not result["diverged"] and result["inception_score"] is None
    assert result["pixel_likeness"] < 1 and result["seconds"] > 0
    assert Image.open(tmp_path / name / "samples" / "000002.png").width == 10 * 34 - 2
    assert stderr.splitlines()[-1] == f"done: {tmp_path / name}.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.json"]
    again, stderr = trained(tmp_path, "--seed", 3, "--resume", *flags, name=name)
    assert again == result and "finished before" in stderr
    trained(tmp_path, "--seed", 3, *flags, code=2)
    _, stderr = trained(tmp_path, "--seed", 3, "--resume", *flags, "--divide-filters", 16, code=2)
    assert "other data, batches or filters" in stderr


def test_the_score_is_of_as_many_samples_as_asked_and_disturbs_nothing(trained, tmp_path, monkeypatch):
    def score(images, net):
        assert images.dtype == torch.uint8 and images.shape == (120, 3, 32, 32)
        return 2.5, 0.1
    monkeypatch.setattr(inception, "load_or_warn", lambda *_: "a network")
    monkeypatch.setattr(inception, "inception_score", score)
    plain, _ = trained(tmp_path / "plain")
    scored, _ = trained(tmp_path / "scored", "--score-samples", 120)
    assert (scored["inception_score"], scored["inception_deviation"]) == (2.5, 0.1)
    assert scored["pixel_likeness"] == plain["pixel_likeness"]


def test_a_run_that_diverges_is_a_result(call, trained, tmp_path, monkeypatch):
    train = wgan_gp.train

    def breaks(G, *args):
        for step in train(G, *args):
            yield step
            if step.iteration == 2:
                with torch.no_grad():
                    next(G.parameters()).fill_(math.nan)
    monkeypatch.setattr(wgan_gp, "train", breaks)
    result, _ = trained(tmp_path, iterations=5)
    assert result["diverged"] and result["inception_score"] is result["pixel_likeness"] is None
    assert script.read_result(tmp_path / "002-wgan-gp.json")["pixel_likeness"] == -math.inf
    assert "wgan-gp: 1 runs, diverged: 002" in call(SCRIPT, "--table", "--out", tmp_path)[1]


def test_a_run_that_was_cut_off_gets_the_result_of_an_undisturbed_one(trained, tmp_path, monkeypatch):
    """After Ctrl-C, when there was no room for the result, and when it is to go on further."""
    whole, _ = trained(tmp_path / "whole", iterations=4)
    with ctrl_c_after(2):
        assert trained(tmp_path / "cut", iterations=4, code=130)[0] is None
    with monkeypatch.context() as patch:
        patch.setattr(script, "pixel_likeness", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(tmp_path / "full", iterations=4)
    trained(tmp_path / "longer", iterations=2)
    for name in ("cut", "full", "longer"):
        result, _ = trained(tmp_path / name, "--resume", iterations=4)
        assert result["pixel_likeness"] == whole["pixel_likeness"] and result["settings"]["iterations"] == 4


def test_likeness_of_images_that_are_known():
    torch.manual_seed(0)
    both = torch.rand(2, 1_000, 3, 4, 4).repeat_interleave(8, 3).repeat_interleave(8, 4) * 2 - 1
    x, other = both
    assert script.pixel_likeness(x, x) == pytest.approx(1, abs=1e-6) and 0.9 < script.pixel_likeness(x, other) < 1
    assert script.pixel_likeness(x, x.mean(0, keepdim=True).repeat(1_000, 1, 1, 1)) == pytest.approx(0, abs=1e-4)
    half = x.mean(0) + (x - x.mean(0)) / 2  # W2 of N(0, v) and N(0, v/4) is v/4
    assert script.pixel_likeness(x, half) == pytest.approx(0.75, abs=1e-4)
    # Values of 4x4 blocks have variance 1/3. Moving all by 1 costs 1 / (1/3) = 3
    assert script.pixel_likeness(x, x + 1) == pytest.approx(-2, abs=0.1)
    noise = torch.randn(1_000, 3, 32, 32)
    assert script.pixel_likeness(x[:1].repeat(1_000, 1, 1, 1), noise) < -1  # real images that do not vary


# ---- tables ----

def made_up(folder, name, score, likeness=None, diverged=False):
    """A result file, as a run would write it."""
    (folder / f"{name}.json").write_text(json.dumps({
        "diverged": diverged, "pixel_likeness": likeness, "inception_score": score, "seconds": 36.0,
        "settings": {"iterations": 9}}))


def table_rows(stdout, measure):
    """{threshold: the counts in its line} of the table by this measure."""
    part = stdout.split(f"{measure}:")[1].split("\n\n")[0]
    lines = [line.split() for line in part.splitlines() if line[:9].strip().replace(".", "").lstrip("-").isdigit()]
    return {float(threshold): [int(n) for n in counts] for threshold, *counts in lines}


def test_table_counts_by_brute_force(call, tmp_path):
    draw, scores = random.Random(0), {}
    for i, method in itertools.product(range(30), METHODS):
        scores[i, method] = round(draw.uniform(0.9, 9.1), 1)
    for missing in [(3, "gan"), (4, "wgan-gp"), (5, "gan"), (5, "wgan-gp")]:
        del scores[missing]
    scores[8, "gan"] = scores[9, "wgan-gp"] = 0  # it diverged: below every threshold
    scores[10, "gan"] = 3.0  # exactly at a threshold: not above
    for (i, method), score in scores.items():
        made_up(tmp_path, f"{i:03d}-{method}", score or None, diverged=not score)
    made_up(tmp_path, "006-wgan-gp-one-sided", 9.9)  # not of Table 2
    made_up(tmp_path, "007-gan-elu", 9.9)
    made_up(tmp_path, "011-gan", None)  # it was trained without the weights
    code, stdout, stderr = call(SCRIPT, "--table", "--out", tmp_path)
    assert code == 0, stderr
    pairs = [i for i in range(30) if i not in (3, 4, 5, 11)]
    assert f"inception_score: {len(pairs)} architectures both ways" in stdout
    found = table_rows(stdout, "inception_score")
    assert list(found) == script.THRESHOLDS["inception_score"].tolist()
    for (threshold, line), paper in zip(found.items(), script.TABLE_5.tolist()):
        outcomes = [(scores[i, "gan"] > threshold, scores[i, "wgan-gp"] > threshold) for i in pairs]
        cells = (True, False), (False, True), (True, True), (False, False)
        assert line == [*map(outcomes.count, cells), *paper]
    assert "\ngan: 28 runs, diverged: 008\n" in f"\n{stdout}" and "wgan-gp: 28 runs, diverged: 009\n" in stdout
    assert stdout.split()[-1] == str(tmp_path / "figure.png") and Image.open(tmp_path / "figure.png").width > 500


def test_without_scores_the_table_is_by_likeness_and_never_called_table_2(call, tmp_path):
    made_up(tmp_path, "009-gan", 2.0)
    code, stdout, _ = call(SCRIPT, "--table", "--out", tmp_path)  # of one method alone
    assert code == 0 and "gan: 1 runs" in stdout and not (tmp_path / "figure.png").exists()
    for i, (gan, wgan_gp) in enumerate([(0.05, 0.65), (0.75, 0.35), (0.55, 0.56), (None, -0.5)]):
        made_up(tmp_path, f"{i:03d}-gan", None, gan, diverged=gan is None)
        made_up(tmp_path, f"{i:03d}-wgan-gp", None, wgan_gp)
    code, stdout, _ = call(SCRIPT, "--table", "--out", tmp_path)
    assert code == 0 and "inception_score: 0 architectures" in stdout
    assert "Table" not in stdout and "paper" not in stdout
    found = table_rows(stdout, "pixel_likeness")
    assert found[0.1] == [0, 1, 2, 1] and found[0.6] == [1, 1, 0, 2] and found[0.9] == [0, 0, 0, 4]
    assert found[-0.1] == [0, 0, 3, 1]


def test_the_figure_has_the_share_of_architectures_above_each_threshold(monkeypatch):
    seen = {}
    monkeypatch.setattr("plots.line_chart", lambda curves, *_, **__: seen.update(curves))
    script.compare(np.array([2.2, 5.2, 3.0, -math.inf]), np.array([8.2, 1.2, 3.2, 4.2]), "inception_score")
    at = {label: dict(zip(*curve)) for label, curve in seen.items()}
    assert [at["GAN"][t] for t in (1, 3, 5, 9)] == [0.75, 0.25, 0.25, 0]
    assert [at["WGAN-GP"][t] for t in (1, 3, 5, 9)] == [1, 0.75, 0.25, 0]
    assert at["the paper's GAN"][3] == 111 / 200 and at["the paper's WGAN-GP"][3] == 198 / 200


def test_the_sign_test_is_the_sum_of_binomial_probabilities():
    """The probability, in fractions, of all splits that are at least as uneven."""
    for wins, losses in [(0, 0), (1, 0), (5, 0), (8, 2), (2, 8), (7, 7), (100, 77), (60, 40)]:
        n = wins + losses
        exact = sum(Fraction(math.comb(n, k), 2 ** n) for k in range(n + 1) if abs(2 * k - n) >= abs(wins - losses))
        assert script.sign_test(wins, losses) == pytest.approx(float(exact), rel=1e-12)
    assert script.sign_test(5, 0) == 2 / 32 and script.sign_test(8, 2) == pytest.approx(0.109375)
    assert script.sign_test(60, 40) == pytest.approx(0.0569, abs=1e-4)
    assert script.sign_test(100, 77) == pytest.approx(0.098, abs=5e-4)  # Appendix C: "not statistically significant"


def test_appendices_c_and_d_compare_pairs(call, tmp_path):
    for i, score in enumerate([5, 5, 5, 3, 4, 6, None, 3]):
        made_up(tmp_path, f"{i:03d}-wgan-gp", score)
    for i, score in enumerate([4, 4, 4, 4, 4, None, 6, None]):
        made_up(tmp_path, f"{i:03d}-wgan-gp-one-sided", score, diverged=i == 7)
    for i, (smooth, elu) in enumerate([(0.5, 0.4), (0.5, 0.4), (0.3, 0.4)]):
        made_up(tmp_path, f"{i:03d}-wgan-gp-softplus", None, smooth)
        made_up(tmp_path, f"{i:03d}-wgan-gp-elu", None, elu)
    code, stdout, stderr = call(SCRIPT, "--table", "--out", tmp_path)
    assert code == 0, stderr
    c, d = [line for line in stdout.splitlines() if "Appendix" in line and " of 1 " not in line]
    assert "wgan-gp is above wgan-gp-one-sided in 4 of 6 architectures, below in 1, sign test p = 0.375" in c
    assert "wgan-gp-softplus is above wgan-gp-elu in 2 of 3 architectures, below in 1" in d


# ---- mistakes ----

@pytest.mark.parametrize("flags, code, says", [
    ("", 2, "--index"),
    ("--index 1 --method gan --one-sided", 2, "about the penalty"),
    ("--index 1 --method gan --score-samples 5", 2, "10 parts"),
    ("--list 0", 2, "--list"),
    ("--table", 1, "no results"),
    ("--table --list 3", 2, "not allowed with")])
def test_mistakes_are_one_line(call, tmp_path, flags, code, says):
    got, _, stderr = call(SCRIPT, *flags.split(), "--out", tmp_path / "a")
    lines = [line for line in stderr.splitlines() if "usage" not in line and not line.startswith(" ")]
    assert got == code and says in lines[-1] and len(lines) == 1


@pytest.mark.parametrize("damage", [
    lambda text: text[:100], lambda text: "", lambda text: "[]", lambda text: text.replace('"settings"', '"other"'),
    lambda text: text.replace("2.0", '"two"'), lambda text: text.replace('"diverged"', '"divorced"'),
    lambda text: "\x00" * 50, lambda text: "\udcff",
])
def test_a_damaged_result_is_named(call, tmp_path, damage):
    made_up(tmp_path, "000-gan", 2.0)
    path = tmp_path / "000-gan.json"
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    code, _, stderr = call(SCRIPT, "--table", "--out", tmp_path)
    line, = stderr.splitlines()
    assert code == 1 and "000-gan.json is damaged: delete it" in line
