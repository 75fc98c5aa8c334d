"""What a training run needs besides the algorithm: flags, a log, checkpoints. No GAN code.

    run = runs.Run(args, columns=["held_out_loss"])        # claims the folder --out
    start = run.start(G=G, D=D, opt_G=opt_G, opt_D=opt_D)  # 0, or with --resume the iterations done
    for step in wgan_gp.train(..., start=start):
        if run.every(args.sample_every, step):
            ...                                            # measure, draw
        run.log(step, held_out_loss=...)                   # a row of log.csv, the progress line
        run.checkpoint(step)                               # once a minute. On Ctrl-C it saves and exits
    run.finish()
"""
import argparse
import contextlib
import csv
import datetime
import io
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import plots


class Mistake(Exception):
    """Something the user can fix. The message is one line: what is wrong and what to do."""

    def __init__(self, message, exit_code=1):
        super().__init__(message)
        self.exit_code = exit_code  # 2 for flags, 1 for everything else


class Diverged(Mistake):
    """A loss or a weight became NaN or infinite."""


def main(script):
    """Run script(). The user's mistakes, file errors and Ctrl-C end in one line, not in a traceback."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it is closed
    sys.stderr = sys.stderr or open(os.devnull, "w")
    try:
        script()
        return sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has left, as head does
        sys.stdout = open(os.devnull, "w")
        sys.exit(128 + 13)
    except (Mistake, OSError) as error:
        message, code = " ".join(str(error).split()), getattr(error, "exit_code", 1)
        if isinstance(error, PermissionError):
            message += ": choose another folder"
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "ried to allocate" not in str(error):
            raise
        message, code = "out of memory: choose a lower --batch-size or width, and another --out", 1
    except KeyboardInterrupt:
        message, code = "interrupted; if a checkpoint was saved, --resume continues from it", 130
    say(f"{Path(sys.argv[0]).name}: {message}")
    sys.exit(code)


def say(text, end="\n"):
    """Print a line on stderr. Ignore a closed stderr."""
    try:
        width = 79 * sys.stderr.isatty()  # covers the progress line
        print(text.ljust(width), end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")


# ---- flags ----

class Parser(argparse.ArgumentParser):
    """A parser that says in one line, without the usage, what is wrong."""

    def __init__(self, doc=None):
        super().__init__(description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def flags(doc, data, iterations, batch_size, sample_every=None, threads=None):
    """Return the parser of every training script. OMP_NUM_THREADS overrides `threads`."""
    if os.environ.get("OMP_NUM_THREADS"):
        threads = None
    parser = Parser(doc)
    add = parser.add_argument
    add("--data", type=lambda name: name.rstrip("/") or name, default=data, metavar="NAME|PATH",
        help=f"what to train on (default {data or 'see above'})")
    add("--data-dir", default="data", help="folder for downloads (default data)")
    add("--out", help="folder for the results (default: a folder in runs/)")
    add("--iterations", type=whole(1), default=iterations,
        help=f"generator updates (default {iterations or 'see above'})")
    add("--batch-size", type=whole(2), default=batch_size,
        help=f"examples per batch (default {batch_size or 'see above'})")
    add("--seed", type=whole(0, 2 ** 32), default=0, help="the same seed gives the same run")
    add("--device", type=device, default="auto", help="auto, cpu, cuda or mps (default: a GPU if possible)")
    add("--threads", type=whole(1, 1025), default=threads,
        help=f"CPU threads (default {threads or 'what torch chooses'})")
    if sample_every:
        add("--sample-every", type=whole(1), default=sample_every, metavar="N",
            help=f"iterations between samples, and what is measured with them (default {sample_every})")
    add("--resume", action="store_true", help="continue from the checkpoint in --out")
    add("--checkpoint-seconds", type=number(0), default=60, help="time between checkpoints (default 60)")
    return parser


def number(least, below=1e38, kind=float):
    """Return an argparse type: a number from `least` to `below`, which float32 can hold."""
    def parse(text):
        value = kind(text)
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least} and below {below:,}")
        return value
    parse.__name__ = {float: "number", int: "whole number"}[kind]  # for argparse's own message
    return parse


def whole(least, below=2 ** 31):
    """Return an argparse type: a whole number."""
    return number(least, below, int)


def device(name):
    """An argparse type: the name of a device that is available. "auto" picks one."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    names = [kind for kind in found if found[kind]]
    if name not in ["auto", *names]:
        raise argparse.ArgumentTypeError(f"torch finds no {name} device here: leave --device out")
    return {"auto": names[0]}.get(name, name)


def default_out(parser, args, name, flags=()):
    """Return runs/`name`, followed by those of the flags that differ from their defaults, and the seed.

    `name` is a template: {data} becomes the name of the data, {method} the value of --method.
    """
    data = {"cifar10": "cifar"}.get(args.data, Path(args.data).resolve().name)
    name = name.format(**vars(args) | {"data": data})
    for each in flags:
        value = getattr(args, each)
        if value != parser.get_default(each):
            name += flag(each)[1:]
            if value is not True:
                name += f"-{value}"
    if args.seed:
        name += f"-seed{args.seed}"
    return f"runs/{name}"


def commands(script, settings):
    """Print a shell line for each dict of flags in `settings`, with the user's other flags."""
    own = Parser()
    for name in {"commands"}.union(*settings):
        own.add_argument(flag(name), nargs="?")
    _, others = own.parse_known_args()
    for flags in settings:
        words = [word for name, value in flags.items() for word in (flag(name), str(value))]
        print(shlex.join(["python", script, *others, *words]))


def flag(name):
    """Return the flag that argparse stores under a name."""
    return "--" + name.replace("_", "-")


# ---- several processes: fast.py starts them, rank 0 alone writes and prints ----

def world():
    """Return the rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if os.environ.get("WORLD_SIZE", "") not in ("", "1"):
        raise Mistake("WORLD_SIZE is set, but this script does not support torchrun: use python", 2)
    return 0, 1


def from_rank_0(value):
    """Return rank 0's value on every rank."""
    box = [value]
    if world()[1] > 1:
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


# ---- a run ----

def part(args, name):
    """Return the flags of one of several runs of a script, in the folder `name` below --out."""
    out = Path(args.out, name)
    begun = from_rank_0([path.parent for path in Path(args.out).glob("*/checkpoint.pt")])
    if args.resume and not begun:
        raise Mistake(f"no checkpoint in {args.out}: repeat the run's flags, or leave out --resume", 2)
    resume = args.resume and out in begun  # others start at 0
    return argparse.Namespace(**{**vars(args), "out": str(out), "resume": resume})


def check_out(args):
    """Refuse --out if a run cannot start there or, with --resume, continue."""
    out = Path(args.out)
    if world()[0] > 0:
        return  # another machine need not see it
    for path in (out, *out.parents):
        if path.is_file():
            raise Mistake(f"{path} is a file: choose another --out", 2)
    saved = (out / "checkpoint.pt").is_file()
    others = [name for name in ("config.json", "log.csv", "curves.png") if (out / name).exists()]
    if others and not saved:
        raise Mistake(f"{out} holds {others[0]} and no checkpoint: choose another --out", 2)
    if args.resume and not saved:
        raise Mistake(f"no checkpoint in {out}: repeat the run's flags, or leave out --resume", 2)
    if saved and not args.resume:
        raise Mistake(f"{out} already holds a run: add --resume to go on with its flags, or choose another --out", 2)


class Run:
    """The folder of one run: config.json, log.csv, curves.png, samples/, checkpoint.pt.

    columns: those of log.csv after COLUMNS. charts: those of curves.png after CHARTS, pairs of a title
    and {column: label}. data: the training examples, which --resume compares.
    decays: the learning rate depends on --iterations. label: starts the progress line.
    """

    COLUMNS = ["iteration", "seconds", "critic_loss", "wasserstein", "penalty", "generator_loss"]
    CHARTS = [
        ("critic loss", {"critic_loss": "training", "held_out_loss": "held out"}),
        ("Wasserstein estimate", {"wasserstein": "training", "held_out_wasserstein": "held out"}),
        ("gradient penalty", {"penalty": "penalty"})]
    MAY_CHANGE = {  # on --resume
        "out", "resume", "device", "data_dir", "checkpoint_seconds", "sample_every", "measure_every", "score_every",
        "score_samples", "final_samples", "inception", "fast", "threads"}

    def __init__(self, args, columns=(), charts=(), data=None, decays=False, label=""):
        self.args, self.out, self.label = args, Path(args.out), label
        self.columns, self.charts = [*self.COLUMNS, *columns], [*self.CHARTS, *charts]
        self.rows, self.latest, self.interrupted, self.stop = [], {}, 0, 0
        self.iteration, self.kept = 0, "saved files are kept"
        if args.device == "cpu" and args.threads:
            torch.set_num_threads(args.threads)
        rank, processes = world()
        self.first = rank == 0
        given, script = json.loads(json.dumps(vars(args), default=str)), Path(sys.argv[0]).resolve()
        git = f'git --git-dir="{script.parent}/.git" rev-parse HEAD 2>{os.devnull}'
        self.config = {
            "script": script.name, "flags": given, "data": fingerprint(data), "git": os.popen(git).read().strip(),
            "python": platform.python_version(), "torch": torch.__version__, "hardware": hardware(args.device),
            "threads": torch.get_num_threads(), "processes": processes}
        self.identity = {flag(name): given[name] for name in given if name not in self.MAY_CHANGE}
        self.identity |= {"script": script.name, "columns": self.columns, "data fingerprint": self.config["data"]}
        if not decays:
            del self.identity["--iterations"]
        self.loaded = from_rank_0(self.claim() if self.first else None)
        if self.config["data"] != from_rank_0(self.config["data"]):
            raise Mistake(f"ranks {rank} and 0 have different data in {args.data}: copy one version to all")
        torch.manual_seed(args.seed)  # for the initial weights

    def claim(self):
        """Lock the folder. Return an empty checkpoint, or with --resume the one of the same run."""
        check_out(self.args)
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.out / ".lock", "a")
        try:
            import fcntl
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(f"another run writes into {self.out}: choose another --out", 2) from None
        except (ImportError, OSError) as error:  # Windows, some network file systems
            say(f"{self.out} cannot be locked ({error}): start no other run there")
        check_out(self.args)  # again: another run may have started in between
        for left in [*self.out.glob(".*.runs.tmp"), *self.out.glob("samples/.*.runs.tmp")]:  # of a killed process
            left.unlink()
        if not self.args.resume:
            return {"iteration": 0, "seconds": 0.0, "log": csv_line(self.columns), "objects": {}}
        loaded = read_checkpoint(self.out)
        for name, value in self.identity.items():
            before = loaded["run"].get(name, value)
            if before != value:
                why = {"--iterations": " (the learning rate decays over them)"}.get(name, "")
                raise Mistake(f"{self.out} was started with {name} {before}, not {value}{why}: resume with the "
                              f"same flags and data, or choose another --out", 2)
        if loaded["iteration"] > self.args.iterations:
            raise Mistake(f"{loaded['iteration']} iterations are done in {self.out}: raise --iterations", 2)
        return loaded

    def start(self, **objects):
        """Restore these modules and optimizers on --resume. Return the number of iterations done.

        From now on there is a checkpoint, and Ctrl-C is caught.
        """
        loaded, self.loaded, self.objects = self.loaded, None, objects
        try:
            for name, state in loaded["objects"].items():
                objects[name].load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise Mistake(f"the checkpoint in {self.out} does not fit these networks "
                          f"({type(error).__name__}): choose another --out") from None
        self.first_iteration = self.iteration = loaded["iteration"]
        self.seconds, self.lines = loaded["seconds"], [loaded["log"]]  # a checkpoint holds all of log.csv
        self.begun = self.clock = self.saved_at = self.flushed_at = self.drawn_at = time.monotonic()
        self.shown_at = self.begun - 25  # the first line after 5 seconds
        if self.args.resume:
            say(f"resuming {self.out} at iteration {self.iteration}")
        if self.first:
            self.save()
            self.write("log.csv", loaded["log"])  # as of the checkpoint
            self.write("config.json", json.dumps(self.config, indent=2) + "\n")
        signal.signal(signal.SIGINT, self.interrupt)
        signal.signal(signal.SIGTERM, self.interrupt)
        return self.iteration

    def interrupt(self, signum, frame):
        """Let the iteration finish on Ctrl-C and SIGTERM. Stop at once on a second Ctrl-C."""
        if self.interrupted and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.interrupted = signum
        with contextlib.suppress(OSError, ValueError):  # print is not safe in a signal handler
            os.write(sys.stderr.fileno(), b"\nstopping after this iteration (Ctrl-C again: do not save)\n")

    def stopping(self, step):
        """Note the iteration. Return the signal by which any rank was asked to stop, or 0."""
        if self.iteration != step.iteration:  # ask once per iteration
            self.iteration, signum = step.iteration, torch.tensor(self.interrupted)
            if world()[1] > 1:
                dist.all_reduce(signum, dist.ReduceOp.MAX)
            self.stop = signum.item()
        return self.stop

    def every(self, n, step, when_stopped=True):
        """Return True after each n-th iteration, the last one, and Ctrl-C. Never for n = 0, only on rank 0."""
        stop = self.stopping(step) and when_stopped
        due = step.iteration % max(n, 1) == 0 or step.iteration == self.args.iterations
        return bool(self.first and n > 0 and (due or stop))

    @contextlib.contextmanager
    def clock_stopped(self):
        """Exclude the time spent inside from the log's seconds of training."""
        if self.args.device == "cuda":
            torch.cuda.synchronize()  # work that was launched before belongs to the training
        stopped_at = time.monotonic()
        yield
        self.clock += time.monotonic() - stopped_at

    # ---- log ----

    def log(self, step, **measured):
        """Add a row to log.csv: the fields of `step`, a named tuple, and what else was measured.

        Tensors are read, which waits for the GPU, about once a second. Raises Diverged if a loss is not finite.
        """
        self.stopping(step)
        now, last = time.monotonic(), step.iteration == self.args.iterations
        self.seconds, self.clock = self.seconds + now - self.clock, now
        if not self.first:
            return
        self.rows.append({**step._asdict(), "seconds": self.seconds, **measured})
        assert self.rows[-1].keys() <= set(self.columns), f"unknown columns: {list(measured)}"
        self.latest.update({"Wasserstein": step.wasserstein, **measured})
        if last or now - self.flushed_at > 1:
            self.flush()
        if last or now - self.shown_at > (0.5 if sys.stderr.isatty() else 30):
            self.show(last)

    def flush(self):
        """Append the collected rows to log.csv."""
        rows, self.rows, self.flushed_at = self.rows, [], time.monotonic()
        text = "".join(csv_line([row.get(name, "") for name in self.columns]) for row in rows)
        self.lines.append(text)
        self.write("log.csv", text, append=True)
        for row in rows:
            if not math.isfinite(row["critic_loss"] + row["generator_loss"]):
                self.diverged(f"a loss is not finite at iteration {row['iteration']}")

    def diverged(self, what):
        raise Diverged(f"{what}: start again in another --out, with another --seed or a lower learning rate; "
                       f"{self.kept}")

    def show(self, last):
        """Print the progress line, in place on a terminal and on a new line elsewhere."""
        self.shown_at = time.monotonic()
        rate = (self.iteration - self.first_iteration) / max(self.shown_at - self.begun, 1e-9)
        left = datetime.timedelta(seconds=round((self.args.iterations - self.iteration) / rate))
        line = f"{self.label} {self.iteration}/{self.args.iterations}  {rate:.3g}/s  {left} left"
        first = "Wasserstein", "held_out_loss"  # after a score
        for name in sorted(self.latest, key=lambda name: (not name.endswith("score"), name not in first)):
            more = f"  {name.replace('_', ' ')} {float(self.latest[name]):.4g}"
            if len(line + more) >= 80:
                break
            line += more
        say(line.strip(), end="\r" if sys.stderr.isatty() and not last else "\n")

    def draw_curves(self):
        """Draw curves.png from log.csv, without columns that are empty or zero throughout."""
        self.flush()
        log, pictures = read_log(self.out), []
        for title, columns in self.charts:
            raw = {}
            for name, label in columns.items():
                there = np.isfinite(log.get(name, []))
                if there.any() and log[name][there].any():
                    raw[label] = log["iteration"][there], log[name][there]
            smoothed = {label: (x, plots.smooth(y, len(y) // 50)) for label, (x, y) in raw.items()}
            pale = {label: (x, y) for label, (x, y) in raw.items() if len(y) >= 100}
            if raw:
                x_range = 0, self.iteration
                pictures.append(plots.line_chart(smoothed, title, "iteration", pale=pale, x_range=x_range))
        if pictures:
            self.write("curves.png", plots.beside([pictures[i:i + 2] for i in range(0, len(pictures), 2)]))
        self.drawn_at = time.monotonic()

    # ---- checkpoints and pictures ----

    def checkpoint(self, step):
        """Save if it is time to. After Ctrl-C save, draw the curves and exit. Call it last in the loop."""
        stop, now, last = self.stopping(step), time.monotonic(), step.iteration == self.args.iterations
        if self.first and (stop or last or now - self.saved_at >= self.args.checkpoint_seconds):
            with self.clock_stopped():
                self.save()
                if stop or now - self.drawn_at > 600:
                    self.draw_curves()
        if stop:
            if self.first:
                say(f"saved iteration {step.iteration} (the same command with --resume goes on): {newest(self.out)}")
            sys.exit(128 + stop)

    def save(self):
        """Write checkpoint.pt. Raises Diverged rather than save NaN or infinite weights."""
        self.flush()
        networks = [thing for thing in self.objects.values() if isinstance(thing, torch.nn.Module)]
        if not all(w.isfinite().all() for network in networks for w in network.parameters()):
            self.diverged(f"a weight is not finite after iteration {self.iteration}")
        states, buffer = {name: thing.state_dict() for name, thing in self.objects.items()}, io.BytesIO()
        torch.save({"iteration": self.iteration, "seconds": self.seconds, "run": self.identity,
                    "objects": states, "log": "".join(self.lines)}, buffer)
        self.write("checkpoint.pt", buffer.getbuffer())
        self.saved_at, self.kept = time.monotonic(), f"the checkpoint of iteration {self.iteration} is kept"

    def save_images(self, step, images, columns=None):
        """Write samples/NNNNNN.png, a grid of images (N, C, H, W), uint8."""
        self.save_sample(step, plots.image_grid(images, columns))

    def save_sample(self, step, content, ending="png"):
        """Write samples/NNNNNN.png, a PIL image, or with ending="txt" a text."""
        self.write(f"samples/{step.iteration:06d}.{ending}", content)

    def write(self, name, content, append=False):
        """Write a file of the run. If that fails, say in which iteration and what is kept."""
        try:
            write(self.out / name, content, append)
        except Mistake as mistake:
            raise Mistake(f"iteration {self.iteration}: {mistake}; {self.kept}") from None

    def finish(self, open=None):
        """Draw curves.png. The last line printed names `open`, by default the newest samples."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.first:
            self.draw_curves()
            self.lock.close()
            say(f"done: {open or newest(self.out)}")


# ---- files ----

def write(path, content, append=False):
    """Write text, bytes or a PIL image atomically. append: add text at the end instead.

    A file that another program has open (Windows) is tried again for four seconds.
    """
    path, buffer = Path(path), io.BytesIO()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.runs.tmp")
    if hasattr(content, "save"):
        content.save(buffer, "png")
        content = buffer.getbuffer()
    for more_tries in reversed(range(20)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if append:
                with open(path, "a", newline="", encoding="utf-8") as file:
                    return file.write(content)
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            return os.replace(temporary, path)
        except OSError as error:
            if not isinstance(error, PermissionError) or not more_tries:
                raise Mistake(f"{path} cannot be written ({error.strerror}): make room, close the program that "
                              f"has it open, or write elsewhere") from None
        finally:
            temporary.unlink(missing_ok=True)
        time.sleep(0.2)


def csv_line(values):
    """Return a line of CSV, floats and tensors with six digits."""
    line, numbers = io.StringIO(), (float, torch.Tensor)
    cells = [f"{float(v):.6g}" if isinstance(v, numbers) else v for v in values]
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def write_csv(path, header, rows):
    """Write a table atomically, floats with six digits."""
    write(path, "".join(map(csv_line, [header, *rows])))


def read_log(folder, *needed):
    """Return log.csv in `folder` as {column: float array}, NaN where nothing was measured.

    Raises Mistake if it is damaged or lacks one of the columns `needed`.
    """
    path = Path(folder) / "log.csv"
    try:
        complete = path.read_text("utf-8-sig").rpartition("\n")[0]  # the last line may be incomplete
        header, *rows = csv.reader(complete.splitlines())
        values = np.array([[float(cell or "nan") for cell in row] for row in rows]).reshape(-1, len(header))
        if not set(needed) <= set(header):
            raise ValueError
        return dict(zip(header, values.T))
    except (FileNotFoundError, ValueError, csv.Error):
        raise Mistake(f"{path} is missing or damaged: resuming its run (--resume) restores it") from None


def newest(folder):
    """Return the path of the newest samples of a run, or else of its curves."""
    by_number = lambda path: (len(path.name), path.name)  # they have six digits or more
    return max(Path(folder).glob("samples/[0-9]*"), key=by_number, default=Path(folder) / "curves.png")


def read_config(folder):
    """Return config.json in `folder` as a dict, with at least "script" and "flags"."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        return config | {"script": config["script"], "flags": dict(config["flags"])}
    except (OSError, ValueError, TypeError, KeyError):
        raise Mistake(f"{path} is missing or damaged: resuming its run (--resume) restores it") from None


def read_checkpoint(folder):
    """Return checkpoint.pt in `folder` as a dict, on the CPU. Raises Mistake if it is damaged."""
    path = Path(folder) / "checkpoint.pt"
    try:
        damage = zipfile.ZipFile(path).testzip()  # torch.load checks no checksums
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        loaded = {name: loaded[name] for name in ("iteration", "seconds", "run", "objects", "log")}
    except Exception as error:  # torch.load raises many kinds
        damage = type(error).__name__
    if damage:
        raise Mistake(f"{path} is missing or damaged ({damage}): restore a copy, or start again in another folder")
    return loaded


# ---- small things ----

def fingerprint(data):
    """Return 8 hexadecimal digits from the shape of a tensor or array and about 1,000 of its rows."""
    if data is None:
        return None
    some = np.ascontiguousarray(data[::max(len(data) // 1_000, 1)])
    return f"{zlib.crc32(some, zlib.crc32(str(tuple(data.shape)).encode())):08x}"


def hardware(device):
    """Return the name of the GPU or the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError, IndexError):  # Linux
        return Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].split("\n")[0]
    return platform.processor() or platform.machine()
