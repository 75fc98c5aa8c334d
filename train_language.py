"""Table 4, Section 5.5: a character-level language model without discrete sampling.

    python train_language.py                     on the Billion Word benchmark: for a GPU
    python train_language.py --data FILE         your own text, UTF-8, one sentence a line; or a folder
    python train_language.py --dim 48 --batch-size 32 --n-critic 5 --max-lines 100000      for a CPU
    python train_language.py --method dcgan      the standard GAN objective

The Billion Word folder or archive (1.7 GB) is looked for in data/ and downloaded if neither is there.
Sentences are cut or padded to 32 characters. The critic sees one-hot characters or the generator's softmax.
samples/NNNNNN.txt has 640 samples. log.csv has their Jensen-Shannon divergence from the data, in bits, for
n-grams of 1 to 4 characters (js1 to js4), and that of 640 real lines, the lowest to expect (js1_floor).

Expect words with frequent spelling errors after 200,000 iterations (Table 4), and nothing comparable from
the standard GAN. Our runs, 10,000 iterations at width 48: results/language.
"""
import json
from pathlib import Path

import numpy as np
import torch

import data
import fast
import models
import runs
import wgan_gp

SAMPLES = 640  # per divergence, as in the authors' code
ORDERS = (1, 2, 3, 4)  # n-grams


def parse():
    parser = runs.flags(__doc__, data="billion-word", iterations=200_000, batch_size=64, sample_every=100)
    add = parser.add_argument
    add("--method", choices=wgan_gp.METHODS, default="wgan-gp", help="(default wgan-gp)")
    add("--dim", type=runs.whole(1, 65_536), default=512, help="width (authors' code: 512)")
    add("--n-critic", type=runs.whole(1), metavar="N",
        help="critic steps (authors' code: 10; Algorithm 1: 5; other losses: 1)")
    add("--beta1", type=runs.number(0, 1), help="Adam's (Algorithm 1: 0; authors' code: 0.5)")
    add("--length", type=runs.whole(4, 65_536), default=32, help="characters a line (Section 5.5: 32)")
    add("--max-lines", type=runs.whole(2), default=10_000_000, help="(authors' code: 10 million)")
    args = fast.parse(parser)
    method = wgan_gp.METHODS[args.method]
    if args.beta1 is not None and method.optimizer != "adam":
        parser.error(f"--beta1 is Adam's, and {args.method} uses RMSProp")
    args.n_critic = args.n_critic or {5: 10, 1: 1}[method.n_critic]
    name = "language-{method}" if args.data == "billion-word" else "language-{data}-{method}"
    args.out = args.out or runs.default_out(parser, args, name)
    return args


def main():
    args = parse()
    method = wgan_gp.METHODS[args.method]._replace(n_critic=args.n_critic)
    if args.beta1 is not None:
        method = method._replace(beta1=args.beta1)

    # data: sentences as codes, in random order
    runs.check_out(args)
    codes, alphabet = data.text(args.data, args.data_dir, args.max_lines, args.length)
    torch.manual_seed(args.seed)
    codes = codes[torch.randperm(len(codes))]
    batches = data.batches(codes, args.batch_size, lambda codes: one_hot(codes, len(alphabet)), args.device)
    charts = [(f"Jensen-Shannon divergence of {n}-grams (bits)",
               {f"js{n}": f"{SAMPLES} samples", f"js{n}_floor": "real lines"}) for n in ORDERS]
    columns = [f"js{n}" for n in ORDERS] + [f"js{n}_floor" for n in ORDERS]
    run = runs.Run(args, columns, charts, codes)
    if run.first:
        counts, floors = statistics(codes.numpy(), len(alphabet))
        run.write("alphabet.json", json.dumps(alphabet) + "\n")
        print(f"{len(codes)} lines, {len(alphabet)} characters")

    # networks
    G, latents, _ = generator(args, alphabet)
    D = models.language_critic(len(alphabet), args.length, args.dim).to(args.device)
    opt_G, opt_D = method.make_optimizer(G), method.make_optimizer(D)

    # resume or start, and train
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)
    train = fast.choose(args)
    for step in train(G, D, batches, latents, opt_G, opt_D, method, args.iterations, start, args.seed):
        measured = {}
        if run.every(args.sample_every, step):
            with run.clock_stopped():
                samples = wgan_gp.sample(G, latents, SAMPLES, 64, to_codes)
                run.save_sample(step, "\n".join(data.decode(samples, alphabet)) + "\n", "txt")
                for n in ORDERS:
                    measured[f"js{n}"] = js_divergence(n_grams(samples.numpy(), n, len(alphabet)), counts[n])
                measured.update(floors)
        run.log(step, **measured)
        run.checkpoint(step)
    run.finish()


def generator(args, alphabet=None):
    """Return G, its latent sampler and the conversion of its output to strings. sample.py uses it.

    alphabet: by default that of the run in args.out.
    """
    if alphabet is None:
        alphabet = json.loads((Path(args.out) / "alphabet.json").read_text())
    G = models.language_generator(len(alphabet), args.length, args.dim).to(args.device)
    latents = lambda m: torch.randn(m, models.LATENT, device=args.device)
    return G, latents, lambda x_tilde: data.decode(to_codes(x_tilde), alphabet)


def one_hot(codes, size):
    """Convert codes (m, length) to one-hot vectors, float32 (m, size, length)."""
    zeros = torch.zeros(len(codes), size, codes.shape[1], device=codes.device)
    return zeros.scatter_(1, codes.long()[:, None], 1)


def to_codes(x_tilde):
    """Convert distributions (m, size, length) to the most likely codes (m, length), on the CPU."""
    return x_tilde.argmax(1).cpu()


# ---- statistics of n-grams ----

def statistics(codes, size):
    """Return {n: the n-grams of all lines}, {"js1_floor": divergence of 640 from the rest, ...}."""
    counts, floors = {}, {}
    some = min(SAMPLES, len(codes) // 2)
    for n in ORDERS:
        first, rest = n_grams(codes[:some], n, size), n_grams(codes[some:], n, size)
        counts[n], floors[f"js{n}_floor"] = merge(first, rest), js_divergence(first, rest)
    return counts, floors


def n_grams(codes, n, size, chunk=100_000):
    """Count the n-grams in codes, integers N x length below `size`, `chunk` lines at a time.

    Returns two int64 arrays, the n-grams in ascending order and how often each occurs. An n-gram is
    one number, its codes the digits in base `size`: exact while size**n < 2**63, as 2048**4 is.
    """
    counted = np.empty(0, np.int64), np.empty(0, np.int64)
    for i in range(0, len(codes), chunk):
        lines = codes[i:i + chunk].astype(np.int64)
        windows = lines.shape[1] - n + 1
        packed = sum(lines[:, k:k + windows] * size ** (n - 1 - k) for k in range(n))
        counted = merge(counted, np.unique(packed, return_counts=True))
    return counted


def merge(a, b):
    """Return the sum of two counts of n-grams."""
    grams, where = np.unique(np.concatenate([a[0], b[0]]), return_inverse=True)
    return grams, np.bincount(where, np.concatenate([a[1], b[1]]), len(grams)).astype(np.int64)


def js_divergence(a, b):
    """Compute the Jensen-Shannon divergence in bits, 0 to 1, between two counts of n-grams.

    With m = (p + q)/2 it is (KL(p || m) + KL(q || m))/2. N-grams found only in b add q each to the
    second sum, q log2(q/(q/2)), so only those of a are looked up. Pass the shorter list as a.
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
    runs.main(fast.processes(main))
