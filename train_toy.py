"""Figure 1(a), Section 3.1: what weight clipping does to a critic, on three toys in the plane.

    python train_toy.py                                        the figure: six critics, the generator held fixed
    python train_toy.py --train-generator                      a whole WGAN-GP on the 25 Gaussians
    python train_toy.py --train-generator --data 8gaussians    or on the 8 Gaussians, or the swissroll
    python train_toy.py --train-generator --paper              with the paper's lambda and Adam, unhurried

The figure: the generator distribution is held "fixed at the real distribution plus unit-variance Gaussian noise", and
a critic is trained to optimality by weight clipping (top) and by the gradient penalty (bottom). Expect what the paper
shows: clipping gives featureless surfaces, the penalty surfaces that follow the data. Six critics in runs/toy,
figure.png, and per critic the Wasserstein estimate of every step. See results/toy for ours and how long it took.

The defaults are not the paper's. The authors' code uses lambda .1 for its toys, "faster for toy
tasks", where the paper's text says 10, and trains 512 units for 100,000 iterations. Minutes without a GPU need a
narrower network and a larger learning rate that falls to 0: 128 units; for the figure lambda 10, Adam 3e-3, 12,000
critic steps (3,000 when clipping); for the GAN lambda .1, Adam 1e-3, 10,000 iterations. --paper has the paper's lambda
and Adam, and the authors' width and 500,000 critic steps.
"""
from functools import partial
from pathlib import Path

import torch

import data
import models
import runs
import wgan_gp

PAPER = dict(lam=10.0, lr=1e-4, dim=512, decay=False)  # Algorithm 1; width: authors' code
SETTINGS = {
    "figure": dict(iterations=12_000, lam=10.0, lr=3e-3, dim=128, decay=True),
    "generator": dict(iterations=10_000, lam=0.1, lr=1e-3, dim=128, decay=True),
    "paper figure": PAPER | dict(iterations=500_000),  # critic steps: the authors' 100,000 iterations have 5 each
    "paper generator": PAPER | dict(iterations=100_000),
}
CLIPPING = dict(iterations=3_000)  # enough: its surfaces change no more
TITLES = {"8gaussians": "8 Gaussians", "25gaussians": "25 Gaussians", "swissroll": "Swiss roll"}


def main():
    args = parse()
    if args.train_generator:
        train_generator(args)
    else:
        draw_figure(args)


def parse():
    parser = runs.flags(__doc__, data=None, iterations=None, batch_size=256)
    parser.add_argument("--train-generator", action="store_true", help="train G too, instead of drawing the figure")
    parser.add_argument("--paper", action="store_true",
                        help="the paper's lambda 10 and Adam 1e-4; the authors' 512 units and 500,000 critic steps")
    parser.add_argument("--lam", type=runs.number(1e-9), help="weight of the penalty (the paper: 10; authors' toys: .1)")
    parser.add_argument("--lr", type=runs.number(1e-9), help="Adam's learning rate with the penalty (the paper: 1e-4)")
    parser.add_argument("--beta1", type=runs.number(0, 1), default=0.0, help="Adam's (Algorithm 1: 0; authors' toys: .5)")
    parser.add_argument("--dim", type=runs.whole(1), help="units in a hidden layer (authors' code: 512)")
    parser.add_argument("--clip", type=runs.number(1e-9), default=0.01, help="the clipping threshold c (from [2]: .01)")
    args = parser.parse_args()
    args.data = args.data or ("25gaussians" if args.train_generator else "all")
    if args.data not in data.TOYS and (args.train_generator or args.data != "all"):
        parser.error(f"--data {args.data}: choose {', '.join(data.TOYS)}")
    return args


def fill_in(args, settings):
    """Give the flags that were left out their values from `settings`."""
    for name, value in settings.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)


# -------------------------------------------------------------------------------------------- the figure: critics only

def draw_figure(args):
    """figure.png: three toys, two critics each."""
    toys = list(data.TOYS) if args.data == "all" else [args.data]
    args.out = args.out or "runs/toy"
    rows = [[train_critic(args, toy, method) for toy in toys] for method in ("wgan", "wgan-gp")]
    figure = runs.beside(rows, row_labels=["weight clipping", "gradient penalty"], column_labels=[TITLES[t] for t in toys])
    runs.save_png(figure, Path(args.out) / "figure.png")


def train_critic(args, toy, method_name):
    """Train one critic against real points plus noise; returns the picture of its value surface."""
    args = runs.part(args, f"{toy}-{method_name}")
    args.data, args.method = toy, method_name
    method = wgan_gp.METHODS[method_name]
    fill_in(args, SETTINGS["paper " * args.paper + "figure"] | (CLIPPING if method.clip and not args.paper else {}))
    if method.clip:
        method, args.decay = method._replace(clip=args.clip), False
    else:
        method = method._replace(lam=args.lam, optimizer=partial(torch.optim.Adam, lr=args.lr, betas=(args.beta1, 0.9)))

    run = runs.Run(args, out=args.out)
    D = models.toy_critic(args.dim).to(args.device)
    opt_D = method.optimizer(D.parameters())
    lr = opt_D.param_groups[0]["lr"]
    batches = data.toy_batches(data.TOYS[toy], args.batch_size, args.device)
    for iteration in range(run.start(D=D, opt_D=opt_D), args.iterations):
        wgan_gp.seed_iteration(args.seed, iteration)
        opt_D.param_groups[0]["lr"] = lr * (1 - args.decay * iteration / args.iterations)
        x, = next(batches)
        # Each real point has its own noise, and the interpolates run between the two.
        critic = wgan_gp.critic_step(lambda z, x: x + z, D, opt_D, x, torch.randn_like(x), x, method=method)
        step = wgan_gp.Step(iteration + 1, *critic, generator_loss=0.0)  # no generator, no loss
        run.log(step)
        run.checkpoint(step.iteration)
    picture = value_surface(D, toy, args)
    runs.save_png(picture, run.out / "surface.png")
    run.finish()
    return picture


def value_surface(D, toy, args, x_tilde=None, reach=2.2, side=128):
    """The critic's values on [-reach, reach]^2, with real points and, if given, generated ones."""
    line = torch.linspace(-reach, reach, side, device=args.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    with torch.no_grad():
        values = D(torch.stack([x, y], -1).reshape(-1, 2)).reshape(side, side)
    torch.manual_seed(args.seed)
    points = data.TOYS[toy](500, args.device)
    return runs.surface(values, (-reach, reach, -reach, reach), points, x_tilde)


# ------------------------------------------------------------------------------------------------- the GAN: Algorithm 1

def train_generator(args):
    """Algorithm 1 on one toy, with pictures of samples over the critic's surface."""
    fill_in(args, SETTINGS["paper " * args.paper + "generator"])
    method = wgan_gp.METHODS["wgan-gp"]._replace(
        lam=args.lam, optimizer=partial(torch.optim.Adam, lr=args.lr, betas=(args.beta1, 0.9)))

    run = runs.Run(args, out=f"runs/toy-gan-{args.data}", columns=["share_near_modes", "modes_hit"],
                   charts=[("share of samples near a mode", ["share_near_modes"])])
    G, D = models.toy_generator(args.dim).to(args.device), models.toy_critic(args.dim).to(args.device)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    batches = data.toy_batches(data.TOYS[args.data], args.batch_size, args.device)
    fixed_z = torch.randn(5_000, 2, generator=torch.Generator().manual_seed(args.seed)).to(args.device)

    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    for step in wgan_gp.train(G, D, batches, lambda m: (torch.randn(m, 2, device=args.device),), opt_G, opt_D, method,
                              iterations=args.iterations, start=start, seed=args.seed, decay=args.decay):
        measured = {}
        if step.iteration % 500 == 0 or step.iteration == args.iterations:
            with run.clock_stopped(), torch.no_grad():
                x_tilde = G(fixed_z)
                if data.modes(args.data):
                    measured = near_modes(x_tilde, *data.modes(args.data))
                runs.save_png(value_surface(D, args.data, args, x_tilde[:500]), run.sample_path(step.iteration))
        run.log(step, **measured)
        run.checkpoint(step.iteration)
    run.finish()


def near_modes(x_tilde, centres, deviation):
    """The share of points within 3 deviations of a mode, and how many modes have at least one point that near."""
    distance, nearest = torch.cdist(x_tilde, centres.to(x_tilde.device)).min(dim=1)
    near = distance <= 3 * deviation
    return {"share_near_modes": near.float().mean().item(), "modes_hit": float(len(nearest[near].unique()))}


if __name__ == "__main__":
    runs.main(main)
