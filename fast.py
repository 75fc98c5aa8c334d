"""The same training, faster on a GPU: a whole iteration as one CUDA graph, and networks that compute in bfloat16.

    (fast if args.fast else wgan_gp).train(G, D, batches, latents, opt_G, opt_D, ...)      the same steps, the same seed
    G16, D16 = fast.in_bfloat16(G, D)                                                      the same weights

Small networks leave a GPU waiting for Python, which tells it every one of the thousands of operations of an iteration.
A CUDA graph is told once and then replayed. What it cannot do is listen: every tensor stays where it was in memory, and
nothing is read back or decided on the way. This has not yet been run on a GPU, so wgan_gp.train is the default.

Convolutions use TF32 where a GPU has it: torch's default, left as it is. Matrix products stay in float32: in the image
networks they are less than a hundredth of the arithmetic.
"""
import contextlib
import copy

import torch

import wgan_gp

WARM_UP = 3  # iterations before the capture: torch's advice, so that what is set up once is not part of the graph


def parse(parser):
    """The flags of a script, with --fast and --bf16 added to them; --fast without CUDA is parser.error."""
    parser.add_argument("--fast", action="store_true",
                        help="an iteration as one CUDA graph (off unless asked for: not yet run on a GPU)")
    parser.add_argument("--bf16", action="store_true",
                        help="train in bfloat16 (weights, samples and measures stay float32)")
    args = parser.parse_args()
    if args.fast and args.device != "cuda":
        parser.error(f"--fast is a CUDA graph, and the device is {args.device}: leave it out")
    return args


def train(G, D, batches, latents, opt_G, opt_D, method=wgan_gp.WGAN_GP, iterations=100_000, start=0, seed=0,
          decay=False, generator_batch=None):
    """wgan_gp.train, whose arguments and Steps these are, with each iteration one replay of a CUDA graph.

    G and D are on a GPU, and so is everything that batches and latents do: they draw from the GPU's random numbers
    anew each time, as data.batches does from a tensor (a DataLoader's batch would be replayed for ever). Losses and
    weights are wgan_gp.train's to rounding. The first iterations of a run, resumed or not, are not replayed.
    """
    device = next(D.parameters()).device
    groups = opt_G.param_groups + opt_D.param_groups
    for group in groups if decay else []:
        group.setdefault("initial_lr", group["lr"])
    rates = [torch.tensor(group["lr"], device=device) for group in groups] if decay else []  # for a graph to read
    for state in [*opt_G.state.values(), *opt_D.state.values()]:
        if "step" in state:
            state["step"] = state["step"].to(device)  # a checkpoint has it on the CPU
    # One pass through lines 2 to 12 at each next(); random numbers and learning rates are seen to below.
    algorithm = wgan_gp.train(G, D, batches, latents, opt_G, opt_D, method, WARM_UP + 1, seed=None,
                              generator_batch=generator_batch)
    stream, graph = torch.cuda.Stream(device), None
    for iteration in range(start, iterations):
        if iteration == start + WARM_UP:
            for opt in (opt_G, opt_D):
                opt.zero_grad(set_to_none=True)  # the graph has gradients of its own
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream), capturable(groups, rates):
                _, *losses = next(algorithm)  # recorded, not computed
            algorithm.close()
        if seed is not None:  # a replay takes the seed that is set when it begins
            wgan_gp.seed_iteration(seed, iteration)
        for group, rate in zip(groups, rates):
            group["lr"] = group["initial_lr"] * (1 - iteration / iterations)
            rate.fill_(group["lr"])
        if graph:
            graph.replay()
        else:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), capturable(groups, rates):
                _, *losses = next(algorithm)
            torch.cuda.current_stream().wait_stream(stream)
        yield wgan_gp.Step(iteration + 1, *[loss.clone() for loss in losses])  # the next replay writes over them


@contextlib.contextmanager
def capturable(groups, rates):
    """Optimisers that count their steps, and read their learning rates, on the GPU: for as long as this lasts, so that
    a checkpoint is one of any device."""
    before = [dict(group) for group in groups]
    for group in groups:
        group["capturable"] = True
    for group, rate in zip(groups, rates):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, was in zip(groups, before):
            group.update(was)


def in_bfloat16(*networks):
    """The networks again, with the same weights, computing in bfloat16 where autocast thinks that is safe; what comes
    out is float32, and so are the weights' gradients. For training: measure and sample with the networks themselves."""
    twins = []
    for network in networks:
        twin = copy.copy(network)  # shallow: the weights are shared
        for name in ("forward", "classify"):
            if hasattr(network, name):
                setattr(twin, name, _autocast(getattr(network, name)))
        twins.append(twin)
    return twins


def _autocast(method):
    def in_bfloat16(x, *y):
        # Uncached, as torch asks for in a CUDA graph: copies of the weights must not outlive an update.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return method(x, *y).float()
    return in_bfloat16
