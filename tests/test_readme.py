"""The README: every piece of code in it runs and does what it says, every link leads somewhere."""
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import models
import wgan_gp

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def code(heading, which=0):
    """The which-th piece of Python below a heading."""
    below = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return below.split("```python\n")[1 + which].split("```")[0]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few shapes instead of 20,000."""
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 80), seed, size))


def test_the_penalty_to_paste_is_the_penalty(monkeypatch):
    names = {}
    exec(code("The penalty, to paste"), names)
    assert len(code("The penalty, to paste").splitlines()) <= 12
    torch.manual_seed(0)
    D = models.cifar_critic(4).double()
    x, x_tilde = torch.randn(6, 3, 32, 32).double(), torch.randn(6, 3, 32, 32).double()
    monkeypatch.setattr(torch, "rand", partial(torch.rand, dtype=torch.float64))  # of eps; it leaves that to torch's default
    torch.manual_seed(1)
    pasted = names["critic_loss"](D, x, x_tilde)
    torch.manual_seed(1)
    loss, _, _ = wgan_gp.critic_loss(D, x, x_tilde)
    assert pasted.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(pasted, list(D.parameters())), torch.autograd.grad(loss, list(D.parameters())))


def test_the_loop_to_paste_is_algorithm_1():
    """The same random numbers give the same weights as wgan_gp.train."""
    names, trained = {}, []
    exec(code("The penalty, to paste"), names)
    exec(code("The penalty, to paste", 1), names)
    for paste in (True, False):
        torch.manual_seed(0)
        G, D = torch.nn.Linear(5, 2), models.toy_critic(8)
        batches = iter(torch.randn(100, 4, 2))
        if paste:
            names["train"](G, D, batches, 3, latent=5)
        else:
            opt_G, opt_D = [wgan_gp.WGAN_GP.optimizer(network.parameters()) for network in (G, D)]
            list(wgan_gp.train(G, D, ((x,) for x in batches), lambda m: (torch.randn(m, 5),), opt_G, opt_D, iterations=3,
                               seed=None))
        trained.append([*G.parameters(), *D.parameters()])
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-7)


def test_ones_own_networks_and_loop(capsys):
    names = {}
    exec(code("To change things"), names)
    lines = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [1, 2, 3] and np.isfinite(lines).all()


def test_another_penalty():
    """2.5 E|grad D|^2 of a linear critic D(x) = w x is 2.5 |w|^2, whose gradient is 5 w."""
    names = {}
    exec(code("To change things", 1), names)
    D = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    w = D[0].weight
    term = names["r1"](D, torch.randn(4, 3))
    assert term.item() == pytest.approx(2.5 * w.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(term, w)[0], 5 * w)
    method = names["method"]
    G, x = torch.nn.Linear(2, 3), torch.randn(4, 3)
    opt_D = method.optimizer(D.parameters())
    loss, _, penalty = wgan_gp.critic_step(G, D, opt_D, x, torch.randn(4, 2), method=method)
    assert penalty == 0 and loss > 0 and w.grad is not None


def test_the_way_to_sample_a_saved_generator(call, tmp_path, monkeypatch):
    snippet = code("Scores")
    assert "checkpoint.pt" in snippet and "50_000" in snippet
    monkeypatch.chdir(tmp_path)
    status, _, stderr = call("train_cifar.py", "--data", "shapes", "--batch-size", "4", "--score-every", "0",
                             "--iterations", 1, "--out", "runs/cifar-wgan-gp")
    assert status == 0, stderr
    exec(snippet.replace("50_000", "120"), {})
    x = np.load("samples.npy")
    assert x.shape == (120, 3, 32, 32) and x.dtype == np.uint8 and x.std() > 5


def test_every_link_leads_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("results/**/*.md")]:
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        gone = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
        assert not gone, f"{page}: {gone}"
    assert len(re.findall(r"\]\(", TEXT)) > 10


def test_links_within_the_readme_lead_to_its_headings():
    """A heading's anchor is its words in lower case, without punctuation, hyphens for spaces."""
    headings = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"(?m)^#+ (.*)", TEXT)]
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert len(links) > 3 and [link for link in links if link not in headings] == []


def test_links_to_lines_lead_to_what_they_name():
    """[`name`](file.py#L12) is where `def name`, `class name` or `name =` begins."""
    wrong = []
    for page in ROOT.glob("*.md"):
        for name, file, line in re.findall(r"\[`([\w.]+)[^`]*`\]\((\w+\.py)#L(\d+)\)", page.read_text()):
            lines = (ROOT / file).read_text().splitlines()
            begins = re.compile(rf"\s*(def|class) {name.split('.')[-1]}\b|{name} = ")
            if not begins.match(lines[int(line) - 1] if int(line) <= len(lines) else ""):
                there = [i for i, text in enumerate(lines, 1) if begins.match(text)]
                wrong.append(f"{page.name}: {name} is not in line {line} of {file}, but in {there}")
    assert not wrong, "\n".join(wrong)


def test_every_test_that_is_named_is_in_the_file_that_it_links_to():
    links = re.findall(r"\[`(test_\w+)`\]\((tests/\w+\.py)\)", TEXT)
    assert len(links) > 10
    assert [(name, file) for name, file in links if f"def {name}(" not in (ROOT / file).read_text()] == []


def test_every_script_is_in_the_readme():
    for script in ROOT.glob("train_*.py"):
        assert f"python {script.name}" in TEXT, script.name
