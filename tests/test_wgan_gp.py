"""wgan_gp.py against the mathematics of Sections 2 to 4: closed forms, finite differences, plain loops, known optima."""
import copy
import math

import pytest
import torch
from torch import nn

import models
import wgan_gp
from wgan_gp import METHODS, WGAN_GP, gradient_penalty


def linear_critic(w, b=0.0):
    D = nn.Sequential(nn.Linear(len(w), 1).double(), nn.Flatten(0))
    D[0].weight.data, D[0].bias.data = torch.tensor([w], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    return D


def pair(m=8, shape=(2,), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(m, *shape, generator=generator, dtype=dtype) for _ in range(2)]


# -------------------------------------------------------------------------------------------------- the penalty

@pytest.mark.parametrize("w", [[3.0, 4.0], [0.3, 0.4], [-1.0, 0.0]])
@pytest.mark.parametrize("one_sided", [False, True])
def test_penalty_of_a_linear_critic_in_closed_form(w, one_sided):
    D, norm = linear_critic(w, b=7.0), math.hypot(*w)
    excess = max(0, norm - 1) if one_sided else norm - 1
    penalty = gradient_penalty(D, *pair(), one_sided=one_sided)
    assert penalty.item() == pytest.approx(excess ** 2, abs=1e-12)
    gradient, = torch.autograd.grad(penalty, D[0].weight)
    expected = 2 * excess * D[0].weight / norm  # d(|w| - 1)^2 / dw
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_penalty_of_a_quadratic_critic_against_a_plain_loop():
    x, x_tilde = pair(m=50, shape=(3, 4, 4))
    torch.manual_seed(5)
    penalty = gradient_penalty(lambda x: 1.5 * x.square().sum((1, 2, 3)), x, x_tilde)  # grad D(x) = 3 x
    torch.manual_seed(5)
    eps = torch.rand(50, 1, 1, 1, dtype=torch.float64)
    brute = sum((3 * math.sqrt(sum(v * v for v in (e * a + (1 - e) * b).flatten().tolist())) - 1) ** 2
                for e, a, b in zip(eps, x, x_tilde)) / 50
    assert penalty.item() == pytest.approx(brute, rel=1e-12)


def test_x_hat_lies_on_the_segment_with_one_uniform_eps_per_example():
    x, x_tilde = pair(m=20_000, shape=(1, 2, 2))
    seen = []

    def D(x_hat):
        seen.append(x_hat.detach())
        return x_hat.sum((1, 2, 3))
    gradient_penalty(D, x, x_tilde)
    eps = ((seen[0] - x_tilde) / (x - x_tilde)).flatten(1)  # of every pixel; well conditioned where x and x_tilde differ
    apart = (x - x_tilde).flatten(1).abs().min(1).values > 1e-3
    assert (eps[apart] - eps[apart].mean(1, keepdim=True)).abs().max() < 1e-10  # one number per example
    eps = eps[apart].mean(1).sort().values
    uniform = torch.linspace(0, 1, len(eps), dtype=torch.float64)
    assert (eps - uniform).abs().max() < 1.63 / math.sqrt(len(eps))  # Kolmogorov-Smirnov at 1 %
    assert eps.min() >= 0 and eps.max() <= 1


def test_penalty_trains_neither_x_nor_x_tilde():
    x, x_tilde = [t.requires_grad_() for t in pair()]
    D = models.toy_critic(dim=8).double()
    gradient_penalty(D, x, x_tilde).backward()
    assert x.grad is None and x_tilde.grad is None and D[0].weight.grad.abs().sum() > 0


def test_pairs_that_do_not_fit_are_refused_rather_than_broadcast():
    x = torch.randn(8, 2)
    for x_tilde in (torch.randn(8, 1, 2), torch.randn(1, 2), torch.randn(8, 1)):
        with pytest.raises(ValueError, match="are paired, but their shapes are"):
            gradient_penalty(models.toy_critic(4), x, x_tilde)


def test_no_nan_where_the_gradient_is_exactly_zero():
    D = models.toy_critic(dim=4).double()
    nn.init.constant_(D[0].bias, -1e6)  # every unit of the first layer is off, so D is constant
    penalty = gradient_penalty(D, *pair())
    penalty.backward()
    assert penalty.item() == 1
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in D.parameters())


CRITICS = {
    "toy": (lambda: models.toy_critic(dim=16), (2,)),
    "toy, 12 layers": (lambda: models.toy_critic(dim=8, depth=12), (2,)),
    "cifar": (lambda: models.cifar_critic(dim=2), (3, 32, 32)),
    "cifar, layer norm": (lambda: models.cifar_critic(dim=2, norm="layer"), (3, 32, 32)),
    "mnist": (lambda: models.mnist_critic(dim=2), (1, 28, 28)),
    "cifar resnet": (lambda: models.CifarResNetCritic(dim=2), (3, 32, 32)),
    "language": (lambda: models.language_critic(5, length=6, dim=4), (5, 6)),
}


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize("one_sided", [False, True])
def test_second_derivatives_against_finite_differences(name, one_sided):
    """d penalty / d weights, for every parameter tensor, along a random direction in float64."""
    make, shape = CRITICS[name]
    torch.manual_seed(1)
    D = make().double()
    with torch.no_grad():
        for p in D.parameters():
            p.add_(0.02 * torch.randn_like(p))  # biases and gains away from 0 and 1
    x, x_tilde = pair(m=6, shape=shape)
    at = ((x + x_tilde) / 2).requires_grad_()
    norms = torch.autograd.grad(D(at).sum(), at)[0].flatten(1).norm(dim=1)
    scale = 1.2 / norms.median().item()  # so that norms lie on both sides of 1

    def penalty():
        torch.manual_seed(2)  # the same eps each time
        return gradient_penalty(lambda x: scale * D(x), x, x_tilde, one_sided)
    gradients = torch.autograd.grad(penalty(), list(D.parameters()), allow_unused=True)
    compared = 0
    for p, gradient in zip(D.parameters(), gradients):
        direction, h = torch.randn_like(p), 1e-7
        with torch.no_grad():
            p.add_(h * direction)
        above = penalty().item()
        with torch.no_grad():
            p.sub_(2 * h * direction)
        below = penalty().item()
        with torch.no_grad():
            p.add_(h * direction)
        expected = 0 if gradient is None else (gradient * direction).sum().item()
        assert (above - below) / (2 * h) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        compared += abs(expected) > 1e-4
    assert compared >= 3  # the comparison was not of zeros


@pytest.mark.parametrize("architecture", models.LSUN)
def test_second_derivatives_of_the_64x64_critics(architecture):
    """The same, with all parameters moved at once, since the 101-layer critic has hundreds of tensors."""
    torch.manual_seed(1)
    D = models.LSUN[architecture][1](4, norm="layer").double()
    with torch.no_grad():
        for p in D.parameters():
            p.add_(0.02 * torch.randn_like(p))
    x, x_tilde = pair(m=3, shape=(3, 64, 64))

    def penalty():
        torch.manual_seed(2)
        return gradient_penalty(D, x, x_tilde)
    weights = list(D.parameters())
    gradients = torch.autograd.grad(penalty(), weights, allow_unused=True)
    for seed in range(3):
        torch.manual_seed(seed)
        directions = [torch.randn_like(p) for p in weights]
        expected = sum((g * d).sum().item() for g, d in zip(gradients, directions) if g is not None)
        h, moved = 1e-8, []
        for sign in (1, -2):
            with torch.no_grad():
                [p.add_(sign * h * d) for p, d in zip(weights, directions)]
            moved.append(penalty().item())
        with torch.no_grad():
            [p.add_(h * d) for p, d in zip(weights, directions)]
        assert (moved[0] - moved[1]) / (2 * h) == pytest.approx(expected, rel=1e-4)


def test_batch_norm_breaks_the_premise_of_the_penalty_and_layer_norm_does_not():
    """Section 4, "No critic batch normalization": D must map one input to one output, dD(x_i)/dx_j = 0."""
    for norm, tied in [(None, False), ("layer", False), ("batch", True)]:
        torch.manual_seed(0)
        D = models.cifar_critic(dim=4, norm=norm).double()
        x = torch.randn(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
        others = torch.autograd.grad(D(x)[0], x)[0][1:].abs().max()
        assert (others > 1e-6) if tied else (others == 0)


# ------------------------------------------------------------------------------------------- losses and methods

def test_losses_against_plain_loops():
    real, fake = torch.tensor([1.5, -0.5, 3.0]).double(), torch.tensor([0.25, -2.0, 1.0]).double()
    r, f, sigmoid = real.tolist(), fake.tolist(), lambda t: 1 / (1 + math.exp(-t))
    mean = lambda values: sum(values) / 3
    expected = {
        "wgan-gp": (mean(f) - mean(r), -mean(f)),
        "wgan": (mean(f) - mean(r), -mean(f)),
        "dcgan": ((mean([-math.log(sigmoid(t)) for t in r]) + mean([-math.log(1 - sigmoid(t)) for t in f])) / 2,
                  mean([-math.log(sigmoid(t)) for t in f])),
        "lsgan": ((mean([(t - 1) ** 2 for t in r]) + mean([t ** 2 for t in f])) / 2, mean([(t - 1) ** 2 for t in f])),
    }
    for name, (critic, generator) in expected.items():
        assert METHODS[name].critic_loss(real, fake).item() == pytest.approx(critic, rel=1e-12)
        assert METHODS[name].generator_loss(fake).item() == pytest.approx(generator, rel=1e-12)


def test_methods_have_the_published_settings():
    weights = [nn.Parameter(torch.zeros(1))]
    rows = {name: (type(m.optimizer(weights)).__name__, m.optimizer(weights).defaults, m) for name, m in METHODS.items()}
    for name, lr, betas, n_critic, lam in [("wgan-gp", 1e-4, (0, 0.9), 5, 10), ("dcgan", 2e-4, (0.5, 0.999), 1, 0),
                                           ("dcgan-gp", 2e-4, (0.5, 0.999), 1, 10)]:
        kind, defaults, m = rows[name]
        assert (kind, defaults["lr"], defaults["betas"], m.n_critic, m.lam, m.clip) == ("Adam", lr, betas, n_critic, lam, 0)
    for name, lr, n_critic, lam, clip in [("wgan", 5e-5, 5, 0, 0.01), ("wgan-gp-rmsprop", 5e-5, 5, 10, 0),
                                          ("lsgan", 1e-4, 1, 0, 0)]:
        kind, defaults, m = rows[name]
        assert (kind, defaults["lr"], defaults["alpha"], m.n_critic, m.lam, m.clip) == ("RMSprop", lr, 0.9, n_critic, lam, clip)


# ------------------------------------------------------------------------------------------------- Algorithm 1

def toy_pair(dim=16, seed=0):
    torch.manual_seed(seed)
    return models.toy_generator(dim).double(), models.toy_critic(dim).double()


def toy_run(method=WGAN_GP, iterations=4, m=32, seed=0, networks=None, **settings):
    """Networks, optimisers and the generator function of a small run on a shifted Gaussian."""
    G, D = networks or toy_pair()
    opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())

    def batches():
        while True:
            yield (torch.randn(m, 2).double() + 2,)
    latents = lambda n: (torch.randn(n, 2).double(),)
    return G, D, opt_G, opt_D, wgan_gp.train(G, D, batches(), latents, opt_G, opt_D, method, iterations, seed=seed,
                                             **settings)


def weights(*modules):
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_a_critic_step_is_lines_4_to_9_example_by_example():
    """The batched step against Algorithm 1 as printed: a loop over i = 1..m, then Adam with the mean of L^(i)."""
    G, D = toy_pair()
    D2 = copy.deepcopy(D)
    x, z = pair(m=7)
    opt = WGAN_GP.optimizer(D.parameters())
    torch.manual_seed(3)
    loss, wasserstein, penalty = wgan_gp.critic_step(G, D, opt, x, z)

    torch.manual_seed(3)
    eps = torch.rand(7, 1, dtype=torch.float64)
    L = []
    for i in range(7):
        x_tilde = G(z[i]).detach()
        x_hat = (eps[i] * x[i] + (1 - eps[i]) * x_tilde).requires_grad_()
        gradient, = torch.autograd.grad(D2(x_hat[None]).squeeze(), x_hat, create_graph=True)
        L.append((D2(x_tilde[None]) - D2(x[i][None]) + 10 * (gradient.square().sum().sqrt() - 1) ** 2).squeeze())
    mean = torch.stack(L).mean()
    assert loss.item() == pytest.approx(mean.item(), rel=1e-12)
    assert loss.item() == pytest.approx(-wasserstein.item() + 10 * penalty.item(), rel=1e-12)
    gradients = torch.autograd.grad(mean, list(D2.parameters()), allow_unused=True)
    for p, q, g in zip(D.parameters(), D2.parameters(), gradients):
        if g is not None and g.abs().max() > 1e-8:
            # Adam's first step with beta1 = 0: m = g, v-hat = g^2, so each weight moves by 1e-4 against its gradient.
            torch.testing.assert_close(p, q - 1e-4 * g / (g.abs() + 1e-8), atol=1e-12, rtol=0)


def test_n_critic_critic_steps_then_one_generator_step_each_on_fresh_batches():
    for method in METHODS.values():
        G, D = toy_pair()
        order, drawn = [], []
        opt_G, opt_D = method.optimizer(G.parameters()), method.optimizer(D.parameters())
        opt_G.register_step_post_hook(lambda *_: order.append("G"))
        opt_D.register_step_post_hook(lambda *_: order.append("D"))

        def batches():
            while True:
                drawn.append(torch.randn(8, 2).double())
                yield (drawn[-1],)
        steps = list(wgan_gp.train(G, D, batches(), lambda n: (torch.randn(n, 2).double(),), opt_G, opt_D, method, 3))
        assert order == (["D"] * method.n_critic + ["G"]) * 3
        assert len(drawn) == 3 * method.n_critic == len({x.sum().item() for x in drawn})
        assert [s.iteration for s in steps] == [1, 2, 3]
        assert all(math.isfinite(v) for s in steps for v in s)


def test_each_step_leaves_the_other_network_alone():
    G, D = toy_pair()
    opt_G, opt_D = WGAN_GP.optimizer(G.parameters()), WGAN_GP.optimizer(D.parameters())
    before_G, before_D = weights(G), weights(D)
    x, z = pair()
    recorded = []
    G.register_forward_hook(lambda G, z, x_tilde: recorded.append(x_tilde.requires_grad))
    wgan_gp.critic_step(G, D, opt_D, x, z)
    assert recorded == [False]  # G's graph is not even recorded
    assert same(weights(G), before_G) and not same(weights(D), before_D)
    assert all(p.grad is None for p in G.parameters())
    opt_D.zero_grad()
    before_D = weights(D)
    wgan_gp.generator_step(G, D, opt_G, z)
    assert same(weights(D), before_D) and not same(weights(G), before_G)
    assert all(p.grad is None for p in D.parameters())


def test_the_generator_step_goes_down_the_gradient_of_minus_the_mean_score():
    G, D = toy_pair()
    z, before = pair()[0], weights(G)
    score = D(G(z)).mean()
    expected = torch.autograd.grad(-score, list(G.parameters()))
    loss = wgan_gp.generator_step(G, D, torch.optim.SGD(G.parameters(), lr=1.0), z)
    assert loss.item() == pytest.approx(-score.item(), rel=1e-12)
    for old, new, g in zip(before, weights(G), expected):
        torch.testing.assert_close(new, old - g, atol=1e-14, rtol=0)


def test_clipping_after_every_critic_step_and_of_every_parameter():
    method = METHODS["wgan"]
    torch.manual_seed(0)
    D, G = models.cifar_critic(dim=4, norm="batch"), models.cifar_generator(dim=4)
    opt = method.optimizer(D.parameters())
    for _ in range(3):
        wgan_gp.critic_step(G, D, opt, torch.randn(4, 3, 32, 32), torch.randn(4, 128), method=method)
        assert all(p.abs().max() <= 0.01 for p in D.parameters())  # batch norm's gains, which start at 1, included
    gains = [m.weight for m in D if isinstance(m, nn.BatchNorm2d)]
    assert len(gains) == 2 and all(g.max() == torch.tensor(0.01) for g in gains)


def test_learning_rates_decay_linearly_to_zero():
    *_, opt_G, opt_D, steps = toy_run(iterations=5, decay=True)
    rates = [(opt_G.param_groups[0]["lr"], opt_D.param_groups[0]["lr"]) for _ in steps]
    for i, both in enumerate(rates):
        assert both == pytest.approx((1e-4 * (1 - i / 5),) * 2)
    *_, opt_G, opt_D, steps = toy_run(iterations=3)
    assert {opt_G.param_groups[0]["lr"] for _ in steps} == {1e-4}


def test_without_decay_a_learning_rate_set_by_the_caller_stays():
    *_, opt_G, opt_D, steps = toy_run(iterations=3)
    next(steps)
    opt_D.param_groups[0]["lr"] = 1e-7
    next(steps)
    assert opt_D.param_groups[0]["lr"] == 1e-7


def test_a_frozen_layer_stays_and_the_others_train():
    G, D = toy_pair()
    D[0].requires_grad_(False)
    G[0].requires_grad_(False)
    frozen, free = weights(D[0], G[0]), weights(D[2], G[2])
    *_, steps = toy_run(networks=(G, D), iterations=1)
    list(steps)
    assert same(weights(D[0], G[0]), frozen) and not same(weights(D[2], G[2]), free)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_and_resumed_or_disturbed_is_the_same_run_bit_for_bit(decay, stop):
    G, D, _, _, steps = toy_run(iterations=6, decay=decay)
    undisturbed = [tuple(map(float, s)) for s in steps]
    G1, D1, opt_G, opt_D, steps = toy_run(iterations=6, decay=decay)
    again = []
    for step in steps:
        again.append(tuple(map(float, step)))
        torch.randn(step.iteration)  # what a score or a picture draws in between must not matter
        if step.iteration == stop:
            break
    saved = [copy.deepcopy(thing.state_dict()) for thing in (G1, D1, opt_G, opt_D)]
    networks = toy_pair(seed=99)
    G2, D2, opt_G, opt_D, steps = toy_run(iterations=6, decay=decay, networks=networks, start=stop)
    for thing, state in zip((G2, D2, opt_G, opt_D), saved):
        thing.load_state_dict(state)
    again += [tuple(map(float, step)) for step in steps]
    assert again == undisturbed
    assert same(weights(G, D), weights(G2, D2))


def test_seeds_give_different_runs_and_consecutive_iterations_different_numbers():
    losses = [[float(s.critic_loss) for s in toy_run(seed=seed, iterations=3)[-1]] for seed in (0, 1, 1)]
    assert losses[0] != losses[1] == losses[2]
    drawn = set()
    for seed in (0, 1, 2 ** 32 - 1):
        *_, steps = toy_run(seed=seed, iterations=3)
        for _ in steps:
            drawn.add(torch.rand(()).item())
    assert len(drawn) == 9


def test_the_generators_batch_may_differ_and_labels_are_passed_on():
    """AC-GAN's needs (Section 5.4): fakes in a critic step take the real labels, in G's step those of latents()."""
    G, D = toy_pair()
    seen = []

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.G = G

        def forward(self, z, y):
            seen.append((len(z), y.tolist()))
            return self.G(z) + y[:, None]
    L = Labelled()
    opt_G, opt_D = WGAN_GP.optimizer(L.parameters()), WGAN_GP.optimizer(D.parameters())
    batches = iter([(torch.randn(2, 2).double(), torch.tensor([k, k + 1])) for k in range(5)])
    latents = lambda m: (torch.randn(m, 2).double(), torch.full((m,), 9))
    list(wgan_gp.train(L, D, batches, latents, opt_G, opt_D, iterations=1, generator_batch=6))
    assert seen == [(2, [k, k + 1]) for k in range(5)] + [(6, [9] * 6)]


def test_further_terms_train_their_own_network_only():
    G, D = toy_pair()
    x, z = pair()
    method = WGAN_GP._replace(critic_term=lambda D, x, *y: 3 * D(x).mean(), generator_term=lambda D, x_tilde, *y: 5.0)
    plain, _, _ = wgan_gp.critic_loss(D, x, x, method=WGAN_GP._replace(lam=0))
    opt_D, opt_G = method.optimizer(D.parameters()), method.optimizer(G.parameters())
    real = D(x).mean().item()
    before = weights(G)
    torch.manual_seed(0)
    loss, wasserstein, penalty = wgan_gp.critic_step(G, D, opt_D, x, z, method=method)
    assert loss.item() == pytest.approx(-wasserstein.item() + 10 * penalty.item() + 3 * real)
    assert same(weights(G), before) and plain.item() == pytest.approx(0)
    fake = D(G(z)).mean().item()
    assert wgan_gp.generator_step(G, D, opt_G, z, method=method).item() == pytest.approx(-fake + 5)


def test_held_out_loss_is_the_mean_over_examples_whatever_the_batches():
    D, x = linear_critic([3.0, 4.0]), pair(m=10)[0]
    G = lambda z: z * 0 + 1.0
    latents = lambda m: (torch.randn(m, 2).double(),)
    expected = (7 - D(x).mean() + 10 * 16).item(), (D(x).mean() - 7).item(), 16
    for cuts in ([10], [4, 6], [1, 2, 7]):
        assert wgan_gp.held_out_loss(G, D, [(b,) for b in x.split(cuts)], latents) == pytest.approx(expected)
    asked = []
    labelled = lambda z, y: asked.extend(y.tolist()) or G(z)
    wgan_gp.held_out_loss(labelled, D, [(b, y) for b, y in zip(x.split(5), torch.arange(10).split(5))], latents)
    assert asked == list(range(10))  # G is asked for the labels of x
    method = WGAN_GP._replace(critic_term=lambda D, x, *y: 100.0)
    loss, *others = wgan_gp.held_out_loss(G, D, [(x,)], latents, method)
    assert loss == pytest.approx(expected[0] + 100) and others == pytest.approx(expected[1:])


def test_samples_come_in_whole_batches():
    sizes = []

    def G(z):
        sizes.append(len(z))
        return z
    out = wgan_gp.sample(G, lambda m: (torch.randn(m, 2),), 250, convert=lambda t: t > 0)
    assert out.shape == (250, 2) and out.dtype == torch.bool and sizes == [100, 100, 100]


# ------------------------------------------------------------------- Proposition 1 and Corollary 1: known optima

def train_critic(real, generated, steps, lam=10.0, lr=3e-3, dim=64, n_in=2):
    torch.manual_seed(0)
    method = WGAN_GP._replace(lam=lam)
    D = nn.Sequential(*models.mlp(n_in, 1, dim), nn.Flatten(0))
    opt = torch.optim.Adam(D.parameters(), lr=lr, betas=(0.0, 0.9))
    for step in range(steps):
        opt.param_groups[0]["lr"] = lr * (1 - step / steps)
        x = real(256)
        wgan_gp.critic_step(lambda z, x: generated(x), D, opt, x, x, x, method=method)
    return D


def gradients(D, x_hat):
    x_hat = x_hat.clone().requires_grad_()
    return torch.autograd.grad(D(x_hat).sum(), x_hat)[0]


def test_two_points_on_a_line_have_the_optimum_that_the_penalty_allows():
    """x = 1.5, x_tilde = 0.5: W = 1. Along the line eq. 3 is -g + lam (g - 1)^2, least at g = 1 + 1/(2 lam)."""
    for lam in (10.0, 2.0):
        D = train_critic(lambda m: torch.full((m, 1), 1.5), lambda x: x - 1, 600, lam, n_in=1)
        estimate = (D(torch.tensor([[1.5]])) - D(torch.tensor([[0.5]]))).item()
        assert estimate == pytest.approx(1 + 1 / (2 * lam), rel=0.01)
        slopes = gradients(D, torch.linspace(0.55, 1.45, 50)[:, None])
        assert slopes.mean().item() == pytest.approx(1 + 1 / (2 * lam), rel=0.02) and slopes.min() > 0  # towards x


def test_a_shifted_gaussian_gives_the_wasserstein_distance_and_proposition_1():
    """P_r = N(0, I) + (2, 0), P_g = N(0, I): W = 2, and the optimal coupling shifts each point. On the lines between
    coupled points the gradient is (x - x_tilde)/|x - x_tilde| = (1, 0) (Proposition 1, x real), of norm 1.
    lam = 50, as the penalty lets the estimate exceed W, by about W / (2 lam) of it: see the test above."""
    shift = torch.tensor([2.0, 0.0])
    D = train_critic(lambda m: torch.randn(m, 2) + shift, lambda x: torch.randn_like(x), 800, lam=50.0)
    x = torch.randn(5_000, 2) + shift
    with torch.no_grad():
        estimate = (D(x).mean() - D(torch.randn(5_000, 2)).mean()).item()
    assert estimate == pytest.approx(2, rel=0.04)
    g = gradients(D, x - torch.rand(5_000, 1) * shift)
    assert g.norm(dim=1).mean().item() == pytest.approx(1, abs=0.04)
    assert (g[:, 0] / g.norm(dim=1)).mean().item() > 0.98  # the cosine with (1, 0)


def test_a_constant_added_to_the_critic_changes_nothing():
    D, (x, x_tilde) = models.toy_critic(8).double(), pair()
    torch.manual_seed(0)
    before = wgan_gp.critic_loss(D, x, x_tilde)
    D[-2].bias.data += 1000.0
    torch.manual_seed(0)
    for a, b in zip(before, wgan_gp.critic_loss(D, x, x_tilde)):
        assert a.item() == pytest.approx(b.item(), abs=1e-9)
