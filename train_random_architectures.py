"""Tables 1, 2, 5, Section 5.1, Appendices B to D: random architectures, as a GAN and with WGAN-GP.

    python train_random_architectures.py --index 17 --method gan   one run; also wgan-gp
    python train_random_architectures.py --list 200                the architectures, as in Table 1
    python train_random_architectures.py --commands 200            the commands of all 400 runs
    python train_random_architectures.py --table                   Tables 2, 5, Appendices C and D

The paper trains 200 both ways on 32x32 ImageNet and counts those above each Inception score.
Many pass only with WGAN-GP, hardly any only as a GAN. Our runs: results/random-architectures.
A run's result is NNN-METHOD.json in --out. Collect those of several machines in one folder.
Without Inception weights they have only our own measure, pixel_likeness.
"""
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import torch

import data
import inception
import models
import plots
import runs
import wgan_gp

SMOOTH = "softplus(2x+2)/2-1"
NONLINEARITIES = {"ReLU": models.ReLU, "LeakyReLU": models.LeakyReLU, SMOOTH: models.ShiftedSoftplus,
                  "tanh": torch.nn.Tanh, "elu": torch.nn.ELU, "softplus": models.ShiftedSoftplus}
CHOICES = {"Nonlinearity": ["ReLU", "LeakyReLU", SMOOTH, "tanh"], "Depth": [4, 8, 12, 20],
           "Batch norm": [True, False],  # in D, layer norm for WGAN-GP
           "Base filter count": [32, 64, 128]}
TABLE_1 = {f"{name} ({network})": values for name, values in CHOICES.items() for network in "GD"}
THRESHOLDS = {"inception_score": np.arange(1, 9.5, 0.5), "pixel_likeness": np.arange(-1, 10) / 10}
TABLE_5 = np.array([  # only GAN, only WGAN-GP, both, neither. Table 2 has every fourth row
    (0, 8, 192, 0), (0, 50, 150, 0), (0, 60, 140, 0), (0, 74, 125, 1), (1, 88, 110, 1), (0, 111, 86, 3),
    (1, 126, 67, 6), (0, 136, 55, 9), (0, 147, 42, 11), (0, 148, 32, 20), (0, 145, 21, 34),
    (1, 131, 11, 57), (1, 104, 5, 90), (2, 67, 3, 128), (1, 34, 0, 165), (0, 6, 0, 194), (0, 0, 0, 200)])
COMPARED = {"Appendix C": ("wgan-gp", "wgan-gp-one-sided"),  # paper: 100 to 77 of 174 (sic), p = 0.098
            "Appendix D": ("wgan-gp-softplus", "wgan-gp-elu")}
METHODS = {"gan": wgan_gp.METHODS["dcgan"], "wgan-gp": wgan_gp.WGAN_GP}  # Appendix B


def parse():
    parser = runs.flags(__doc__, data="data/imagenet32", iterations=100_000, batch_size=64, sample_every=5_000)
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("--index", type=runs.whole(0, 9_216), metavar="I", help="train this architecture (0 to 9215)")
    what("--list", type=runs.whole(1, 9_217), metavar="N", help="print the first N architectures")
    what("--commands", type=runs.whole(1, 9_217), metavar="N", help="print the commands for the first N")
    what("--table", action="store_true", help="print the tables, and draw figure.png in --out")
    add = parser.add_argument
    add("--method", choices=METHODS, help="how to train (with --commands, default: both)")
    add("--one-sided", action="store_true", help="the one-sided penalty (Appendix C)")
    add("--activation", choices=["elu", "softplus"], help="in both networks (Appendix D)")
    add("--divide-filters", type=int, choices=[1, 2, 4, 8, 16, 32], default=1, help="for small runs (default 1)")
    add("--score-samples", type=runs.whole(0), default=50_000, metavar="N",
        help="samples in the final Inception score (default 50000, as for Table 3; 0: no score)")
    add("--inception", metavar="FILE", help="the Inception weights (default: in --data-dir)")
    args = parser.parse_args()
    if args.one_sided:
        args.method = args.method or "wgan-gp"
    if args.index is not None and not args.method:
        parser.error("--index needs --method gan or --method wgan-gp")
    if args.one_sided and args.method == "gan":
        parser.error("--one-sided is about the penalty, and --method gan has none: leave it out")
    if 0 < args.score_samples < 10:
        parser.error("--score-samples: the score is a mean over 10 parts: choose 10 or more, or 0")
    return args


def main():
    args = parse()
    folder = Path(args.out or f"runs/random-architectures-{Path(args.data).resolve().name}")
    if args.index is not None:
        train(args, folder)
    elif args.table:
        print_tables(folder)
    elif args.list:
        print("Index", *[f"{name:<18}" for name in TABLE_1])
        for i, row in enumerate(architectures(args.seed)[:args.list]):
            print(f"{i:<5}", *[f"{value!s:<{max(18, len(name))}}" for name, value in row.items()])
    else:
        both = itertools.product(range(args.commands), [args.method] if args.method else METHODS)
        runs.commands("train_random_architectures.py", [{"index": i, "method": method} for i, method in both])


def architectures(seed):
    """Return all architectures of Table 1, shuffled by `seed`: the first 200 are the sample."""
    everything = [dict(zip(TABLE_1, values)) for values in itertools.product(*TABLE_1.values())]
    draw = random.Random(seed)  # random() gives the same numbers in every version of Python
    return sorted(everything, key=lambda _: draw.random())


def settings(args, network):
    """Return width, depth, nonlinearity and whether there are norms, in the network "G" or "D"."""
    row = architectures(args.seed)[args.index]
    nonlinearity, depth, norm, filters = [row[f"{name} ({network})"] for name in CHOICES]
    return filters // args.divide_filters, depth, NONLINEARITIES[args.activation or nonlinearity], norm


def generator(args):
    """Return G, its latent sampler and the conversion of its output to bytes. sample.py uses it."""
    latents = lambda m: torch.randn(m, models.LATENT, device=args.device)
    return models.variant_generator(*settings(args, "G")).to(args.device), latents, data.to_bytes


def critic(args):
    """Return the critic, and the method that trains it."""
    *others, norm = settings(args, "D")
    method = METHODS[args.method]._replace(one_sided=args.one_sided)
    if norm:
        norm = {"gan": "batch", "wgan-gp": "layer"}[args.method]
        method = method._replace(critic_term=weight_decay)
    return models.variant_critic(*others, norm or None).to(args.device), method


def weight_decay(D, x):
    """Return Appendix B's addition to the critic loss. Its gradient is 1e-3 times each weight."""
    return 1e-3 / 2 * sum(w.square().sum() for w in D.parameters() if w.dim() > 1)  # no biases, no gains


def pixel_likeness(x, x_tilde):
    """Return how alike real and generated images (m, 3, 32, 32) are at 8x8 pixels: 1 - d/v.

    d: Frechet distance of Gaussians fitted to them. v: variance of the real ones. 0: always the mean.
    On CIFAR-10 other real images have 0.99, images of one colour 0.35, white noise 0.16.
    """
    x, x_tilde = [torch.nn.functional.avg_pool2d(images, 4).flatten(1) for images in (x, x_tilde)]
    return 1 - inception.fid(x, x_tilde) / x.var(0).sum().clamp(min=1e-9).item()


def train(args, folder):
    """Train one architecture, measure it and write its result."""
    parts = [f"{args.index:03d}", args.method, args.one_sided and "one-sided", args.activation,
             args.seed and f"seed{args.seed}"]
    name = "-".join(part for part in parts if part)
    path, args.out = folder / f"{name}.json", str(folder / name)
    if path.exists():
        if not args.resume:
            raise runs.Mistake(f"{path} is the result of this run: delete it, or choose another --out", 2)
        before = read_result(path)["settings"]
        if any(before.get(each) != getattr(args, each) for each in ("data", "batch_size", "divide_filters")):
            raise runs.Mistake(f"{path} has other data, batches or filters: choose another --out", 2)
        if before["iterations"] >= args.iterations:
            return runs.say(f"finished before: {path}")
    args.resume = args.resume and Path(args.out, "checkpoint.pt").exists()

    # data, and the network that scores
    runs.check_out(args)
    if args.data == "data/imagenet32" and not Path(args.data).is_dir():
        raise runs.Mistake("no folder data/imagenet32: get it from image-net.org, or set --data cifar10")
    images, _ = data.images(args.data, args.data_dir, size=32, leave_out=folder)
    batches = data.batches(images, args.batch_size, data.from_bytes, args.device)
    net = inception.load_or_warn(args.data_dir, args.inception, args.device) if args.score_samples else None

    # networks
    run = runs.Run(args, data=images)
    G, latents, to_bytes = generator(args)
    D, method = critic(args)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    fixed_z = latents(100)
    result = {"diverged": False, "inception_score": None, "pixel_likeness": None}

    # resume or start, and train
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    try:
        for step in wgan_gp.train(G, D, batches, latents, opt_G, opt_D, method, args.iterations, start, args.seed):
            if run.every(args.sample_every, step):
                with run.clock_stopped(), torch.no_grad():
                    run.save_images(step, to_bytes(G(fixed_z)), columns=10)
            run.log(step)
            run.checkpoint(step)
    except runs.Diverged:
        result["diverged"] = True
    run.finish()

    # measure, and write the result
    if not result["diverged"]:
        torch.manual_seed(args.seed)  # a resumed run draws the same samples
        x = next(data.batches(images, min(2_000, len(images)), data.from_bytes, args.device))
        result["pixel_likeness"] = pixel_likeness(x, wgan_gp.sample(G, latents, len(x)))
        if net:
            samples = wgan_gp.sample(G, latents, args.score_samples, convert=to_bytes)
            result["inception_score"], result["inception_deviation"] = inception.inception_score(samples, net)
    result.update(architecture=architectures(args.seed)[args.index], settings=vars(args), seconds=run.seconds)
    runs.write(path, json.dumps(result, indent=1) + "\n")
    runs.say(f"done: {path}")


def read_result(path):
    """Return a result. The measures of a run that diverged are minus infinity: above no threshold."""
    try:
        result = json.loads(path.read_text("utf-8"))
        np.array([result["settings"]["iterations"], *map(result.get, THRESHOLDS)], float)  # are they numbers?
        return result | dict.fromkeys(THRESHOLDS if result["diverged"] else (), -math.inf)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise runs.Mistake(f"{path} is damaged: delete it, and run it again") from None


def sign_test(wins, losses):
    """Return the exact two-sided p-value of a sign test."""
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2 ** n)


def print_tables(folder):
    """Print the tables of the results in `folder`, and draw figure.png there."""
    results, pictures = {}, []
    for path in sorted(folder.glob("[0-9]*-*.json")):
        index, _, variant = path.stem.partition("-")
        results.setdefault(variant, {})[index] = read_result(path)
    if not results:
        raise runs.Mistake(f"there are no results in {folder}: train some first, or set --out")
    for variant, some in results.items():
        diverged = [index for index, result in some.items() if result["diverged"]]
        print(f"{variant}: {len(some)} runs, diverged: {' '.join(diverged) or 'none'}")

    def paired(first, second):  # the numbers of the architectures for which both variants have one
        first, second = results.get(first, {}), results.get(second, {})
        pairs = [(first[i].get(measure), second[i].get(measure)) for i in first.keys() & second.keys()]
        pairs = np.array(pairs, float).reshape(-1, 2)
        return pairs[~np.isnan(pairs).any(1)].T

    for measure in THRESHOLDS:
        gan, penalised = paired("gan", "wgan-gp")
        print(f"\n{measure}: {len(gan)} architectures both ways")
        if len(gan):
            pictures.append(compare(gan, penalised, measure))
        for appendix, (first, second) in COMPARED.items():
            a, b = paired(first, second)
            wins, losses = int((a > b).sum()), int((a < b).sum())
            if len(a):
                print(f"{appendix}: {first} is above {second} in {wins} of {len(a)} architectures, "
                      f"below in {losses}, sign test p = {sign_test(wins, losses):.3g}")
    if pictures:
        runs.write(folder / "figure.png", plots.beside([pictures]))
        print(f"drew {folder}/figure.png")


def compare(gan, penalised, measure):
    """Print the outcomes at each threshold, and draw the share of architectures above it."""
    thresholds, curves = THRESHOLDS[measure], {}
    a, b = gan > thresholds[:, None], penalised > thresholds[:, None]
    counts = {"": np.stack([a & ~b, b & ~a, a & b, ~a & ~b], 1).sum(2)}
    if measure == "inception_score":
        print("Tables 2 and 5: on the right the paper's, of 200")
        counts["the paper's "] = TABLE_5
    print("    above" + "  only GAN   only GP      both   neither" * len(counts))
    for row in zip(thresholds, *counts.values()):
        print(" ".join(f"{n:>9g}" for n in np.hstack(row)))
    for whose, rows in counts.items():
        only_gan, only_gp, both, _ = rows.T / rows[0].sum()
        curves |= {f"{whose}GAN": (thresholds, only_gan + both), f"{whose}WGAN-GP": (thresholds, only_gp + both)}
    return plots.line_chart(curves, "share of architectures above", measure.replace("_", " "), y_range=(0, 1))


if __name__ == "__main__":
    runs.main(main)
