"""Table 3, Section 5.4, Appendices F and G: the CIFAR-10 ResNet, unsupervised and conditional.

    python train_cifar_resnet.py                  unsupervised: the paper scores 7.86 +- .07
    python train_cifar_resnet.py --conditional    with labels, AC-GAN: 8.42 +- .10
    python train_cifar_resnet.py --table          Table 3 from the runs in runs/, of one seed or several
    python train_cifar_resnet.py --data shapes    no download: drawings, with labels too

100,000 iterations of Adam 2e-4 (0, 0.9), decayed linearly to 0. The critic takes 5 steps on 64 images
each, then the generator one on 128 (authors' code; Appendix F: 64). Conditional samples have a class
per column, as in Figure 6. The paper does not say whether its scores are of the last iteration or of
the best. --table has both. Our runs: results/cifar-resnet.
"""
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
import fast
import inception
import models
import runs
import wgan_gp

SCORE = ["inception_score", "inception_deviation", "samples_scored"]
COLUMNS = ["held_out_loss", "held_out_wasserstein", "accuracy_real", "accuracy_generated", *SCORE]
CHARTS = [("classification accuracy", {"accuracy_real": "accuracy real", "accuracy_generated": "accuracy generated"}),
          ("Inception score", {"inception_score": "inception score"})]


def parse():
    parser = runs.flags(__doc__, data="cifar10", iterations=100_000, batch_size=64, sample_every=500)
    add = parser.add_argument
    add("--conditional", action="store_true", help="labels for both networks, AC-GAN (Section 5.4)")
    add("--generator-batch", type=runs.whole(2), default=128, metavar="N",
        help="examples in the generator's batch (default 128, authors' code; Appendix F: 64)")
    add("--dim", type=runs.whole(1), default=128, help="width (default 128, Appendix F)")
    add("--score-every", type=runs.whole(0), default=5_000, metavar="N",
        help="iterations between Inception scores (default 5000; authors' code: 1000; 0: never)")
    add("--score-samples", type=runs.whole(10), default=50_000, metavar="N",
        help="samples per score (default 50000, authors' code)")
    add("--inception", metavar="FILE", help="the Inception weights (default: in --data-dir)")
    add("--table", action="store_true", help="print Table 3 from the runs in --out (default runs)")
    args = fast.parse(parser)
    if not args.table:
        name = "{data}-resnet-conditional" if args.conditional else "{data}-resnet"
        args.out = args.out or runs.default_out(parser, args, name, ["generator_batch", "dim"])
    return args


def generator(args):
    """Return G, its latent sampler and the conversion of its output to bytes. sample.py uses it."""
    G = models.CifarResNetGenerator(args.dim, args.conditional).to(args.device)

    def latents(m):
        z = torch.randn(m, models.LATENT, device=args.device)
        if not args.conditional:
            return z
        return z, torch.randint(10, (m,), device=args.device)

    return G, latents, partial(data.to_bytes, top=255.99)


# AC-GAN's two terms, weighted as in the authors' code. D learns the classes from real images only.
# G learns to make images that D puts into the class they were made for.

def critic_term(D, x, y):
    """Return what is added to the critic loss. x: real (m, 3, 32, 32), y: their classes (m,)."""
    return F.cross_entropy(D.classify(x), y)


def generator_term(D, x_tilde, y):
    """Return what is added to the generator loss. x_tilde: generated, y: the classes asked for."""
    return 0.1 * F.cross_entropy(D.classify(x_tilde), y)


def in_halves(G):
    """Return G with each batch in two halves, so that its batch norm sees half as many images.

    The authors' code splits training batches over two "devices", even on one GPU, but not samples.
    """
    return lambda *z: torch.cat([G(*half) for half in zip(*[part.chunk(2) for part in z])])


def main():
    args = parse()
    if args.table:
        return print_table(Path(args.out or "runs"))
    if args.conditional and args.data not in ("cifar10", "shapes"):
        raise runs.Mistake(f"{args.data} has no labels: leave out --conditional, or use cifar10 or shapes")

    # data, and the network that scores samples
    runs.check_out(args)
    images, labels = data.images(args.data, args.data_dir, size=32, leave_out=args.out)
    held_out, held_out_labels = data.images(args.data, args.data_dir, size=32, train=False, leave_out=args.out)
    if not args.conditional:
        labels = held_out_labels = None
    batches = data.batches(images, args.batch_size, data.from_bytes_noisy, args.device, labels)
    in_order = lambda m: data.in_order(held_out, m, data.from_bytes_noisy, args.device, held_out_labels)
    net = inception.load_or_warn(args.data_dir, args.inception, args.device) if args.score_every else None
    run = runs.Run(args, COLUMNS, CHARTS, images, decays=True)

    # method and networks
    method = wgan_gp.WGAN_GP._replace(lr=2e-4)  # at first (Appendix F)
    if args.conditional:
        method = method._replace(critic_term=critic_term, generator_term=generator_term)
    G, latents, to_bytes = generator(args)
    D = models.CifarResNetCritic(args.dim, args.conditional).to(args.device)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    fixed = latents(100)
    if args.conditional:
        fixed = fixed[0], torch.arange(10, device=args.device).repeat(10)  # a class per column

    # resume or start, and train: Algorithm 1
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    train = fast.choose(args)
    for step in train(in_halves(G), D, batches, latents, opt_G, opt_D, method, args.iterations, start, args.seed,
                      decay=True, generator_batch=args.generator_batch):
        measured = {}

        # every --sample-every iterations: the loss on held-out images, and samples of fixed latents
        if run.every(args.sample_every, step):
            with run.clock_stopped():
                loss, wasserstein, _ = wgan_gp.held_out_loss(G, D, in_order(args.batch_size), latents, method)
                measured.update(held_out_loss=loss, held_out_wasserstein=wasserstein)
                samples = wgan_gp.sample(G, lambda m: fixed, 100, convert=to_bytes)
                run.save_images(step, samples, columns=10)
                if args.conditional:
                    measured.update(accuracies(G, D, next(in_order(1_000)), latents(1_000)))

        # less often, and not on Ctrl-C: the Inception score
        if net and run.every(args.score_every, step, when_stopped=False):
            with run.clock_stopped():
                samples = wgan_gp.sample(G, latents, args.score_samples, convert=to_bytes)
                score, deviation = inception.inception_score(samples, net)
                measured.update(inception_score=score, inception_deviation=deviation, samples_scored=len(samples))

        run.log(step, **measured)
        run.checkpoint(step)
    run.finish()


@torch.no_grad()
def accuracies(G, D, real, latents):
    """Return the shares of real images (x, y) and of generated ones that D puts into their class."""
    (x, y), (z, y_tilde) = real, latents
    right = D.classify(x).argmax(1) == y
    right_tilde = D.classify(G(z, y_tilde)).argmax(1) == y_tilde
    return {"accuracy_real": right.float().mean().item(),
            "accuracy_generated": right_tilde.float().mean().item()}


# ---- Table 3 ----

def print_table(folder):
    """Print Table 3 from the runs cifar-resnet[-conditional], and those with -seedN."""
    row = "{:<14}{:>5}{:>18}{:>9}   {:<15}{:<15}{}".format
    print(row("", "seeds", "iterations", "samples", "last score", "best score", "paper"))
    used = set()
    for method, name, paper in [("unsupervised", "cifar-resnet", "7.86 +- .07"),
                                ("conditional", "cifar-resnet-conditional", "8.42 +- .10")]:
        last, best = [], []
        for path in [*folder.glob(f"{name}/log.csv"), *folder.glob(f"{name}-seed*/log.csv")]:
            log = runs.read_log(path.parent, *SCORE)
            scores = np.stack([log[column] for column in ["iteration", *SCORE]], axis=1)
            scores = scores[np.isfinite(scores).all(axis=1)]
            if len(scores):
                used.add(path.parent)
                last.append(scores[-1])
                best.append(scores[scores[:, 1].argmax()])
        if last:
            iterations, *_, samples = np.transpose(last)
            length = " to ".join(f"{n:,.0f}" for n in np.unique([iterations.min(), iterations.max()]))
            print(row(method, len(last), length, f"{samples.min():,.0f}", mean(last), mean(best), paper))
        else:
            print(row(method, 0, "-", "-", "-", "-", paper))
    print(f"from the logs in {folder}. +-: standard deviation over seeds, or over 10 parts for one seed")
    mine = [path.parent for path in folder.glob("*/config.json") if b"train_cifar_resnet.py" in path.read_bytes()]
    others = sorted(run.name for run in mine if run not in used)
    if others:
        print(f"left out, as they have no score yet or another name: {', '.join(others)}")


def mean(scores):
    """Return the mean of several seeds' scores and its deviation, or one seed's score and its own."""
    _, value, deviation, _ = np.mean(scores, axis=0)
    if len(scores) > 1:
        deviation = np.std(scores, axis=0, ddof=1)[1]
    return f"{value:.2f} +- {deviation:.2f}"


if __name__ == "__main__":
    runs.main(fast.processes(main))
