"""How fast a step is here, beside the textbook step; how many operations it takes; how cost grows with the work.

    python tests/benchmark.py                      toys, CIFAR DCGAN, CIFAR ResNet: Markdown on standard output
    python tests/benchmark.py --only dcgan --dim 16 --rounds 3
    python tests/benchmark.py --methods            WGAN-GP, clipping and DCGAN, an iteration each
    python tests/benchmark.py --growth             seconds and memory of a DCGAN iteration: batch, width, image size
    python tests/benchmark.py --lsun --rounds 1    the same of Figure 2's seven pairs of networks, and of Figure 4's

Runs on a GPU if there is one. The textbook step is what most ports have, and is written out below: three critic passes
(real, generated, between), torch.nn's layers and activations, padding=2, a generator pass that records its graph,
backward() into everything. Ours is wgan_gp.py with the networks of models.py. All candidates take turns in one process;
each time is the median over the rounds, and a ratio is one of medians. Not a test: pytest does not collect it.
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
    gradients = torch.autograd.grad(outputs=between, inputs=x_hat, grad_outputs=torch.ones_like(between),
                                    create_graph=True, retain_graph=True)[0]
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
    return nn.Sequential(nn.Linear(2, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(),
                         nn.Linear(dim, n_out))


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
    """models.ResidualBlock; `first`: models.FirstCriticBlock. Its weights have the same names."""

    def __init__(self, n_in, n_out, resample=None, norm=None, first=False):
        super().__init__()
        if norm:
            self.norm1, self.norm2 = norm(n_in), norm(n_out)
        self.conv1, self.conv2 = nn.Conv2d(n_in, n_out, 3, padding=1), nn.Conv2d(n_out, n_out, 3, padding=1)
        if resample:
            self.shortcut = nn.Conv2d(n_in, n_out, 1)
        self.resample, self.normed, self.first, self.relu = resample, bool(norm), first, nn.ReLU()

    def forward(self, x):
        h = self.norm1(x) if self.normed else x
        h = h if self.first else self.relu(h)
        if self.resample == "up":
            h, x = [F.interpolate(t, scale_factor=2) for t in (h, x)]
        h = self.conv1(h)
        h = self.conv2(self.relu(self.norm2(h) if self.normed else h))
        if self.resample == "down":
            h = F.avg_pool2d(h, 2)
            return h + (self.shortcut(F.avg_pool2d(x, 2)) if self.first else F.avg_pool2d(self.shortcut(x), 2))
        return h + (self.shortcut(x) if self.resample else x)


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
    """A pair of networks at the sizes of the paper's code. Each network is a function of the width."""
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
                (lambda dim: textbook_mlp(2, dim), lambda dim: textbook_mlp(1, dim)),
                (models.toy_generator, models.toy_critic)),
    "dcgan": Case("CIFAR DCGAN", 64, 64, 64, (3, 32, 32), 128, (textbook_dcgan_generator, textbook_dcgan_critic),
                  (models.cifar_generator, models.cifar_critic)),
    "resnet": Case("CIFAR ResNet", 128, 64, 128, (3, 32, 32), 128, (TextbookResNetGenerator, TextbookResNetCritic),
                   (models.CifarResNetGenerator, models.CifarResNetCritic)),
}
N_CRITIC = wgan_gp.WGAN_GP.n_critic


def parts(case, networks, dim, device):
    """Both networks with their optimisers, a batch of x, latents for the critic's step and for the generator's."""
    G, D = [make(dim).to(device) for make in networks]
    opt_G, opt_D = [wgan_gp.WGAN_GP.make_optimizer(network) for network in (G, D)]
    x = torch.rand(case.batch, *case.shape, device=device) * 2 - 1
    z, z_generator = [torch.randn(m, case.latent, device=device) for m in (case.batch, case.generator_batch)]
    return G, D, opt_G, opt_D, x, z, z_generator


def candidates(case, dim, device):
    """Return {name: (a critic step, an iteration)}, functions without arguments."""
    found = {}
    for name, networks, critic_step, generator_step in [
            ("textbook", case.textbook, textbook_critic_step, textbook_generator_step),
            ("ours", case.ours, wgan_gp.critic_step, wgan_gp.generator_step)]:
        G, D, opt_G, opt_D, x, z, z_generator = parts(case, networks, dim, device)

        def critic(critic_step=critic_step, arguments=(G, D, opt_D, x, z)):
            critic_step(*arguments)

        def iteration(critic=critic, generator_step=generator_step, arguments=(G, D, opt_G, z_generator)):
            for _ in range(N_CRITIC):
                critic()
            generator_step(*arguments)
        found[name] = critic, iteration
    return found


# ---- measuring ----

class Operations(TorchDispatchMode):
    """Counts, in .total, the floating-point operations of every matrix product and convolution that is carried out
    within, forward, backward or twice backward: 2 for a multiplication and its addition. Products with the zeros of a
    convolution's own padding are left out, as oneDNN leaves them out (5x5, stride 2, on 8 x 8 pixels: 28 % of all), but
    not those with zeros that F.pad wrote. Element-wise work is not counted."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count:
            self.total += round(count(*args, **(kwargs or {}), out_val=out) * share_inside(function, args, out))
        return out


def share_inside(function, args, out):
    """Which share of a convolution's products is with pixels, not with padding; 1 for a matrix product."""
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
    """Median seconds of each function, called in turn, round after round, after one round that does not count."""
    times = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, found in zip(functions, times):
            if device == "cuda":
                torch.cuda.synchronize()
            start = clock()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            found.append(clock() - start)
    return [statistics.median(found[1:]) for found in times]


def matrix_rate(rounds, device, clock=time.perf_counter):
    """Operations a second in the product of two large float32 matrices (with TF32 on a GPU that has it)."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    return 2 * n ** 3 / seconds([lambda: a @ b], rounds, device, clock)[0]


def hardware(device, clock):
    name = runs.hardware(device)
    if device == "cpu":
        name += f", threads: {torch.get_num_threads()}"
    if clock is time.process_time:
        name += ", processor time"
    return f"{name}; torch {torch.__version__}; {datetime.date.today()}"


def compare(args):
    rate = matrix_rate(args.rounds, args.device, args.clock)
    print(f"{hardware(args.device, args.clock)}; medians of {args.rounds} rounds; "
          f"matrix product: {rate / 1e9:,.0f} GFLOP/s\n")
    print("| networks | step | critic step, ms | ratio | iteration, ms | ratio | GFLOP an iteration | "
          "share of the matrix rate |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.only:
        case = CASES[name]
        dim = args.dim or case.dim
        found = candidates(case, dim, args.device)
        steps, iterations = zip(*found.values())
        critic_times, times = [seconds(what, args.rounds, args.device, args.clock) for what in (steps, iterations)]
        for label, step_time, time_taken, iteration in zip(found, critic_times, times, iterations):
            count = operations(iteration)
            print(f"| {case.title}, width {dim} | {label} | {step_time * 1e3:.1f} | {critic_times[0] / step_time:.2f} "
                  f"| {time_taken * 1e3:.1f} | {times[0] / time_taken:.2f} | {count / 1e9:.1f} "
                  f"| {100 * count / time_taken / rate:.0f} % |", flush=True)


def compare_methods(args):
    """An iteration of the CIFAR DCGAN under each of Figure 3's methods, in turn."""
    steps, case = {}, CASES["dcgan"]
    for name in ("wgan-gp", "wgan", "dcgan"):
        method = wgan_gp.METHODS[name]
        G, D = case.ours[0](args.dim or case.dim), case.ours[1](args.dim or case.dim, None if method.lam else "batch")
        G, D = G.to(args.device), D.to(args.device)
        x = torch.rand(case.batch, *case.shape, device=args.device) * 2 - 1
        steps[name] = wgan_gp.train(G, D, itertools.repeat((x,)), lambda m: (torch.randn(m, case.latent, device=args.device),),
                                    method.make_optimizer(G), method.make_optimizer(D), method)
    times = seconds([lambda step=step: next(step) for step in steps.values()], args.rounds, args.device, args.clock)
    print(f"{hardware(args.device, args.clock)}; medians of {args.rounds} rounds\n")
    print("| method | critic steps | iteration, ms | of DCGAN's |\n|---|---|---|---|")
    for name, time_taken in zip(steps, times):
        print(f"| {name} | {wgan_gp.METHODS[name].n_critic} | {time_taken * 1e3:.0f} | {time_taken / times[-1]:.1f} |")


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
    print(f"{hardware(args.device, args.clock)}; medians of {args.rounds} rounds\n")
    print("| grows | batch | width | side | seconds an iteration | GFLOP | GFLOP/s | memory, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for what, rows in GROWTH:
        for batch, dim, side in rows:
            row = cost(args, "growth", batch, dim, side)
            print(f"| {what} | {batch} | {dim} | {side} | {row['seconds']:.3f} | {row['operations'] / 1e9:.1f} | "
                  f"{row['operations'] / row['seconds'] / 1e9:.0f} | {row['bytes'] / 1e6:.0f} |", flush=True)


def lsun(args):
    print(f"{hardware(args.device, args.clock)}; medians of {args.rounds} rounds\n")
    print("| architecture | pixels | weights of G | of D | seconds an iteration | GFLOP | memory, GB |")
    print("|---|---|---|---|---|---|---|")
    for name, side in [*((name, 64) for name in models.LSUN), ("resnet", 128)]:
        row = cost(args, name, 64, args.dim or 64, side)
        G, D = row["weights"]
        print(f"| {name} | {side} | {G:,} | {D:,} | {row['seconds']:.3g} | {row['operations'] / 1e9:,.0f} | "
              f"{row['bytes'] / 1e9:.2f} |", flush=True)


def cost(args, *row):
    """What a row of --growth or --lsun costs, from a process of its own, so that none sees the memory of another."""
    command = [sys.executable, __file__, "--rounds", str(args.rounds), "--device", args.device, "--row", *map(str, row),
               *["--cpu-time"] * (args.clock is time.process_time)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def print_cost(args):
    name, batch, dim, side = args.row[0], *map(int, args.row[1:])
    if name in models.LSUN:
        channels, (make_G, make_D), size = 3, models.LSUN[name], {"size": side} if name == "resnet" else {}
        ours = partial(make_G, **size), partial(make_D, norm="layer", **size)
    else:
        channels, *ours = IMAGE_NETWORKS[side]
    case = Case("", dim, batch, batch, (channels, side, side), models.LATENT, (), tuple(ours))
    before = runs.peak_memory(args.device)
    G, D, opt_G, opt_D, x, z, _ = parts(case, case.ours, dim, args.device)
    steps = lambda: wgan_gp.critic_step(G, D, opt_D, x, z), lambda: wgan_gp.generator_step(G, D, opt_G, z)
    iteration = lambda critic, generator: N_CRITIC * critic + generator
    found = iteration(*seconds(steps, args.rounds, args.device, args.clock))
    memory = runs.peak_memory(args.device) - before
    print(json.dumps({"seconds": found, "bytes": memory, "operations": iteration(*map(operations, steps)),
                      "weights": [sum(w.numel() for w in network.parameters()) for network in (G, D)]}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="which networks (default all)")
    parser.add_argument("--dim", type=int, help="width of the networks (default: 512, 64 and 128)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which medians are taken (default 9)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", action="store_true", help="WGAN-GP, clipping and DCGAN on the CIFAR networks")
    parser.add_argument("--growth", action="store_true", help="how seconds and memory grow, for the DCGAN")
    parser.add_argument("--cpu-time", dest="clock", action="store_const", const=time.process_time,
                        default=time.perf_counter,
                        help="the processor's time, not the wall's: for a shared machine, 1 thread")
    parser.add_argument("--lsun", action="store_true", help="what Figure 2's and Figure 4's networks cost")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)  # for cost(): networks, batch, width, side
    args = parser.parse_args()
    if args.rounds < 1 or (args.dim is not None and args.dim < 1):
        parser.error("--rounds and --dim are at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, for every candidate and the matrix product alike
    torch.manual_seed(0)
    (print_cost if args.row else growth if args.growth else lsun if args.lsun else
     compare_methods if args.methods else compare)(args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
