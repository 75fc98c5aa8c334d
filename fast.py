"""Optional: several GPUs, CUDA graphs and bfloat16. Nobody needs this file to follow a script.

    args = fast.parse(parser)                adds --fast and --bf16, and parses
    train = fast.choose(args)                wgan_gp.train, or the same training in one of these forms
    runs.main(fast.processes(main))          joins the processes that torchrun started, if it did

A GPU waits for Python, which launches thousands of small kernels per iteration. --fast records the
kernels of one iteration as a CUDA graph, compares it with an eager iteration, and then replays it.
Convolutions use TF32 where a GPU has it, which is torch's default. Matrix products stay in float32.
"""
import contextlib
import copy
import datetime
import os
import sys
import time
import warnings

import torch
import torch.distributed as dist

import wgan_gp

WARM_UP = 3  # eager iterations before the capture, so that one-time set-up is not recorded


def parse(parser):
    """Add --fast and --bf16 to the flags of a script, parse them, and refuse impossible combinations."""
    parser.add_argument("--fast", action="store_true", help="replay an iteration as one CUDA graph")
    parser.add_argument("--bf16", action="store_true",
                        help="compute the networks in bfloat16 (weights, samples and scores stay float32)")
    args = parser.parse_args()
    if args.fast and args.device != "cuda" and not getattr(args, "commands", False):
        parser.error(f"--fast is a CUDA graph, and the device is {args.device}: leave it out")
    n = world_size()
    for flag in ("batch_size", "generator_batch"):
        size = getattr(args, flag, 2 * n)
        if size % n or size < 2 * n:
            flag = flag.replace("_", "-")
            parser.error(f"--{flag} {size} must be a multiple of {n} processes, at least {2 * n}")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if n > 1 and args.device == "cuda" and here > gpus:
        parser.error(f"{here} processes on {gpus} GPUs: lower torchrun's --nproc_per_node")
    return args


def choose(args):
    """Return wgan_gp.train, or a variant of it with the same interface, by the flags and torchrun."""
    train = wgan_gp.train
    if args.fast:
        train = graphed
    if args.bf16:
        train = in_bfloat16(train)
    if dist.is_initialized():
        train = shared(train)
    return train


# ---- CUDA graphs ----

def graphed(G, D, batches, latents, opt_G, opt_D, method=None, iterations=100_000, start=0, seed=0, decay=False,
            generator_batch=None):
    """Train like wgan_gp.train, replaying each iteration as one CUDA graph. seed must be a number.

    batches and latents must work on the GPU alone, as data.batches does with a tensor there. After
    WARM_UP eager iterations one is recorded, replayed, and compared with an eager one from the same
    state and seed. If that fails, a line on standard error says so and training goes on eagerly.
    """
    device = next(D.parameters()).device
    groups = opt_G.param_groups + opt_D.param_groups
    for group in groups:
        group.setdefault("initial_lr", group["lr"])
    rates = [torch.tensor(group["lr"], device=device) for group in groups]
    move_step_counts((opt_G, opt_D), device)  # a checkpoint has them on the CPU
    networks = G, D, batches, latents, opt_G, opt_D, method
    endless = wgan_gp.train(*networks, sys.maxsize, generator_batch=generator_batch)
    stream = torch.cuda.Stream(device)

    def prepare(iteration):
        wgan_gp.seed_iteration(seed, iteration)
        for group, rate in zip(groups, rates):
            if decay:
                group["lr"] = group["initial_lr"] * (1 - iteration / iterations)
            rate.fill_(group["lr"])

    def eager(iteration):
        prepare(iteration)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), capturable(groups, rates):
            _, *losses = next(endless)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    begin = min(start + WARM_UP, iterations)
    for iteration in range(start, begin):
        yield wgan_gp.Step(iteration + 1, *eager(iteration))
    if begin == iterations:
        return

    weights = [w for group in groups for w in group["params"]]
    state = weights + [value for opt in (opt_G, opt_D) for s in opt.state.values() for value in s.values()]
    before = [tensor.detach().clone() for tensor in state]
    problem = waits_for_the_gpu(lambda: eager(begin))
    expected = [w.detach().clone() for w in weights]
    restore(state, before)
    if problem is None:
        try:
            for opt in (opt_G, opt_D):
                opt.zero_grad(set_to_none=True)  # the graph makes its own gradients
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream), capturable(groups, rates):
                _, *losses = next(endless)  # recorded, not computed
        except RuntimeError as error:
            problem = f"the iteration cannot be recorded ({str(error).splitlines()[0]})"
            fresh = torch.Generator(device).graphsafe_get_state()  # the old RNG may wait for the recording
            torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh)
    if not anywhere(problem is not None, device):
        prepare(begin)
        graph.replay()
        problem = compare(weights, expected, before)
        restore(state, before)
    if anywhere(problem is not None, device):
        problem = problem or "another process has a problem"
        print(f"--fast: {problem}; training goes on without it", file=sys.stderr)
        move_step_counts((opt_G, opt_D), "cpu")
        yield from wgan_gp.train(*networks, iterations, begin, seed, decay, generator_batch)
        return
    for iteration in range(begin, iterations):
        prepare(iteration)
        graph.replay()
        yield wgan_gp.Step(iteration + 1, *[loss.clone() for loss in losses])


@contextlib.contextmanager
def capturable(groups, rates):
    """Let optimizers keep step counts and learning rates on the GPU, inside this context only.

    Outside, the groups are those of any other run, so that a checkpoint can be resumed on any device.
    """
    before = [dict(group) for group in groups]
    for group, rate in zip(groups, rates):
        group["capturable"], group["lr"] = True, rate
    try:
        yield
    finally:
        for group, was in zip(groups, before):
            group.update(was)


def move_step_counts(optimizers, device):
    """Move the step counts of the optimizers to a device."""
    for opt in optimizers:
        for state in opt.state.values():
            if "step" in state:
                state["step"] = state["step"].to(device)


def waits_for_the_gpu(iteration):
    """Run an iteration. Return None, or a message if it synchronises, which a graph cannot record."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        iteration()
        torch.cuda.set_sync_debug_mode("default")
    if any("called a synchronizing" in str(warning.message) for warning in caught):
        return "an iteration waits for the GPU, perhaps to copy images to it"
    return None


@torch.no_grad()
def restore(tensors, values):
    """Copy the values back into the tensors."""
    for tensor, value in zip(tensors, values):
        tensor.copy_(value)


@torch.no_grad()
def compare(weights, expected, before):
    """Return None, or what is wrong with the weights after a replay. Tolerance: 10 % of the update."""
    moved = torch.stack([(a - b).norm() for a, b in zip(expected, before)]).norm()
    off = torch.stack([(a - b).norm() for a, b in zip(expected, weights)]).norm()
    if off <= 0.1 * moved:
        return None
    return f"a replayed iteration differs from an eager one by {float(off / moved):.0%} of the update"


# ---- bfloat16 ----

def in_bfloat16(train):
    """Return `train` with both networks under bfloat16 autocast. Outputs and gradients stay float32."""
    def train_in_bfloat16(G, D, *args, **kwargs):
        return train(autocasting(G), autocasting(D), *args, **kwargs)
    return train_in_bfloat16


def autocasting(network):
    """Return a shallow copy of a network that runs under bfloat16 autocast, or of any function."""
    if not isinstance(network, torch.nn.Module):
        return autocast(network)
    twin = copy.copy(network)  # it shares the weights
    for name in ("forward", "classify"):
        if hasattr(network, name):
            setattr(twin, name, autocast(getattr(network, name)))
    return twin


def autocast(function):
    """Return a function of (x, *y) that runs under bfloat16 autocast and returns float32."""
    def run(x, *y):
        # Without the cache: copies of the weights must not outlive an update.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            return function(x, *y).float()
    return run


# ---- several processes ----

# torchrun starts N processes. Each draws its own part of every batch, and the gradients are averaged
# before each update. Batch norm sees one part. Rank 0 alone measures, prints and writes (runs.py).

def world_size():
    """Return the number of processes that torchrun started, 1 without it."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise OSError(f"WORLD_SIZE is {text!r}: unset it, or start the script with torchrun")
    return int(text)


def processes(main):
    """Return main, joined to the other processes of torchrun. Prints an error once and stops them all."""
    def joined():
        if world_size() == 1:
            if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
                raise OSError("srun started several copies: for one GPU use srun --ntasks=1 python, for "
                              "several srun --ntasks-per-node=1 torchrun")
            return main()
        if "MASTER_ADDR" not in os.environ:
            raise OSError("WORLD_SIZE is set without torchrun: unset it, or use torchrun")
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        silent, stderr = open(os.devnull, "w"), sys.stderr
        if rank:
            sys.stdout = sys.stderr = silent
        if local_rank < torch.cuda.device_count():
            torch.cuda.set_device(local_rank)  # what "cuda" means from here on
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(days=1))  # all wait while rank 0 scores
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False)
        try:
            main()
        except SystemExit as leave:
            if rank and leave.code == 2:
                time.sleep(2)  # torchrun ends all when one leaves: first let rank 0 print what is wrong
            raise
        except BaseException:
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            first = store.add(f"failures of attempt {attempt}", 1) == 1
            sys.stderr = stderr if first else silent  # the other ranks fail only because this one did
            raise
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a thread of gloo can abort Python's own exit
    return joined


def shared(train):
    """Return `train` with each batch split over the processes. Without batch norm the updates are equal."""
    def train_shared(G, D, batches, latents, opt_G, opt_D, method=None, iterations=100_000, start=0, seed=0,
                     decay=False, generator_batch=None):
        n, rank = dist.get_world_size(), dist.get_rank()
        own = ([part[:len(part) // n] for part in wgan_gp.parts(batch)] for batch in batches)
        own_seed = (seed + 1_000_000 * rank) % 2 ** 32
        for opt in (opt_G, opt_D):
            opt.register_step_pre_hook(average_gradients)
            for group in opt.param_groups:
                for w in group["params"]:
                    dist.broadcast(w.data, 0)  # the same already, unless the machines differ
        for step in train(G, D, own, latents, opt_G, opt_D, method, iterations, start, own_seed, decay,
                          generator_batch and generator_batch // n):
            losses = torch.stack(step[1:])
            dist.all_reduce(losses)
            yield wgan_gp.Step(step.iteration, *(losses / n))
    return train_shared


def average_gradients(optimizer, *_):
    """Replace each gradient by its mean over the processes, the gradient of the whole batch."""
    gradients = [w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
    total = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(total)
    for g, mean in zip(gradients, (total / dist.get_world_size()).split([g.numel() for g in gradients])):
        g.copy_(mean.view_as(g))


def anywhere(flag, device):
    """Return whether the flag is true in any process."""
    flag = torch.tensor(float(flag), device=device)
    if dist.is_initialized():
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
