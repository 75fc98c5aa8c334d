"""train_language.py: n-grams and divergences against brute force, and a run's files."""
import argparse
import collections
import math
import random

import numpy as np
import pytest
import torch

import data
import models
import runs
import train_language as script
from conftest import states

SMALL = ["--dim", "6", "--batch-size", "8", "--n-critic", "2", "--sample-every", "2", "--iterations", "5"]


@pytest.fixture
def text(tmp_path):
    """A file of 60 sentences."""
    words = "the a cat dog sat ran on under mat café 3 .".split()
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(random.Random(i).choices(words, k=8)) for i in range(60)), encoding="utf-8")
    return path


# ---- statistics ----

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


# ---- a run ----

def test_samples_divergences_and_alphabet(call, tmp_path, text):
    out = tmp_path / "run"
    code, _, stderr = call("train_language.py", *SMALL, "--data", text, "--out", out)
    assert code == 0, stderr
    log = runs.read_log(out)
    assert np.isfinite(log["js1"]).tolist() == [False, True, False, True, True]  # every second, and the last
    lines = text.read_text(encoding="utf-8").splitlines()
    torch.manual_seed(0)
    padded = [lines[i][:32].ljust(32, "`") for i in torch.randperm(60)]  # in random order, by the seed
    samples = (out / "samples" / "000005.txt").read_text(encoding="utf-8").splitlines()
    assert len(samples) == 640 and {len(line) for line in samples} == {32}
    for n in (1, 2, 3, 4):  # from the files alone
        expected = brute_js(brute_count(samples, n), brute_count(padded, n))
        assert log[f"js{n}"][-1] == pytest.approx(expected, rel=1e-5)
        floor = brute_js(brute_count(padded[:30], n), brute_count(padded[30:], n))
        assert log[f"js{n}_floor"][-1] == pytest.approx(floor, rel=1e-5)

    # generator(args) needs the folder alone
    args = argparse.Namespace(**runs.read_config(out)["flags"] | {"out": out})
    G, latents, to_strings = script.generator(args)
    G.load_state_dict(states(out)[""]["G"])
    alphabet = data.text(text, max_lines=100)[1]
    x_tilde = G(latents(3))
    assert x_tilde.shape == (3, len(alphabet), 32)
    assert to_strings(x_tilde) == ["".join(alphabet[i] for i in row) for row in x_tilde.argmax(1)]


def test_every_look_has_fresh_latents(call, tmp_path, text, monkeypatch):
    drawn, sample = [], script.wgan_gp.sample

    def look(G, latents, n, *rest):
        drawn.append(latents(n))
        return sample(G, latents, n, *rest)
    monkeypatch.setattr(script.wgan_gp, "sample", look)
    assert call("train_language.py", *SMALL, "--data", text, "--out", tmp_path / "run")[0] == 0
    assert len(drawn) == 3 and drawn[0].shape == (640, models.LATENT)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
