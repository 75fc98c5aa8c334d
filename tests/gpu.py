"""Checks to run once on a new GPU before trusting it, and the source of the results in results/gpu.

    python tests/gpu.py                           nine minutes on CUDA
    python tests/gpu.py --minutes 60 --out DIR    longer trainings
    python tests/gpu.py --minutes 0               without the trainings: three minutes
    python tests/gpu.py --device cpu --minutes 2  the same at tiny sizes, to see that the script works

In this order, so that being cut off loses the least:

    right       loss and gradients of every pair of networks, float32 here against float64 on the CPU
    fast        --fast against the eager loop over 20 iterations, --bf16 against float32
    speed       the textbook step, eager, --fast and --bf16, and what that means for the paper's schedules
    training    CIFAR-10 DCGAN, conditional ResNet, MNIST, language model, for the minutes that are left

Prints a table and writes it to DIR/table.md, beside the folders of the trainings. Exit code 1 if a line fails.
"""
import argparse
import contextlib
import copy
import datetime
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import benchmark  # noqa: E402
import fast  # noqa: E402
import models  # noqa: E402
import train_cifar_resnet  # noqa: E402
import wgan_gp  # noqa: E402

LIMIT = 1e-4  # relative error of a gradient in float32
FAST_LIMIT = 0.02  # relative difference of the losses over 20 iterations
BF16_LIMIT = 0.1  # relative difference of a gradient
SHARES = {"cifar": 0.5, "resnet": 0.2, "mnist": 0.15, "language": 0.15}  # of the minutes for training
LENGTHS = {"resnet": 100_000}  # the others have 200,000 iterations


class Table:
    """The lines that are printed and written to table.md."""

    def __init__(self, out):
        self.path, self.failed = out / "table.md", False
        self.path.write_text("")

    def add(self, text):
        print(text, flush=True)
        with open(self.path, "a") as file:
            file.write(text + "\n")

    def head(self, title, *columns, note=""):
        self.add(f"\n## {title}\n{note}")
        self.row(*columns)
        self.add("|---" * len(columns) + "|")

    def row(self, *cells):
        self.add(f"| {' | '.join(cells)} |")

    def check(self, name, value, limit):
        """Add a line with a value that must not be above its limit. NaN fails."""
        ok = value <= limit
        self.failed |= not ok
        self.row(name, f"{value:.2g}", f"{limit:g}", "ok" if ok else "FAILED")


# ---- pairs of networks ----

def acgan(method):
    return method._replace(critic_term=train_cifar_resnet.critic_term,
                           generator_term=train_cifar_resnet.generator_term)


def pairs(dim=8):
    """Return {name: (G, D, method, shape of x)} for every pair of networks, at a small width."""
    gp, gan = wgan_gp.WGAN_GP, wgan_gp.METHODS["dcgan"]
    image, large = (3, 32, 32), (3, 64, 64)
    resnet = models.CifarResNetGenerator, models.CifarResNetCritic
    found = {
        "toy": (models.toy_generator(64), models.toy_critic(64), gp, (2,)),
        "cifar": (models.cifar_generator(dim), models.cifar_critic(dim), gp, image),
        "cifar, batch norm": (models.cifar_generator(dim), models.cifar_critic(dim, "batch"), gan, image),
        "cifar, layer norm": (models.cifar_generator(dim), models.cifar_critic(dim, "layer"), gp, image),
        "mnist": (models.mnist_generator(dim), models.mnist_critic(dim), gp, (1, 28, 28)),
        "resnet": (*[network(dim) for network in resnet], gp, image),
        "resnet, conditional": (*[network(dim, True) for network in resnet], acgan(gp), image),
        "language": (models.language_generator(20, dim=dim), models.language_critic(20, dim=dim), gp, (20, 32)),
        "128 x 128": (models.resnet_generator(4, 128), models.resnet_critic(4, size=128), gp, (3, 128, 128)),
    }
    for name, (make_G, make_D) in models.LSUN.items():
        found[f"lsun {name}"] = (make_G(dim), make_D(dim, "layer"), gp, large)
        found[f"lsun {name}, batch norm"] = (make_G(dim), make_D(dim, "batch"), gan, large)
    for activation in (nn.Tanh, nn.ELU, models.ShiftedSoftplus):
        G, D = models.variant_generator(dim, 8, activation), models.variant_critic(dim, 8, activation, "layer")
        found[f"variant {activation.__name__}"] = (G, D, gp, image)
    return found


def gradients(G, D, method, x, z, y, eps):
    """Return {name: tensor}, the losses and all gradients of both steps, on the CPU in float64."""
    with mock.patch.object(torch, "rand", lambda *size, **kwargs: eps):
        loss, _, penalty = wgan_gp.critic_loss(D, x, G(z, *y).detach(), *y, method=method)
    x_tilde = G(z, *y)
    loss_G = method.G_loss(wgan_gp.scores(D, x_tilde)) + method.generator_term(D, x_tilde, *y)
    found = {"loss": loss, "penalty": penalty, "generator loss": loss_G}
    for network, its_loss, label in [(D, loss, "D"), (G, loss_G, "G")]:
        names, weights = zip(*network.named_parameters())
        grads = torch.autograd.grad(its_loss, weights, allow_unused=True)
        found |= {f"{label}.{name}": grad for name, grad in zip(names, grads) if grad is not None}
    return {name: value.detach().cpu().double() for name, value in found.items()}


def worst(found, expected):
    """Return (largest relative error, its name), relative to at least a tenth of the largest norm."""
    floors = dict.fromkeys(expected, 1e-3)
    for label in ("D.", "G."):
        norms = {name: value.norm().item() for name, value in expected.items() if name.startswith(label)}
        floors |= dict.fromkeys(norms, 0.1 * max(norms.values()))
    errors = {}
    for name, value in expected.items():
        error = (found[name] - value).norm() / max(value.norm().item(), floors[name])
        errors[name] = error.nan_to_num(float("inf")).item()
    name = max(errors, key=errors.get)
    return errors[name], name


def inputs(name, shape, m=8):
    """Return x, z, (y,) or (), eps on the CPU in float64."""
    x, latent = torch.rand(m, *shape).double() * 2 - 1, 2 if name == "toy" else models.LATENT
    y = (torch.arange(m) % 10,) if "conditional" in name else ()
    return x, torch.randn(m, latent).double(), y, torch.rand(m, *[1] * len(shape)).double()


def smooth(x, slope=0.0):
    """A ReLU without a kink, at which rounding alone can change a gradient by more than the limit."""
    return slope * x + (1 - slope) * nn.functional.softplus(x)


def right(table, device):
    """Compare float32 on the device, without TF32, with float64 on the CPU."""
    title = "right: worst relative error of a loss or gradient (ReLUs made smooth)"
    table.head(title, "networks", "error", "limit", "")
    torch.manual_seed(0)
    x = torch.randn(1_000, device=device, requires_grad=True)
    grads = [torch.autograd.grad(f(x, 0.2).square().sum(), x)[0] for f in (models.relu, nn.functional.leaky_relu)]
    table.check("relu", (grads[0] - grads[1]).abs().max().item(), 1e-6)
    on = lambda a: a.to(device, torch.float32 if a.is_floating_point() else a.dtype)
    without_kinks = mock.patch.object(nn.ReLU, "forward", lambda self, x: smooth(x))
    with precise(), mock.patch.object(models, "relu", smooth), without_kinks:
        for name, (G, D, method, shape) in pairs().items():
            x, z, y, eps = inputs(name, shape)
            expected = gradients(copy.deepcopy(G).double(), copy.deepcopy(D).double(), method, x, z, y, eps)
            found = gradients(G.to(device), D.to(device), method, on(x), on(z), tuple(map(on, y)), on(eps))
            error, where = worst(found, expected)
            table.check(f"{name} ({where})", error, LIMIT)


@contextlib.contextmanager
def precise():
    """Switch TF32 off."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


# ---- fast and bfloat16 ----

def training(name, dim, method, device, batch, train, seed=0, labels=True, contiguous=False, **flags):
    """Start a training of one of benchmark.CASES on random data.

    labels: whether the ResNet is conditional. contiguous: kernels are not channels-last.
    """
    torch.manual_seed(0)
    case = benchmark.CASES[name]
    G, D = [make(dim) for make in case.ours]
    parts = [torch.rand(1_000, *case.shape, device=device) * 2 - 1]
    if name == "resnet" and labels:
        G, D, method = models.CifarResNetGenerator(dim, True), models.CifarResNetCritic(dim, True), acgan(method)
        parts.append(torch.arange(1_000, device=device) % 10)
    G, D = G.to(device), D.to(device)
    if contiguous:
        G, D = [network.to(memory_format=torch.contiguous_format) for network in (G, D)]

    def draw():
        i = torch.randint(1_000, (batch,), device=device)
        return tuple(part[i] for part in parts)

    def latents(m):
        z = torch.randn(m, case.latent, device=device)
        return (z, *[torch.randint(10, (m,), device=device) for _ in parts[1:]])
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    return train(G, D, forever(draw), latents, opt_G, opt_D, method, seed=seed, **flags)


def forever(function):
    while True:
        yield function()


def nudged(G, D, *args, **kwargs):
    """Train eagerly from weights that differ by rounding errors, to see how fast these grow."""
    with torch.no_grad():
        for w in [*G.parameters(), *D.parameters()]:
            w *= 1 + 1e-7 * torch.randn_like(w)
    return wgan_gp.train(G, D, *args, **kwargs)


def reading(G, D, batches, *args, **kwargs):
    """Train with --fast, and read a number in each batch, which cannot be recorded."""
    def draw():
        batch = next(batches)
        batch[0].sum().item()
        return batch
    return fast.graphed(G, D, iter(draw, None), *args, **kwargs)


def fast_is_right(table, device, small):
    """Compare 20 iterations of --fast with the eager loop, and a bfloat16 gradient with float32.

    The limit is FAST_LIMIT, or three times what rounding errors in the first weights change.
    """
    dims, batch = {name: case.dim for name, case in benchmark.CASES.items()}, 64
    if small:
        dims, batch = dict.fromkeys(dims, 4), 4
    title = "fast: largest relative difference of a loss over 20 iterations"
    table.head(title, "training", "difference", "limit", "")
    trainings = [("toy", "wgan-gp", True), ("dcgan", "wgan-gp", False), ("dcgan", "wgan", False),
                 ("dcgan", "dcgan", True), ("dcgan", "lsgan", False), ("dcgan", "wgan-gp-rmsprop", True),
                 ("resnet", "wgan-gp", True)]
    if device != "cuda":
        trainings = []
        table.row("--fast", "skipped: needs CUDA", "", "")
    with precise():
        for name, method, decay in trainings:
            losses = []
            start = partial(training, name, dims[name], wgan_gp.METHODS[method], device, batch)
            for train in (wgan_gp.train, nudged, fast.graphed):
                steps = start(train, decay=decay, iterations=20)
                losses.append(torch.stack([torch.stack(step[1:]) for step in steps]).cpu())
            scale = losses[0].abs().amax(0).clamp(min=1e-3)
            noise, difference = [((other - losses[0]) / scale).abs().max().item() for other in losses[1:]]
            table.check(f"--fast, {name}, {method}", difference, max(FAST_LIMIT, 3 * noise))
        if trainings:
            with mock.patch.object(fast, "waits_for_the_gpu", lambda iteration: iteration() and None):
                steps = start(reading, decay=decay, iterations=20)
                found = torch.stack([torch.stack(step[1:]) for step in steps]).cpu()
            difference = ((found - losses[0]) / scale).abs().max().item()
            table.check("--fast, where recording fails", difference, max(FAST_LIMIT, 3 * noise))
    method = wgan_gp.WGAN_GP._replace(n_critic=1, lr=0.0)
    for name in ("dcgan", "resnet"):
        found = []
        for train in (wgan_gp.train, fast.in_bfloat16(wgan_gp.train)):
            def one_step(G, D, *args, train=train, **kwargs):
                next(train(G, D, *args, **kwargs))
                return torch.cat([w.grad.flatten() for w in D.parameters() if w.grad is not None])
            found.append(training(name, dims[name], method, device, batch, one_step))
        error = ((found[0] - found[1]).norm() / found[0].norm()).item()
        table.check(f"--bf16, {name}: the critic's gradient", error, BF16_LIMIT)


# ---- speed ----

def milliseconds(steps, device, n):
    """Return the mean time of n iterations, after some that do not count."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(min(n, 6)):
        next(steps)
    wait()
    start = time.perf_counter()
    for _ in range(n):
        next(steps)
    wait()
    return 1e3 * (time.perf_counter() - start) / n


def torch_relu(x, slope=0.0):
    return nn.functional.leaky_relu(x, slope)


def speed(table, device, small):
    """Time an iteration of three pairs of networks in each form."""
    rates, n, rounds = {}, 8192, 20
    if small:
        n, rounds = 256, 1
    torch.backends.cuda.matmul.allow_tf32 = True
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        rates[dtype] = 2 * n ** 3 / milliseconds(forever(lambda: a @ b), device, rounds) * 1e3
    torch.backends.cuda.matmul.allow_tf32 = False  # torch's default, and that of the trainings below
    note = (f"\nMatrix product: {rates[torch.float32] / 1e12:.3g} TFLOP/s in TF32 (float32 on a CPU), "
            f"{rates[torch.bfloat16] / 1e12:.3g} in bfloat16.\n")
    table.head("speed", "networks", "form", "ms an iteration", "of textbook", "TFLOP/s", "of the matrix rate",
               "the paper's schedule", note=note)
    for name, schedule, n in [("toy", 100_000, 100), ("dcgan", 200_000, 50), ("resnet", 100_000, 15)]:
        case = benchmark.CASES[name]
        if small:
            case, n = case._replace(dim=8, batch=8, generator_batch=8), 1
        ours = partial(training, name, case.dim, wgan_gp.WGAN_GP, device, case.batch, labels=False,
                       generator_batch=case.generator_batch)
        textbook = partial(forever, benchmark.candidates(case, case.dim, device)["textbook"][1])
        forms = {"textbook": textbook, "eager": partial(ours, wgan_gp.train)}
        if device == "cuda":
            forms |= {"--fast": partial(ours, fast.graphed),
                      "--fast --bf16": partial(ours, fast.in_bfloat16(fast.graphed)),
                      "--fast, torch's ReLU": partial(ours, fast.graphed)}
            if name != "toy":
                forms["--fast, contiguous kernels"] = partial(ours, fast.graphed, contiguous=True)
        count = benchmark.operations(lambda: next(ours(wgan_gp.train)))
        for form, start in forms.items():
            relu = torch_relu if "ReLU" in form else models.relu
            with mock.patch.object(models, "relu", relu):
                ms = milliseconds(start(), device, n)
            if form == "textbook":
                first, shares = ms, ["", ""]
            else:
                rate = rates[torch.bfloat16 if "bf16" in form else torch.float32]
                shares = [f"{count / ms / 1e9:.3g}", f"{100 * count / ms * 1e3 / rate:.0f} %"]
            table.row(f"{case.title}, width {case.dim}", form, f"{ms:.2f}", f"{first / ms:.2f}", *shares,
                      f"{ms * schedule / 3.6e6:.1f} h")


# ---- training ----

COMMANDS = {
    "cifar": ["train_cifar.py", "--score-every", "0", "--sample-every", "1000"],
    "resnet": ["train_cifar_resnet.py", "--conditional", "--score-every", "0", "--sample-every", "500"],
    "mnist": ["train_mnist.py", "--subset", "0", "--sample-every", "1000", "--measure-every", "1000"],
    "language": ["train_language.py", "--sample-every", "500"],
}
TINY = ["--dim", "4", "--batch-size", "8", "--iterations", "2"]
NOT_DOWNLOADED = {"cifar": "shapes", "resnet": "shapes", "language": str(ROOT / "README.md")}


def train_for_the_rest(table, device, small, out, data_dir, end):
    """Run four scripts for their shares of the time left, and stop them with Ctrl-C."""
    flags, commands = ["--device", device, "--data-dir", data_dir], COMMANDS
    if device == "cuda":
        flags.append("--fast")
    if small:
        commands = {name: [*COMMANDS[name], "--data", data, *TINY] for name, data in NOT_DOWNLOADED.items()}
    table.head("training", "script", "seconds", "iterations", "of the full length", "last line")
    for i, (name, command) in enumerate(commands.items()):
        left = [SHARES[other] for other in list(commands)[i:]]
        seconds = (end - time.monotonic()) * left[0] / sum(left)
        begun, folder, done = time.monotonic(), out / name, 0
        whole = [sys.executable, *command, *flags, "--out", str(folder)]
        if (folder / "checkpoint.pt").exists():
            whole.append("--resume")
        process = subprocess.Popen(whole, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            text, _ = process.communicate(timeout=None if small else max(seconds - 5, 5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it saves, draws and leaves
            text, _ = process.communicate()
        (out / f"{name}.txt").write_text(text)
        if (folder / "log.csv").exists():
            last = (folder / "log.csv").read_text().splitlines()[-1]
            done = int(last.split(",")[0].replace("iteration", "0"))
        last, full = (text.strip().splitlines() or [""])[-1][-100:], LENGTHS.get(name, 200_000)
        if process.returncode not in (0, 130) or not done:
            table.failed, last = True, f"FAILED: {last}"
        table.row(" ".join(command[:2]), f"{time.monotonic() - begun:.0f}", f"{done:,}",
                  f"{100 * done / full:.1f} %", last)


def main():
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="for everything (default 9; 0: no trainings)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "mps", "cpu"])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="default runs/gpu")
    parser.add_argument("--data-dir", default="data", help="where the data sets are (default data)")
    args = parser.parse_args()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available[args.device]:
        parser.error(f"torch finds no {args.device} device here")
    args.out.mkdir(parents=True, exist_ok=True)
    small, table, name = args.device == "cpu", Table(args.out), args.device
    if args.device == "cuda":
        name = torch.cuda.get_device_name()
    table.add(f"{name}; torch {torch.__version__}; {datetime.date.today()}")
    for stage in (lambda: right(table, args.device), lambda: fast_is_right(table, args.device, small),
                  lambda: speed(table, args.device, small)):
        try:
            stage()
        except Exception as error:  # the later stages are worth having all the same
            table.failed = True
            table.add(f"\nFAILED: {type(error).__name__}: {error}\n")
    if args.minutes:
        train_for_the_rest(table, args.device, small, args.out, args.data_dir, begun + 60 * args.minutes)
    verdict, minutes = "FAILED" if table.failed else "All passed", (time.monotonic() - begun) / 60
    table.add(f"\n{verdict} in {minutes:.1f} minutes: {table.path}")
    return int(table.failed)


if __name__ == "__main__":
    sys.exit(main())
