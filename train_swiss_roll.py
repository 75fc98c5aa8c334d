"""Figure 1(b), Section 3.2: gradients explode or vanish in a deep critic, unless it has the penalty.

    python train_swiss_roll.py                         the figure: four WGANs, one after the other
    python train_swiss_roll.py --constraint l2-clip    or weight-norm, l2-decay, l1-decay
    python train_swiss_roll.py --batch-norm            in the three constrained critics

Expect straight lines on the log axis for c = 0.1, 0.01 and 0.001 and a nearly flat one for the
penalty, and weights at -c and c under clipping only, after 4 minutes. Section 3 says that other
constraints have similar problems, and that batch norm helps somewhat. Our runs: results/swiss-roll.

Our choices where the paper gives none: 128 units, 600 iterations, He's initial weights. At c = 0.01
and 0.001 the first clip shrinks the weights, which explains most of the figure. The norms are those
of equation 2's gradient at the output of each ReLU, geometric means over the second half.
"""
import copy
import math

import numpy as np
import torch

import data
import models
import plots
import runs
import wgan_gp

THRESHOLDS = (0.1, 0.01, 0.001)  # the paper's c
LABELS = {"clip": "weight clipping", "l2-clip": "L2 norm clipping", "weight-norm": "weight normalization",
          "l2-decay": "L2 weight decay", "l1-decay": "L1 weight decay"}
DECAYS = {"l2-decay": torch.square, "l1-decay": torch.abs}
PENALTY = "gradient penalty"


def parse():
    parser = runs.flags(__doc__, data="swissroll", iterations=600, batch_size=256, threads=1)
    add = parser.add_argument
    add("--constraint", choices=LABELS, default="clip", help="without the penalty (default clip)")
    add("--batch-norm", action="store_true", help="batch norm in the three critics without the penalty (Section 3)")
    add("--dim", type=runs.whole(1, 65_536), default=128, help="units in a layer (default 128)")
    add("--depth", type=runs.whole(2, 1_000), default=12, help="hidden layers (Section 3.2: 12)")
    add("--measure-every", type=runs.whole(1), default=50, help="iterations (default 50)")
    args = parser.parse_args()
    if args.data != "swissroll":
        parser.error(f"--data {args.data}: this experiment is on swissroll")
    args.out = args.out or runs.default_out(parser, args, "swiss-roll", ["constraint", "batch_norm"])
    return args


def main():
    args = parse()
    norms, weights = {}, {}
    for i, c in enumerate([*THRESHOLDS, None], 1):
        label = f"{LABELS[args.constraint]}, c = {c:g}" if c else PENALTY
        norms[label], weights[label] = train(args, c, i)
    print("From layer to layer, going back, the gradient norm is multiplied by")
    for label in norms:
        print(f"  10^{-slope(norms[label]):+.3f} under {label}")
    if args.constraint == "clip":
        shares = [(w.abs() >= 0.99 * c).double().mean() for w, c in zip(weights.values(), THRESHOLDS)]
        texts = [f"{share:.1%} of the weights at c = {c:g}" for share, c in zip(shares, THRESHOLDS)]
        print("Within 1% of -c or c are " + ", ".join(texts))
    table = zip(range(1, args.depth + 1), *norms.values())
    runs.write_csv(f"{args.out}/gradient_norms.csv", ["layer", *norms], table)
    runs.write(f"{args.out}/figure.png", draw_figure(norms, weights))
    print(f"done: {args.out}/figure.png, numbers in gradient_norms.csv")


def generator(args):
    """Return G, its latent sampler and None: points need no conversion. sample.py uses it."""
    G = models.toy_generator(args.dim, args.depth).to(args.device)
    return G, lambda m: torch.randn(m, 2, device=args.device), None


def train(args, c, number):
    """Train a WGAN, with the penalty if c is None. Return each layer's gradient norm, and D's weights."""
    name, method = "penalty", wgan_gp.WGAN_GP
    if c:
        name, method = f"{args.constraint}-{c:g}", wgan_gp.METHODS["wgan"]
    args = runs.part(args, name)

    # data and networks
    layers = [f"layer_{i}" for i in range(1, args.depth + 1)]
    run = runs.Run(args, columns=layers, label=f"{number}/4 {name}")
    batches = data.toy_batches(data.swiss_roll, args.batch_size, args.device)
    G, latents, _ = generator(args)
    D = models.toy_critic(args.dim, args.depth)
    if c and args.batch_norm:
        for i in range(args.depth):
            D.insert(3 * i + 1, models.batch_norm(args.dim, flat=True))  # before each ReLU
    D.to(args.device)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    if c:
        method = constrain(D, opt_D, args.constraint, c)

    # resume or start, and train
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    for step in wgan_gp.train(G, D, batches, latents, opt_G, opt_D, method, args.iterations, start, args.seed):
        measured = {}
        if run.every(args.measure_every, step, when_stopped=False):
            with run.clock_stopped():
                x = data.swiss_roll(2_048, args.device)
                x_tilde = wgan_gp.sample(G, latents, len(x), len(x))
                measured = dict(zip(layers, gradient_norms(D, x, x_tilde)))
        run.log(step, **measured)
        run.checkpoint(step)

    # average over the second half
    run.finish()
    log = runs.read_log(run.out)
    half = log["iteration"] >= args.iterations / 2
    weights = [w.detach().flatten().cpu() for w in D.parameters() if w.dim() == 2]
    return [geometric_mean(log[layer][half]) for layer in layers], torch.cat(weights)


# ---- the constraints of Section 3 ----

def constrain(D, opt_D, constraint, c):
    """Put a constraint on D. Return the method to train it with."""
    method = wgan_gp.METHODS["wgan"]._replace(clip=0)
    if constraint == "clip":
        return method._replace(clip=c)
    if constraint in DECAYS:
        size = DECAYS[constraint]
        return method._replace(critic_term=lambda D, x: c * sum(size(w).sum() for w in D.parameters()))
    opt_D.register_step_post_hook(lambda *_: rescale(D, constraint, c))
    return method


@torch.no_grad()
def rescale(D, constraint, c):
    """Scale the root mean square of each tensor down to c, or for "weight-norm" that of each unit to c.

    This is weight normalization with fixed gains. A learned gain would be no constraint.
    """
    for w in D.parameters():
        if constraint == "l2-clip":
            w *= c / w.square().mean().sqrt().clamp(min=c)
        elif w.dim() == 2:  # no biases
            w *= c / w.square().mean(dim=1, keepdim=True).sqrt()


# ---- measurements and the figure ----

def gradient_norms(D, x, x_tilde):
    """Return, for each ReLU of D, the norm of the gradient of the summed scores with respect to its output.

    The mean over the examples x (m, 2) and x_tilde (m, 2), in float64. They pass D separately, as in
    training. With batch norm a score depends on the other examples too, so the gradient at one example
    sums over the scores of its batch, as in the loss. The terms can cancel.
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
    """Return the geometric mean of the numbers above 0, or 0 if there are none."""
    values = values[np.nan_to_num(values) > 0]
    return np.exp(np.log(values).mean()) if len(values) else 0.0


def slope(norms):
    """Return the slope of the line that fits log10(norm) best, NaN without two norms above 0."""
    layers = np.flatnonzero(norms)
    if len(layers) < 2:
        return math.nan
    return np.polyfit(layers, np.log10(np.array(norms)[layers]), 1)[0]


def draw_figure(norms, weights):
    """Draw gradient norms by layer and two histograms of weights. Both arguments: {label: values}."""
    layers = range(1, len(norms[PENALTY]) + 1)
    left = plots.line_chart({label: (layers, values) for label, values in norms.items()},
                            "gradients of the critic loss", "discriminator layer",
                            "gradient norm (log scale)", log_y=True, size=(560, 420))
    right = []
    for label in [list(norms)[1], PENALTY]:  # c = 0.01, as in the paper's figure
        w = weights[label]
        bulk = 1.05 * np.quantile(w.abs().numpy(), 0.999)  # a few of the first layer are far out
        right.append([plots.histogram(w, 60, label, "weights", (380, 200), x_range=(-bulk, bulk))])
    return plots.beside([[left, plots.beside(right, gap=6)]])


if __name__ == "__main__":
    runs.main(main)
