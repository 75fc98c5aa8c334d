"""wgan_gp.py against Sections 2 to 4: closed forms, finite differences, plain loops, known optima."""
import copy
import itertools
import math
import os
import weakref
from functools import partial

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import models
import wgan_gp
from wgan_gp import METHODS, WGAN_GP, critic_loss, critic_step, generator_step, gradient_penalty, held_out_loss, train

PLAIN = METHODS["wgan"]._replace(clip=0)  # equation 2, without any constraint


def linear_critic(w, b=0.0):
    D = nn.Sequential(nn.Linear(len(w), 1).double(), nn.Flatten(0))
    D[0].weight.data, D[0].bias.data = (torch.tensor([value], dtype=torch.float64) for value in (w, b))
    return D


def smooth_critic():
    """A critic whose second derivatives are not 0."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1), nn.Flatten(0)).double()


def pair(m=8, shape=(2,), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(m, *shape, generator=generator, dtype=dtype) for _ in range(2)]


def toy_pair(dim=16, seed=0):
    torch.manual_seed(seed)
    return models.toy_generator(dim).double(), models.toy_critic(dim).double()


def normal(m):
    return (torch.randn(m, 2, dtype=torch.float64),)


def sgd(*networks, lr=1.0):
    return torch.optim.SGD([w for network in networks for w in network.parameters()], lr=lr)


def weights(*networks):
    return [w.detach().clone() for network in networks for w in network.parameters()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def gradients(D, x_hat):
    x_hat = x_hat.clone().requires_grad_()
    return torch.autograd.grad(D(x_hat).sum(), x_hat)[0]


# ---- scores and the penalty ----

@pytest.mark.parametrize("shape", [(4, 1, 16, 16), (4, 10), (2, 2), (1, 4), (3,), (), "tuple"])
def test_a_critic_that_does_not_give_one_score_per_example_is_refused(shape):
    """A PatchGAN's map and a classifier's logits would be averaged without an error."""
    (x, z), (G, D) = pair(m=4), toy_pair()
    before = weights(D, G)

    def wrong(x):
        return (D(x), x) if shape == "tuple" else D(x).mean() * torch.ones(shape)
    for call in [lambda: gradient_penalty(wrong, x, x), lambda: critic_step(G, wrong, sgd(D), x, z),
                 lambda: generator_step(G, wrong, sgd(G), z)]:
        with pytest.raises(ValueError, match=r"^D must return one score per example, .*\(4,\).*$") as refused:
            call()
        assert str(refused.value).endswith(f"not {shape}")
    assert same(weights(D, G), before)


@pytest.mark.parametrize("w", [[3.0, 4.0], [0.3, 0.4], [-1.0, 0.0]])
@pytest.mark.parametrize("one_sided", [False, True])
def test_penalty_of_a_linear_critic_in_closed_form(w, one_sided):
    D, norm = linear_critic(w, b=7.0), math.hypot(*w)
    excess = max(0, norm - 1) if one_sided else norm - 1
    penalty = gradient_penalty(D, *pair(), one_sided=one_sided)
    assert penalty.item() == pytest.approx(excess ** 2, abs=1e-12) and penalty.shape == ()
    gradient, = torch.autograd.grad(penalty, D[0].weight)
    expected = 2 * excess * D[0].weight / norm  # d(|w| - 1)^2 / dw
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_x_hat_lies_on_the_segment_with_one_uniform_eps_per_example():
    (x, x_tilde), seen = pair(m=20_000, shape=(1, 2, 2)), []
    torch.manual_seed(0)
    gradient_penalty(lambda x_hat: seen.append(x_hat.detach()) or x_hat.sum((1, 2, 3)), x, x_tilde)
    apart = (x - x_tilde).flatten(1).abs().min(1).values > 1e-3
    eps = ((seen[0] - x_tilde) / (x - x_tilde)).flatten(1)[apart]  # of every pixel
    assert (eps - eps.mean(1, keepdim=True)).abs().max() < 1e-10  # one number per example
    eps = eps.mean(1).sort().values
    distance = (eps - torch.linspace(0, 1, len(eps))).abs().max()
    assert distance < 1.63 / math.sqrt(len(eps))  # Kolmogorov-Smirnov at 1 %
    assert eps.min() >= 0 and eps.max() <= 1


def test_penalty_trains_neither_x_nor_x_tilde():
    (x, x_tilde), D = [t.requires_grad_() for t in pair()], smooth_critic()
    gradient_penalty(D, x, x_tilde).backward()
    assert x.grad is None and x_tilde.grad is None and D[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape, other, dtype", [
    ((8, 2), (8, 1, 2), torch.float), ((8, 2), (1, 2), torch.float), ((8, 1), (8, 2), torch.float),
    ((0, 2), (0, 2), torch.float), ((8, 2), (8, 2), torch.uint8), ((8, 2), (8, 2), torch.cfloat)])
def test_pairs_that_do_not_fit_are_refused(shape, other, dtype):
    x, x_tilde, D = torch.ones(shape, dtype=dtype), torch.ones(other), lambda x: x.abs().flatten(1).sum(1).float()
    for call in (gradient_penalty, critic_loss):
        with pytest.raises(ValueError, match="^x and x_tilde must be float.*$") as refused:
            call(D, x, x_tilde)
        assert str(refused.value).endswith(f"{dtype} {shape} and torch.float32 {other}")


def test_types_and_devices_are_those_of_x_and_of_the_critic():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert gradient_penalty(smooth_critic().to(dtype), *pair(dtype=dtype)).dtype == dtype
    G, D = [network.to("meta") for network in toy_pair()]
    latents = lambda m: (torch.empty(m, 2, device="meta", dtype=torch.float64),)
    step, = train(G, D, [pair()[0]], latents, sgd(G), sgd(D), iterations=1)  # moves x
    assert step.penalty.device.type == "meta"


def test_no_nan_where_the_gradient_is_exactly_zero():
    D = models.toy_critic(dim=4).double()
    nn.init.constant_(D[0].bias, -1e6)  # every unit of the first layer is off, so D is constant
    penalty = gradient_penalty(D, *pair())
    found = torch.autograd.grad(penalty, D.parameters(), materialize_grads=True)
    assert penalty.item() == 1 and all(torch.isfinite(g).all() for g in found)


IMAGE = (3, 32, 32)
CRITICS = {
    "toy": (models.toy_critic, 16, (2,)), "cifar": (models.cifar_critic, 2, IMAGE),
    "toy, 12 layers": (partial(models.toy_critic, depth=12), 8, (2,)), "mnist": (models.mnist_critic, 2, (1, 28, 28)),
    "cifar, layer norm": (partial(models.cifar_critic, norm="layer"), 2, IMAGE),
    "cifar resnet": (models.CifarResNetCritic, 2, IMAGE),
    "language": (partial(models.language_critic, 5, 6), 4, (5, 6)),
} | {f"64 {name}": (partial(D, norm="layer"), 4, (3, 64, 64)) for name, (_, D) in models.LSUN.items()}


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize("one_sided", [False, True])
def test_second_derivatives_against_finite_differences(name, one_sided):
    """d penalty / d weights along random directions in float64."""
    make, dim, shape = CRITICS[name]
    torch.manual_seed(1)
    D = make(dim=dim).double()
    with torch.no_grad():
        for p in D.parameters():
            p.add_(0.02 * torch.randn_like(p))  # biases and gains away from 0 and 1
    x, x_tilde = pair(m=5, shape=shape)
    norms = gradients(D, (x + x_tilde) / 2).flatten(1).norm(dim=1)
    scale, params = 1.2 / norms.median().item(), dict(D.named_parameters())  # so that norms lie on both sides of 1

    def penalty(step, directions):
        torch.manual_seed(2)  # the same eps each time
        moved = {name: p + step * d for (name, p), d in zip(params.items(), directions)}
        call = lambda x: scale * torch.func.functional_call(D, moved, x)
        return gradient_penalty(call, x, x_tilde, one_sided)
    for seed in range(3):
        torch.manual_seed(seed)
        directions, h = [torch.randn_like(p) for p in params.values()], 1e-8
        found = torch.autograd.grad(penalty(0, directions), params.values(), allow_unused=True)
        expected = (penalty(h, directions) - penalty(-h, directions)).item() / (2 * h)
        slope = sum((g * d).sum().item() for g, d in zip(found, directions) if g is not None)
        assert abs(slope) > 1e-4 and slope == pytest.approx(expected, rel=1e-4, abs=1e-6)


# ---- losses and methods ----

def test_losses_against_plain_loops():
    real, fake = torch.tensor([1.5, -0.5, 3.0]).double(), torch.tensor([0.25, -2.0, 1.0]).double()
    log_sigmoid = lambda t: -math.log(1 + math.exp(-t))
    mean = lambda function, scores: sum(map(function, scores.tolist())) / 3
    wasserstein = [mean(float, fake) - mean(float, real), -mean(float, fake)]
    gan = [-(mean(log_sigmoid, real) + mean(lambda t: math.log(1 - 1 / (1 + math.exp(-t))), fake)) / 2,
           -mean(log_sigmoid, fake)]
    off_1 = lambda t: (t - 1) ** 2
    lsgan = [(mean(off_1, real) + mean(lambda t: t ** 2, fake)) / 2, mean(off_1, fake)]
    for name, method in METHODS.items():
        expected = {"dcgan": gan, "dcgan-gp": gan, "lsgan": lsgan}.get(name, wasserstein)
        found = [method.D_loss(real, fake).item(), method.G_loss(fake).item()]
        assert found == pytest.approx(expected, rel=1e-12)


def test_methods_have_the_published_settings():
    """REFERENCE.md, "Optimisers and schedules": what the optimizers really use."""
    adam, rmsprop, D = torch.optim.Adam, torch.optim.RMSprop, smooth_critic()
    table = {  # optimizer, its settings, lambda, clip, critic steps
        "wgan-gp": (adam, {"lr": 1e-4, "betas": (0.0, 0.9)}, 10, 0, 5),
        "wgan-gp-rmsprop": (rmsprop, {"lr": 5e-5, "alpha": 0.9}, 10, 0, 5),
        "wgan": (rmsprop, {"lr": 5e-5, "alpha": 0.9}, 0, 0.01, 5),
        "dcgan": (adam, {"lr": 2e-4, "betas": (0.5, 0.999)}, 0, 0, 1),
        "dcgan-gp": (adam, {"lr": 2e-4, "betas": (0.5, 0.999)}, 10, 0, 1),
        "lsgan": (rmsprop, {"lr": 1e-4, "alpha": 0.9}, 0, 0, 1),
    }
    assert METHODS.keys() == table.keys() and WGAN_GP is METHODS["wgan-gp"]
    for name, (kind, settings, *others) in table.items():
        method, optimizer = METHODS[name], METHODS[name].make_optimizer(D)
        group, = optimizer.param_groups
        assert type(optimizer) is kind and settings.items() <= group.items()
        assert all(p is q for p, q in zip(group["params"], D.parameters(), strict=True))
        assert [method.lam, method.clip, method.n_critic, method.one_sided] == [*others, False]
        assert (method.optimizer, method.beta1 is None) == (kind.__name__.lower(), kind is rmsprop)
        assert method.critic_term(D, *pair()) == method.generator_term(D, *pair()) == 0
    assert WGAN_GP._replace(beta1=0.5).make_optimizer(D).defaults["betas"] == (0.5, 0.9)
    with pytest.raises(ValueError, match='"adam" or "rmsprop", not \'sgd\''):
        WGAN_GP._replace(optimizer="sgd").make_optimizer(D)


# ---- the two steps ----

def test_a_critic_step_is_lines_4_to_9_example_by_example():
    """Against Algorithm 1 as printed: a loop over i = 1..m, then Adam with the mean of L^(i)."""
    (G, D), (x, z) = toy_pair(), pair(m=7)
    D2 = copy.deepcopy(D)
    torch.manual_seed(3)
    losses = critic_step(G, D, WGAN_GP.make_optimizer(D), x, z)
    assert not any(value.requires_grad for value in losses)

    torch.manual_seed(3)
    eps = torch.rand(7, 1, dtype=torch.float64)
    L = []
    for i in range(7):
        x_tilde = G(z[i]).detach()
        x_hat = (eps[i] * x[i] + (1 - eps[i]) * x_tilde).requires_grad_()
        gradient, = torch.autograd.grad(D2(x_hat[None]), x_hat, create_graph=True)
        L.append(D2(x_tilde[None]) - D2(x[i][None]) + 10 * (gradient.square().sum().sqrt() - 1) ** 2)
    mean = torch.cat(L).mean()
    loss, wasserstein, penalty = map(float, losses)
    assert [loss, -wasserstein + 10 * penalty] == pytest.approx([mean.item()] * 2, rel=1e-12)
    gradients = torch.autograd.grad(mean, D2.parameters(), allow_unused=True)
    for p, q, g in zip(D.parameters(), D2.parameters(), gradients):
        if g is not None and g.abs().max() > 1e-8:
            # Adam's first step with beta1 = 0: m = g, v-hat = g^2, so weights move by 1e-4 against g
            torch.testing.assert_close(p, q - 1e-4 * g / (g.abs() + 1e-8), atol=1e-12, rtol=0)


@pytest.mark.parametrize("one_sided", [False, True])
def test_one_sided_and_lambda_reach_the_loss(one_sided):
    """|grad D| = 1/2 everywhere: a penalty of 1/4, and of 0 if one-sided."""
    D, (x, x_tilde), expected = linear_critic([0.3, 0.4]), pair(), 0.25 * (not one_sided)
    losses = critic_loss(D, x, x_tilde, method=WGAN_GP._replace(one_sided=one_sided, lam=3))
    wasserstein = (D(x).mean() - D(x_tilde).mean()).item()
    assert torch.stack(losses).tolist() == pytest.approx([-wasserstein + 3 * expected, wasserstein, expected])


def test_without_lambda_there_is_no_third_pass():
    (x, x_tilde), D, seen = pair(), smooth_critic(), []
    _, _, penalty = critic_loss(lambda x: seen.append(x) or D(x), x, x_tilde, method=PLAIN)
    assert len(seen) == 2 and seen[0] is x and seen[1] is x_tilde
    assert torch.equal(penalty, torch.tensor(0.0).double()) and penalty.dtype == torch.float64


def test_real_and_generated_examples_pass_through_batch_norm_apart():
    D, (x, x_tilde) = nn.Sequential(models.batch_norm(2, flat=True), nn.Linear(2, 1)).double(), pair()
    loss, wasserstein, _ = critic_loss(D, x, x_tilde + 5, method=METHODS["dcgan"])
    normed = [(t - t.mean(0)) / (t.var(0, unbiased=False) + 1e-5).sqrt() for t in (x, x_tilde)]
    assert loss.item() == pytest.approx(METHODS["dcgan"].D_loss(*map(D[1], normed)).item(), rel=1e-12)
    assert wasserstein.item() == pytest.approx(0, abs=1e-12)
    assert D(x).shape == (8, 1) and wgan_gp.scores(D, x).shape == (8,)


def test_clipping_after_every_critic_step_and_of_every_parameter():
    torch.manual_seed(0)
    D, method = models.cifar_critic(dim=4, norm="batch"), METHODS["wgan"]
    opt, x = method.make_optimizer(D), torch.randn(4, 3, 32, 32)
    for _ in range(3):
        critic_step(lambda z: z, D, opt, x, -x, method=method)
        assert all(p.abs().max() <= 0.01 for p in D.parameters())  # batch norm's gains, too, which start at 1
    D = linear_critic([-7.0, 0.5], 2.0)
    critic_step(lambda z: z, D, sgd(D, lr=0.0), *pair(), method=method._replace(clip=1.5))
    assert D[0].weight.tolist() == [[-1.5, 0.5]] and D[0].bias.tolist() == [1.5]


@pytest.mark.parametrize("terms", [{}, {
    "critic_term": lambda D, x, y: 3 * (D(x) * y).mean(),
    "generator_term": lambda D, x, y: (D(x) * y).square().mean()}])
def test_each_step_goes_down_its_own_gradient_and_leaves_the_other_network_alone(terms):
    """With further terms such as AC-GAN's (Section 5.4), which see D, examples and labels."""
    method = PLAIN._replace(**terms)
    (G, D), (x, z), y = toy_pair(), pair(), torch.arange(8.0).double()
    recorded, ones = [], [torch.ones_like(w) for w in G.parameters()]
    for w in [*G.parameters(), *D.parameters()]:
        w.grad = torch.ones_like(w)  # of a step before

    def labelled(z, y):  # any function of G's weights
        x_tilde = G(z) + y[:, None]
        recorded.append(x_tilde.requires_grad)
        return x_tilde
    loss = D(labelled(z, y).detach()).mean() - D(x).mean() + method.critic_term(D, x, y)
    expected = [w - g for w, g in zip(D.parameters(), torch.autograd.grad(loss, D.parameters()))]
    before = weights(G)
    found, _, _ = critic_step(labelled, D, sgd(D), x, z, y, method=method)
    assert found.item() == pytest.approx(loss.item(), rel=1e-12)
    assert recorded == [True, False]  # G's graph is not even recorded
    torch.testing.assert_close(weights(D), expected, rtol=1e-12, atol=1e-12)
    assert same(weights(G), before) and same([w.grad for w in G.parameters()], ones)

    loss = -D(labelled(z, y)).mean() + method.generator_term(D, labelled(z, y), y)
    expected = [w - g for w, g in zip(G.parameters(), torch.autograd.grad(loss, G.parameters()))]
    before = weights(D)
    D.zero_grad()
    found = generator_step(labelled, D, sgd(G), z, y, method=method)
    assert found.item() == pytest.approx(loss.item(), rel=1e-12) and not found.requires_grad
    torch.testing.assert_close(weights(G), expected, rtol=1e-12, atol=1e-12)
    assert same(weights(D), before) and all(p.grad is None for p in D.parameters())


def test_frozen_weights_and_those_that_no_optimizer_has_stay():
    (G, D), (x, z) = toy_pair(), pair()
    D[0].requires_grad_(False)
    G[0].requires_grad_(False)
    before = weights(D[0], G[0], D[4], G[4])
    critic_step(G, D, sgd(D[0], D[2]), x, z)
    score = D(G(z)).mean().item()
    assert generator_step(G, D, sgd(G[0], G[2]), z).item() == pytest.approx(-score)  # by default
    assert same(weights(D[0], G[0], D[4], G[4]), before)
    for network in (G, D):
        assert network[4].weight.grad is None and network[2].weight.grad.abs().sum() > 0


# ---- Algorithm 1 ----

@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_train_is_algorithm_1_bit_for_bit(name, labels):
    """n_critic critic steps on fresh x, z and eps, then a generator step on fresh z, with all of a method's fields."""
    method, runs = METHODS[name], []
    if labels:
        method = method._replace(one_sided=True, critic_term=lambda D, x, y: (D(x) * y).mean(),
                                 generator_term=lambda D, x, y: (D(x) * y).square().mean())
    data = [(x, torch.rand(5))[:1 + labels] for x in torch.randn(11, 5, 2)]
    latents = lambda m: (torch.randn(m, 2), torch.rand(m))[:1 + labels]
    for by_hand in (False, True):
        torch.manual_seed(0)
        network, D = models.toy_generator(8), models.toy_critic(8)
        G = lambda z, *y: network(z) + sum(labels[:, None] for labels in y)
        opt_G, opt_D = method.make_optimizer(network), method.make_optimizer(D)
        if by_hand:
            steps, batches = [], itertools.cycle(data)
            for iteration in range(3):
                for _ in range(method.n_critic):
                    x, *y = next(batches)
                    critic = critic_step(G, D, opt_D, x, latents(5)[0], *y, method=method)
                generator = generator_step(G, D, opt_G, *latents(7), method=method)
                steps.append(wgan_gp.Step(iteration + 1, critic[0], critic[1], critic[2], generator))
        else:
            chosen = None if method is WGAN_GP else method  # the default
            steps = list(train(G, D, data, latents, opt_G, opt_D, chosen, 3, generator_batch=7))
            assert not any(value.requires_grad for step in steps for value in step[1:])
        names = ("iteration", "critic_loss", "wasserstein", "penalty", "generator_loss")
        runs.append((weights(network, D), [[float(getattr(step, name)) for name in names] for step in steps]))
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


def toy_run(iterations=4, seed=0, networks=None, **settings):
    """Networks, optimizers and the generator function of a small run on a shifted Gaussian."""
    G, D = networks or toy_pair()
    opt_G, opt_D = WGAN_GP.make_optimizer(G), WGAN_GP.make_optimizer(D)
    batches = (normal(32)[0] + 2 for _ in itertools.count())
    return G, D, opt_G, opt_D, train(G, D, batches, normal, opt_G, opt_D, None, iterations, seed=seed, **settings)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_and_resumed_or_disturbed_is_the_same_run_bit_for_bit(decay, stop):
    G, D, _, _, steps = toy_run(iterations=6, decay=decay)
    undisturbed = [tuple(map(float, step)) for step in steps]
    *interrupted, steps = toy_run(iterations=6, decay=decay)
    again = []
    for step in itertools.islice(steps, stop):
        again.append(tuple(map(float, step)))
        torch.randn(step.iteration)  # what a score or a picture draws in between must not matter
    *resumed, steps = toy_run(iterations=6, decay=decay, networks=toy_pair(seed=99), start=stop)
    [thing.load_state_dict(copy.deepcopy(saved.state_dict())) for thing, saved in zip(resumed, interrupted)]
    again += [tuple(map(float, step)) for step in steps]
    assert again == undisturbed and [int(step[0]) for step in again] == [1, 2, 3, 4, 5, 6]
    assert same(weights(G, D), weights(*resumed[:2]))
    assert list(toy_run(iterations=6, start=6)[-1]) == []


def test_each_iteration_starts_from_a_seed_of_its_own():
    seeds = []
    for seed, iteration in itertools.product((0, 1, 2, 2 ** 32 - 1), (0, 1, 2, 1_000_000)):
        wgan_gp.seed_iteration(seed, iteration)
        seeds.append(torch.initial_seed())
    assert len(set(seeds)) == 16 and seeds[9] == 2_000_007  # as in published runs
    for seed in (0, 2):
        for step in toy_run(seed=seed, start=1)[-1]:
            assert torch.initial_seed() == seed * 1_000_003 + step.iteration - 1


def test_without_a_seed_the_callers_random_numbers_are_left_alone(monkeypatch):
    """Several processes that train one model must not draw the same numbers."""
    runs = []
    for seed in (1, 1, 2):
        steps = toy_run(seed=None)[-1]
        torch.manual_seed(seed)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "manual_seed", lambda seed: pytest.fail("torch is reseeded"))
            runs.append([float(step.critic_loss) for step in steps])
    assert runs[0] == runs[1] != runs[2] and len(set(runs[0])) == 4


def test_learning_rates_decay_linearly_to_zero():
    """Of every parameter group of both optimizers, from their first updates on. Without decay they stay."""
    G, D = toy_pair()
    opt_G, opt_D, rates = sgd(G[0], lr=0.5), sgd(D, lr=0.125), []
    opt_G.add_param_group({"params": list(G[2].parameters()), "lr": 0.25})
    for opt in (opt_G, opt_D):
        opt.register_step_pre_hook(lambda opt, *_: rates.append([group["lr"] for group in opt.param_groups]))
    run = lambda *length, **decay: train(G, D, pair()[:1], normal, opt_G, opt_D, METHODS["dcgan"], *length, **decay)
    for steps, share in [(run(4), [1] * 4), (run(decay=True), [1, 1 - 1 / 100_000]),  # the default length
                         (run(4, decay=True), [1, 0.75, 0.5, 0.25])]:
        rates.clear()
        list(itertools.islice(steps, len(share)))
        assert rates == [rate for s in share for rate in ([0.125 * s], [0.5 * s, 0.25 * s])]
    for _ in run(4):
        assert opt_D.param_groups[0]["lr"] in (0.125 * 0.25, 7.0)
        opt_D.param_groups[0]["lr"] = 7.0  # a rate that the caller sets stays, too


def sizes_seen(batches, iterations=3, labelled=False, D=None, **settings):
    """What G is asked for, (size, labels), in a run with one critic step an iteration."""
    network, seen, D = models.toy_generator(4), [], D or models.toy_critic(4)

    def G(z, *y):
        seen.append((len(z), *[labels.tolist() for labels in y]))
        return network(z)
    latents = lambda m: (torch.randn(m, 2), torch.full((m,), 9)) if labelled else torch.randn(m, 2)
    list(train(G, D, batches, latents, sgd(network), sgd(D), METHODS["dcgan"], iterations, **settings))
    return seen


def test_batches_are_any_iterable_and_are_gone_through_again():
    x, y, D, seen = torch.randn(5, 2), torch.arange(5), models.toy_critic(4), []
    for batches in [x.split(3), [(t,) for t in x.split(3)], [[t] for t in x.split(3)],
                    DataLoader(x, 3, shuffle=True), DataLoader(TensorDataset(x), 3)]:
        assert sizes_seen(batches) == [(3,), (3,), (2,), (2,), (3,), (3,)]  # for D, for G; a smaller one last
    labelled = [(3, [0, 1, 2]), (3, [9, 9, 9]), (2, [3, 4]), (2, [9, 9])]
    for batches in [list(zip(x.split(3), y.split(3))), DataLoader(TensorDataset(x, y), 3)]:
        assert sizes_seen(batches, 2, labelled=True) == labelled
    assert sizes_seen([x], 1, D=nn.Linear(2, 1, bias=False), generator_batch=6) == [(5,), (6,)]
    D.register_forward_pre_hook(lambda D, inputs: seen.append(inputs[0]))
    sizes_seen(DataLoader(x, 5, shuffle=True), 8, D=D)
    assert any(not torch.equal(seen[0], x) for x in seen[3::3])  # each round is shuffled


@pytest.mark.parametrize("batches, labelled, message", [
    ([], False, "used up: give"), ((torch.randn(3, 2) for _ in range(2)), False, "used up: give"),
    ([(torch.randn(3, 2), torch.arange(3))], False, "To drop labels"), ([torch.randn(3, 2)], True, "To drop labels")])
def test_batches_that_cannot_be_used_are_refused(batches, labelled, message):
    with pytest.raises(ValueError, match=f"^.*{message}.*$"):
        sizes_seen(batches, labelled=labelled)


# ---- samples and held-out losses ----

def test_samples_come_in_whole_batches_without_a_graph():
    network, sizes = models.toy_generator(4).double(), []
    G = lambda z: sizes.append(len(z)) or network(z)
    convert = lambda x_tilde: sizes.append(torch.is_grad_enabled()) or x_tilde > 0
    torch.manual_seed(0)
    out = wgan_gp.sample(G, normal, 250, convert=convert)
    assert sizes == [100, False] * 3
    torch.manual_seed(0)
    assert torch.equal(out, torch.cat([network(*normal(100)) for _ in range(3)])[:250] > 0)
    for n, batch_size in [(5, 5), (6, 5)]:
        samples = wgan_gp.sample(G, normal, n, batch_size)
        assert len(samples) == n and not samples.requires_grad
    assert sizes[6:] == [5, 5, 5]


def test_held_out_loss_is_the_mean_over_examples_whatever_the_batches():
    D, x, asked = linear_critic([3.0, 4.0]), pair(m=10)[0], []
    G = lambda z, *y: asked.extend(y) or z * 0 + 1.0 + sum(0 * labels[:, None] for labels in y)
    expected = (7 - D(x).mean() + 10 * 16).item(), (D(x).mean() - 7).item(), 16
    for cuts in ([10], [4, 6], [1, 2, 7]):
        assert held_out_loss(G, D, [(b,) for b in x.split(cuts)], normal) == pytest.approx(expected)
        assert held_out_loss(G, D, x.split(cuts), lambda m: normal(m)[0]) == pytest.approx(expected)
    method = WGAN_GP._replace(critic_term=lambda D, x, y: 100.0 + y.double().mean(), lam=20)
    labelled, batches = lambda m: (*normal(m), torch.full((m,), 99)), zip(x.split(5), torch.arange(10).split(5))
    found = held_out_loss(G, D, batches, labelled, method)
    assert torch.cat(asked).tolist() == list(range(10))  # G is asked for the labels of x
    assert found == pytest.approx([expected[0] + 160 + 104.5, *expected[1:]]) and isinstance(found[0], float)


def test_held_out_loss_keeps_no_graph_from_batch_to_batch():
    network, alive, at_each_batch = smooth_critic(), weakref.WeakSet(), []

    def D(x):
        score, part = network(x), nn.Identity()
        score.register_hook(lambda gradient, part=part: None)  # the part lives as long as the graph
        alive.add(part)
        return score
    batches = (at_each_batch.append(len(alive)) or (pair()[0],) for _ in range(4))
    graphs_of_G = []
    held_out_loss(lambda z: graphs_of_G.append(torch.is_grad_enabled()) or z, D, batches, normal)
    assert at_each_batch == [0] * 4 and not any(graphs_of_G)


# ---- several processes ----

def half_of_a_critic_step(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    D = nn.parallel.DistributedDataParallel(smooth_critic())
    x, x_tilde = [t[4 * rank:4 * rank + 4] for t in pair()]
    torch.manual_seed(rank)
    critic_step(lambda z: z, D, sgd(D, lr=0.0), x, x_tilde)
    torch.save([p.grad for p in D.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # a thread of gloo can abort Python's own exit, as in fast.processes


def test_distributed_data_parallel_gives_the_gradient_of_the_whole_batch(tmp_path):
    """DDP(D) in two processes with half a batch each, penalty included."""
    torch.multiprocessing.spawn(half_of_a_critic_step, (str(tmp_path),), nprocs=2)
    D, (x, x_tilde), seeds = smooth_critic(), pair(), [torch.Generator().manual_seed(rank) for rank in range(2)]
    eps = torch.cat([torch.rand(4, 1, dtype=torch.float64, generator=seed) for seed in seeds])
    x_hat = (eps * x + (1 - eps) * x_tilde).requires_grad_()
    gradient, = torch.autograd.grad(D(x_hat).sum(), x_hat, create_graph=True)
    loss = D(x_tilde).mean() - D(x).mean() + 10 * ((gradient.norm(dim=1) - 1) ** 2).mean()
    expected = list(torch.autograd.grad(loss, D.parameters()))
    assert all(g.abs().max() > 1e-3 for g in expected[:3])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# ---- Proposition 1 and Corollary 1: known optima ----

def train_critic(real, generated, steps, lam=10.0, lr=3e-3, dim=64, n_in=2):
    torch.manual_seed(0)
    D = nn.Sequential(*models.mlp(n_in, 1, dim), nn.Flatten(0))
    opt = torch.optim.Adam(D.parameters(), lr=lr, betas=(0.0, 0.9))
    for step in range(steps):
        opt.param_groups[0]["lr"] = lr * (1 - step / steps)
        x = real(256)
        critic_step(lambda z, x: generated(x), D, opt, x, x, x, method=WGAN_GP._replace(lam=lam))
    return D


def test_two_points_on_a_line_have_the_optimum_that_the_penalty_allows():
    """x = 1.5, x_tilde = 0.5: W = 1. Along the line eq. 3 is -g + lam (g - 1)^2, least at g = 1 + 1/(2 lam)."""
    for lam in (10.0, 2.0):
        D = train_critic(lambda m: torch.full((m, 1), 1.5), lambda x: x - 1, 600, lam, n_in=1)
        estimate = (D(torch.tensor([[1.5]])) - D(torch.tensor([[0.5]]))).item()
        assert estimate == pytest.approx(1 + 1 / (2 * lam), rel=0.01)
        slopes = gradients(D, torch.linspace(0.55, 1.45, 50)[:, None])
        assert slopes.mean().item() == pytest.approx(1 + 1 / (2 * lam), rel=0.02)
        assert slopes.min() > 0  # towards x


def test_a_shifted_gaussian_gives_the_wasserstein_distance_and_proposition_1():
    """P_r = N(0, I) + (2, 0), P_g = N(0, I): W = 2. The optimal coupling shifts each point, and on lines between
    coupled points the gradient is (x - x_tilde)/|x - x_tilde| = (1, 0) (Proposition 1, x real).
    lam = 50, since the penalty lets the estimate exceed W by W / (2 lam): see the test above.
    """
    shift = torch.tensor([2.0, 0.0])
    D = train_critic(lambda m: torch.randn(m, 2) + shift, torch.randn_like, 800, lam=50.0)
    x = torch.randn(5_000, 2) + shift
    with torch.no_grad():
        estimate = (D(x).mean() - D(torch.randn(5_000, 2)).mean()).item()
    assert estimate == pytest.approx(2, rel=0.04)
    g = gradients(D, x - torch.rand(5_000, 1) * shift)
    assert g.norm(dim=1).mean().item() == pytest.approx(1, abs=0.04)
    assert (g[:, 0] / g.norm(dim=1)).mean().item() > 0.98  # the cosine with (1, 0)
