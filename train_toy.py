"""Figure 1(a), Section 3.1: what weight clipping does to a critic, on three toys in the plane.

    python train_toy.py                                        the figure: six critics, G fixed
    python train_toy.py --train-generator                      a WGAN-GP on the 25 Gaussians
    python train_toy.py --train-generator --data 8gaussians    or swissroll
    python train_toy.py --train-generator --paper              with the paper's settings, for hours

In the figure G is fixed "at the real distribution plus unit-variance Gaussian noise". Critics are
trained by weight clipping (top) and by the gradient penalty (bottom). Expect surfaces that ignore
the modes under clipping and follow the data under the penalty, after about 3 minutes. The GAN
draws training.gif, in which samples find the modes. Ours: results/toy, results/toy-gan.

The paper has lambda 10 and Adam at 1e-4. The authors' toys have lambda 0.1, "faster for toy tasks",
512 units, batches of 256 and 100,000 iterations of 5 critic steps. Our SETTINGS take minutes, with
narrower networks and higher rates that fall to 0. --paper: the paper's lambda and rate, the rest from
the authors' code.
"""
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import data
import models
import plots
import runs
import wgan_gp

SETTINGS = {
    "wgan": dict(iterations=2_000, dim=128, batch_size=128, decay=True),
    "wgan-gp": dict(iterations=11_000, dim=128, batch_size=128, decay=True, lam=10.0, lr=3e-3),
    "gan": dict(iterations=5_000, dim=128, batch_size=128, decay=True, lam=0.1, lr=4e-3),
}
PAPER = dict(dim=512, batch_size=256, decay=False, lam=10.0, lr=1e-4)
PAPER_ITERATIONS = {"wgan": 500_000, "wgan-gp": 500_000, "gan": 100_000}  # of the critics, and of G
METHODS = {"wgan": "weight clipping", "wgan-gp": "gradient penalty"}
TITLES = {"8gaussians": "8 Gaussians", "25gaussians": "25 Gaussians", "swissroll": "Swiss roll"}
EXTENT = -2.2, 2.2, -2.2, 2.2  # of the pictures


def parse():
    parser = runs.flags(__doc__, data=None, iterations=None, batch_size=None, threads=1)
    add = parser.add_argument
    add("--train-generator", action="store_true", help="train G too, instead of drawing the figure")
    add("--paper", action="store_true", help="the paper's settings (takes hours)")
    add("--lam", type=runs.number(1e-9), help="weight of the penalty (paper: 10, authors: 0.1)")
    add("--lr", type=runs.number(1e-9), help="Adam's rate (paper: 1e-4)")
    add("--beta1", type=runs.number(0, 1), default=0.0, help="Adam's (paper: 0, authors: 0.5)")
    add("--dim", type=runs.whole(1, 65_536), help="units in a hidden layer (authors: 512)")
    add("--clip", type=runs.number(1e-9), default=0.01, help="the threshold c (WGAN [2]: 0.01)")
    add("--sample-every", type=runs.whole(1), default=100, help="iterations between pictures of the GAN (default 100)")
    args = parser.parse_args()
    if args.data is None:
        args.data = "25gaussians" if args.train_generator else "all"
    if args.data not in data.TOYS and (args.train_generator or args.data != "all"):
        parser.error(f"--data {args.data}: choose {', '.join(data.TOYS)}")
    return args


def main():
    args = parse()
    if args.train_generator:
        train_gan(args)
    else:
        draw_figure(args)


def settle(args, name):
    """Fill in the flags that were left out. Return the method to train with."""
    settings = SETTINGS[name]
    if args.paper:
        settings = PAPER | {"iterations": PAPER_ITERATIONS[name]}
    for flag, value in settings.items():
        if getattr(args, flag, None) is None:
            setattr(args, flag, value)
    if name == "wgan":
        return wgan_gp.METHODS["wgan"]._replace(clip=args.clip)
    return wgan_gp.WGAN_GP._replace(lam=args.lam, lr=args.lr, beta1=args.beta1)


# ---- the figure: critics alone ----

def draw_figure(args):
    """Train six critics, or the two of one data set, and draw Figure 1(a)."""
    args.out = args.out or "runs/toy"
    toys = list(data.TOYS) if args.data == "all" else [args.data]
    names = [(method, toy) for method in METHODS for toy in toys]
    surfaces = []
    for i, (method, toy) in enumerate(names, 1):
        surfaces.append(train_critic(args, method, toy, label=f"{i}/{len(names)} {toy} {method}"))
    rows, titles = [surfaces[:len(toys)], surfaces[len(toys):]], [TITLES[toy] for toy in toys]
    path = Path(args.out, "figure.png")
    runs.save_picture(plots.beside(rows, row_labels=METHODS.values(), column_labels=titles), path)
    print(f"done: {path}")


def train_critic(args, name, toy, label):
    """Train a critic on real points x against x + z. Return the picture of its values."""
    args = runs.part(args, f"{toy}-{name}")
    args.data, args.method = toy, name
    method = settle(args, name)

    # data and network
    run = runs.Run(args, args.out, decays=args.decay, label=label)
    batches = data.toy_batches(data.TOYS[toy], args.batch_size, args.device)
    D = models.toy_critic(args.dim).to(args.device)
    opt_D = method.make_optimizer(D)

    # resume or start, and train
    for iteration in range(run.start(D=D, opt_D=opt_D), args.iterations):
        wgan_gp.seed_iteration(args.seed, iteration)
        if args.decay:
            opt_D.param_groups[0]["lr"] = method.lr * (1 - iteration / args.iterations)
        x, = next(batches)
        z = torch.randn_like(x)
        losses = wgan_gp.critic_step(lambda z, x: x + z, D, opt_D, x, z, x, method=method)
        step = wgan_gp.Step(iteration + 1, *losses, generator_loss=0.0)  # there is no generator
        run.log(step)
        run.checkpoint(step)

    picture = draw_surface(D, args)
    runs.save_picture(picture, run.out / "surface.png")
    run.finish(open=run.out / "surface.png")
    return picture


@torch.no_grad()
def draw_surface(D, args, x_tilde=None, side=128):
    """Draw D's values, with real points in orange and, if given, generated ones in light blue."""
    x0, x1, y0, y1 = EXTENT
    x, y = torch.linspace(x0, x1, side), torch.linspace(y0, y1, side)
    grid = torch.cartesian_prod(y, x).flip(1).to(args.device)  # row by row
    torch.manual_seed(args.seed)
    return plots.surface(D(grid).reshape(side, side), EXTENT, data.TOYS[args.data](500), x_tilde)


# ---- the GAN: Algorithm 1 ----

def generator(args):
    """Return the generator, its latents and the conversion of its output to bytes, for sample.py too.

    The bytes are one picture of all points, (1, 3, 300, 300), with as many real points in orange.
    """
    if not args.train_generator:
        raise runs.Mistake("without --train-generator train_toy.py has no generator to sample from")
    G = models.toy_generator(args.dim).to(args.device)
    latents = lambda m: (torch.randn(m, 2, device=args.device),)

    def to_bytes(x_tilde):
        x = data.TOYS[args.data](len(x_tilde))
        picture = plots.surface(torch.zeros(2, 2), EXTENT, x, x_tilde)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return G, latents, to_bytes


def train_gan(args):
    """Train a WGAN-GP. Draw its samples over the critic's values, and at the end an animation."""
    method = settle(args, "gan")

    # data and networks
    columns, charts = ["share_near_modes", "modes_hit"], [("share of samples near a mode", ["share_near_modes"])]
    run = runs.Run(args, f"runs/toy-gan-{args.data}", columns, charts, decays=args.decay)
    batches = data.toy_batches(data.TOYS[args.data], args.batch_size, args.device)
    G, latents, _ = generator(args)
    D = models.toy_critic(args.dim).to(args.device)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    fixed_z, = latents(5_000)

    # resume or start, and train
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    for step in wgan_gp.train(G, D, batches, latents, opt_G, opt_D, method, args.iterations, start,
                              args.seed, args.decay):
        measured = {}
        if run.every(args.sample_every, step):
            with run.clock_stopped(), torch.no_grad():
                x_tilde = G(fixed_z)
                if data.modes(args.data):
                    measured = near_modes(x_tilde.cpu(), *data.modes(args.data))
                run.save_picture(step, draw_surface(D, args, x_tilde[:500]))
        run.log(step, **measured)
        run.checkpoint(step)

    path = run.out / "training.gif"
    runs.write(path, animate(run.out / "samples"))
    run.finish(open=path)


def near_modes(x_tilde, centres, deviation):
    """Return the share of points within 3 deviations of a mode, and how many modes have one."""
    distance, nearest = torch.cdist(x_tilde, centres).min(dim=1)
    near = distance <= 3 * deviation
    return {"share_near_modes": near.float().mean().item(), "modes_hit": len(nearest[near].unique())}


def animate(folder, most=60, colours=64):
    """Return a GIF as bytes, which loops over at most about `most` of the pictures in a folder."""
    paths = sorted(folder.glob("*.png"), key=lambda path: -int(path.stem))
    frames = []
    for path in reversed(paths[::math.ceil(len(paths) / most)]):  # the last one is among them
        picture = plots.beside([[Image.open(path)]], [[f"iteration {int(path.stem):,}"]])
        frames.append(picture.quantize(colours, dither=Image.Dither.NONE))
    gif, milliseconds = io.BytesIO(), [120] * (len(frames) - 1) + [3_000]
    frames[0].save(gif, "gif", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return gif.getvalue()


if __name__ == "__main__":
    runs.main(main)
