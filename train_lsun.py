"""Figures 2, 4, 5(a), Sections 5.2, 5.4, 5.6, Appendices E, H: seven architectures, four methods, LSUN's bedrooms.

    python train_lsun.py                              WGAN-GP on the baseline, DCGAN; images in data/lsun
    python train_lsun.py --architecture tanh --method lsgan     any of the 28: --help names them
    python train_lsun.py --architecture resnet --size 128       Figure 4; at 64 the authors' "good" networks
    python train_lsun.py --data my/photos             any folder of images; or --data shapes: no download
    python train_lsun.py --commands                   the commands of all 28 runs, one a line, for any scheduler
    python train_lsun.py --grid                       Figure 2, and Figure 5(a) of every run, from the runs in runs/

200,000 iterations at batch 64, with each method's own hyperparameters (Appendix E). The paper "only succeeded in
training every architecture with a shared set of hyperparameters using WGAN-GP", and its negative critic loss "converges
toward a minimum". How to get LSUN as a folder of images is in the README. Images are cropped and resized once, into a
file beside the run's folder, which all runs on that folder of images share. What came out here, and how short it was:
results/lsun.
"""
import argparse
import itertools
import json
import shlex
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import data
import fast
import models
import runs
import wgan_gp

ROWS = {"dcgan": "Baseline (G: DCGAN, D: DCGAN)", "constant-filters": "G: no BN, constant filters; D: DCGAN",
        "mlp": "G: 4-layer 512-dim ReLU MLP; D: DCGAN", "no-norm": "No normalization in either G or D",
        "gated": "Gated multiplicative nonlinearities", "tanh": "tanh nonlinearities",
        "resnet101": "101-layer ResNet G and D"}
COLUMNS = {"dcgan": "DCGAN", "lsgan": "LSGAN", "wgan": "WGAN (clipping)", "wgan-gp": "WGAN-GP (ours)"}
HELD_OUT = 1_000  # at most so many held-out images are looked at


def main():
    args = parse()
    if args.commands:
        print_commands()
    elif args.grid:
        draw_grid(Path(args.out or "runs"))
    else:
        train(args)


def parse():
    parser = runs.flags(__doc__, data="data/lsun", iterations=200_000, batch_size=64)
    parser.add_argument("--architecture", choices=models.LSUN, default="dcgan",
                        help="the networks (Section 5.2: Figure 2's rows; resnet: Figure 4's)")
    parser.add_argument("--method", choices=COLUMNS, default="wgan-gp", help="the training method (Figure 2's columns)")
    parser.add_argument("--size", type=int, choices=[64, 128], default=64, help="pixels a side (128: resnet alone)")
    parser.add_argument("--dim", type=runs.whole(4), default=64, help="width of both networks (authors' code: 64)")
    parser.add_argument("--beta1", type=runs.number(0, 1),
                        help="Adam's (default .5, Appendix E; the authors' code: 0 for WGAN-GP)")
    parser.add_argument("--sample-every", type=runs.whole(1), default=1_000, metavar="N",
                        help="iterations between pictures, and between looks at the held-out images (default 1000)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--commands", action="store_true", help="print the 28 commands, with the other flags given here")
    instead.add_argument("--grid", action="store_true",
                        help="draw Figures 2 and 5(a) from the runs in --out (default runs)")
    args = fast.parse(parser)
    if args.size == 128 and args.architecture != "resnet":
        parser.error(f"--size 128: {args.architecture} has 64 x 64 networks alone; choose --architecture resnet")
    if args.dim % 4 and (args.architecture == "resnet101" or args.commands):
        parser.error(f"--dim {args.dim}: resnet101 has layers of a quarter of it; choose a multiple of 4")
    if args.beta1 is not None and not args.commands and args.method not in wgan_gp.ADAM:
        parser.error(f"--beta1 is Adam's, and {args.method} uses RMSProp")
    args.beta1 = 0.5 if args.beta1 is None else args.beta1  # of both methods that have Adam (Appendix E)
    return args


def make(args):
    """The method, with Appendix E's beta1, and the generator and critic that the flags name."""
    method = wgan_gp.METHODS[args.method]
    if args.method in wgan_gp.ADAM:
        method = method.with_beta1(args.beta1)
    size = {"size": args.size} if args.architecture == "resnet" else {}
    make_G, make_D = models.LSUN[args.architecture]
    # Where D is normalised: layer norm under the penalty (Section 4), batch norm otherwise.
    G, D = make_G(args.dim, **size), make_D(args.dim, norm="layer" if method.lam else "batch", **size)
    return method, G.to(args.device), D.to(args.device)


def train(args):
    """One cell of Figure 2: one architecture, one method."""
    name = f"{Path(args.data).resolve().name}{args.size if args.size > 64 else ''}-{args.architecture}-{args.method}"
    out = runs.folder(args, f"runs/{name}")
    if args.data == "data/lsun" and not Path(args.data).is_dir():
        raise runs.Mistake("there is no folder data/lsun: the README says how to export LSUN to images; or choose "
                           "another folder of images with --data, or --data shapes")
    with runs.one_first():
        images, _ = data.images(args.data, args.data_dir, size=args.size, cache_dir=Path(out).parent)
        held_out, _ = data.images(args.data, args.data_dir, size=args.size, train=False, cache_dir=Path(out).parent)
    batches = data.batches(images, runs.share(args.batch_size), data.from_bytes, args.device, resident=args.fast)
    run = runs.Run(args, out, columns=["held_out_loss", "held_out_wasserstein"], data=images,
                   charts=[("generator loss", ["generator_loss"])])
    method, G, D = make(args)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    latents = lambda m: (torch.randn(m, models.LATENT, device=args.device),)
    fixed_z = torch.randn(64, models.LATENT, generator=torch.Generator().manual_seed(args.seed)).to(args.device)

    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    networks = fast.in_bfloat16(G, D) if args.bf16 else (G, D)
    for step in (fast if args.fast else wgan_gp).train(
            *networks, batches, latents, opt_G, opt_D, method,
            iterations=args.iterations, start=start, seed=runs.own_seed(args.seed)):
        last, measured = step.iteration == args.iterations, {}
        if run.first and (step.iteration % args.sample_every == 0 or last):
            with run.clock_stopped():
                some = data.in_order(held_out[:HELD_OUT], args.batch_size, data.from_bytes, args.device)
                loss, wasserstein, _ = wgan_gp.held_out_loss(G, D, some, latents, method)
                measured.update(held_out_loss=loss, held_out_wasserstein=wasserstein)
                x_tilde = wgan_gp.sample(G, lambda m: (fixed_z,), 64, 64, convert=partial(data.to_bytes, top=255.99))
                runs.save_png(runs.image_grid(x_tilde, columns=8), run.sample_path(step.iteration))
        run.log(step, **measured)
        run.checkpoint(step.iteration)
    if run.first:
        runs.save_png(negative_critic_loss(run.read_log(), size=(560, 360)), run.out / "figure5a.png")
    run.finish()


def negative_critic_loss(log, size):
    """Figure 5(a) of one run: the negative critic loss, smoothed over a fiftieth of the run, and pale as it is."""
    raw = log["iteration"], -log["critic_loss"]
    smoothed = raw[0], runs.smooth(raw[1], len(raw[1]) // 50)
    return runs.line_chart({"": smoothed}, "", "generator iterations", "negative critic loss", size=size, pale={"": raw})


def print_commands():
    """The commands of Figure 2's 28 runs, with the flags given here; --out is the folder that all of them are in."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--commands", action="store_true")
    parser.add_argument("--out")
    for name in ("--architecture", "--method", "--beta1"):
        parser.add_argument(name)
    mine, others = parser.parse_known_args()
    for architecture, method in itertools.product(ROWS, COLUMNS):
        out = ["--out", f"{mine.out}/{architecture}-{method}"] if mine.out else []
        beta1 = ["--beta1", mine.beta1] if mine.beta1 is not None and method in wgan_gp.ADAM else []
        print(shlex.join(["python", "train_lsun.py", *others, "--architecture", architecture, "--method", method,
                          *beta1, *out]))


def draw_grid(folder):
    """Figure 2, and Figure 5(a) of each of its cells, from the runs below `folder`; what was not run is crossed out."""
    found, kinds = {}, set()
    for path in sorted(folder.glob("*/config.json")):
        try:
            config = json.loads(path.read_text())
            flags = config["flags"]
            if config["script"] != "train_lsun.py" or flags["architecture"] not in ROWS or flags["method"] not in COLUMNS:
                continue
            cell = flags["architecture"], flags["method"]
            kinds.add(f"{Path(flags['data']).name}, width {flags['dim']}, batch {flags['batch_size']}")
        except (ValueError, KeyError, TypeError):
            raise runs.Mistake(f"{path} is damaged: move its folder away") from None
        if cell in found:
            raise runs.Mistake(f"{found[cell]} and {path.parent} are both {cell[0]} with {cell[1]}: move one away")
        found[cell] = path.parent
    if not found:
        raise runs.Mistake(f"no run of train_lsun.py in {folder}: run the lines that --commands prints, or say where "
                           f"(--out)")
    if len(kinds) > 1:
        raise runs.Mistake(f"the runs in {folder} do not belong in one figure ({'; '.join(sorted(kinds))}): say --out")
    samples, curves, captions = [], [], []
    for architecture in ROWS:
        here = [found.get((architecture, method)) for method in COLUMNS]
        newest = [max((path for path in (run / "samples").glob("*.png") if path.stem.isdigit()), default=None,
                      key=lambda path: int(path.stem)) if run else None for run in here]
        # The first eight of the 64 samples, two rows of four.
        samples.append([Image.open(path).crop((0, 0, 4 * 66 - 2, 2 * 66 - 2)) if path else None for path in newest])
        captions.append([f"iteration {int(path.stem):,}" if path else "" for path in newest])
        curves.append([negative_critic_loss(runs.read_log(run), (262, 180)) if run else None for run in here])
    labels = dict(row_labels=list(ROWS.values()), column_labels=list(COLUMNS.values()))
    runs.save_png(runs.beside(samples, captions, title=f"Samples ({min(kinds)})", **labels), folder / "figure2.png")
    runs.save_png(runs.beside(curves, title=f"Negative critic loss ({min(kinds)})", **labels), folder / "figure5a.png")
    print(f"drew {len(found)} of {len(ROWS) * len(COLUMNS)} runs: {folder / 'figure2.png'}, {folder / 'figure5a.png'}")


if __name__ == "__main__":
    runs.main(main)
