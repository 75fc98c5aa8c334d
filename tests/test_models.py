"""models.py against its networks written out a second time, in TensorFlow's layers by hand."""
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
import wgan_gp


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(x):
    """Images or kernels turned by 180 degrees. Anything else stays."""
    return x.flip(2, 3) if x.dim() == 4 else x


pool = lambda x: (x[:, :, ::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, ::2] + x[:, :, 1::2, 1::2]) / 4
big = lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)
leaky = lambda x: torch.where(x > 0, x, 0.2 * x)
gate = lambda x: torch.sigmoid(x[:, 0::2]) * torch.tanh(x[:, 1::2])
smooth = lambda x: torch.log1p(torch.exp(2 * x + 2)) / 2 - 1


def assert_uniform(weight, deviation):
    """weight ~ U[-edge, edge] with this deviation, within sampling error."""
    n, edge = weight.numel(), deviation * math.sqrt(3)
    assert weight.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(n))
    assert edge * (1 - 20 / n) < weight.abs().max() <= edge * (1 + 1e-6)


class TensorFlow:
    """The authors' layers on upright images. Each takes a network's next weights, turned, and checks their shapes.

    fresh: check the first values too. deviation: of all of them, in place of each layer's rule.
    """

    def __init__(self, network, fresh=False, deviation=None):
        self.weights, self.fresh, self.deviation = iter(network.parameters()), fresh, deviation

    def take(self, like, *shape, deviation=None, first=0.0):
        weight = next(self.weights)
        assert weight.shape == shape
        if self.fresh and deviation:
            assert_uniform(weight, self.deviation or deviation)
        elif self.fresh:
            assert (weight == first).all()
        return weight.to(like.device)

    def per_channel(self, x, first=0.0):
        return self.take(x, x.shape[1], first=first).view(-1, *[1] * (x.dim() - 2))

    def linear(self, x, n_out, he=False):
        n_in = x.shape[1]
        fans = n_in if he else n_in + n_out
        x = x @ self.take(x, n_out, n_in, deviation=math.sqrt(2 / fans)).T
        return x + self.per_channel(x)

    def conv1d(self, x, n_out, k):
        n_in = x.shape[1]
        weight = self.take(x, n_out, n_in, k, deviation=math.sqrt(4 / (k * n_in + k * n_out)))
        x = F.conv1d(F.pad(x, (k // 2, k // 2)), weight)
        return x + self.per_channel(x)

    def conv(self, x, n_out, k, stride=1, bias=True, glorot=False):
        """conv2d with padding "SAME": the odd row of zeros goes after the image."""
        n_in, n = x.shape[1:3]
        deviation = math.sqrt(4 / (n_in * k * k + n_out * k * k / (stride * stride)))
        if glorot:
            deviation /= math.sqrt(2)
        weight = turned(self.take(x, n_out, n_in, k, k, deviation=deviation))
        total = max((math.ceil(n / stride) - 1) * stride + k - n, 0)
        before, after = total // 2, total - total // 2
        x = F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride)
        return x + self.per_channel(x) if bias else x

    def deconv(self, x, n_out, k):
        """conv2d_transpose of stride 2, "SAME": with a 5x5, 1 row is cut before and 2 after."""
        n_in, n = x.shape[1:3]
        fans = n_in * k * k / 4 + n_out * k * k
        weight = turned(self.take(x, n_in, n_out, k, k, deviation=math.sqrt(4 / fans)))
        first = {5: 1, 3: 0}[k]
        x = F.conv_transpose2d(x, weight, stride=2)[:, :, first:first + 2 * n, first:first + 2 * n]
        return x + self.per_channel(x)

    def norm(self, kind, x, y=None):
        """Batch or layer norm, with labels y conditional batch norm."""
        if kind is None:
            return x
        over = [axis for axis in range(x.dim()) if axis != (1 if kind == "batch" else 0)]
        x = x - x.mean(over, keepdim=True)
        x = x / (x.square().mean(over, keepdim=True) + 1e-5).sqrt()
        if y is None:
            return x * self.per_channel(x, first=1.0) + self.per_channel(x)
        gain, bias = [self.take(x, 10, x.shape[1], first=first)[y, :, None, None] for first in (1.0, 0.0)]
        return x * gain + bias


# ---- the networks by hand: t holds the weights, d is the width ----

def mlp(t, x, d, n_out, depth=3):
    for _ in range(depth):
        x = torch.relu(t.linear(x, d, he=True))
    return t.linear(x, n_out)


def dcgan_generator(t, z, d, widths=(4, 2, 1), channels=3, norm="batch", flat=True, act=torch.relu, last=torch.tanh,
                    more=(0,) * 4):
    """flat: norm before the vector becomes an image. more: 3x3 layers at 4, 8, 16 pixels a side."""
    n = 2 * d if act is gate else d
    h = t.linear(z, 4 * 4 * n * widths[0])
    if flat:
        h = act(t.norm(norm, h))
    h = turned(h.unflatten(1, (-1, 4, 4)))
    if not flat:
        h = act(t.norm(norm, h))
    for i, extra in zip(range(len(widths)), more):
        for _ in range(extra):
            h = act(t.norm(norm, t.conv(h, h.shape[1], 3)))
        if i + 1 < len(widths):
            h = act(t.norm(norm, t.deconv(h, n * widths[i + 1], 5)))
            if channels == 1 and h.shape[2] == 8:
                h = h[:, :, :7, :7]  # MNIST: the top left
    return last(t.deconv(h, channels, 5))


def dcgan_critic(t, x, d, widths=(1, 2, 4), norm=None, act=leaky, more=(0,) * 4):
    """more: 3x3 layers after each of the 5x5."""
    for i, (width, extra) in enumerate(zip(widths, more)):
        x = t.conv(x, width * (2 * d if act is gate else d), 5, stride=2)
        x = act(t.norm(norm if i else None, x))
        for _ in range(extra):
            x = act(t.norm(norm, t.conv(x, x.shape[1], 3)))
    return t.linear(turned(x).flatten(1), 1).flatten()


def residual_block(t, x, n_out, resample=None, norm=None, bias=True, y=None):
    n_in = x.shape[1]
    h = torch.relu(t.norm(norm, x, y))
    if resample == "up":
        h, x = big(h), big(x)
    h = t.conv(h, n_in if resample == "down" else n_out, 3, bias=bias)
    h = t.conv(torch.relu(t.norm(norm, h, y)), n_out, 3)
    if resample or n_in != n_out:
        x = t.conv(x, n_out, 1, glorot=True)
    return pool(h) + pool(x) if resample == "down" else h + x


def resnet_generator(t, z, d, y=None, widths=(8, 8, 4, 2, 1), cifar=False):
    h = turned(t.linear(z, 4 * 4 * widths[0] * d).unflatten(1, (-1, 4, 4)))
    for width in widths[1:]:
        h = residual_block(t, h, width * d, "up", "batch", bias=cifar, y=y)
    return torch.tanh(t.conv(torch.relu(t.norm("batch", h)), 3, 3, glorot=cifar))


def cifar_resnet_critic(t, x, d, conditional=False):
    h = t.conv(torch.relu(t.conv(x, d, 3)), d, 3)
    h = pool(h) + t.conv(pool(x), d, 1, glorot=True)
    for resample in ("down", None, None):
        h = residual_block(t, h, d, resample)
    h = torch.relu(h).mean((2, 3))
    score = t.linear(h, 1).flatten()
    if conditional:
        t.logits = t.linear(h, 10)
    return score


def language_blocks(t, h):
    for _ in range(5):
        n = h.shape[1]
        h = h + 0.3 * t.conv1d(torch.relu(t.conv1d(torch.relu(h), n, 5)), n, 5)
    return h


def language_generator(t, z, d):
    h = t.conv1d(language_blocks(t, t.linear(z, d * 32).unflatten(1, (d, 32))), 40, 1).exp()
    return h / h.sum(1, keepdim=True)


def language_critic(t, x, d):
    return t.linear(language_blocks(t, t.conv1d(x, d, 1)).flatten(1), 1).flatten()


def mlp64_generator(t, z, d):
    return turned(torch.tanh(mlp(t, z, 8 * d, 3 * 64 * 64, depth=4)).unflatten(1, (3, 64, 64)))


def resnet_critic(t, x, d, norm="layer", widths=(2, 4, 8, 8)):
    h = t.conv(x, d, 3, glorot=True)
    for width in widths:
        h = residual_block(t, h, width * d, "down", norm, bias=False)
    return t.linear(turned(h).flatten(1), 1).flatten()


def bottleneck(t, x, n_out, resample=None, norm="batch"):
    n_in, shortcut = x.shape[1], x
    if resample == "down":
        shortcut = t.conv(x, n_out, 1, stride=2, glorot=True)  # the first of every two pixels
    if resample == "up":  # four channels become 2 x 2 pixels, which are turned like all our images
        four = t.conv(x, 4 * n_out, 1, glorot=True).unflatten(1, (n_out, 2, 2)).flip(2, 3)
        shortcut = four.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
    h = torch.relu(t.conv(torch.relu(x), n_in // 2, 1))
    if resample == "up":
        h = t.deconv(h, n_out // 2, 3)
    else:
        h = t.conv(h, n_out // 2, 3, stride=1 + (resample == "down"))
    return shortcut + 0.3 * t.norm(norm, t.conv(torch.relu(h), n_out, 1, bias=False))


def bottlenecks(t, h, widths, resample, norm="batch"):
    """6 at each size but the largest, which has 5, and one between sizes."""
    for width in widths:
        if width != h.shape[1]:
            h = bottleneck(t, h, width, resample, norm)
        for _ in range(5 if width == min(widths) else 6):
            h = bottleneck(t, h, width, norm=norm)
    return h


def resnet101_generator(t, z, d):
    h = turned(t.linear(z, 4 * 4 * 8 * d).unflatten(1, (-1, 4, 4)))
    h = bottlenecks(t, h, (8 * d, 4 * d, 2 * d, d, d // 2), "up")
    return torch.tanh(t.conv(h, 3, 1, glorot=True) / 5)


def resnet101_critic(t, x, d, norm="layer"):
    h = t.conv(x, d // 2, 1, glorot=True)
    h = bottlenecks(t, h, (d // 2, d, 2 * d, 4 * d, 8 * d), "down", norm)
    return t.linear(turned(h).flatten(1), 1).flatten() / 5


# ---- networks ----

Z, IMAGE, DIGIT, IMAGE64, IMAGE128 = (128,), (3, 32, 32), (1, 28, 28), (3, 64, 64), (3, 128, 128)
resnet_G = partial(resnet_generator, widths=(1, 1, 1, 1), cifar=True)
mnist_G = partial(dcgan_generator, channels=1, last=torch.sigmoid)
dcgan64_G = partial(dcgan_generator, widths=(8, 4, 2, 1), flat=False)
dcgan64_D = partial(dcgan_critic, widths=(1, 2, 4, 8))
NETWORKS = {  # the network as a function of dim, the same by hand, the shape of an input, the published width
    "toy G": (models.toy_generator, partial(mlp, n_out=2), (2,), 512),
    "toy D": (models.toy_critic, lambda *args: mlp(*args, 1).flatten(), (2,), 512),
    "toy G, 12 layers": (partial(models.toy_generator, depth=12), partial(mlp, n_out=2, depth=12), (2,), 512),
    "toy D, 12 layers": (partial(models.toy_critic, depth=12), lambda *args: mlp(*args, 1, 12).flatten(), (2,), 512),
    "cifar G": (models.cifar_generator, dcgan_generator, Z, 64),
    "cifar D": (models.cifar_critic, dcgan_critic, IMAGE, 64),
    "cifar D, batch": (partial(models.cifar_critic, norm="batch"), partial(dcgan_critic, norm="batch"), IMAGE, 64),
    "cifar D, layer": (partial(models.cifar_critic, norm="layer"), partial(dcgan_critic, norm="layer"), IMAGE, 64),
    "mnist G": (models.mnist_generator, partial(mnist_G, norm=None), Z, 64),
    "mnist D": (models.mnist_critic, dcgan_critic, DIGIT, 64),
    "mnist G, clipped": (partial(models.mnist_generator, norm=True), mnist_G, Z, 64),
    "mnist D, batch": (partial(models.mnist_critic, norm="batch"), partial(dcgan_critic, norm="batch"), DIGIT, 64),
    "resnet G": (models.CifarResNetGenerator, resnet_G, Z, 128),
    "resnet D": (models.CifarResNetCritic, cifar_resnet_critic, IMAGE, 128),
    "resnet G, conditional": (partial(models.CifarResNetGenerator, conditional=True), resnet_G, Z, 128),
    "resnet D, conditional": (partial(models.CifarResNetCritic, conditional=True),
                              partial(cifar_resnet_critic, conditional=True), IMAGE, 128),
    "language G": (partial(models.language_generator, 40), language_generator, Z, 512),
    "language D": (partial(models.language_critic, 40), language_critic, (40, 32), 512),
    "variant G": (models.variant_generator, dcgan_generator, Z, 64),  # by default the CIFAR-10 DCGAN
    "variant D": (models.variant_critic, dcgan_critic, IMAGE, 64),
    "wider block G": (lambda dim=1: models.ResidualBlock(3, 5), lambda t, x, d: residual_block(t, x, 5), IMAGE, 1),
    "128 G": (partial(models.resnet_generator, size=128), partial(resnet_generator, widths=(8, 8, 8, 4, 2, 1)), Z, 64),
    "128 D": (partial(models.resnet_critic, size=128), partial(resnet_critic, widths=(2, 4, 8, 8, 8)), IMAGE128, 64),
}
LSUN = {  # G and D by hand, and the deviation of all their first weights where it is not each layer's own
    "dcgan": (dcgan64_G, dcgan64_D, 0.02, 0.02),
    "constant-filters": (partial(dcgan64_G, norm=None, widths=(1, 1, 1, 1)), dcgan64_D, None, 0.02),
    "mlp": (mlp64_generator, dcgan64_D, None, 0.02),
    "no-norm": (partial(dcgan64_G, norm=None), lambda t, x, d, norm: dcgan64_D(t, x, d), 0.02, 0.02),
    "gated": (partial(dcgan64_G, act=gate), partial(dcgan64_D, act=gate), None, None),
    "tanh": (partial(dcgan64_G, act=torch.tanh), partial(dcgan64_D, act=torch.tanh), 0.02, 0.02),
    "resnet101": (resnet101_generator, resnet101_critic, None, None),
    "resnet": (resnet_generator, resnet_critic, None, None),
}
for name, (make_G, make_D) in models.LSUN.items():
    G_by_hand, D_by_hand, *deviations = LSUN[name]
    NETWORKS[f"64 {name} G"] = make_G, G_by_hand, Z, 64, deviations[0]
    for norm in ("layer", "batch"):
        make, by_hand = partial(make_D, norm=norm), partial(D_by_hand, norm=norm)
        NETWORKS[f"64 {name} D, {norm}"] = make, by_hand, IMAGE64, 64, deviations[1]
for depth, module, act in [(4, nn.Tanh, torch.tanh), (8, models.ShiftedSoftplus, smooth), (12, models.LeakyReLU, leaky),
                           (14, models.ReLU, torch.relu), (20, nn.ReLU, torch.relu)]:
    more, settings = [len(range(i, depth - 4, 3)) for i in range(3)], {"depth": depth, "activation": module}
    for norm in (None, "batch", "layer"):
        NETWORKS[f"variant {depth} D, {norm}"] = (partial(models.variant_critic, **settings, norm=norm),
                                                  partial(dcgan_critic, norm=norm, act=act, more=more[::-1]), IMAGE, 64)
    for norm in (None, "batch"):
        NETWORKS[f"variant {depth} G, {norm}"] = (partial(models.variant_generator, **settings, norm=bool(norm)),
                                                  partial(dcgan_generator, norm=norm, act=act, more=more), Z, 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_the_one_by_hand(name):
    """Shapes and first values at the published width; outputs and the penalty's gradients at a small one."""
    make, by_hand, shape, width, *deviation = NETWORKS[name]
    torch.manual_seed(0)
    published = {"dim": width} if "no-norm D" in name else {}  # elsewhere the default
    t = TensorFlow(make(**published), True, *deviation)
    y = [torch.tensor([2, 0, 2])] if name == "resnet G, conditional" else []
    by_hand(t, torch.empty(3, *shape, device="meta"), width, *[labels.to("meta") for labels in y])
    assert not list(t.weights)  # all have been used

    width = 16 if "toy" in name else 4
    network = make(dim=width).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    x, other = random(3, *shape), random(3, *shape, seed=1)
    network(other, *y)  # the statistics of another batch are forgotten, in evaluation mode too
    network.eval()
    t = TensorFlow(network)
    expected, out = by_hand(t, turned(x), width, *y), network(x, *y)
    torch.testing.assert_close(out, turned(expected), rtol=1e-10, atol=1e-12)
    assert out.std() > 1e-3 and (" D" in name or (out.abs() < 0.99).any())  # neither constant nor saturated
    if hasattr(t, "logits"):
        torch.testing.assert_close(network.classify(x), t.logits, rtol=1e-10, atol=1e-12)
    if " D" in name:
        # Section 4, "No critic batch normalization": the penalty needs dD(x_i)/dx_j = 0.
        others = torch.autograd.grad(network(x.requires_grad_())[0], x)[0][1:]
        assert (others.abs().max() > 0) == ("batch" in name and "no-norm" not in name)
        gradients = []
        for D in (network, lambda x: by_hand(TensorFlow(network), turned(x), width)):
            torch.manual_seed(2)
            penalty = wgan_gp.gradient_penalty(D, x, other)
            gradients.append(torch.autograd.grad(penalty, network.parameters(), materialize_grads=True))
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


# ---- layers ----

@pytest.mark.parametrize("side, kernel, before", [(8, 5, 1), (32, 5, 1), (7, 5, 2), (14, 5, 1), (4, 3, 0)])
def test_same_padding_of_a_strided_convolution_pixel_by_pixel(side, kernel, before):
    """Turned by 180 degrees, output i sees inputs from 2i - before on, and zeros beyond the edges."""
    layer, x = models.Conv2d(1, 1, kernel, stride=2).double(), random(1, 1, side, side)
    out, weight = turned(layer(turned(x)))[0, 0], turned(layer.weight)[0, 0]
    assert out.shape == ((side + 1) // 2,) * 2
    for i in range(len(out)):
        for j in range(len(out)):
            top, left = 2 * i - before, 2 * j - before
            expected = sum(weight[a, b] * x[0, 0, top + a, left + b] for a in range(kernel) for b in range(kernel)
                           if 0 <= top + a < side and 0 <= left + b < side)
            assert out[i, j].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_transposed_convolution_is_the_adjoint_of_the_strided_one(kernel):
    """<conv(x), y> = <x, deconv(y)> for equal weights: TensorFlow's definition of conv2d_transpose."""
    conv, deconv = models.Conv2d(3, 4, kernel, stride=2).double(), models.Deconv2d(4, 3, kernel).double()
    assert all(layer.weight.is_contiguous(memory_format=models.LAYOUT) for layer in (conv, deconv))  # for speed
    deconv.weight.data = conv.weight.data
    x, y = random(1, 3, 12, 12), random(1, 4, 6, 6)
    assert (conv(x) * y).sum().item() == pytest.approx((x * deconv(y)).sum().item(), rel=1e-12)


# ---- faster equivalents ----

def derivatives(function, conv, x):
    """function(conv, x), the gradients of its weighted squares, and those of the gradients' squares."""
    inputs = [x.requires_grad_(), conv.weight, conv.bias]
    out = function(conv, x)
    loss = (out.square() * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum()
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    return [t.cpu() for t in [out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)]]


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
@pytest.mark.parametrize("kernel", [1, 3])
def test_pooling_and_upsampling_within_a_convolution(kernel, device):
    torch.manual_seed(0)
    conv, x = models.Conv2d(3, 5, kernel).double(), random(4, 3, 6, 8)
    conv.bias.data = random(5)
    pooled = derivatives(lambda conv, x: pool(conv(x)), conv, x)
    upsampled = derivatives(lambda conv, x: conv(big(x)), conv, x)
    conv, x = conv.to(device), x.detach().to(device)
    for function, expected in [(models.conv_then_pool, pooled), (models.upsample_then_conv, upsampled)]:
        torch.testing.assert_close(derivatives(function, conv, x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ours, theirs", [(models.ReLU(), torch.relu), (models.LeakyReLU(), nn.LeakyReLU(0.2))])
def test_relu_is_torchs_and_has_no_second_derivative(ours, theirs):
    x = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 3.0], dtype=torch.float64, requires_grad=True)
    y, expected = ours(x), theirs(x)
    assert torch.equal(y, expected)
    gradient, = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), x)[0])
    assert not gradient.requires_grad  # nothing for a second backward pass to carry


# ---- every operation of a training step ----

BROKEN = {  # operations whose backward pass is wrong for channels-last tensors, and torch's issue
    "avg_pool2d": "188344 (CUDA, with padding) and 175190 (MPS)", "avg_pool2d_backward": "188344 and 175190",
    "_adaptive_avg_pool2d": "175190 (MPS)", "_adaptive_avg_pool2d_backward": "175190"}


def operations(name):
    """The names of the operations of a generator step and, for critics, of a critic step. Backward passes included."""
    names = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(function._overloadpacket.__name__)
            return function(*args, **(kwargs or {}))
    make, _, shape, *_ = NETWORKS[name]
    network, x = make(dim=4), torch.randn(2, *shape)
    y = [torch.tensor([3, 0])] if name == "resnet G, conditional" else []
    optimizer = torch.optim.SGD(network.parameters())
    with Recorder():
        if " G" in name:
            wgan_gp.generator_step(network, lambda x: x.flatten(1).sum(1), optimizer, x, *y)
        else:
            images = nn.Parameter(torch.randn(2, *shape))
            wgan_gp.critic_step(lambda z: z, network, optimizer, x, images)
            wgan_gp.generator_step(lambda z: images, network, torch.optim.SGD([images]), x)
        if "D, conditional" in name:
            network.classify(x).square().sum().backward()
    return names


def test_no_training_step_has_an_operation_that_is_broken_on_a_gpu():
    """Kernels that went through F.avg_pool2d would get wrong gradients on CUDA, without an error."""
    used = {name: operations(name) for name in NETWORKS}
    assert all("convolution_backward" in used[name] for name in ("cifar G", "cifar D", "resnet G", "64 resnet G"))
    assert not {name: names & BROKEN.keys() for name, names in used.items() if names & BROKEN.keys()}
