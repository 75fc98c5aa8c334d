"""Proposition 1 and Corollary 1, Section 2.3: the optimal critic's gradient between coupled points.

    python train_proposition.py                    three problems, with the penalty and with clipping
    python train_proposition.py --data rings       one of them: rings, pairs, shift
    python train_proposition.py --paired           draw x and x_tilde from the optimal coupling

Proposition 1: where x and x_tilde are optimally coupled and x_t = t x + (1-t) x_tilde, the gradient
of the optimal critic at x_t is (x - x_tilde)/|x - x_tilde|. Here x is real and x_tilde generated
(the paper's y and x). Both distributions are fixed, and their optimal coupling is known:

    rings   x_tilde on a circle of radius 1/2, x on one of radius 2. The lines are radii
    pairs   x_tilde one of 5 points on a circle, x the same turned by 20 degrees and doubled
    shift   x_tilde on a Swiss roll, x on that roll moved by (1, 1/2). The two overlap

A critic is trained as in Algorithm 1, which does not know the coupling. On the coupled lines we
measure the cosine of its gradient with x - x_tilde, and its norm. Expect cosines of 1 and norms a
little above 1 (see penalised_norm), in 3 minutes on one core. Arrows in the figure are gradients,
relative to their mean norm under clipping. Ours: results/proposition.
"""
import math
from pathlib import Path
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import data
import models
import plots
import runs
import wgan_gp

METHODS = {"wgan-gp": "gradient penalty", "wgan": "weight clipping"}
LINES = 2_000  # measured
TS = [(i + 0.5) / 40 for i in range(40)]


# ---- the problems ----

class Problem(NamedTuple):
    """Two distributions in the plane and their optimal coupling."""
    generated: Callable  # n -> n points x_tilde, (n, 2)
    coupled: Callable  # x_tilde (n, 2) -> the x coupled with each. All lines have the same length
    crowd: Callable  # t -> density of x_hat on the lines. 1: x and x_tilde are drawn as coupled


def circle(angle, radius):
    """Return the points (n, 2) on a circle about 0 at these angles (n,), in radians."""
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def rings_crowd(t, angles=20_000):
    """Return 1.5 times the density of |x_hat| at radius r = 1/2 + 1.5 t, for independent points.

    If the angle between x and x_tilde is a, |x_hat|^2 = A eps^2 + 2B eps + 1/4 with
    A = 17/4 - 2 cos a and B = cos a - 1/4. Solving for eps and differentiating by r gives
    r / sqrt(B^2 + A (r^2 - 1/4)).
    """
    cos, r = torch.cos((torch.arange(angles) + 0.5) * (2 * math.pi / angles)), 0.5 + 1.5 * t
    density = r / ((cos - 0.25) ** 2 + (4.25 - 2 * cos) * (r * r - 0.25)).sqrt()
    return 1.5 * density.mean().item()


COS, SIN = math.cos(math.pi / 9), math.sin(math.pi / 9)  # of 20 degrees
TURN = 2 * torch.tensor([[COS, SIN], [-SIN, COS]])
PROBLEMS = {
    "rings": Problem(
        lambda n: circle(2 * math.pi * torch.rand(n), 0.5),
        lambda x_tilde: 4 * x_tilde,
        rings_crowd),
    "pairs": Problem(
        lambda n: circle(2 * math.pi / 5 * torch.randint(5, (n,)), 1.0),
        lambda x_tilde: x_tilde @ TURN,
        lambda t: 1 / 5),  # 5 of the 25 pairs that Algorithm 1 draws are coupled
    "shift": Problem(
        lambda n: data.swiss_roll(n) - torch.tensor([0.5, 0.25]),
        lambda x_tilde: x_tilde + torch.tensor([1.0, 0.5]),
        lambda t: math.nan),  # no closed form
}


def penalised_norm(length, lam, crowd=1.0):
    """Return the gradient norm that is optimal under the penalty, on coupled lines of this length.

    E[D(x)] - E[D(x_tilde)] is the mean over coupled lines of `length` times the mean slope g on the
    line. A line on which x_hat has density `crowd` adds -length g + lam crowd (g - 1)^2 to equation 3,
    which is least at this norm. Exact if some D has these gradients, and norm 1 off the lines.
    """
    return 1 + length / (2 * lam * crowd)


# ---- training and measuring ----

def parse():
    parser = runs.flags(__doc__, data="all", iterations=3_000, batch_size=256, threads=1)
    add = parser.add_argument
    add("--lam", type=runs.number(1e-9), default=10.0, help="of the penalty (paper: 10)")
    add("--lr", type=runs.number(1e-9), default=3e-3, help="Adam's, falls to 0 (paper: 1e-4)")
    add("--dim", type=runs.whole(1, 65_536), default=128, help="units in a layer (default 128)")
    add("--paired", action="store_true", help="draw x and x_tilde as coupled")
    args = parser.parse_args()
    if args.data not in ("all", *PROBLEMS):
        parser.error(f"--data {args.data}: choose all, {', '.join(PROBLEMS)}")
    variant = "-paired" if args.paired else ""
    args.out = args.out or f"runs/proposition{variant}"
    return args


def main():
    args = parse()
    names = list(PROBLEMS) if args.data == "all" else [args.data]
    keys = [(name, method) for method in METHODS for name in names]
    results = {key: train(args, *key, f"{i}/{len(keys)}") for i, key in enumerate(keys, 1)}

    # the table, as a file and in short
    print(f"{'problem':<9}{'method':<9}{'cosine':>8}{'norm':>9}{'(ideal)':>9}{'W':>8}{'estimate':>10}{'(ideal)':>9}")
    for (name, method), (rows, length, estimate, _) in results.items():
        _, cosine, norm, _, ideal = [sum(column) / len(rows) for column in zip(*rows)]
        print(f"{name:<9}{method:<9}{cosine:8.4f}{norm:9.4f}{ideal:9.4f}"
              f"{length:8.4f}{estimate:10.4f}{ideal * length:9.4f}")
    header = ["problem", "method", "t", "cosine", "norm", "deviation", "penalised_norm"]
    runs.write_csv(Path(args.out, "proposition.csv"), header,
                   [[*key, *row] for key, (rows, *_) in results.items() for row in rows])
    runs.save_picture(draw_figure(names, results), Path(args.out, "figure.png"))
    print(f"done: {args.out}/figure.png, numbers in proposition.csv")


def generator(args):
    """Refuse to give a generator, for sample.py: here the generator's distribution is fixed."""
    raise runs.Mistake("train_proposition.py has no generator to sample from")


def train(args, name, method_name, number):
    """Train a critic. Return its measurements over t, the lines' length (W), the estimate, a picture."""
    args, problem = runs.part(args, f"{name}-{method_name}"), PROBLEMS[name]
    method = wgan_gp.METHODS[method_name]
    if method.lam:
        method = method._replace(lam=args.lam, lr=args.lr)
    run = runs.Run(args, args.out, decays=True, label=f"{number} {name} {method_name}")
    D = models.toy_critic(args.dim).to(args.device)
    opt_D = method.make_optimizer(D)

    # resume or start, and train
    for iteration in range(run.start(D=D, opt_D=opt_D), args.iterations):
        wgan_gp.seed_iteration(args.seed, iteration)
        opt_D.param_groups[0]["lr"] = method.lr * (1 - iteration / args.iterations)
        x_tilde = problem.generated(args.batch_size)
        x = problem.coupled(x_tilde if args.paired else problem.generated(args.batch_size))
        x, x_tilde = x.to(args.device), x_tilde.to(args.device)
        losses = wgan_gp.critic_step(lambda z: z, D, opt_D, x, x_tilde, method=method)  # G is fixed
        step = wgan_gp.Step(iteration + 1, *losses, generator_loss=0.0)
        run.log(step)
        run.checkpoint(step)
    run.finish()

    # measure, on the CPU
    torch.manual_seed(args.seed)
    D.cpu()
    x_tilde = problem.generated(LINES)
    x = problem.coupled(x_tilde)
    length = (x - x_tilde).norm(dim=1).mean().item()
    with torch.no_grad():
        estimate = (D(x).mean() - D(x_tilde).mean()).item()
    measured = []
    for t, *row in along_lines(D, x, x_tilde, TS):
        ideal = math.nan
        if method.lam:
            ideal = penalised_norm(length, args.lam, 1.0 if args.paired else problem.crowd(t))
        measured.append((t, *row, ideal))
    unit = 1.0
    if method.clip:
        unit = mean_norm(measured)
    return measured, length, estimate, draw_critic(D, x, x_tilde, unit)


def gradient_at(D, x):
    """Return the gradient of D at each point of x, (n, 2)."""
    x = x.detach().requires_grad_()
    gradient, = torch.autograd.grad(D(x).sum(), x)
    return gradient


def along_lines(D, x, x_tilde, ts):
    """Measure D's gradient at t x + (1-t) x_tilde, for each t of ts. x, x_tilde: (n, 2), coupled.

    Returns a list of (t, mean cosine with x - x_tilde, mean norm, deviation of the norm).
    """
    measured = []
    for t in ts:
        gradient = gradient_at(D, t * x + (1 - t) * x_tilde)
        norm = gradient.norm(dim=1)
        cosine = F.cosine_similarity(gradient, x - x_tilde, eps=1e-30)
        numbers = cosine.mean(), norm.mean(), norm.std(correction=0)
        measured.append((t, *[number.item() for number in numbers]))
    return measured


def mean_norm(measured):
    """Return the mean norm over t, or 1 if there is no gradient at all, as in a small clipped critic."""
    return sum(norm for _, _, norm, *_ in measured) / len(measured) or 1.0


# ---- the figure ----

def draw_critic(D, x, x_tilde, unit, reach=2.5, side=300, finer=4):
    """Draw D's values, coupled lines, and D's gradient on them: an arrow of 0.3 has norm `unit`."""
    line = torch.linspace(-reach, reach, 128)
    with torch.no_grad():
        values = D(torch.cartesian_prod(line, line).flip(1)).reshape(128, 128)  # row by row
    extent = -reach, reach, -reach, reach
    picture = plots.surface(values, extent, x[:400], x_tilde[:400], size=(side, side))
    layer = Image.new("RGBA", (side * finer, side * finer))
    pen = ImageDraw.Draw(layer)
    flip = torch.tensor([1.0, -1.0])  # pixels count downwards
    pixels = lambda points: (points * flip + reach) / (2 * reach) * side * finer
    for start, end in zip(pixels(x_tilde[:24]).tolist(), pixels(x[:24]).tolist()):
        pen.line((*start, *end), "#FFFFFF90", finer)
    for t in (0.1, 0.37, 0.63, 0.9):
        x_t = t * x[:24] + (1 - t) * x_tilde[:24]
        tails, heads = pixels(x_t), pixels(x_t + 0.3 / unit * gradient_at(D, x_t))
        for tail, head in zip(tails, heads):
            back = 0.35 * (tail - head)
            across = 0.5 * back.flip(0) * flip
            pen.line((*tail.tolist(), *(head + back).tolist()), "black", 2 * finer)
            corners = torch.stack([head, head + back + across, head + back - across])
            pen.polygon(corners.flatten().tolist(), "black")
    layer = layer.reduce(finer)
    picture.paste(layer, (0, 0), layer)
    return picture


def draw_figure(names, results):
    """Draw the critics, and the cosine and norm of their gradients along the coupled lines."""
    rows = [[results[name, method][3] for name in names] for method in METHODS]
    cosines, norms = [], []
    for name in names:
        t, cosine, norm, _, ideal = zip(*results[name, "wgan-gp"][0])
        clipped = results[name, "wgan"][0]
        _, clipped_cosine, clipped_norm, *_ = zip(*clipped)
        curves = {"penalty": (t, cosine), "clipping": (t, clipped_cosine)}
        cosines.append(draw_curves(curves, "cosine", (0.7, 1.01)))
        relative = [value / mean_norm(clipped) for value in clipped_norm]
        curves = {"penalty": (t, norm), "clipping / its mean": (t, relative)}
        if not math.isnan(ideal[0]):
            curves["ideal under the penalty"] = (t, ideal)
        norms.append(draw_curves(curves, "norm", (0.8, 1.4)))
    labels = [*METHODS.values(), "", ""]
    return plots.beside([*rows, cosines, norms], row_labels=labels, column_labels=names)


def draw_curves(curves, title, y_range):
    return plots.line_chart(curves, title, "t (0: x_tilde, 1: x)", size=(300, 240), y_range=y_range)


if __name__ == "__main__":
    runs.main(main)
