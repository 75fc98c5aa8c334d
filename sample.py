"""Sample from the generator of a run of any training script, finished or still running.

    python sample.py runs/cifar-wgan-gp                   a grid of 100 images, sample.png there
    python sample.py runs/cifar-wgan-gp --seed 1          other images, sample-seed1.png
    python sample.py runs/cifar-wgan-gp --interpolate     each row walks from one latent to another
    python sample.py runs/cifar-resnet-conditional --class 3
    python sample.py runs/cifar-wgan-gp -n 50000 --npy samples.npy; python inception.py samples.npy

An array of images is N x channels x height x width bytes, one of points N x 2 floats. The language
model gives lines of text, in sample.txt. Samples are made in batches of 100, because batch norm uses
the statistics of the batch. The same flags give the same samples.
"""
import argparse
import importlib
import io
import math
from pathlib import Path

import numpy as np
import torch

import plots
import runs
import wgan_gp

BATCH = 100


def parse():
    parser = runs.Parser(__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="the folder of a run")
    add("-n", type=runs.whole(1), default=100, metavar="N", help="number of samples (default 100)")
    add("--out", metavar="FILE", help="default: in RUN, named after the flags, such as sample-seed1.png")
    add("--npy", metavar="FILE", help="write an array, and a picture only with --out")
    add("--interpolate", action="store_true", help="each row of ten walks between latents")
    add("--class", type=runs.whole(0, 10), dest="label", metavar="K", help="0 to 9, if conditional")
    add("--seed", type=runs.whole(0, 2 ** 32), default=0, metavar="N", help="(default 0)")
    add("--device", type=runs.device, default="auto", help="auto, cpu, cuda or mps (default auto)")
    return parser.parse_args()


def load(folder, device):
    """Return the generator of the run in `folder`, its latents and the conversion of its output."""
    if not (folder / "checkpoint.pt").exists():
        below = folder if folder.is_dir() else Path("runs")
        known = [str(path.parent) for path in sorted(below.glob("**/checkpoint.pt"))]
        raise runs.Mistake(f"{folder} is not a run: choose one of these ({', '.join(known[:20]) or 'none'})")
    config, here = runs.read_config(folder), Path(__file__).resolve().parent
    script = config["script"]
    if script not in [path.name for path in here.glob("train_*.py")]:
        raise runs.Mistake(f"{folder} is a run of {script}, which is none of the scripts in {here}")
    checkpoint = runs.read_checkpoint(folder)
    if "G" not in checkpoint["objects"]:
        raise runs.Mistake(f"{folder} trained a critic alone: it has no generator to sample from")
    args = argparse.Namespace(**{**config["flags"], "out": str(folder), "device": device})
    try:
        G, latents, convert = importlib.import_module(script.removesuffix(".py")).generator(args)
        G.load_state_dict(checkpoint["objects"]["G"])
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise runs.Mistake(f"{folder} does not fit this {script} ({type(error).__name__}): sample it "
                           f"with the version that trained it") from None
    return G, latents, convert


def walk(a, b, steps=10):
    """Interpolate from a[i] to b[i], both k x d, as k rows of `steps`. All are N(0, I)."""
    angle = torch.linspace(0, math.pi / 2, steps, device=a.device)[:, None]
    return (angle.cos() * a[:, None] + angle.sin() * b[:, None]).flatten(0, 1)


@torch.no_grad()
def draw(G, latents, convert, args):
    """Return samples: bytes (n, channels, height, width), points (n, 2), or a list of lines."""
    torch.manual_seed(args.seed)
    samples = []
    for _ in range(math.ceil(args.n / BATCH)):
        z, *y = wgan_gp.parts(latents(BATCH))
        if args.interpolate:
            z, y = walk(z[:10], z[10:20]), [labels[:10].repeat_interleave(10) for labels in y]
        if args.label is not None:
            if not y:
                raise runs.Mistake(f"{args.run} is not a conditional run: leave out --class", 2)
            y = [torch.full_like(labels, args.label) for labels in y]
        x_tilde = G(z, *y)
        samples.append(x_tilde.cpu() if x_tilde.dim() == 2 else convert(x_tilde))
    if isinstance(samples[0], list):
        return sum(samples, [])[:args.n]
    return torch.cat(samples).cpu()[:args.n]


def default_name(args, ending):
    """Return a name for the samples, after the flags, so that others are not replaced."""
    name = "interpolate" if args.interpolate else "sample"
    for flag, value, default in [("class", args.label, None), ("seed", args.seed, 0), ("n", args.n, 100)]:
        if value != default:
            name += f"-{flag}{value}"
    return f"{name}.{ending}"


def main():
    args = parse()
    G, latents, convert = load(args.run, args.device)
    samples = draw(G, latents, convert, args)
    text = isinstance(samples, list)
    if args.npy:
        if text:
            raise runs.Mistake("this run writes text, which is no array: leave out --npy", 2)
        array = io.BytesIO()
        np.save(array, samples.numpy())
        runs.write(args.npy, array.getbuffer())
        if not args.out:
            return print(f"wrote {args.npy}")
    path = args.out or args.run / default_name(args, "txt" if text else "png")
    if text:
        runs.write(path, "\n".join(samples) + "\n")
    elif samples.dim() == 2:  # points, on a plain ground
        runs.write(path, plots.surface(torch.zeros(2, 2), (-2.2, 2.2, -2.2, 2.2), fake=samples))
    else:
        runs.write(path, plots.image_grid(samples, min(len(samples), 10)))
    print(f"wrote {path}")


if __name__ == "__main__":
    runs.main(main)
