"""Figure 1(a), Section 3.1: what weight clipping does to a critic, on three toys in the plane.

    python train_toy.py                                        the figure: six critics, G fixed
    python train_toy.py --train-generator                      a WGAN-GP on the 25 Gaussians
    python train_toy.py --train-generator --data 8gaussians    or swissroll
    python train_toy.py --train-generator --paper              with the paper's settings, for hours

In the figure G is fixed "at the real distribution plus unit-variance Gaussian noise". Expect
surfaces that ignore the modes under clipping (top) and follow the data under the penalty (bottom),
after about two minutes. In the GAN's training.gif samples find the modes. Our runs: results/toy, toy-gan.
The paper has lambda 10, the authors' GAN 0.1, "faster for toy tasks", with 512 units and batches of
256. Ours have narrower networks and higher rates, which fall to 0.
"""
import io
import math

import torch
from PIL import Image

import data
import models
import plots
import runs
import wgan_gp

WGAN, WGAN_GP = wgan_gp.METHODS["wgan"], wgan_gp.WGAN_GP
OURS = {  # iterations, method. "gan" is the whole GAN, the others are critics alone
    "wgan": (2_000, WGAN),
    "wgan-gp": (11_000, WGAN_GP._replace(lr=3e-3)),
    "gan": (5_000, WGAN_GP._replace(lam=0.1, lr=4e-3))}
PAPER = {"wgan": (500_000, WGAN), "wgan-gp": (500_000, WGAN_GP), "gan": (100_000, WGAN_GP)}
ROWS = {"wgan": "weight clipping", "wgan-gp": "gradient penalty"}  # of the figure
COLUMNS = {"8gaussians": "8 Gaussians", "25gaussians": "25 Gaussians", "swissroll": "Swiss roll"}
EXTENT = -2.2, 2.2, -2.2, 2.2  # of the pictures


def parse():
    parser = runs.flags(__doc__, data=None, iterations=None, batch_size=None, sample_every=100, threads=1)
    add = parser.add_argument
    add("--train-generator", action="store_true", help="train G too, instead of drawing the figure")
    add("--paper", action="store_true", help="the paper's settings (takes hours)")
    add("--dim", type=runs.whole(1, 65_536), help="units in a hidden layer (default 128, authors: 512)")
    args = parser.parse_args()
    name, toy = ("toy-gan-{data}", "25gaussians") if args.train_generator else ("toy", "all")
    args.data = args.data or toy
    args.out = args.out or runs.default_out(parser, args, name)
    dim, batch_size = (512, 256) if args.paper else (128, 128)
    args.dim, args.batch_size = args.dim or dim, args.batch_size or batch_size
    if args.data not in data.TOYS and (args.train_generator or args.data != "all"):
        parser.error(f"--data {args.data}: choose {', '.join(data.TOYS)}")
    return args


def main():
    args = parse()
    if args.train_generator:
        return train_gan(args)
    toys = list(data.TOYS) if args.data == "all" else [args.data]
    keys = [(name, toy) for name in ROWS for toy in toys]
    pictures = [train_critic(args, *key, f"{i}/{len(keys)}") for i, key in enumerate(keys, 1)]
    rows = pictures[:len(toys)], pictures[len(toys):]
    figure = plots.beside(rows, row_labels=ROWS.values(), column_labels=[COLUMNS[toy] for toy in toys])
    runs.write(f"{args.out}/figure.png", figure)
    print(f"done: {args.out}/figure.png")


# ---- the figure: critics alone ----

def train_critic(args, name, toy, number):
    """Train a critic on real points x against x + z. Return the picture of its values."""
    args = runs.part(args, f"{toy}-{name}")
    iterations, method = (PAPER if args.paper else OURS)[name]
    args.data, args.method, args.iterations = toy, name, args.iterations or iterations

    # data and network
    run = runs.Run(args, decays=not args.paper, label=f"{number} {toy} {name}")
    batches = data.toy_batches(data.TOYS[toy], args.batch_size, args.device)
    D = models.toy_critic(args.dim).to(args.device)
    opt_D = method.make_optimizer(D)

    # resume or start, and train
    for iteration in range(run.start(D=D, opt_D=opt_D), args.iterations):
        wgan_gp.seed_iteration(args.seed, iteration)
        if not args.paper:
            opt_D.param_groups[0]["lr"] = method.lr * (1 - iteration / args.iterations)
        x = next(batches)
        z = torch.randn_like(x)
        losses = wgan_gp.critic_step(lambda z, x: x + z, D, opt_D, x, z, x, method=method)
        step = wgan_gp.Step(iteration + 1, *losses, generator_loss=0.0)  # there is no generator
        run.log(step)
        run.checkpoint(step)
    run.finish()
    return draw_surface(D, args)


@torch.no_grad()
def draw_surface(D, args, x_tilde=None, side=128):
    """Draw D's values, with real points in orange and, if given, generated ones in light blue."""
    line = torch.linspace(*EXTENT[:2], side)
    grid = torch.cartesian_prod(line, line).flip(1).to(args.device)  # row by row
    torch.manual_seed(args.seed)
    return plots.surface(D(grid).reshape(side, side), EXTENT, data.TOYS[args.data](500), x_tilde)


# ---- the GAN: Algorithm 1 ----

def generator(args):
    """Return G, its latent sampler and None: points need no conversion. sample.py uses it."""
    G = models.toy_generator(args.dim).to(args.device)
    return G, lambda m: torch.randn(m, 2, device=args.device), None


def train_gan(args):
    """Train a WGAN-GP. Draw its samples over the critic's values, and at the end an animation."""
    iterations, method = (PAPER if args.paper else OURS)["gan"]
    args.iterations = args.iterations or iterations

    # data and networks
    charts = [("share of samples near a mode", {"share_near_modes": "share near modes"})]
    run = runs.Run(args, ["share_near_modes", "modes_hit"], charts, decays=not args.paper)
    batches = data.toy_batches(data.TOYS[args.data], args.batch_size, args.device)
    G, latents, _ = generator(args)
    D = models.toy_critic(args.dim).to(args.device)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    fixed_z = latents(5_000)

    # resume or start, and train
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    for step in wgan_gp.train(G, D, batches, latents, opt_G, opt_D, method, args.iterations, start,
                              args.seed, decay=not args.paper):
        measured = {}
        if run.every(args.sample_every, step):
            with run.clock_stopped(), torch.no_grad():
                x_tilde = G(fixed_z)
                measured = near_modes(x_tilde.cpu(), args.data)
                run.save_sample(step, draw_surface(D, args, x_tilde[:500]))
        run.log(step, **measured)
        run.checkpoint(step)
    runs.write(run.out / "training.gif", animate(run.out / "samples"))
    run.finish(open=run.out / "training.gif")


def near_modes(x_tilde, toy):
    """Return the share of points within 3 deviations of a mode, and how many modes have one."""
    if toy == "swissroll":
        return {}
    centres, deviation = data.modes(toy)
    distance, nearest = torch.cdist(x_tilde, centres).min(dim=1)
    near = distance <= 3 * deviation
    return {"share_near_modes": near.float().mean().item(), "modes_hit": len(nearest[near].unique())}


def animate(folder, most=60):
    """Return a looping GIF, as bytes, of at most `most` of a folder's pictures. It rests on the last."""
    paths, frames = sorted(folder.glob("*.png"), key=lambda path: int(path.stem))[::-1], []
    for path in paths[::math.ceil(len(paths) / most)][::-1]:
        picture = plots.beside([[Image.open(path)]], [[f"iteration {int(path.stem):,}"]])
        frames.append(picture.quantize(64, dither=Image.Dither.NONE))
    gif, milliseconds = io.BytesIO(), [120] * (len(frames) - 1) + [3_000]
    frames[0].save(gif, "gif", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return gif.getvalue()


if __name__ == "__main__":
    runs.main(main)
