"""Figure 5(b), Section 5.6: critics that overfit 1,000 digits of MNIST, and the plain MNIST GAN.

    python train_mnist.py                             the figure: the penalty (left), then clipping (right)
    python train_mnist.py --method wgan-gp            one of the two alone
    python train_mnist.py --subset 0                  a WGAN-GP on all of MNIST, with samples; or --method wgan

MNIST (11 MB) is looked for in data/ and downloaded if it is not there. The paper trains "large unregularized WGANs on
a random 1000-image subset": expect the negative critic losses on training and validation images to part under both
methods, and under the penalty the training curve to rise while the validation curve falls; the last line printed says
whether they did. What came out here, on which hardware, and in what time: results/mnist.

Where the paper is silent. "Large": the authors' MNIST networks, of width 64, whose critic has 1,000 weights for each
of the images; --dim 16 is many times faster. Iterations: 20,000 for the figure, as the curves begin to part
within the first 1,000, and the authors' 200,000 for all of MNIST. Both curves are measured alike, every --measure-every
iterations: the loss that the critic minimises, penalty included, over the whole subset and over 1,000 random images of
the test set, against the same fresh samples of the generator. Under clipping both networks have batch norm, as in the
authors' code; under the penalty neither has (D by Section 4, G by the authors' code).
"""
from pathlib import Path

import numpy as np
import torch

import data
import fast
import models
import runs
import wgan_gp

LABELS = {"wgan-gp": "gradient penalty", "wgan": "weight clipping"}
MEASURED = 1_000  # at most so many images of either set


def main():
    args = parse()
    args.out = args.out or (f"runs/mnist-{args.method}" if args.method else "runs/mnist")
    if args.method:
        logs = {args.method: train(args, args.method)}
    else:
        logs = {method: train(runs.part(args, method), method) for method in LABELS}
    if args.subset and runs.RANK == 0:
        draw_figure(Path(args.out), logs)
        report(logs)


def parse():
    parser = runs.flags(__doc__, data="mnist", iterations=None, batch_size=50)
    parser.add_argument("--method", choices=LABELS, help="(default: both; with --subset 0 wgan-gp)")
    parser.add_argument("--subset", type=runs.whole(0), default=1_000, metavar="N",
                        help="so many random images to train on (Section 5.6: 1000); 0: all 60,000")
    parser.add_argument("--dim", type=runs.whole(1), default=64, help="width of both networks (authors' code: 64)")
    parser.add_argument("--beta1", type=runs.number(0, 1), default=0.0, help="Adam's (Algorithm 1: 0; authors: .5)")
    parser.add_argument("--measure-every", type=runs.whole(1), default=100, metavar="N",
                        help="iterations between looks at training and validation images (default 100)")
    parser.add_argument("--sample-every", type=runs.whole(1), default=500, metavar="N",
                        help="iterations between pictures (default 500)")
    args = fast.parse(parser)
    if args.data != "mnist":
        parser.error(f"--data {args.data}: the networks are for mnist; train_cifar.py takes a folder of images")
    args.method = args.method or (None if args.subset else "wgan-gp")
    args.iterations = args.iterations or (20_000 if args.subset else 200_000)
    return args


def train(args, method_name):
    """Train one WGAN; returns its log."""
    method = wgan_gp.METHODS[method_name]
    if method.lam:
        method = method.with_beta1(args.beta1)
    runs.folder(args, args.out)
    with runs.one_first():
        images, _ = data.mnist(args.data_dir)
        held_out, _ = data.mnist(args.data_dir, train=False)
    images = choose(images, args.subset or len(images), args.seed)
    seen, held_out = (choose(some, min(MEASURED, len(some)), args.seed) for some in (images, held_out))
    batches = data.batches(images, runs.share(args.batch_size), data.unit_from_bytes, args.device)
    run = runs.Run(args, out=args.out, columns=["train_loss", "held_out_loss"], data=images,
                   charts=[("critic loss on training and on held-out images", ["train_loss", "held_out_loss"])])

    G = models.mnist_generator(args.dim, norm=bool(method.clip)).to(args.device)
    D = models.mnist_critic(args.dim, norm="batch" if method.clip else None).to(args.device)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    latents = lambda m: (torch.randn(m, models.LATENT, device=args.device),)
    fixed_z = torch.randn(100, models.LATENT, generator=torch.Generator().manual_seed(args.seed)).to(args.device)

    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    networks = fast.in_bfloat16(G, D) if args.bf16 else (G, D)
    for step in (fast if args.fast else wgan_gp).train(
            *networks, batches, latents, opt_G, opt_D, method,
            iterations=args.iterations, start=start, seed=runs.own_seed(args.seed)):
        last, measured = step.iteration == args.iterations, {}
        if run.first and (step.iteration % args.measure_every == 0 or last):
            with run.clock_stopped():
                for column, some in [("train_loss", seen), ("held_out_loss", held_out)]:
                    torch.manual_seed(step.iteration)  # the same samples for both, fresh ones each time
                    in_order = data.in_order(some, args.batch_size, data.unit_from_bytes, args.device)
                    measured[column], _, _ = wgan_gp.held_out_loss(G, D, in_order, latents, method)
        if run.first and (step.iteration % args.sample_every == 0 or last):
            with run.clock_stopped():
                x_tilde = wgan_gp.sample(G, lambda m: (fixed_z,), 100)
                grid = runs.image_grid(data.unit_to_bytes(x_tilde), columns=10)
                runs.save_png(grid, run.sample_path(step.iteration))
        run.log(step, **measured)
        run.checkpoint(step.iteration)
    log = run.read_log() if run.first else None
    run.finish()
    return log


def choose(images, n, seed):
    """n of the images, drawn at random without replacement, as the seed has it."""
    if n > len(images):
        raise runs.Mistake(f"there are {len(images)} images to choose from: lower --subset {n}", 2)
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]]


def negative_losses(log):
    """(iterations, negative critic loss on the training images, on the validation images), where they were measured."""
    there = np.isfinite(log["held_out_loss"])
    return log["iteration"][there], -log["train_loss"][there], -log["held_out_loss"][there]


def draw_figure(out, logs):
    """figure.png: a chart for each method."""
    charts = []
    for method, log in logs.items():
        iterations, training, validation = negative_losses(log)
        curves = {"training": (iterations, training), "validation": (iterations, validation)}
        window = max(len(iterations) // 25, 1)
        smoothed = {label: (x, runs.smooth(y, window)) for label, (x, y) in curves.items()}
        charts.append(runs.line_chart(smoothed, LABELS[method], "generator iterations", "negative critic loss",
                                      pale=curves))
    runs.save_png(runs.beside([charts]), out / "figure.png")
    print(f"drew {out / 'figure.png'}")


def trend(log):
    """(gap, rise, fall): training minus validation curve, the mean over the last tenth; and over the last half, how
    much the training and the validation curve go up in 1,000 iterations (the slopes of the lines that fit best)."""
    iterations, training, validation = negative_losses(log)
    gap = (training - validation)[-max(len(iterations) // 10, 1):].mean()
    half = iterations >= iterations[-1] / 2
    if half.sum() < 2:
        return gap, np.nan, np.nan
    return gap, *(1_000 * np.polyfit(iterations[half], curve[half], 1)[0] for curve in (training, validation))


def report(logs):
    """Print whether the curves do what Section 5.6 says."""
    claims = []
    for method, log in logs.items():
        gap, rise, fall = trend(log)
        if np.isnan(rise):
            print("too short a run to say whether the curves part")
            return
        print(f"{LABELS[method]}: training is {gap:.3g} above validation at the end; in the last half training went "
              f"{rise:+.3g}, validation {fall:+.3g} per 1,000 iterations")
        claims.append(f"{LABELS[method]}: the curves {'part' if gap > 0 and rise > fall else 'do not part'}")
        if method == "wgan-gp":
            claims.append(f"training {'rises' if rise > 0 else 'does not rise'}, "
                          f"validation {'falls' if fall < 0 else 'does not fall'}")
    print("Section 5.6: " + "; ".join(claims))


if __name__ == "__main__":
    runs.main(main)
