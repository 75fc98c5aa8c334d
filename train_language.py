"""Table 4, Section 5.5: a character-level language model, from a continuous generator and no discrete sampling.

    python train_language.py                              on the Billion Word benchmark, at the authors' size
    python train_language.py --data FILE                  on your own text, UTF-8, one sentence a line; or a folder
    python train_language.py --dim 48 --batch-size 32 --n-critic 5 --max-lines 100000    smaller in all ways, for a CPU
    python train_language.py --method dcgan               the standard GAN objective (Section 5.5: no comparable results)

The Billion Word folder or archive (1.7 GB) is looked for in data/ and downloaded if neither is there. Sentences are
cut or padded to 32 characters and one-hot; the generator's softmax goes straight into the critic; the argmax decodes
it. samples/NNNNNN.txt has 640 samples, from the same noise each time. log.csv has, as js1 to js4, the Jensen-Shannon
divergence in bits between the 1- to 4-grams of these 640 and of the data; and, as js1_floor to js4_floor, the same
between the data's first 640 lines and the rest, which says how low it can go. Expect samples to become as in Table 4,
words with frequent spelling errors, with the authors' width of 512 and 200,000 iterations. Ours: results/language.
"""

import numpy as np
import torch

import data
import models
import runs
import wgan_gp

SAMPLES = 640  # as in the authors' code
ORDERS = (1, 2, 3, 4)  # n-grams


def main():
    args = parse()
    method = wgan_gp.METHODS[args.method].with_beta1(args.beta1)
    if method.n_critic > 1:
        method = method._replace(n_critic=args.n_critic)
    out = runs.folder(args, f"runs/language-{args.method}")
    codes, alphabet = data.text(args.data, args.data_dir, args.max_lines, args.length)
    if len(codes) < args.batch_size:
        raise runs.Mistake(f"{args.data}: {len(codes)} lines are fewer than a batch of {args.batch_size}: "
                           f"lower --batch-size, or add lines")
    run = runs.Run(args, out, columns=[f"js{n}" for n in ORDERS] + [f"js{n}_floor" for n in ORDERS], data=codes, charts=[
        (f"JS divergence of {n}-grams (bits)", [f"js{n}", f"js{n}_floor"]) for n in ORDERS])
    counts, floors = statistics(codes.numpy(), len(alphabet))
    print(f"{len(codes)} lines, {len(alphabet)} characters; of real lines: "
          + ", ".join(f"{name} {value:.4f}" for name, value in floors.items()))

    G = models.language_generator(len(alphabet), args.length, args.dim).to(args.device)
    D = models.language_critic(len(alphabet), args.length, args.dim).to(args.device)
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
    batches = data.batches(codes, args.batch_size, lambda codes: one_hot(codes, len(alphabet)), args.device)
    latents = lambda m: (torch.randn(m, models.LATENT, device=args.device),)
    fixed_z = torch.randn(SAMPLES, models.LATENT, generator=torch.Generator().manual_seed(args.seed)).to(args.device)

    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    for step in wgan_gp.train(G, D, batches, latents, opt_G, opt_D, method,
                              iterations=args.iterations, start=start, seed=args.seed):
        measured = {}
        if step.iteration % args.sample_every == 0 or step.iteration == args.iterations:
            with run.clock_stopped(), torch.no_grad():
                samples = torch.cat([G(z).argmax(1) for z in fixed_z.split(64)]).cpu()
                lines = data.decode(samples, alphabet)
                runs.write(run.sample_path(step.iteration, ".txt"), "\n".join(lines) + "\n")
                measured = {f"js{n}": js_divergence(n_grams(samples.numpy(), n, len(alphabet)), counts[n])
                            for n in ORDERS} | floors
        run.log(step, **measured)
        run.checkpoint(step.iteration)
    run.finish()


def parse():
    parser = runs.flags(__doc__, data="billion-word", iterations=200_000, batch_size=64)
    parser.add_argument("--method", choices=wgan_gp.METHODS, default="wgan-gp", help="(default wgan-gp)")
    parser.add_argument("--dim", type=runs.whole(1), default=512, help="width of both networks (authors' code: 512)")
    parser.add_argument("--n-critic", type=runs.whole(1), default=10, metavar="N",
                        help="critic steps per iteration (authors' code: 10; Algorithm 1: 5); "
                             "dcgan, lsgan and dcgan-gp have 1")
    parser.add_argument("--beta1", type=runs.number(0, 1), help="Adam's (Algorithm 1: 0; the authors' code: .5)")
    parser.add_argument("--length", type=runs.whole(max(ORDERS)), default=32, metavar="N",
                        help="characters in a sentence (Section 5.5: 32)")
    parser.add_argument("--max-lines", type=runs.whole(2), default=10_000_000, metavar="N",
                        help="lines to read at most (authors' code: 10 million)")
    parser.add_argument("--sample-every", type=runs.whole(1), default=100, metavar="N",
                        help="iterations between samples and divergences (default 100)")
    args = parser.parse_args()
    if args.beta1 is not None and args.method not in wgan_gp.ADAM:
        parser.error(f"--beta1 is Adam's, and {args.method} uses RMSProp")
    return args


def one_hot(codes, size):
    """Codes (m, length) as one-hot vectors, float32 (m, size, length)."""
    zeros = torch.zeros(len(codes), size, codes.shape[1], device=codes.device)
    return zeros.scatter_(1, codes.long()[:, None], 1)


# --------------------------------------------------------------------------------------------- statistics of n-grams

def statistics(codes, size):
    """({n: the n-grams of all lines}, {"js1_floor": the divergence between the first 640 lines and the rest, ...})."""
    counts, floors = {}, {}
    some = min(SAMPLES, len(codes) // 2)
    for n in ORDERS:
        first, rest = n_grams(codes[:some], n, size), n_grams(codes[some:], n, size)
        counts[n], floors[f"js{n}_floor"] = merge(first, rest), js_divergence(first, rest)
    return counts, floors


def n_grams(codes, n, size, chunk=100_000):
    """The n-grams in the lines `codes`, integers N x length below `size`, pads included: (n-grams, how often each).

    Two int64 arrays, n-grams ascending. An n-gram is one number, its codes the digits in base `size`: exact while
    size**n < 2**63, as 2048**4 is. Lines are counted `chunk` at a time, so that millions need no more memory.
    """
    counted = np.empty(0, np.int64), np.empty(0, np.int64)
    for i in range(0, len(codes), chunk):
        lines = codes[i:i + chunk].astype(np.int64)
        windows = lines.shape[1] - n + 1
        packed = sum(lines[:, k:k + windows] * size ** (n - 1 - k) for k in range(n))
        counted = merge(counted, np.unique(packed, return_counts=True))
    return counted


def merge(a, b):
    """The n-grams of two texts, each as n_grams gives them, together."""
    grams, where = np.unique(np.concatenate([a[0], b[0]]), return_inverse=True)
    return grams, np.bincount(where, np.concatenate([a[1], b[1]]), len(grams)).astype(np.int64)


def js_divergence(a, b):
    """The Jensen-Shannon divergence in bits, 0 to 1, between the distributions of two n_grams.

    With m = (p + q)/2: (KL(p || m) + KL(q || m))/2. An n-gram that only b has adds q log2(q/(q/2)) = q to the
    second sum, so it is enough to look up those of a: let a be the shorter.
    """
    (grams, p), (others, q) = a, b
    p, q = p / p.sum(), q / q.sum()
    where = np.searchsorted(others, grams).clip(max=len(others) - 1)
    q = np.where(others[where] == grams, q[where], 0)  # of a's n-grams
    both = q > 0
    p_to_m = (p * np.log2(2 * p / (p + q))).sum()
    q_to_m = (q[both] * np.log2(2 * q[both] / (p + q)[both])).sum() + (1 - q.sum())
    return float((p_to_m + q_to_m) / 2)


if __name__ == "__main__":
    runs.main(main)
