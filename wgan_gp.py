"""WGAN-GP: Algorithm 1 and equation 3 of "Improved Training of Wasserstein GANs" (Gulrajani et al., 2017).

Needs torch alone: copy this file, or gradient_penalty by itself, wherever you like. The names are the paper's:

    D        the critic: m examples in, m real-valued scores out (no sigmoid)
    G        the generator: m latent variables z in, m examples x_tilde out
    x        real examples, x ~ P_r                     x_tilde  generated ones, x_tilde = G(z) ~ P_g
    x_hat    random points between x and x_tilde        eps      where between: one number per example
    lam      the weight (lambda) of the penalty, 10     n_critic critic steps per generator step, 5

The loop over i = 1..m in lines 3 to 8 is the batch dimension. Numbers in brackets are the paper's references. Section 4
is five functions: gradient_penalty (line 6, and line 4's eps), critic_loss (equation 3; line 7), critic_step (5 to 9),
generator_step (12) and train (the loops; 4 and 11). The losses and METHODS between them are what it is compared with.
"""
import math
from functools import partial
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch.optim import Adam, RMSprop


def gradient_penalty(D, x, x_tilde, one_sided=False):
    """The gradient penalty of equation 3, without its weight: E[(||grad D(x_hat)||_2 - 1)^2], a scalar tensor.

    x, x_tilde: m real and m generated examples of the same shape (m, n, ...), paired by position. x_hat is drawn
    uniformly on the line between each pair (Section 4, "Sampling distribution"). The result can be
    differentiated once more, with respect to the weights of D (so not inside torch.no_grad()); nothing flows back
    into x or x_tilde, which are floating point.
    one_sided: penalise only norms above 1, E[max(0, ||grad D(x_hat)||_2 - 1)^2] (Appendix C).

    D gives one score per example, (m,) or (m, 1), and must score each by itself: batch norm in D breaks the premise
    (Section 4, "No critic batch normalization"), layer norm does not. Other shapes of x_tilde: ValueError.
    """
    if x.shape != x_tilde.shape:
        raise ValueError(f"x and x_tilde are paired, but their shapes are {tuple(x.shape)} and {tuple(x_tilde.shape)}")
    eps = torch.rand(len(x), *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device)  # line 4: one number per example
    x_hat = (eps * x + (1 - eps) * x_tilde).detach().requires_grad_()  # line 6
    # The score of one example depends on that example alone, so the gradient of the sum holds every example's own.
    gradient, = torch.autograd.grad(D(x_hat).sum(), x_hat, create_graph=True)
    excess = gradient.flatten(1).norm(dim=1) - 1  # at 0, norm() has derivative 0, where sqrt(sum(g**2)) has NaN
    if one_sided:
        excess = excess.relu()
    return excess.square().mean()


def clip_weights(D, c):
    """Weight clipping, the original WGAN's constraint ([2], Section 2.2): every parameter of D into [-c, c], in place."""
    with torch.no_grad():
        for w in D.parameters():
            w.clamp_(-c, c)


# The losses: `real` are the scores D(x), `fake` the scores D(x_tilde). A standard GAN's D(x) is the logit.

def wasserstein_critic(real, fake):
    """The "original critic loss" of equation 3: E[D(x_tilde)] - E[D(x)]."""
    return fake.mean() - real.mean()


def wasserstein_generator(fake):
    """Line 12 of Algorithm 1: -E[D(G(z))]."""
    return -fake.mean()


def gan_critic(real, fake):
    """Equation 1 for logits: the mean of two cross-entropies, real to 1 and fake to 0; halved as in the authors' code."""
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def gan_generator(fake):
    """Section 2.1's generator loss against vanishing gradients: -E[log D(G(z))], fake towards 1."""
    return F.softplus(-fake).mean()


def lsgan_critic(real, fake):
    """Least-squares GAN (Mao et al. [18]): half of E[(D(x) - 1)^2] + E[D(x_tilde)^2]."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def lsgan_generator(fake):
    """Least-squares GAN as the authors' code has it: E[(D(x_tilde) - 1)^2]."""
    return (fake - 1).square().mean()


def no_term(D, x, *y):
    """No further loss term: what Method.critic_term and Method.generator_term are unless a script says otherwise."""
    return 0.0


class Method(NamedTuple):
    """A way to train a GAN: two losses, a constraint on D, a number of critic steps, an optimiser.

    Change one thing with `METHODS["wgan-gp"]._replace(lam=1)`; the learning rate with
    `_replace(optimizer=partial(method.optimizer, lr=3e-4))`.
    """
    critic_loss: Callable  # (D(x), D(x_tilde)) -> scalar; with the penalty it is critic_loss, below
    generator_loss: Callable  # D(x_tilde) -> scalar
    lam: float  # weight of the gradient penalty; 0: none
    clip: float  # weights of D stay in [-clip, clip]; 0: no clipping
    n_critic: int  # critic steps per generator step
    optimizer: Callable  # parameters -> torch.optim.Optimizer
    one_sided: bool = False  # the penalty of Appendix C
    critic_term: Callable = no_term  # (D, x, *labels) -> scalar added to D's loss, such as AC-GAN's (Section 5.4)
    generator_term: Callable = no_term  # (D, x_tilde, *labels) -> scalar added to G's loss

    def with_beta1(self, beta1):
        """The method with another beta1 for its Adam (see ADAM); beta2 stays. None: the method as it is."""
        if beta1 is None:
            return self
        betas = (beta1, self.optimizer.keywords["betas"][1])
        return self._replace(optimizer=partial(self.optimizer, betas=betas))


# Figure 2's columns (Section 5.2; Appendix E, where WGAN-GP has beta1 .5 for LSUN), then two combinations: WGAN-GP with
# clipping's optimiser (Figure 3) and the penalty on the standard GAN loss (Section 6). torch's RMSprop adds its 1e-8
# outside the square root and starts its average at 0; TensorFlow's, in the paper's code, adds 1e-10 inside, starts at 1.
METHODS = {
    "wgan-gp": Method(wasserstein_critic, wasserstein_generator, lam=10, clip=0, n_critic=5,
                      optimizer=partial(Adam, lr=1e-4, betas=(0.0, 0.9))),
    "wgan": Method(wasserstein_critic, wasserstein_generator, lam=0, clip=0.01, n_critic=5,
                   optimizer=partial(RMSprop, lr=5e-5, alpha=0.9)),
    "dcgan": Method(gan_critic, gan_generator, lam=0, clip=0, n_critic=1,
                    optimizer=partial(Adam, lr=2e-4, betas=(0.5, 0.999))),
    "lsgan": Method(lsgan_critic, lsgan_generator, lam=0, clip=0, n_critic=1,
                    optimizer=partial(RMSprop, lr=1e-4, alpha=0.9)),
}
METHODS["wgan-gp-rmsprop"] = METHODS["wgan-gp"]._replace(optimizer=METHODS["wgan"].optimizer)
METHODS["dcgan-gp"] = METHODS["dcgan"]._replace(lam=10)
WGAN_GP = METHODS["wgan-gp"]
ADAM = [name for name, method in METHODS.items() if method.optimizer.func is Adam]  # the others have RMSProp


def critic_loss(D, x, x_tilde, *y, method=WGAN_GP):
    """Equation 3 on one batch, or another method's loss: what a critic step minimises.

    x, x_tilde: (m, ...); y: the labels of x, if the method's critic_term wants them. Returns three scalar tensors: the
    loss, penalty and critic_term included; the Wasserstein estimate E[D(x)] - E[D(x_tilde)]; and the penalty without
    its weight (0 for a method that has none).
    """
    real, fake = D(x), D(x_tilde)  # two passes: where D has batch norm, real and generated statistics stay apart
    penalty = gradient_penalty(D, x, x_tilde, method.one_sided) if method.lam else real.new_zeros(())
    loss = method.critic_loss(real, fake) + method.lam * penalty + method.critic_term(D, x, *y)  # line 7, its mean over i
    return loss, real.mean() - fake.mean(), penalty


def critic_step(G, D, opt_D, x, z, *y, method=WGAN_GP):
    """Lines 5 to 9 of Algorithm 1: one update of the critic, on real examples x (m, ...) and latents z (m, ...).

    y: whatever else G takes, such as the labels of x. G's weights get no gradient. Returns the loss, the
    Wasserstein estimate and the penalty of this batch before the update, as scalar tensors.
    """
    with torch.no_grad():
        x_tilde = G(z, *y)  # line 5
    loss, wasserstein, penalty = critic_loss(D, x, x_tilde, *y, method=method)  # lines 6 and 7
    opt_D.zero_grad()
    loss.backward(inputs=[w for w in D.parameters() if w.requires_grad])  # with respect to w alone
    opt_D.step()  # line 9
    if method.clip:
        clip_weights(D, method.clip)
    return loss.detach(), wasserstein.detach(), penalty.detach()


def generator_step(G, D, opt_G, z, *y, method=WGAN_GP):
    """Line 12 of Algorithm 1: one update of the generator, on latents z (m, ...) and whatever else G takes.

    D's weights get no gradient, and the work for it is not done. Returns the loss, a scalar tensor.
    """
    x_tilde = G(z, *y)
    loss = method.generator_loss(D(x_tilde)) + method.generator_term(D, x_tilde, *y)
    opt_G.zero_grad()
    loss.backward(inputs=[w for w in G.parameters() if w.requires_grad])  # with respect to theta alone
    opt_G.step()  # line 12
    return loss.detach()


class Step(NamedTuple):
    """One pass through lines 2 to 12; the losses are scalar tensors, the critic's those of its last step."""
    iteration: int  # generator updates done so far
    critic_loss: torch.Tensor  # what D minimised, penalty included; the paper plots its negative
    wasserstein: torch.Tensor  # E[D(x)] - E[D(x_tilde)]: estimates the distance only where D is 1-Lipschitz
    penalty: torch.Tensor  # E[(||grad D(x_hat)|| - 1)^2], without lam
    generator_loss: torch.Tensor


def seed_iteration(seed, iteration):
    """Start torch's global random numbers anew, from the seed (0 to 2**32 - 1) and the iteration: nothing drawn in
    between disturbs a run, and none of their state need be saved. An odd factor above a million keeps seeds below 4,295
    apart; CPU generators heed 32 bits only."""
    torch.manual_seed(seed * 1_000_003 + iteration)


def train(G, D, batches, latents, opt_G, opt_D, method=WGAN_GP, iterations=100_000, start=0, seed=0,
          decay=False, generator_batch=None):
    """Algorithm 1 as a generator function: yields a Step after each generator update, up to `iterations` in all.

        for step in train(G, D, batches, latents, opt_G, opt_D):
            print(step.iteration, float(step.wasserstein))

    batches:  an endless iterator of tuples (x,) or (x, y): real examples and, if the networks want them, labels;
              a DataLoader is made one by (batch for _ in itertools.count() for batch in loader). A resumed run is
              the same run if the batches depend on the random numbers alone, as data.batches do; a DataLoader's do not
    latents:  latents(m) gives a tuple (z,) or (z, y): m latent variables and, if G wants them, labels
    opt_G, opt_D:  method.optimizer(G.parameters()) and (D.parameters()), made by the caller, who can save them
    start:    iterations done before, when a run is resumed
    seed:     for seed_iteration at each iteration; None: random numbers are left alone
    decay:    learning rates fall linearly to 0 over `iterations` (Appendix F)
    generator_batch:  examples in the generator's batch, if not as many as in the critic's
    """
    groups = opt_G.param_groups + opt_D.param_groups if decay else []
    for group in groups:
        group.setdefault("initial_lr", group["lr"])  # kept in the optimiser's state, and so when a run is resumed
    for iteration in range(start, iterations):  # line 1
        if seed is not None:
            seed_iteration(seed, iteration)
        for group in groups:
            group["lr"] = group["initial_lr"] * (1 - iteration / iterations)
        for _ in range(method.n_critic):  # lines 2 to 10
            x, *y = next(batches)  # line 4
            z = latents(len(x))[0]  # its labels, if there are labels, are those of x
            critic = critic_step(G, D, opt_D, x, z, *y, method=method)
        generator = generator_step(G, D, opt_G, *latents(generator_batch or len(x)), method=method)  # 11 and 12
        yield Step(iteration + 1, *critic, generator)


def held_out_loss(G, D, batches, latents, method=WGAN_GP):
    """What D minimises, on these examples and fresh samples of G; held out, they show overfitting (Section 5.6).

    batches: a finite iterable of (x,) or (x, y), not empty. Returns the loss, the Wasserstein estimate and the penalty,
    three numbers, each the mean over all examples.
    """
    total, examples = 0, 0
    for x, *y in batches:
        with torch.no_grad():
            x_tilde = G(latents(len(x))[0], *y)
        losses = torch.stack(critic_loss(D, x, x_tilde, *y, method=method)).detach()
        total, examples = total + losses * len(x), examples + len(x)
    return tuple((total / examples).tolist())


@torch.no_grad()
def sample(G, latents, n, batch_size=100, convert=lambda x_tilde: x_tilde):
    """n samples of G, in batches of `batch_size`: batch norm in G looks at its batch, so never one sample at a time.

    convert: applied to each batch, for instance to make bytes of it before the next one is drawn.
    """
    return torch.cat([convert(G(*latents(batch_size))) for _ in range(math.ceil(n / batch_size))])[:n]
