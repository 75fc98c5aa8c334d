"""Every script through its command line, for a few iterations; interrupted, killed, resumed, and given bad input."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import inception
import runs
import wgan_gp
from conftest import ctrl_c_after, objects, rows, same, states

ROOT = Path(__file__).resolve().parent.parent
CIFAR = ["train_cifar.py", "--data", "shapes", "--dim", "2", "--batch-size", "4", "--score-every", "0"]
SMALL = {  # name: a command that trains a small version of a script, without --iterations and --out
    "toy": ["train_toy.py", "--data", "8gaussians", "--dim", "8", "--batch-size", "16"],
    "toy gan": ["train_toy.py", "--train-generator", "--dim", "8", "--batch-size", "16"],
    "cifar": CIFAR,
    "cifar resnet": ["train_cifar_resnet.py", "--data", "shapes", "--dim", "2", "--batch-size", "4",
                     "--generator-batch", "6", "--score-every", "0"],
    "cifar resnet, conditional": ["train_cifar_resnet.py", "--conditional", "--data", "shapes", "--dim", "2",
                                  "--batch-size", "4", "--generator-batch", "6", "--score-every", "0"],
    "lsun": ["train_lsun.py", "--data", "shapes", "--dim", "4", "--batch-size", "4"],
    "lsun, clipping": ["train_lsun.py", "--architecture", "resnet101", "--method", "wgan", "--data", "shapes", "--dim", "4",
                       "--batch-size", "4"],
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few shapes instead of 20,000."""
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 40), seed, size))


def trained(call, command, out, iterations, *flags):
    code, stdout, stderr = call(*command, "--iterations", iterations, "--out", out, *flags)
    assert code == 0, stderr
    return stdout, stderr


# ---------------------------------------------------------------------------------------------------- each script

@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_run_and_the_contracts_files(call, tmp_path, name):
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    trained(call, SMALL[name], a, 3)
    trained(call, SMALL[name], b, 3)
    assert same(states(a), states(b)) and rows(a) == rows(b)
    trained(call, SMALL[name], c, 3, "--seed", "1")
    assert not same(states(a), states(c))
    for folder in {path.parent for path in a.rglob("log.csv")}:
        log = runs.read_log(folder)
        assert list(log)[:6] == runs.Run.COLUMNS and log["iteration"].tolist() == [1, 2, 3]
        assert all(np.isfinite(log[column]).all() for column in runs.Run.COLUMNS)
        config = json.loads((folder / "config.json").read_text())
        assert config["script"] == SMALL[name][0] and config["flags"]["iterations"] == 3
        assert Image.open(folder / "curves.png").width > 500
        assert [held["iteration"] for held in objects(folder).values()] == [3]


@pytest.mark.parametrize("name", SMALL)
def test_interrupted_and_resumed_is_the_undisturbed_run_bit_for_bit(call, tmp_path, name):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trained(call, SMALL[name], whole, 5)
    with ctrl_c_after(2):
        code, _, stderr = call(*SMALL[name], "--iterations", 5, "--out", cut)
    assert code == 130 and "saved iteration 2" in stderr and "--resume" in stderr
    trained(call, SMALL[name], cut, 5, "--resume")
    assert same(states(whole), states(cut)) and rows(whole) == rows(cut)


# ------------------------------------------------------------------------------------------------------- train_toy

def test_the_figure_has_six_surfaces_in_two_rows(call, tmp_path):
    trained(call, ["train_toy.py", "--dim", "8", "--batch-size", "16"], tmp_path / "a", 2)
    assert len(list((tmp_path / "a").glob("*/surface.png"))) == 6
    figure, one = Image.open(tmp_path / "a" / "figure.png"), Image.open(tmp_path / "a" / "swissroll-wgan" / "surface.png")
    assert 3 * one.width < figure.width < 4 * one.width and 2 * one.height < figure.height < 3 * one.height
    pixels = np.asarray(figure.convert("RGB"))
    panel = np.asarray(one.convert("RGB"))
    found = [(y, x) for y in range(figure.height - one.height) for x in range(figure.width - one.width)
             if (pixels[y, x:x + one.width:7] == panel[0, ::7]).all() and (pixels[y + 150, x:x + 60] == panel[150, :60]).all()
             and (pixels[y:y + one.height, x:x + one.width] == panel).all()]
    assert len(found) == 1 and found[0][1] > 2 * one.width and found[0][0] < 100  # top right: clipping, Swiss roll


def test_samples_near_modes_are_counted():
    import train_toy
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[0.0, 0.29], [0.0, 0.31], [1.0, 0.0], [1.1, 0.1], [5.0, 5.0]])
    assert train_toy.near_modes(x, centres, 0.1) == {"share_near_modes": pytest.approx(0.6), "modes_hit": 2}


def test_the_fixed_generator_is_the_data_plus_unit_noise_paired(call, tmp_path, monkeypatch):
    seen = []

    def step(G, D, opt, x, z, *y, method):
        seen.append((x, z, G(z, *y)))
        return torch.zeros(3)
    monkeypatch.setattr(wgan_gp, "critic_step", step)
    trained(call, SMALL["toy"][:3] + ["--batch-size", "4000", "--dim", "4"], tmp_path / "a", 1)
    for x, z, x_tilde in seen:
        assert torch.equal(x_tilde, x + z)
        assert z.std().item() == pytest.approx(1, abs=0.05) and z.mean().item() == pytest.approx(0, abs=0.05)
        assert x.norm(dim=1).mean().item() == pytest.approx(2 / 1.414, rel=0.01)


# ----------------------------------------------------------------------------------------------------- train_cifar

@pytest.mark.parametrize("method", wgan_gp.METHODS)
def test_each_method_trains_with_the_norm_that_it_needs(call, tmp_path, method):
    trained(call, CIFAR, tmp_path / "a", 2, "--method", method)
    D = objects(tmp_path / "a")[""]["objects"]["D"]
    norms = [key for key, value in D.items() if key.endswith("weight") and value.dim() == 1]
    assert len(norms) == (0 if "gp" in method else 2)
    if method == "wgan":
        assert max(value.abs().max() for value in D.values()) <= 0.01
    log = runs.read_log(tmp_path / "a")
    assert np.isfinite(log["held_out_loss"]).tolist() == [False, True]
    samples = Image.open(tmp_path / "a" / "samples" / "000002.png")
    assert samples.size == (10 * 34 - 2, 10 * 34 - 2)


@pytest.fixture
def pretend_inception(monkeypatch):
    """A stand-in for the network and the score, which draws random numbers as nothing in a run may mind."""
    scored = []

    def score(images, net, **_):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 32, 32) and images.max() > 100
        torch.manual_seed(len(scored))
        scored.append(len(images))
        return 1 + torch.rand(()).item(), 0.5
    monkeypatch.setattr(inception, "load_or_warn", lambda *_: "a network")
    monkeypatch.setattr(inception, "inception_score", score)
    return scored


@pytest.mark.parametrize("name", ["cifar", "cifar resnet, conditional"])
def test_scores_are_logged_and_disturb_nothing(call, tmp_path, pretend_inception, name):
    trained(call, SMALL[name], tmp_path / "plain", 4)
    flags = ["--score-every", 2, "--score-samples", 30] + (["--final-samples", 50] if name == "cifar" else [])
    trained(call, SMALL[name], tmp_path / "scored", 4, *flags)
    assert pretend_inception == [30, 30] + [50] * (name == "cifar")
    log = runs.read_log(tmp_path / "scored")
    assert np.isfinite(log["inception_score"]).tolist() == [False, True, False, True]
    assert log["samples_scored"][[1, 3]].tolist() == [30, 30]
    if name == "cifar":  # the last score is of more samples, so it has columns of its own
        assert np.isfinite(log["final_score"]).tolist() == [False] * 3 + [True] and log["final_samples"][3] == 50
    assert same(states(tmp_path / "plain"), states(tmp_path / "scored"))


def test_without_the_inception_weights_there_is_one_warning_and_a_training(call, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "WEIGHTS_URL", "http://127.0.0.1:9/" + inception.WEIGHTS_FILE)
    _, stderr = trained(call, CIFAR[:-2], tmp_path / "a", 1, "--data-dir", tmp_path)
    warnings = [line for line in stderr.splitlines() if "Inception" in line and "without" in line]
    assert len(warnings) == 1 and inception.WEIGHTS_FILE in warnings[0] and "127.0.0.1:9" in warnings[0]
    assert np.isnan(runs.read_log(tmp_path / "a")["inception_score"]).all()


def test_figure_3_from_the_runs_found(call, tmp_path):
    code, _, stderr = call("train_cifar.py", "--figure", "--out", tmp_path)
    assert code == 1 and "train some first" in stderr
    for method in ("wgan-gp", "dcgan"):
        trained(call, CIFAR, tmp_path / f"cifar-{method}", 2, "--method", method)
    code, stdout, _ = call("train_cifar.py", "--figure", "--out", tmp_path)
    assert code == 0 and "2 of 4" in stdout and Image.open(tmp_path / "figure3.png").width > 1000


# ---------------------------------------------------------------------------------------------- train_cifar_resnet

def test_summary_is_appendix_fs_tables(call):
    code, stdout, _ = call("train_cifar_resnet.py", "--summary")
    rows = [line.split() for line in stdout.splitlines()]
    shapes = [" ".join(row[-6:-1]) for row in rows if row and "x" in row]
    assert [s for s in shapes if s.startswith("128 x")] == [
        "128 x 4 x 4", "128 x 8 x 8", "128 x 16 x 16", "128 x 32 x 32",  # the generator
        "128 x 16 x 16", "128 x 8 x 8", "128 x 8 x 8", "128 x 8 x 8"]  # the critic
    assert "3 x 32 x 32" in stdout and stdout.count("Up") == 3 and stdout.count("Down") == 2


def test_the_classification_loss_of_generated_images_does_not_train_the_critic(call, tmp_path, monkeypatch):
    """In a critic step the classifier sees real images with their labels, and nothing else."""
    import models
    import train_cifar_resnet as script
    seen = []

    def classify(self, x):
        seen.append((x.detach(), torch.is_grad_enabled()))
        return self.label(self.features(x))
    monkeypatch.setattr(models.CifarResNetCritic, "classify", classify)
    torch.manual_seed(0)
    G, D = models.CifarResNetGenerator(4, True), models.CifarResNetCritic(4, True)
    method = wgan_gp.WGAN_GP._replace(critic_term=script.critic_term, generator_term=script.generator_term)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    x, y, z = torch.rand(6, 3, 32, 32), torch.arange(6), torch.randn(6, 128)
    before = [p.clone() for p in G.parameters()]
    wgan_gp.critic_step(G, D, opt_D, x, z, y, method=method)
    assert len(seen) == 1 and torch.equal(seen[0][0], x)
    assert D.label.weight.grad.abs().sum() > 0 and all(map(torch.equal, before, G.parameters()))
    before = [p.clone() for p in D.parameters()]
    opt_D.zero_grad()
    x_tilde = G(z, y).detach()
    wgan_gp.generator_step(G, D, opt_G, z, y, method=method)
    assert len(seen) == 2 and torch.allclose(seen[1][0], x_tilde, atol=1e-6)
    assert all(map(torch.equal, before, D.parameters())) and all(p.grad is None for p in D.parameters())
    assert all(p.grad is not None for p in G.parameters())


def test_a_figure_of_runs_that_have_logged_nothing(call, tmp_path):
    (tmp_path / "cifar-wgan").mkdir()
    (tmp_path / "cifar-wgan" / "log.csv").write_text(",".join([*runs.Run.COLUMNS, "inception_score"]) + "\n")
    code, _, stderr = call("train_cifar.py", "--figure", "--out", tmp_path)
    assert code == 1 and "have not logged anything yet" in stderr and "Traceback" not in stderr


def test_out_of_memory_is_one_line(call, tmp_path):
    code, _, stderr = call("train_lsun.py", "--architecture", "mlp", "--dim", 2 ** 27, "--batch-size", 4,
                           "--data", "shapes", "--out", tmp_path / "a")
    assert code == 1 and "out of memory" in stderr.splitlines()[-1] and "Traceback" not in stderr


def test_the_generators_further_term_teaches_it_the_labels():
    """A classifier that says which colour is strongest, and nothing but AC-GAN's term: G learns to obey."""
    import models
    import train_cifar_resnet as script

    class Colours(torch.nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))

        def classify(self, x):
            return 10 * x.mean((2, 3))
    torch.manual_seed(0)
    G, D = models.CifarResNetGenerator(4, True), Colours()
    method = wgan_gp.WGAN_GP._replace(generator_loss=lambda fake: 0 * fake.mean(), generator_term=script.generator_term)
    opt_G = torch.optim.Adam(G.parameters(), lr=1e-2)
    for _ in range(40):
        wgan_gp.generator_step(G, D, opt_G, torch.randn(24, 128), torch.randint(3, (24,)), method=method)
    z, y = torch.randn(300, 128), torch.randint(3, (300,))
    assert (D.classify(G(z, y)).argmax(1) == y).float().mean() > 0.8


def test_conditional_needs_labels(call, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(20):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    code, _, stderr = call("train_cifar_resnet.py", "--conditional", "--data", tmp_path / "images", "--out", tmp_path / "a")
    assert code == 1 and "has no labels" in stderr and not (tmp_path / "a" / "config.json").exists()


# ------------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("command, code, says", [
    (["train_cifar.py", "--data", "no-such"], 1, "choose cifar10, shapes or a folder of images"),
    (["train_cifar.py", "--data", "shapes", "--batch-size", "100000"], 1, "fewer than a batch"),
    (["train_cifar.py", "--method", "vae"], 2, "--method"),
    (["train_cifar.py", "--method", "wgan", "--beta1", "0.5"], 2, "uses RMSProp"),
    (["train_cifar.py", "--dim", "0"], 2, "--dim"),
    ([*CIFAR, "--resume"], 2, "there is no checkpoint"),
    (["train_toy.py", "--data", "9gaussians"], 2, "choose 8gaussians, 25gaussians, swissroll"),
    (["train_toy.py", "--beta1", "1"], 2, "--beta1"),
    (["train_toy.py", "--clip", "0"], 2, "--clip"),
    (["train_toy.py", "--lr", "0"], 2, "--lr"),
    (["train_toy.py", "--resume"], 2, "there is no checkpoint"),
    (["train_cifar.py", "--data", "shapes", "--batch-size", "4", "--inception", "/no/such/file"], 1, "no such file of weights"),
])
def test_mistakes_are_one_line(call, tmp_path, command, code, says):
    got, _, stderr = call(*command, "--out", tmp_path / "a")
    lines = [line for line in stderr.splitlines() if "usage" not in line and not line.startswith(" ")]
    assert got == code and says in lines[-1] and "Traceback" not in stderr
    assert not (tmp_path / "a" / "config.json").exists()  # so that the mended command is not refused


def test_no_archive_and_no_network(call, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CIFAR10_URLS", ["http://127.0.0.1:9/"])
    code, _, stderr = call("train_cifar.py", "--data-dir", tmp_path / "data", "--out", tmp_path / "a")
    line = stderr.splitlines()[-1]
    assert code == 1 and "127.0.0.1:9" in line and "cifar-10-python.tar.gz" in line and "--data shapes" in line
    assert not (tmp_path / "a").exists()


def test_a_truncated_archive(call, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b\x08\x00 cut")
    code, _, stderr = call("train_cifar.py", "--data-dir", tmp_path, "--out", tmp_path / "a")
    assert code == 1 and "cifar-10-python.tar.gz" in stderr.splitlines()[-1] and "damaged" in stderr


def test_a_finished_run_is_not_overwritten(call, tmp_path, monkeypatch):
    trained(call, CIFAR, tmp_path / "a", 1)
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(data, "images", None)  # that is said before anything is loaded, let alone downloaded
        code, _, stderr = call(*CIFAR, "--iterations", 1, "--out", tmp_path / "a")
    assert code == 2 and "already holds a run" in stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    code, _, stderr = call(*CIFAR, "--iterations", 2, "--out", tmp_path / "a", "--resume")
    assert code == 2 and "--iterations 1, not 2" in stderr
