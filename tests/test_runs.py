"""runs.py: the folder of a run, its log, checkpoints and mistakes, with a small script that trains a line."""
import builtins
import io
import math
import multiprocessing
import os
import re
import signal
import sys
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
    run = runs.Run(args, ["held_out_loss", "score"], [("score", {"score": "score"})], data, decays)
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
    def go(*flags, out="run", script="train_test", **settings):
        def main():
            train(**settings)
        main.__module__ = script
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
    head = runs.Path(__file__).parent.parent / ".git"
    assert len(config["git"]) == (40 if head.exists() else 0)
    for out, seed in (("same", 7), ("other", 8)):
        go("--seed", seed, out=out)
    assert same(states(tmp_path / "run"), states(tmp_path / "same"))
    assert not same(states(tmp_path / "run"), states(tmp_path / "other"))


@pytest.fixture
def now(monkeypatch):
    """The time in seconds, in a list, which stands still unless a test changes it."""
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    return now


def test_measuring_does_not_count_as_training(go, now, tmp_path):
    def slow(run, i):
        assert len(runs.read_log(run.out)["seconds"]) == i - 1  # the log is up to date, to a second
        now[0] += 2
        with run.clock_stopped():
            now[0] += 50
    go("--iterations", 3, in_iteration=slow)
    assert runs.read_log(tmp_path / "run")["seconds"].tolist() == [2, 4, 6]
    go("--iterations", 4, "--resume", in_iteration=slow)
    assert runs.read_log(tmp_path / "run")["seconds"].tolist() == [2, 4, 6, 8]


def test_the_progress_line(go, now, monkeypatch):
    """Rate and time left are of this process, also after a resume. On a terminal all fit into 80 columns."""
    def slow(run, i):
        now[0] += 20 * 60
    with ctrl_c_after(4):
        go(in_iteration=slow)
    lines = go("--resume", "--iterations", 10, in_iteration=slow)[2].splitlines()
    assert lines[1].startswith("5/10  0.000833/s  1:40:00 left  Wasserstein ") and "score" not in lines[1]
    assert "left  score 1.235e+06  Wasserstein" in lines[4]

    def quick(run, i):
        now[0] += 1.5
    lines = go("--iterations", 30, out="quick", in_iteration=quick)[2].splitlines()
    assert [line.split("/")[0] for line in lines[:-1]] == ["4", "25", "30"]  # after 5 s, then every 30
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    stderr = go("--resume", "--iterations", 12, in_iteration=slow)[2]
    shown = [line for line in stderr.replace("\r", "\n").splitlines() if "/s  " in line]
    assert stderr.count("\r") == 1 and len(shown) == 2 and all(len(line) == 79 for line in shown)
    stderr = go(out="more", in_iteration=lambda run, i: run.latest.update(train_loss=1.0))[2]
    assert re.search(r"8/8 .* score \S+  Wasserstein \S+ *\n", stderr)  # other measurements only if there is room


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
    assert code == 130 and picture.exists() and (tmp_path / "run/curves.png").exists()
    assert stderr.splitlines()[-1] == f"saved iteration {stop} (the same command with --resume goes on): {picture}"
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


# ---- refusals ----

@pytest.mark.parametrize("flags, settings, words", [
    ([], {}, ["already holds a run", "--resume"]),
    (["--resume", "--seed", "1"], {}, ["--seed 0, not 1"]),
    (["--resume", "--lr", "1"], {}, ["--lr 0.1, not 1.0"]),
    (["--resume", "--iterations", "4"], {}, ["8 iterations are done", "raise --iterations"]),
    (["--resume"], {"data": np.zeros((9, 2))}, ["data fingerprint"]),
    (["--resume"], {"script": "train_other"}, ["script train_test.py, not train_other.py"])])
def test_what_does_not_continue_a_run_is_refused(go, tmp_path, flags, settings, words):
    go(data=np.ones((9, 2)))
    before = (tmp_path / "run/checkpoint.pt").read_bytes(), (tmp_path / "run/log.csv").read_text()
    one_line(go(*flags, **{"data": np.ones((9, 2)), **settings}), 2, *words)
    assert before == ((tmp_path / "run/checkpoint.pt").read_bytes(), (tmp_path / "run/log.csv").read_text())
    assert go("--resume", "--checkpoint-seconds", 3, "--measure-every", 2, data=torch.ones(9, 2).double())[0] == 0


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "one bit", "code"])
def test_a_damaged_checkpoint_is_refused_and_cannot_run_code(go, tmp_path, monkeypatch, damage):
    go()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run/checkpoint.pt"
    good = path.read_bytes()
    weights = objects(tmp_path / "run")[""]["objects"]["D"]["weight"].numpy().tobytes()
    flipped = bytearray(good)
    flipped[good.index(weights)] ^= 64  # torch.load does not see this
    if damage == "code":
        torch.save(Malicious(), path)
    else:
        path.write_bytes({"empty": b"", "half": good[:len(good) // 2], "text": b"x" * 500, "one bit": flipped}[damage])
    one_line(go("--resume"), 1, "checkpoint.pt is missing or damaged", "another folder")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["config.json", "log.csv", "curves.png"])
def test_files_that_are_not_of_a_run_are_kept(go, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    for flags in ([], ["--resume"]):
        one_line(go(*flags), 2, f"holds {name} and no checkpoint: choose another --out")
    assert os.listdir(tmp_path / "run") == [name] and (tmp_path / "run" / name).read_text() == "mine"


def test_folders_in_which_no_run_can_start(go, tmp_path, monkeypatch):
    one_line(go("--resume"), 2, "no checkpoint", "leave out --resume")
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "start", lambda *_, **__: 1 / 0)
        pytest.raises(ZeroDivisionError, go)
    assert go()[0] == 0  # a run that ended before its first checkpoint is no run
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/run"):
        one_line(go(out=out), 2, "file is a file: choose another --out")


def test_a_folder_without_locks(go, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    result = go()
    assert result[0] == 0 and "cannot be locked ([Errno 37] No locks available)" in result[2]


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


FULL, BUSY = OSError(28, "No space left on device"), PermissionError(13, "Access is denied")


@pytest.mark.parametrize("name, error", [
    ("log.csv", FULL), ("000003.png", FULL), ("checkpoint.pt", FULL), ("curves.png", FULL), ("log.csv", BUSY),
    ("checkpoint.pt", BUSY)])
def test_a_file_that_cannot_be_written_is_one_line_and_resume_goes_on(go, tmp_path, monkeypatch, name, error):
    """A full disk, or a file that another program has open, which is tried again for some seconds."""
    monkeypatch.setattr(runs.time, "sleep", lambda _: None)
    for out, times in (("whole", 3 * (error is BUSY)), ("run", 10 ** 6)):
        def fail_from_now_on(run, i):
            if i == 3:
                failed.append(failing(patch, name, error, times))
        failed = []
        with monkeypatch.context() as patch:
            result = go("--checkpoint-seconds", 0, out=out, in_iteration=fail_from_now_on)
        assert (result[0] == 0) == (out == "whole") and len(failed[0]) >= min(times, 1 + 2 * (error is BUSY))
    iteration = 8 if name == "curves.png" else 3
    says = f"{name} cannot be written ({error.strerror}): make room, close the program that has it open"
    one_line(result, 1, f"iteration {iteration}:", says, "is kept")
    assert not list(tmp_path.rglob("*.tmp"))
    assert go("--resume")[0] == 0
    assert same(states(tmp_path / "run"), states(tmp_path / "whole"))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


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
    monkeypatch.setattr(runs, "from_rank_0", lambda own: own if isinstance(own, dict) else "12345678")
    one_line(go(data=np.ones((3, 2))), 1, "different data", "copy one version to all")


@pytest.mark.parametrize("size, code", [("", 0), ("1", 0), ("2", 2), ("many", 2)])
def test_torchrun_for_a_script_of_one_process(go, monkeypatch, size, code):
    monkeypatch.setenv("WORLD_SIZE", size)
    result = go()
    assert result[0] == code
    if code:
        one_line(result, 2, "WORLD_SIZE", "use python")


# ---- flags and files ----

@pytest.mark.parametrize("flags, says", [
    ("--iterations 0", "0 must be at least 1 and below 2,147,483,648"),
    ("--iterations 9223372036854775808", "must be at least 1 and below 2,147,483,648"),
    ("--iterations x", "invalid whole number value: 'x'"), ("--batch-size 1", "1 must be at least 2"),
    ("--seed -1", "must be at least 0"), ("--seed 4294967296", "below 4,294,967,296"),
    ("--lr -1", "must be at least 0"), ("--lr nan", "nan must be"), ("--lr inf", "inf must be"),
    ("--lr 1e39", "below 1e+38"), ("--device tpu", "no tpu device"), ("--device cpu:0", "no cpu:0 device"),
    ("--checkpoint-seconds -1", "must be at least 0"), ("--threads 0", "at least 1"), ("--iter 3", "--iter 3"),
    pytest.param("--device cuda", "no cuda device here: leave --device out",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"))])
def test_impossible_flags_are_one_line_without_the_usage(go, tmp_path, flags, says):
    code, _, stderr = go(*flags.split())
    line, = stderr.splitlines()
    assert code == 2 and line.startswith("train_test.py: error: ") and flags.split()[0] in line and says in line
    assert not (tmp_path / "run").exists()


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
    runs.write_csv(tmp_path / "log.csv", ["a", 'b, "c"'], [[1_234_567, 1 / 3], [2, float("nan")]])
    assert (tmp_path / "log.csv").read_text() == 'a,"b, ""c"""\n1234567,0.333333\n2,nan\n'
    assert np.isnan(runs.read_log(tmp_path)['b, "c"']).tolist() == [False, True]
    runs.write(tmp_path / "a.png", Image.new("RGB", (8, 8), "red"))
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("read, name, text", [
    *[(lambda folder: runs.read_log(folder, "seconds"), "log.csv", text) for text in (
        None, "", "iteration,seconds\n1,x\n", "iteration,seconds\n1\n", "iteration,second\n1,2\n")],
    *[(runs.read_config, "config.json", text) for text in (
        None, "{", "[]", '{"script": "a"}', '{"script": "a", "flags": 3}', "\0")]])
def test_a_damaged_file_is_one_line(tmp_path, read, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(runs.Mistake, match=f"{name} is missing.*(--resume|restore)"):
        read(tmp_path)


def test_fingerprints():
    images = np.arange(6_000, dtype=np.uint8).reshape(2_000, 3)
    prints = {runs.fingerprint(x) for x in (images, images[:-1], images[::-1], images.reshape(2_000, 1, 3))}
    assert len(prints) == 4 and runs.fingerprint(torch.from_numpy(images)) in prints
