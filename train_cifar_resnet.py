"""Table 3, Section 5.4, Appendices F and G: the CIFAR-10 ResNet, unsupervised and conditional.

    python train_cifar_resnet.py                      unsupervised: the paper's Inception score is 7.86 +- .07
    python train_cifar_resnet.py --conditional        with labels, AC-GAN: 8.42 +- .10
    python train_cifar_resnet.py --summary            Appendix F's two tables, from the networks themselves
    python train_cifar_resnet.py --data shapes        the same with no download

100,000 iterations of Adam 2e-4 (0, .9), decayed linearly to 0; 5 critic steps on 64 images, then the generator's on
128 (Appendix F says 64; the authors' code, which the scores come from, has 128). Samples as in Figure 6: a class a
column if conditional. What has been measured here, and what has not: results/cifar-resnet.
"""
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import fast
import inception
import models
import runs
import wgan_gp


def main():
    args = parse()
    if args.summary:
        summary(args)
    else:
        train(args)


def parse():
    parser = runs.flags(__doc__, data="cifar10", iterations=100_000, batch_size=64)
    parser.add_argument("--conditional", action="store_true", help="AC-GAN: labels for both networks (Section 5.4)")
    parser.add_argument("--summary", action="store_true", help="print Appendix F's tables of the networks and leave")
    parser.add_argument("--generator-batch", type=runs.whole(2), default=128, metavar="N",
                        help="examples in the generator's batch (default 128, as released; Appendix F: 64)")
    parser.add_argument("--dim", type=runs.whole(1), default=128, help="channels of both networks (Appendix F: 128)")
    parser.add_argument("--lr", type=runs.number(1e-9), default=2e-4, help="Adam's learning rate (Appendix F: 2e-4)")
    parser.add_argument("--beta1", type=runs.number(0, 1), default=0.0,
                        help="Adam's (Algorithm 1 and the authors' code: 0)")
    parser.add_argument("--sample-every", type=runs.whole(1), default=500, metavar="N",
                        help="iterations between pictures, and between looks at the held-out images (default 500)")
    parser.add_argument("--score-every", type=runs.whole(0), default=5_000, metavar="N",
                        help="iterations between Inception scores (default 5000; 0: never)")
    parser.add_argument("--score-samples", type=runs.whole(10), default=50_000, metavar="N",
                        help="samples scored each time (default 50000, as in the authors' code)")
    parser.add_argument("--inception", metavar="FILE", help="the Inception weights (default: in --data-dir)")
    return fast.parse(parser)


# AC-GAN's two terms: D learns the classes from real images only, with weight 1; G is told, with weight .1, to make
# images that D puts into the class they were asked for. The authors' code has these weights. Each term passes D's
# features once more: sharing them with the score would save that pass, and cost the loop its shape.

def critic_term(D, x, y):
    """Added to D's loss: x real (m, 3, 32, 32), y their classes (m,)."""
    return F.cross_entropy(D.classify(x), y)


def generator_term(D, x_tilde, y):
    """Added to G's loss: x_tilde generated (m, 3, 32, 32), y the classes asked for (m,)."""
    return 0.1 * F.cross_entropy(D.classify(x_tilde), y)


def train(args):
    """One row of Table 3: Algorithm 1, with pictures, held-out loss and scores."""
    method = wgan_gp.WGAN_GP._replace(optimizer=partial(torch.optim.Adam, lr=args.lr, betas=(args.beta1, 0.9)))
    name = "cifar" if args.data == "cifar10" else Path(args.data).resolve().name
    out = runs.folder(args, f"runs/{name}-resnet{'-conditional' * args.conditional}")
    with runs.one_first():
        images, labels = data.images(args.data, args.data_dir, size=32, cache_dir=out)
        held_out, held_out_labels = data.images(args.data, args.data_dir, size=32, train=False, cache_dir=out)
    if args.conditional:
        if labels is None:
            raise runs.Mistake(f"{args.data} has no labels: leave --conditional out, or choose cifar10 or shapes")
        method = method._replace(critic_term=critic_term, generator_term=generator_term)
    else:
        labels = held_out_labels = None
    batch, generator_batch = runs.share(args.batch_size), runs.share(args.generator_batch, "--generator-batch")
    batches = data.batches(images, batch, data.from_bytes_noisy, args.device, labels, resident=args.fast)
    scores = args.score_every and runs.RANK == 0
    net = inception.load_or_warn(args.data_dir, args.inception, args.device) if scores else None
    run = runs.Run(args, out, columns=[
        "held_out_loss", "held_out_wasserstein", "accuracy_real", "accuracy_generated",
        "inception_score", "inception_deviation", "samples_scored"], data=images,
        charts=[("classification accuracy", ["accuracy_real", "accuracy_generated"]),
                ("Inception score", ["inception_score"])])

    G = models.CifarResNetGenerator(args.dim, args.conditional).to(args.device)
    D = models.CifarResNetCritic(args.dim, args.conditional).to(args.device)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    to_bytes = partial(data.to_bytes, top=255.99)

    def latents(m):
        z = torch.randn(m, models.LATENT, device=args.device)
        return (z, torch.randint(10, (m,), device=args.device)) if args.conditional else (z,)

    fixed = (torch.randn(100, models.LATENT, generator=torch.Generator().manual_seed(args.seed)).to(args.device),)
    if args.conditional:
        fixed += (torch.arange(10, device=args.device).repeat(10),)  # row by row: a class a column, as in Figure 6

    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    networks = fast.in_bfloat16(G, D) if args.bf16 else (G, D)
    for step in (fast if args.fast else wgan_gp).train(
            *networks, batches, latents, opt_G, opt_D, method, iterations=args.iterations, start=start,
            seed=runs.own_seed(args.seed), decay=True, generator_batch=generator_batch):
        last, measured = step.iteration == args.iterations, {}
        if run.first and (step.iteration % args.sample_every == 0 or last):
            with run.clock_stopped():
                everything = data.in_order(held_out, args.batch_size, data.from_bytes_noisy, args.device, held_out_labels)
                loss, wasserstein, _ = wgan_gp.held_out_loss(G, D, everything, latents, method)
                measured.update(held_out_loss=loss, held_out_wasserstein=wasserstein)
                if args.conditional:
                    real = next(data.in_order(held_out, 1_000, data.from_bytes_noisy, args.device, held_out_labels))
                    measured.update(accuracies(D, G, real, latents(1_000)))
                x_tilde = wgan_gp.sample(G, lambda m: fixed, 100)
                runs.save_png(runs.image_grid(to_bytes(x_tilde), columns=10), run.sample_path(step.iteration))
        if net and (step.iteration % args.score_every == 0 or last):
            with run.clock_stopped():
                samples = wgan_gp.sample(G, latents, args.score_samples, convert=to_bytes)
                score, deviation = inception.inception_score(samples, net)
                measured.update(inception_score=score, inception_deviation=deviation, samples_scored=len(samples))
        run.log(step, **measured)
        run.checkpoint(step.iteration)
    run.finish()


@torch.no_grad()
def accuracies(D, G, real, latents):
    """The share of real (held-out), and of generated, images that D's classifier puts into their class."""
    (x, y), (z, y_tilde) = real, latents
    return {"accuracy_real": (D.classify(x).argmax(1) == y).float().mean().item(),
            "accuracy_generated": (D.classify(G(z, y_tilde)).argmax(1) == y_tilde).float().mean().item()}


def summary(args):
    """Appendix F's tables: each part with the shape of its output and the number of its weights."""
    G = models.CifarResNetGenerator(args.dim, args.conditional)
    D = models.CifarResNetCritic(args.dim, args.conditional)
    z, y = torch.randn(2, models.LATENT), [torch.arange(2)] if args.conditional else []
    G_rows = [("z", "-", "-", None, (models.LATENT,)), ("Linear", "-", "-", G.linear, (args.dim, 4, 4))]
    G_rows += [("Residual block", "[3x3] x 2", "Up", block, None) for block in G.blocks]
    G_rows += [("Norm, ReLU, conv, tanh", "3x3", "-", torch.nn.ModuleList([G.norm, G.conv]), (3, 32, 32))]
    D_rows = [("Residual block", "[3x3] x 2", "Down" if i < 2 else "-", block, None) for i, block in enumerate(D.blocks)]
    D_rows += [("ReLU, mean pool", "-", "-", None, (args.dim,)), ("Linear", "-", "-", D.score, (1,))]
    if args.conditional:
        D_rows += [("Linear, of the classes", "-", "-", D.label, (10,))]
    shapes = {}
    for block in [*G.blocks, *D.blocks]:
        block.register_forward_hook(lambda block, _, out: shapes.update({block: tuple(out.shape[1:])}))
    D(G(z, *y))
    for title, network, rows in [("Generator G(z)", G, G_rows), ("Critic D(x)", D, D_rows)]:
        print(f"{title:<24}{'Kernel size':<13}{'Resample':<10}{'Output shape':<15}{'Weights':>10}")
        for name, kernel, resample, part, shape in rows:
            shape = " x ".join(map(str, shape or shapes[part]))
            weights = sum(p.numel() for p in part.parameters()) if part else 0
            print(f"{name:<24}{kernel:<13}{resample:<10}{shape:<15}{weights:>10,}")
        print(f"{'':<62}{sum(p.numel() for p in network.parameters()):>10,}\n")


if __name__ == "__main__":
    runs.main(main)
