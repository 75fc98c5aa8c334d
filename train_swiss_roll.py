"""Figure 1(b), Section 3.2: gradients in a deep critic explode or vanish under clipping, and not under the penalty.

    python train_swiss_roll.py                            the figure: four WGANs, one after the other
    python train_swiss_roll.py --constraint l2-clip       another one: also weight-norm, l2-decay, l1-decay
    python train_swiss_roll.py --batch-norm               batch norm in the constrained critics

Section 3 says that other constraints have similar problems, and that batch norm mitigates them to some extent, though
even with it "very deep WGAN critics often fail to converge". runs/swiss-roll (runs/swiss-roll-l2-clip, and so on) gets
a folder for each run, figure.png, gradient_norms.csv, and the slopes are printed: expect straight lines on the
logarithmic axis for c = .1, .01 and .001, a line near flat for the penalty; weights piled up at -c and c against
weights spread out. See results/swiss-roll for ours and how long it took.

Where the paper is silent. Width: 128, so that it takes minutes; --dim 512 is that of the authors' other toys. "12-layer":
12 hidden ReLU layers and a linear one. Length: 600 iterations. First weights: uniform with deviation sqrt(2/inputs)
(He), biases 0, which about keeps the size of gradients; the first clip to .01 or .001 undoes that at once, and is most
of what the figure shows of these two. "Activations" are what comes out of each ReLU, counted from the input. The critic
loss is that of equation 2, without penalty, for all four. Its terms are -D(x) or D(x_tilde); the norm is that of the
gradient of their sum with respect to one example's activations, averaged over 4,096 examples, in float64, on a copy of
D. "During training" is the geometric mean of such measurements, one every --measure-every iterations, in the second half.
"""
import copy
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

import data
import models
import runs
import wgan_gp

THRESHOLDS = (0.1, 0.01, 0.001)  # the paper's c
LABELS = {"clip": "weight clipping, c = {:g}", "l2-clip": "L2 norm clipping, c = {:g}",
          "weight-norm": "weight normalization, c = {:g}",
          "l2-decay": "L2 weight decay, {:g}", "l1-decay": "L1 weight decay, {:g}"}
PENALTY = "gradient penalty"


def main():
    args = parse()
    name = "swiss-roll" + f"-{args.constraint}" * (args.constraint != "clip") + "-batch-norm" * args.batch_norm
    args.out = args.out or f"runs/{name}"
    labels = {c: LABELS[args.constraint].format(c) for c in THRESHOLDS} | {None: PENALTY}
    norms, weights = {}, {}
    for c, label in labels.items():
        norms[label], weights[c] = train(args, c)
    draw_figure(Path(args.out), norms, weights, labels)
    print("From layer to layer, going back, the gradient norm is multiplied by")
    for c, label in labels.items():
        print(f"  10^{-slope(norms[label]):+.3f} under {label}")
    if args.constraint == "clip":
        print("Within 1% of -c or c are " + ", ".join(f"{at_bounds(weights[c], c):.1%} of the weights at c = {c:g}"
                                                      for c in THRESHOLDS))


def parse():
    parser = runs.flags(__doc__, data="swissroll", iterations=600, batch_size=256)
    parser.add_argument("--constraint", choices=LABELS, default="clip", help="on the critics that have no penalty")
    parser.add_argument("--batch-norm", action="store_true", help="batch norm in these three critics (Section 3)")
    parser.add_argument("--dim", type=runs.whole(1), default=128, help="units in a hidden layer (default 128)")
    parser.add_argument("--depth", type=runs.whole(2), default=12, help="hidden layers in G and in D (Section 3.2: 12)")
    parser.add_argument("--measure-every", type=runs.whole(1), default=50, metavar="N",
                        help="iterations between measurements of the gradient norms (default 50)")
    args = parser.parse_args()
    if args.data not in data.TOYS:
        parser.error(f"--data {args.data}: choose {', '.join(data.TOYS)}")
    return args


def constrained(D, opt_D, constraint, c):
    """Put one of the constraints of Section 3 on D; returns the method to train it with."""
    method = wgan_gp.METHODS["wgan"]._replace(clip=0)
    if constraint == "clip":
        return method._replace(clip=c)
    if constraint == "l2-clip":
        opt_D.register_step_post_hook(lambda *_: clip_norms(D, c))
    if constraint == "weight-norm":
        opt_D.register_step_post_hook(lambda *_: normalize_weights(D, c))
    if constraint == "l2-decay":
        return method._replace(critic_term=lambda D, x: c * sum(w.square().sum() for w in D.parameters()))
    if constraint == "l1-decay":
        return method._replace(critic_term=lambda D, x: c * sum(w.abs().sum() for w in D.parameters()))
    return method


@torch.no_grad()
def clip_norms(D, c):
    """L2 norm clipping: scale down every parameter tensor whose root mean square is above c, in place."""
    for w in D.parameters():
        w *= (c / w.square().mean().sqrt().clamp(min=c))


@torch.no_grad()
def normalize_weights(D, c):
    """Weight normalization with its gains held fixed: scale each unit's weights to a root mean square of c, in place.

    A learned gain, as usual, would be no constraint at all.
    """
    for w in D.parameters():
        if w.dim() == 2:
            w *= c / w.square().mean(dim=1, keepdim=True).sqrt()


def train(args, c):
    """Train one WGAN, with the penalty if c is None; returns the gradient norms, one per layer, and D's weights."""
    args = runs.part(args, f"{args.constraint}-{c:g}" if c else "penalty")
    layers = [f"layer_{i}" for i in range(1, args.depth + 1)]
    run = runs.Run(args, out=args.out, columns=layers)

    method = wgan_gp.METHODS["wgan" if c else "wgan-gp"]
    G, D = models.toy_generator(args.dim, args.depth), models.toy_critic(args.dim, args.depth)
    if c and args.batch_norm:  # before each ReLU
        D = nn.Sequential(*[part for layer in D for part in
                            ([models.batch_norm(args.dim, flat=True)] if isinstance(layer, models.ReLU) else []) + [layer]])
    G, D = G.to(args.device), D.to(args.device)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    if c:
        method = constrained(D, opt_D, args.constraint, c)
    batches = data.toy_batches(data.TOYS[args.data], args.batch_size, args.device)
    latents = lambda m: (torch.randn(m, 2, device=args.device),)

    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    for step in wgan_gp.train(G, D, batches, latents, opt_G, opt_D, method,
                              iterations=args.iterations, start=start, seed=args.seed):
        measured = {}
        if step.iteration % args.measure_every == 0 or step.iteration == args.iterations:
            with run.clock_stopped():
                x, x_tilde = data.TOYS[args.data](2048, args.device), wgan_gp.sample(G, latents, 2048, 2048)
                measured = dict(zip(layers, gradient_norms(D, x, x_tilde)))
        run.log(step, **measured)
        run.checkpoint(step.iteration)
    log = run.read_log()
    run.finish()
    weights = [w.detach().flatten().cpu() for w in D.parameters() if w.dim() == 2]
    half = log["iteration"] >= args.iterations / 2
    return [geometric_mean(log[layer][half]) for layer in layers], torch.cat(weights)


def gradient_norms(D, x, x_tilde):
    """||gradient of a batch's summed scores with respect to what comes out of a ReLU||, for each ReLU of D.

    D is an nn.Sequential. The mean over the examples of both batches, x (m, 2) and x_tilde (m, 2), which pass D apart,
    as in training. Without batch norm that is the gradient of an example's own score. With it the other examples' scores
    count too, as they do in the loss; where the ReLUs after a batch norm treat all examples alike, all cancel to 0.
    """
    D, norms = copy.deepcopy(D).cpu().double(), []
    for h in (x.cpu().double(), x_tilde.cpu().double()):
        activations = []
        for layer in D:
            h = layer(h)
            if isinstance(layer, models.ReLU):
                activations.append(h)
        gradients = torch.autograd.grad(h.sum(), activations)
        norms.append(torch.stack([gradient.norm(dim=1) for gradient in gradients]))
    return torch.cat(norms, dim=1).mean(dim=1).tolist()


def geometric_mean(values):
    """Of the numbers above 0; 0 if there are none."""
    values = values[np.nan_to_num(values) > 0]
    return float(np.exp(np.log(values).mean())) if len(values) else 0.0


def slope(norms):
    """The slope of the straight line that fits log10(norm) over the layers best; NaN if all but one norm are 0."""
    layers = np.flatnonzero(norms)
    return float(np.polyfit(layers, np.log10(np.array(norms)[layers]), 1)[0]) if len(layers) > 1 else math.nan


def at_bounds(weights, c):
    """The share of weights within 1% of -c or c."""
    return (weights.abs() >= 0.99 * c).double().mean().item()


def draw_figure(out, norms, weights, labels):
    """figure.png: gradient norms on the left, weights on the right; and the norms as gradient_norms.csv."""
    layers = range(1, len(norms[PENALTY]) + 1)
    left = runs.line_chart({label: (layers, values) for label, values in norms.items()}, "gradients of the critic loss",
                           "discriminator layer", "gradient norm (log scale)", log_y=True, size=(560, 420))
    right = []
    for c in (0.01, None):
        bulk = 1.05 * np.quantile(weights[c].abs().numpy(), 0.999)  # of the first layer a few are far out
        right.append(runs.histogram(weights[c], 60, labels[c], "weights", size=(380, 200), x_range=(-bulk, bulk)))
    runs.save_png(runs.beside([[left, runs.beside([[picture] for picture in right], gap=6)]]), out / "figure.png")
    runs.write_csv(out / "gradient_norms.csv", ["layer", *norms], zip(layers, *norms.values()))
    print(f"drew {out / 'figure.png'}, numbers in {out / 'gradient_norms.csv'}")


if __name__ == "__main__":
    runs.main(main)
