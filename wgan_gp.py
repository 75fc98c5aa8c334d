"""Algorithm 1 and equation 3 of "Improved Training of Wasserstein GANs" (Gulrajani et al., 2017).

Needs torch alone: copy this file, or only gradient_penalty. The names are the paper's: critic D,
generator G, real x, generated x_tilde, x_hat between them, eps, lam (lambda), n_critic. The loop
over i = 1..m in lines 3 to 8 is the batch dimension. Labels, if any, are passed on as *y.
"""
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F


def scores(D, x):
    """Return D(x) as a vector (m,). Raises ValueError unless D gives one score per example."""
    score = D(x)
    shape = tuple(score.shape) if torch.is_tensor(score) else type(score).__name__
    if not torch.is_tensor(score) or shape[:1] != (len(x),) or score.numel() != len(x):
        raise ValueError(f"D must return one score per example, shape ({len(x)},), not {shape}")
    return score.flatten()


def gradient_penalty(D, x, x_tilde, one_sided=False):
    """Compute the penalty of equation 3, E[(||grad D(x_hat)||_2 - 1)^2], not yet times lambda.

    x, x_tilde: real and generated examples, floats (m, features...), paired by position.
    D must score each example by itself: layer norm in D is fine, batch norm is not (Section 4).
    one_sided: penalise only norms above 1, E[max(0, ||grad D(x_hat)||_2 - 1)^2] (Appendix C).
    """
    if x.shape != x_tilde.shape or not len(x) or not x.is_floating_point():
        raise ValueError(f"x and x_tilde must be floats of one shape, not empty, but are {x.dtype} "
                         f"{tuple(x.shape)} and {x_tilde.dtype} {tuple(x_tilde.shape)}")
    eps = torch.rand(len(x), *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device)  # line 4: one per example
    x_hat = (eps * x + (1 - eps) * x_tilde).detach().requires_grad_()  # line 6
    # D scores each example by itself, so row i of this gradient is that of D(x_hat[i]).
    gradient, = torch.autograd.grad(scores(D, x_hat).sum(), x_hat, create_graph=True)
    excess = gradient.flatten(1).norm(dim=1) - 1  # for a zero gradient, norm's own derivative is 0, not NaN
    return (excess.relu() if one_sided else excess).square().mean()


def critic_loss(D, x, x_tilde, *y, method=None):
    """Compute equation 3 on one batch, or the critic loss of another method (default: WGAN-GP).

    Returns three scalars: the loss, E[D(x)] - E[D(x_tilde)], and the penalty not times lambda.
    """
    method = method or WGAN_GP
    real, fake = scores(D, x), scores(D, x_tilde)  # two passes: other methods' D may have batch norm
    penalty = gradient_penalty(D, x, x_tilde, method.one_sided) if method.lam else real.new_zeros(())
    loss = method.D_loss(real, fake) + method.lam * penalty + method.critic_term(D, x, *y)
    return loss, real.mean() - fake.mean(), penalty


def critic_step(G, D, opt_D, x, z, *y, method=None):
    """Update the critic once, on real x (m, ...) and latents z (m, ...): lines 5 to 9.

    G: any function of z and y. Returns the three values of critic_loss from before the update.
    """
    method = method or WGAN_GP
    with torch.no_grad():
        x_tilde = G(z, *y)  # line 5
    values = critic_loss(D, x, x_tilde, *y, method=method)  # lines 6 and 7, and the mean of line 9
    update(opt_D, values[0])  # line 9
    if method.clip:
        for w in D.parameters():
            w.data.clamp_(-method.clip, method.clip)
    return [value.detach() for value in values]


def generator_step(G, D, opt_G, z, *y, method=None):
    """Update the generator once, as in line 12, on z and y as in critic_step. Returns its loss."""
    method = method or WGAN_GP
    x_tilde = G(z, *y)
    loss = method.G_loss(scores(D, x_tilde)) + method.generator_term(D, x_tilde, *y)
    update(opt_G, loss)
    return loss.detach()


def update(optimizer, loss):
    """Update the weights that the optimizer holds. No others get a gradient."""
    weights = [w for group in optimizer.param_groups for w in group["params"] if w.requires_grad]
    optimizer.zero_grad()
    loss.backward(inputs=weights)
    optimizer.step()


class Step(NamedTuple):
    """The losses of an iteration, scalar tensors. The critic's are those of its last step."""
    iteration: int  # generator updates so far
    critic_loss: torch.Tensor  # with the penalty. The paper plots its negative
    wasserstein: torch.Tensor  # E[D(x)] - E[D(x_tilde)]
    penalty: torch.Tensor  # without lambda
    generator_loss: torch.Tensor


def train(G, D, batches, latents, opt_G, opt_D, method=None, iterations=100_000, start=0,
          seed=None, decay=False, generator_batch=None):
    """Run Algorithm 1: `for step in train(...)` yields a Step after each iteration.

    batches: an iterable of x, (x,) or (x, y), such as a DataLoader. Restarted when it ends
    latents: latents(m) returns z or (z,), and (z, y) if batches have labels y
    opt_G, opt_D: the optimizers, for instance method.make_optimizer(G)
    start: iterations already done, of `iterations` in all
    seed: reseed torch at each iteration. None: do not reseed
    decay: let the learning rates fall linearly to 0 (Appendix F)
    generator_batch: examples in the generator's batch, if not as many as in the critic's
    """
    method = method or WGAN_GP
    batches = endless(batches, opt_D.param_groups[0]["params"][0].device)
    for iteration in range(start, iterations):  # line 1, for a fixed number of iterations
        if seed is not None:
            seed_iteration(seed, iteration)
        if decay:
            for group in opt_G.param_groups + opt_D.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - iteration / iterations)
        for _ in range(method.n_critic):  # line 2
            x, *y = next(batches)  # line 4
            z, *labels = parts(latents(len(x)))  # line 4. x_tilde gets the labels of x
            if len(y) != len(labels):
                raise ValueError("latents(m) must return (z, y) if batches have labels, else z. To drop "
                                 "labels: (x for _ in itertools.count() for x, y in loader)")
            values = critic_step(G, D, opt_D, x, z, *y, method=method)  # lines 5 to 9
        z, *y = parts(latents(generator_batch or len(x)))  # line 11
        yield Step(iteration + 1, *values, generator_step(G, D, opt_G, z, *y, method=method))  # line 12


def parts(batch):
    """Return x, (x,) or (x, y) as a list."""
    return list(batch) if isinstance(batch, (tuple, list)) else [batch]


def endless(batches, device):
    """Yield [x] or [x, y] on `device`, starting again when the batches end."""
    while True:
        batch = None
        for batch in batches:
            yield [part.to(device) for part in parts(batch)]
        if batch is None:
            raise ValueError("batches is empty or used up: give a DataLoader or an endless generator")


def seed_iteration(seed, iteration):
    """Reseed torch, so that logging cannot change a run and resuming needs no RNG state."""
    torch.manual_seed(seed * 1_000_003 + iteration)  # equal for no two pairs in runs shorter than that


@torch.no_grad()
def sample(G, latents, n, batch_size=100, convert=lambda x_tilde: x_tilde):
    """Return n samples of G, from full batches for its batch norm. convert: applied to each batch."""
    return torch.cat([convert(G(*parts(latents(batch_size)))) for _ in range(0, n, batch_size)])[:n]


def held_out_loss(G, D, batches, latents, method=None):
    """Compute critic_loss on held-out batches and fresh samples: three floats (Section 5.6)."""
    total, examples = 0, 0
    for batch in batches:
        x, *y = parts(batch)
        with torch.no_grad():
            x_tilde = G(parts(latents(len(x)))[0], *y)  # with the labels of x
        values = torch.stack(critic_loss(D, x, x_tilde, *y, method=method)).detach()
        total, examples = total + values * len(x), examples + len(x)
    return (total / examples).tolist()


# ---- methods: real are the scores D(x), fake the scores D(x_tilde) ----

class Method(NamedTuple):
    """A way to train a GAN. METHODS["wgan-gp"]._replace(lam=1) is a copy with another lambda."""
    D_loss: Callable  # (real, fake) -> scalar
    G_loss: Callable  # (fake) -> scalar
    lam: float  # weight of the gradient penalty. 0: none
    clip: float  # clip D's weights to [-clip, clip] (Section 2.2). 0: no clipping
    n_critic: int  # critic steps per generator step
    optimizer: str  # "adam" or "rmsprop"
    lr: float
    beta1: float  # Adam's. RMSProp has none
    beta2: float  # Adam's, and the decay of RMSProp's average
    one_sided: bool = False  # the penalty of Appendix C
    critic_term: Callable = lambda D, x, *y: 0.0  # added to the critic loss (AC-GAN, Section 5.4)
    generator_term: Callable = lambda D, x_tilde, *y: 0.0  # added to the generator loss

    def make_optimizer(self, network):
        """Return the torch optimizer for the parameters of a network."""
        if self.optimizer == "adam":
            return torch.optim.Adam(network.parameters(), self.lr, (self.beta1, self.beta2))
        if self.optimizer == "rmsprop":
            return torch.optim.RMSprop(network.parameters(), self.lr, alpha=self.beta2)
        raise ValueError(f'optimizer must be "adam" or "rmsprop", not {self.optimizer!r}')


# GAN: minus half of equation 1 on logits, and Section 2.1's other generator loss. LSGAN: [18].
GAN_LOSSES = (lambda real, fake: (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2,
              lambda fake: F.softplus(-fake).mean())
LSGAN_LOSSES = (lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
                lambda fake: (fake - 1).square().mean())
WGAN_LOSSES = (lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean())  # lines 7, 12

METHODS = {  # Figure 2's columns. WGAN-GP as in Algorithm 1: Figure 2 has beta1 0.5 (Appendix E)
    "dcgan": Method(*GAN_LOSSES, lam=0, clip=0, n_critic=1, optimizer="adam", lr=2e-4, beta1=0.5, beta2=0.999),
    "lsgan": Method(*LSGAN_LOSSES, lam=0, clip=0, n_critic=1, optimizer="rmsprop", lr=1e-4, beta1=None, beta2=0.9),
    "wgan": Method(*WGAN_LOSSES, lam=0, clip=0.01, n_critic=5, optimizer="rmsprop", lr=5e-5, beta1=None, beta2=0.9),
    "wgan-gp": Method(*WGAN_LOSSES, lam=10, clip=0, n_critic=5, optimizer="adam", lr=1e-4, beta1=0.0, beta2=0.9),
}
WGAN_GP = METHODS["wgan-gp"]
METHODS["wgan-gp-rmsprop"] = WGAN_GP._replace(optimizer="rmsprop", lr=5e-5, beta1=None)  # Figure 3
METHODS["dcgan-gp"] = METHODS["dcgan"]._replace(lam=10)  # the penalty on the GAN loss (Section 6)
