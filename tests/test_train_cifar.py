"""train_cifar.py and train_cifar_resnet.py: what they train, Figure 3, Table 3, AC-GAN."""
import numpy as np
import pytest
import torch
from PIL import Image

import data
import fast
import inception
import models
import plots
import runs
import train_cifar
import train_cifar_resnet
import wgan_gp
from conftest import ctrl_c_after, same, states

SMALL = ["--data", "shapes", "--dim", "2", "--batch-size", "4"]
CIFAR = ["train_cifar.py", *SMALL]
RESNET = ["train_cifar_resnet.py", *SMALL, "--generator-batch", "6"]


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 40), seed, size))


@pytest.fixture
def trained(call):
    """trained(command, out, iterations, *flags) runs a script and returns its stderr."""
    def trained(command, out, iterations, *flags, score_every=0):
        command = [*command, "--iterations", iterations, "--score-every", score_every]
        code, _, stderr = call(*command, "--out", out, *flags)
        assert code == 0, stderr
        return stderr
    return trained


@pytest.fixture
def pretend_inception(monkeypatch):
    """Replace the network and the score by random numbers. Return how many samples were scored."""
    scored = []

    def score(images, net, **_):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 32, 32) and images.max() > 100
        torch.manual_seed(len(scored))
        scored.append(len(images))
        return 1 + torch.rand(()).item(), 0.5
    monkeypatch.setattr(inception, "load_or_warn", lambda *_: "a network")
    monkeypatch.setattr(inception, "inception_score", score)
    return scored


# ---- what is trained ----

@pytest.mark.parametrize("flags, norm, betas", [
    ("", None, (0, 0.9)), ("--beta1 0.5", None, (0.5, 0.9)), ("--norm layer", torch.nn.GroupNorm, (0, 0.9)),
    ("--norm batch", torch.nn.BatchNorm2d, (0, 0.9)), ("--method wgan-gp-rmsprop", None, None),
    ("--method dcgan", torch.nn.BatchNorm2d, (0.5, 0.999)), ("--method dcgan --norm none", None, (0.5, 0.999)),
    ("--method dcgan-gp --beta1 0", None, (0, 0.999)), ("--method lsgan", torch.nn.BatchNorm2d, None),
    ("--method wgan", torch.nn.BatchNorm2d, None)])
def test_each_method_trains_with_its_norm_and_beta1(trained, tmp_path, monkeypatch, flags, norm, betas):
    seen = []
    monkeypatch.setattr(fast, "choose", lambda args: lambda *given: seen.append(given) or wgan_gp.train(*given))
    stderr = trained(CIFAR, tmp_path / "a", 2, *flags.split())
    assert ("needs a critic without batch norm (Section 4)" in stderr) == (flags == "--norm batch")
    _, D, _, _, opt_G, opt_D, *_ = seen[0]
    kinds = {type(layer) for layer in D.modules()} & {torch.nn.GroupNorm, torch.nn.BatchNorm2d}
    assert kinds == ({norm} if norm else set())
    assert opt_G.defaults.get("betas") == opt_D.defaults.get("betas") == betas
    assert (max(w.abs().max() for w in D.parameters()) <= 0.01) == (flags == "--method wgan")
    assert np.isfinite(runs.read_log(tmp_path / "a")["held_out_loss"]).tolist() == [False, True]
    assert Image.open(tmp_path / "a" / "samples" / "000002.png").size == (10 * 34 - 2, 10 * 34 - 2)


# ---- scores ----

@pytest.mark.parametrize("command", [CIFAR, [*RESNET, "--conditional"]], ids=["cifar", "resnet"])
def test_scores_are_logged_and_disturb_nothing(trained, call, tmp_path, pretend_inception, command):
    trained(command, tmp_path / "plain", 4)
    many, final = (["--final-samples", 50], [50]) if command is CIFAR else ([], [])
    flags = ["--score-samples", 30, *many]
    trained(command, tmp_path / "scored", 4, *flags, score_every=2)
    assert pretend_inception == [30, 30] + final
    log = runs.read_log(tmp_path / "scored")
    assert np.isfinite(log["inception_score"]).tolist() == [False, True, False, True]
    assert log["inception_deviation"][3] == 0.5
    if final:
        assert np.isfinite(log["final_score"]).tolist() == [False] * 3 + [True] and log["final_deviation"][3] == 0.5
        assert log["final_score"][3] != log["inception_score"][3]
    assert same(states(tmp_path / "plain"), states(tmp_path / "scored"))

    pretend_inception.clear()
    with ctrl_c_after(3):
        code, _, _ = call(*command, "--iterations", 4, "--score-every", 2, *flags, "--out", tmp_path / "stopped")
    assert code == 130 and pretend_inception == [30]  # only when due. The held-out loss at once:
    held_out = runs.read_log(tmp_path / "stopped")["held_out_loss"]
    assert np.isfinite(held_out).tolist() == [False, False, True]


def test_without_the_inception_weights_there_is_one_warning_and_a_training(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "WEIGHTS_URL", "http://127.0.0.1:9/" + inception.WEIGHTS_FILE)
    stderr = trained(CIFAR, tmp_path / "a", 1, "--data-dir", tmp_path, score_every=1)
    warning, = [line for line in stderr.splitlines() if "Inception" in line and "without" in line]
    assert inception.WEIGHTS_FILE in warning and "127.0.0.1:9" in warning
    assert np.isnan(runs.read_log(tmp_path / "a")["inception_score"]).all()


# ---- Figure 3 ----

def write_log(folder, columns, **values):
    """Write a log in which an iteration takes an hour. values: lists, None where not measured."""
    n = len(next(iter(values.values())))
    values = {"iteration": list(range(1, n + 1)), "seconds": [3600.0 * i for i in range(1, n + 1)], **values}
    names = [*runs.Run.COLUMNS, *columns]
    table = [[values.get(name, [None] * n)[i] for name in names] for i in range(n)]
    folder.mkdir(parents=True)
    runs.write_csv(folder / "log.csv", names, [["" if cell is None else cell for cell in row] for row in table])


@pytest.fixture
def charts(monkeypatch):
    """Collect what is drawn: [(title, x_label, lines, the other arguments), ...]."""
    seen, draw = [], plots.line_chart

    def line_chart(lines, title, x_label, **others):
        seen.append((title, x_label, lines, others))
        return draw(lines, title, x_label, **others)
    monkeypatch.setattr(plots, "line_chart", line_chart)
    return seen


def test_figure_3_has_means_and_bands_over_seeds_and_fixed_colours(call, tmp_path, charts):
    score = dict(inception_score=[None, 2.0, None, 4.0])
    write_log(tmp_path / "cifar-wgan-gp", train_cifar.COLUMNS, wasserstein=[2.0] * 4, **score)
    write_log(tmp_path / "cifar-wgan-gp-seed1", train_cifar.COLUMNS, wasserstein=[4.0] * 5, seconds=[7200.0] * 5,
              inception_score=[None, 3.0, None, None, 9.0])
    write_log(tmp_path / "cifar-dcgan", train_cifar.COLUMNS, **score)
    for other in ("cifar-wgan-gp-dim-32", "shapes-wgan", "cifar-lsgan"):
        write_log(tmp_path / other, train_cifar.COLUMNS, **score)
    code, stdout, _ = call("train_cifar.py", "--figure", "--out", tmp_path)
    assert code == 0 and "runs drawn: 3;" in stdout
    assert stdout.split()[-1] == str(tmp_path / "figure3.png")
    assert Image.open(tmp_path / "figure3.png").width > 1000

    (_, by_iteration, scores, others), (_, by_hour, timed, by_time), (_, _, wasserstein, log_scale), _ = charts
    assert by_iteration == "generator iterations" and "hours" in by_hour
    assert not others["log_y"] and log_scale["log_y"]
    label = train_cifar.FIGURE_3["wgan-gp"]
    assert list(scores) == [label, "DCGAN"]
    for curve, expected in [(scores[label], [[2], [2.5]]), (others["band"][label], [[2], [2], [3]]),
                            (timed[label], [[2], [2.5]]), (by_time["band"][label], [[2], [2], [3]]),
                            (wasserstein[label], [[1, 2, 3, 4], [3] * 4])]:
        assert [part.tolist() for part in curve] == expected
    call("train_cifar.py", "--figure", "--out", tmp_path)
    assert charts[-1][-1]["colours"] == others["colours"] and len(set(others["colours"].values())) == 4


def test_figure_3_without_scores_and_without_logs(call, tmp_path, charts):
    def refused(says):
        code, _, stderr = call("train_cifar.py", "--figure", "--out", tmp_path)
        assert code == 1 and says in stderr and len(stderr.splitlines()) == 1
    refused("cifar-METHOD")
    write_log(tmp_path / "cifar-wgan", train_cifar.COLUMNS, seconds=[])
    refused("cifar-METHOD")
    write_log(tmp_path / "cifar-dcgan", train_cifar.COLUMNS, wasserstein=[1.0, 2.0])
    charts.clear()
    assert call("train_cifar.py", "--figure", "--out", tmp_path)[0] == 0
    assert Image.open(tmp_path / "figure3.png").height < 500  # one row
    for damaged in ("iteration,seconds\n1,x\n", "iteration,seconds\n1,2\n"):
        (tmp_path / "cifar-wgan" / "log.csv").write_text(damaged)
        refused("damaged")


# ---- Table 3 ----

def test_table_3_has_last_and_best_of_several_seeds(call, tmp_path):
    def run(name, *scores):
        deviations, samples = [0.11] * (len(scores) - 1) + [0.22] * bool(scores), [5_000] * len(scores)
        write_log(tmp_path / name, train_cifar_resnet.COLUMNS, inception_score=[None, *scores],
                  inception_deviation=[None, *deviations], samples_scored=[None, *samples])
    run("cifar-resnet", 7.0, 7.6, 7.4)
    run("cifar-resnet-seed1", 7.2, 8.0)
    run("cifar-resnet-conditional-seed3", 8.3, 8.1)
    run("cifar-resnet-dim-32", 3.0, 3.0)
    run("cifar-resnet-seed2")  # no score yet
    for path in tmp_path.iterdir():
        (path / "config.json").write_text('{"script": "train_cifar_resnet.py", "flags": {}}')
    code, stdout, _ = call("train_cifar_resnet.py", "--table", "--out", tmp_path)
    header, unsupervised, conditional, note, left_out = stdout.splitlines()
    assert left_out == "left out, as they have no score yet or another name: cifar-resnet-dim-32, cifar-resnet-seed2"
    assert code == 0 and "seeds" in note
    assert header.index("last") < header.index("best") < header.index("paper")
    assert unsupervised.split() == "unsupervised 2 3 to 4 5,000 7.70 +- 0.42 7.80 +- 0.28 7.86 +- .07".split()
    assert conditional.split() == "conditional 1 3 5,000 8.10 +- 0.22 8.30 +- 0.11 8.42 +- .10".split()
    assert max(map(len, stdout.splitlines()[:3])) <= 90
    code, stdout, _ = call("train_cifar_resnet.py", "--table", "--out", tmp_path / "nothing")
    assert code == 0 and stdout.splitlines()[1].split()[:3] == ["unsupervised", "0", "-"]


# ---- batch norm in halves ----

def test_halves_are_those_of_the_batch_with_their_own_labels():
    torch.manual_seed(0)
    G = models.CifarResNetGenerator(4, conditional=True)
    torch.nn.init.normal_(G.blocks[0].norm1.gain.weight)
    z, y = torch.randn(6, 128), torch.arange(6)
    expected = torch.cat([G(z[:3], y[:3]), G(z[3:], y[3:])])
    assert torch.equal(train_cifar_resnet.in_halves(G)(z, y), expected)
    assert (G(z, y) - expected).abs().max() > 0.01


def test_batch_norm_sees_half_a_batch_in_training_and_whole_ones_in_samples_and_measures(
        trained, tmp_path, monkeypatch, pretend_inception):
    sizes, forward = [], models.CifarResNetGenerator.forward

    def record(self, z, *y):
        sizes.append((len(z), torch.is_grad_enabled()))
        return forward(self, z, *y)
    monkeypatch.setattr(models.CifarResNetGenerator, "forward", record)
    trained(RESNET, tmp_path / "a", 1, "--score-samples", 200, score_every=1)
    assert sizes[:12] == [(2, False)] * 10 + [(3, True)] * 2  # 5 critic steps on 4, a generator step on 6
    held_out = [(4, False)] * 10
    assert sizes[12:] == held_out + [(100, False)] * 3


# ---- AC-GAN ----

def test_a_conditional_grid_has_a_class_per_column(trained, tmp_path, monkeypatch):
    """As in Figure 6."""
    seen, forward = [], models.CifarResNetGenerator.forward
    monkeypatch.setattr(models.CifarResNetGenerator, "forward", lambda *args: seen.append(args[2]) or forward(*args))
    trained([*RESNET, "--conditional"], tmp_path / "a", 2)
    grid, = [y for y in seen if len(y) == 100]
    assert grid.tolist() == list(range(10)) * 10
    log = runs.read_log(tmp_path / "a")
    assert 0 <= log["accuracy_real"][1] <= 1 and 0 <= log["accuracy_generated"][1] <= 1


def test_the_classification_loss_of_generated_images_does_not_train_the_critic(monkeypatch):
    """In a critic step the classifier sees real images with their labels, and nothing else."""
    seen = []

    def classify(self, x):
        seen.append(x.detach())
        return self.label(self.features(x))
    monkeypatch.setattr(models.CifarResNetCritic, "classify", classify)
    torch.manual_seed(0)
    G, D = models.CifarResNetGenerator(4, True), models.CifarResNetCritic(4, True)
    method = wgan_gp.WGAN_GP._replace(critic_term=train_cifar_resnet.critic_term,
                                      generator_term=train_cifar_resnet.generator_term)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    x, y, z = torch.rand(6, 3, 32, 32), torch.arange(6), torch.randn(6, 128)
    before = [w.clone() for w in G.parameters()]
    wgan_gp.critic_step(G, D, opt_D, x, z, y, method=method)
    assert len(seen) == 1 and torch.equal(seen[0], x)
    assert D.label.weight.grad.abs().sum() > 0 and all(map(torch.equal, before, G.parameters()))
    before = [w.clone() for w in D.parameters()]
    opt_D.zero_grad()
    x_tilde = G(z, y).detach()
    wgan_gp.generator_step(G, D, opt_G, z, y, method=method)
    assert len(seen) == 2 and torch.allclose(seen[1], x_tilde, atol=1e-6)
    assert all(map(torch.equal, before, D.parameters())) and all(w.grad is None for w in D.parameters())
