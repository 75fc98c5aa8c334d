"""runs.py: the folder of a run, its log, checkpoints and mistakes, with a small script that trains a line."""
import builtins
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

import runs
from conftest import ctrl_c_after, objects, rows, same, states


class Step(NamedTuple):
    iteration: int
    critic_loss: torch.Tensor
    wasserstein: torch.Tensor
    penalty: torch.Tensor
    generator_loss: torch.Tensor


def train(data=None, decays=False, in_iteration=lambda run, i: None):
    """A script of 8 iterations. It measures and draws every 3."""
    parser = runs.flags("A test.", data="cifar10", iterations=8, batch_size=4)
    parser.add_argument("--lr", type=runs.number(0), default=0.1)
    parser.add_argument("--measure-every", type=runs.whole(0), default=3)
    args = parser.parse_args()
    run = runs.Run(args, "unused", ["held_out_loss", "score"], [("score", ["score"])], data, decays)
    D = torch.nn.Linear(2, 1)
    opt_D = torch.optim.Adam(D.parameters(), args.lr)
    for i in range(run.start(D=D, opt_D=opt_D), args.iterations):
        torch.manual_seed(i)
        opt_D.zero_grad()
        loss = D(torch.randn(4, 2)).square().mean()
        loss.backward()
        opt_D.step()
        in_iteration(run, i + 1)
        step, measured = Step(i + 1, loss.detach(), loss.detach() + i, torch.zeros(()), torch.zeros(())), {}
        if run.every(args.measure_every, step):
            with run.clock_stopped():
                measured["held_out_loss"] = loss.item() / 3
                run.save_images(step, torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
        if run.every(4, step, when_stopped=False):
            measured["score"] = 1_234_567
        run.log(step, **measured)
        run.checkpoint(step)
    run.finish()


@pytest.fixture
def go(call, tmp_path):
    """go(*flags, out="run", **settings of train) runs the script in tmp_path/out."""
    def go(*flags, out="run", **settings):
        def main():
            train(**settings)
        main.__module__ = "train_test"
        return call(main, "--out", tmp_path / out, *flags)
    return go


def one_line(result, code, *words):
    assert result[0] == code and "Traceback" not in result[2], result
    assert all(word in result[2].splitlines()[-1] for word in words), result[2]


# ---- what a run leaves ----

def test_a_run_leaves_what_the_contract_says(go, tmp_path):
    code, _, stderr = go("--seed", 7)
    lines = (tmp_path / "run/log.csv").read_text().splitlines()
    assert code == 0 and stderr.splitlines()[-1] == f"done: {tmp_path}/run/samples/000008.png"
    assert lines[0] == "iteration,seconds,critic_loss,wasserstein,penalty,generator_loss,held_out_loss,score"
    assert lines[4].endswith(",1234567") and [line.split(",")[0] for line in lines[1:]] == list("12345678")
    assert all(len(line.split(",")[2].replace("0.", "").lstrip("0")) <= 6 for line in lines[1:])
    log = runs.read_log(tmp_path / "run")
    assert np.flatnonzero(np.isfinite(log["held_out_loss"])).tolist() == [2, 5, 7]
    assert np.flatnonzero(np.isfinite(log["score"])).tolist() == [3, 7] and (np.diff(log["seconds"]) >= 0).all()
    assert sorted(os.listdir(tmp_path / "run")) == [
        ".lock", "checkpoint.pt", "config.json", "curves.png", "log.csv", "samples"]
    config = runs.read_config(tmp_path / "run")
    assert config["script"] == "train_test.py" and config["flags"]["seed"] == 7 and config["flags"]["lr"] == 0.1
    assert config["torch"] == torch.__version__ and config["threads"] == torch.get_num_threads() and config["hardware"]
    head = (runs.Path(__file__).parent.parent / ".git")
    assert len(config["git"]) == (40 if head.exists() else 0)


def test_the_seed_gives_the_first_weights(go, tmp_path):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        go("--seed", seed, "--iterations", 1, out=out)
    a, b, c = (states(tmp_path / out)[""]["D"] for out in "abc")
    assert same(a, b) and not same(a, c)


def test_measuring_does_not_count_as_training(go, monkeypatch, tmp_path):
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])

    def slow(run, i):
        assert len(runs.read_log(run.out)["seconds"]) == i - 1  # the log is up to date, to a second
        now[0] += 2
        with run.clock_stopped():
            now[0] += 50
    go("--iterations", 3, in_iteration=slow)
    assert runs.read_log(tmp_path / "run")["seconds"].tolist() == [2, 4, 6]
    go("--iterations", 4, "--resume", in_iteration=slow)
    assert runs.read_log(tmp_path / "run")["seconds"].tolist() == [2, 4, 6, 8]


def test_the_progress_line(go, monkeypatch):
    """Rate and time left are of this process, also after a resume; on a terminal all fit into 80 columns."""
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])

    def slow(run, i):
        now[0] += 20 * 60
    with ctrl_c_after(4):
        go(in_iteration=slow)
    lines = go("--resume", "--iterations", 10, in_iteration=slow)[2].splitlines()
    assert lines[1].startswith("5/10  0.000833/s  1:40:00 left  Wasserstein ") and "score" not in lines[1]
    assert "  score 1.235e+06" in lines[4]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    stderr = go("--resume", "--iterations", 12, in_iteration=slow)[2]
    shown = [line for line in stderr.replace("\r", "\n").splitlines() if "/s  " in line]
    assert stderr.count("\r") == 1 and len(shown) == 2 and all(len(line) == 79 for line in shown)


def test_curves_leave_out_what_is_empty_or_zero(go, monkeypatch, tmp_path):
    titles = []

    def line_chart(series, title, *_, **__):
        titles.append((title, list(series)))
        return Image.new("RGB", (9, 9))
    monkeypatch.setattr(runs.plots, "line_chart", line_chart)
    go("--measure-every", 0, "--iterations", 3)
    assert titles == [("critic loss", ["training"]), ("Wasserstein estimate", ["training"]), ("score", ["score"])]
    titles.clear()

    def ten_minutes_later(run, i):
        run.drawn_at -= 601 * (i == 2)
    go("--checkpoint-seconds", 0, out="b", in_iteration=ten_minutes_later)
    assert len(titles) == 2 + 3 and titles[2] == ("critic loss", ["training", "held out"])


# ---- stopping and going on ----

@pytest.mark.parametrize("stop", [2, 3, 5])
def test_ctrl_c_measures_draws_and_saves_and_resume_goes_on_bit_for_bit(go, tmp_path, stop):
    go(out="whole")
    with ctrl_c_after(stop):
        code, _, stderr = go()
    picture = tmp_path / f"run/samples/00000{stop}.png"
    assert code == 130 and stderr.splitlines()[-1].endswith(str(picture)) and picture.exists()
    assert (tmp_path / "run/curves.png").exists()
    log = runs.read_log(tmp_path / "run")
    assert len(log["iteration"]) == stop and np.isfinite(log["held_out_loss"][-1]) and np.isnan(log["score"][-1])
    assert go("--resume")[0] == 0
    assert same(states(tmp_path / "run"), states(tmp_path / "whole"))
    cut, whole = rows(tmp_path / "run")[""], rows(tmp_path / "whole")[""]
    cut[stop - 1]["held_out_loss"] = whole[stop - 1]["held_out_loss"]  # measured because of Ctrl-C
    assert cut == whole


def test_a_second_ctrl_c_stops_at_once_and_sigterm_twice_does_not(go, tmp_path):
    for signum, code, saved in ((signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 2)):
        def press_twice(run, i):
            for _ in range(2 * (i == 2)):
                os.kill(os.getpid(), signum)
        assert go(out=str(code), in_iteration=press_twice)[0] == code
        assert objects(tmp_path / str(code))[""]["iteration"] == saved


def test_a_longer_run_is_the_one_that_was_started_longer(go, tmp_path):
    go(out="whole")
    go("--iterations", 5)
    one_line(go("--resume", "--iterations", 4), 2, "--iterations 5, not 4", "5 are done")
    assert go("--resume", "--iterations", 8)[0] == 0
    assert same(states(tmp_path / "run"), states(tmp_path / "whole"))
    assert runs.read_config(tmp_path / "run")["flags"]["iterations"] == 8
    one_line(go("--resume", "--iterations", 9, decays=True), 2, "--iterations 8, not 9", "learning rate")


def test_a_log_that_was_damaged_is_as_before_after_a_resume(go, tmp_path):
    path = tmp_path / "run/log.csv"
    with ctrl_c_after(5):
        go()
    good = path.read_text()
    for damaged in (good + "6,1.5,cut sho", "\ufeff" + good, good.replace("iteration", "iterations"), "", None,
                    good.replace("\n3,", "\nthree,"), good.replace(",", ";")):
        path.unlink()
        if damaged is not None:
            path.write_text(damaged)
        assert go("--resume", "--iterations", 5)[0] == 0 and path.read_text() == good


def test_a_process_that_was_killed_leaves_nothing_behind(go, tmp_path):
    """Only what write() left is removed."""
    with ctrl_c_after(2):
        go()
    for name in (".checkpoint.pt.123.runs.tmp", "samples/.000001.png.9.runs.tmp", ".mine.tmp"):
        (tmp_path / "run" / name).write_bytes(b"half")
    go("--resume")
    assert not list(tmp_path.rglob("*.runs.tmp")) and (tmp_path / "run/.mine.tmp").exists()


def test_parts_of_a_script_are_resumed_one_by_one(go, tmp_path, monkeypatch):
    go(out="all/a")
    monkeypatch.setattr("sys.argv", ["train_test.py", "--out", str(tmp_path / "all"), "--resume"])
    args = runs.flags("", "", 1, 2).parse_args()
    assert runs.part(args, "a").out == f"{tmp_path}/all/a" and runs.part(args, "a").resume
    assert not runs.part(args, "b").resume and args.resume


# ---- refusals ----

@pytest.mark.parametrize("flags, settings, words", [
    ([], {}, ["already holds a run", "--resume"]),
    (["--resume", "--seed", "1"], {}, ["--seed 0, not 1"]),
    (["--resume", "--lr", "1"], {}, ["--lr 0.1, not 1.0"]),
    (["--resume"], {"data": np.zeros((9, 2))}, ["data fingerprint"])])
def test_what_does_not_continue_a_run_is_refused(go, tmp_path, flags, settings, words):
    go(data=np.ones((9, 2)))
    before = (tmp_path / "run/checkpoint.pt").read_bytes(), (tmp_path / "run/log.csv").read_text()
    one_line(go(*flags, **{"data": np.ones((9, 2)), **settings}), 2, *words)
    assert before == ((tmp_path / "run/checkpoint.pt").read_bytes(), (tmp_path / "run/log.csv").read_text())
    assert go("--resume", "--checkpoint-seconds", 3, "--measure-every", 2, data=torch.ones(9, 2).double())[0] == 0


def test_the_run_of_another_script_is_refused(go, call, tmp_path):
    go()
    one_line(call(train, "--out", tmp_path / "run", "--resume"), 2, "script train_test.py, not test_runs.py")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:len(b) // 2], lambda b: b"x" * 500, "one bit"])
def test_a_damaged_checkpoint_is_refused(go, tmp_path, damage):
    go()
    path = tmp_path / "run/checkpoint.pt"
    good = path.read_bytes()
    weights = objects(tmp_path / "run")[""]["objects"]["D"]["weight"].numpy().tobytes()
    flipped = bytearray(good)
    flipped[good.index(weights)] ^= 64  # torch.load does not see this
    path.write_bytes(bytes(flipped) if damage == "one bit" else damage(good))
    one_line(go("--resume"), 1, "checkpoint.pt is damaged", "another --out")


def test_a_checkpoint_cannot_run_code(go, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)
    go()
    torch.save(Malicious(), tmp_path / "run/checkpoint.pt")
    one_line(go("--resume"), 1, "checkpoint.pt is damaged")
    assert not (tmp_path / "owned").exists()


def test_the_checkpoint_of_another_run_is_refused(go, tmp_path):
    go()
    go("--seed", 1, out="other")
    shutil.copy(tmp_path / "other/checkpoint.pt", tmp_path / "run/checkpoint.pt")
    one_line(go("--resume"), 2, "--seed 1, not 0")


@pytest.mark.parametrize("name", ["config.json", "log.csv", "curves.png"])
def test_files_that_are_not_of_a_run_are_kept(go, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    one_line(go(), 1, "not the config.json of a run", "another folder")
    assert os.listdir(tmp_path / "run") == [name] and (tmp_path / "run" / name).read_text() == "mine"


def test_folders_in_which_no_run_can_start(go, tmp_path):
    one_line(go("--resume"), 2, "no checkpoint", "leave out --resume")
    go("--iterations", 1)
    (tmp_path / "run/checkpoint.pt").unlink()
    one_line(go(), 2, "without its checkpoint")
    shutil.rmtree(tmp_path / "run/samples")
    (tmp_path / "run/curves.png").unlink()
    assert go()[0] == 0  # as if it had been killed before the first checkpoint
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/run"):
        one_line(go(out=out), 2, "file is a file: choose another --out")


def test_two_runs_in_one_folder(go, tmp_path, monkeypatch):
    results = []

    def start_another(run, i):
        if i == 2:
            results.append(go("--resume"))
    assert go(in_iteration=start_another)[0] == 0
    one_line(results[0], 2, "another run writes into", "another --out")
    monkeypatch.setattr(runs.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    result = go(out="unlocked")
    assert result[0] == 0 and "cannot be locked (No locks available)" in result[2]


# ---- failures ----

@pytest.mark.parametrize("where", ["loss", "weights"])
def test_nan_stops_the_run_and_the_good_checkpoint_is_kept(go, tmp_path, where):
    def spoil(run, i):
        if i == 3 and where == "weights":
            torch.nn.init.constant_(run.objects["D"].weight, math.nan)
        if i == 3 and where == "loss":
            run.log(Step(3, *[torch.tensor(math.inf)] * 4))
    one_line(go("--checkpoint-seconds", 0, in_iteration=spoil), 1, "iteration 3", "checkpoint of iteration 2 is kept",
             "lower learning rate")
    assert objects(tmp_path / "run")[""]["iteration"] == 2
    assert all(w.isfinite().all() for w in states(tmp_path / "run")[""]["D"].values())


def failing(monkeypatch, name, error, times):
    """Let writing files of this name fail so many times. Returns a list as long as the times it did."""
    failed, replace, real_open = [], os.replace, builtins.open

    def fail_on(path):
        if str(path).endswith(name) and len(failed) < times:
            failed.append(path)
            raise type(error)(*error.args)

    def failing_replace(source, target):
        fail_on(target)
        return replace(source, target)

    def failing_open(path, mode="r", *args, **kwargs):
        if mode == "a":
            fail_on(path)
        return real_open(path, mode, *args, **kwargs)
    monkeypatch.setattr(os, "replace", failing_replace)
    monkeypatch.setattr(builtins, "open", failing_open)
    return failed


@pytest.mark.parametrize("name", ["log.csv", "000003.png", "checkpoint.pt", "curves.png"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_with_room(go, tmp_path, monkeypatch, name):
    go(out="whole")

    def fill_up(run, i):
        if i == 3:
            failing(patch, name, OSError(28, "No space left on device"), 99)
    with monkeypatch.context() as patch:
        result = go("--checkpoint-seconds", 0, in_iteration=fill_up)
    iteration = 8 if name == "curves.png" else 3
    one_line(result, 1, f"iteration {iteration}:", f"{name} cannot be written (No space left", "make room", "is kept")
    assert not list(tmp_path.rglob("*.tmp"))
    assert go("--resume")[0] == 0
    assert same(states(tmp_path / "run"), states(tmp_path / "whole"))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.parametrize("name", ["log.csv", "checkpoint.pt"])
def test_a_file_that_another_program_has_open_is_tried_again(go, monkeypatch, name):
    monkeypatch.setattr(runs.time, "sleep", lambda _: None)
    for times, code in ((3, 0), (10 ** 6, 1)):
        def open_elsewhere(run, i):
            if i == 3:
                failed.append(failing(patch, name, PermissionError(13, "Access is denied"), times))
        failed = []
        with monkeypatch.context() as patch:
            result = go(out=str(code), in_iteration=open_elsewhere)
        assert result[0] == code and len(failed[0]) >= 3
    one_line(result, 1, f"{name} cannot be written (Access is denied): close it in the program")
    assert "room" not in result[2]


@pytest.mark.parametrize("kind", ["closed", "pipe without a reader", "full"])
def test_a_run_goes_on_without_standard_error(go, tmp_path, monkeypatch, kind):
    def take_away(run, i):
        if i == 3:
            read, write = os.pipe()
            os.close(read)
            gone = {"pipe without a reader": write, "full": "/dev/full"}
            monkeypatch.setattr(sys, "stderr", open(gone[kind], "w", buffering=1))
            runs.say("nobody reads this")
    if kind == "closed":
        monkeypatch.setattr(sys, "stderr", None)
    assert go(**{"in_iteration": take_away} if kind != "closed" else {})[0] == 0
    assert objects(tmp_path / "run")[""]["iteration"] == 8 and (tmp_path / "run/curves.png").exists()


def test_commands_for_a_reader_that_leaves(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", open(write, "w"))
    with pytest.raises(SystemExit) as leave:
        runs.main(lambda: print("a command"))
    assert leave.value.code == 141
    sys.stdout.flush()  # at exit


def test_main_makes_one_line_of_mistakes(call):
    def problem(error):
        def script():
            raise error
        return call(script)
    one_line(problem(runs.Mistake("bad flag", 2)), 2, "bad flag")
    assert problem(runs.Mistake("bad\ndata"))[2] == "test_runs.py: bad data\n"
    one_line(problem(OSError(28, "No space left on device")), 1, "No space left")
    one_line(problem(KeyboardInterrupt()), 130, "--resume")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
        one_line(problem(error), 1, "out of memory", "--batch-size")
    one_line(call(lambda: torch.empty(2 ** 50)), 1, "out of memory")
    for bug in (ZeroDivisionError, RuntimeError):
        with pytest.raises(bug):
            problem(bug("a bug keeps its traceback"))


# ---- several processes ----

def one_of_two(rank, folder, queue):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    sys.argv = ["train_test.py", "--out", str(folder / "run"), "--device", "cpu", "--iterations", "50"]
    sys.stdout = sys.stderr = io.StringIO()
    done = []

    def stop_rank_1(run, i):
        done.append(i)
        assert run.first == (rank == 0)
        if i == 4 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
    try:
        runs.main(lambda: train(in_iteration=stop_rank_1))
    except SystemExit as leave:
        queue.put((rank, leave.code, done[-1]))


def test_a_stop_asked_for_on_one_process_stops_both(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=one_of_two, args=(rank, tmp_path, queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    results = sorted(queue.get(timeout=60) for _ in processes)
    assert results == [(0, 143, 4), (1, 143, 4)]
    assert objects(tmp_path / "run")[""]["iteration"] == 4 and len(rows(tmp_path / "run")[""]) == 4
    for process in processes:
        process.kill()


def test_other_data_on_another_machine_are_refused(go, monkeypatch):
    monkeypatch.setattr(runs, "from_rank_0", lambda own: (own[0], "12345678"))
    one_line(go(data=np.ones((3, 2))), 1, "other data", "copy them to all machines")


@pytest.mark.parametrize("size, code", [("", 0), ("1", 0), ("2", 2), ("many", 2)])
def test_torchrun_for_a_script_of_one_process(go, monkeypatch, size, code):
    monkeypatch.setenv("WORLD_SIZE", size)
    result = go()
    assert result[0] == code
    if code:
        one_line(result, 2, "WORLD_SIZE", "use python")


# ---- flags and files ----

@pytest.mark.parametrize("flags", [
    ["--iterations", "0"], ["--iterations", "x"], ["--iterations", str(2 ** 63)], ["--batch-size", "1"],
    ["--seed", "-1"], ["--seed", str(2 ** 32)],
    ["--lr", "-1"], ["--lr", "nan"], ["--lr", "inf"], ["--lr", "1e39"], ["--device", "tpu"],
    ["--device", "cpu:0"], ["--checkpoint-seconds", "-1"], ["--threads", "0"], ["--iter", "3"]])
def test_impossible_flags(go, tmp_path, flags):
    one_line(go(*flags), 2, flags[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_cuda(go):
    one_line(go("--device", "cuda"), 2, "no cuda device here: leave --device out")
    assert runs.device("auto") in ("cpu", "mps")


def test_threads(go, monkeypatch):
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert runs.flags("", "", 1, 2, threads=1).parse_args([]).threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert runs.flags("", "", 1, 2, threads=1).parse_args([]).threads is None
    go()
    go("--threads", 2, out="b")
    assert used == [2]


def test_commands_replace_their_own_flags(monkeypatch, capsys):
    given = ["train_x.py", "--commands", "9", "--data", "my photos", "--beta1", "1", "--lr", "2"]
    monkeypatch.setattr("sys.argv", given)
    runs.commands("train_x.py", [{"beta1": 0.5, "out": "a b"}, {"one_sided": 3}])
    assert capsys.readouterr().out.splitlines() == [
        "python train_x.py --data 'my photos' --lr 2 --beta1 0.5 --out 'a b'",
        "python train_x.py --data 'my photos' --lr 2 --one-sided 3"]


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_write_is_atomic(tmp_path, monkeypatch, error, fails):
    runs.write(tmp_path / "a.txt", "old")
    left = []

    def fail(*_):
        left.extend(tmp_path.glob(".a.txt.*.runs.tmp"))  # what start() removes after a kill
        raise error
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises((runs.Mistake, KeyboardInterrupt)):
        runs.write(tmp_path / "a.txt", "new")
    assert len(left) == 1
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_tables_and_pictures(tmp_path):
    runs.write_csv(tmp_path / "log.csv", ["a", "b"], [[1_234_567, 1 / 3], [2, float("nan")]])
    assert (tmp_path / "log.csv").read_text() == "a,b\n1234567,0.333333\n2,nan\n"
    assert np.isnan(runs.read_log(tmp_path)["b"]).tolist() == [False, True]
    runs.save_picture(Image.new("RGB", (8, 8), "red"), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("text", [None, "", "iteration,seconds\n1,x\n", "iteration,seconds\n1\n"])
def test_a_damaged_log_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "log.csv").write_text(text)
    with pytest.raises(runs.Mistake, match="missing or damaged.*--resume"):
        runs.read_log(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"script": "a"}', '{"script": "a", "flags": 3}', "\0"])
def test_a_damaged_config_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(runs.Mistake, match="missing, or is not the config.json of a run"):
        runs.read_config(tmp_path)


def test_durations_and_fingerprints():
    assert [runs.duration(s) for s in (0, 42, 3600 * 2 + 7 * 60, 59.7)] == ["0:00:00", "0:00:42", "2:07:00", "0:01:00"]
    images = np.arange(6_000, dtype=np.uint8).reshape(2_000, 3)
    prints = {runs.fingerprint(x) for x in (images, images[:-1], images[::-1], images.reshape(2_000, 1, 3))}
    assert len(prints) == 4 and runs.fingerprint(torch.from_numpy(images)) in prints
