"""benchmark.py: its operations against counts by hand, and that both of its steps are the same mathematics."""
import json

import pytest
import torch
from torch import nn

import benchmark
import models
import wgan_gp


def pair(shape, m=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(m, *shape, generator=generator, dtype=torch.float64) for _ in range(2)]


# ---- operations ----

def penalised(D, x, x_tilde):
    wgan_gp.critic_loss(D, x, x_tilde)[0].backward()


def test_operations_of_a_two_layer_critic_by_hand():
    """Layers n to h to 1. Each of the 3 passes costs 1 forward, real and generated 1 more for the
    weights, and for the second layer's inputs. The penalty: its gradient, and both factors again.
    """
    m, n, h = 8, 6, 5
    first, second = 2 * m * n * h, 2 * m * h
    x, x_tilde = pair((n,), m)
    D = nn.Sequential(nn.Linear(n, h), models.ReLU(), nn.Linear(h, 1)).double()
    forward, to_weights = first + second, first + second
    # The constant 1/m that begins the penalty's backward pass needs no gradient: the second layer has one
    # product, for its weights, and the first has one more, for what came from above.
    penalty = forward + (first + second) + (2 * first + second)
    expected = 2 * (forward + to_weights + second) + penalty
    assert benchmark.operations(lambda: penalised(D, x, x_tilde)) == expected
    textbook = nn.Sequential(nn.Linear(n, h), nn.ReLU(), nn.Linear(h, 1)).double()
    # The zeros of relu's second derivative go back through the first layer, to its weights and x_hat
    assert benchmark.operations(lambda: penalised(textbook, x, x_tilde)) == expected + 2 * first


def test_operations_of_a_convolution_leave_out_its_padding():
    """5x5, stride 2, padding 2 on 8 pixels: the 4 places see 3, 5, 5 and 4 of them."""
    x = torch.randn(3, 2, 8, 8, requires_grad=True)
    layer = nn.Conv2d(2, 7, 5, stride=2, padding=2)
    forward = 2 * 3 * 2 * 7 * 17 ** 2
    assert benchmark.operations(lambda: layer(x)) == forward
    assert benchmark.operations(lambda: layer(x).sum().backward()) == 3 * forward
    deconv = nn.ConvTranspose2d(7, 2, 5, stride=2, padding=2, output_padding=1)  # the transpose: the same products
    assert benchmark.operations(lambda: deconv(torch.randn(3, 7, 4, 4))) == forward


def test_a_deep_critic_costs_ten_forward_passes_or_twelve_with_zeros_for_a_second_derivative():
    """Real, generated: forward, weights, inputs. Between: forward, inputs, both factors. Zeros: twice more."""
    x, x_tilde = pair((16,), m=32)
    for activation, passes in [(models.ReLU, 10), (nn.ReLU, 12)]:
        layers = [layer for _ in range(50) for layer in (nn.Linear(16, 16), activation())]
        D = nn.Sequential(*layers, nn.Linear(16, 1)).double()
        forward = benchmark.operations(lambda: D(x))
        assert benchmark.operations(lambda: penalised(D, x, x_tilde)) / forward == pytest.approx(passes, rel=0.02)


def test_seconds_are_taken_in_turn_and_the_first_round_does_not_count():
    order, now = [], iter(range(1000))
    functions = [lambda: order.append("a"), lambda: order.append("b")]
    found = benchmark.seconds(functions, 2, "cpu", lambda: next(now))
    assert order == ["a", "b"] * 3 and found == [1, 1]


# ---- both steps are the same ----

@pytest.mark.parametrize("name, dim", [("toy", 16), ("dcgan", 4), ("resnet", 4)])
def test_the_textbook_critic_step_gives_our_loss_and_our_gradients(name, dim):
    case = benchmark.CASES[name]
    torch.manual_seed(0)
    theirs, ours = case.textbook[1](dim).double(), case.ours[1](dim).double()
    with torch.no_grad():
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            p.copy_(q)
    losses = []
    for D, step in [(theirs, benchmark.textbook_critic_step), (ours, wgan_gp.critic_step)]:
        torch.manual_seed(1)  # the same eps
        loss = step(lambda z: z, D, torch.optim.SGD(D.parameters(), lr=0.0), *pair(case.shape))
        losses.append(loss if torch.is_tensor(loss) else loss[0])
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for p, q in zip(theirs.parameters(), ours.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
        assert p.grad.abs().max() > 0 or q is list(ours.parameters())[-1]  # the last bias cancels


def test_the_textbook_resnet_generator_gives_our_images_and_our_gradients():
    torch.manual_seed(0)
    theirs, ours = benchmark.TextbookResNetGenerator(4).double(), models.CifarResNetGenerator(4).double()
    theirs.load_state_dict(ours.state_dict(), strict=False)  # but for running averages, which ours has not
    z, coefficients = pair((128,))[0], pair((3, 32, 32))[0]
    images = [G(z) for G in (theirs, ours)]
    torch.testing.assert_close(*images, rtol=1e-9, atol=1e-11)
    for x in images:
        (x * coefficients).sum().backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    for key, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, gradients[key], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("D, shape", [(models.toy_critic(8), (2,)), (models.cifar_critic(4), (3, 32, 32)),
                                      (models.CifarResNetCritic(4), (3, 32, 32)),
                                      (models.language_critic(5, 6, 4), (5, 6))])
def test_no_critic_carries_a_second_derivative_of_zeros_through_its_layers(D, shape):
    """Autograd has no path from the penalty to a bias: each critic is linear where its masks are constant."""
    D = D.double()
    gradients = torch.autograd.grad(wgan_gp.gradient_penalty(D, *pair(shape)), list(D.parameters()), allow_unused=True)
    for (name, _), g in zip(D.named_parameters(), gradients):
        assert (g is None) == name.endswith("bias")


@pytest.mark.parametrize("flags, rows", [("--only toy dcgan --dim 2", 4), ("--methods --dim 2", 3)])
def test_the_tables_have_a_row_for_each_candidate(flags, rows, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--rounds", "1", "--device", "cpu", *flags.split()])
    monkeypatch.setattr(benchmark, "matrix_rate", lambda *_: 1e9)
    benchmark.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + rows and all(line.count("|") == table[0].count("|") for line in table)


def test_what_figure_2s_networks_cost(monkeypatch, capsys):
    """Of one row, in this process; and the table, of rows that cost nothing."""
    command = "benchmark.py --rounds 1 --device cpu --row resnet 2 4 128"
    monkeypatch.setattr("sys.argv", command.split())
    benchmark.main()
    row = json.loads(capsys.readouterr().out)
    networks = models.resnet_generator(4, 128), models.resnet_critic(4, size=128)
    assert row["weights"] == [sum(w.numel() for w in network.parameters()) for network in networks]
    assert row["seconds"] > 0 and row["operations"] > 2 * 5 * 10 * row["weights"][1]  # each weight is used many times
    asked = []
    monkeypatch.setattr(benchmark, "cost", lambda args, *row: asked.append(row) or
                        {"weights": (1, 2), "seconds": 3.0, "operations": 4e9, "bytes": 5e9})
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--lsun"])
    benchmark.main()
    assert asked == [(name, 64, 64, 64) for name in models.LSUN] + [("resnet", 64, 64, 128)]
    assert "| resnet | 128 | 1 | 2 | 3 | 4 | 5.00 |" in capsys.readouterr().out
