"""Figure 5(b), Section 5.6: critics that overfit 1,000 digits of MNIST. Also a GAN on all of MNIST.

    python train_mnist.py                      the figure: gradient penalty, then weight clipping
    python train_mnist.py --method wgan        one of the two alone
    python train_mnist.py --subset 0 --dim 16 --lr 1e-3 --beta1 0.5 --iterations 3000      digits in minutes

MNIST (11 MB) is downloaded to data/ if it is not there. The figure shows the negative critic loss on
training and on validation images, which part as the critic overfits, in the paper and in results/mnist.
The slopes, with their errors, are printed at the end. The digits: results/mnist-gan.

Both losses include the penalty, if any. Each is measured on at most 1,000 images, against the same
fresh samples. As in the authors' code the width is 64, and only clipping uses batch norm.
"""
from pathlib import Path

import numpy as np
import torch

import data
import fast
import models
import plots
import runs
import wgan_gp

LABELS = {"wgan-gp": "gradient penalty", "wgan": "weight clipping"}
MEASURED = 1_000  # images of each set that a loss is measured on, at most


def parse():
    parser = runs.flags(__doc__, data="mnist", iterations=None, batch_size=50, sample_every=500, threads=1)
    add = parser.add_argument
    add("--method", choices=LABELS, help="(default: both, with --subset 0 wgan-gp)")
    add("--subset", type=runs.whole(0, 60_001), default=1_000, metavar="N",
        help="random training images (Section 5.6: 1000), 0 for all 60,000")
    add("--dim", type=runs.whole(1, 65_536), default=64, help="width of both networks (default 64)")
    add("--beta1", type=runs.number(0, 1), default=0.0, help="Adam's (Algorithm 1: 0; authors' code: 0.5)")
    add("--lr", type=runs.number(1e-9), help="learning rate (default: that of the method, 1e-4 for Adam)")
    add("--measure-every", type=runs.whole(1), default=100, metavar="N",
        help="iterations between measurements of the losses (default 100)")
    args = fast.parse(parser)
    if args.data != "mnist":
        parser.error(f"--data {args.data}: for other images see train_cifar.py")
    if args.method == "wgan" and args.beta1:
        parser.error("--beta1 is Adam's, and wgan uses RMSProp")
    if not args.subset:
        args.method, args.iterations = args.method or "wgan-gp", args.iterations or 200_000  # authors' code
    args.iterations = args.iterations or 20_000
    name = {0: "mnist-all", 1_000: "mnist"}.get(args.subset, "mnist-{subset}")
    if args.method:
        name += "-{method}"
    args.out = args.out or runs.default_out(parser, args, name)
    return args


def main():
    args = parse()
    if args.method:
        finished = {args.method: train_one(args, args.method)}
    else:
        finished = {method: train_one(runs.part(args, method), method) for method in LABELS}
    if args.subset and all(run.first for run in finished.values()):
        logs = {method: runs.read_log(run.out) for method, run in finished.items()}
        describe(logs)
        runs.write(Path(args.out) / "figure.png", draw_figure(logs))
        print(f"done: {args.out}/figure.png")


def generator(args):
    """Return G, its latent sampler and the conversion of its output to bytes. sample.py uses it."""
    G = models.mnist_generator(args.dim, norm=args.method == "wgan").to(args.device)
    latents = lambda m: torch.randn(m, models.LATENT, device=args.device)
    return G, latents, data.unit_to_bytes


def train_one(args, name):
    """Train by the method of this name. Return the run."""
    args.method, method = name, wgan_gp.METHODS[name]
    if method.optimizer == "adam":
        method = method._replace(beta1=args.beta1)
    if args.lr:
        method = method._replace(lr=args.lr)
    runs.check_out(args)

    # data
    images, _ = data.mnist(args.data_dir)
    test, _ = data.mnist(args.data_dir, train=False)
    images = choose(images, args.subset or None, args.seed)
    measured_on = {"train_loss": choose(images, MEASURED, args.seed),
                   "held_out_loss": choose(test, MEASURED, args.seed)}
    how = args.batch_size, data.unit_from_bytes, args.device
    batches = data.batches(images, *how)
    charts = [("critic loss on both sets", {"train_loss": "training images", "held_out_loss": "held-out images"})]
    run = runs.Run(args, list(measured_on), charts, images, label=name)

    # networks
    G, latents, to_bytes = generator(args)
    D = models.mnist_critic(args.dim, norm="batch" if method.clip else None).to(args.device)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    fixed_z = latents(100)

    # resume or start, and train
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    train = fast.choose(args)
    for step in train(G, D, batches, latents, opt_G, opt_D, method, args.iterations, start, args.seed):
        measured = {}
        if run.every(args.measure_every, step):
            with run.clock_stopped():
                for column, some in measured_on.items():
                    torch.manual_seed(step.iteration)  # the same samples for both
                    in_order = data.in_order(some, *how)
                    measured[column], _, _ = wgan_gp.held_out_loss(G, D, in_order, latents, method)
        if run.every(args.sample_every, step):
            with run.clock_stopped():
                run.save_images(step, wgan_gp.sample(G, lambda m: fixed_z, 100, convert=to_bytes), columns=10)
        run.log(step, **measured)
        run.checkpoint(step)
    run.finish()
    return run


def choose(images, n, seed):
    """Return n of the images, drawn without replacement, or all if there are fewer."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]]


# ---- Figure 5(b) ----

def negative_losses(log):
    """Return {label: (iterations, negative critic losses)}, where the two were measured."""
    x, training, validation = log["iteration"], -log["train_loss"], -log["held_out_loss"]
    there = np.isfinite(validation)
    return {"training images": (x[there], training[there]), "validation images": (x[there], validation[there])}


def draw_figure(logs):
    """Draw a chart for each {method: log}."""
    charts = []
    for method, log in logs.items():
        raw = negative_losses(log)
        smoothed = {label: (x, plots.smooth(y, len(y) // 25)) for label, (x, y) in raw.items()}
        axes = LABELS[method], "generator iterations", "negative critic loss"
        charts.append(plots.line_chart(smoothed, *axes, pale=raw))
    return plots.beside([charts])


def slope(x, y, parts=10):
    """Return the slope of y over x and its standard error, by least squares through the means of parts.

    Neighbouring measurements are correlated, which would make the error too small.
    """
    x, y = ([part.mean() for part in np.array_split(values, parts)] for values in (x, y))
    (rise, _), covariance = np.polyfit(x, y, 1, cov=True)
    return rise, np.sqrt(covariance[0, 0])


def describe(logs):
    """Print the slopes of the curves in the second half of each run."""
    for method, log in logs.items():
        for label, (x, y) in negative_losses(log).items():
            half = x > x[-1] / 2
            if half.sum() >= 20:
                rise, error = slope(x[half] / 1_000, y[half])
                print(f"{LABELS[method]}, {label}: slope {rise:+.2g} ± {error:.1g} per 1,000 iterations")


if __name__ == "__main__":
    runs.main(fast.processes(main))
