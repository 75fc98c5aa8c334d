"""Time a step beside the textbook step, count its operations, and measure how cost grows.

    python tests/benchmark.py                      toys, CIFAR DCGAN, CIFAR ResNet, as Markdown
    python tests/benchmark.py --only dcgan --dim 16 --rounds 3
    python tests/benchmark.py --methods            WGAN-GP, clipping and DCGAN, an iteration each
    python tests/benchmark.py --growth             a DCGAN iteration, as batch, width and image size grow
    python tests/benchmark.py --lsun --rounds 1    the same of Figure 2's and Figure 4's networks

Runs on a GPU if there is one. The textbook step, written out below, is what most ports have: three
critic passes, torch.nn's layers, a generator pass that records its graph, backward() into everything.
Ours is wgan_gp.py with models.py. All take turns in one process. Times are medians over the rounds.
"""
import argparse
import datetime
import itertools
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import models  # noqa: E402
import runs  # noqa: E402
import wgan_gp  # noqa: E402


# ---- the textbook step ----

def textbook_critic_step(G, D, opt_D, x, z):
    opt_D.zero_grad()
    x_tilde = G(z).detach()
    eps = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device, dtype=x.dtype)
    x_hat = (eps * x + (1 - eps) * x_tilde).requires_grad_(True)
    real, fake, between = D(x), D(x_tilde), D(x_hat)
    gradients = torch.autograd.grad(between, x_hat, torch.ones_like(between), create_graph=True)[0]
    penalty = ((gradients.reshape(len(x), -1).norm(2, dim=1) - 1) ** 2).mean()
    loss = fake.mean() - real.mean() + 10 * penalty
    loss.backward()
    opt_D.step()
    return loss.detach()


def textbook_generator_step(G, D, opt_G, z):
    opt_G.zero_grad()
    loss = -D(G(z)).mean()
    loss.backward()  # into the weights of D too: the critic step's zero_grad() throws them away
    opt_G.step()
    return loss.detach()


def textbook_mlp(n_out, dim):
    return nn.Sequential(nn.Linear(2, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(),
                         nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, n_out))


def textbook_dcgan_generator(dim):
    deconv = lambda n_in, n_out: nn.ConvTranspose2d(n_in, n_out, 5, stride=2, padding=2, output_padding=1)
    return nn.Sequential(nn.Linear(128, 16 * 4 * dim), nn.BatchNorm1d(16 * 4 * dim), nn.ReLU(),
                         nn.Unflatten(1, (4 * dim, 4, 4)),
                         deconv(4 * dim, 2 * dim), nn.BatchNorm2d(2 * dim), nn.ReLU(),
                         deconv(2 * dim, dim), nn.BatchNorm2d(dim), nn.ReLU(), deconv(dim, 3), nn.Tanh())


def textbook_dcgan_critic(dim):
    conv = lambda n_in, n_out: nn.Conv2d(n_in, n_out, 5, stride=2, padding=2)
    return nn.Sequential(conv(3, dim), nn.LeakyReLU(0.2), conv(dim, 2 * dim), nn.LeakyReLU(0.2),
                         conv(2 * dim, 4 * dim), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16 * 4 * dim, 1))


class TextbookBlock(nn.Module):
    """models.ResidualBlock, or with `first` FirstCriticBlock. Its weights have the same names."""
    def __init__(self, n_in, n_out, resample=None, norm=nn.Identity, first=False):
        super().__init__()
        self.norm1, self.norm2 = norm(n_in), norm(n_out)
        self.conv1, self.conv2 = nn.Conv2d(n_in, n_out, 3, padding=1), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1) if resample else nn.Identity()
        self.resample, self.first = resample, first

    def forward(self, x):
        h = x
        if not self.first:
            h = F.relu(self.norm1(x))
        if self.resample == "up":
            h, x = [F.interpolate(t, scale_factor=2) for t in (h, x)]
        h = self.conv2(F.relu(self.norm2(self.conv1(h))))
        if self.resample != "down":
            return h + self.shortcut(x)
        if self.first:
            return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.shortcut(x), 2)


class TextbookResNetGenerator(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(128, 16 * dim)
        self.blocks = nn.Sequential(*[TextbookBlock(dim, dim, "up", nn.BatchNorm2d) for _ in range(3)])
        self.norm, self.conv = nn.BatchNorm2d(dim), nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, z):
        x = self.blocks(self.linear(z).view(len(z), -1, 4, 4))
        return torch.tanh(self.conv(F.relu(self.norm(x))))


class TextbookResNetCritic(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.blocks = nn.Sequential(TextbookBlock(3, dim, "down", first=True), TextbookBlock(dim, dim, "down"),
                                    TextbookBlock(dim, dim), TextbookBlock(dim, dim))
        self.score = nn.Linear(dim, 1)

    def forward(self, x):
        return self.score(F.relu(self.blocks(x)).mean((2, 3)))


# ---- what is compared ----

class Case(NamedTuple):
    """A pair of networks, functions of the width, at the sizes of the paper's code."""
    title: str
    dim: int
    batch: int
    generator_batch: int
    shape: tuple  # of an example
    latent: int
    textbook: tuple[Callable, Callable]  # (G, D)
    ours: tuple[Callable, Callable]


CASES = {
    "toy": Case("toy MLPs", 512, 256, 256, (2,), 2,
                (partial(textbook_mlp, 2), partial(textbook_mlp, 1)),
                (models.toy_generator, models.toy_critic)),
    "dcgan": Case("CIFAR DCGAN", 64, 64, 64, (3, 32, 32), 128,
                  (textbook_dcgan_generator, textbook_dcgan_critic),
                  (models.cifar_generator, models.cifar_critic)),
    "resnet": Case("CIFAR ResNet", 128, 64, 128, (3, 32, 32), 128,
                   (TextbookResNetGenerator, TextbookResNetCritic),
                   (models.CifarResNetGenerator, models.CifarResNetCritic)),
}
N_CRITIC = wgan_gp.WGAN_GP.n_critic


OURS = wgan_gp.critic_step, wgan_gp.generator_step
TEXTBOOK = textbook_critic_step, textbook_generator_step


def steps(case, networks, dim, device, functions=OURS):
    """Return (G, D) and functions without arguments: critic step, generator step, iteration."""
    G, D = [make(dim).to(device) for make in networks]
    opt_G, opt_D = [wgan_gp.WGAN_GP.make_optimizer(network) for network in (G, D)]
    x = torch.rand(case.batch, *case.shape, device=device) * 2 - 1
    z, z_generator = [torch.randn(m, case.latent, device=device) for m in (case.batch, case.generator_batch)]
    critic = partial(functions[0], G, D, opt_D, x, z)
    generator = partial(functions[1], G, D, opt_G, z_generator)

    def iteration():
        for _ in range(N_CRITIC):
            critic()
        generator()
    return (G, D), critic, generator, iteration


def candidates(case, dim, device):
    """Return {name: (a critic step, an iteration)}."""
    _, critic, _, iteration = steps(case, case.textbook, dim, device, TEXTBOOK)
    _, our_critic, _, our_iteration = steps(case, case.ours, dim, device)
    return {"textbook": (critic, iteration), "ours": (our_critic, our_iteration)}


# ---- measuring ----

class Operations(TorchDispatchMode):
    """Count the operations of matrix products and convolutions, 2 for a product and its addition.

    Products with a convolution's own padding are left out, as oneDNN leaves them out (5x5, stride 2,
    on 8 x 8 pixels: 28 % of all), but not those with zeros that F.pad wrote.
    """
    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count:
            self.total += round(count(*args, **(kwargs or {}), out_val=out) * share_inside(function, args, out))
        return out


def share_inside(function, args, out):
    """Return the share of products that is not with padding. 1 for a matrix product."""
    if function._overloadpacket == torch.ops.aten.convolution:
        (x, weight, _, stride, padding, dilation, transposed), y = args[:7], out
    elif function._overloadpacket == torch.ops.aten.convolution_backward:
        y, x, weight, _, stride, padding, dilation, transposed = args[:8]
    else:
        return 1.0
    if transposed:
        x, y = y, x
    share = 1.0
    for i, (n, places, kernel) in enumerate(zip(x.shape[2:], y.shape[2:], weight.shape[2:])):
        at = [o * stride[i] - padding[i] + k * dilation[i] for o in range(places) for k in range(kernel)]
        share *= sum(0 <= a < n for a in at) / len(at)
    return share


def operations(function):
    with Operations() as counter:
        function()
    return counter.total


def seconds(functions, rounds, device, clock=time.perf_counter):
    """Return the median seconds of functions called in turn. The first round does not count."""
    times = [[] for _ in functions]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(rounds + 1):
        for function, found in zip(functions, times):
            wait()
            start = clock()
            function()
            wait()
            found.append(clock() - start)
    return [statistics.median(found[1:]) for found in times]


def matrix_rate(rounds, device, clock=time.perf_counter):
    """Return the operations a second of a large float32 matrix product (TF32 on a GPU that has it)."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    return 2 * n ** 3 / seconds([lambda: a @ b], rounds, device, clock)[0]


def heading(args, *columns, more=""):
    """Print the hardware and the head of a table."""
    name = runs.hardware(args.device)
    if args.device == "cpu":
        name += f", threads: {torch.get_num_threads()}"
    if args.clock is time.process_time:
        name += ", processor time"
    name += f"; torch {torch.__version__}; {datetime.date.today()}"
    print(f"{name}; medians of {args.rounds} rounds{more}\n")
    row(*columns)
    print("|---" * len(columns) + "|")


def row(*cells):
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def compare(args):
    """Compare the textbook step with ours."""
    rate = matrix_rate(args.rounds, args.device, args.clock)
    heading(args, "networks", "step", "critic step, ms", "ratio", "iteration, ms", "ratio", "GFLOP an iteration",
            "share of the matrix rate", more=f"; matrix product: {rate / 1e9:,.0f} GFLOP/s")
    for name in args.only:
        case = CASES[name]
        dim = args.dim or case.dim
        found = candidates(case, dim, args.device)
        critics, iterations = zip(*found.values())
        critic_times = seconds(critics, args.rounds, args.device, args.clock)
        times = seconds(iterations, args.rounds, args.device, args.clock)
        for label, critic, taken, iteration in zip(found, critic_times, times, iterations):
            count = operations(iteration)
            row(f"{case.title}, width {dim}", label, f"{critic * 1e3:.1f}", f"{critic_times[0] / critic:.2f}",
                f"{taken * 1e3:.1f}", f"{times[0] / taken:.2f}", f"{count / 1e9:.1f}",
                f"{100 * count / taken / rate:.0f} %")


def compare_methods(args):
    """Compare an iteration of the CIFAR DCGAN under three methods of Figure 3."""
    trainings, case = {}, CASES["dcgan"]
    x = torch.rand(case.batch, *case.shape, device=args.device) * 2 - 1
    latents = lambda m: torch.randn(m, case.latent, device=args.device)
    for name in ("wgan-gp", "wgan", "dcgan"):
        method, norm = wgan_gp.METHODS[name], {"wgan-gp": None}.get(name, "batch")
        G = models.cifar_generator(args.dim or case.dim).to(args.device)
        D = models.cifar_critic(args.dim or case.dim, norm).to(args.device)
        trainings[name] = wgan_gp.train(G, D, itertools.repeat(x), latents, method.make_optimizer(G),
                                        method.make_optimizer(D), method)
    nexts = [partial(next, training) for training in trainings.values()]
    times = seconds(nexts, args.rounds, args.device, args.clock)
    heading(args, "method", "critic steps", "iteration, ms", "of DCGAN's")
    for name, taken in zip(trainings, times):
        row(name, wgan_gp.METHODS[name].n_critic, f"{taken * 1e3:.0f}", f"{taken / times[-1]:.1f}")


# ---- cost as work grows ----

IMAGE_NETWORKS = {  # side: channels, G, D
    28: (1, models.mnist_generator, models.mnist_critic),
    32: (3, models.cifar_generator, models.cifar_critic),
    64: (3, models.dcgan64_generator, models.dcgan64_critic),
}
GROWTH = [("batch", [(m, 64, 32) for m in (16, 32, 64, 128, 256)]),  # (batch, width, side)
          ("width", [(64, dim, 32) for dim in (16, 32, 64, 128)]),
          ("side", [(64, 64, side) for side in IMAGE_NETWORKS])]


def growth(args):
    heading(args, "grows", "batch", "width", "side", "seconds an iteration", "GFLOP", "GFLOP/s", "memory, MB")
    for what, rows in GROWTH:
        for batch, dim, side in rows:
            found = cost(args, "growth", batch, dim, side)
            row(what, batch, dim, side, f"{found['seconds']:.3f}", f"{found['operations'] / 1e9:.1f}",
                f"{found['operations'] / found['seconds'] / 1e9:.0f}", f"{found['bytes'] / 1e6:.0f}")


def lsun(args):
    heading(args, "architecture", "pixels", "weights of G", "of D", "seconds an iteration", "GFLOP", "memory, GB")
    for name, side in [*((name, 64) for name in models.LSUN), ("resnet", 128)]:
        found = cost(args, name, 64, args.dim or 64, side)
        G, D = found["weights"]
        row(name, side, f"{G:,}", f"{D:,}", f"{found['seconds']:.3g}", f"{found['operations'] / 1e9:,.0f}",
            f"{found['bytes'] / 1e9:.2f}")


def cost(args, *what):
    """Return what a row of --growth or --lsun costs, from a process of its own."""
    command = [sys.executable, __file__, "--rounds", args.rounds, "--device", args.device, "--row", *what]
    if args.clock is time.process_time:
        command.append("--cpu-time")
    return json.loads(subprocess.run(map(str, command), check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_memory(device):
    """Return the most bytes used so far: on a GPU by tensors, elsewhere by the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * {"darwin": 1}.get(sys.platform, 1024)


def print_cost(args):
    """Print what one iteration costs, as JSON, for cost()."""
    name, batch, dim, side = args.row[0], *map(int, args.row[1:])
    if name in models.LSUN:
        channels, (make_G, make_D), size = 3, models.LSUN[name], {"size": side} if name == "resnet" else {}
        networks = partial(make_G, **size), partial(make_D, norm="layer", **size)
    else:
        channels, *networks = IMAGE_NETWORKS[side]
    case = Case("", dim, batch, batch, (channels, side, side), models.LATENT, (), networks)
    before = peak_memory(args.device)
    networks, *both, _ = steps(case, networks, dim, args.device)
    critic, generator = seconds(both, args.rounds, args.device, args.clock)
    memory = peak_memory(args.device) - before
    print(json.dumps({
        "seconds": N_CRITIC * critic + generator, "bytes": memory,
        "operations": N_CRITIC * operations(both[0]) + operations(both[1]),
        "weights": [sum(w.numel() for w in network.parameters()) for network in networks]}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, gpu = parser.add_argument, torch.cuda.is_available()
    add("--only", nargs="+", choices=CASES, default=list(CASES), help="which networks (default all)")
    add("--dim", type=int, help="width of the networks (default: 512, 64 and 128)")
    add("--rounds", type=int, default=9, help="rounds, of which medians are taken (default 9)")
    add("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu")
    add("--methods", action="store_true", help="WGAN-GP, clipping and DCGAN on the CIFAR networks")
    add("--growth", action="store_true", help="how seconds and memory grow, for the DCGAN")
    add("--cpu-time", dest="clock", action="store_const", const=time.process_time, default=time.perf_counter,
        help="the processor's time, not the wall's: for a shared machine, 1 thread")
    add("--lsun", action="store_true", help="what Figure 2's and Figure 4's networks cost")
    add("--row", nargs=4, help=argparse.SUPPRESS)  # for cost(): networks, batch, width, side
    args = parser.parse_args()
    if args.rounds < 1 or (args.dim is not None and args.dim < 1):
        parser.error("--rounds and --dim are at least 1")
    if args.device == "cuda" and not gpu:
        parser.error("--device cuda: torch sees no GPU here")
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, for all
    torch.manual_seed(0)
    for asked, measure in [(args.row, print_cost), (args.growth, growth), (args.lsun, lsun),
                           (args.methods, compare_methods), (True, compare)]:
        if asked:
            return measure(args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
