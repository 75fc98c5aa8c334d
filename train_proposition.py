"""Proposition 1 and Corollary 1, Section 2.3: the optimal critic's gradient between coupled points.

    python train_proposition.py                    three problems, with the penalty and with clipping
    python train_proposition.py --data rings       one of them: rings, pairs, shift
    python train_proposition.py --paired           draw x and x_tilde from the optimal coupling

Where real x and generated x_tilde (the paper's y and x) are optimally coupled, the optimal critic's
gradient at x_t = t x + (1-t) x_tilde is (x - x_tilde)/|x - x_tilde|. Here both distributions are
fixed, and their optimal coupling is known:

    rings   x_tilde on a circle of radius 1/2, x on one of radius 2. The lines are radii
    pairs   x_tilde one of 5 points on a circle, x the same turned by 20 degrees and doubled
    shift   x_tilde on a Swiss roll, x on that roll moved by (1, 1/2). The two overlap

Algorithm 1 does not know the coupling. On coupled lines we measure the cosine of its critic's gradient
with x - x_tilde, and the norm. With the penalty expect cosines near 1 and norms of 1.07 to 1.13 (see
penalised_norm), in 3 minutes on one core. Our runs: results/proposition.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import data
import models
import plots
import runs
import wgan_gp

METHODS = {"wgan-gp": wgan_gp.WGAN_GP._replace(lr=3e-3), "wgan": wgan_gp.METHODS["wgan"]}  # rates fall to 0
LINES = 2_000  # measured
TS = [(i + 0.5) / 40 for i in range(40)]


# ---- the problems ----

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
GENERATED = {  # n -> n points x_tilde, (n, 2)
    "rings": lambda n: circle(2 * math.pi * torch.rand(n), 0.5),
    "pairs": lambda n: circle(2 * math.pi / 5 * torch.randint(5, (n,)), 1.0),
    "shift": lambda n: data.swiss_roll(n) - torch.tensor([0.5, 0.25])}
COUPLED = {  # x_tilde (n, 2) -> the x coupled with each. All lines have the same length
    "rings": lambda x_tilde: 4 * x_tilde,
    "pairs": lambda x_tilde: x_tilde @ (2 * torch.tensor([[COS, SIN], [-SIN, COS]])),
    "shift": lambda x_tilde: x_tilde + torch.tensor([1.0, 0.5])}
CROWD = {  # t -> density of x_hat on the lines, 1 if x and x_tilde are drawn as coupled
    "rings": rings_crowd,
    "pairs": lambda t: 1 / 5,  # 5 of the 25 pairs that Algorithm 1 draws are coupled
    "shift": lambda t: math.nan}  # no closed form


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
    add("--dim", type=runs.whole(1, 65_536), default=128, help="units in a layer (default 128)")
    add("--paired", action="store_true", help="draw x and x_tilde as coupled")
    args = parser.parse_args()
    if args.data not in ("all", *COUPLED):
        parser.error(f"--data {args.data}: choose all, {', '.join(COUPLED)}")
    args.out = args.out or runs.default_out(parser, args, "proposition", ["paired"])
    return args


def main():
    args = parse()
    names = list(COUPLED) if args.data == "all" else [args.data]
    keys = [(name, method) for method in METHODS for name in names]
    results = {key: train(args, *key, f"{i}/{len(keys)}") for i, key in enumerate(keys, 1)}

    # the table, as a file and in short
    print(f"{'problem':<9}{'method':<9}{'cosine':>8}{'norm':>9}{'(ideal)':>9}{'W':>8}{'estimate':>10}{'(ideal)':>9}")
    for (name, method), (rows, length, estimate, *_) in results.items():
        _, cosine, norm, _, ideal = [sum(column) / len(rows) for column in zip(*rows)]
        print(f"{name:<9}{method:<9}{cosine:8.4f}{norm:9.4f}{ideal:9.4f}"
              f"{length:8.4f}{estimate:10.4f}{ideal * length:9.4f}")
    header = ["problem", "method", "t", "cosine", "norm", "deviation", "penalised_norm"]
    table = [[*key, *row] for key, (rows, *_) in results.items() for row in rows]
    runs.write_csv(f"{args.out}/proposition.csv", header, table)
    runs.write(f"{args.out}/figure.png", draw_figure(names, results))
    print(f"done: {args.out}/figure.png, numbers in proposition.csv")


def train(args, name, method_name, number):
    """Train a critic. Return rows over t, the lines' length (W), the estimate, a picture, the norms' unit."""
    args, method = runs.part(args, f"{name}-{method_name}"), METHODS[method_name]
    run = runs.Run(args, decays=True, label=f"{number} {name} {method_name}")
    D = models.toy_critic(args.dim).to(args.device)
    opt_D = method.make_optimizer(D)

    # resume or start, and train
    for iteration in range(run.start(D=D, opt_D=opt_D), args.iterations):
        wgan_gp.seed_iteration(args.seed, iteration)
        opt_D.param_groups[0]["lr"] = method.lr * (1 - iteration / args.iterations)
        x_tilde = GENERATED[name](args.batch_size)
        x = COUPLED[name](x_tilde if args.paired else GENERATED[name](args.batch_size))
        x, x_tilde = x.to(args.device), x_tilde.to(args.device)
        losses = wgan_gp.critic_step(lambda z: z, D, opt_D, x, x_tilde, method=method)  # G is fixed
        step = wgan_gp.Step(iteration + 1, *losses, generator_loss=0.0)
        run.log(step)
        run.checkpoint(step)
    run.finish()

    # measure, on the CPU
    torch.manual_seed(args.seed)
    D.cpu()
    x_tilde = GENERATED[name](LINES)
    x = COUPLED[name](x_tilde)
    length = (x - x_tilde).norm(dim=1).mean().item()
    estimate = (D(x).mean() - D(x_tilde).mean()).item()
    measured, unit = along_lines(D, x, x_tilde, TS), 1.0
    for row in measured:
        crowd = 1.0 if args.paired else CROWD[name](row[0])
        row.append(penalised_norm(length, method.lam, crowd) if method.lam else math.nan)
    if method.clip:
        unit = sum(norm for _, _, norm, *_ in measured) / len(measured) or 1.0  # 0: all ReLUs are dead
    return measured, length, estimate, draw_critic(D, x, x_tilde, unit), unit


def gradient_at(D, x):
    """Return the gradient of D at each point of x, (n, 2)."""
    x = x.detach().requires_grad_()
    gradient, = torch.autograd.grad(D(x).sum(), x)
    return gradient


def along_lines(D, x, x_tilde, ts):
    """Measure D's gradient at t x + (1-t) x_tilde, for each t of ts. x, x_tilde: (n, 2), coupled.

    Returns rows [t, mean cosine with x - x_tilde, mean norm, deviation of the norm].
    """
    measured = []
    for t in ts:
        gradient = gradient_at(D, t * x + (1 - t) * x_tilde)
        norm = gradient.norm(dim=1)
        cosine = F.cosine_similarity(gradient, x - x_tilde, eps=1e-30)
        measured.append([t, cosine.mean().item(), norm.mean().item(), norm.std(correction=0).item()])
    return measured


# ---- the figure ----

def draw_critic(D, x, x_tilde, unit, reach=2.5, side=300, finer=4):
    """Draw D's values, coupled lines, and D's gradient on them. An arrow of length 0.3 has norm `unit`."""
    line = torch.linspace(-reach, reach, 128)
    values = D(torch.cartesian_prod(line, line).flip(1)).reshape(128, 128)  # row by row
    picture = plots.surface(values, (-reach, reach, -reach, reach), x[:400], x_tilde[:400], size=(side, side))
    layer = Image.new("RGBA", (side * finer, side * finer))
    pen, flip = ImageDraw.Draw(layer), torch.tensor([1.0, -1.0])  # pixels count downwards
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
            pen.polygon([*head.tolist(), *(head + back + across).tolist(), *(head + back - across).tolist()], "black")
    layer = layer.reduce(finer)
    picture.paste(layer, (0, 0), layer)
    return picture


def draw_figure(names, results):
    """Draw the critics, and the cosine and norm of their gradients along the coupled lines."""
    draw = partial(plots.line_chart, x_label="t (0: x_tilde, 1: x)", size=(300, 240))
    pictures = [[results[name, method][3] for name in names] for method in METHODS]
    cosines, norms = [], []
    for name in names:
        t, cosine, norm, _, ideal = zip(*results[name, "wgan-gp"][0])
        rows, *_, unit = results[name, "wgan"]
        _, clipped_cosine, clipped_norm, *_ = zip(*rows)
        cosines.append(draw({"penalty": (t, cosine), "clipping": (t, clipped_cosine)}, "cosine", y_range=(0.7, 1.01)))
        curves = {"penalty": (t, norm), "clipping / its mean": (t, [value / unit for value in clipped_norm])}
        if not math.isnan(ideal[0]):
            curves["ideal under the penalty"] = (t, ideal)
        norms.append(draw(curves, "norm", y_range=(0.8, 1.4)))
    labels = ["gradient penalty", "weight clipping", "", ""]
    return plots.beside([*pictures, cosines, norms], row_labels=labels, column_labels=names)


if __name__ == "__main__":
    runs.main(main)
