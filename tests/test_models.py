"""models.py against the authors' code: shapes, parameter counts, initialisation, padding, batch statistics."""
import math

import pytest
import torch
from torch import nn

import models


def count(module):
    return sum(p.numel() for p in module.parameters())


def assert_uniform(weight, deviation):
    """weight ~ U[-deviation sqrt(3), deviation sqrt(3)]: its deviation, within sampling error, and its extremes."""
    n = weight.numel()
    assert weight.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(n))
    edge = deviation * math.sqrt(3)
    assert weight.abs().max() <= edge * (1 + 1e-6) and weight.abs().max() > edge * (1 - 20 / n)


# ------------------------------------------------------------------------------------------------------- layers

def test_initial_deviations_of_each_kind_of_layer():
    torch.manual_seed(0)
    assert_uniform(models.Linear(128, 300).weight, math.sqrt(2 / 428))
    assert_uniform(models.Linear(128, 300, he=True).weight, math.sqrt(2 / 128))
    assert_uniform(models.Conv2d(32, 64, 3).weight, math.sqrt(4 / (32 * 9 + 64 * 9)))
    assert_uniform(models.Conv2d(32, 64, 5, stride=2).weight, math.sqrt(4 / (32 * 25 + 64 * 25 / 4)))
    assert_uniform(models.Conv2d(32, 64, 3, glorot=True).weight, math.sqrt(2 / (32 * 9 + 64 * 9)))
    assert_uniform(models.Deconv2d(64, 32, 5).weight, math.sqrt(4 / (64 * 25 / 4 + 32 * 25)))
    for layer in (models.Linear(3, 4), models.Conv2d(3, 4, 3), models.Deconv2d(3, 4, 5), models.batch_norm(4),
                  models.layer_norm(4)):
        assert layer.bias.abs().max() == 0
    assert (models.batch_norm(4).weight == 1).all() and (models.layer_norm(4).weight == 1).all()


@pytest.mark.parametrize("network, convolutions", [
    (models.cifar_critic(64), [(3, 64), (64, 128), (128, 256)]),
])
def test_initial_deviations_in_the_cifar_critic(network, convolutions):
    layers = [m for m in network if isinstance(m, nn.Conv2d)]
    for layer, (n_in, n_out) in zip(layers, convolutions, strict=True):
        assert_uniform(layer.weight, math.sqrt(4 / (25 * n_in + 25 * n_out / 4)))
    assert_uniform(network[-2].weight, math.sqrt(2 / (4096 + 1)))


def test_initial_deviations_in_the_toy_networks():
    G, D = models.toy_generator(512), models.toy_critic(512)
    for network, n_out in [(G, 2), (D, 1)]:
        linear = [m for m in network if isinstance(m, nn.Linear)]
        for layer, deviation in zip(linear, [math.sqrt(2 / 2), math.sqrt(2 / 512), math.sqrt(2 / 512),
                                             math.sqrt(2 / (512 + n_out))], strict=True):
            assert_uniform(layer.weight, deviation)


def turned(x):
    return x.flip(2, 3)


@pytest.mark.parametrize("side, kernel, before, after", [(8, 5, 1, 2), (32, 5, 1, 2), (7, 5, 2, 2), (4, 3, 0, 1)])
def test_same_padding_of_a_strided_convolution_by_hand(side, kernel, before, after):
    """Turned round, output i sees inputs 2i - before .. 2i - before + kernel - 1, and zeros beyond the edges."""
    torch.manual_seed(0)
    layer = models.Conv2d(1, 1, kernel, stride=2).double()
    x, w = torch.randn(side, side).double(), turned(layer.weight)[0, 0]
    out = turned(layer(turned(x[None, None])))[0, 0]
    assert out.shape == (math.ceil(side / 2),) * 2
    for i in range(len(out)):
        for j in range(len(out)):
            expected = sum(w[a, b] * x[2 * i - before + a, 2 * j - before + b]
                           for a in range(kernel) for b in range(kernel)
                           if 0 <= 2 * i - before + a < side and 0 <= 2 * j - before + b < side)
            assert out[i, j].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_transposed_convolution_is_cut_as_the_adjoint_of_the_strided_one(kernel):
    """<conv(x), y> = <x, deconv(y)> for equal weights: TensorFlow's definition of conv2d_transpose with SAME."""
    torch.manual_seed(0)
    conv, deconv = models.Conv2d(3, 4, kernel, stride=2).double(), models.Deconv2d(4, 3, kernel).double()
    deconv.weight.data = conv.weight.data
    x, y = torch.randn(1, 3, 12, 12).double(), torch.randn(1, 4, 6, 6).double()
    assert deconv(y).shape == x.shape
    assert (conv(x) * y).sum().item() == pytest.approx((x * deconv(y)).sum().item(), rel=1e-12)


def test_a_transposed_convolution_by_hand():
    """Turned round: one pixel at (1, 1) of a 3x3 map, kernel 5, paints rows 2*1 - 1 .. 2*1 + 3, of which 1 .. 5 are kept."""
    layer = models.Deconv2d(1, 1, 5).double()
    y = torch.zeros(1, 1, 3, 3).double()
    y[0, 0, 1, 1] = 1
    expected = torch.zeros(6, 6).double()
    expected[1:6, 1:6] = turned(layer.weight)[0, 0]
    torch.testing.assert_close(turned(layer(turned(y)))[0, 0], expected)


def upright(network, x):
    """The network as TensorFlow has it, on the image as it is: every kernel turned round, "SAME" padding written out."""
    for m in network:
        if isinstance(m, models.Deconv2d):
            k, n = m.kernel_size[0], x.shape[2]
            x = nn.functional.conv_transpose2d(x, turned(m.weight), m.bias, stride=2)  # 2n + k - 2 rows, of which
            x = x[:, :, (k - 2) // 2:(k - 2) // 2 + 2 * n, (k - 2) // 2:(k - 2) // 2 + 2 * n]
        elif isinstance(m, nn.Conv2d):
            k, stride, n = m.kernel_size[0], m.stride[0], x.shape[2]
            total = max((math.ceil(n / stride) - 1) * stride + k - n, 0)
            x = nn.functional.pad(x, 2 * (total // 2, total - total // 2))
            x = nn.functional.conv2d(x, turned(m.weight), m.bias, stride)
        elif isinstance(m, nn.Unflatten):
            x = turned(m(x))
        elif isinstance(m, nn.Flatten) and x.dim() == 4:
            x = m(turned(x))
        elif isinstance(m, models.Crop):
            x = x[:, :, :m.side, :m.side]  # top left
        elif not isinstance(m, models.HalfTurn):
            x = m(x)
    return x


@pytest.mark.parametrize("network, shape", [
    (models.cifar_generator(4), (128,)), (models.cifar_critic(4, "layer"), (3, 32, 32)),
    (models.mnist_generator(4), (128,)), (models.mnist_critic(4), (1, 28, 28)),
    (models.dcgan64_generator(2), (128,)), (models.dcgan64_critic(2), (3, 64, 64)),
    (models.variant_generator(4, 12), (128,)), (models.variant_critic(4, 12), (3, 32, 32))])
def test_networks_that_work_on_the_turned_image_are_tensorflows(network, shape):
    torch.manual_seed(0)
    network, x = network.double(), torch.randn(3, *shape).double()
    assert sum(isinstance(m, models.HalfTurn) for m in network) == 1
    torch.testing.assert_close(network(x), upright(network, x), rtol=1e-9, atol=1e-11)


def test_strided_bottlenecks_on_the_turned_image_are_tensorflows():
    """A 1x1 convolution of stride 2 takes the first row and column of every two."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 6).double()
    for resample, n_out in [("down", 16), ("up", 4)]:
        b = models.Bottleneck(8, n_out, resample).double()
        shortcut = (upright([b.shortcut], x) if resample == "down" else turned(b.shortcut(turned(x))))
        if resample == "down":
            torch.testing.assert_close(shortcut, torch.einsum("oi,mihw->mohw", b.shortcut.weight[:, :, 0, 0], x[:, :, ::2, ::2]))
        torch.testing.assert_close(turned(b(turned(x))), shortcut + 0.3 * upright(b.layers, x))


@pytest.mark.parametrize("kernel", [1, 3])
def test_pooling_and_up_sampling_within_a_convolution(kernel):
    torch.manual_seed(0)
    layer, x = models.Conv2d(3, 5, kernel).double(), torch.randn(4, 3, 6, 8).double()
    nn.init.normal_(layer.bias)
    pooled = layer(x).unflatten(3, (4, 2)).unflatten(2, (3, 2)).mean((3, 5))
    for fused, plain in [(layer.then_pool(x), pooled),
                         (layer.after_upsampling(x), layer(x.repeat_interleave(2, 2).repeat_interleave(2, 3)))]:
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
        coefficients = torch.randn_like(plain)
        one, other = [torch.autograd.grad((out * coefficients).sum(), [layer.weight, layer.bias], retain_graph=True)
                      for out in (fused, plain)]
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_relu_is_torchs_and_its_second_derivative_is_nothing():
    x = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 3.0], dtype=torch.float64, requires_grad=True)
    y, reference = models.ReLU()(x), torch.relu(x)
    assert torch.equal(y, reference)
    g, = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(g, torch.autograd.grad(reference.sum(), x)[0]) and not g.requires_grad


def test_leaky_relu_is_torchs_and_its_second_derivative_is_nothing():
    x = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 3.0], dtype=torch.float64, requires_grad=True)
    y = models.LeakyReLU()(x)
    reference = nn.functional.leaky_relu(x, 0.2)
    assert torch.equal(y, reference)
    g, = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(g, torch.autograd.grad(reference.sum(), x)[0])
    assert not g.requires_grad  # autograd has nothing to carry through a second backward pass


def test_batch_norm_uses_the_batch_at_hand_when_sampling_too():
    torch.manual_seed(0)
    norm = models.batch_norm(2).eval()
    x = torch.randn(16, 2, 4, 4) * 3 + 5
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(norm(x), (x - mean) / (variance + 1e-5).sqrt())
    assert not list(norm.buffers())  # no running averages


def test_layer_norm_is_over_channels_height_and_width_with_a_gain_per_channel():
    torch.manual_seed(0)
    norm = models.layer_norm(3)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, -1.0, 5.0])
    x = torch.randn(4, 3, 5, 5) * 3 + 5
    mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


# ----------------------------------------------------------------------------------------------------- networks

def test_toy_networks():
    G, D = models.toy_generator(512), models.toy_critic(512)
    assert count(G) == 2 * 512 + 512 + 2 * (512 * 512 + 512) + 512 * 2 + 2
    assert count(D) == 2 * 512 + 512 + 2 * (512 * 512 + 512) + 512 + 1
    assert G(torch.randn(5, 2)).shape == (5, 2) and D(torch.randn(5, 2)).shape == (5,)
    assert sum(isinstance(m, models.ReLU) for m in models.toy_critic(8, depth=12)) == 12


def shapes(network, x):
    """The shape after each layer that has weights, without the batch."""
    out = []
    hooks = [m.register_forward_hook(lambda m, i, o: out.append(tuple(o.shape[1:]))) for m in network.modules()
             if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
    network(x)
    [h.remove() for h in hooks]
    return out


def test_cifar_dcgan():
    G, D = models.cifar_generator(64), models.cifar_critic(64)
    assert shapes(G, torch.randn(2, 128)) == [(4096,), (128, 8, 8), (64, 16, 16), (3, 32, 32)]
    assert shapes(D, torch.randn(2, 3, 32, 32)) == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (1,)]
    assert D(torch.randn(2, 3, 32, 32)).shape == (2,)
    assert G(torch.randn(100, 128)).abs().max() <= 1
    k = 25
    assert count(D) == (3 * 64 * k + 64) + (64 * 128 * k + 128) + (128 * 256 * k + 256) + 4096 + 1
    assert count(G) == ((128 * 4096 + 4096) + 2 * 4096 + (256 * 128 * k + 128) + 2 * 128 + (128 * 64 * k + 64) + 2 * 64
                        + 64 * 3 * k + 3)


@pytest.mark.parametrize("norm, kind", [(None, None), ("batch", nn.BatchNorm2d), ("layer", nn.GroupNorm)])
def test_the_cifar_critic_is_normalised_after_its_second_and_third_convolution(norm, kind):
    D = models.cifar_critic(8, norm)
    order = [type(m).__name__ for m in D]
    norms = [i for i, m in enumerate(D) if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
    assert all(isinstance(D[i], kind) for i in norms)
    assert [order[i - 1] for i in norms] == ([] if norm is None else ["Conv2d", "Conv2d"])
    assert [D[i].weight.shape[0] for i in norms] == ([] if norm is None else [16, 32])


def test_mnist_dcgan():
    G, D = models.mnist_generator(64), models.mnist_critic(64)
    assert shapes(G, torch.randn(2, 128)) == [(4096,), (128, 8, 8), (64, 14, 14), (1, 28, 28)]
    assert shapes(D, torch.rand(2, 1, 28, 28)) == [(64, 14, 14), (128, 7, 7), (256, 4, 4), (1,)]
    x = G(torch.randn(8, 128))
    assert 0 <= x.min() and x.max() <= 1
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in [*G.modules(), *D.modules()])
    clipped = [*models.mnist_generator(8, norm=True).modules(), *models.mnist_critic(8, "batch").modules()]
    assert sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in clipped) == 3 + 2


def test_the_mnist_generator_crops_the_top_left_7_of_8():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    assert torch.equal(turned(models.Crop(7)(turned(x)))[0, 0], x[0, 0, :7, :7])


def test_cifar_resnet_shapes_and_parameters_against_appendix_f():
    """Both tables of Appendix F, block by block; numbers of weights by hand."""
    G, D = models.CifarResNetGenerator(), models.CifarResNetCritic()
    conv3, conv1 = 128 * 128 * 9 + 128, 128 * 128 + 128
    seen = []
    for block in [*G.blocks, *D.blocks]:
        block.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[1:])))
    x = G(torch.randn(2, 128))
    assert seen == [(128, 8, 8), (128, 16, 16), (128, 32, 32)] and x.shape == (2, 3, 32, 32) and x.abs().max() <= 1
    seen.clear()
    assert D(x).shape == (2,) and seen == [(128, 16, 16), (128, 8, 8), (128, 8, 8), (128, 8, 8)]
    assert count(G.linear) == 128 * 128 * 4 * 4 + 128 * 4 * 4
    assert [count(block) for block in G.blocks] == [2 * conv3 + conv1 + 2 * 256] * 3
    assert count(G.norm) + count(G.conv) == 256 + 128 * 3 * 9 + 3
    assert [count(block) for block in D.blocks] == [
        (3 * 128 * 9 + 128) + conv3 + (3 * 128 + 128), 2 * conv3 + conv1, 2 * conv3, 2 * conv3]
    assert count(D.score) == 129
    assert count(G) == 128 * 2048 + 2048 + 3 * (2 * conv3 + conv1 + 512) + 256 + 3459
    G, D = models.CifarResNetGenerator(conditional=True), models.CifarResNetCritic(conditional=True)
    assert [count(block) for block in G.blocks] == [2 * conv3 + conv1 + 2 * 10 * 256] * 3  # a gain and bias per class
    assert count(G.norm) == 256 and count(D.label) == 1290  # the last norm is not conditional
    x = G(torch.randn(2, 128), torch.tensor([0, 9]))
    assert D(x).shape == (2,) and D.classify(x).shape == (2, 10)


def test_cifar_resnet_initialisation():
    torch.manual_seed(0)
    G, D = models.CifarResNetGenerator(), models.CifarResNetCritic(conditional=True)
    plain, glorot = math.sqrt(4 / (2 * 128 * 9)), math.sqrt(2 / (2 * 128))
    for block in [*G.blocks, *D.blocks[1:]]:
        assert_uniform(block.conv1.weight, plain)
        assert_uniform(block.conv2.weight, plain)
    for block in [*G.blocks, D.blocks[1]]:
        assert_uniform(block.shortcut.weight, glorot)
    assert_uniform(D.blocks[0].shortcut.weight, math.sqrt(2 / (3 + 128)))
    assert_uniform(D.blocks[0].conv1.weight, math.sqrt(4 / (9 * (3 + 128))))
    assert_uniform(G.conv.weight, math.sqrt(2 / (9 * (128 + 3))))
    assert_uniform(G.linear.weight, math.sqrt(2 / (128 + 2048)))
    assert_uniform(D.label.weight, math.sqrt(2 / 138))


def test_residual_blocks_by_their_definition():
    torch.manual_seed(0)
    relu, x = torch.relu, torch.randn(3, 4, 6, 6)
    up = models.ResidualBlock(4, 4, "up", models.batch_norm)
    big = lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = up.conv2(relu(up.norm2(up.conv1(big(relu(up.norm1(x)))))))  # before the first convolution, as released
    torch.testing.assert_close(up(x), h + up.shortcut(big(x)))
    down = models.ResidualBlock(4, 4, "down")
    pool = lambda t: t.unflatten(3, (3, 2)).unflatten(2, (3, 2)).mean((3, 5))
    torch.testing.assert_close(down(x), pool(down.conv2(relu(down.conv1(relu(x))))) + pool(down.shortcut(x)))
    same = models.ResidualBlock(4, 4)
    torch.testing.assert_close(same(x), x + same.conv2(relu(same.conv1(relu(x)))))
    first = models.FirstCriticBlock(4, 5)
    torch.testing.assert_close(first(x), pool(first.conv2(relu(first.conv1(x)))) + first.shortcut(pool(x)))


def test_conditional_batch_norm_shares_statistics_and_looks_up_gain_and_bias():
    torch.manual_seed(0)
    norm = models.ConditionalBatchNorm(2, classes=3)
    assert (norm.gain.weight == 1).all() and (norm.bias.weight == 0).all()
    norm.gain.weight.data, norm.bias.weight.data = torch.randn(3, 2), torch.randn(3, 2)
    x, y = torch.randn(8, 2, 4, 4) * 2 + 3, torch.randint(3, (8,))
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    expected = torch.stack([(x[i] - mean[0]) / (variance[0] + 1e-5).sqrt() * norm.gain.weight[y[i]][:, None, None]
                            + norm.bias.weight[y[i]][:, None, None] for i in range(8)])
    torch.testing.assert_close(norm(x, y), expected)


def layers(network, *kinds):
    return [m for m in network.modules() if isinstance(m, kinds)]


K = 25  # weights of a 5x5 kernel


def test_64x64_dcgan():
    G, D = models.dcgan64_generator(64), models.dcgan64_critic(64)
    assert shapes(G, torch.randn(2, 128)) == [(8192,), (256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 64, 64)]
    assert shapes(D, torch.randn(2, 3, 64, 64)) == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (1,)]
    convolutions = (512 * 256 + 256 * 128 + 128 * 64) * K
    assert count(G) == 128 * 8192 + 8192 + convolutions + 64 * 3 * K + (256 + 128 + 64 + 3) + 2 * (512 + 256 + 128 + 64)
    assert count(D) == 3 * 64 * K + convolutions + (64 + 128 + 256 + 512) + 2 * (128 + 256 + 512) + 8192 + 1
    assert [m.num_features for m in layers(G, nn.BatchNorm2d)] == [512, 256, 128, 64]  # the first per channel, not per unit
    assert D(G(torch.randn(2, 128))).shape == (2,)


def test_constant_filters_have_no_norm_and_the_same_width_everywhere():
    G = models.LSUN["constant-filters"][0](64)
    assert shapes(G, torch.randn(2, 128)) == [(1024,), (64, 8, 8), (64, 16, 16), (64, 32, 32), (3, 64, 64)]
    assert count(G) == 128 * 1024 + 1024 + 3 * (64 * 64 * K + 64) + 64 * 3 * K + 3


def test_64x64_mlp_generator_is_four_layers_of_512():
    G = models.mlp64_generator()
    assert shapes(G, torch.randn(2, 128)) == [(512,)] * 4 + [(3 * 64 * 64,)]
    assert len(layers(G, models.ReLU)) == 4 and G(torch.randn(2, 128)).shape == (2, 3, 64, 64)
    assert count(G) == 128 * 512 + 512 + 3 * (512 * 512 + 512) + 512 * 12288 + 12288


def test_a_gate_multiplies_even_and_odd_channels():
    x = torch.randn(2, 6, 3, 3)
    expected = torch.stack([torch.sigmoid(x[:, i]) * torch.tanh(x[:, i + 1]) for i in (0, 2, 4)], dim=1)
    torch.testing.assert_close(models.Gate()(x), expected)


def test_gated_networks_are_twice_as_wide_before_each_gate():
    (make_G, make_D), plain_G, plain_D = models.LSUN["gated"], models.dcgan64_generator(8), models.dcgan64_critic(8)
    G, D = make_G(8), make_D(8, norm="batch")
    for gated, plain, x in [(G, plain_G, torch.randn(2, 128)), (D, plain_D, torch.randn(2, 3, 64, 64))]:
        doubled = [(2 * channels, *side) for channels, *side in shapes(plain, x)[:-1]] + shapes(plain, x)[-1:]
        assert shapes(gated, x) == doubled and len(layers(gated, models.Gate)) == 4
    assert [m.num_features for m in layers(D, nn.BatchNorm2d)] == [32, 64, 128]  # not after the first
    assert not layers(G, nn.ReLU, models.ReLU) + layers(D, models.LeakyReLU)


@pytest.mark.parametrize("norm, kind", [("batch", nn.BatchNorm2d), ("layer", nn.GroupNorm)])
def test_which_64x64_critics_are_normalised_and_how(norm, kind):
    """"We replace any batch normalization in the discriminator with layer normalization" (Section 5.2)."""
    for name, (make_G, make_D) in models.LSUN.items():
        norms = layers(make_D(8, norm=norm), nn.BatchNorm2d, nn.GroupNorm)
        assert all(isinstance(m, kind) for m in norms)
        assert len(norms) == {"no-norm": 0, "resnet101": 33, "resnet": 8}.get(name, 3)
        assert len(layers(make_G(8), nn.BatchNorm2d)) == {
            "no-norm": 0, "constant-filters": 0, "mlp": 0, "resnet101": 33, "resnet": 9}.get(name, 4)


def test_tanh_is_the_only_nonlinearity_of_the_tanh_networks():
    G, D = models.LSUN["tanh"][0](8), models.LSUN["tanh"][1](8, norm="layer")
    assert len(layers(G, nn.Tanh)) == 5 and len(layers(D, nn.Tanh)) == 4
    assert not layers(G, nn.ReLU, models.ReLU) + layers(D, models.LeakyReLU)


def test_64x64_initialisation():
    torch.manual_seed(0)
    for name in ("dcgan", "no-norm", "tanh"):
        for network in (models.LSUN[name][0](16), models.LSUN[name][1](16, norm="layer")):
            for layer in layers(network, nn.Linear, nn.Conv2d, nn.ConvTranspose2d):
                assert_uniform(layer.weight, 0.02)
                assert layer.bias.abs().max() == 0
    G, D = models.LSUN["gated"][0](16), models.LSUN["gated"][1](16, norm="layer")
    assert_uniform(G[0].weight, math.sqrt(2 / (128 + 4 * 4 * 256)))
    assert_uniform(layers(G, nn.ConvTranspose2d)[0].weight, math.sqrt(4 / (128 * K / 4 + 128 * K)))
    assert_uniform(layers(D, nn.Conv2d)[1].weight, math.sqrt(4 / (16 * K + 64 * K / 4)))
    G = models.LSUN["constant-filters"][0](16)
    assert_uniform(layers(G, nn.ConvTranspose2d)[1].weight, math.sqrt(4 / (16 * K / 4 + 16 * K)))
    linear = layers(models.mlp64_generator(16), nn.Linear)
    assert_uniform(linear[1].weight, math.sqrt(2 / 128))
    assert_uniform(linear[4].weight, math.sqrt(2 / (128 + 12288)))
    G, D = models.resnet_generator(16), models.resnet_critic(16)
    assert_uniform(D[0].weight, math.sqrt(2 / (9 * (3 + 16))))
    assert_uniform(G[-2].weight, math.sqrt(4 / (9 * (3 + 16))))
    assert_uniform(D[2].shortcut.weight, math.sqrt(2 / (32 + 64)))
    G, D = models.resnet101_generator(16), models.resnet101_critic(16)
    assert_uniform(D[1].weight, math.sqrt(2 / (3 + 8)))
    assert_uniform(G[-4].weight, math.sqrt(2 / (3 + 8)))
    up, down = G[8], D[7]
    assert_uniform(up.shortcut[0].weight, math.sqrt(2 / (128 + 4 * 64)))
    assert_uniform(down.shortcut.weight, math.sqrt(2 / (8 + 16 / 4)))
    assert_uniform(up.layers[3].weight, math.sqrt(4 / (64 * 9 / 4 + 32 * 9)))
    assert_uniform(down.layers[3].weight, math.sqrt(4 / (4 * 9 + 8 * 9 / 4)))


def test_residual_networks_of_64_and_128_pixels():
    G, D = models.resnet_generator(64), models.resnet_critic(64)
    block = lambda n_in, middle, n_out, norms: (n_in * middle * 9 + middle * n_out * 9 + n_out  # no bias in the first
                                                + n_in * n_out + n_out + 2 * norms)
    assert [count(b) for b in layers(G, models.ResidualBlock)] == [
        block(n_in, n_out, n_out, n_in + n_out) for n_in, n_out in [(512, 512), (512, 256), (256, 128), (128, 64)]]
    assert [count(b) for b in layers(D, models.ResidualBlock)] == [
        block(n_in, n_in, n_out, 2 * n_in) for n_in, n_out in [(64, 128), (128, 256), (256, 512), (512, 512)]]
    assert count(G) - sum(map(count, layers(G, models.ResidualBlock))) == 128 * 8192 + 8192 + 2 * 64 + 64 * 3 * 9 + 3
    assert count(D) - sum(map(count, layers(D, models.ResidualBlock))) == 3 * 64 * 9 + 64 + 8192 + 1
    G2, D2 = models.resnet_generator(64, size=128), models.resnet_critic(64, size=128)
    assert count(G2) - count(G) == block(512, 512, 512, 1024) == count(D2) - count(D)  # one block more at 8d
    for size in (64, 128):
        x = models.resnet_generator(4, size=size)(torch.randn(2, 128))
        assert x.shape == (2, 3, size, size) and x.abs().max() <= 1
        seen, D = [], models.resnet_critic(4, size=size)
        for b in layers(D, models.ResidualBlock):
            b.register_forward_hook(lambda m, i, o: seen.append(o.shape[2]))
        assert D(x).shape == (2,) and seen == [64, 32, 16, 8, 4][-len(seen):]


def test_what_the_residual_networks_have_around_their_blocks():
    """G: norm, ReLU, 3x3, tanh after the last block. D: nothing but the linear layer after it."""
    torch.manual_seed(0)
    G, D = models.resnet_generator(4).double(), models.resnet_critic(4).double()
    h = G[1](G[0](z := torch.randn(2, 128).double()))
    for block in layers(G, models.ResidualBlock):
        h = block(h)
    norm, conv = layers(nn.ModuleList(G[6:]), nn.BatchNorm2d, nn.Conv2d)
    torch.testing.assert_close(G(z), torch.tanh(conv(torch.relu(norm(h)))))
    x = torch.randn(2, 3, 64, 64).double()
    h = D[0](x)
    for block in layers(D, models.ResidualBlock):
        h = block(h)
    torch.testing.assert_close(D(x), layers(D, nn.Linear)[0](h.flatten(1)).flatten())


def test_101_layers_on_the_way_through_each_network_of_the_101_layer_resnet():
    for network in (models.resnet101_generator(8), models.resnet101_critic(8)):
        on_the_way = [name for name, m in network.named_modules() if "shortcut" not in name
                      and isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
        assert len(on_the_way) == 101 and len(layers(network, models.Bottleneck)) == 33


def test_the_101_layer_resnet_by_resolution():
    G, D = models.resnet101_generator(8), models.resnet101_critic(8)
    seen = []
    for block in layers(G, models.Bottleneck) + layers(D, models.Bottleneck):
        block.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[1:])))
    D(G(torch.randn(2, 128)))
    up = ([(64, 4, 4)] * 6 + [(32, 8, 8)] * 7 + [(16, 16, 16)] * 7 + [(8, 32, 32)] * 7 + [(4, 64, 64)] * 6)
    down = [(4, 64, 64)] * 5 + [(8, 32, 32)] * 7 + [(16, 16, 16)] * 7 + [(32, 8, 8)] * 7 + [(64, 4, 4)] * 7
    assert seen == up + down
    assert isinstance(G[-2], nn.Tanh) and G[-3].by == D[-2].by == 1 / 5
    equal = 64 * 32 + 32 + 32 * 32 * 9 + 32 + 32 * 64 + 2 * 64
    assert count(G[2]) == equal
    assert count(G[8]) == (64 * 32 + 32) + (32 * 16 * 9 + 16) + 16 * 32 + 2 * 32 + (64 * 4 * 32 + 4 * 32)
    assert count(D[7]) == (4 * 2 + 2) + (2 * 4 * 9 + 4) + 4 * 8 + 2 * 8 + (4 * 8 + 8)


def test_a_bottleneck_by_its_definition():
    torch.manual_seed(0)
    relu, x = torch.relu, torch.randn(3, 8, 6, 6)
    for resample, n_out, side in [(None, 8, 6), ("up", 4, 12), ("down", 16, 3)]:
        b = models.Bottleneck(8, n_out, resample)
        _, conv1, _, conv2, _, conv3, norm = b.layers
        assert conv3.bias is None and conv1.out_channels == 4 and conv2.out_channels == n_out // 2
        shortcut = x
        if resample == "down":  # every second pixel
            w = b.shortcut.weight[:, :, 0, 0]
            shortcut = torch.einsum("oi,mihw->mohw", w, x[:, :, 1::2, 1::2])
        if resample == "up":  # four channels become 2 x 2 pixels
            four = b.shortcut[0](x).unflatten(1, (n_out, 2, 2))
            shortcut = four.permute(0, 1, 4, 2, 5, 3).reshape(3, n_out, 12, 12)
        torch.testing.assert_close(b(x), shortcut + 0.3 * norm(conv3(relu(conv2(relu(conv1(relu(x))))))))
        assert b(x).shape == (3, n_out, side, side)


def test_language_networks():
    G, D = models.language_generator(40, 32, 512), models.language_critic(40, 32, 512)
    x = G(torch.randn(3, 128))
    assert x.shape == (3, 40, 32) and D(x).shape == (3,)
    torch.testing.assert_close(x.sum(1), torch.ones(3, 32))
    block = 2 * (512 * 512 * 5 + 512)
    assert count(G) == (128 * 512 * 32 + 512 * 32) + 5 * block + 512 * 40 + 40
    assert count(D) == (40 * 512 + 512) + 5 * block + 512 * 32 + 1
    torch.manual_seed(0)
    assert_uniform(models.Conv1d(64, 64, 5).weight, math.sqrt(4 / (5 * 128)))
    assert_uniform(models.Conv1d(40, 64, 1).weight, math.sqrt(4 / 104))
    b, h = models.TextBlock(8), torch.randn(2, 8, 10)
    torch.testing.assert_close(b(h), h + 0.3 * b.conv2(torch.relu(b.conv1(torch.relu(h)))))
