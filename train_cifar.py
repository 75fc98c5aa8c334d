"""Figure 3, Section 5.3: a DCGAN on CIFAR-10 under the paper's methods, and its Inception score during training.

    python train_cifar.py                             WGAN-GP with Adam: Algorithm 1 with the paper's defaults
    python train_cifar.py --method wgan               weight clipping; also wgan-gp-rmsprop, dcgan, lsgan, dcgan-gp
    python train_cifar.py --figure                    Figure 3 from the runs found: over iterations, and over time
    python train_cifar.py --data shapes               no download: 32x32 drawings; or --data FOLDER of your images

CIFAR-10 (170 MB) and the Inception network (95 MB) are looked for in data/ and downloaded if they are not there.
The authors train for 200,000 iterations, and the paper finds that WGAN-GP scores far above clipping, with the same
optimiser too, and about as DCGAN, but steadier. What came out here, on which hardware, and in what time: results/cifar.
Width 64 (--dim): the authors' code has 128, with the remark that it overfits and 64 does better. dcgan-gp, the penalty
on the standard GAN loss, is from Section 6.
"""
from pathlib import Path

import numpy as np
import torch

import data
import fast
import inception
import models
import runs
import wgan_gp

FIGURE_3 = {"wgan": "weight clipping", "wgan-gp-rmsprop": "gradient penalty (RMSProp)",
            "wgan-gp": "gradient penalty (Adam)", "dcgan": "DCGAN"}


def main():
    args = parse()
    if args.figure:
        draw_figure(Path(args.out or "runs"))
    else:
        train(args)


def parse():
    parser = runs.flags(__doc__, data="cifar10", iterations=200_000, batch_size=64)
    parser.add_argument("--method", choices=wgan_gp.METHODS, default="wgan-gp", help="the training method (Section 5.3)")
    parser.add_argument("--figure", action="store_true", help="draw Figure 3 from the runs in --out (default runs)")
    parser.add_argument("--dim", type=runs.whole(1), default=64,
                        help="width of both networks (default 64, which the authors' code calls better than its 128)")
    parser.add_argument("--norm", choices=["auto", "none", "batch", "layer"], default="auto",
                        help="normalisation in D (default: none with a penalty, Section 4; otherwise batch)")
    parser.add_argument("--beta1", type=runs.number(0, 1), help="Adam's (Algorithm 1: 0; the authors' code: .5)")
    parser.add_argument("--sample-every", type=runs.whole(1), default=500, metavar="N",
                        help="iterations between pictures, and between looks at the held-out images (default 500)")
    parser.add_argument("--score-every", type=runs.whole(0), default=1_000, metavar="N",
                        help="iterations between Inception scores (default 1000; 0: never)")
    parser.add_argument("--score-samples", type=runs.whole(10), default=1_000, metavar="N",
                        help="samples scored each time (default 1000, as in the authors' code)")
    parser.add_argument("--final-samples", type=runs.whole(10), default=50_000, metavar="N",
                        help="samples scored after the last iteration (default 50000)")
    parser.add_argument("--inception", metavar="FILE", help="the Inception weights (default: in --data-dir)")
    args = fast.parse(parser)
    if args.beta1 is not None and args.method not in wgan_gp.ADAM:
        parser.error(f"--beta1 is Adam's, and {args.method} uses RMSProp")
    return args


def train(args):
    """One curve of Figure 3: Algorithm 1 by one method, with pictures, held-out loss and scores."""
    method = wgan_gp.METHODS[args.method].with_beta1(args.beta1)
    # No batch norm where there is a penalty: it would tie the examples of a batch to each other (Section 4).
    norm = args.norm if args.norm != "auto" else "none" if method.lam else "batch"
    norm = None if norm == "none" else norm
    name = "cifar" if args.data == "cifar10" else Path(args.data).resolve().name
    out = runs.folder(args, f"runs/{name}-{args.method}")
    with runs.one_first():
        images, _ = data.images(args.data, args.data_dir, size=32, cache_dir=out)
        held_out, _ = data.images(args.data, args.data_dir, size=32, train=False, cache_dir=out)
    batches = data.batches(images, runs.share(args.batch_size), data.from_bytes, args.device, resident=args.fast)
    scores = args.score_every and runs.RANK == 0
    net = inception.load_or_warn(args.data_dir, args.inception, args.device) if scores else None
    run = runs.Run(args, out, columns=[
        "held_out_loss", "held_out_wasserstein", "inception_score", "inception_deviation", "samples_scored",
        "final_score", "final_deviation", "final_samples"], data=images,
        charts=[("Inception score", ["inception_score", "final_score"])])
    G, D = models.cifar_generator(args.dim).to(args.device), models.cifar_critic(args.dim, norm).to(args.device)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    latents = lambda m: (torch.randn(m, models.LATENT, device=args.device),)
    fixed_z = torch.randn(100, models.LATENT, generator=torch.Generator().manual_seed(args.seed)).to(args.device)

    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    networks = fast.in_bfloat16(G, D) if args.bf16 else (G, D)
    for step in (fast if args.fast else wgan_gp).train(
            *networks, batches, latents, opt_G, opt_D, method,
            iterations=args.iterations, start=start, seed=runs.own_seed(args.seed)):
        last, measured = step.iteration == args.iterations, {}
        if run.first and (step.iteration % args.sample_every == 0 or last):
            with run.clock_stopped():
                everything = data.in_order(held_out, args.batch_size, data.from_bytes, args.device)
                loss, wasserstein, _ = wgan_gp.held_out_loss(G, D, everything, latents, method)
                measured.update(held_out_loss=loss, held_out_wasserstein=wasserstein)
                x_tilde = wgan_gp.sample(G, lambda m: (fixed_z,), 100)
                runs.save_png(runs.image_grid(data.to_bytes(x_tilde), columns=10), run.sample_path(step.iteration))
        if net and (step.iteration % args.score_every == 0 or last):
            with run.clock_stopped():
                mean, deviation = score(G, latents, args.score_samples, net)
                measured.update(inception_score=mean, inception_deviation=deviation, samples_scored=args.score_samples)
                if last:  # many samples score higher than few, so this is no point of the curve
                    mean, deviation = score(G, latents, args.final_samples, net)
                    measured.update(final_score=mean, final_deviation=deviation, final_samples=args.final_samples)
        run.log(step, **measured)
        run.checkpoint(step.iteration)
    run.finish()


def score(G, latents, n, net):
    """The Inception score of n samples, and its deviation over 10 splits."""
    return inception.inception_score(wgan_gp.sample(G, latents, n, convert=data.to_bytes), net)


def draw_figure(folder):
    """Figure 3 from the logs of runs in `folder`; below it, how far their critics hold real and generated apart."""
    logs = {label: runs.read_log(folder / f"cifar-{method}") for method, label in FIGURE_3.items()
            if (folder / f"cifar-{method}" / "log.csv").exists()}
    if not logs:
        raise runs.Mistake(f"no run called cifar-<method> in {folder}: train some first, or say where with --out")
    rows = []
    for column, title, log_y in [("inception_score", "Inception score", False),
                                 ("wasserstein", "mean D(x) - mean D(G(z))", True)]:
        measured = {label: np.isfinite(log[column]) for label, log in logs.items()}
        if not any(there.any() for there in measured.values()):
            continue  # trained without the Inception weights
        over = lambda x, scale: {label: (log[x][measured[label]] * scale, log[column][measured[label]])
                                 for label, log in logs.items()}
        rows.append([runs.line_chart(over("iteration", 1), title, "generator iterations", log_y=log_y),
                     runs.line_chart(over("seconds", 1 / 3600), title, "wall-clock time (hours)", log_y=log_y)])
    if not rows:
        raise runs.Mistake(f"the runs in {folder} have not logged anything yet: let them run for a while")
    runs.save_png(runs.beside(rows), folder / "figure3.png")
    scored = sum(np.isfinite(log["inception_score"]).any() for log in logs.values())
    print(f"drew {len(logs)} of 4 runs, {scored} of them with Inception scores: {folder / 'figure3.png'}")


if __name__ == "__main__":
    runs.main(main)
