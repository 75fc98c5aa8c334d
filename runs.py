"""What a run leaves behind: flags, log, progress line, pictures, checkpoints. Nothing in here is about GANs.

A script uses it like this (see train_cifar.py):

    args = runs.flags(__doc__, data="cifar10", iterations=200_000, batch_size=64).parse_args()
    run = runs.Run(args, out="runs/cifar-wgan-gp", columns=["test_loss"])
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)    # 0, or the checkpoint's iteration
    for step in wgan_gp.train(..., start=start):
        run.log(step, test_loss=...)                         # a row of log.csv, the progress line
        run.checkpoint(step.iteration)                       # now and then; on Ctrl-C it saves and leaves
    run.finish()
"""
import argparse
import contextlib
import copy
import csv
import datetime
import functools
import io
import json
import math
import os
import platform
import re
import signal
import sys
import textwrap
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageColor, ImageDraw, ImageFont

try:
    import fcntl
    import resource
except ImportError:  # not on Windows: there, nothing stops two runs from writing into one folder, or tells their memory
    fcntl = resource = None


class Mistake(Exception):
    """Something the user can put right: one line that says what is wrong and what to do."""

    def __init__(self, message, exit_code=1):
        super().__init__(message)
        self.exit_code = exit_code  # 2 for flags, 1 for data and everything else


class Diverged(Mistake):
    """A loss is no longer a finite number."""


def main(script):
    """Call script(); a mistake or a problem with a file becomes one line on standard error and a non-zero exit."""
    try:
        with together():
            script()
    except (Mistake, OSError) as problem:
        message = " ".join(str(problem).split())
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        sys.exit(getattr(problem, "exit_code", 1))
    except (RuntimeError, MemoryError) as problem:
        known = isinstance(problem, (MemoryError, torch.OutOfMemoryError))  # but for the CPU's, which is a RuntimeError
        if not known and "tried to allocate" not in str(problem):
            raise
        print(f"{Path(sys.argv[0]).name}: out of memory: lower --batch-size or the width, and choose another --out",
              file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: interrupted; if a checkpoint was saved, --resume goes on from it",
              file=sys.stderr)
        sys.exit(130)


# -------------------------------------------------------------------------------------------------- many processes
# "torchrun --nproc_per_node=N script.py" starts N processes and tells each its number, its rank. They have the same
# weights, and each draws its own share of every batch; before an optimiser steps, the gradients are averaged. Rank 0
# alone measures, prints and writes. What is below does nothing where there is one process.

PROCESSES, LOCAL_PROCESSES = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0)) if PROCESSES > 1 else 0
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # LOCAL_: on this machine


@contextlib.contextmanager
def together():
    """Join the other processes for what is done inside. All but rank 0 are silent, but whichever is the first to fail
    says why: what the others meet then is only that it is gone."""
    if PROCESSES == 1:
        yield
        return
    if "MASTER_ADDR" not in os.environ:
        raise Mistake(f"WORLD_SIZE is {PROCESSES}, but torchrun has not started this: use it, or unset WORLD_SIZE")
    silent, stderr = open(os.devnull, "w"), sys.stderr
    if RANK:
        sys.stdout = sys.stderr = silent
    if LOCAL_RANK < torch.cuda.device_count():
        torch.cuda.set_device(LOCAL_RANK)  # what "cuda" means from here on
    # A day, since all wait while rank 0 scores; torchrun ends them when one of them dies, however long that is.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(days=1))
    blackboard = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    try:
        yield
    except SystemExit as leave:
        if RANK and leave.code == 2:
            time.sleep(2)  # torchrun ends all when one leaves: first let rank 0 say what is wrong with the flags
        raise
    except BaseException:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        sys.stderr = stderr if blackboard.add(f"failures of attempt {attempt}", 1) == 1 else silent
        raise
    dist.destroy_process_group()


def highest(number=0):
    """The highest of the processes' numbers. All wait for it, but no GPU is waited for."""
    if PROCESSES == 1:
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item()


@contextlib.contextmanager
def one_first():
    """On each machine one process does what is inside before the others: it downloads, they find what it left."""
    if LOCAL_RANK:
        highest()  # waits for the one
    yield
    if not LOCAL_RANK:
        highest()


def share(batch_size, flag="--batch-size"):
    """How many examples of a batch are this process's; a Mistake if they cannot be shared out evenly."""
    if batch_size % PROCESSES or batch_size < 2 * PROCESSES:
        raise Mistake(f"{flag} {batch_size} cannot be shared out among {PROCESSES} processes: choose a multiple of "
                      f"{PROCESSES}, and at least {2 * PROCESSES}", 2)
    return batch_size // PROCESSES


def own_seed(seed):
    """A seed for what this process draws, other than the others'; rank 0 has `seed` itself."""
    return (seed + 1_000_000 * RANK) % 2 ** 32


def average_gradients(optimizer, *_):
    """Before an optimiser's step: each gradient becomes its mean over the processes, that of the whole batch."""
    gradients = [w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
    total = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(total)
    for g, mean in zip(gradients, (total / PROCESSES).split([g.numel() for g in gradients])):
        g.copy_(mean.view_as(g))


def average_losses(step):
    """A named tuple with its tensors, scalars all, averaged over the processes: the losses of the whole batch."""
    losses = {name: value for name, value in step._asdict().items() if torch.is_tensor(value)}
    total = torch.stack(list(losses.values()))
    dist.all_reduce(total)
    return step._replace(**dict(zip(losses, total / PROCESSES)))


# ----------------------------------------------------------------------------------------------------------- flags

def flags(doc, data, iterations, batch_size):
    """The argument parser that every training script starts from. doc: the script's docstring, shown by --help."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=whole(1), default=iterations, metavar="N",
                        help=f"generator iterations (default {iterations or 'see above'})")
    parser.add_argument("--batch-size", type=whole(2), default=batch_size, metavar="N",
                        help=f"examples in a batch (default {batch_size})")
    parser.add_argument("--seed", type=whole(0, 2 ** 32), default=0, metavar="N",
                        help="the same seed, the same run (default 0)")
    parser.add_argument("--device", type=device, default="auto", metavar="{auto,cpu,cuda,mps}",
                        help="where to compute (default: a GPU if there is one)")
    parser.add_argument("--out", metavar="DIR",
                        help="where the run is written (default below runs/, named after what is trained)")
    parser.add_argument("--data", default=data, metavar="NAME|PATH",
                        help=f"what to train on (default {data or 'see above'})")
    parser.add_argument("--data-dir", default="data", metavar="DIR",
                        help="where published archives are looked for and downloaded to (default data)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--checkpoint-seconds", type=number(0), default=60, metavar="S",
                        help="seconds between checkpoints (default 60)")
    return parser


def number(least, below=math.inf, kind=float):
    """An argparse type: a finite number of at least `least` and below `below`."""
    def parse(text):
        value = kind(text)
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}" if value < least else
                                             f"{text} is not below {below}" if value >= below else f"{text} is no number")
        return value
    parse.__name__ = "number" if kind is float else "whole number"  # for argparse's own message
    return parse


def whole(least, below=2 ** 63):
    """An argparse type likewise: a whole number."""
    return number(least, below, int)


def device(name):
    """An argparse type: "auto", "cpu", "cuda" or "mps" to the name of a device that is there."""
    mps = torch.backends.mps.is_available() and PROCESSES == 1
    there = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if name not in there:
        raise argparse.ArgumentTypeError(f"{name} is none of auto, cpu, cuda, mps")
    if not there[name]:
        raise argparse.ArgumentTypeError(f"this torch ({torch.__version__}) finds no {name} device; leave --device out")
    if name == "cuda" and LOCAL_PROCESSES > torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{LOCAL_PROCESSES} processes want a GPU each, and there are "
                                         f"{torch.cuda.device_count()}: lower torchrun's --nproc_per_node")
    return name


# ----------------------------------------------------------------------------------------------------------- a run

def part(args, name):
    """The flags for one of several runs of a script, whose folder is `name` below --out. On --resume, those of them
    that were begun go on, and the others begin; if none was, a Mistake."""
    if args.resume and not any(Path(args.out).glob("*/checkpoint.pt")):
        raise Mistake(f"there is no checkpoint in {args.out}: leave --resume out, or say another --out", 2)
    return below(args, name)


def below(args, name):
    """The flags for a run in the folder `name` below --out: on --resume it goes on if it was begun, and else begins."""
    args = copy.copy(args)
    args.out = f"{args.out}/{name}"
    args.resume = args.resume and (Path(args.out) / "checkpoint.pt").exists()
    return args


def folder(args, default):
    """Where a run is to be: --out, or `default`. A Mistake if it cannot begin there, or with --resume go on; to be
    asked before anything long, such as a download, and leaves nothing behind."""
    out = Path(args.out or default)
    if RANK:
        return out  # rank 0 alone reads and writes there: other machines need not see it
    resumable, log = (out / "checkpoint.pt").exists(), out / "log.csv"
    if args.resume and not resumable:
        raise Mistake(f"there is no checkpoint in {out}: leave --resume out, or say another --out", 2)
    begun = resumable or log.exists() and len(log.read_bytes().splitlines()) > 1  # not if killed before all iterations
    if not args.resume and begun:
        go_on = "add --resume to go on with it" if resumable else "delete it"
        raise Mistake(f"{out} already holds a run: {go_on}, or choose another --out", 2)
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise Mistake(f"{path} is a file: choose another --out", 2)
    return out


class Run:
    """One run's folder: config.json, log.csv, curves.png, samples/, checkpoint.pt.

    args: the parsed flags. out: the folder, if --out does not name one. columns: what log.csv has beside the
    columns that every script has. data: the examples trained on, a tensor or an array, if they are from files.
    charts: pairs (title, columns of the log) that curves.png has beside those that every script has. Refuses a
    folder that holds a run already, unless --resume is given, and then refuses to go on with other flags or other data
    than the run was started with. Of many processes, rank 0 alone writes into it
    (run.first is True there); the others know what it loaded, and keep in step with it.
    """

    COLUMNS = ["iteration", "seconds", "critic_loss", "wasserstein", "penalty", "generator_loss"]
    CHARTS = [("critic loss", ["critic_loss", "held_out_loss"]), ("Wasserstein estimate", ["wasserstein"]),
              ("penalty", ["penalty"])]
    FREE_ON_RESUME = {"out", "resume", "device", "data_dir", "checkpoint_seconds", "sample_every", "measure_every",
                      "score_every", "score_samples", "final_samples", "inception",
                      "fast"}  # these do not change the weights, but for rounding

    def __init__(self, args, out, columns=(), data=None, charts=()):
        self.out = Path(args.out or out)
        self.args, self.columns, self.charts = args, [*self.COLUMNS, *columns], [*self.CHARTS, *charts]
        self.script = Path(sys.argv[0]).name
        self.objects, self.rows, self.last = {}, [], {}
        self.seconds, self.saved_iteration, self.interrupted = 0.0, None, 0
        self.first, self.lock, self.saved_at, self.drawn_at = RANK == 0, None, time.monotonic(), time.monotonic()
        if PROCESSES > 1 and not hasattr(args, "fast"):  # the scripts that share their batches have that flag
            raise Mistake(f"{self.script} is for one process: start it with python, not with torchrun", 2)
        config = {"script": self.script, "flags": vars(args), "python": platform.python_version(),
                  "torch": torch.__version__, "hardware": hardware(args.device), "processes": PROCESSES,
                  "data": None if data is None else fingerprint(data)}
        self.loaded = self.claim(config) if self.first else None
        if PROCESSES > 1:
            box = [self.loaded]
            dist.broadcast_object_list(box, device=torch.device("cpu"))  # the others wait here for claim()
            self.loaded, = box
        torch.manual_seed(args.seed)  # the networks' first weights

    def claim(self, config):
        """Make the folder this run's alone, or raise a Mistake; returns what the checkpoint holds on --resume."""
        folder(self.args, self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        if fcntl:
            self.lock = open(self.out / ".lock", "w")
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Mistake(f"another run is writing into {self.out}: choose another --out", 2) from None
            except OSError:
                pass  # a file system without locks
        try:
            folder(self.args, self.out)  # again: another run may have ended here before the folder was locked
            for left in self.out.glob(".*.tmp"):  # of a process that was killed while writing
                left.unlink()
            loaded = self.load(config) if self.args.resume else None
        except Mistake:
            self.leave()
            raise
        if not self.args.resume:
            write(self.out / "config.json", json.dumps(config, indent=2) + "\n")
            write(self.out / "log.csv", ",".join(self.columns) + "\n")
        return loaded

    def load(self, config):
        """Read and check the checkpoint and config.json of a run that is to be resumed."""
        try:
            old = json.loads((self.out / "config.json").read_text())
            loaded = torch.load(self.out / "checkpoint.pt", map_location="cpu", weights_only=True)
            iteration, seconds, objects = loaded["iteration"], loaded["seconds"], loaded["objects"]
            script, old_flags = old["script"], dict(old["flags"])
        except Exception as problem:  # torch.load and json raise a dozen kinds
            raise Mistake(f"the run in {self.out} cannot be read, its checkpoint.pt or config.json is damaged "
                          f"({type(problem).__name__}): start again with another --out") from None
        if script != config["script"]:
            raise Mistake(f"{self.out} holds a run of {script}: choose another --out", 2)
        for name, value in config["flags"].items():
            if name not in self.FREE_ON_RESUME and old_flags.get(name, False) != value:  # new flags were off before
                flag = "--" + name.replace("_", "-")
                raise Mistake(f"{self.out} was started with {flag} {old_flags.get(name)}, not {value}: resume it "
                              f"with the same flags, or choose another --out", 2)
        if old.get("data", config["data"]) != config["data"]:
            raise Mistake(f"what {self.args.data} holds has changed since {self.out} was started: bring it back, or "
                          f"choose another --out")
        return iteration, seconds, objects

    def start(self, **objects):
        """Name what a checkpoint holds (modules, optimisers: whatever has a state_dict); restore it on --resume.

        Returns the number of iterations done. From here on there is a checkpoint, and Ctrl-C and a scheduler's
        SIGTERM wait for checkpoint().
        """
        self.objects, iteration = objects, 0
        if self.args.resume:
            iteration, self.seconds, states = self.loaded
            try:
                for name, thing in objects.items():
                    thing.load_state_dict(states[name])
            except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as problem:
                raise Mistake(f"the checkpoint in {self.out} does not fit these networks ({type(problem).__name__}): "
                              f"start again with another --out") from None
            if self.first:
                self.cut_log(iteration)
            self.saved_iteration, self.saved_at = iteration, time.monotonic()
            print(f"resuming {self.out} at iteration {iteration}", file=sys.stderr)
        elif self.first:
            self.save(iteration)
        if PROCESSES > 1:
            for thing in objects.values():
                if isinstance(thing, torch.optim.Optimizer):
                    thing.register_step_pre_hook(average_gradients)
                else:
                    for w in thing.state_dict().values():  # the same already, if all machines are alike
                        same = w.contiguous()
                        dist.broadcast(same, 0)
                        w.copy_(same)
        signal.signal(signal.SIGINT, self.interrupt)
        signal.signal(signal.SIGTERM, self.interrupt)
        self.first_iteration, self.begun = iteration, time.monotonic()
        self.mark = self.shown_at = self.flushed_at = self.begun
        return iteration

    def interrupt(self, signum, frame):
        """Ask the loop to stop at its next checkpoint(); asked a second time, stop at once."""
        if self.interrupted:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return  # a scheduler's SIGTERM comes again through torchrun, perhaps while this is saving
        self.interrupted = signum
        with contextlib.suppress(OSError, ValueError):  # not print: the signal may have come in the middle of one
            os.write(sys.stderr.fileno(), b"\nstopping after this iteration (once more: at once, without saving)\n")

    @contextlib.contextmanager
    def clock_stopped(self):
        """What is done inside (scores, pictures) does not count in log.csv's seconds of training."""
        self.tick()
        yield
        self.mark = time.monotonic()

    def tick(self):
        """Add the time since the last look at the clock to the seconds of training."""
        now = time.monotonic()
        self.seconds, self.mark = self.seconds + now - self.mark, now

    # ------------------------------------------------------------------------------------------------ log, progress

    def log(self, step, **extra):
        """Take a row for log.csv: the fields of `step`, a named tuple, and whatever else was measured this time.

        Tensors are read, and so a GPU waited for, about once a second. Raises Diverged, naming the iteration, when
        a loss is not finite; the checkpoint is then that of the last good iteration saved. Many processes: the row
        has the losses of the whole batch.
        """
        self.tick()
        if PROCESSES > 1:
            step = average_losses(step)
        if not self.first:
            return
        self.rows.append({"seconds": self.seconds, **step._asdict(), **extra})
        if time.monotonic() - self.flushed_at > 1 or step.iteration >= self.args.iterations:
            self.flush()
        self.show(step.iteration)

    def flush(self):
        """Write the rows that log() has taken to log.csv."""
        if not self.rows:
            return
        numbers = [v for row in self.rows for v in row.values() if torch.is_tensor(v)]
        read = iter(torch.stack([v.float() for v in numbers]).tolist() if numbers else [])  # waits for the GPU once
        rows = [{k: next(read) if torch.is_tensor(v) else v for k, v in row.items()} for row in self.rows]
        self.rows, self.flushed_at = [], time.monotonic()
        with open(self.out / "log.csv", "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            for row in rows:
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        for row in rows:
            self.last.update(row)
            for name in ("critic_loss", "generator_loss"):
                if not math.isfinite(row.get(name, 0)):
                    self.diverged(f"{name} is {row[name]} at iteration {row['iteration']}")

    def diverged(self, what):
        """Leave the folder as it is, with the last good checkpoint, and raise Diverged."""
        self.leave()
        raise Diverged(f"{what}; the checkpoint of iteration {self.saved_iteration} is kept: start again with a lower "
                       f"learning rate, or another --seed")

    def show(self, iteration):
        """The progress line: redrawn in place on a terminal, elsewhere a line every half minute."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if now - self.shown_at < (0.2 if terminal else 30) and iteration < self.args.iterations:
            return
        self.shown_at = now
        done = iteration - self.first_iteration
        rate = done / (now - self.begun) if now > self.begun else 0
        left = (self.args.iterations - iteration) / rate if rate else 0
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in self.last.items()
                            if name not in ("iteration", "seconds") and isinstance(value, float))
        line = f"{iteration}/{self.args.iterations}  {rate:.3g}/s  {duration(left)} left  {numbers}"
        if terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print("\r" + line[:width - 1].ljust(width - 1), end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def read_log(self):
        """log.csv so far: {column: float array}, NaN where nothing was measured."""
        self.flush()
        return read_log(self.out)

    def cut_log(self, iteration):
        """Drop what log.csv has after `iteration`, and lines that are no rows, such as a last line cut short."""
        try:
            header, *lines = (self.out / "log.csv").read_text().splitlines()
        except (OSError, ValueError):  # not there, empty, or no text
            header, lines = "", []
        names = header.split(",")
        rows = [dict(zip(names, cells)) for cells in (line.split(",") for line in lines)
                if len(cells) == len(names) and cells[0].isdecimal() and int(cells[0]) <= iteration]
        if len(rows) != iteration:
            print(f"{self.out / 'log.csv'} has {len(rows)} of {iteration} rows: the others are lost", file=sys.stderr)
        write_csv(self.out / "log.csv", self.columns, [[row.get(name, "") for name in self.columns] for row in rows])

    def draw_curves(self):
        """Draw curves.png from log.csv. A chart with nothing measured, or nothing but zeros, is left out.

        Long columns are drawn twice, pale as they are and smoothed over a fiftieth of their length.
        """
        log, pictures = self.read_log(), []
        for title, columns in self.charts:
            there = {c: np.isfinite(log[c]) for c in columns if c in log}
            raw = {c: (log["iteration"][i], log[c][i]) for c, i in there.items() if log[c][i].any()}
            if raw:
                smoothed = {c: (x, smooth(y, len(y) // 50)) for c, (x, y) in raw.items()}
                pictures.append(line_chart(smoothed, title, "iteration", pale=raw))
        if pictures:
            save_png(beside([pictures[i:i + 2] for i in range(0, len(pictures), 2)]), self.out / "curves.png")
        self.drawn_at = time.monotonic()

    # -------------------------------------------------------------------------------------------------- checkpoints

    def checkpoint(self, iteration):
        """Save if it is time to, or if Ctrl-C was pressed: then leave too. Call it last in the loop's body.

        Many processes leave together, after the same iteration, when a signal has reached any of them.
        """
        interrupted = highest(self.interrupted)
        due = time.monotonic() - self.saved_at >= self.args.checkpoint_seconds
        if self.first and (due or interrupted or iteration == self.args.iterations):
            self.save(iteration)
            if interrupted or time.monotonic() - self.drawn_at > 600:
                with self.clock_stopped():
                    self.draw_curves()
        if interrupted:
            print(f"saved iteration {iteration} in {self.out}; the same command with --resume goes on", file=sys.stderr)
            self.leave()
            sys.exit(128 + interrupted)

    def save(self, iteration):
        """Write checkpoint.pt: under another name first, so that there is always a whole one."""
        self.flush()
        for name, network in self.objects.items():
            weights = network.parameters() if isinstance(network, torch.nn.Module) else ()
            if not all(w.isfinite().all() for w in weights):  # G's are, for one iteration, before its loss is
                self.diverged(f"{name} has weights that are no numbers after iteration {iteration}")
        buffer = io.BytesIO()
        torch.save({"iteration": iteration, "seconds": self.seconds,
                    "objects": {name: thing.state_dict() for name, thing in self.objects.items()}}, buffer)
        try:
            write(self.out / "checkpoint.pt", buffer.getbuffer())
        except OSError as problem:
            what_now = ("make room, and start again" if self.saved_iteration is None else
                        f"that of iteration {self.saved_iteration} is kept: make room, then --resume")
            raise Mistake(f"the checkpoint of iteration {iteration} could not be saved ({problem}); {what_now}") from None
        self.saved_iteration, self.saved_at = iteration, time.monotonic()

    def sample_path(self, iteration, suffix=".png"):
        """Where the samples of this iteration go: samples/NNNNNN.png."""
        (self.out / "samples").mkdir(exist_ok=True)
        return self.out / "samples" / f"{iteration:06d}{suffix}"

    def leave(self):
        """Give the signals back their meaning, and the folder free."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.lock:
            self.lock.close()

    def finish(self):
        """Write what is left of the log, draw its curves, and say where everything is."""
        if self.first:
            self.draw_curves()
        self.leave()
        print(f"{chr(10) if sys.stderr.isatty() else ''}done: {self.out}", file=sys.stderr)


def write(path, content):
    """Write text or bytes to `path`, whole or not at all: to a temporary name first, which is then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path, header, rows):
    """Write a table, whole or not at all; numbers with six digits."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(
        [header, *([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)])
    write(path, table.getvalue())


def read_log(folder):
    """log.csv in `folder`: {column: float array}, NaN where nothing was measured."""
    path = Path(folder) / "log.csv"
    try:
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        values = np.array([[float(v) if v else np.nan for v in row] for row in rows]).reshape(-1, len(header))
    except (ValueError, csv.Error):
        raise Mistake(f"{path} is damaged: --resume repairs it") from None
    return dict(zip(header, values.T))


def fingerprint(data):
    """Eight hexadecimal digits from the shape of a tensor or array, and from a thousand of its rows: another data set has
    others, but for a chance of 1 in 4 billion or a change to a few rows of many."""
    some = np.ascontiguousarray(data[::max(len(data) // 1_000, 1)])
    return f"{zlib.crc32(some, zlib.crc32(str(tuple(data.shape)).encode())):08x}"


def duration(seconds):
    """Seconds as "42s", "3m05s" or "2h07m"."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def peak_memory(device):
    """The most bytes taken so far: on a GPU by tensors, elsewhere by the whole process; None if nobody knows."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else None


def hardware(device):
    """One line on what computes: the GPU's name, or the CPU's and the number of threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        name = [line for line in open("/proc/cpuinfo") if line.startswith("model name")][0].split(":")[1].strip()
    return f"{name}, {torch.get_num_threads()} threads"


# -------------------------------------------------------------------------------------------------------- pictures
# Numbers in lists, arrays or tensors come in, RGB PIL.Images go out; save_png puts one into a file.

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC6699", "#E69F00", "#56B4E9", "#333333", "#8C6BB1"]
GREY, GRID = "#444444", (232, 232, 232)
SURFACE = [(62, 56, 112), (62, 104, 152), (66, 150, 154), (122, 195, 138), (243, 233, 140)]  # low to high
FINER = 4  # everything is drawn this many times larger and then reduced, so that its edges are smooth


def _numbers(values, log=False):
    """Numbers as a float64 array, or their log10. None and the log of a number <= 0 become NaN."""
    values = np.asarray(values.detach().cpu().double() if torch.is_tensor(values) else values, np.float64)
    return np.log10(values, out=np.full(values.shape, np.nan), where=values > 0) if log else values


_font = functools.cache(ImageFont.load_default)  # Pillow's own: Latin letters and the signs of ASCII


def _text(text, size=11, width=9999):
    """Text as a greyscale picture, 255 where there is ink. Lines are centred, words wrap at about
    `width` pixels, and an exponent is raised: 10^-3."""
    letters = max(1, int(2 * width / size))
    lines = [line for part in str(text).split("\n") for line in textwrap.wrap(part, letters) or [""]]
    lines = [[(piece, _font(FINER * size * (0.75 if i % 2 else 1)), FINER * size * 0.4 * (i % 2))
              for i, piece in enumerate(re.split(r"\^(-?\d+)", line))] for line in lines]
    lengths = [sum(font.getlength(piece) for piece, font, _ in line) for line in lines]
    height = round(1.4 * size) * FINER
    picture = Image.new("L", (math.ceil(max(lengths)) + FINER, height * len(lines)))
    for i, (line, length) in enumerate(zip(lines, lengths)):
        x = (picture.width - length) / 2
        for piece, font, raised in line:
            ImageDraw.Draw(picture).text((x, height * (i + 0.75) - raised), piece, 255, font, anchor="ls")
            x += font.getlength(piece)
    return picture.reduce(FINER)


def _put(picture, text, x, y, across=0.5, down=0.5, colour="black"):
    """Puts a _text where its point (across, down), each 0 to 1, lies at pixel (x, y), or as near as fits."""
    x = max(0, min(round(x - across * text.width), picture.width - text.width))
    y = max(0, min(round(y - down * text.height), picture.height - text.height))
    picture.paste(colour, (x, y, x + text.width, y + text.height), text)


def _limits(values, log=False, given=None, room=0.04):
    """The (low, high) of an axis for finite values, which are exponents of ten if `log`. `given`: two
    numbers, None where the data decide. A log axis is widened to have two powers of ten."""
    data = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    given = _numbers(given or (None, None), log)
    low, high = np.where(np.isnan(given), data, given)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, or none between the given ends
        extra = 0.1 * max(abs(low), abs(high)) or 1.0
        low, high = min(low, high) - extra, max(low, high) + extra
    room = room * (high - low) * np.isnan(given)
    low, high = low - room[0], high + room[1]
    few = log and math.floor(high) <= math.ceil(low)
    return (math.floor(low), math.ceil(high)) if few else (low, high)


def _ticks(low, high, most, log=False):
    """Positions and labels of about `most` ticks: 1, 2 or 5 times a power of ten apart, or whole
    exponents if `log`. Labels of large numbers are like 200k, 1.5M and 3e12."""
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= 0.999 * rough)
    step = max(1, math.ceil(rough)) if log else step
    ticks = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    if log:
        return ticks, [f"10^{tick}" for tick in ticks.astype(int)]
    power = math.floor(math.log10(max(abs(low), abs(high))) + 1e-9)
    power, end = (3, "k") if 4 <= power < 6 else (6, "M") if 6 <= power < 9 else (power, f"e{power}")
    if (-4 < power < 4 and end not in ("k", "M")) or step < 10.0 ** (power - 2):
        power, end = 0, ""
    places = max(0, power - math.floor(math.log10(step) + 1e-9))
    return ticks, ["0" if abs(t) < step / 2 else f"{t / 10.0 ** power:.{places}f}{end}" for t in ticks]


def _axes(size, x_limits, y_limits, title, x_label, y_label, log_y=False):
    """Draws axes; on a log axis the limits are exponents of ten. Returns (picture, box, layer, place): the
    chart so far; the (left, top, right, bottom) of its inside; the inside, FINER times larger, to draw on;
    place(xs, ys), the layer's pixels for data (or exponents)."""
    picture = Image.new("RGB", size, "white")
    top, bottom = (34 if title else 12), size[1] - (44 if x_label else 26)
    ys, names = _ticks(*y_limits, (bottom - top) / 38, log_y)
    y_names = [_text(name) for name in names]
    left = 12 + max([name.width for name in y_names], default=0) + (20 if y_label else 0)
    right = size[0] - 18
    for most in range(10, 0, -1):  # fewer and fewer, until the labels stand apart
        xs, names = _ticks(*x_limits, most)
        x_names = [_text(name) for name in names]
        room = (xs[1] - xs[0]) / (x_limits[1] - x_limits[0]) * (right - left) if len(xs) > 1 else math.inf
        if max([name.width for name in x_names], default=0) + 16 <= room:
            break
    layer = Image.new("RGB", ((right - left) * FINER, (bottom - top) * FINER), "white")

    def place(xs, ys):
        x = (xs - x_limits[0]) / (x_limits[1] - x_limits[0])
        y = (y_limits[1] - ys) / (y_limits[1] - y_limits[0])
        return np.clip(x, -20, 21) * layer.width, np.clip(y, -20, 21) * layer.height

    grid, pen = ImageDraw.Draw(layer), ImageDraw.Draw(picture)
    for x, name in zip((place(xs, 0)[0] / FINER).round().astype(int).tolist(), x_names):
        grid.rectangle((x * FINER, 0, x * FINER + FINER - 1, layer.height), GRID)
        pen.line((left + x, bottom, left + x, bottom + 4), GREY)
        _put(picture, name, left + x, bottom + 6, down=0)
    for y, name in zip((place(0, ys)[1] / FINER).round().astype(int).tolist(), y_names):
        grid.rectangle((0, y * FINER, layer.width, y * FINER + FINER - 1), GRID)
        pen.line((left - 5, top + y, left - 1, top + y), GREY)
        _put(picture, name, left - 7, top + y, across=1)
    pen.rectangle((left - 1, top - 1, right, bottom), outline="#999999")
    _put(picture, _text(title, 14), (left + right) / 2, top - 8, down=1)
    _put(picture, _text(x_label, 12), (left + right) / 2, size[1] - 4, down=1)
    _put(picture, _text(y_label, 12).rotate(90, expand=True), 4, (top + bottom) / 2, across=0)
    return picture, (left, top, right, bottom), layer, place


def _line(pen, x, y, colour, width):
    """Draws a line through layer pixels x, y, with gaps at NaN and a dot where a point stands alone. Of the
    points in one column of the layer it draws the first, lowest, highest and last: all that can be seen."""
    shown = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(shown) == 0:
        return
    x, y = x[shown], y[shown]
    moves = np.diff(np.floor(x)) != 0                             # to another column
    part = np.append(0, np.cumsum(moves & (np.diff(shown) > 1)))  # of the line, between gaps
    first, last = np.append(0, np.flatnonzero(moves) + 1), np.append(np.flatnonzero(moves), len(x) - 1)
    by_height = np.lexsort((y, np.append(0, np.cumsum(moves))))   # column by column
    kept = np.unique(np.concatenate([first, last, by_height[first], by_height[last]]))
    for points in np.split(kept, np.flatnonzero(np.diff(part[kept])) + 1):
        if max(np.ptp(x[points]), np.ptp(y[points])) < width:
            pen.circle((x[points[0]], y[points[0]]), 3 * FINER, colour)
        else:
            pen.line(np.stack([x[points], y[points]], 1).ravel().tolist(), colour, width, joint="curve")


def _legend(picture, box, layer, colours):
    """Puts {label: colour} into the box of the picture, in the corner or side where it hides the least."""
    ink = np.asarray(layer)[::FINER, ::FINER]
    ink = (ink != 255).any(2) & (ink != GRID).any(2)
    names = [_text(label) for label in colours]
    wide, high = max(name.width for name in names) + 42, 16 * len(names) + 7
    places = ((1, 0), (0, 0), (1, 1), (0, 1), (0.5, 0), (0.5, 1), (1, 0.5), (0, 0.5))
    free_x, free_y = ink.shape[1] - wide - 16, ink.shape[0] - high - 16
    spots = [(max(4, int(8 + x * free_x)), max(4, int(8 + y * free_y))) for x, y in places]
    x, y = min(spots, key=lambda xy: ink[xy[1] - 4:xy[1] + high + 4, xy[0] - 4:xy[0] + wide + 4].sum())
    x, y, pen = box[0] + x, box[1] + y, ImageDraw.Draw(picture)
    pen.rectangle((x, y, x + wide, y + high), "white", "#CCCCCC")
    for i, (name, colour) in enumerate(zip(names, colours.values())):
        pen.line((x + 8, y + 11 + 16 * i, x + 28, y + 11 + 16 * i), colour, 2)
        _put(picture, name, x + 34, y + 12 + 16 * i, across=0)


def line_chart(series, title="", x_label="", y_label="", log_y=False, size=(560, 360),
               y_range=None, pale=None):
    """Draws {label: (xs, ys)} as lines; the label "" stays out of the legend. None, NaN and infinity are gaps, and
    with log_y so are ys <= 0. `pale`, of the same form, is drawn behind, thin and light, in the colours of the lines
    of the same labels: raw numbers behind smooth ones, of which the highest and the lowest .5 % may leave the picture.
    `y_range`: (low, high), None where the data decide."""
    lines, pale = [{label: (_numbers(xs), _numbers(ys, log_y)) for label, (xs, ys) in some.items()}
                   for some in (series, pale or {})]
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(lines)}
    x, y = np.concatenate([np.zeros((2, 0)), *lines.values(), *pale.values()], axis=1)
    shown = np.isfinite(x) & np.isfinite(y)
    heights, pale_heights = [np.concatenate([[], *(ys[np.isfinite(xs + ys)] for xs, ys in some.values())])
                             for some in (lines, pale)]
    if len(pale_heights):  # a start far away from all the rest would make a flat line of it
        pale_heights = np.quantile(pale_heights, [0.005, 0.995])
    limits = _limits(x[shown], room=0.015), _limits(np.append(heights, pale_heights), log_y, y_range)
    picture, box, layer, place = _axes(size, *limits, title, x_label, y_label, log_y)
    pen = ImageDraw.Draw(layer)
    for label, line in pale.items():
        light = tuple(255 - (255 - c) // 3 for c in ImageColor.getrgb(colours[label]))
        _line(pen, *place(*line), light, FINER)
    for label, line in lines.items():
        _line(pen, *place(*line), colours[label], 7 * FINER // 4)
    if not shown.any():
        _put(layer, _text("no data yet", 13 * FINER), layer.width / 2, layer.height / 2, colour=GREY)
    picture.paste(layer.reduce(FINER), box)
    if shown.any() and any(lines):
        _legend(picture, box, layer, {label: colour for label, colour in colours.items() if label})
    return picture


def smooth(ys, window):
    """The running mean of ys, as long as ys: of the `window` numbers centred on each (at the ends, of those there
    are). What is not finite is left out; NaN where nothing is left."""
    ys, window = _numbers(ys), max(1, int(window))
    finite = np.isfinite(ys)
    sums, counts = [np.append(0, np.cumsum(v)) for v in (np.where(finite, ys, 0), finite)]
    first = np.maximum(np.arange(len(ys)) - window // 2, 0)
    last = np.minimum(np.arange(len(ys)) - window // 2 + window, len(ys))
    count = counts[last] - counts[first]
    return np.divide(sums[last] - sums[first], count, out=np.full(len(ys), np.nan), where=count > 0)


def histogram(values, bins=100, title="", x_label="", size=(560, 360), x_range=None):
    """Draws the distribution of the values: a bar's height is the share of all finite values that lie in its
    bin. The bins divide `x_range`, by default from the lowest value to the highest."""
    values = _numbers(values).ravel()
    values = values[np.isfinite(values)]
    low, high = _limits(values, given=x_range, room=0)
    counts, edges = np.histogram(values, bins, (low, high))
    shares = counts / max(len(values), 1)
    y_limits = _limits(shares[counts > 0], given=(0, None))
    x_limits = low - 0.02 * (high - low), high + 0.02 * (high - low)
    picture, box, layer, place = _axes(size, x_limits, y_limits, title, x_label, "share per bin")
    x, y = place(edges, np.append(shares, 0))
    for i in np.flatnonzero(counts):
        ImageDraw.Draw(layer).rectangle((x[i], y[i], x[i + 1] - 1, layer.height), COLOURS[0])
    if len(values) == 0:
        _put(layer, _text("no data yet", 13 * FINER), layer.width / 2, layer.height / 2, colour=GREY)
    picture.paste(layer.reduce(FINER), box)
    return picture


def surface(values, extent, points=None, fake=None, size=(300, 300), levels=12):
    """Draws a function of the plane as in Figure 1(a): steps of colour, from dark (low) to light (high), and
    a line at each of `levels` equally spaced values between its extremes; grey where it is not finite.
    values: H x W, on a grid over extent (x0, x1, y0, y1), ends included, row 0 at y0, the bottom.
    points, fake: N x 2, orange and light blue dots."""
    values, (x0, x1, y0, y1) = _numbers(values)[::-1], extent
    values = np.where(np.isfinite(values), values, np.nan)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0, 0)
    steps = Image.fromarray(((values - low) / ((high - low) or 1) * (levels + 1)).astype(np.float32))
    corners = (0.5, 0.5, steps.width - 0.5, steps.height - 0.5)  # centres of the outermost values
    width, height = size[0] * FINER, size[1] * FINER
    steps = np.asarray(steps.resize((width, height), Image.Resampling.BILINEAR, corners))
    steps = np.nan_to_num(np.clip(np.floor(steps), 0, levels), nan=-1).astype(int)
    at = np.linspace(0, len(SURFACE) - 1, levels + 1)
    shades = np.stack([np.interp(at, np.arange(len(SURFACE)), channel) for channel in zip(*SURFACE)], axis=1)
    pixels = np.append(shades, [[200, 200, 200]], axis=0)[steps]
    pixels[(steps != np.roll(steps, 1, 0)) | (steps != np.roll(steps, 1, 1))] *= 0.2
    layer = Image.fromarray(pixels.round().astype(np.uint8))
    for dots, colour in ((fake, "#B9D7F0"), (points, "#F0602A")):
        for x, y in [] if dots is None else _numbers(dots):
            if x0 <= x <= x1 and y0 <= y <= y1:
                x, y = (x - x0) / (x1 - x0) * width, (y1 - y) / (y1 - y0) * height
                ImageDraw.Draw(layer).circle((x, y), 1.7 * FINER, colour)
    picture = layer.reduce(FINER)
    ImageDraw.Draw(picture).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=GREY)
    return picture


def image_grid(images, columns=None, gap=2):
    """Images on white, row after row, `gap` pixels apart. images: uint8, N x C x H x W, C 1 or 3. The default
    number of columns is the square root of N, rounded up."""
    images = np.asarray(images.detach().cpu() if torch.is_tensor(images) else images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8, N x 1 or 3 x H x W, not {images.dtype} {images.shape}")
    images = images.repeat(3 // images.shape[1], 1).transpose(0, 2, 3, 1)
    count, high, wide, _ = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    picture = Image.new("RGB", (columns * (wide + gap) - gap, rows * (high + gap) - gap), "white")
    for i, image in enumerate(images):
        picture.paste(Image.fromarray(image), (i % columns * (wide + gap), i // columns * (high + gap)))
    return picture


def beside(rows, captions=None, row_labels=None, column_labels=None, title="", gap=12):
    """Puts rows of pictures into one figure; None is an empty cell, crossed out. captions: rows of texts,
    below the pictures; row_labels: at the left, turned; column_labels: above. Texts wrap."""
    known = [(c, *image.size) for row in rows for c, image in enumerate(row) if image] or [(0, 100, 100)]
    widths = [max([wide for i, wide, _ in known if i == c], default=known[0][1])
              for c in range(max(map(len, rows)))]
    heights = [max([image.height for image in row if image], default=known[0][2]) for row in rows]
    head = _text(title, 15, sum(widths))
    tops = [_text(text, 13, width) for text, width in zip(column_labels or [], widths)]
    sides = [_text(text, 13, height) for text, height in zip(row_labels or [], heights)]
    sides = [side.rotate(90, expand=True) for side in sides]
    notes = [[_text(text or "", 11, width) for text, width in zip(row, widths)]
             for row in [*(captions or []), *[[]] * len(rows)][:len(rows)]]
    below = [max([note.height + 4 for note in row], default=0) for row in notes]
    left = gap + max([side.width + 6 for side in sides], default=0)
    top = gap + (head.height + 6 if title else 0) + max([text.height + 4 for text in tops], default=0)
    xs = [left + sum(widths[:c]) + gap * c for c in range(len(widths))]
    ys = [top + sum(heights[:r]) + sum(below[:r]) + gap * r for r in range(len(rows))]
    size = xs[-1] + widths[-1] + gap, ys[-1] + heights[-1] + below[-1] + gap
    picture = Image.new("RGB", size, "white")
    _put(picture, head, (left + size[0] - gap) / 2, gap, down=0)
    for text, x, width in zip(tops, xs, widths):
        _put(picture, text, x + width / 2, top - 4, down=1)
    for text, y, height in zip(sides, ys, heights):
        _put(picture, text, left - 6, y + height / 2, across=1)
    for row, texts, y, height in zip(rows, notes, ys, heights):
        for text, x, width in zip(texts, xs, widths):
            _put(picture, text, x + width / 2, y + height + 4, down=0)
        for image, x, width in zip(row, xs, widths):
            if image:
                picture.paste(image, (x + (width - image.width) // 2, y))
            else:
                end_x, end_y, pen = x + width - 1, y + height - 1, ImageDraw.Draw(picture)
                pen.rectangle((x, y, end_x, end_y), "#F4F4F4", "#BBBBBB")
                pen.line((x, y, end_x, end_y, end_x, y, x, end_y), "#BBBBBB")
    return picture


def save_png(image, path):
    """Write the picture so that `path` holds, at every moment, what it held before or the whole picture."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write(path, buffer.getbuffer())
