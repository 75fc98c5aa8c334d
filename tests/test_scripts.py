"""Properties of all nine scripts, through their command lines: one parametrised test each."""
import gc
import importlib
import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import data
import models
import runs
import wgan_gp
from conftest import below, ctrl_c_after, objects, rows, same, states
from test_train_mnist import write_digits

IMAGES = ["--data", "shapes", "--batch-size", "4"]
SMALL = {  # name: a command that trains a small version of a script, without --iterations and --out
    "toy": ["train_toy.py", "--data", "8gaussians", "--dim", "8", "--batch-size", "16"],
    "toy gan": ["train_toy.py", "--train-generator", "--dim", "8", "--batch-size", "16"],
    "swiss roll": ["train_swiss_roll.py", "--dim", "8", "--depth", "3", "--batch-size", "16"],
    "proposition": ["train_proposition.py", "--data", "rings", "--dim", "8", "--batch-size", "16"],
    "cifar": ["train_cifar.py", *IMAGES, "--dim", "2", "--score-every", "0"],
    "cifar resnet": ["train_cifar_resnet.py", *IMAGES, "--conditional", "--dim", "2", "--generator-batch", "6",
                     "--score-every", "0"],
    "mnist": ["train_mnist.py", "--data-dir", "{data}", "--subset", "24", "--dim", "2", "--batch-size", "8"],
    "language": ["train_language.py", "--data", "{data}/text.txt", "--dim", "6", "--batch-size", "8"],
    "lsun": ["train_lsun.py", *IMAGES, "--dim", "4"],
    "random": ["train_random_architectures.py", "--index", "3", "--method", "wgan-gp", *IMAGES,
               "--divide-filters", "32", "--score-samples", "0"],
}
SCRIPTS = sorted({command[0] for command in SMALL.values()})
DECAYS = {"toy", "toy gan", "cifar resnet", "proposition"}  # the learning rate falls over --iterations
SAMPLES = {"cifar": ".png", "cifar resnet": ".png", "mnist": ".png", "language": ".txt", "lsun": ".png",
           "random": ".png", "toy gan": ".png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 60 and 20 images of MNIST, and text.txt."""
    folder = tmp_path_factory.mktemp("data")
    write_digits(folder)
    words = "the a cat dog sat ran on under mat café 3 .".split()
    lines = [" ".join(random.Random(i).choices(words, k=8)) for i in range(60)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 40), seed, size))


@pytest.fixture
def run(call, folder):
    """run(name, out, iterations, *flags, code=0) runs a small script. It returns what was printed, stderr last."""
    def run(name, out, iterations, *flags, code=0):
        command = [word.format(data=folder) for word in SMALL[name]]
        got, stdout, stderr = call(*command, "--iterations", iterations, "--out", out, *flags)
        assert got == code, stderr
        return stdout, stderr
    return run


@pytest.fixture(scope="module")
def finished():
    return {}


@pytest.fixture
def whole(run, finished, tmp_path_factory):
    """whole(name) returns the folder of a run of 5 iterations that nothing disturbed."""
    def whole(name):
        if name not in finished:
            finished[name] = tmp_path_factory.mktemp("whole") / "run"
            run(name, finished[name], 5)
        return finished[name]
    return whole


def assert_same_run(a, b):
    """Weights and logs agree bit for bit, except that either run may have measured more often."""
    assert same(states(a), states(b))
    for where, log in rows(a).items():
        for row, other in zip(log, rows(b)[where], strict=True):
            assert all(row[name] == other[name] for name in row if row[name] and other[name])


# ---- runs ----

@pytest.mark.parametrize("name", SMALL)
def test_a_run_leaves_the_files_and_names_the_one_to_open(run, tmp_path, name):
    out, often = tmp_path / "a", ["--sample-every", 2] * (name in SAMPLES)
    stdout, stderr = run(name, out, 3, *often)
    line = [line for line in (stderr + stdout).splitlines() if line.startswith("done: ")][-1]
    named = Path(re.search(r"\S+\.(png|txt|gif|csv|json)\b", line)[0])
    assert named.is_file() and out in named.parents
    for where, path in below(out, "log.csv").items():
        log = runs.read_log(path.parent)
        assert list(log)[:6] == runs.Run.COLUMNS and log["iteration"].tolist() == [1, 2, 3]
        assert all(np.isfinite(log[column]).all() for column in ["critic_loss", "wasserstein", "penalty"])
        config = json.loads((path.parent / "config.json").read_text())
        assert config["script"] == SMALL[name][0] and config["flags"]["iterations"] == 3
        assert Image.open(path.parent / "curves.png").width > 500
        assert objects(path.parent)[""]["iteration"] == 3
        samples = sorted(file.name for file in path.parent.glob("samples/*"))
        assert samples == [f"00000{i}{SAMPLES[name]}" for i in (2, 3) if name in SAMPLES]
    run(name, tmp_path / "b", 3, "--seed", 1)
    assert not same(states(out), states(tmp_path / "b"))


@pytest.mark.parametrize("name", SMALL)
def test_interrupted_and_resumed_is_the_undisturbed_run_bit_for_bit(run, whole, tmp_path, name):
    cut = tmp_path / "cut"
    with ctrl_c_after(2):
        _, stderr = run(name, cut, 5, code=130)
    last = stderr.splitlines()[-1]
    assert "saved iteration 2 (the same command with --resume goes on): " in last and "Traceback" not in stderr
    named = Path(last.split()[-1])
    assert named.is_file()
    if name in SAMPLES:
        assert named.name == f"000002{SAMPLES[name]}"
    run(name, cut, 5, "--resume")
    assert_same_run(whole(name), cut)


@pytest.mark.parametrize("name", SMALL)
def test_a_run_can_go_on_further_and_looking_disturbs_nothing(run, whole, tmp_path, name):
    looks = [word for word in ("--sample-every", "--measure-every") if word[2:].replace("-", "_") in help_of(SMALL[name][0])]
    flags = [word for look in looks for word in (look, 1)]
    run(name, tmp_path / "run", 3, *flags)
    if name in DECAYS:
        _, stderr = run(name, tmp_path / "run", 5, "--resume", code=2)
        assert "decays" in stderr.splitlines()[-1] and "--iterations" in stderr
    else:
        run(name, tmp_path / "run", 5, "--resume")
        assert_same_run(whole(name), tmp_path / "run")


@pytest.mark.parametrize("name", ["cifar", "cifar resnet", "lsun"])
def test_training_and_held_out_images_are_not_exchanged(run, tmp_path, monkeypatch, name):
    seen = {"batches": [], "in_order": []}
    for function, calls in seen.items():
        def spy(*args, real=getattr(data, function), calls=calls):
            calls.append([part for part in args if torch.is_tensor(part)])
            return real(*args)
        monkeypatch.setattr(data, function, spy)
    run(name, tmp_path / "run", 1)
    for function, train in (("batches", True), ("in_order", False)):
        expected = data.images("shapes", size=64 if name == "lsun" else 32, train=train)
        assert seen[function] and all(same(parts, list(expected)[:len(parts)]) for parts in seen[function])
        assert all(len(parts) == 1 + (name == "cifar resnet") for parts in seen[function])  # with labels


@pytest.mark.parametrize("name", SMALL)
def test_nothing_with_a_graph_stays_alive(run, tmp_path, monkeypatch, name):
    """Else memory grows with every iteration."""
    log, alive = runs.Run.log, []

    def look(self, step, **measured):
        assert not any(torch.is_tensor(value) for value in measured.values())
        log(self, step, **measured)
        self.flush()
        if step.iteration > 1:
            tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
            assert not [tensor for tensor in tensors if tensor.grad_fn is not None]
            alive.append(len(tensors))
    monkeypatch.setattr(runs.Run, "log", look)
    run(name, tmp_path / "run", 4)
    assert alive[0::3] == alive[1::3]  # after the second and the third iteration; the fourth measures


# ---- mistakes ----

def help_of(script):
    return Path(runs.__file__).with_name(script).read_text()


def one_line(stderr, *words):
    """There is one line, and it has the words."""
    line, = stderr.splitlines()
    assert all(word in line for word in words), stderr


NEEDED = {"train_random_architectures.py": ["--index", "0", "--method", "gan"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_that_cannot_be(call, tmp_path, monkeypatch, script):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wgan_gp, "critic_step", None)
    (tmp_path / "file").write_text("")
    for flags, says in {
            "--no-such-flag": "--no-such-flag", "--iter 3": "--iter 3", "--iterations 0": "--iterations",
            f"--iterations {2 ** 63}": "--iterations", "--batch-size 1": "--batch-size", "--seed -1": "--seed",
            "--device abacus": "--device", "--out file/a": "is a file", "--resume": "no checkpoint in"}.items():
        if script == "train_random_architectures.py" and flags == "--resume":
            continue  # there it starts the runs that have not been started
        code, _, stderr = call(script, *NEEDED.get(script, []), "--out", "a", *flags.split())
        assert code == 2, flags
        one_line(stderr, says)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("command, code, says", [
    ("train_cifar.py --data no-such", 1, "a folder"),
    ("train_cifar.py --data shapes --batch-size 100000", 1, "than a batch"),
    ("train_cifar.py --data shapes --batch-size 4 --inception no/such/file", 1, "no/such/file"),
    ("train_cifar_resnet.py --data shapes --batch-size 4 --inception no/such/file", 1, "no/such/file"),
    ("train_cifar.py --method vae", 2, "--method"),
    ("train_cifar.py --method wgan --beta1 0.5", 2, "uses RMSProp"),
    ("train_cifar_resnet.py --conditional --data {data}", 1, "labels"),
    ("train_toy.py --data 9gaussians", 2, "8gaussians, 25gaussians, swissroll"),
    ("train_toy.py --beta1 1", 2, "--beta1"),
    ("train_toy.py --clip 0", 2, "--clip"),
    ("train_toy.py --lr 1e39", 2, "--lr"),
    ("train_swiss_roll.py --data mnist", 2, "swissroll"),
    ("train_proposition.py --data mnist", 2, "rings"),
    ("train_mnist.py --data cifar10", 2, "--data cifar10"),
    ("train_mnist.py --data-dir {data} --subset 60001", 2, "--subset: 60001 must be"),
    ("train_mnist.py --data-dir {data} --subset 24 --batch-size 25", 1, "lower --batch-size"),
    ("train_mnist.py --method wgan --beta1 0.5", 2, "uses RMSProp"),
    ("train_language.py --data {data}/missing.txt", 1, "missing.txt"),
    ("train_language.py --data {data}/text.txt --batch-size 61", 1, "than a batch"),
    ("train_language.py --data {data}/t10k-images-idx3-ubyte.gz", 1, "t10k-images"),
    ("train_language.py --length 3", 2, "--length"),
    ("train_language.py --max-lines 1", 2, "--max-lines"),
    ("train_language.py --method wgan --beta1 0.5", 2, "uses RMSProp"),
    ("train_lsun.py --architecture mlp --size 128", 2, "--size"),
    ("train_lsun.py", 1, "no folder data/lsun: export LSUN"),
    ("train_lsun.py --data cifar10", 1, "choose shapes or a folder"),
    ("train_lsun.py --method wgan --beta1 0", 2, "uses RMSProp"),
    ("train_lsun.py --data shapes --architecture mlp --dim 1000000", 2, "--dim"),
    ("train_random_architectures.py --index 0", 2, "--method"),
    ("train_random_architectures.py --index 9216 --method gan", 2, "--index"),
    ("train_random_architectures.py --index 0 --method gan", 1, "image-net.org"),
])
def test_mistakes_are_one_line(call, folder, tmp_path, monkeypatch, command, code, says):
    monkeypatch.chdir(tmp_path)
    command = [word.format(data=folder) for word in command.split()]
    got, _, stderr = call(*command, "--out", tmp_path / "a")
    assert got == code
    one_line(stderr, says)
    assert not (tmp_path / "a" / "config.json").exists()  # so that the corrected command is not refused


@pytest.mark.parametrize("command, says", [
    ("train_cifar.py --figure", "no run in runs is"), ("train_cifar_resnet.py --table", "the logs in runs."),
    ("train_lsun.py --grid", "no run of Figure 2 in runs:")])
def test_figures_and_tables_are_of_the_folder_runs(call, tmp_path, monkeypatch, command, says):
    monkeypatch.chdir(tmp_path)
    assert says in "".join(call(*command.split())[1:])


@pytest.mark.parametrize("script, file", [
    ("train_cifar.py", "cifar-10-python.tar.gz"), ("train_cifar_resnet.py", "cifar-10-python.tar.gz"),
    ("train_mnist.py", "train-images-idx3-ubyte.gz"), ("train_language.py", "1-billion-word")])
def test_no_data_and_no_network(call, tmp_path, monkeypatch, script, file):
    monkeypatch.setattr(data, "DOWNLOADS", {name: ("http://127.0.0.1:9/", None) for name in data.DOWNLOADS})
    code, _, stderr = call(script, "--data-dir", tmp_path / "data", "--out", tmp_path / "a")
    assert code == 1 and not (tmp_path / "a").exists()
    assert "127.0.0.1:9" in stderr.splitlines()[-1] and file in stderr.splitlines()[-1] and "Traceback" not in stderr


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_that_holds_something_else_is_left_alone(run, whole, tmp_path, monkeypatch, name):
    monkeypatch.setattr(data, "images", None)  # the refusal comes before anything is loaded, let alone downloaded
    monkeypatch.setattr(data, "mnist", None)
    monkeypatch.setattr(data, "text", None)

    def content(folder):
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    before = content(whole(name))
    says = {"random": "result of this run"}.get(name, "already holds a run")
    one_line(run(name, whole(name), 5, code=2)[1], says)
    assert before == content(whole(name))
    for where in below(whole(name), "log.csv"):
        path = tmp_path / where / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"name": "not ours"}')
    if name != "random":
        one_line(run(name, tmp_path, 5, code=2)[1], "config.json", "no checkpoint")
        assert path.read_text() == '{"name": "not ours"}'


@pytest.mark.parametrize("name, flags", [
    ("toy gan", ["--dim", 9]), ("cifar", ["--method", "wgan"]), ("mnist", ["--beta1", 0.5]),
    ("language", ["--n-critic", 3]), ("lsun", ["--architecture", "tanh"]), ("swiss roll", ["--dim", 9]),
    ("proposition", ["--paired"])])
def test_a_run_is_resumed_with_its_own_flags(run, whole, name, flags):
    _, stderr = run(name, whole(name), 5, "--resume", *flags, code=2)
    one_line(stderr, f"was started with {flags[0]}")


@pytest.mark.parametrize("command, out", [
    ("train_cifar.py", "cifar-wgan-gp"), ("train_cifar.py --seed 2 --method wgan", "cifar-wgan-seed2"),
    ("train_cifar.py --data shapes --dim 32", "shapes-wgan-gp-dim-32"),
    ("train_cifar.py --data my/photos/ --norm layer --beta1 0.5", "photos-wgan-gp-norm-layer-beta1-0.5"),
    ("train_cifar_resnet.py", "cifar-resnet"), ("train_cifar_resnet.py --conditional", "cifar-resnet-conditional"),
    ("train_cifar_resnet.py --conditional --seed 1", "cifar-resnet-conditional-seed1"),
    ("train_cifar_resnet.py --data shapes --generator-batch 64", "shapes-resnet-generator-batch-64"),
    ("train_cifar_resnet.py --dim 32", "cifar-resnet-dim-32"),
    ("train_lsun.py --architecture resnet --size 128", "lsun-resnet-wgan-gp-size-128"),
    ("train_lsun.py --data my/photos --method wgan --seed 1", "photos-dcgan-wgan-seed1"),
    ("train_mnist.py", "mnist"), ("train_mnist.py --method wgan", "mnist-wgan"),
    ("train_mnist.py --subset 0", "mnist-all-wgan-gp"), ("train_mnist.py --subset 50 --seed 1", "mnist-50-seed1"),
    ("train_mnist.py --subset 0 --method wgan --dim 16", "mnist-all-wgan"),
    ("train_language.py --n-critic 3", "language-wgan-gp"),
    ("train_language.py --data my/text.txt --method dcgan", "language-text.txt-dcgan")])
def test_the_default_folder_tells_runs_apart(monkeypatch, command, out):
    monkeypatch.setattr("sys.argv", [*command.split(), "--device", "cpu"])
    args = importlib.import_module(command.split()[0][:-3]).parse()
    assert args.out == f"runs/{out}" and args.data_dir == "data"


# ---- published settings ----

class Stop(BaseException):
    """Ends a script after its first iteration."""


class Published(NamedTuple):
    """What the paper says (Algorithm 1, Sections 5.1 to 5.6, Appendices B, E and F), or else the authors' code."""
    optimizer: type
    rates: tuple  # the learning rate, and Adam's betas or RMSProp's alpha
    lam: float
    clip: float
    n_critic: int
    G: Callable | None
    D: Callable
    iterations: int | None = 200_000
    batch: int = 64
    generator_batch: int = 64
    pixels: tuple | None = (-1, 1)  # black and white
    noise: float = 0  # in pixels
    bytes: tuple = (0, 127, 254)  # of black, the middle, and white less 0.0015 of the range: tells 255.99 from 255
    latent: int = 128
    decay: bool = False


ADAM, RMSPROP = torch.optim.Adam, torch.optim.RMSprop
WGAN_GP = partial(Published, ADAM, (1e-4, (0.0, 0.9)), 10, 0, 5)
WGAN = partial(Published, RMSPROP, (5e-5, 0.9), 0, 0.01, 5)
DCGAN = partial(Published, ADAM, (2e-4, (0.5, 0.999)), 0, 0, 1)
LSGAN = partial(Published, RMSPROP, (1e-4, 0.9), 0, 0, 1)
RESNET = partial(Published, ADAM, (2e-4, (0.0, 0.9)), 10, 0, 5, iterations=100_000, generator_batch=128, decay=True,
                 pixels=(-1, 127 / 128), noise=1 / 128, bytes=(0, 127, 255))
MNIST = dict(batch=50, generator_batch=50, pixels=(0, 1), bytes=(0, 127, 255))
LSUN = dict(bytes=(0, 127, 255))
APPENDIX_E = partial(Published, ADAM, (1e-4, (0.5, 0.9)), 10, 0, 5, **LSUN)
TOY = dict(batch=256, generator_batch=256, pixels=None, latent=2)
LANGUAGE = dict(pixels=(0, 1), bytes=())
language_networks = partial(models.language_generator, 5, 32, 512), partial(models.language_critic, 5, 32, 512)


def random_network(build, which, norm):
    """Architecture 3 as its row of Table 1 says."""
    row = importlib.import_module("train_random_architectures").architectures(0)[3]
    kinds = {"ReLU": models.ReLU, "LeakyReLU": models.LeakyReLU, "tanh": torch.nn.Tanh}
    kind = kinds.get(row[f"Nonlinearity ({which})"], models.ShiftedSoftplus)
    assert row[f"Batch norm ({which})"]
    return build(row[f"Base filter count ({which})"], row[f"Depth ({which})"], kind, norm)


cifar_G, cifar_D = partial(models.cifar_generator, 64), partial(models.cifar_critic, 64)
cifar_D_batch = partial(models.cifar_critic, 64, "batch")
mnist_G, mnist_D = partial(models.mnist_generator, 64), partial(models.mnist_critic, 64)
dcgan64_G = partial(models.dcgan64_generator, 64)

SETTINGS = {
    "train_toy.py --train-generator --paper":
        WGAN_GP(partial(models.toy_generator, 512), partial(models.toy_critic, 512), iterations=100_000, **TOY),
    "train_toy.py --paper": WGAN(None, partial(models.toy_critic, 512), **TOY | {"iterations": None}),
    "train_swiss_roll.py":
        WGAN(partial(models.toy_generator, 128, 12), partial(models.toy_critic, 128, 12), iterations=600, **TOY)
        ._replace(clip=0.1),
    "train_cifar.py": WGAN_GP(cifar_G, cifar_D),
    "train_cifar.py --method wgan-gp-rmsprop":
        WGAN_GP(cifar_G, cifar_D)
        ._replace(optimizer=RMSPROP, rates=(5e-5, 0.9)),
    "train_cifar.py --method wgan": WGAN(cifar_G, cifar_D_batch),
    "train_cifar.py --method dcgan": DCGAN(cifar_G, cifar_D_batch),
    "train_cifar_resnet.py": RESNET(partial(models.CifarResNetGenerator, 128), partial(models.CifarResNetCritic, 128)),
    "train_cifar_resnet.py --conditional":
        RESNET(partial(models.CifarResNetGenerator, 128, True), partial(models.CifarResNetCritic, 128, True)),
    "train_mnist.py --method wgan-gp":
        WGAN_GP(mnist_G, mnist_D, iterations=20_000, **MNIST),
    "train_mnist.py --method wgan":
        WGAN(partial(mnist_G, norm=True), partial(mnist_D, norm="batch"), iterations=20_000, **MNIST),
    "train_mnist.py --subset 0": WGAN_GP(mnist_G, mnist_D, **MNIST),
    "train_language.py": WGAN_GP(*language_networks, **LANGUAGE)._replace(n_critic=10),
    "train_language.py --method dcgan": DCGAN(*language_networks, **LANGUAGE),
    "train_lsun.py": APPENDIX_E(dcgan64_G, partial(models.dcgan64_critic, 64, "layer")),
    "train_lsun.py --beta1 0 --architecture no-norm":
        WGAN_GP(partial(models.LSUN["no-norm"][0], 64), partial(models.LSUN["no-norm"][1], 64, "layer"), **LSUN),
    "train_lsun.py --method lsgan":
        LSGAN(dcgan64_G, partial(models.dcgan64_critic, 64, "batch"), **LSUN),
    "train_lsun.py --method wgan --architecture tanh":
        WGAN(partial(models.LSUN["tanh"][0], 64), partial(models.LSUN["tanh"][1], 64, "batch"), **LSUN),
    "train_lsun.py --method dcgan --architecture gated":
        DCGAN(partial(models.LSUN["gated"][0], 64), partial(models.LSUN["gated"][1], 64, "batch"), **LSUN),
    "train_lsun.py --architecture resnet --size 128":
        APPENDIX_E(partial(models.resnet_generator, 64, 128), partial(models.resnet_critic, 64, "layer", 128)),
    "train_random_architectures.py --index 3 --method wgan-gp":
        WGAN_GP(partial(random_network, models.variant_generator, "G", True),
                partial(random_network, models.variant_critic, "D", "layer"), iterations=100_000),
    "train_random_architectures.py --index 3 --method gan":
        DCGAN(partial(random_network, models.variant_generator, "G", True),
              partial(random_network, models.variant_critic, "D", "batch"), iterations=100_000),
}


@pytest.fixture
def intercepted(monkeypatch, folder, tmp_path):
    """Record what the first iteration of a script uses, and compute nothing. Images are black on top, white below."""
    for name in ("lsun", "imagenet32"):
        (tmp_path / "data" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    seen = {"critic": [], "loaded": []}

    def images(name, data_dir="data", size=None, train=True, leave_out=None):
        seen["loaded"].append((name, size))
        size = size or 32
        pixels = torch.zeros(1_200, 3, size, size, dtype=torch.uint8)
        pixels[:, :, size // 2:] = 255
        return pixels, torch.arange(1_200) % 10

    def text(name, data_dir, max_lines, length, *_):
        seen["loaded"].append((name, max_lines))
        return torch.randint(5, (700, length)), "abcde"

    def train(G, D, batches, latents, opt_G, opt_D, method=None, iterations=None, start=0, seed=None, decay=False,
              generator_batch=None):
        seen["train"] = iterations, seed, decay
        yield from real_train(G, D, batches, latents, opt_G, opt_D, method, iterations, start, seed, decay,
                              generator_batch)

    def critic_step(G, D, opt_D, x, z, *y, method=None):
        seen["D"] = D
        seen["critic"].append((opt_D, x, z, y, method))
        if "train" not in seen:  # the generator is fixed
            raise Stop
        return torch.zeros(3)

    def generator_step(G, D, opt_G, z, *y, method=None):
        seen["generator"] = opt_G, z, y
        raise Stop
    real_train = wgan_gp.train
    monkeypatch.setattr(data, "images", images)
    digits = images("mnist", size=28)[0][:, :1]
    monkeypatch.setattr(data, "mnist", lambda *args, **kwargs: (digits.clone(), None))
    monkeypatch.setattr(data, "text", text)
    monkeypatch.setattr(wgan_gp, "train", train)
    monkeypatch.setattr(wgan_gp, "critic_step", critic_step)
    monkeypatch.setattr(wgan_gp, "generator_step", generator_step)
    monkeypatch.setattr(runs.Run, "save", lambda self, *_: seen.update(args=self.args))
    monkeypatch.setattr("inception.load_or_warn", lambda *_, **__: None)
    return seen


def optimizer_of(opt):
    """Return (class, (learning rate, betas or alpha)) of an optimizer that has nothing else but defaults."""
    group, = opt.param_groups
    rest = type(opt)([torch.zeros(1)]).param_groups[0]
    changed = {name for name in rest if name != "params" and group[name] != rest[name]}
    assert changed <= {"lr", "betas", "alpha"}
    return type(opt), (group["lr"], group.get("betas", group.get("alpha")))


@pytest.mark.parametrize("command", SETTINGS)
def test_published_settings_are_what_a_run_uses(call, intercepted, command):
    expected, seen = SETTINGS[command], intercepted
    with pytest.raises(Stop):
        call(*command.split())
    if expected.iterations:
        assert seen["train"] == (expected.iterations, 0, expected.decay) and len(seen["critic"]) == expected.n_critic
        opt_G, z, y = seen["generator"]
        assert optimizer_of(opt_G) == (expected.optimizer, expected.rates)
        assert z.shape == (expected.generator_batch, expected.latent)
        assert expected.n_critic == 1 or not torch.equal(seen["critic"][0][2], z)  # fresh latents in every step
    for opt_D, x, z, labels, method in seen["critic"]:
        assert optimizer_of(opt_D) == (expected.optimizer, expected.rates) and not method.one_sided
        assert (method.lam, method.clip, method.n_critic) == (expected.lam, expected.clip, expected.n_critic)
        assert len(x) == expected.batch and z.shape == (expected.batch, expected.latent) and x.dtype == torch.float32
        assert abs(z.mean()) < 0.15 and 0.85 < z.std() < 1.15
        if expected.pixels:
            assert [x.min(), x.max()] == pytest.approx(expected.pixels, abs=expected.noise)
            assert (len(x.unique()) > 2) == bool(expected.noise)
            assert len(labels) == ("--conditional" in command)
    assert str(seen["D"]) == str(expected.D())

    script = importlib.import_module(command.split()[0][:-3])
    if expected.G:
        G, _, convert = script.generator(seen["args"])
        assert str(G) == str(expected.G()) and shapes(G) == [w.shape for w in opt_G.param_groups[0]["params"]]
    if expected.bytes and expected.pixels:
        low = expected.pixels[0]
        found = convert(torch.tensor([low, (1 + low) / 2, 1 - (1 - low) * 0.0015]))
        assert found.tolist() == list(expected.bytes) and found.dtype == torch.uint8
    if "language" in command:
        assert convert(torch.eye(5)[None, :, [3, 0, 1]]) == ["dab"]
        assert ("billion-word", 10_000_000) in seen["loaded"]
    if "--conditional" in command:
        check_ac_gan(method, y[0])
    if "random" in command:  # Appendix B: where D is normalised, weights decay by 1e-3
        decay = 1e-3 / 2 * sum(w.square().sum().item() for w in seen["D"].parameters() if w.dim() > 1)
        assert "Norm" in str(seen["D"]) and method.critic_term(seen["D"], x).item() == pytest.approx(decay)


def shapes(network):
    return [w.shape for w in network.parameters()]


def check_ac_gan(method, labels):
    """The classification loss has weight 1 for D, on real images, and 0.1 for G. G's labels are uniform."""
    class Classifier:
        def classify(self, x):
            return x
    logits, y = torch.randn(128, 10), torch.arange(128) % 10
    loss = F.cross_entropy(logits, y)
    assert method.critic_term(Classifier(), logits, y) == pytest.approx(loss.item())
    assert method.generator_term(Classifier(), logits, y) == pytest.approx(0.1 * loss.item())
    assert labels.unique().tolist() == list(range(10)) and labels.bincount().max() < 30
