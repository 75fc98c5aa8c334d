"""What the tests of the scripts share: calling one, and comparing what two runs left behind."""
import contextlib
import csv
import importlib
import os
import signal
from pathlib import Path

import pytest
import torch

import runs

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)  # the networks of the tests are too small for more


@pytest.fixture
def call(monkeypatch, capsys):
    """call(script, *flags) runs a script in this process as from the command line.

    script: the name of a file, or a function. Returns (exit code, standard output, standard error).
    """
    def call(script, *flags):
        if not callable(script):
            script = importlib.import_module(Path(script).stem).main
        path = Path(__file__).resolve().parent.parent / f"{script.__module__}.py"
        monkeypatch.setattr("sys.argv", [str(path), "--device", "cpu", *map(str, flags)])
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        code = 0
        try:
            runs.main(script)
        except SystemExit as leave:
            code = leave.code or 0
        finally:
            for s, handler in handlers.items():
                signal.signal(s, handler)  # a run's own handler would keep its folder locked
        return code, *capsys.readouterr()
    return call


def below(folder, name):
    """The files of this name in a folder and below it: {name of the folder a file is in, "" for the first: path}."""
    return {path.parent.name if path.parent != folder else "": path for path in sorted(folder.rglob(name))}


def objects(folder):
    """What the checkpoints below a folder hold."""
    return {where: torch.load(path, weights_only=True) for where, path in below(folder, "checkpoint.pt").items()}


def states(folder):
    """The states of networks and optimizers in the checkpoints below a folder."""
    return {where: held["objects"] for where, held in objects(folder).items()}


def rows(folder):
    """The rows of the logs below a folder without the seconds, which differ from run to run."""
    found = {}
    for where, path in below(folder, "log.csv").items():
        with open(path) as file:
            found[where] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return found


def same(a, b):
    """Are two states of tensors, numbers, lists and dicts the same, bit for bit?"""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@contextlib.contextmanager
def ctrl_c_after(iteration, folder=None):
    """Inside, Ctrl-C is pressed during this iteration, after which the run stops. folder: of this run only."""
    stopping = runs.Run.stopping

    def press_ctrl_c(self, step):
        if folder in (None, self.out.name) and step.iteration == iteration != self.iteration:
            os.kill(os.getpid(), signal.SIGINT)
        return stopping(self, step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Run, "stopping", press_ctrl_c)
        yield
