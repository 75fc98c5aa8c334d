"""Every network of "Improved Training of Wasserstein GANs". Needs torch alone.

Generators take latents z ~ N(0, I) of shape (m, 128), or (m, 2) for the toys. Critics return one
score per example, shape (m,). Unspecified details follow the authors' TensorFlow code:

    initialisation   uniform, standard deviation (std) from fan-in and fan-out (Conv2d, Linear), biases 0, gains 1
    padding          torch's: TensorFlow's "SAME" up to a rotation by 180 degrees (Conv2d)
    batch norm       always the statistics of the current batch, so sample many images at a time
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

LATENT = 128  # numbers in z, everywhere but in the toys
LAYOUT = torch.channels_last  # memory format of the kernels, faster than contiguous
if torch.backends.mps.is_available():  # where batch norm's backward is wrong for it (pytorch issue 175189)
    LAYOUT = torch.contiguous_format


# ---- layers ----

def uniform_(weight, std):
    """Fill `weight` from a uniform distribution with mean 0 and this standard deviation."""
    return nn.init.uniform_(weight, -std * math.sqrt(3), std * math.sqrt(3))


class Linear(nn.Linear):
    """A linear layer. Weights have std sqrt(2/(in + out)), or sqrt(2/in) with he=True."""
    def __init__(self, n_in, n_out, he=False):
        super().__init__(n_in, n_out)
        fans = n_in if he else n_in + n_out
        uniform_(self.weight, math.sqrt(2 / fans))
        nn.init.zeros_(self.bias)


class Conv2d(nn.Conv2d):
    """A convolution with padding: side n in, ceil(n / stride) out.

    When a stride leaves one extra row of zeros, TensorFlow puts it after the image, torch before. So
    this is TensorFlow's layer on images rotated by 180 degrees, with the same random first weights.
    Weights have std sqrt(4/(fan_in + fan_out)), or sqrt(2/(fan_in + fan_out)) with glorot=True,
    where the authors' code has it. fan_out is divided by stride**2.
    """
    def __init__(self, n_in, n_out, kernel, stride=1, bias=True, glorot=False):
        super().__init__(n_in, n_out, kernel, stride, padding=kernel // 2, bias=bias)
        fans = n_in * kernel ** 2 + n_out * kernel ** 2 / stride ** 2
        uniform_(self.weight, math.sqrt((2 if glorot else 4) / fans))
        if bias:
            nn.init.zeros_(self.bias)
        self.to(memory_format=LAYOUT)


class Deconv2d(nn.ConvTranspose2d):
    """A transposed convolution of stride 2, the adjoint of Conv2d's: side n in, 2n out.

    Weights have std sqrt(4/(fan_in + fan_out)), where fan_in is divided by 4.
    """
    def __init__(self, n_in, n_out, kernel):
        super().__init__(n_in, n_out, kernel, stride=2, padding=kernel // 2, output_padding=1)
        uniform_(self.weight, math.sqrt(4 / (n_in * kernel ** 2 / 4 + n_out * kernel ** 2)))
        nn.init.zeros_(self.bias)
        self.to(memory_format=LAYOUT)


def batch_norm(channels, flat=False):
    """Batch norm that always uses the statistics of the current batch. flat: for vectors."""
    norm = nn.BatchNorm1d if flat else nn.BatchNorm2d
    return norm(channels, track_running_stats=False)


def critic_norm(norm, channels):
    """A critic's normalization: None, "batch" or, with the penalty, "layer" (Section 4).

    Layer norm: statistics over channels, height and width together, a gain and bias per channel.
    """
    return {None: nn.Identity, "batch": batch_norm, "layer": partial(nn.GroupNorm, 1)}[norm](channels)


def upsample(x):
    """Nearest-neighbour upsampling: each pixel becomes 2 x 2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


# ---- faster equivalents: equal up to rounding, see results/speed.md ----

def relu(x, slope=0.0):
    """max(x, slope * x), computed as x times a detached mask.

    The double backward pass of F.relu propagates a tensor of zeros. This version skips that work.
    """
    return x * x.detach().sign().clamp_(min=slope)


class ReLU(nn.Module):
    """max(x, slope * x)."""
    slope = 0.0

    def forward(self, x):
        return relu(x, self.slope)


class LeakyReLU(ReLU):
    """max(x, 0.2 * x)."""
    slope = 0.2


def mean_kernel(kernel):
    """The mean of a kernel (out, in, k, k) shifted to four places: (out, in, k + 1, k + 1).

    Not F.avg_pool2d, whose backward is wrong for channels-last on CUDA (pytorch issue 188344).
    """
    k = F.pad(kernel, (1, 1, 1, 1))
    return (k[..., 1:, 1:] + k[..., 1:, :-1] + k[..., :-1, 1:] + k[..., :-1, :-1]) / 4


def conv_then_pool(conv, x):
    """F.avg_pool2d(conv(x), 2) for a conv of stride 1, as one convolution of stride 2."""
    return F.conv2d(x, mean_kernel(conv.weight), conv.bias, 2, conv.padding)


def upsample_then_conv(conv, x):
    """conv(upsample(x)) for a conv of stride 1, as one transposed convolution of stride 2."""
    kernel = 4 * mean_kernel(conv.weight.flip(2, 3))
    return F.conv_transpose2d(x, kernel.transpose(0, 1), conv.bias, 2, conv.padding)


# ---- toys: Figure 1, Section 3 ----

def mlp(n_in, n_out, dim=512, depth=3):
    """`depth` hidden ReLU layers of `dim` units, then a linear layer."""
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


# ---- CIFAR-10 DCGAN: Figure 3, Section 5.3 ----

def cifar_generator(dim=64):
    """z (m, 128) to images (m, 3, 32, 32) in [-1, 1]. Width 64: the authors' code prefers it to 128."""
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 4 * dim), batch_norm(4 * 4 * 4 * dim, flat=True), nn.ReLU(),
        nn.Unflatten(1, (4 * dim, 4, 4)),
        Deconv2d(4 * dim, 2 * dim, 5), batch_norm(2 * dim), nn.ReLU(),  # 8 x 8
        Deconv2d(2 * dim, dim, 5), batch_norm(dim), nn.ReLU(),  # 16 x 16
        Deconv2d(dim, 3, 5), nn.Tanh())  # 32 x 32


def cifar_critic(dim=64, norm=None, channels=3):
    """Images (m, channels, 32, 32) to scores (m,). norm: see critic_norm."""
    return nn.Sequential(
        Conv2d(channels, dim, 5, stride=2), LeakyReLU(),  # 16 x 16
        Conv2d(dim, 2 * dim, 5, stride=2), critic_norm(norm, 2 * dim), LeakyReLU(),  # 8 x 8
        Conv2d(2 * dim, 4 * dim, 5, stride=2), critic_norm(norm, 4 * dim), LeakyReLU(),  # 4 x 4
        nn.Flatten(), Linear(4 * 4 * 4 * dim, 1), nn.Flatten(0))


# ---- MNIST DCGAN: Figure 5(b), Section 5.6 ----

def mnist_generator(dim=64, norm=False):
    """z (m, 128) to images (m, 1, 28, 28) in [0, 1]. norm: batch norm, only for weight clipping."""
    maybe_norm = batch_norm if norm else nn.Identity
    crop = nn.ZeroPad2d((-1, 0, -1, 0))  # the authors keep the top left: the bottom right once rotated
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 4 * dim), maybe_norm(4 * 4 * 4 * dim, flat=True), nn.ReLU(),
        nn.Unflatten(1, (4 * dim, 4, 4)),
        Deconv2d(4 * dim, 2 * dim, 5), maybe_norm(2 * dim), nn.ReLU(), crop,  # 7 x 7
        Deconv2d(2 * dim, dim, 5), maybe_norm(dim), nn.ReLU(),  # 14 x 14
        Deconv2d(dim, 1, 5), nn.Sigmoid())  # 28 x 28


def mnist_critic(dim=64, norm=None):
    """Images (m, 1, 28, 28) to scores (m,): the layers of cifar_critic, with maps of 14, 7, 4."""
    return cifar_critic(dim, norm, channels=1)


# ---- CIFAR-10 ResNet: Table 3, Appendices F and G ----

class ResidualBlock(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, 3x3, and a shortcut (Appendix F: "pre-activation residual blocks").

    resample: "up" upsamples before the first convolution, as in the authors' code (Appendix F: the
    second), "down" takes the mean of 2 x 2 pixels after the second. Both have a 1x1 shortcut.
    bias: False leaves the bias out of the first convolution (64x64 networks).
    """
    def __init__(self, n_in, n_out, resample=None, norm=nn.Identity, bias=True):
        super().__init__()
        middle = n_in if resample == "down" else n_out
        self.norm1, self.conv1 = norm(n_in), Conv2d(n_in, middle, 3, bias=bias)
        self.norm2, self.conv2 = norm(middle), Conv2d(middle, n_out, 3)
        self.shortcut = nn.Identity()
        if resample or n_in != n_out:
            self.shortcut = Conv2d(n_in, n_out, 1, glorot=True)
        self.resample = resample

    def forward(self, x, *y):
        h = relu(self.norm1(x, *y))
        h = upsample_then_conv(self.conv1, h) if self.resample == "up" else self.conv1(h)
        h = relu(self.norm2(h, *y))
        if self.resample == "down":
            return conv_then_pool(self.conv2, h) + conv_then_pool(self.shortcut, x)
        if self.resample == "up":
            return self.conv2(h) + upsample(self.shortcut(x))  # a 1x1 and upsampling commute
        return self.conv2(h) + self.shortcut(x)


class FirstCriticBlock(nn.Module):
    """A critic's first block: 3x3, ReLU, 3x3, pool, and a shortcut that pools, then convolves."""
    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv1, self.conv2 = Conv2d(n_in, n_out, 3), Conv2d(n_out, n_out, 3)
        self.shortcut = Conv2d(n_in, n_out, 1, glorot=True)

    def forward(self, x):
        return conv_then_pool(self.conv2, relu(self.conv1(x))) + conv_then_pool(self.shortcut, x)


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a gain and a bias for each class and shared statistics (authors' code)."""
    def __init__(self, channels, classes=10):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)
        self.gain, self.bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x, y):
        return self.norm(x) * self.gain(y)[:, :, None, None] + self.bias(y)[:, :, None, None]


class CifarResNetGenerator(nn.Module):
    """Appendix F: z (m, 128), and labels (m,) if conditional, to (m, 3, 32, 32) in [-1, 1]."""
    def __init__(self, dim=128, conditional=False):
        super().__init__()
        norm = ConditionalBatchNorm if conditional else batch_norm
        self.linear = Linear(LATENT, 4 * 4 * dim)
        self.blocks = nn.ModuleList([ResidualBlock(dim, dim, "up", norm) for _ in range(3)])  # to 32 x 32
        self.norm = batch_norm(dim)
        self.conv = Conv2d(dim, 3, 3, glorot=True)

    def forward(self, z, *y):
        x = self.linear(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, *y)
        return torch.tanh(self.conv(relu(self.norm(x))))


class CifarResNetCritic(nn.Module):
    """Appendix F: images (m, 3, 32, 32) to scores (m,). classify() returns class logits (m, 10)."""
    def __init__(self, dim=128, conditional=False, classes=10):
        super().__init__()
        self.blocks = nn.Sequential(
            FirstCriticBlock(3, dim), ResidualBlock(dim, dim, "down"),  # 16 x 16, 8 x 8
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


# ---- language model: Table 4, Section 5.5 ----

class Conv1d(nn.Conv1d):
    """A 1-D convolution that keeps the length. Weights have std sqrt(4/(fan_in + fan_out))."""
    def __init__(self, n_in, n_out, kernel):
        super().__init__(n_in, n_out, kernel, padding=kernel // 2)
        uniform_(self.weight, math.sqrt(4 / (kernel * (n_in + n_out))))
        nn.init.zeros_(self.bias)


class TextBlock(nn.Module):
    """x + 0.3 * (ReLU, conv 5, ReLU, conv 5)."""
    def __init__(self, dim):
        super().__init__()
        self.conv1, self.conv2 = Conv1d(dim, dim, 5), Conv1d(dim, dim, 5)

    def forward(self, x):
        return x + 0.3 * self.conv2(relu(self.conv1(relu(x))))


def language_generator(alphabet, length=32, dim=512):
    """z (m, 128) to (m, alphabet, length): per position a distribution over the alphabet."""
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


# ---- 64x64 and 128x128: Figures 2 and 4, Sections 5.2 and 5.4 ----

class Gate(nn.Module):
    """The gated nonlinearity (van den Oord et al. [24]): sigmoid(even channels) * tanh(odd ones)."""
    def forward(self, x):
        return torch.sigmoid(x[:, ::2]) * torch.tanh(x[:, 1::2])


def reinitialise(network, std):
    """Re-initialise convolutions and linear layers with this standard deviation. None: do not."""
    for layer in network:
        if std and isinstance(layer, (Linear, Conv2d, Deconv2d)):
            uniform_(layer.weight, std)
    return network


def dcgan64_generator(dim=64, nonlinearity=nn.ReLU, norm=batch_norm, widths=(8, 4, 2, 1), std=0.02):
    """z (m, 128) to images (m, 3, 64, 64) in [-1, 1]: linear, then four transposed convolutions.

    std: of the initial weights, as in DCGAN (Radford et al. [22]). None: each layer's own.
    """
    n = 2 if nonlinearity is Gate else 1  # a gate halves the channels
    widths = [width * dim for width in widths]
    layers = [Linear(LATENT, 4 * 4 * n * widths[0]), nn.Unflatten(1, (-1, 4, 4))]
    layers += [norm(n * widths[0]), nonlinearity()]
    for n_in, n_out in zip(widths, widths[1:]):  # 8, 16, 32 pixels a side
        layers += [Deconv2d(n_in, n * n_out, 5), norm(n * n_out), nonlinearity()]
    return reinitialise(nn.Sequential(*layers, Deconv2d(widths[-1], 3, 5), nn.Tanh()), std)


def dcgan64_critic(dim=64, norm="layer", nonlinearity=LeakyReLU, std=0.02):
    """Images (m, 3, 64, 64) to scores (m,): four convolutions, all but the first normalised."""
    n = 2 if nonlinearity is Gate else 1
    layers = [Conv2d(3, n * dim, 5, stride=2), nonlinearity()]
    for n_in, n_out in [(dim, 2 * dim), (2 * dim, 4 * dim), (4 * dim, 8 * dim)]:  # 16, 8, 4 pixels a side
        layers += [Conv2d(n_in, n * n_out, 5, stride=2), critic_norm(norm, n * n_out), nonlinearity()]
    network = nn.Sequential(*layers, nn.Flatten(), Linear(4 * 4 * 8 * dim, 1), nn.Flatten(0))
    return reinitialise(network, std)


def mlp64_generator(dim=64):
    """z (m, 128) to images (m, 3, 64, 64) in [-1, 1]: "4-layer 512-dim ReLU MLP"."""
    network = mlp(LATENT, 3 * 64 * 64, 8 * dim, depth=4)
    return nn.Sequential(network, nn.Unflatten(1, (3, 64, 64)), nn.Tanh())


def resnet_generator(dim=64, size=64):
    """z (m, 128) to images (m, 3, size, size) in [-1, 1].

    size: 64, or 128 (Figure 4, not published) with one more block at 8 * dim channels.
    """
    widths = [8 * dim] * (size // 64) + [8 * dim, 4 * dim, 2 * dim, dim]
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 8 * dim), nn.Unflatten(1, (-1, 4, 4)),
        *[ResidualBlock(a, b, "up", batch_norm, bias=False) for a, b in zip(widths, widths[1:])],
        batch_norm(dim), nn.ReLU(), Conv2d(dim, 3, 3), nn.Tanh())


def resnet_critic(dim=64, norm="layer", size=64):
    """Images (m, 3, size, size) to scores (m,): resnet_generator mirrored. norm: see critic_norm."""
    norm, widths = partial(critic_norm, norm), [dim, 2 * dim, 4 * dim, 8 * dim] + [8 * dim] * (size // 64)
    return nn.Sequential(
        Conv2d(3, dim, 3, glorot=True),
        *[ResidualBlock(a, b, "down", norm, bias=False) for a, b in zip(widths, widths[1:])],
        nn.Flatten(), Linear(4 * 4 * 8 * dim, 1), nn.Flatten(0))


class Bottleneck(nn.Module):
    """Shortcut + 0.3 * norm(1x1(ReLU(3x3(ReLU(1x1(ReLU(x))))))), the 3x3 at half the channels.

    Where the size changes, the shortcut is a 1x1 convolution. "down" has stride 2, "up" makes four
    channels of each, which become 2 x 2 pixels.
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
        h = 0.3 * self.layers(x)
        if self.down:
            x = x[:, :, 1:, 1:]  # TensorFlow keeps the first of two pixels, here it is the second
        return self.shortcut(x) + h


class Scale(nn.Module):
    """x times a number."""
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


def resnet101_generator(dim=64):
    """z (m, 128) to images (m, 3, 64, 64) in [-1, 1]: linear, 33 bottlenecks of 3 layers, 1x1."""
    blocks, n = [], 8 * dim
    for _ in range(4):  # 4, 8, 16, 32 pixels a side
        blocks += [Bottleneck(n, n) for _ in range(6)] + [Bottleneck(n, n // 2, "up")]
        n //= 2
    blocks += [Bottleneck(n, n) for _ in range(5)]
    return nn.Sequential(Linear(LATENT, 4 * 4 * 8 * dim), nn.Unflatten(1, (-1, 4, 4)), *blocks,
                         Conv2d(n, 3, 1, glorot=True), Scale(1 / 5), nn.Tanh())


def resnet101_critic(dim=64, norm="layer"):
    """Images (m, 3, 64, 64) to scores (m,): resnet101_generator mirrored."""
    norm, n = partial(critic_norm, norm), dim // 2
    blocks = [Bottleneck(n, n, norm=norm) for _ in range(5)]
    for _ in range(4):  # to 32, 16, 8, 4 pixels a side
        blocks += [Bottleneck(n, 2 * n, "down", norm)] + [Bottleneck(2 * n, 2 * n, norm=norm) for _ in range(6)]
        n *= 2
    return nn.Sequential(Conv2d(3, dim // 2, 1, glorot=True), *blocks,
                         nn.Flatten(), Linear(4 * 4 * 8 * dim, 1), Scale(1 / 5), nn.Flatten(0))


# The rows of Figure 2, and last the pair of Figure 4. Call them as G(dim) and D(dim, norm), where norm
# is "layer" under WGAN-GP and "batch" otherwise (Section 5.2).
LSUN = {
    "dcgan": (dcgan64_generator, dcgan64_critic),
    "constant-filters": (partial(dcgan64_generator, norm=nn.Identity, widths=(1, 1, 1, 1), std=None),
                         dcgan64_critic),
    "mlp": (mlp64_generator, dcgan64_critic),
    "no-norm": (partial(dcgan64_generator, norm=nn.Identity), lambda dim, norm: dcgan64_critic(dim, norm=None)),
    "gated": (partial(dcgan64_generator, nonlinearity=Gate, std=None),
              partial(dcgan64_critic, nonlinearity=Gate, std=None)),
    "tanh": (partial(dcgan64_generator, nonlinearity=nn.Tanh), partial(dcgan64_critic, nonlinearity=nn.Tanh)),
    "resnet101": (resnet101_generator, resnet101_critic),
    "resnet": (resnet_generator, resnet_critic),
}


# ---- random architectures: Tables 1, 2 and 5, Section 5.1, Appendices B to D ----

# Variants of the CIFAR-10 DCGAN. The paper does not say where the layers beyond 4 are. Here they are
# 3x3 convolutions that keep size and width, spread evenly over the maps of 4, 8 and 16 pixels a side.

class ShiftedSoftplus(nn.Module):
    """softplus(2x + 2)/2 - 1: close to ELU, but with a smooth derivative (Appendix D)."""
    def forward(self, x):
        return F.softplus(2 * x + 2) / 2 - 1


def extra_layers(depth):
    """How many of the layers beyond 4 are at 4, 8 and 16 pixels a side: (2, 1, 1) for depth 8."""
    return (depth - 2) // 3, (depth - 3) // 3, (depth - 4) // 3


def same_size_layers(n, channels, norm, activation):
    """n times 3x3, norm, activation, as a list."""
    return [layer for _ in range(n) for layer in (Conv2d(channels, channels, 3), norm(channels), activation())]


def variant_generator(dim=64, depth=4, activation=nn.ReLU, norm=True):
    """z (m, 128) to images (m, 3, 32, 32) in [-1, 1]. activation: a module class. norm: batch norm or none."""
    maybe_norm = batch_norm if norm else nn.Identity
    at_4, at_8, at_16 = extra_layers(depth)
    return nn.Sequential(
        Linear(LATENT, 4 * 4 * 4 * dim), maybe_norm(4 * 4 * 4 * dim, flat=True), activation(),
        nn.Unflatten(1, (4 * dim, 4, 4)), *same_size_layers(at_4, 4 * dim, maybe_norm, activation),
        Deconv2d(4 * dim, 2 * dim, 5), maybe_norm(2 * dim), activation(),  # 8 x 8
        *same_size_layers(at_8, 2 * dim, maybe_norm, activation),
        Deconv2d(2 * dim, dim, 5), maybe_norm(dim), activation(),  # 16 x 16
        *same_size_layers(at_16, dim, maybe_norm, activation),
        Deconv2d(dim, 3, 5), nn.Tanh())  # 32 x 32


def variant_critic(dim=64, depth=4, activation=LeakyReLU, norm=None):
    """Images (m, 3, 32, 32) to scores (m,). activation: a module class. norm: see critic_norm."""
    norm = partial(critic_norm, norm)
    at_4, at_8, at_16 = extra_layers(depth)
    return nn.Sequential(
        Conv2d(3, dim, 5, stride=2), activation(),  # 16 x 16
        *same_size_layers(at_16, dim, norm, activation),
        Conv2d(dim, 2 * dim, 5, stride=2), norm(2 * dim), activation(),  # 8 x 8
        *same_size_layers(at_8, 2 * dim, norm, activation),
        Conv2d(2 * dim, 4 * dim, 5, stride=2), norm(4 * dim), activation(),  # 4 x 4
        *same_size_layers(at_4, 4 * dim, norm, activation),
        nn.Flatten(), Linear(4 * 4 * 4 * dim, 1), nn.Flatten(0))
