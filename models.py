"""Every network of "Improved Training of Wasserstein GANs", in the order of the paper's experiments.

Needs torch alone. Generators take latents z ~ N(0, I) of shape (m, 128), or (m, 2) for the toys. Critics return one
score per example, shape (m,). What the paper leaves open (initialisation, padding, batch statistics) is as in its
authors' TensorFlow code; it matters for the scores:

    initialisation   uniform, with a deviation from fan-in and fan-out (Conv2d, Linear); biases 0, gains 1
    padding          TensorFlow's "SAME": where it cannot be even, the odd row goes after, not before (Conv2d)
    batch norm       always the statistics of the batch at hand, when sampling too: sample many images at a time
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

LATENT = 128  # numbers in z, everywhere but in the toys


# ---------------------------------------------------------------------------------------------------------- layers

def uniform_(weight, deviation):
    """Fill `weight` from U[-a, a] with a = deviation * sqrt(3), which has that standard deviation."""
    return nn.init.uniform_(weight, -deviation * math.sqrt(3), deviation * math.sqrt(3))


class Linear(nn.Linear):
    """A linear layer with weights of deviation sqrt(2/(in + out)); he=True, for layers before a ReLU: sqrt(2/in)."""

    def __init__(self, n_in, n_out, he=False):
        super().__init__(n_in, n_out)
        uniform_(self.weight, math.sqrt(2 / n_in if he else 2 / (n_in + n_out)))
        nn.init.zeros_(self.bias)


class Conv2d(nn.Conv2d):
    """A convolution with "SAME" padding: side n in, side ceil(n / stride) out.

    Weights have deviation sqrt(4/(fan_in + fan_out)), where fan_out counts one position in stride**2; glorot=True,
    for layers without a ReLU: sqrt(2/(fan_in + fan_out)).
    """

    def __init__(self, n_in, n_out, kernel, stride=1, bias=True, glorot=False):
        super().__init__(n_in, n_out, kernel, stride, padding=kernel // 2 if stride == 1 else 0, bias=bias)
        fans = n_in * kernel ** 2 + n_out * kernel ** 2 / stride ** 2
        uniform_(self.weight, math.sqrt((2 if glorot else 4) / fans))
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x):
        if self.stride[0] > 1:
            x = F.pad(x, self.same_padding(x.shape[3]) + self.same_padding(x.shape[2]))
        return super().forward(x)

    def same_padding(self, n):
        """(zeros before, zeros after) for a side of n pixels; kernel 5, stride 2: (1, 2) if n is even, else (2, 2)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
        return total // 2, total - total // 2


class Deconv2d(nn.ConvTranspose2d):
    """A transposed convolution of stride 2: side n in, 2n out, cut so that it is the adjoint of Conv2d's padding.

    Of kernel 5's 2n + 3 rows, 1 is cut before and 2 after; of kernel 3's 2n + 1, the last. Weights have deviation
    sqrt(4/(fan_in + fan_out)), where fan_in counts one position in four.
    """

    def __init__(self, n_in, n_out, kernel):
        super().__init__(n_in, n_out, kernel, stride=2, padding=(kernel - 2) // 2)
        uniform_(self.weight, math.sqrt(4 / (n_in * kernel ** 2 / 4 + n_out * kernel ** 2)))
        nn.init.zeros_(self.bias)

    def forward(self, x):
        return super().forward(x)[:, :, :2 * x.shape[2], :2 * x.shape[3]]


class LeakyReLU(nn.Module):
    """max(x, .2x). As a product with a mask, autograd sees that its second derivative is nothing: F.leaky_relu's is
    a tensor of zeros, which the gradient penalty would carry through a whole backward pass."""

    def forward(self, x):
        return x * torch.where(x > 0, torch.ones_like(x), torch.full_like(x, 0.2))


def batch_norm(channels, flat=False):
    """Batch norm with the statistics of the batch at hand, always; flat: over the units of a vector."""
    return (nn.BatchNorm1d if flat else nn.BatchNorm2d)(channels, track_running_stats=False)


def layer_norm(channels):
    """Layer norm: mean and variance over channels, height and width together; one gain and bias per channel."""
    return nn.GroupNorm(1, channels)


def critic_norm(norm, channels):
    """A critic's normalisation. norm: None (WGAN-GP), "batch" (the other methods) or "layer" (Section 4)."""
    return {None: nn.Identity, "batch": batch_norm, "layer": layer_norm}[norm](channels)


# ------------------------------------------------------------------------- toys: Figures 1(a) and 1(b), Section 3

def mlp(n_in, n_out, dim=512, depth=3):
    """`depth` hidden ReLU layers of `dim` units, and a linear layer."""
    layers = []
    for i in range(depth):
        layers += [Linear(dim if i else n_in, dim, he=True), nn.ReLU()]
    return nn.Sequential(*layers, Linear(dim, n_out))


def toy_generator(dim=512, depth=3):
    """z (m, 2) to points in the plane (m, 2)."""
    return mlp(2, 2, dim, depth)


def toy_critic(dim=512, depth=3):
    """Points in the plane (m, 2) to scores (m,)."""
    return nn.Sequential(*mlp(2, 1, dim, depth), nn.Flatten(0))


# ------------------------------------------------------------------------- CIFAR-10 DCGAN: Figure 3, Section 5.3

def cifar_generator(dim=64):
    """z (m, 128) to images (m, 3, 32, 32) in [-1, 1]. The authors' width was 128; they found 64 to overfit less."""
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 4 * dim), batch_norm(4 * 4 * 4 * dim, flat=True), nn.ReLU(),
        nn.Unflatten(1, (4 * dim, 4, 4)),
        Deconv2d(4 * dim, 2 * dim, 5), batch_norm(2 * dim), nn.ReLU(),  # 8 x 8
        Deconv2d(2 * dim, dim, 5), batch_norm(dim), nn.ReLU(),  # 16 x 16
        Deconv2d(dim, 3, 5), nn.Tanh())  # 32 x 32


def cifar_critic(dim=64, norm=None):
    """Images (m, 3, 32, 32) to scores (m,). norm: see critic_norm."""
    return nn.Sequential(
        Conv2d(3, dim, 5, stride=2), LeakyReLU(),  # 16 x 16
        Conv2d(dim, 2 * dim, 5, stride=2), critic_norm(norm, 2 * dim), LeakyReLU(),  # 8 x 8
        Conv2d(2 * dim, 4 * dim, 5, stride=2), critic_norm(norm, 4 * dim), LeakyReLU(),  # 4 x 4
        nn.Flatten(), Linear(4 * 4 * 4 * dim, 1), nn.Flatten(0))
