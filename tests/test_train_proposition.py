"""train_proposition.py: the couplings are optimal, the measurements those of known critics, the script."""
import csv
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

import runs
import train_proposition as script
import wgan_gp
from conftest import rows, states

SMALL = ["--dim", "8", "--batch-size", "16", "--iterations", "4"]
LENGTH = {"rings": 1.5, "pairs": math.sqrt(5 - 4 * math.cos(math.radians(20))), "shift": math.sqrt(1.25)}  # which is W
POTENTIAL = {  # 1-Lipschitz functions (n, 2) -> (n,)
    "rings": lambda z: z.norm(dim=1),
    "pairs": lambda z: -torch.cdist(z.double(), turned_points()).min(dim=1).values.float(),
    "shift": lambda z: z @ torch.tensor([1.0, 0.5]) / math.sqrt(1.25),
}
TS = [0.0, 0.25, 0.5, 1.0]


@pytest.fixture
def call(call):
    return functools.partial(call, "train_proposition.py")


def five_points():
    return script.circle(2 * math.pi / 5 * torch.arange(5), 1.0)


def turned_points():
    return script.COUPLED["pairs"](five_points()).double()


def lines(name, n=500):
    torch.manual_seed(0)
    x_tilde = script.GENERATED[name](n)
    return script.COUPLED[name](x_tilde), x_tilde


# ---- the problems ----

@pytest.mark.parametrize("name", script.COUPLED)
def test_the_coupling_is_optimal_as_a_potential_and_all_permutations_certify(name):
    """By duality: where a 1-Lipschitz f has f(x) - f(x_tilde) = |x - x_tilde| on all pairs, no coupling is cheaper."""
    x, x_tilde = lines(name)
    f, everywhere = POTENTIAL[name], 3 * torch.randn(400, 2)
    rise = (f(everywhere)[:, None] - f(everywhere)).abs()
    assert (rise <= torch.cdist(everywhere.double(), everywhere.double()) + 1e-5).all()  # 1-Lipschitz
    assert torch.allclose(f(x) - f(x_tilde), (x - x_tilde).norm(dim=1), atol=1e-5)
    assert torch.allclose((x - x_tilde).norm(dim=1), torch.tensor(LENGTH[name]), atol=1e-5)
    x_tilde = five_points() if name == "pairs" else lines(name, 6)[1]
    n, cost = len(x_tilde), torch.cdist(script.COUPLED[name](x_tilde), x_tilde).numpy()
    cheapest = min(sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(n))) / n
    assert cheapest == pytest.approx(LENGTH[name], rel=1e-5) and np.trace(cost) / n == pytest.approx(cheapest, rel=1e-5)


def test_the_distributions_are_those_of_the_docstring():
    x, x_tilde = lines("rings")
    assert torch.allclose(x_tilde.norm(dim=1), torch.tensor(0.5)) and torch.allclose(x.norm(dim=1), torch.tensor(2.0))
    x, x_tilde = lines("pairs")
    assert len(x_tilde.mul(1e3).round().unique(dim=0)) == 5
    turn = torch.atan2(x[:, 1], x[:, 0]) - torch.atan2(x_tilde[:, 1], x_tilde[:, 0])
    assert torch.allclose(turn.remainder(2 * math.pi), torch.tensor(math.radians(20)), atol=1e-5)
    x, x_tilde = lines("shift")  # nearest is not coupled here: the supports overlap
    assert (torch.cdist(x_tilde, x).argmin(dim=1) != torch.arange(500)).float().mean() > 0.5


def test_the_crowd_on_the_rings_lines_is_what_counting_gives():
    n = 500_000
    x, x_tilde = lines("rings", n)
    x, eps = x[torch.randperm(n)], torch.rand(n, 1)
    radius = (eps * x + (1 - eps) * x_tilde).norm(dim=1)
    for t in (0.1, 0.5, 0.95):
        counted = ((radius - (0.5 + 1.5 * t)).abs() < 0.02).double().mean().item() / 0.04
        assert script.rings_crowd(t) == pytest.approx(1.5 * counted, rel=0.02)


def test_the_penalised_norm_minimises_equation_3_on_a_line():
    for length, lam, crowd in [(1.5, 10.0, 1.0), (1.1, 2.0, 0.2)]:
        g = torch.linspace(0.5, 3, 250_001, dtype=torch.float64)
        best = g[(-length * g + lam * crowd * (g - 1) ** 2).argmin()].item()
        assert script.penalised_norm(length, lam, crowd) == pytest.approx(best, abs=1e-5)


# ---- the measurements ----

@pytest.mark.parametrize("critic, cosine, norm", [
    (lambda z: z.norm(dim=1), 1, 1),  # the optimal critic of the rings
    (lambda z: -0.25 * z.norm(dim=1), -1, 0.25),  # upside down, too flat
    (lambda z: 1e-9 * z.norm(dim=1), 1, 1e-9),  # as small as under clipping, and smaller
    (lambda z: torch.atan2(z[:, 1], z[:, 0]), 0, None),  # around instead of outwards: of norm 1/radius
])
def test_measurements_of_critics_known_in_closed_form(critic, cosine, norm):
    measured = script.along_lines(critic, *lines("rings"), TS)
    assert [row[0] for row in measured] == TS
    for t, *row in measured:
        expected = norm or 1 / (0.5 + 1.5 * t)
        assert row == pytest.approx([cosine, expected, 0], abs=2e-6 * max(1, expected), rel=1e-5)


def test_t_runs_from_generated_to_real_and_the_deviation_is_over_lines():
    x_tilde = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    (_, cosine, norm, deviation), (_, _, end, _) = script.along_lines(
        lambda z: z[:, 0] ** 2 / 2, x_tilde + torch.tensor([3.0, 4.0]), x_tilde, [0.0, 1.0])
    assert (cosine, norm, deviation, end) == pytest.approx((0.6, 1.5, 0.5, 4.5))


# ---- the script ----

def test_six_critics_a_figure_and_a_table(call, tmp_path):
    code, stdout, stderr = call(*SMALL, "--out", tmp_path)
    assert code == 0, stderr
    assert sorted(rows(tmp_path)) == sorted(f"{p}-{m}" for p in script.COUPLED for m in script.METHODS)
    for name, critic in states(tmp_path).items():
        assert (runs.read_log(tmp_path / name)["penalty"] > 0).all() == name.endswith("gp")
        assert name.endswith("gp") or max(w.abs().max() for w in critic["D"].values()) <= 0.01
    with open(tmp_path / "proposition.csv") as file:
        table = list(csv.DictReader(file))
    some = [row for row in table if row["problem"] == "pairs" and row["method"] == "wgan-gp"]
    ideal = 1 + 5 * LENGTH["pairs"] / 20
    assert len(table) == 6 * 40 and len(some) == 40
    assert [float(row["penalised_norm"]) for row in some] == pytest.approx([ideal] * 40, rel=1e-5)
    printed = {tuple(line.split()[:2]): line.split()[2:] for line in stdout.splitlines()}["pairs", "wgan-gp"]
    D = script.models.toy_critic(8)
    D.load_state_dict(states(tmp_path)["pairs-wgan-gp"]["D"])
    x, x_tilde = lines("pairs", script.LINES)
    estimate = (D(x).mean() - D(x_tilde).mean()).item()
    means = [np.mean([float(row[column]) for row in some]) for column in ("cosine", "norm")]
    expected = [*means, ideal, LENGTH["pairs"], estimate, ideal * LENGTH["pairs"]]
    assert list(map(float, printed)) == pytest.approx(expected, abs=1e-4)
    picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert stdout.splitlines()[-1].startswith(f"done: {tmp_path}/figure.png")
    assert all(f"{i}/6 {name} wgan-gp 4/4 " in stderr for i, name in enumerate(script.COUPLED, 1))


@pytest.mark.parametrize("paired", [False, True])
def test_what_the_critics_are_trained_with(call, tmp_path, monkeypatch, paired):
    seen = []

    def step(G, D, opt_D, x, z, method):
        seen.append((x, G(z), (type(opt_D), len(x), str(D), method), opt_D.param_groups[0]["lr"]))
        return torch.zeros(3)
    monkeypatch.setattr(wgan_gp, "critic_step", step)
    monkeypatch.setattr(runs.Run, "log", lambda *_, **__: None)
    monkeypatch.setattr(runs.Run, "draw_curves", lambda *_: None)
    flags = ["--paired"] if paired else []
    assert call("--data", "rings", "--iterations", 100, "--out", tmp_path, *flags)[0] == 0
    assert len(seen) == 200 and all(torch.equal(x, 4 * x_tilde) == paired for x, x_tilde, *_ in seen)
    methods = wgan_gp.WGAN_GP._replace(lr=3e-3), wgan_gp.METHODS["wgan"]
    for part, method, kind in zip((seen[:100], seen[100:]), methods, (torch.optim.Adam, torch.optim.RMSprop)):
        assert {step[2] for step in part} == {(kind, 256, str(script.models.toy_critic(128)), method)}
        assert [step[3] for step in part] == pytest.approx([method.lr * (1 - i / 100) for i in range(100)])
    monkeypatch.setattr("sys.argv", ["train_proposition.py"])
    assert script.parse().iterations == 3_000


def test_a_critic_without_a_gradient_is_drawn_too(call, tmp_path, monkeypatch):
    """A narrow clipped critic can lose all its ReLUs."""
    class Dead(torch.nn.Linear):
        def forward(self, x):
            return 0 * super().forward(x).flatten()
    monkeypatch.setattr(script.models, "toy_critic", lambda dim: Dead(2, 1))
    code, stdout, stderr = call("--data", "pairs", "--iterations", 1, "--out", tmp_path)
    assert code == 0, stderr
    assert (tmp_path / "figure.png").exists() and "pairs    wgan" in stdout
