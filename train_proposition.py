"""Proposition 1 and Corollary 1, Section 2.3: the optimal critic's gradient on the lines between coupled points.

    python train_proposition.py                    three problems, each with the penalty and with weight clipping
    python train_proposition.py --data rings       one of them: rings, pairs, shift
    python train_proposition.py --paired           cheating: x and x_tilde drawn from the optimal coupling

Proposition 1, with x real and x_tilde generated (the paper's y and x; its statement and proof run t in opposite
directions): where x and x_tilde are optimally coupled and x_t = t x + (1-t) x_tilde lies between them, the gradient of
the optimal critic at x_t is (x - x_tilde)/|x - x_tilde|. Here the optimal coupling is known, and both distributions are
fixed:

    rings   x_tilde on a circle of radius 1/2, x on one of radius 2: straight outwards
    pairs   x_tilde one of 5 points on a circle of radius 1, x the same turned by 20 degrees and doubled
    shift   x_tilde on a Swiss roll, x on the same roll moved by (1, 1/2), which overlaps it: all lines are parallel

A critic is trained as in Algorithm 1, which knows nothing of the coupling, and its gradient is measured on the coupled
lines: its cosine with x - x_tilde, and its norm. Expect cosines of 1 and norms a little above 1: see penalised_norm.
Per problem and method a folder in runs/proposition with the log; figure.png (arrows: the gradient; its length is
relative in the clipped row), proposition.csv (all measurements over t), and a table is printed. Width, Adam's rate and
its fall to 0 are those of train_toy.py. See results/proposition for ours and how long it took.
"""
import math
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from PIL import Image, ImageDraw

import data
import models
import runs
import wgan_gp

METHODS = {"wgan-gp": "gradient penalty", "wgan": "weight clipping"}
LINES = 2_000  # measured


class Problem(NamedTuple):
    generated: Callable  # n -> n points x_tilde, (n, 2)
    coupled: Callable  # x_tilde (n, 2) -> the x that the optimal coupling has for each; all lines are equally long
    crowd: Callable  # t -> how densely x_hat falls on the coupled lines; 1: as if x and x_tilde were drawn as coupled


def circle(angle, radius):
    """Angles (n,), in radians, to points (n, 2) on a circle about 0."""
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def rings_crowd(t, angles=20_000):
    """1.5 times the density of |x_hat| at radius 1/2 + 1.5 t, for points drawn independently on the two circles.

    With an angle a between x and x_tilde, |x_hat|^2 = A eps^2 + 2B eps + 1/4, where A = 17/4 - 2 cos a and
    B = cos a - 1/4; solved for eps and differentiated by the radius r, r / sqrt(B^2 + A (r^2 - 1/4)).
    """
    cos, r = torch.cos((torch.arange(angles) + 0.5) * (2 * math.pi / angles)), 0.5 + 1.5 * t
    return 1.5 * (r / ((cos - 0.25) ** 2 + (4.25 - 2 * cos) * (r * r - 0.25)).sqrt()).mean().item()


COS, SIN = math.cos(math.pi / 9), math.sin(math.pi / 9)  # of 20 degrees
TURN = 2 * torch.tensor([[COS, SIN], [-SIN, COS]])
PROBLEMS = {
    "rings": Problem(lambda n: circle(2 * math.pi * torch.rand(n), 0.5), lambda x_tilde: 4 * x_tilde, rings_crowd),
    "pairs": Problem(lambda n: circle(2 * math.pi / 5 * torch.randint(5, (n,)), 1.0), lambda x_tilde: x_tilde @ TURN,
                     lambda t: 1 / 5),  # of the 25 pairs that Algorithm 1 draws, 5 are coupled
    "shift": Problem(lambda n: data.swiss_roll(n) - torch.tensor([0.5, 0.25]),
                     lambda x_tilde: x_tilde + torch.tensor([1.0, 0.5]), lambda t: math.nan),  # no closed form
}


def penalised_norm(length, lam, crowd=1.0):
    """The gradient norm that is optimal under the penalty, on coupled lines of this length.

    E[D(x)] - E[D(x_tilde)] is the mean over coupled lines of `length` times the mean slope g on the line. A line whose
    points x_hat hits with density `crowd` adds -length g + lam crowd (g - 1)^2 to equation 3: least at this norm, in
    the line's direction. Exact if some D has these gradients, and leaves those off the lines at norm 1.
    """
    return 1 + length / (2 * lam * crowd)


def along_lines(D, x, x_tilde, ts):
    """D's gradient on the lines from x_tilde to x, both (n, 2): for each t of ts, the point t x + (1-t) x_tilde.

    Returns a list of (t, mean cosine of the gradient with x - x_tilde, mean norm, deviation of the norm).
    """
    direction, measured = (x - x_tilde) / (x - x_tilde).norm(dim=1, keepdim=True), []
    for t in ts:
        x_t = (t * x + (1 - t) * x_tilde).requires_grad_()
        gradient, = torch.autograd.grad(D(x_t).sum(), x_t)
        norm = gradient.norm(dim=1)
        cosine = torch.nn.functional.cosine_similarity(gradient, direction, eps=1e-30)
        measured.append((t, cosine.mean().item(), norm.mean().item(), norm.std(correction=0).item()))
    return measured


def main():
    args = parse()
    args.out = args.out or "runs/proposition" + "-paired" * args.paired
    names = list(PROBLEMS) if args.data == "all" else [args.data]
    results = {(name, method): train(args, name, method) for method in METHODS for name in names}
    runs.write_csv(Path(args.out) / "proposition.csv",
                   ["problem", "method", "t", "cosine", "norm", "deviation", "penalised_norm"],
                   [[*key, *row] for key, (rows, *_) in results.items() for row in rows])
    print(f"{'problem':<9}{'method':<9}{'cosine':>8}{'norm':>9}{'(ideal)':>9}{'W':>8}{'estimate':>10}{'(ideal)':>9}")
    for (name, method), (rows, length, estimate, _) in results.items():
        cosine, norm, _, ideal = (sum(column) / len(rows) for column in list(zip(*rows))[1:])
        print(f"{name:<9}{method:<9}{cosine:8.4f}{norm:9.4f}{ideal:9.4f}"
              f"{length:8.4f}{estimate:10.4f}{ideal * length:9.4f}")
    draw_figure(Path(args.out) / "figure.png", names, results)


def parse():
    parser = runs.flags(__doc__, data="all", iterations=3_000, batch_size=256)
    parser.add_argument("--lam", type=runs.number(1e-9), default=10.0, help="weight of the penalty (the paper: 10)")
    parser.add_argument("--lr", type=runs.number(1e-9), default=3e-3, help="Adam's learning rate (the paper: 1e-4)")
    parser.add_argument("--dim", type=runs.whole(1), default=128, help="units in a hidden layer (default 128)")
    parser.add_argument("--paired", action="store_true", help="draw x and x_tilde from the coupling, not independently")
    args = parser.parse_args()
    if args.data not in ("all", *PROBLEMS):
        parser.error(f"--data {args.data}: choose all, {', '.join(PROBLEMS)}")
    return args


def train(args, name, method_name):
    """Train one critic; returns its measurements over t, the length of the lines (W), the estimate of W, a picture."""
    args, problem, method = runs.part(args, f"{name}-{method_name}"), PROBLEMS[name], wgan_gp.METHODS[method_name]
    if method.lam:
        method = method._replace(lam=args.lam, optimizer=partial(method.optimizer, lr=args.lr))
    run = runs.Run(args, out=args.out)
    D = models.toy_critic(args.dim).to(args.device)
    opt_D = method.optimizer(D.parameters())
    lr = opt_D.param_groups[0]["lr"]
    for iteration in range(run.start(D=D, opt_D=opt_D), args.iterations):
        wgan_gp.seed_iteration(args.seed, iteration)
        opt_D.param_groups[0]["lr"] = lr * (1 - iteration / args.iterations)
        x_tilde = problem.generated(args.batch_size)
        x = problem.coupled(x_tilde if args.paired else problem.generated(args.batch_size))
        x, x_tilde = x.to(args.device), x_tilde.to(args.device)
        critic = wgan_gp.critic_step(lambda z: z, D, opt_D, x, x_tilde, method=method)  # the generator is fixed
        run.log(wgan_gp.Step(iteration + 1, *critic, generator_loss=0.0))
        run.checkpoint(iteration + 1)
    run.finish()

    torch.manual_seed(args.seed)
    D.cpu()
    x_tilde = problem.generated(LINES)
    x = problem.coupled(x_tilde)
    with torch.no_grad():
        length, estimate = (x - x_tilde).norm(dim=1).mean().item(), (D(x).mean() - D(x_tilde).mean()).item()
    measured = []
    for t, *row in along_lines(D, x, x_tilde, [(i + 0.5) / 40 for i in range(40)]):
        crowd = 1.0 if args.paired else problem.crowd(t)
        measured.append((t, *row, penalised_norm(length, args.lam, crowd) if method.lam else math.nan))
    mean_norm = sum(row[2] for row in measured) / len(measured)
    return measured, length, estimate, draw_critic(D, x, x_tilde, 1.0 if method.lam else mean_norm)


# ----------------------------------------------------------------------------------------------------- the picture

def draw_critic(D, x, x_tilde, unit, reach=2.5, side=300, finer=4):
    """D's values, some coupled lines, and on them D's gradient as arrows: one of norm `unit` is .3 long."""
    line = torch.linspace(-reach, reach, 128)
    y, x_axis = torch.meshgrid(line, line, indexing="ij")
    with torch.no_grad():
        values = D(torch.stack([x_axis, y], -1).reshape(-1, 2)).reshape(128, 128)
    picture = runs.surface(values, (-reach, reach, -reach, reach), x[:400], x_tilde[:400], size=(side, side))
    layer = Image.new("RGBA", (side * finer, side * finer))
    pen = ImageDraw.Draw(layer)
    pixels = lambda points: (points * torch.tensor([1.0, -1.0]) + reach) / (2 * reach) * side * finer
    for start, end in zip(pixels(x_tilde[:24]).tolist(), pixels(x[:24]).tolist()):
        pen.line((*start, *end), "#FFFFFF90", finer)
    for t in (0.1, 0.37, 0.63, 0.9):
        x_t = (t * x[:24] + (1 - t) * x_tilde[:24]).requires_grad_()
        gradient, = torch.autograd.grad(D(x_t).sum(), x_t)
        tails, heads = pixels(x_t.detach()), pixels(x_t.detach() + 0.3 / unit * gradient)
        for tail, head in zip(tails, heads):
            back = 0.35 * (tail - head)
            across = 0.5 * back.flip(0) * torch.tensor([1.0, -1.0])
            pen.line((*tail.tolist(), *(head + back).tolist()), "black", 2 * finer)
            pen.polygon([*head.tolist(), *(head + back + across).tolist(), *(head + back - across).tolist()], "black")
    layer = layer.reduce(finer)
    picture.paste(layer, (0, 0), layer)
    return picture


def draw_figure(path, names, results):
    """figure.png: the critics, then their gradients' cosine and norm along the coupled lines."""
    rows = [[results[name, method][3] for name in names] for method in METHODS]
    cosines, norms = [], []
    for name in names:
        t, cosine, norm, _, ideal = zip(*results[name, "wgan-gp"][0])
        _, clipped_cosine, clipped_norm, *_ = zip(*results[name, "wgan"][0])
        mean = sum(clipped_norm) / len(clipped_norm) or 1.0
        cosines.append(runs.line_chart({"penalty": (t, cosine), "clipping": (t, clipped_cosine)}, "cosine",
                                       "t (0: x_tilde, 1: x)", size=(300, 240), y_range=(0.7, 1.01)))
        curves = {"penalty": (t, norm), "clipping / its mean": (t, [n / mean for n in clipped_norm])}
        if not math.isnan(ideal[0]):
            curves["ideal under the penalty"] = (t, ideal)
        norms.append(runs.line_chart(curves, "norm", "t (0: x_tilde, 1: x)", size=(300, 240), y_range=(0.8, 1.4)))
    runs.save_png(runs.beside([*rows, cosines, norms], row_labels=[*METHODS.values(), "", ""],
                              column_labels=names), path)
    print(f"drew {path}, numbers in {path.parent / 'proposition.csv'}")


if __name__ == "__main__":
    runs.main(main)
