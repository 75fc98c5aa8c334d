"""Figure 3, Section 5.3: a DCGAN on CIFAR-10, trained by each of the paper's methods.

    python train_cifar.py                   WGAN-GP with Adam: Algorithm 1 with the paper's defaults
    python train_cifar.py --method wgan     weight clipping; also wgan-gp-rmsprop, dcgan, lsgan, dcgan-gp
    python train_cifar.py --figure          Figure 3 from the runs in runs/, of one seed or several
    python train_cifar.py --data shapes     no download: drawings; or --data FOLDER for your own images

CIFAR-10 (170 MB) and the Inception weights (95 MB) are downloaded to data/ if they are not there.
The authors train for 200,000 iterations. The paper finds that WGAN-GP scores far above weight clipping,
with the same optimizer too, and about as high as DCGAN, which is faster but less stable.
Our runs: results/cifar.
"""
from pathlib import Path

import numpy as np
import torch

import data
import fast
import inception
import models
import plots
import runs
import wgan_gp

FIGURE_3 = {"wgan": "weight clipping", "wgan-gp-rmsprop": "gradient penalty (RMSProp)",
            "wgan-gp": "gradient penalty (Adam)", "dcgan": "DCGAN"}
COLUMNS = ["held_out_loss", "held_out_wasserstein", "inception_score", "inception_deviation",
           "final_score", "final_deviation"]
CHARTS = [("Inception score", {"inception_score": "inception score", "final_score": "final score"})]


def parse():
    parser = runs.flags(__doc__, data="cifar10", iterations=200_000, batch_size=64, sample_every=500)
    add = parser.add_argument
    add("--method", choices=wgan_gp.METHODS, default="wgan-gp", help="(default wgan-gp, Algorithm 1)")
    add("--dim", type=runs.whole(1), default=64,
        help="width (default 64, which the authors' code calls better than its 128)")
    add("--norm", choices=["none", "batch", "layer"],
        help="in D (default: none with a penalty, Section 4; else batch, authors' code)")
    add("--beta1", type=runs.number(0, 1), help="Adam's (Algorithm 1: 0; authors' code: 0.5)")
    add("--score-every", type=runs.whole(0), default=1_000, metavar="N",
        help="iterations between Inception scores (default 1000, authors' code; 0: never)")
    add("--score-samples", type=runs.whole(10), default=1_000, metavar="N",
        help="samples per score (default 1000, authors' code)")
    add("--final-samples", type=runs.whole(10), default=50_000, metavar="N",
        help="samples of one more score at the end (default 50000, as for Table 3)")
    add("--inception", metavar="FILE", help="the Inception weights (default: in --data-dir)")
    add("--figure", action="store_true", help="draw Figure 3 from the runs in --out (default runs)")
    args = fast.parse(parser)
    if args.beta1 is not None and wgan_gp.METHODS[args.method].optimizer != "adam":
        parser.error(f"--beta1 is Adam's, and {args.method} uses RMSProp: leave it out")
    if not args.figure:
        args.out = args.out or runs.default_out(parser, args, "{data}-{method}", ["dim", "norm", "beta1"])
    return args


def generator(args):
    """Return G, its latent sampler and the conversion of its output to bytes. sample.py uses it."""
    G = models.cifar_generator(args.dim).to(args.device)
    latents = lambda m: torch.randn(m, models.LATENT, device=args.device)
    return G, latents, data.to_bytes


def main():
    args = parse()
    if args.figure:
        return draw_figure(Path(args.out or "runs"))

    # data, and the network that scores samples
    runs.check_out(args)
    images, _ = data.images(args.data, args.data_dir, size=32, leave_out=args.out)
    held_out, _ = data.images(args.data, args.data_dir, size=32, train=False, leave_out=args.out)
    how = args.batch_size, data.from_bytes, args.device
    batches = data.batches(images, *how)
    net = inception.load_or_warn(args.data_dir, args.inception, args.device) if args.score_every else None
    run = runs.Run(args, COLUMNS, CHARTS, images)

    # method and networks. The gradient penalty needs a D without batch norm (Section 4)
    method = wgan_gp.METHODS[args.method]
    if args.beta1 is not None:
        method = method._replace(beta1=args.beta1)
    norm = args.norm or ("none" if method.lam else "batch")
    if method.lam and norm == "batch":
        runs.say("warning: a gradient penalty needs a critic without batch norm (Section 4)")
    G, latents, to_bytes = generator(args)
    D = models.cifar_critic(args.dim, None if norm == "none" else norm).to(args.device)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    fixed_z = latents(100)
    score_of = lambda n: inception.inception_score(wgan_gp.sample(G, latents, n, convert=to_bytes), net)

    # resume or start, and train: Algorithm 1
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    train = fast.choose(args)  # wgan_gp.train, or the same on several GPUs, as CUDA graphs, in bfloat16
    for step in train(G, D, batches, latents, opt_G, opt_D, method, args.iterations, start, args.seed):
        measured = {}

        # every --sample-every iterations: the loss on held-out images, and samples of fixed latents
        if run.every(args.sample_every, step):
            with run.clock_stopped():
                in_order = data.in_order(held_out, *how)
                loss, wasserstein, _ = wgan_gp.held_out_loss(G, D, in_order, latents, method)
                measured.update(held_out_loss=loss, held_out_wasserstein=wasserstein)
                samples = wgan_gp.sample(G, lambda m: fixed_z, 100, convert=to_bytes)
                run.save_images(step, samples, columns=10)

        # less often, and not on Ctrl-C: the Inception score
        if net and run.every(args.score_every, step, when_stopped=False):
            with run.clock_stopped():
                score, deviation = score_of(args.score_samples)
                measured.update(inception_score=score, inception_deviation=deviation)
                if step.iteration == args.iterations:  # many samples score higher than few
                    score, deviation = score_of(args.final_samples)
                    measured.update(final_score=score, final_deviation=deviation)

        run.log(step, **measured)
        run.checkpoint(step)
    run.finish()


# ---- Figure 3 ----

def draw_figure(folder):
    """Draw Figure 3, and the Wasserstein estimates, from the runs cifar-METHOD and cifar-METHOD-seedN."""
    logs = {}
    for method, label in FIGURE_3.items():
        found = [*folder.glob(f"cifar-{method}/log.csv"), *folder.glob(f"cifar-{method}-seed*/log.csv")]
        seeds = [runs.read_log(path.parent, "wasserstein", "inception_score") for path in found]
        longest = max([len(log["wasserstein"]) for log in seeds], default=0)
        for log in seeds:
            n = len(log["wasserstein"])
            log["wasserstein"] = plots.smooth(log["wasserstein"], n // 100)
            if 2 * n >= longest > 0:  # not those just begun
                logs.setdefault(label, []).append(log)

    charts, colours = [], dict(zip(FIGURE_3.values(), plots.COLOURS))
    for column, title in {"inception_score": "Inception score",
                          "wasserstein": "mean D(x) - mean D(G(z)), smoothed"}.items():
        row = []
        for x, unit, x_label in [("iteration", 1, "generator iterations"), ("seconds", 3600, "hours of training")]:
            lines, band = {}, {}
            for label, seeds in logs.items():
                xs, ys = over_seeds(seeds, x, column)
                if len(xs):
                    lines[label] = xs / unit, ys.mean(axis=0)
                    band[label] = xs / unit, ys.min(axis=0), ys.max(axis=0)
            log_y = column == "wasserstein"
            row.append(plots.line_chart(lines, title, x_label, log_y=log_y, band=band, colours=colours))
        if lines:
            charts.append(row)
    if not charts:
        raise runs.Mistake(f"no run in {folder} is called cifar-METHOD and has a log: train some, or set --out")
    runs.write(folder / "figure3.png", plots.beside(charts))
    print(f"runs drawn: {sum(map(len, logs.values()))}; figure: {folder / 'figure3.png'}")


def over_seeds(logs, x, y):
    """Return the mean of column x over several runs, and column y of each, where all have measured y."""
    n = min(len(log[y]) for log in logs)  # a log has a row for each iteration
    xs, ys = (np.array([log[name][:n] for log in logs]) for name in (x, y))
    rows = np.flatnonzero(np.isfinite(ys).all(axis=0))
    rows = rows[::max(len(rows) // 500, 1)]  # enough for a picture
    return xs.mean(axis=0)[rows], ys[:, rows]


if __name__ == "__main__":
    runs.main(fast.processes(main))
