"""Figures 2, 4, 5(a), Sections 5.2, 5.4, 5.6: seven architectures, four methods, LSUN bedrooms.

    python train_lsun.py                                      WGAN-GP on the baseline; images: data/lsun
    python train_lsun.py --architecture tanh --method lsgan   any of Figure 2's 28 runs: see --help
    python train_lsun.py --architecture resnet --size 128     Figure 4
    python train_lsun.py --data FOLDER                        your own images; shapes: no download
    python train_lsun.py --commands                           print the commands of the 28 runs
    python train_lsun.py --grid                               draw Figures 2 and 5(a) from runs/

The paper "only succeeded in training every architecture with a shared set of hyperparameters using
WGAN-GP", in 200,000 iterations. Our runs, far shorter: results/lsun.
"""
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import data
import fast
import models
import plots
import runs
import wgan_gp

ROWS = {"dcgan": "Baseline (G: DCGAN, D: DCGAN)", "constant-filters": "G: no BN, constant filters; D: DCGAN",
        "mlp": "G: 4-layer 512-dim ReLU MLP; D: DCGAN", "no-norm": "No normalization in either G or D",
        "gated": "Gated multiplicative nonlinearities", "tanh": "tanh nonlinearities",
        "resnet101": "101-layer ResNet G and D"}
COLUMNS = {"dcgan": "DCGAN", "lsgan": "LSGAN", "wgan": "WGAN (clipping)", "wgan-gp": "WGAN-GP (ours)"}
ADAM = ("dcgan", "wgan-gp")


def parse():
    parser = runs.flags(__doc__, data="data/lsun", iterations=200_000, batch_size=64, sample_every=1_000)
    add = parser.add_argument
    add("--architecture", choices=models.LSUN, default="dcgan", help="Figure 2's, or Figure 4's resnet")
    add("--method", choices=COLUMNS, default="wgan-gp", help="a column of Figure 2 (default wgan-gp)")
    add("--size", type=int, choices=[64, 128], default=64, help="pixels a side (default 64)")
    add("--dim", type=int, choices=[4, 8, 16, 32, 64, 128], default=64, help="width (authors' code: 64)")
    add("--beta1", type=runs.number(0, 1), default=0.5,
        help="Adam's (default 0.5, Appendix E; the authors' code has 0 for WGAN-GP)")
    add("--commands", action="store_true", help="print the 28 commands, with the other flags")
    add("--grid", action="store_true", help="draw Figures 2 and 5(a) from the runs in --out (runs)")
    args = fast.parse(parser)
    if args.size == 128 and args.architecture != "resnet":
        parser.error(f"--size 128: {args.architecture} is 64 x 64: choose --architecture resnet")
    if args.size == 128 and args.commands:
        parser.error("--commands are Figure 2's, at 64 x 64: leave out --size 128")
    if args.beta1 != 0.5 and args.method not in ADAM and not args.commands:
        parser.error(f"--beta1 is Adam's, and {args.method} uses RMSProp: leave it out")
    if not (args.commands or args.grid):
        name = "{data}-{architecture}-{method}"
        args.out = args.out or runs.default_out(parser, args, name, ["size", "dim", "beta1"])
    return args


def generator(args):
    """Return G, its latent sampler and the conversion of its output to bytes. sample.py uses it."""
    size = {"size": 128} if args.size == 128 else {}
    G = models.LSUN[args.architecture][0](args.dim, **size).to(args.device)
    latents = lambda m: torch.randn(m, models.LATENT, device=args.device)
    return G, latents, partial(data.to_bytes, top=255.99)


def main():
    args = parse()
    if args.commands:
        return runs.commands("train_lsun.py", [
            {"architecture": row, "method": column}
            | ({"beta1": args.beta1} if column in ADAM else {})
            | ({"out": f"{args.out}/{row}-{column}"} if args.out else {})
            for row in ROWS for column in COLUMNS])
    if args.grid:
        return draw_grid(Path(args.out or "runs"))

    # data
    runs.check_out(args)
    if args.data == "data/lsun" and not Path(args.data).is_dir():
        raise runs.Mistake("no folder data/lsun: export LSUN to images with its tool (github.com/fyu/lsun), "
                           "or set --data")
    images, _ = data.images(args.data, args.data_dir, args.size, leave_out=args.out)
    held_out, _ = data.images(args.data, args.data_dir, args.size, train=False, leave_out=args.out)
    how = args.batch_size, data.from_bytes, args.device
    batches = data.batches(images, *how)
    run = runs.Run(args, columns=["held_out_loss", "held_out_wasserstein"],
                   charts=[("generator loss", {"generator_loss": "generator loss"})], data=images)

    # networks. Critics have layer norm under the penalty, otherwise batch norm (Section 5.2)
    method = wgan_gp.METHODS[args.method]
    if args.method in ADAM:
        method = method._replace(beta1=args.beta1)
    G, latents, to_bytes = generator(args)
    size = {"size": 128} if args.size == 128 else {}
    norm = "layer" if method.lam else "batch"
    D = models.LSUN[args.architecture][1](args.dim, norm, **size).to(args.device)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)
    fixed_z = latents(64)

    # resume or start, and train
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    train = fast.choose(args)
    for step in train(G, D, batches, latents, opt_G, opt_D, method, args.iterations, start, args.seed):
        measured = {}
        # every --sample-every iterations: measure on held-out images, draw samples
        if run.every(args.sample_every, step):
            with run.clock_stopped():
                some = data.in_order(held_out[:1_000], *how)
                loss, wasserstein, _ = wgan_gp.held_out_loss(G, D, some, latents, method)
                measured.update(held_out_loss=loss, held_out_wasserstein=wasserstein)
                with torch.no_grad():
                    run.save_images(step, to_bytes(G(fixed_z)), columns=8)
        run.log(step, **measured)
        run.checkpoint(step)
    if run.first:
        runs.write(run.out / "figure5a.png", negative_critic_loss(run.out))
    run.finish()


def negative_critic_loss(run, size=(560, 360)):
    """Draw Figure 5(a) of one run: the negative critic loss, raw and smoothed."""
    log = runs.read_log(run, "iteration", "critic_loss")
    x, y = log["iteration"], -log["critic_loss"]
    return plots.line_chart({"": (x, plots.smooth(y, len(y) // 50))}, "", "generator iterations",
                            "negative critic loss", size=size, pale={"": (x, y)})


def draw_grid(folder):
    """Draw Figure 2, and Figure 5(a) of each of its cells, from the runs in `folder`."""
    samples, captions, curves, kinds = {}, {}, {}, set()
    for path in sorted(folder.glob("*/config.json")):
        run, config = path.parent, runs.read_config(path.parent)
        flags = config["flags"]
        if config["script"] != "train_lsun.py" or flags["architecture"] not in ROWS:
            continue
        cell = flags["architecture"], flags["method"]
        if cell in curves:
            raise runs.Mistake(f"{run} is a second {' by '.join(cell)}: move one of the two away")
        kinds.add(f"{Path(flags['data']).name}, width {flags['dim']}, batch {flags['batch_size']}")
        curves[cell] = negative_critic_loss(run, size=(262, 180))
        path = runs.newest(run)
        if path.parent == run:
            continue  # no samples yet
        try:
            samples[cell] = Image.open(path).crop((0, 0, 4 * 66 - 2, 2 * 66 - 2))  # 8 of 64
        except (OSError, SyntaxError, ValueError) as error:
            raise runs.Mistake(f"{path} is damaged ({error}): move {run} away") from None
        captions[cell] = f"iteration {int(path.stem):,}"
    if not curves:
        raise runs.Mistake(f"no run of Figure 2 in {folder}: train those of --commands, or set --out")

    table = lambda cells: [[cells.get((row, column)) for column in COLUMNS] for row in ROWS]
    labels = ROWS.values(), COLUMNS.values(), "; ".join(sorted(kinds))
    figure_2 = plots.beside(table(samples), table(captions), *labels)
    runs.write(folder / "figure2.png", figure_2)
    runs.write(folder / "figure5a.png", plots.beside(table(curves), None, *labels))
    print(f"drew {len(curves)} of 28 runs: {folder}/figure5a.png, {folder}/figure2.png")


if __name__ == "__main__":
    runs.main(fast.processes(main))
