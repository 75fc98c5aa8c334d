"""Every network of "Improved Training of Wasserstein GANs", in the order of the paper's experiments.

Needs torch alone. Generators take latents z ~ N(0, I) of shape (m, 128), or (m, 2) for the toys. Critics return one
score per example, shape (m,). What the paper leaves open (initialisation, padding, batch statistics) is as in its
authors' TensorFlow code; it matters for the scores:

    initialisation   uniform, with a deviation from fan-in and fan-out (Conv2d, Linear); biases 0, gains 1
    padding          TensorFlow's "SAME": where it cannot be even, the odd row goes after, not before (HalfTurn)
    batch norm       always the statistics of the batch at hand, when sampling too: sample many images at a time

Written as they are for speed, and the same functions to rounding, are relu, Conv2d.then_pool, Conv2d.after_upsampling
and the memory format channels_last. What each gains is in results/speed.md.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

LATENT = 128  # numbers in z, everywhere but in the toys


# ---------------------------------------------------------------------------------------------------------- layers

def uniform_(weight, deviation):
    """Fill `weight` from U[-a, a] with a = deviation * sqrt(3), which has that standard deviation."""
    return nn.init.uniform_(weight, -deviation * math.sqrt(3), deviation * math.sqrt(3))


class Linear(nn.Linear):
    """A linear layer; weights of deviation sqrt(2/(in + out)), or, he=True, as before an MLP's ReLUs, sqrt(2/in)."""

    def __init__(self, n_in, n_out, he=False):
        super().__init__(n_in, n_out)
        uniform_(self.weight, math.sqrt(2 / n_in if he else 2 / (n_in + n_out)))
        nn.init.zeros_(self.bias)


class HalfTurn(nn.Module):
    """Images (m, channels, height, width) turned by 180 degrees.

    Where the padding of a strided layer cannot be even, TensorFlow puts the odd row of zeros after the image and torch
    puts it before. So networks with strided layers work on the image turned round: they are TensorFlow's, with every
    kernel turned round as well, which makes no difference to random first weights.
    """

    def forward(self, x):
        return x.flip(2, 3)


class Conv2d(nn.Conv2d):
    """A convolution with "SAME" padding (see HalfTurn): side n in, side ceil(n / stride) out.

    Weights have deviation sqrt(4/(fan_in + fan_out)), where fan_out counts one position in stride**2; glorot=True,
    where the authors' code has it: sqrt(2/(fan_in + fan_out)).
    """

    def __init__(self, n_in, n_out, kernel, stride=1, bias=True, glorot=False):
        super().__init__(n_in, n_out, kernel, stride, padding=kernel // 2, bias=bias)
        fans = n_in * kernel ** 2 + n_out * kernel ** 2 / stride ** 2
        uniform_(self.weight, math.sqrt((2 if glorot else 4) / fans))
        if bias:
            nn.init.zeros_(self.bias)
        self.to(memory_format=torch.channels_last)

    def then_pool(self, x):
        """The mean of each 2 x 2 pixels of self(x), for stride 1, as one convolution of stride 2 whose kernel is the
        mean of the kernel at four places: of a 3x3, 16 multiplications where there were 36."""
        return F.conv2d(x, F.avg_pool2d(self.weight, 2, 1, padding=1), self.bias, 2, self.padding)

    def after_upsampling(self, x):
        """self(upsample(x)), for stride 1: the transpose of then_pool, times four."""
        kernel = 4 * F.avg_pool2d(self.weight.flip(2, 3), 2, 1, padding=1)
        return F.conv_transpose2d(x, kernel.transpose(0, 1), self.bias, 2, self.padding)


class Deconv2d(nn.ConvTranspose2d):
    """A transposed convolution of stride 2, the adjoint of Conv2d's of the same kernel: side n in, 2n out.

    Weights have deviation sqrt(4/(fan_in + fan_out)), where fan_in counts one position in four.
    """

    def __init__(self, n_in, n_out, kernel):
        super().__init__(n_in, n_out, kernel, stride=2, padding=kernel // 2, output_padding=1)
        uniform_(self.weight, math.sqrt(4 / (n_in * kernel ** 2 / 4 + n_out * kernel ** 2)))
        nn.init.zeros_(self.bias)
        self.to(memory_format=torch.channels_last)


def relu(x, slope=0.0):
    """max(x, slope * x), as a product with a mask that is constant for autograd: so it sees that the second derivative
    is nothing. That of F.relu and F.leaky_relu is a tensor of zeros, which the gradient penalty would carry through a
    whole backward pass, a sixth of the multiplications of a critic step."""
    return x * x.detach().sign().clamp_(min=slope)


class ReLU(nn.Module):
    """max(x, 0)."""

    def forward(self, x):
        return relu(x)


class LeakyReLU(nn.Module):
    """max(x, .2x)."""

    def forward(self, x):
        return relu(x, 0.2)


def batch_norm(channels, flat=False):
    """Batch norm with the statistics of the batch at hand, always; flat: over the units of a vector."""
    return (nn.BatchNorm1d if flat else nn.BatchNorm2d)(channels, track_running_stats=False)


def no_norm(channels, flat=False):
    """What stands where there is no normalisation."""
    return nn.Identity()


def layer_norm(channels):
    """Layer norm: mean and variance over channels, height and width together; one gain and bias per channel."""
    return nn.GroupNorm(1, channels)


def critic_norm(norm, channels):
    """A critic's normalisation. norm: None (WGAN-GP on CIFAR-10 and MNIST), "batch" (the other methods) or "layer"
    (WGAN-GP in Figure 2 and Table 1; Section 4)."""
    return {None: no_norm, "batch": batch_norm, "layer": layer_norm}[norm](channels)


def upsample(x):
    """Nearest neighbour: each pixel becomes 2 x 2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class ResidualBlock(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, 3x3, and a shortcut (Appendix F: "pre-activation residual blocks").

    resample="up": nearest neighbour before the first convolution, as released (Appendix F says the second); the
    shortcut up-samples, then convolves 1x1. "down": mean pooling after the second, which alone changes the width; the
    shortcut convolves, then pools (the mean of a 1x1 convolution is that of the mean). None: the same size, and at the
    same width the shortcut is the identity. bias: has the first convolution one? (Not in the 64x64 networks.)
    """

    def __init__(self, n_in, n_out, resample=None, norm=no_norm, bias=True):
        super().__init__()
        middle = n_in if resample == "down" else n_out
        self.norm1, self.conv1 = norm(n_in), Conv2d(n_in, middle, 3, bias=bias)
        self.norm2, self.conv2 = norm(middle), Conv2d(middle, n_out, 3)
        self.shortcut = Conv2d(n_in, n_out, 1, glorot=True) if resample or n_in != n_out else nn.Identity()
        self.resample = resample

    def forward(self, x, *y):
        up, down = self.resample == "up", self.resample == "down"
        h = relu(self.norm1(x, *y))
        h = self.conv1.after_upsampling(h) if up else self.conv1(h)
        h = relu(self.norm2(h, *y))
        h = self.conv2.then_pool(h) if down else self.conv2(h)
        if up:
            return h + upsample(self.shortcut(x))  # a 1x1 convolution and the up-sampling may change places
        return h + (self.shortcut.then_pool(x) if down else self.shortcut(x))


# ------------------------------------------------------------------------- toys: Figures 1(a) and 1(b), Section 3

def mlp(n_in, n_out, dim=512, depth=3):
    """`depth` hidden ReLU layers of `dim` units, and a linear layer."""
    layers = []
    for i in range(depth):
        layers += [Linear(dim if i else n_in, dim, he=True), ReLU()]
    return nn.Sequential(*layers, Linear(dim, n_out))


def toy_generator(dim=512, depth=3):
    """z (m, 2) to points in the plane (m, 2)."""
    return mlp(2, 2, dim, depth)


def toy_critic(dim=512, depth=3):
    """Points in the plane (m, 2) to scores (m,)."""
    return nn.Sequential(*mlp(2, 1, dim, depth), nn.Flatten(0))


# ------------------------------------------- random architectures: Tables 1, 2 and 5, Section 5.1, Appendices B to D
# Table 1's variants of the CIFAR-10 DCGAN below, and at depth 4 that very network. "Depth" counts layers that have
# weights. The paper does not say where those beyond 4 are. Here they are 3x3 convolutions of stride 1 that keep the
# width, spread as evenly as can be over the maps of 4, 8 and 16 pixels a side (at 32 the DCGAN has nothing but the
# colours of the image); each follows the layer that makes maps of its size; the remainder goes to the smaller maps
# first. They have the norm and the nonlinearity of their neighbours, and all are initialised alike, whatever the
# nonlinearity.

class ShiftedSoftplus(nn.Module):
    """softplus(2x + 2)/2 - 1: nearly ELU, but smooth. ELU's second derivative, which the gradient of the penalty
    contains, jumps from 1 to 0 at 0 (Appendix D)."""

    def forward(self, x):
        return F.softplus(2 * x + 2) / 2 - 1


def layers_beyond_4(depth):
    """How many of `depth` layers are added to maps of 4, 8 and 16 pixels a side: (2, 1, 1) for 8, (3, 3, 2) for 12."""
    return (depth - 2) // 3, (depth - 3) // 3, (depth - 4) // 3


def same_size_layers(n, channels, norm, activation):
    """n times 3x3, norm, activation, as a list. norm: channels to a module."""
    return [layer for _ in range(n) for layer in (Conv2d(channels, channels, 3), norm(channels), activation())]


def variant_generator(dim=64, depth=4, activation=nn.ReLU, norm=True):
    """z (m, 128) to images (m, 3, 32, 32) in [-1, 1]. activation: makes a module; norm: batch norm, or none."""
    maybe_norm = batch_norm if norm else no_norm
    at_4, at_8, at_16 = layers_beyond_4(depth)
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 4 * dim), maybe_norm(4 * 4 * 4 * dim, flat=True), activation(),
        nn.Unflatten(1, (4 * dim, 4, 4)), *same_size_layers(at_4, 4 * dim, maybe_norm, activation),
        Deconv2d(4 * dim, 2 * dim, 5), maybe_norm(2 * dim), activation(),  # 8 x 8
        *same_size_layers(at_8, 2 * dim, maybe_norm, activation),
        Deconv2d(2 * dim, dim, 5), maybe_norm(dim), activation(),  # 16 x 16
        *same_size_layers(at_16, dim, maybe_norm, activation),
        Deconv2d(dim, 3, 5), nn.Tanh(), HalfTurn())  # 32 x 32


def variant_critic(dim=64, depth=4, activation=LeakyReLU, norm=None):
    """Images (m, 3, 32, 32) to scores (m,). activation: makes a module; norm: see critic_norm (not on the first)."""
    maybe_norm = lambda channels: critic_norm(norm, channels)
    at_4, at_8, at_16 = layers_beyond_4(depth)
    return nn.Sequential(
        HalfTurn(), Conv2d(3, dim, 5, stride=2), activation(),  # 16 x 16
        *same_size_layers(at_16, dim, maybe_norm, activation),
        Conv2d(dim, 2 * dim, 5, stride=2), maybe_norm(2 * dim), activation(),  # 8 x 8
        *same_size_layers(at_8, 2 * dim, maybe_norm, activation),
        Conv2d(2 * dim, 4 * dim, 5, stride=2), maybe_norm(4 * dim), activation(),  # 4 x 4
        *same_size_layers(at_4, 4 * dim, maybe_norm, activation),
        nn.Flatten(), Linear(4 * 4 * 4 * dim, 1), nn.Flatten(0))


# ---------------------------------------------------------- LSUN, 64x64 and 128x128: Figures 2 and 4, Sections 5.2, 5.4

class Gate(nn.Module):
    """The gated multiplicative nonlinearity (van den Oord et al. [24]), sigmoid(a) * tanh(b), of the even channels a
    and the odd channels b: half as many channels come out."""

    def forward(self, x):
        return torch.sigmoid(x[:, ::2]) * torch.tanh(x[:, 1::2])


def start_at(deviation, network):
    """`network`, with the weights of its convolutions and linear layers drawn anew, of this deviation; None: as it is."""
    for layer in network if deviation else []:
        if isinstance(layer, (Linear, Conv2d, Deconv2d)):
            uniform_(layer.weight, deviation)
    return network


def dcgan64_generator(dim=64, nonlinearity=nn.ReLU, norm=batch_norm, widths=(8, 4, 2, 1), deviation=0.02):
    """z (m, 128) to images (m, 3, 64, 64) in [-1, 1]: four transposed convolutions from widths[0] * dim channels, 4x4.

    deviation: of the first weights, as in DCGAN (Radford et al. [22]); None: the layers' own.
    """
    n = 2 if nonlinearity is Gate else 1  # channels that become one
    widths = [width * dim for width in widths]
    layers = [Linear(LATENT, 4 * 4 * n * widths[0]), nn.Unflatten(1, (-1, 4, 4)), norm(n * widths[0]), nonlinearity()]
    for n_in, n_out in zip(widths, widths[1:]):  # 8, 16, 32 pixels a side
        layers += [Deconv2d(n_in, n * n_out, 5), norm(n * n_out), nonlinearity()]
    network = nn.Sequential(*layers, Deconv2d(widths[-1], 3, 5), nn.Tanh(), HalfTurn())
    return start_at(deviation, network)


def dcgan64_critic(dim=64, norm="layer", nonlinearity=LeakyReLU, deviation=0.02):
    """Images (m, 3, 64, 64) to scores (m,): four convolutions, all but the first normalised (norm: see critic_norm)."""
    n = 2 if nonlinearity is Gate else 1
    layers = [HalfTurn(), Conv2d(3, n * dim, 5, stride=2), nonlinearity()]
    for n_in, n_out in [(dim, 2 * dim), (2 * dim, 4 * dim), (4 * dim, 8 * dim)]:  # 16, 8, 4 pixels a side
        layers += [Conv2d(n_in, n * n_out, 5, stride=2), critic_norm(norm, n * n_out), nonlinearity()]
    network = nn.Sequential(*layers, nn.Flatten(), Linear(4 * 4 * 8 * dim, 1), nn.Flatten(0))
    return start_at(deviation, network)


def mlp64_generator(dim=64):
    """z (m, 128) to images (m, 3, 64, 64) in [-1, 1]: "4-layer 512-dim ReLU MLP", so 8 * dim units a layer."""
    return nn.Sequential(mlp(LATENT, 3 * 64 * 64, 8 * dim, depth=4), nn.Unflatten(1, (3, 64, 64)), nn.Tanh())


def resnet_generator(dim=64, size=64):
    """z (m, 128) to images (m, 3, size, size) in [-1, 1]; size 64, the network of the authors' code, or 128 (Figure 4),
    which has one block more at 8 * dim channels: how the authors reached 128 is not published."""
    widths = [8 * dim] * (size // 64) + [8 * dim, 4 * dim, 2 * dim, dim]
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 8 * dim), nn.Unflatten(1, (-1, 4, 4)),
        *[ResidualBlock(n_in, n_out, "up", batch_norm, bias=False) for n_in, n_out in zip(widths, widths[1:])],
        batch_norm(dim), nn.ReLU(), Conv2d(dim, 3, 3), nn.Tanh())


def resnet_critic(dim=64, norm="layer", size=64):
    """Images (m, 3, size, size) to scores (m,): resnet_generator's mirror image. norm: see critic_norm."""
    widths = [dim, 2 * dim, 4 * dim, 8 * dim] + [8 * dim] * (size // 64)
    return nn.Sequential(
        Conv2d(3, dim, 3, glorot=True),
        *[ResidualBlock(n_in, n_out, "down", partial(critic_norm, norm), bias=False)
          for n_in, n_out in zip(widths, widths[1:])],
        nn.Flatten(), Linear(4 * 4 * 8 * dim, 1), nn.Flatten(0))


class Bottleneck(nn.Module):
    """Shortcut + .3 norm(1x1(ReLU(3x3(ReLU(1x1(ReLU(x))))))), the 3x3 at half the channels; it also resamples.

    The shortcut is the identity, or where the size changes a 1x1 convolution: of stride 2 down, from the second row and
    column of the turned image (the first one of every two, see HalfTurn); up, to four times the channels, which then
    become 2 x 2 pixels.
    """

    def __init__(self, n_in, n_out, resample=None, norm=batch_norm):
        super().__init__()
        half_in, half_out = n_in // 2, n_out // 2
        self.down, self.shortcut = resample == "down", nn.Identity()
        if resample == "up":
            middle = Deconv2d(half_in, half_out, 3)
            self.shortcut = nn.Sequential(Conv2d(n_in, 4 * n_out, 1, glorot=True), nn.PixelShuffle(2))
        elif resample == "down":
            middle = Conv2d(half_in, half_out, 3, stride=2)
            self.shortcut = Conv2d(n_in, n_out, 1, stride=2, glorot=True)
        else:
            middle = Conv2d(half_in, half_out, 3)
        self.layers = nn.Sequential(ReLU(), Conv2d(n_in, half_in, 1), ReLU(), middle,
                                    ReLU(), Conv2d(half_out, n_out, 1, bias=False), norm(n_out))

    def forward(self, x):
        return self.shortcut(x[:, :, 1:, 1:] if self.down else x) + 0.3 * self.layers(x)


class Scale(nn.Module):
    """x times a number."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


def resnet101_generator(dim=64):
    """z (m, 128) to images (m, 3, 64, 64) in [-1, 1]: 33 bottlenecks of 3 layers, a linear layer before, a 1x1 after."""
    blocks, n = [], 8 * dim
    for _ in range(4):  # 4, 8, 16, 32 pixels a side
        blocks += [Bottleneck(n, n) for _ in range(6)] + [Bottleneck(n, n // 2, "up")]
        n //= 2
    blocks += [Bottleneck(n, n) for _ in range(5)]
    return nn.Sequential(Linear(LATENT, 4 * 4 * 8 * dim), nn.Unflatten(1, (-1, 4, 4)), *blocks,
                         Conv2d(n, 3, 1, glorot=True), Scale(1 / 5), nn.Tanh(), HalfTurn())


def resnet101_critic(dim=64, norm="layer"):
    """Images (m, 3, 64, 64) to scores (m,): resnet101_generator's mirror image. norm: see critic_norm."""
    norm, n = partial(critic_norm, norm), dim // 2
    blocks = [Bottleneck(n, n, norm=norm) for _ in range(5)]
    for _ in range(4):  # to 32, 16, 8, 4 pixels a side
        blocks += [Bottleneck(n, 2 * n, "down", norm)] + [Bottleneck(2 * n, 2 * n, norm=norm) for _ in range(6)]
        n *= 2
    return nn.Sequential(HalfTurn(), Conv2d(3, dim // 2, 1, glorot=True), *blocks,
                         nn.Flatten(), Linear(4 * 4 * 8 * dim, 1), Scale(1 / 5), nn.Flatten(0))


# Figure 2's rows, G(dim) and D(dim, norm): five are the DCGAN pair with something changed. Where D is normalised, norm is
# "layer" under WGAN-GP and "batch" otherwise (Section 5.2). Last, the pair of Figure 4, which is no row of Figure 2.
LSUN = {
    "dcgan": (dcgan64_generator, dcgan64_critic),
    "constant-filters": (partial(dcgan64_generator, norm=no_norm, widths=(1, 1, 1, 1), deviation=None), dcgan64_critic),
    "mlp": (mlp64_generator, dcgan64_critic),
    "no-norm": (partial(dcgan64_generator, norm=no_norm), lambda dim, norm: dcgan64_critic(dim, norm=None)),
    "gated": (partial(dcgan64_generator, nonlinearity=Gate, deviation=None),
              partial(dcgan64_critic, nonlinearity=Gate, deviation=None)),
    "tanh": (partial(dcgan64_generator, nonlinearity=nn.Tanh), partial(dcgan64_critic, nonlinearity=nn.Tanh)),
    "resnet101": (resnet101_generator, resnet101_critic),
    "resnet": (resnet_generator, resnet_critic),
}


# ------------------------------------------------------------------------- CIFAR-10 DCGAN: Figure 3, Section 5.3

def cifar_generator(dim=64):
    """z (m, 128) to images (m, 3, 32, 32) in [-1, 1]. The authors' width was 128; they found 64 to overfit less."""
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 4 * dim), batch_norm(4 * 4 * 4 * dim, flat=True), nn.ReLU(),
        nn.Unflatten(1, (4 * dim, 4, 4)),
        Deconv2d(4 * dim, 2 * dim, 5), batch_norm(2 * dim), nn.ReLU(),  # 8 x 8
        Deconv2d(2 * dim, dim, 5), batch_norm(dim), nn.ReLU(),  # 16 x 16
        Deconv2d(dim, 3, 5), nn.Tanh(), HalfTurn())  # 32 x 32


def cifar_critic(dim=64, norm=None, channels=3):
    """Images (m, channels, 32, 32) to scores (m,). norm: see critic_norm."""
    return nn.Sequential(
        HalfTurn(), Conv2d(channels, dim, 5, stride=2), LeakyReLU(),  # 16 x 16
        Conv2d(dim, 2 * dim, 5, stride=2), critic_norm(norm, 2 * dim), LeakyReLU(),  # 8 x 8
        Conv2d(2 * dim, 4 * dim, 5, stride=2), critic_norm(norm, 4 * dim), LeakyReLU(),  # 4 x 4
        nn.Flatten(), Linear(4 * 4 * 4 * dim, 1), nn.Flatten(0))


# -------------------------------------------------------------------- CIFAR-10 ResNet: Table 3, Appendices F and G

class ConditionalBatchNorm(nn.Module):
    """Batch norm with statistics shared by all classes, and a gain and a bias for each class (from the authors' code)."""

    def __init__(self, channels, classes=10):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)
        self.gain, self.bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x, y):
        return self.norm(x) * self.gain(y)[:, :, None, None] + self.bias(y)[:, :, None, None]


class FirstCriticBlock(nn.Module):
    """A critic's first block: no activation before the first convolution, as it sees the image; 3x3, ReLU, 3x3, pool,
    and a shortcut that pools, then convolves 1x1."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv1, self.conv2 = Conv2d(n_in, n_out, 3), Conv2d(n_out, n_out, 3)
        self.shortcut = Conv2d(n_in, n_out, 1, glorot=True)

    def forward(self, x):
        return self.conv2.then_pool(relu(self.conv1(x))) + self.shortcut.then_pool(x)


class CifarResNetGenerator(nn.Module):
    """Appendix F's generator: z (m, 128), and labels (m,) if conditional, to images (m, 3, 32, 32) in [-1, 1]."""

    def __init__(self, dim=128, conditional=False):
        super().__init__()
        norm = ConditionalBatchNorm if conditional else batch_norm
        self.linear = Linear(LATENT, 4 * 4 * dim)
        self.blocks = nn.ModuleList([ResidualBlock(dim, dim, "up", norm) for _ in range(3)])  # 8, 16, 32 pixels a side
        self.norm = batch_norm(dim)
        self.conv = Conv2d(dim, 3, 3, glorot=True)

    def forward(self, z, *y):
        x = self.linear(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, *y)
        return torch.tanh(self.conv(relu(self.norm(x))))


class CifarResNetCritic(nn.Module):
    """Appendix F's critic: images (m, 3, 32, 32) to scores (m,); classify() to the logits of the classes, (m, 10)."""

    def __init__(self, dim=128, conditional=False, classes=10):
        super().__init__()
        self.blocks = nn.Sequential(FirstCriticBlock(3, dim), ResidualBlock(dim, dim, "down"),  # 16, 8 pixels a side
                                    ResidualBlock(dim, dim), ResidualBlock(dim, dim))
        self.score = Linear(dim, 1)
        if conditional:
            self.label = Linear(dim, classes)

    def features(self, x):
        return relu(self.blocks(x)).mean((2, 3))

    def forward(self, x):
        return self.score(self.features(x)).flatten(0)

    def classify(self, x):
        return self.label(self.features(x))


# --------------------------------------------------------------------------- language model: Table 4, Section 5.5

class Conv1d(nn.Conv1d):
    """A 1-D convolution that keeps the length; weights of deviation sqrt(4/(fan_in + fan_out))."""

    def __init__(self, n_in, n_out, kernel):
        super().__init__(n_in, n_out, kernel, padding=kernel // 2)
        uniform_(self.weight, math.sqrt(4 / (kernel * (n_in + n_out))))
        nn.init.zeros_(self.bias)


class TextBlock(nn.Module):
    """x + .3 (ReLU, conv 5, ReLU, conv 5)."""

    def __init__(self, dim):
        super().__init__()
        self.conv1, self.conv2 = Conv1d(dim, dim, 5), Conv1d(dim, dim, 5)

    def forward(self, x):
        return x + 0.3 * self.conv2(relu(self.conv1(relu(x))))


def language_generator(alphabet, length=32, dim=512):
    """z (m, 128) to a distribution over the alphabet at each place: (m, alphabet, length), summing to 1 over dim 1."""
    return nn.Sequential(
        Linear(LATENT, dim * length), nn.Unflatten(1, (dim, length)),
        *[TextBlock(dim) for _ in range(5)],
        Conv1d(dim, alphabet, 1), nn.Softmax(dim=1))


def language_critic(alphabet, length=32, dim=512):
    """One-hot characters or the generator's softmax, (m, alphabet, length), to scores (m,)."""
    return nn.Sequential(
        Conv1d(alphabet, dim, 1),
        *[TextBlock(dim) for _ in range(5)],
        nn.Flatten(), Linear(dim * length, 1), nn.Flatten(0))


# ---------------------------------------------------------------------------- MNIST DCGAN: Figure 5(b), Section 5.6

class Crop(nn.Module):
    """The top left `side` x `side` pixels of an image that HalfTurn will turn: here, the last rows and columns."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, x):
        return x[:, :, -self.side:, -self.side:]


def mnist_generator(dim=64, norm=False):
    """z (m, 128) to images (m, 1, 28, 28) in [0, 1]. norm: batch norm, which only weight clipping has."""
    maybe_norm = batch_norm if norm else no_norm
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 4 * dim), maybe_norm(4 * 4 * 4 * dim, flat=True), nn.ReLU(),
        nn.Unflatten(1, (4 * dim, 4, 4)),
        Deconv2d(4 * dim, 2 * dim, 5), maybe_norm(2 * dim), nn.ReLU(), Crop(7),  # 8 x 8, of which 7 x 7
        Deconv2d(2 * dim, dim, 5), maybe_norm(dim), nn.ReLU(),  # 14 x 14
        Deconv2d(dim, 1, 5), nn.Sigmoid(), HalfTurn())  # 28 x 28


def mnist_critic(dim=64, norm=None):
    """Images (m, 1, 28, 28) to scores (m,): cifar_critic's layers, on maps of 14, 7 and 4 pixels a side."""
    return cifar_critic(dim, norm, channels=1)
