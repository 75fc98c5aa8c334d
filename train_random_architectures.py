"""Tables 1, 2 and 5, Section 5.1, Appendices B, C, D: random architectures, trained as a GAN and with WGAN-GP.

    python train_random_architectures.py --index 17 --method gan          one run; also wgan-gp, --one-sided
    python train_random_architectures.py --list 200                       the architectures, as rows of Table 1
    python train_random_architectures.py --commands 200 | xargs -L 1 env  all 400 runs, or a line each for a scheduler
    python train_random_architectures.py --table                          Tables 2 and 5, Appendices C, D, from the results
    python train_random_architectures.py --index 17 --method wgan-gp --activation elu   Appendix D; its cure: softplus

Table 1 has 4*4*4*4*2*2*3*3 = 9,216 architectures, the paper samples 200, trains each both ways for 100,000 iterations
on 32x32 ImageNet and counts whose Inception score is above a threshold: at most thresholds many that WGAN-GP alone
trains, hardly any that the GAN alone does. What came out here, on which hardware, and in what time:
results/random-architectures. 32x32 ImageNet comes from image-net.org, after registering; --data takes a folder of its
images (default data/imagenet32), any other folder, or the stand-ins cifar10 and shapes.

A run has a folder below --out and, when it is over, a result NNN-METHOD.json beside it: collect those of many machines
in one folder, and --table does the rest. With --resume, what is finished is left alone and what was cut off goes on.
Nothing else is needed: a finished run's checkpoint, 540 MB for the largest networks, may be deleted. That a run
diverges is a result like others (exit code 0): it fails at every threshold.

Where the paper is silent. The layers beyond 4, and first weights: models.py. Batch 64, 50,000 samples scored: those of
the authors' CIFAR-10 networks. "A small weight decay (lambda = 10^-3)" where D is normalised: 1e-3/2 times the sum of
the squares of the weights of D's convolutions and linear layer (no biases, no gains) is added to D's loss, so that its
gradient is 1e-3 times the weights. Which 200: those that come first when the random numbers of --seed, which also
seeds the training, put the set in order.

Without the Inception weights there are no scores, and no Table 2. Two numbers that need no weights are in every result,
under names of their own, from 2,000 generated and as many training images. `variation`: the mean distance of two
generated images over that of two real ones; 0 for a generator that has collapsed to one image. `pixel_likeness`:
1 - d/v, where d is the Frechet distance of Gaussians fitted to the images' 8x8 means and v the real ones' variance; 1
for the same mean and covariance, 0 for the mean image again and again, below 0 for worse. On CIFAR-10: .99 for other
training images, .55 for images reduced to 2x2 pixels, .35 for images of one colour, .16 for white noise.
"""
import argparse
import itertools
import json
import math
import random
import shlex
import statistics
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
import inception
import models
import runs
import wgan_gp

IMAGENET = "data/imagenet32"
SMOOTH = "softplus(2x+2)/2-1"
NONLINEARITIES = {"ReLU": models.ReLU, "LeakyReLU": models.LeakyReLU, SMOOTH: models.ShiftedSoftplus, "tanh": nn.Tanh,
                  "ELU": nn.ELU}
APPENDIX_D = {"elu": "ELU", "softplus": SMOOTH}  # --activation
TABLE_1 = {
    "Nonlinearity (G)": ["ReLU", "LeakyReLU", SMOOTH, "tanh"],
    "Nonlinearity (D)": ["ReLU", "LeakyReLU", SMOOTH, "tanh"],
    "Depth (G)": [4, 8, 12, 20],
    "Depth (D)": [4, 8, 12, 20],
    "Batch norm (G)": [True, False],
    "Batch norm (D)": [True, False],  # layer norm for WGAN-GP
    "Base filter count (G)": [32, 64, 128],
    "Base filter count (D)": [32, 64, 128],
}
SET_SIZE = math.prod(len(values) for values in TABLE_1.values())  # 9,216
TABLE_5 = {  # minimal score: only GAN, only WGAN-GP, both succeeded, both failed. Table 2 is 1, 3, 5, 7 and 9
    1.0: (0, 8, 192, 0), 1.5: (0, 50, 150, 0), 2.0: (0, 60, 140, 0), 2.5: (0, 74, 125, 1), 3.0: (1, 88, 110, 1),
    3.5: (0, 111, 86, 3), 4.0: (1, 126, 67, 6), 4.5: (0, 136, 55, 9), 5.0: (0, 147, 42, 11), 5.5: (0, 148, 32, 20),
    6.0: (0, 145, 21, 34), 6.5: (1, 131, 11, 57), 7.0: (1, 104, 5, 90), 7.5: (2, 67, 3, 128), 8.0: (1, 34, 0, 165),
    8.5: (0, 6, 0, 194), 9.0: (0, 0, 0, 200),
}
APPENDIX_C = (100, 77)  # two-sided higher, one-sided higher: 177, of what the paper says were 174 architectures
COMPARED = {  # Appendices C and D: what is compared pair by pair
    "Appendix C": ("the two-sided penalty", "wgan-gp", "the one-sided", "wgan-gp-one-sided"),
    "Appendix D": (f"the smooth {SMOOTH}", "wgan-gp-softplus", "ELU", "wgan-gp-elu")}
METHODS = {"gan": "dcgan", "wgan-gp": "wgan-gp"}  # Appendix B's optimisers are those of wgan_gp.METHODS
MEASURED = 2_000  # images of either kind behind variation and pixel_likeness
# What results are compared by: a name, thresholds, the paper's counts.
MEASURES = {"inception_score": ("Inception score", list(TABLE_5), TABLE_5),
            "pixel_likeness": ("pixel likeness", [i / 10 for i in range(-1, 10)], {})}


def main():
    args = parse()
    if args.list:
        print_architectures(args.list, args.seed)
    elif args.commands:
        print_commands(args)
    elif args.table:
        table(Path(args.out))
    else:
        train(args)


def parse():
    parser = runs.flags(__doc__, data=IMAGENET, iterations=100_000, batch_size=64)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--index", type=runs.whole(0, SET_SIZE), metavar="I", help="train this architecture (0 to 9215)")
    what.add_argument("--list", type=runs.whole(1, SET_SIZE + 1), metavar="N", help="print the first N architectures")
    what.add_argument("--commands", type=runs.whole(1, SET_SIZE + 1), metavar="N",
                      help="print the commands that train the first N, with the other flags given, one a line")
    what.add_argument("--table", action="store_true", help="print the tables and draw figure.png from results in --out")
    parser.add_argument("--method", choices=METHODS, help="how to train (with --commands, default: both)")
    parser.add_argument("--one-sided", action="store_true", help="WGAN-GP with the one-sided penalty (Appendix C)")
    parser.add_argument("--activation", choices=APPENDIX_D,
                        help=f"ELU, or the smooth {SMOOTH}, in both networks (Appendix D; default: as in Table 1)")
    parser.add_argument("--divide-filters", type=int, choices=[1, 2, 4, 8, 16, 32], default=1,
                        help="divide both base filter counts, for a study smaller than the paper's (default 1)")
    parser.add_argument("--sample-every", type=runs.whole(1), default=5_000, metavar="N",
                        help="iterations between pictures (default 5000)")
    parser.add_argument("--score-samples", type=runs.whole(0), default=50_000, metavar="N",
                        help="samples in the Inception score at the end (default 50000; 0: no score)")
    parser.add_argument("--inception", metavar="FILE", help="the Inception weights (default: in --data-dir)")
    args = parser.parse_args()
    if args.index is not None and not args.method:
        parser.error("--index needs --method gan or --method wgan-gp")
    if args.one_sided and args.method == "gan":
        parser.error("--one-sided is about the penalty, which --method gan does not have")
    if 0 < args.score_samples < 10:
        parser.error("--score-samples: a score is the mean over 10 parts, so 10 at least, or 0")
    stand_in = "" if args.data == IMAGENET else f"-{Path(args.data).resolve().name}"
    args.out = args.out or f"runs/random-architectures{stand_in}"
    return args


# --------------------------------------------------------------------------------------------------------- the set

def architectures(seed):
    """All of Table 1's, dicts of its rows, in an order that depends on `seed` alone: architecture i is the i-th.

    Python promises that random() gives the same numbers for a seed in every version, and no more than that; so each
    architecture gets one, and they are sorted. The first n are a sample of n without repetition, for every n.
    """
    in_order = [dict(zip(TABLE_1, values)) for values in itertools.product(*TABLE_1.values())]
    draw = random.Random(seed)
    return sorted(in_order, key=lambda _: draw.random())


def print_architectures(n, seed):
    """The first n of the set, a line each."""
    rows = [["Index", *TABLE_1], *([i, *row.values()] for i, row in enumerate(architectures(seed)[:n]))]
    widths = [max(len(str(value)) for value in column) for column in zip(*rows)]
    for row in rows:
        print("  ".join(f"{value!s:<{width}}" for value, width in zip(row, widths)).rstrip())


def print_commands(args):
    """The flags given, but for --commands and --method, go into every line."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--commands")
    own.add_argument("--method")
    _, others = own.parse_known_args()
    methods = [args.method] if args.method else ["wgan-gp"] if args.one_sided else list(METHODS)
    for i, method in itertools.product(range(args.commands), methods):
        print(shlex.join(["python", sys.argv[0], "--index", str(i), "--method", method, *others]))


# --------------------------------------------------------------------------------------------------------- one run

def networks(architecture, method, divide=1, activation=None):
    """(G, D) of a row of Table 1. divide: both base filter counts; activation: of both networks, if not the row's."""
    def settings(network):
        return (architecture[f"Base filter count ({network})"] // divide, architecture[f"Depth ({network})"],
                NONLINEARITIES[activation or architecture[f"Nonlinearity ({network})"]])
    norm = {"gan": "batch", "wgan-gp": "layer"}[method] if architecture["Batch norm (D)"] else None
    return (models.variant_generator(*settings("G"), norm=architecture["Batch norm (G)"]),
            models.variant_critic(*settings("D"), norm=norm))


def weight_decay(D, x):
    """Appendix B's, as a term of D's loss: 1e-3/2 times the sum of squared weights, without biases and gains."""
    return 1e-3 / 2 * sum(w.square().sum() for w in D.parameters() if w.dim() > 1)


def training_method(architecture, method, one_sided=False):
    """The wgan_gp.Method that a row of Table 1 is trained with."""
    decay = {"critic_term": weight_decay} if architecture["Batch norm (D)"] else {}
    return wgan_gp.METHODS[METHODS[method]]._replace(one_sided=one_sided, **decay)


def variant(method, one_sided, activation):
    """The part of a result's name that says how an architecture was trained, such as wgan-gp-one-sided."""
    return "-".join([method, *["one-sided"] * one_sided, *[activation] * bool(activation)])


def train(args):
    """One run of the set: train it, measure it, write its result."""
    folder, name = Path(args.out), f"{args.index:03d}-{variant(args.method, args.one_sided, args.activation)}"
    path = folder / f"{name}.json"
    if path.exists():
        if not args.resume:
            raise runs.Mistake(f"{path} is this run's result already: choose another --out, or delete it", 2)
        print(f"{path} is there already", file=sys.stderr)
        return
    if args.data == IMAGENET and not Path(IMAGENET).is_dir():
        raise runs.Mistake(f"there is no folder {IMAGENET}: put 32x32 ImageNet's training images there (image-net.org, "
                           f"after registering), or take a stand-in: --data cifar10, --data shapes")
    own = runs.below(args, name)
    runs.folder(own, folder / name)
    images, _ = data.images(args.data, args.data_dir, size=32, cache_dir=folder / "images")  # one cache for all runs
    batches = data.batches(images, args.batch_size, data.from_bytes, args.device)
    net = inception.load_or_warn(args.data_dir, args.inception, args.device) if args.score_samples else None
    architecture = architectures(args.seed)[args.index]
    run = runs.Run(own, out=folder / name, data=images, charts=[("generator loss", ["generator_loss"])])

    G, D = networks(architecture, args.method, args.divide_filters, APPENDIX_D.get(args.activation))
    G, D = G.to(args.device), D.to(args.device)
    method = training_method(architecture, args.method, args.one_sided)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    latents = lambda m: (torch.randn(m, models.LATENT, device=args.device),)
    fixed_z = torch.randn(100, models.LATENT, generator=torch.Generator().manual_seed(args.seed)).to(args.device)

    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    try:
        for step in wgan_gp.train(G, D, batches, latents, opt_G, opt_D, method,
                                  iterations=args.iterations, start=start, seed=args.seed):
            if step.iteration % args.sample_every == 0 or step.iteration == args.iterations:
                with run.clock_stopped():
                    x_tilde = wgan_gp.sample(G, lambda m: (fixed_z,), 100)
                    runs.save_png(runs.image_grid(data.to_bytes(x_tilde), columns=10), run.sample_path(step.iteration))
            run.log(step)
            run.checkpoint(step.iteration)
    except runs.Diverged:
        pass  # noticed up to a second late: the log says when it was
    run.finish()

    log = run.read_log()
    not_finite = log["iteration"][~np.isfinite(log["critic_loss"] + log["generator_loss"])]
    done, diverged = int(max(log["iteration"], default=args.iterations)), int(min(not_finite, default=0)) or None
    torch.manual_seed(args.seed)  # so that a resumed run measures the same samples
    measured = {} if diverged else measure(G, latents, images, args.device)
    if not all(map(math.isfinite, measured.values())):
        diverged = done
    memory = runs.peak_memory(args.device)
    result = {
        "index": args.index, "method": args.method, "one_sided": args.one_sided, "activation": args.activation,
        "architecture": architecture,
        "settings": {"data": Path(args.data).resolve().name, "images": len(images),
                     "fingerprint": runs.fingerprint(images), "seed": args.seed,
                     "batch_size": args.batch_size, "iterations": args.iterations,
                     "divide_filters": args.divide_filters},
        "diverged": diverged, "pixel_likeness": None, "variation": None, "inception_score": None,
        "inception_deviation": None, "seconds": round(run.seconds, 3), "seconds_per_iteration": run.seconds / done,
        "peak_memory_mb": memory and memory / 1e6, "hardware": runs.hardware(args.device), "torch": torch.__version__}
    if not diverged:
        result |= measured
        if net:
            x_tilde = wgan_gp.sample(G, latents, args.score_samples, convert=data.to_bytes)
            result["inception_score"], result["inception_deviation"] = inception.inception_score(x_tilde, net)
            result["settings"]["score_samples"] = args.score_samples
    runs.write(path, json.dumps(result, indent=1) + "\n")
    print(f"{path}: " + (f"diverged at iteration {diverged}" if diverged else ", ".join(
        f"{name} {result[column]:.3f}" for column, (name, *_) in MEASURES.items() if result[column] is not None)))


def measure(G, latents, images, device):
    """{"pixel_likeness", "variation"}: see above; NaN where a generated image is not finite."""
    n = min(MEASURED, len(images))
    x, = next(data.batches(images, n, data.from_bytes, device))
    x_tilde = wgan_gp.sample(G, latents, n)
    if not x_tilde.isfinite().all():
        return {"pixel_likeness": math.nan, "variation": math.nan}
    coarse, coarse_tilde = (F.avg_pool2d(some, 4).flatten(1) for some in (x, x_tilde))
    variance = coarse.var(0).sum().clamp(min=1e-9).item()  # real images may be all alike

    def mean_distance(x):  # of n/2 pairs, from different batches
        one, other = x.flatten(1)[:n // 2], x.flatten(1)[n - n // 2:]
        return (one - other).norm(dim=1).mean().item()
    return {"pixel_likeness": 1 - inception.fid(coarse, coarse_tilde) / variance,
            "variation": mean_distance(x_tilde) / max(mean_distance(x), 1e-9)}


# ---------------------------------------------------------------------------------------------------------- tables

def read_results(folder):
    """({variant: {index: result}}, their common settings) from the result files in `folder`; Mistake if they differ."""
    results, study, in_order = {}, {}, {}
    for path in sorted(folder.glob("[0-9]*-*.json")):
        try:
            result = json.loads(path.read_text())
            kind = variant(result["method"], result["one_sided"], result["activation"])
            index, settings = result["index"], result["settings"]
            seed = settings["seed"]
            in_order[seed] = in_order.get(seed) or architectures(seed)
            if path.stem != f"{index:03d}-{kind}" or result["architecture"] != in_order[seed][index]:
                raise ValueError
            needed = ["seconds", "seconds_per_iteration"]
            needed += ["pixel_likeness", "variation"] if result["diverged"] is None else []
            optional = [result["inception_score"], result["peak_memory_mb"]]
            for value in [result[name] for name in needed] + [value for value in optional if value is not None]:
                float(value)  # TypeError if it is none
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise runs.Mistake(f"{path} is damaged, or no result of this script: delete it, and run it again") from None
        for name, value in settings.items():
            first, first_path = study.setdefault(name, (value, path))
            if value != first:
                raise runs.Mistake(f"{name} is {first} in {first_path} and {value} in {path}: keep different studies "
                                   f"in different folders")
        results.setdefault(kind, {})[index] = result
    if not results:
        raise runs.Mistake(f"there are no results in {folder}: train some first, or say where with --out")
    return results, {name: value for name, (value, _) in study.items()}


def comparable(result, column):
    """What a result is compared by, None if it was not measured. A run that diverged is below every threshold."""
    return result[column] if result["diverged"] is None else -math.inf


def outcomes(first, second, threshold):
    """(only the first, only the second, both, neither) is above the threshold, of two lists paired by position."""
    above = Counter((a > threshold, b > threshold) for a, b in zip(first, second, strict=True))
    return above[True, False], above[False, True], above[True, True], above[False, False]


def sign_test(wins, losses):
    """The exact two-sided p of so many wins and losses (or more uneven ones) if both are equally likely."""
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2 ** n)


def paired(results, first, second, column):
    """Two lists, of the numbers of the architectures for which both variants have one."""
    both = [(comparable(results[first][i], column), comparable(results[second][i], column))
            for i in sorted(results.get(first, {}).keys() & results.get(second, {}).keys())]
    both = [pair for pair in both if None not in pair]
    return [a for a, _ in both], [b for _, b in both]


def table(folder):
    """Print what the results in `folder` add up to, for each measure that they have, and draw figure.png there."""
    results, study = read_results(folder)
    everything = [result for some in results.values() for result in some.values()]
    print(f"Results in {folder}: " + ", ".join(f"{name} {value}" for name, value in study.items()))
    for kind, some in sorted(results.items()):
        diverged = [f"{i} (iteration {some[i]['diverged']})" for i in sorted(some) if some[i]["diverged"] is not None]
        collapsed = sum(result["diverged"] is None and result["variation"] < 0.1 for result in some.values())
        print(f"  {kind}: {len(some)} runs; diverged: {', '.join(diverged) or 'none'}; variation below .1: {collapsed}",
              end="")
        for column, (name, *_) in MEASURES.items():
            numbers = [comparable(result, column) for result in some.values()]
            if None not in numbers:
                print(f"; median {name} {statistics.median(numbers):.3f}", end="")
        seconds = [result["seconds_per_iteration"] for result in some.values()]
        print(f"; {min(seconds):.2g} to {max(seconds):.2g} s an iteration")
    memory = max(result["peak_memory_mb"] or 0 for result in everything)
    seconds = sum(result["seconds"] for result in everything)
    print(f"  {len(everything)} runs in all: {runs.duration(seconds)} of training; at most {memory:,.0f} MB")

    pictures = []
    for column, (name, thresholds, paper) in MEASURES.items():
        if all(result[column] is None for result in everything):
            print(f"\nNo result has the {name}" + (", so there is no Table 2 or 5." if paper else "."))
            continue
        print(f"\n{'Tables 2 and 5: o' if paper else 'O'}utcomes by {name}" + (
            "" if paper else ", a number of this script's own, which needs no Inception weights"))
        gan, penalised = paired(results, "gan", "wgan-gp", column)
        print(f"{len(gan)} architectures trained both ways" + "; the paper's: 200, on 32x32 ImageNet" * bool(paper))
        if gan:
            print_outcomes(gan, penalised, name, thresholds, paper)
            pictures.append(draw_distributions(gan, penalised, name, paper))
        print_comparisons(results, column, name)
    if pictures:
        runs.save_png(runs.beside(pictures), folder / "figure.png")
        print(f"\ndrew {folder / 'figure.png'}")


def print_outcomes(gan, penalised, name, thresholds, paper):
    """A row for each threshold: our counts, from two lists paired by position, and the paper's."""
    titles = ["Only GAN", "Only WGAN-GP", "Both succeeded", "Both failed"]
    print(f"{'Min. ' + name:<22}" + "  ".join(titles) + "    the paper's 200" * bool(paper))
    for threshold in thresholds:
        ours = "  ".join(f"{n:>{len(title)}}" for n, title in zip(outcomes(gan, penalised, threshold), titles))
        theirs = "  ".join(f"{n:>3}" for n in paper.get(threshold, ()))
        print(f"{threshold:<22.1f}{ours}    {theirs}".rstrip())


def print_comparisons(results, column, name):
    """Appendices C and D: in how many architectures, trained both ways, which variant has the higher number."""
    for appendix, (first, first_kind, second, second_kind) in COMPARED.items():
        pairs = list(zip(*paired(results, first_kind, second_kind, column)))
        if not pairs:
            continue
        wins, losses = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
        print(f"{appendix}: of {len(pairs)} architectures {first} has the higher {name} in {wins}, {second} in {losses}; "
              f"sign test p = {sign_test(wins, losses):.3g}")
        if appendix == "Appendix C":
            print("  The paper, by Inception score: {} and {} of 174, which do not add up ({}); p = {:.3g}".format(
                *APPENDIX_C, sum(APPENDIX_C), sign_test(*APPENDIX_C)))


def draw_distributions(gan, penalised, name, paper):
    """Three pictures: how the numbers of each method are distributed, and the share of architectures above each
    number. Likenesses, which have no lower bound, are drawn at -1 if they are below."""
    both = {label: [max(value, -1) if math.isfinite(value) else value for value in values]
            for label, values in [("GAN", gan), ("WGAN-GP", penalised)]}
    finite = [value for values in both.values() for value in values if math.isfinite(value)] or [0]
    limits = min(finite), max(finite) + 1e-6
    pictures, curves, at = [], {}, np.linspace(*limits, 300)
    for label, values in both.items():
        diverged = sum(not math.isfinite(value) for value in values)
        pictures.append(runs.histogram(values, 20, f"{label}: {len(values)} architectures, {diverged} diverged", name,
                                       x_range=limits, size=(420, 300)))
        curves[label] = (at, [np.mean(np.array(values) > t) for t in at])
    for i, label in enumerate(["the paper's GAN", "the paper's WGAN-GP"] if paper else []):
        curves[label] = (list(paper), [(row[i] + row[2]) / sum(row) for row in paper.values()])
    return pictures + [runs.line_chart(curves, "share of architectures above", name, y_range=(0, 1), size=(420, 300))]


if __name__ == "__main__":
    runs.main(main)
