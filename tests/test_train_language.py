"""train_language.py: n-grams and divergences against brute force, and the script through its command line."""
import collections
import functools
import math
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

import runs
import train_language as script
from conftest import ctrl_c_after, rows, same

SMALL = ["--dim", "6", "--batch-size", "8", "--n-critic", "2", "--sample-every", "2", "--iterations", "5"]


@pytest.fixture
def call(call):
    return functools.partial(call, "train_language.py")


@pytest.fixture
def text(tmp_path):
    """A file of 60 sentences."""
    some = random.Random(0)
    words = "the a cat dog sat ran on under mat café 3 .".split()
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(some.choices(words, k=8)) for _ in range(60)), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------ statistics

def brute_count(lines, n):
    return collections.Counter(tuple(line[i:i + n]) for line in lines for i in range(len(line) - n + 1))


def brute_js(p, q):
    """Half of KL(p || m) + KL(q || m), in bits, as the definition has it."""
    total, ps, qs = 0.0, sum(p.values()), sum(q.values())
    for gram in p.keys() | q.keys():
        a, b = p[gram] / ps, q[gram] / qs
        m = (a + b) / 2
        total += (a * math.log2(a / m) if a else 0) / 2 + (b * math.log2(b / m) if b else 0) / 2
    return total


def lines_of(size, count, length, seed, low=0):
    return np.random.default_rng(seed).integers(low, size, (count, length)).astype(np.int16)


@pytest.mark.parametrize("size", [2, 30, 2048])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_n_grams_are_those_of_a_brute_force_count(size, n):
    codes = lines_of(size, 50, 9, seed=n)
    codes[:5] = size - 1  # the largest number there is
    expected = {sum(code * size ** (n - 1 - k) for k, code in enumerate(gram)): count
                for gram, count in brute_count(codes.tolist(), n).items()}
    for chunk in (100_000, 7):
        grams, counts = script.n_grams(codes, n, size, chunk)
        assert dict(zip(grams.tolist(), counts.tolist())) == expected
        assert (np.diff(grams) > 0).all() and counts.sum() == 50 * (9 - n + 1)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_divergence_is_that_of_the_definition_also_where_only_one_side_has_an_n_gram(n):
    a, b = lines_of(12, 40, 8, seed=1), lines_of(15, 70, 8, seed=2, low=4)
    expected = brute_js(brute_count(a.tolist(), n), brute_count(b.tolist(), n))
    p, q = script.n_grams(a, n, 15), script.n_grams(b, n, 15)
    assert 0.01 < expected < 1
    assert script.js_divergence(p, q) == pytest.approx(expected, rel=1e-12)
    assert script.js_divergence(q, p) == pytest.approx(expected, rel=1e-12)


def test_divergence_of_equal_texts_is_0_and_of_disjoint_ones_1_bit():
    a, b = lines_of(10, 20, 8, seed=0), lines_of(20, 30, 8, seed=0, low=10)
    for n in (1, 4):
        p, q = script.n_grams(a, n, 20), script.n_grams(b, n, 20)
        assert script.js_divergence(p, p) == pytest.approx(0, abs=1e-12)
        assert script.js_divergence(p, script.merge(p, p)) == pytest.approx(0, abs=1e-12)  # twice the same text
        assert script.js_divergence(p, q) == pytest.approx(1) == script.js_divergence(q, p)


def test_statistics_split_off_the_first_640_lines():
    codes = lines_of(9, 1500, 6, seed=3)
    counts, floors = script.statistics(codes, 9)
    for n in (1, 2, 3, 4):
        grams, times = script.n_grams(codes, n, 9)
        assert np.array_equal(counts[n][0], grams) and np.array_equal(counts[n][1], times)
        first, rest = brute_count(codes[:640].tolist(), n), brute_count(codes[640:].tolist(), n)
        assert floors[f"js{n}_floor"] == pytest.approx(brute_js(first, rest), rel=1e-9)
    few = lines_of(9, 10, 6, seed=4)  # half of them, where there are not so many
    expected = brute_js(brute_count(few[:5].tolist(), 1), brute_count(few[5:].tolist(), 1))
    assert script.statistics(few, 9)[1]["js1_floor"] == pytest.approx(expected)


def test_one_hot():
    codes = torch.tensor([[0, 2, 1], [2, 2, 0]], dtype=torch.uint8)
    x = script.one_hot(codes, 4)
    assert x.shape == (2, 4, 3) and x.dtype == torch.float32 and x.sum(1).eq(1).all()
    assert torch.equal(x.argmax(1), codes.long())
    assert torch.equal(x, torch.nn.functional.one_hot(codes.long(), 4).transpose(1, 2).float())


# ----------------------------------------------------------------------------------------------- the command line

def test_samples_and_divergences(call, tmp_path, text):
    out = tmp_path / "run"
    code, stdout, stderr = call(*SMALL, "--data", text, "--out", out)
    assert code == 0, stderr
    log = runs.read_log(out)
    orders = (1, 2, 3, 4)
    assert list(log) == [*runs.Run.COLUMNS, *(f"js{n}" for n in orders), *(f"js{n}_floor" for n in orders)]
    assert np.isfinite(log["js1"]).tolist() == [False, True, False, True, True]  # every second, and the last
    lines = text.read_text(encoding="utf-8").splitlines()
    padded = [line[:32].ljust(32, "`") for line in lines]
    samples = (out / "samples" / "000005.txt").read_text(encoding="utf-8").splitlines()
    assert len(samples) == 640 and {len(line) for line in samples} == {32}
    for n in orders:  # from the files alone
        expected = brute_js(brute_count(samples, n), brute_count(padded, n))
        assert log[f"js{n}"][-1] == pytest.approx(expected, rel=1e-5)
        floor = brute_js(brute_count(padded[:30], n), brute_count(padded[30:], n))
        assert log[f"js{n}_floor"][-1] == pytest.approx(floor, rel=1e-5) and f"js{n}_floor {floor:.4f}" in stdout
    assert Image.open(out / "curves.png").height > 3 * 360  # three rows of charts
    assert sorted(os.listdir(out / "samples")) == ["000002.txt", "000004.txt", "000005.txt"]


@pytest.mark.parametrize("method", ["wgan-gp", "dcgan", "wgan"])
def test_interrupted_and_resumed_is_the_undisturbed_run_bit_for_bit(call, tmp_path, text, method):
    command = [*SMALL, "--data", text, "--method", method]
    assert call(*command, "--out", tmp_path / "whole")[0] == 0
    with ctrl_c_after(3):
        code, _, stderr = call(*command, "--out", tmp_path / "cut")
    assert code == 130 and "saved iteration 3" in stderr
    assert call(*command, "--out", tmp_path / "cut", "--resume")[0] == 0
    whole, cut = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "cut"))
    assert same(whole["objects"], cut["objects"]) and rows(tmp_path / "whole") == rows(tmp_path / "cut")
    last = ["samples/000005.txt", "curves.png"]
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "cut" / n).read_bytes() for n in last)


def test_critic_steps_and_beta1_reach_the_training(call, tmp_path, text, monkeypatch):
    train, seen = script.wgan_gp.train, []

    def look(G, D, batches, latents, opt_G, opt_D, method, **rest):
        seen.append((method.n_critic, opt_D.param_groups[0].get("betas")))
        return train(G, D, batches, latents, opt_G, opt_D, method, **rest)
    monkeypatch.setattr(script.wgan_gp, "train", look)
    for i, flags in enumerate([[], ["--n-critic", "3", "--beta1", "0.5"], ["--method", "dcgan"]]):
        flags = ["--dim", "2", "--batch-size", "4", "--iterations", "1", "--data", text, *flags]
        assert call(*flags, "--out", tmp_path / str(i))[0] == 0
    assert seen == [(10, (0.0, 0.9)), (3, (0.5, 0.9)), (1, (0.5, 0.999))]


def test_defaults_are_the_papers_and_the_authors(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_language.py"])
    args = script.parse()
    assert (args.dim, args.n_critic, args.batch_size, args.length) == (512, 10, 64, 32)
    assert (args.iterations, args.max_lines, args.data, args.method) == (200_000, 10_000_000, "billion-word", "wgan-gp")


def test_mistakes_are_one_line(call, tmp_path, text):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("ein schöner Tag\n".encode("latin-1") * 20)
    (tmp_path / "few.txt").write_text("one\ntwo\nthree\n")
    for name, words in [("empty.txt", "no lines"), ("latin.txt", "not UTF-8"), ("few.txt", "3 lines are fewer"),
                        ("missing.txt", "no text is called")]:
        code, _, stderr = call(*SMALL, "--data", tmp_path / name, "--out", tmp_path / "none")
        assert code == 1 and words in stderr and len(stderr.splitlines()) == 1
        assert not (tmp_path / "none").exists()
    for flags in (["--method", "gan"], ["--length", "3"], ["--method", "wgan", "--beta1", "0.5"]):
        code, _, stderr = call("--data", text, "--out", tmp_path / "none", *flags)
        assert code == 2 and flags[0] in stderr.splitlines()[-1].replace("--beta1", flags[0])
    assert call(*SMALL, "--data", text, "--out", tmp_path / "run")[0] == 0
    code, _, stderr = call(*SMALL, "--data", text, "--out", tmp_path / "run", "--resume", "--length", "16")
    assert code == 2 and "--length 32" in stderr
