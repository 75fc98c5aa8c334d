"""Checks to run once on a new GPU before trusting it, and the source of the results in results/gpu.

    python tests/gpu.py                           nine minutes on CUDA
    python tests/gpu.py --minutes 60 --out DIR    longer trainings
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
import os
import signal
import subprocess
import sys
import time
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
SHARES = {"cifar": 0.5, "resnet": 0.2, "mnist": 0.15, "language": 0.15}  # of the minutes left for training


class Table:
    """The lines that are printed and written to table.md."""

    def __init__(self, out):
        self.path, self.failed = out / "table.md", False
        self.path.write_text("")

    def add(self, text):
        print(text, flush=True)
        with open(self.path, "a") as file:
            file.write(text + "\n")

    def check(self, name, value, limit):
        """Add a line with a value that must not be above its limit. NaN fails."""
        ok = value <= limit
        self.failed |= not ok
        self.add(f"| {name} | {value:.2g} | {limit:g} | {'ok' if ok else 'FAILED'} |")


# ---- pairs of networks ----

def pairs(dim=8):
    """Return {name: (G, D, method, shape of x, latents)} for every pair of networks, at a small width."""
    gp, gan = wgan_gp.WGAN_GP, wgan_gp.METHODS["dcgan"]
    acgan = gp._replace(critic_term=train_cifar_resnet.critic_term, generator_term=train_cifar_resnet.generator_term)
    image, large = (3, 32, 32), (3, 64, 64)
    found = {
        "toy": (models.toy_generator(64), models.toy_critic(64), gp, (2,)),
        "cifar": (models.cifar_generator(dim), models.cifar_critic(dim), gp, image),
        "cifar, batch norm": (models.cifar_generator(dim), models.cifar_critic(dim, "batch"), gan, image),
        "cifar, layer norm": (models.cifar_generator(dim), models.cifar_critic(dim, "layer"), gp, image),
        "mnist": (models.mnist_generator(dim), models.mnist_critic(dim), gp, (1, 28, 28)),
        "resnet": (models.CifarResNetGenerator(dim), models.CifarResNetCritic(dim), gp, image),
        "resnet, conditional": (models.CifarResNetGenerator(dim, True), models.CifarResNetCritic(dim, True), acgan, image),
        "language": (models.language_generator(20, dim=dim), models.language_critic(20, dim=dim), gp, (20, 32)),
        "128 x 128": (models.resnet_generator(4, 128), models.resnet_critic(4, size=128), gp, (3, 128, 128)),
    }
    for name, (make_G, make_D) in models.LSUN.items():
        found[f"lsun {name}"] = (make_G(dim), make_D(dim, "layer"), gp, large)
        found[f"lsun {name}, batch norm"] = (make_G(dim), make_D(dim, "batch"), gan, large)
    for activation in (nn.Tanh, nn.ELU, models.ShiftedSoftplus):
        found[f"variant {activation.__name__}"] = (models.variant_generator(dim, 8, activation),
                                                   models.variant_critic(dim, 8, activation, "layer"), gp, image)
    return found


def gradients(G, D, method, x, z, y, eps):
    """Return {name: tensor} with the losses and every gradient of a critic and a generator step, on the CPU in float64."""
    with mock.patch.object(torch, "rand", lambda *size, **kwargs: eps), torch.no_grad():
        x_tilde = G(z, *y)
    with mock.patch.object(torch, "rand", lambda *size, **kwargs: eps):
        loss, _, penalty = wgan_gp.critic_loss(D, x, x_tilde, *y, method=method)
    x_tilde = G(z, *y)
    loss_G = method.G_loss(wgan_gp.scores(D, x_tilde)) + method.generator_term(D, x_tilde, *y)
    found = {"loss": loss, "penalty": penalty, "generator loss": loss_G}
    for network, its_loss, label in [(D, loss, "D"), (G, loss_G, "G")]:
        names, weights = zip(*network.named_parameters())
        grads = torch.autograd.grad(its_loss, weights, allow_unused=True)
        found |= {f"{label}.{name}": grad for name, grad in zip(names, grads) if grad is not None}
    return {name: value.detach().cpu().double() for name, value in found.items()}


def worst(found, expected):
    """Return (largest relative error, its name). Gradients below a tenth of the largest count as that large."""
    largest = {label: max((v.norm() for n, v in expected.items() if n.startswith(label + ".")), default=torch.tensor(1.0))
               for label in ("D", "G")}
    errors = []
    for name, value in expected.items():
        floor = 0.1 * largest[name[0]] if name[:2] in ("D.", "G.") else 1e-3
        errors.append(((found[name] - value).norm() / max(value.norm(), torch.as_tensor(floor))).item())
    errors = torch.tensor(errors)
    i = int(errors.nan_to_num(float("inf")).argmax())
    return errors[i].item(), list(expected)[i]


def inputs(name, shape, m=8):
    """Return x, z, (y,) or (), eps on the CPU in float64."""
    x, latent = torch.rand(m, *shape).double() * 2 - 1, 2 if name == "toy" else models.LATENT
    y = (torch.arange(m) % 10,) if "conditional" in name else ()
    return x, torch.randn(m, latent).double(), y, torch.rand(m, *[1] * len(shape)).double()


def smooth(x, slope=0.0):
    """A ReLU without a kink: at a kink, rounding alone can change a gradient by more than the limit."""
    return slope * x + (1 - slope) * nn.functional.softplus(x)


class Smooth(nn.Module):
    def forward(self, x):
        return smooth(x)


def right(table, device):
    """Compare float32 on the device, without TF32, with float64 on the CPU."""
    table.add("\n## right: worst relative error of a loss or gradient (ReLUs made smooth)\n\n| networks | error | limit | |"
              "\n|---|---|---|---|")
    torch.manual_seed(0)
    x = torch.randn(1_000, device=device, requires_grad=True)
    grads = [torch.autograd.grad(f(x, 0.2).square().sum(), x)[0] for f in (models.relu, nn.functional.leaky_relu)]
    table.check("relu", (grads[0] - grads[1]).abs().max().item(), 1e-6)
    with precise(), mock.patch.object(models, "relu", smooth):
        for name, (G, D, method, shape) in pairs().items():
            for network in (G, D):
                for i, layer in enumerate(network if isinstance(network, nn.Sequential) else ()):
                    if isinstance(layer, nn.ReLU):
                        network[i] = Smooth()
            x, z, y, eps = inputs(name, shape)
            expected = gradients(copy.deepcopy(G).double(), copy.deepcopy(D).double(), method, x, z, y, eps)
            on = lambda a: a.to(device, torch.float32 if a.is_floating_point() else a.dtype)
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

def training(name, dim, method, device, batch, train=wgan_gp.train, seed=0, **flags):
    """Return the generator function of a training on random images, from one seed."""
    torch.manual_seed(0)
    conditional = name == "resnet"
    make = {"toy": (models.toy_generator, models.toy_critic), "dcgan": (models.cifar_generator, models.cifar_critic),
            "resnet": (lambda d: models.CifarResNetGenerator(d, True), lambda d: models.CifarResNetCritic(d, True))}[name]
    G, D = make[0](dim).to(device), make[1](dim).to(device)
    if conditional:
        method = method._replace(critic_term=train_cifar_resnet.critic_term,
                                 generator_term=train_cifar_resnet.generator_term)
    images = torch.rand(1_000, *((2,) if name == "toy" else (3, 32, 32)), device=device) * 2 - 1
    labels = torch.arange(1_000, device=device) % 10

    def batches():
        while True:
            i = torch.randint(1_000, (batch,), device=device)
            yield (images[i], labels[i]) if conditional else (images[i],)

    def latents(m):
        z = torch.randn(m, 2 if name == "toy" else models.LATENT, device=device)
        return (z, torch.randint(10, (m,), device=device)) if conditional else (z,)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    return train(G, D, batches(), latents, opt_G, opt_D, method, seed=seed, **flags)


def nudged(G, D, *args, **kwargs):
    """Train eagerly from weights that differ by rounding errors, to see how fast these grow."""
    with torch.no_grad():
        for w in [*G.parameters(), *D.parameters()]:
            w *= 1 + 1e-7 * torch.randn_like(w)
    return wgan_gp.train(G, D, *args, **kwargs)


def fast_is_right(table, device, small):
    """Compare 20 iterations of --fast with the eager loop for every method, and a bfloat16 gradient with float32.

    The limit is FAST_LIMIT, or three times what a change of the first weights by rounding errors makes.
    """
    dims = {"toy": 16, "dcgan": 4, "resnet": 4} if small else {"toy": 512, "dcgan": 64, "resnet": 128}
    table.add("\n## fast: largest relative difference of a loss over 20 iterations\n\n| training | difference | limit | |"
              "\n|---|---|---|---|")
    with precise():
        for name, method, decay in [("toy", "wgan-gp", True), ("dcgan", "wgan-gp", False), ("dcgan", "wgan", False),
                                    ("dcgan", "dcgan", True), ("dcgan", "lsgan", False),
                                    ("dcgan", "wgan-gp-rmsprop", True), ("resnet", "wgan-gp", True)]:
            if device != "cuda":
                continue
            losses = []
            for train in (wgan_gp.train, nudged, fast.graphed):
                steps = training(name, dims[name], wgan_gp.METHODS[method], device, 64, train, decay=decay, iterations=20)
                losses.append(torch.stack([torch.stack(step[1:]) for step in steps]).cpu())
            scale = losses[0].abs().amax(0).clamp(min=1e-3)
            noise, difference = [((other - losses[0]) / scale).abs().max().item() for other in losses[1:]]
            table.check(f"--fast, {name}, {method}", difference, max(FAST_LIMIT, 3 * noise))
    for name in ("dcgan", "resnet"):
        found = []
        for train in (wgan_gp.train, fast.in_bfloat16(wgan_gp.train)):
            method = wgan_gp.WGAN_GP._replace(n_critic=1, lr=0.0)
            D = []
            steps = training(name, dims[name], method, device, 4 if small else 64,
                             lambda G, network, *args, **kwargs: D.append(network) or train(G, network, *args, **kwargs))
            next(steps)
            found.append(torch.cat([w.grad.flatten() for w in D[0].parameters() if w.grad is not None]))
        table.check(f"--bf16, {name}: the critic's gradient", ((found[0] - found[1]).norm() / found[0].norm()).item(),
                    BF16_LIMIT)
    if device != "cuda":
        table.add("| --fast | skipped: needs CUDA | | |")


# ---- speed ----

def milliseconds(steps, device, n):
    """Return the mean time of n iterations, after some that do not count."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(6 if n > 1 else 1):
        next(steps)
    wait()
    start = time.perf_counter()
    for _ in range(n):
        next(steps)
    wait()
    return 1e3 * (time.perf_counter() - start) / n


def forever(function):
    while True:
        yield function()


def speed(table, device, small):
    """Time an iteration of three pairs of networks in each form."""
    rates = {}
    torch.backends.cuda.matmul.allow_tf32 = True
    for dtype in (torch.float32, torch.bfloat16):
        n = 256 if small else 8192
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        rates[dtype] = 2 * n ** 3 / milliseconds(forever(lambda: a @ b), device, 1 if small else 20) * 1e3
    torch.backends.cuda.matmul.allow_tf32 = False  # torch's default, and that of the trainings below
    table.add(f"\n## speed\n\nMatrix product: {rates[torch.float32] / 1e12:.3g} TFLOP/s in TF32 (float32 on a CPU), "
              f"{rates[torch.bfloat16] / 1e12:.3g} in bfloat16.\n\n| networks | form | ms an iteration | of textbook | TFLOP/s |"
              f" of the matrix rate | the paper's schedule |\n|---|---|---|---|---|---|---|")
    for name, schedule in [("toy", 100_000), ("dcgan", 200_000), ("resnet", 100_000)]:
        case = benchmark.CASES[name]
        dim, batch, n = (8, 8, 1) if small else (case.dim, case.batch, {"toy": 100, "dcgan": 50, "resnet": 15}[name])
        forms = {"textbook": benchmark.candidates(case, dim, device)["textbook"][1], "eager": (wgan_gp.train, {})}
        if device == "cuda":
            forms |= {"--fast": (fast.graphed, {}), "--fast --bf16": (fast.in_bfloat16(fast.graphed), {}),
                      "--fast, torch's ReLU": (fast.graphed, {"relu": True})}
            if name != "toy":
                forms["--fast, contiguous kernels"] = (fast.graphed, {"contiguous": True})
        count, first = None, None
        for form, how in forms.items():
            if form == "textbook":
                steps = forever(how)
            else:
                steps = plain_training(case, dim, batch, device, how[0], **how[1])
                if form == "eager":
                    count = benchmark.operations(lambda: next(steps))
            ms = milliseconds(steps, device, n)
            first = first or ms
            shares = "| | "
            if count:
                flops = count / ms * 1e3
                rate = rates[torch.bfloat16 if "bf16" in form else torch.float32]
                shares = f"| {flops / 1e12:.3g} | {100 * flops / rate:.0f} % "
            table.add(f"| {case.title}, width {dim} | {form} | {ms:.2f} | {first / ms:.2f} {shares}| "
                      f"{ms * schedule / 3.6e6:.1f} h |")


def plain_training(case, dim, batch, device, train, relu=False, contiguous=False):
    """Return the iterations of a case on random data. relu: torch's. contiguous: kernels not channels-last."""
    def torch_relu(x, slope=0.0):
        return nn.functional.leaky_relu(x, slope)
    G, D = (make(dim).to(device) for make in case.ours)
    if contiguous:
        G, D = (network.to(memory_format=torch.contiguous_format) for network in (G, D))
    x = torch.rand(1_000, *case.shape, device=device) * 2 - 1
    batches = ((x[torch.randint(1_000, (batch,), device=device)],) for _ in forever(lambda: None))
    generator_batch = batch * case.generator_batch // case.batch
    steps = train(G, D, batches, lambda m: (torch.randn(m, case.latent, device=device),),
                  wgan_gp.WGAN_GP.make_optimizer(G), wgan_gp.WGAN_GP.make_optimizer(D), seed=0,
                  generator_batch=generator_batch)
    with mock.patch.object(models, "relu", torch_relu) if relu else contextlib.nullcontext():
        yield from steps


# ---- training ----

def train_for_the_rest(table, device, small, out, data_dir, end):
    """Run four scripts for their shares of the time left, stop them with Ctrl-C, and say how far they came."""
    flags = ["--device", device, "--data-dir", data_dir] + ["--fast"] * (device == "cuda")
    tiny = ["--dim", "4", "--batch-size", "8", "--iterations", "2"] if small else []
    commands = {
        "cifar": ["train_cifar.py", "--score-every", "0", "--sample-every", "1000"],
        "resnet": ["train_cifar_resnet.py", "--conditional", "--score-every", "0", "--sample-every", "500"],
        "mnist": ["train_mnist.py", "--subset", "0", "--sample-every", "1000", "--measure-every", "1000"],
        "language": ["train_language.py", "--sample-every", "500"],
    }
    if small:
        commands["cifar"] += ["--data", "shapes"]
        commands["resnet"] += ["--data", "shapes"]
        commands["language"] += ["--data", str(ROOT / "README.md")]
        del commands["mnist"]  # nothing is downloaded here
    table.add("\n## training\n\n| script | seconds | iterations | of the full length | last line |\n|---|---|---|---|---|")
    for i, (name, command) in enumerate(commands.items()):
        left = [SHARES[other] for other in list(commands)[i:]]
        seconds = (end - time.monotonic()) * left[0] / sum(left)
        begun, folder = time.monotonic(), out / name
        resume = ["--resume"] * (folder / "checkpoint.pt").exists()
        process = subprocess.Popen([sys.executable, *command, *flags, *tiny, *resume, "--out", str(folder)], cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            text, _ = process.communicate(timeout=None if small else max(seconds - 5, 5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it saves, draws and leaves
            text, _ = process.communicate()
        lines = text.strip().splitlines() or [""]
        done, length = 0, 200_000 if name != "resnet" else 100_000
        if (folder / "log.csv").exists():
            done = int((folder / "log.csv").read_text().splitlines()[-1].split(",")[0].replace("iteration", "0"))
        (out / f"{name}.txt").write_text(text)
        table.failed |= process.returncode not in (0, 130) or not done
        note = "" if done and process.returncode in (0, 130) else "FAILED: "
        table.add(f"| {' '.join(command[:2])} | {time.monotonic() - begun:.0f} | {done:,} | {100 * done / length:.1f} % | "
                  f"{note}{lines[-1][-100:]} |")


def main():
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="for everything (default 9)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "mps", "cpu"])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="default runs/gpu")
    parser.add_argument("--data-dir", default="data", help="where the data sets are (default data)")
    args = parser.parse_args()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available[args.device]:
        parser.error(f"torch finds no {args.device} device here")
    args.out.mkdir(parents=True, exist_ok=True)
    small, table = args.device == "cpu", Table(args.out)
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    table.add(f"{name}; torch {torch.__version__}; {datetime.date.today()}")
    for stage in (lambda: right(table, args.device), lambda: fast_is_right(table, args.device, small),
                  lambda: speed(table, args.device, small)):
        try:
            stage()
        except Exception as error:  # the later stages are worth having all the same
            table.failed = True
            table.add(f"\nFAILED: {type(error).__name__}: {error}\n")
    train_for_the_rest(table, args.device, small, args.out, args.data_dir, begun + 60 * args.minutes)
    table.add(f"\n{'FAILED' if table.failed else 'All passed'} in {(time.monotonic() - begun) / 60:.1f} minutes: {table.path}")
    return int(table.failed)


if __name__ == "__main__":
    sys.exit(main())
