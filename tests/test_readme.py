"""The README: every piece of code in it runs and does what it says, and every link, name and command exists."""
import ast
import re
import shlex
import subprocess
import sys
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
    """Return the which-th piece of Python below a heading."""
    below = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return below.split("```python\n")[1 + which].split("```")[0]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Draw few shapes instead of 20,000."""
    draw = data.shapes
    monkeypatch.setattr(data, "shapes", lambda n, seed=0, size=32: draw(min(n, 80), seed, size))


def test_it_stays_short():
    assert len(TEXT.splitlines()) <= 230 and len(TEXT.encode()) <= 14_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_penalty_to_paste_is_the_penalty(dtype):
    names = {}
    exec(code("The penalty, to paste"), names)
    torch.manual_seed(0)
    D = models.toy_critic(8).to(dtype)
    x, x_tilde = torch.randn(2, 6, 2, dtype=dtype)
    losses = []
    for critic_loss in (names["critic_loss"], lambda *args: wgan_gp.critic_loss(*args)[0]):
        torch.manual_seed(1)
        loss = critic_loss(D, x, x_tilde)
        losses.append([loss, *torch.autograd.grad(loss, list(D.parameters())[:-1])])
    assert losses[0][0].dtype == dtype
    torch.testing.assert_close(*losses)


def test_the_penalty_to_paste_refuses_what_it_cannot_do():
    names = {}
    exec(code("The penalty, to paste"), names)
    x = torch.rand(4, 3, 8, 8)
    with pytest.raises(AssertionError, match="one score per example"):
        names["gradient_penalty"](torch.nn.Conv2d(3, 1, 3), x, x)
    with pytest.raises(AssertionError, match="one shape"):
        names["gradient_penalty"](torch.nn.Flatten(), x, x[:2])


def test_the_loop_to_paste_is_algorithm_1():
    """The same random numbers give the same weights as wgan_gp.train."""
    names, trained = {}, []
    exec(code("The penalty, to paste"), names)
    exec(code("The penalty, to paste", 1), names)
    for paste in (True, False):
        torch.manual_seed(0)
        G, D = torch.nn.Linear(5, 2), models.toy_critic(8)
        opt_G, opt_D = wgan_gp.WGAN_GP.make_optimizer(G), wgan_gp.WGAN_GP.make_optimizer(D)
        batches = iter(torch.randn(100, 4, 2))
        if paste:
            names["train"](G, D, batches, lambda m: torch.randn(m, 5), opt_G, opt_D, 3)
        else:
            list(wgan_gp.train(G, D, batches, lambda m: (torch.randn(m, 5),), opt_G, opt_D, iterations=3))
        trained.append([*G.parameters(), *D.parameters()])
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-7)


def test_the_table_of_critics():
    """Each row of "your critic, works?, write instead"."""
    x, x_tilde = torch.rand(2, 4, 3, 8, 8)
    y, embed, patch = torch.arange(4), torch.nn.Embedding(4, 1), torch.nn.Conv2d(3, 1, 3)
    wgan_gp.critic_loss(lambda x: (x.flatten(1).sum(1) * embed(y)[:, 0]), x, x_tilde)[0].backward()
    for refused in (lambda x: (patch(x).flatten(1).mean(1), None), patch):
        with pytest.raises(ValueError, match="one score per example"):
            wgan_gp.critic_loss(refused, x, x_tilde)
    for instead in (lambda x: patch(x).flatten(1).mean(1), lambda x: (patch(x).flatten(1).mean(1), None)[0]):
        wgan_gp.critic_loss(instead, x, x_tilde)[0].backward()


def test_a_compiled_critic_is_refused():
    """In a process of its own, because the compiler keeps what it has traced."""
    program = ("import torch, models, wgan_gp; D = torch.compile(models.toy_critic(4), backend='aot_eager'); "
               "wgan_gp.critic_loss(D, *torch.rand(2, 4, 2))[0].backward()")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "double backward" in done.stderr


def test_ones_own_networks(capsys):
    exec(code("Your own images, networks, penalty"), {})
    lines = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [1, 2, 3] and np.isfinite(lines).all()


def test_another_penalty():
    """2.5 E|grad D|^2 of a linear critic D(x) = w x is 2.5 |w|^2, whose gradient is 5 w."""
    names = {}
    exec(code("Your own images, networks, penalty", 1), names)
    D = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    w = D[0].weight
    term = names["r1"](D, torch.randn(4, 3))
    assert term.item() == pytest.approx(2.5 * w.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(term, w)[0], 5 * w)
    G, opt_D = torch.nn.Linear(2, 3), names["method"].make_optimizer(D)
    loss, _, penalty = wgan_gp.critic_step(G, D, opt_D, torch.randn(4, 3), torch.randn(4, 2), method=names["method"])
    assert penalty == 0 and loss > 0 and w.grad is not None


def test_every_link_leads_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("results/**/*.md")]:
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        gone = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
        assert not gone, f"{page}: {gone}"
    assert len(re.findall(r"\]\(", TEXT)) > 10


def test_every_name_and_flag_exists():
    """Names in backticks are defined in a file of the project, and flags are in one."""
    sources = {path.name: path.read_text() for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")]}
    everything = "\n".join(sources.values())
    for text in re.findall(r"`([^`\n]+)`", TEXT):
        for flag in re.findall(r"--[a-z][\w-]+", text):
            assert f'"{flag}"' in everything or "torch" in text or "pip" in text, flag
        if re.fullmatch(r"\w+\.(?!py)\w+", text) and f"{text.split('.')[0]}.py" in sources:
            module, name = text.split(".")
            assert re.search(rf"(?m)^(def|class) {name}\b|^{name}\b", sources[f"{module}.py"]), text
        for script in re.findall(r"\w+\.py\b", text):
            assert script in sources, script


def test_every_command_is_understood(monkeypatch):
    """The flags of every "python train_...py" are known to the script, and so are their values."""
    commands = re.findall(r"python (train_\w+\.py|sample\.py|inception\.py)([^`\n|#>&']*)", TEXT)
    assert {script for script, _ in commands} >= {path.name for path in ROOT.glob("train_*.py")} | {"sample.py"}
    for script, flags in commands:
        module = __import__(script[:-3])
        if not hasattr(module, "parse") or "$" in flags:
            continue
        monkeypatch.setattr("sys.argv", [script, "--device", "cpu", *shlex.split(flags.replace("--fast", ""))])
        try:
            module.parse()
        except SystemExit as leave:
            assert leave.code == 0, script + flags


def test_the_number_of_lines_is_right():
    lines = sum(len(path.read_text().splitlines()) for path in ROOT.glob("*.py"))
    said, = re.findall(r"([\d,]+) lines of code", TEXT)
    assert abs(int(said.replace(",", "")) - lines) <= 100


def test_pages_of_python_parse():
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        ast.parse(block)
