"""runs.py: the folder of a run, its log, checkpoints and mistakes. Its pictures are in test_drawing.py."""
import json
import math
import os
import signal
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import runs


class Step(NamedTuple):
    iteration: int
    critic_loss: torch.Tensor
    wasserstein: torch.Tensor
    penalty: torch.Tensor
    generator_loss: torch.Tensor


def step(i, loss=1.0):
    return Step(i, *(torch.tensor(float(v)) for v in (loss, -i, 0.5, 2 * i)))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that makes a Run in tmp_path/run; the signals are as before when the test is over."""
    monkeypatch.setattr("sys.argv", ["train_test.py"])
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def make(*flags, columns=("score",), data=None, charts=()):
        parser = runs.flags("A test.", data="cifar10", iterations=10, batch_size=4)
        parser.add_argument("--lam", type=runs.number(0), default=10.0)
        args = parser.parse_args(["--out", str(tmp_path / "run"), "--device", "cpu", *flags])
        return runs.Run(args, "unused", columns, data, charts)
    yield make
    for s, handler in handlers.items():
        signal.signal(s, handler)


def unlock(one):
    one.lock.close()  # what the end of a process does


def test_config_and_log_have_what_the_contract_says(run, tmp_path):
    one = run("--seed", "7")
    assert one.start() == 0
    one.log(step(1))
    one.log(step(2), score=3.25)
    log = one.read_log()
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    assert header == "iteration,seconds,critic_loss,wasserstein,penalty,generator_loss,score"
    assert log["wasserstein"].tolist() == [-1, -2] and log["generator_loss"].tolist() == [2, 4]
    assert math.isnan(log["score"][0]) and log["score"][1] == 3.25
    assert 0 <= log["seconds"][0] <= log["seconds"][1] < 60
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["script"] == "train_test.py" and config["torch"] == torch.__version__
    assert config["flags"]["seed"] == 7 and config["flags"]["lam"] == 10 and config["hardware"]


def test_a_resumed_run_has_its_weights_optimiser_seconds_and_log_back(run, tmp_path):
    def networks(seed):
        torch.manual_seed(seed)
        G = torch.nn.Linear(3, 2)
        opt = torch.optim.Adam(G.parameters())
        return G, opt
    G, opt = networks(0)
    one = run()
    one.start(G=G, opt=opt)
    for i in (1, 2):
        G(torch.ones(1, 3)).sum().backward()
        opt.step()
        one.log(step(i))
    one.save(2)
    one.log(step(3))  # after the checkpoint: redone when the run goes on
    one.flush()
    with open(tmp_path / "run" / "log.csv", "a") as file:
        file.write("4,1.5,cut sho")  # the process was killed in the middle of a row
    unlock(one)

    H, opt2 = networks(1)
    two = run("--resume")
    assert two.start(G=H, opt=opt2) == 2
    assert torch.equal(G.weight, H.weight) and torch.equal(opt.state[G.weight]["exp_avg"], opt2.state[H.weight]["exp_avg"])
    assert two.read_log()["iteration"].tolist() == [1, 2]
    assert two.loaded[1] > 0 and two.seconds == two.loaded[1]
    two.log(step(3))
    assert two.read_log()["iteration"].tolist() == [1, 2, 3]


def test_first_weights_come_from_the_seed(run, tmp_path):
    drawn = []
    for name, seed in [("a", "3"), ("b", "3"), ("c", "4")]:
        run("--out", str(tmp_path / name), "--seed", seed)
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[1] != drawn[2]


def test_ctrl_c_waits_for_the_checkpoint_and_a_second_one_does_not(run, tmp_path, capsys):
    one = run("--checkpoint-seconds", "1000")
    one.start(G=torch.nn.Linear(1, 1))
    one.log(step(1))
    one.checkpoint(1)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["iteration"] == 0  # not due yet
    os.kill(os.getpid(), signal.SIGINT)  # no exception here: the iteration ends first
    one.log(step(2))
    assert not (tmp_path / "run" / "curves.png").exists()
    with pytest.raises(SystemExit) as stop:
        one.checkpoint(2)
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err
    assert Image.open(tmp_path / "run" / "curves.png").width > 500
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["iteration"] == 2
    two = run("--resume")
    two.start(G=torch.nn.Linear(1, 1))
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_good_checkpoint(run, tmp_path):
    one = run("--checkpoint-seconds", "0")
    one.start(G=torch.nn.Linear(1, 1))
    one.log(step(1))
    one.checkpoint(1)
    one.log(step(2, loss=math.nan))
    with pytest.raises(runs.Diverged, match="critic_loss is nan at iteration 2; the checkpoint of iteration 1 is kept"):
        one.checkpoint(2)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["iteration"] == 1


def test_a_full_disk_leaves_the_old_checkpoint(run, tmp_path, monkeypatch):
    one = run("--checkpoint-seconds", "0")
    one.start(G=torch.nn.Linear(1, 1))
    one.log(step(1))
    one.checkpoint(1)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    one.log(step(2))
    with pytest.raises(runs.Mistake, match="iteration 2 could not be saved .*No space left.* iteration 1 is kept"):
        one.checkpoint(2)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "checkpoint.pt", "config.json", "log.csv"]


def test_what_happens_with_the_clock_stopped_does_not_count(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    one = run()
    one.start()
    now[0] += 2
    with one.clock_stopped():
        now[0] += 50
    now[0] += 3
    one.log(step(1))
    assert one.read_log()["seconds"].tolist() == [5]


# ---------------------------------------------------------------------------------------------------- mistakes

def refused(make, *flags, match, code=2, **more):
    with pytest.raises(runs.Mistake, match=match) as mistake:
        make(*flags, **more).start(G=torch.nn.Linear(1, 1))
    assert mistake.value.exit_code == code and "\n" not in str(mistake.value)


def saved(run, **objects):
    one = run()
    one.start(**(objects or {"G": torch.nn.Linear(1, 1)}))
    one.save(0)
    unlock(one)


def test_a_folder_that_holds_a_run_is_not_overwritten(run, tmp_path):
    saved(run)
    before = (tmp_path / "run" / "log.csv").read_text()
    refused(run, match="already holds a run: add --resume")
    assert (tmp_path / "run" / "log.csv").read_text() == before


def test_a_run_killed_before_its_first_checkpoint(run, tmp_path):
    unlock(run("--seed", "1"))
    refused(run, "--resume", match="there is no checkpoint")
    unlock(run("--seed", "2"))  # it has left nothing to lose
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["flags"]["seed"] == 2
    with open(tmp_path / "run" / "log.csv", "a") as log:
        log.write("1,0.1,1,1,1,1,\n")  # a run whose checkpoint was deleted has
    refused(run, match="already holds a run: delete it")


def test_what_a_kill_while_saving_left_is_cleared_away(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".checkpoint.pt.123.tmp").write_bytes(b"half")
    run()
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "config.json", "log.csv"]


def test_a_file_system_without_locks(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    assert run().start() == 0


def test_a_log_whose_columns_have_changed_keeps_its_numbers(run, tmp_path):
    one = run(columns=["a", "b"])
    one.start()
    for i in (1, 2):
        one.log(step(i), a=10.0 * i, b=7.0)
    one.save(2)
    unlock(one)
    two = run("--resume", columns=["b", "new", "a"])
    two.start()
    log = two.read_log()
    assert log["a"].tolist() == [10, 20] and log["b"].tolist() == [7, 7] and np.isnan(log["new"]).all()
    assert log["critic_loss"].tolist() == [1, 1]


def test_weights_that_are_no_numbers_are_not_saved(run, tmp_path):
    one = run("--checkpoint-seconds", "0")
    G = torch.nn.Linear(1, 1)
    one.start(G=G)
    one.log(step(1))
    one.checkpoint(1)
    torch.nn.init.constant_(G.weight, math.nan)
    one.log(step(2))
    with pytest.raises(runs.Diverged, match="G has weights .* after iteration 2; the checkpoint of iteration 1 is kept"):
        one.checkpoint(2)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["objects"]["G"]["weight"].isfinite().all()


def test_too_little_memory_is_one_line_and_another_error_is_not_hidden(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_test.py"])
    for script in (lambda: torch.empty(2 ** 50), lambda: (_ for _ in ()).throw(MemoryError("Unable to allocate"))):
        with pytest.raises(SystemExit) as leave:
            runs.main(script)
        assert leave.value.code == 1 and "out of memory: lower --batch-size" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="single memory location"):  # a mistake in the program
        runs.main(lambda: torch.ones(1).expand(3).add_(1))


def test_out_is_a_file(run, tmp_path):
    (tmp_path / "run").write_text("mine")
    refused(run, match="is a file: choose another --out")
    refused(run, "--out", str(tmp_path / "run" / "part"), match="run is a file: choose another --out")
    assert (tmp_path / "run").read_text() == "mine"


def test_resume_without_a_checkpoint(run):
    refused(run, "--resume", match="there is no checkpoint")


def test_resume_with_other_flags(run):
    saved(run)
    refused(run, "--resume", "--iterations", "11", match="was started with --iterations 10, not 11")
    refused(run, "--resume", "--lam", "1", match="was started with --lam 10.0, not 1.0")
    run("--resume", "--data-dir", "elsewhere")  # this does not change the result


def test_resume_with_other_data(run):
    images = np.arange(6_000, dtype=np.uint8).reshape(2_000, 3)  # every second row is looked at
    one = run(data=images)
    one.start()
    unlock(one)
    unlock(run("--resume", data=torch.from_numpy(images.copy())))  # a tensor or an array, the same
    for other in (images[:-1], images[::-1], np.where(np.arange(2_000)[:, None] == 10, 0, images)):
        refused(run, "--resume", data=other, match="what cifar10 holds has changed", code=1)


def test_resume_of_another_script(run, monkeypatch):
    saved(run)
    monkeypatch.setattr("sys.argv", ["train_other.py"])
    refused(run, "--resume", match="holds a run of train_test.py")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:len(b) // 2], lambda b: b"nonsense" + b])
def test_resume_with_a_damaged_checkpoint(run, tmp_path, damage):
    saved(run)
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    refused(run, "--resume", match="cannot be read", code=1)


@pytest.mark.parametrize("config", ['{"script": ', "[]", '{"script": "train_test.py"}', '{"script": "a", "flags": 3}'])
def test_resume_with_a_damaged_config(run, tmp_path, config):
    saved(run)
    (tmp_path / "run" / "config.json").write_text(config)
    refused(run, "--resume", match="cannot be read", code=1)


def test_resume_with_a_state_that_is_none(run, tmp_path):
    saved(run)
    torch.save({"iteration": 0, "seconds": 0.0, "objects": {"G": 3}}, tmp_path / "run" / "checkpoint.pt")
    refused(run, "--resume", match="does not fit", code=1)


@pytest.mark.parametrize("log", ["", "iteration,seconds\n1,x\n", "iteration,seconds\n1\n"])
def test_a_damaged_log_is_one_line(tmp_path, log):
    (tmp_path / "log.csv").write_text(log)
    with pytest.raises(runs.Mistake, match="is damaged"):
        runs.read_log(tmp_path)


def test_parts_of_a_script_are_resumed_one_by_one(run, tmp_path):
    args = run().args
    assert runs.part(args, "a").out == f"{args.out}/a" and not runs.part(args, "a").resume
    args.resume = True
    with pytest.raises(runs.Mistake, match="there is no checkpoint"):
        runs.part(args, "a")
    (tmp_path / "run" / "a").mkdir()
    (tmp_path / "run" / "a" / "checkpoint.pt").write_bytes(b"")
    assert runs.part(args, "a").resume and not runs.part(args, "b").resume and args.resume


def test_resume_with_other_networks(run):
    saved(run, G=torch.nn.Linear(2, 2))
    refused(run, "--resume", match="does not fit", code=1)


def test_two_runs_in_one_folder(run):
    saved(run)
    one = run("--resume")
    refused(run, "--resume", match="another run is writing")
    unlock(one)
    run("--resume")


def test_a_log_that_lost_rows_is_mended_and_said(run, tmp_path, capsys):
    one = run()
    one.start(G=torch.nn.Linear(1, 1))
    for i in range(1, 6):
        one.log(step(i))
    one.save(5)
    unlock(one)
    path = tmp_path / "run" / "log.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3] + ["garbage"] + lines[4:]) + "\n")
    two = run("--resume")
    two.start(G=torch.nn.Linear(1, 1))
    assert two.read_log()["iteration"].tolist() == [1, 2, 4, 5]
    assert "has 4 of 5 rows" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--iterations", "0"], ["--iterations", "x"], ["--batch-size", "-1"], ["--seed", "-1"],
                                   ["--seed", str(2 ** 32)], ["--lam", "-1"], ["--lam", "nan"], ["--lam", "inf"],
                                   ["--device", "tpu"], ["--device", "cpu:abc"], ["--checkpoint-seconds", "-1"]])
def test_impossible_flags_exit_with_2(run, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_cuda(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--device", "cuda")
    assert stop.value.code == 2 and "no cuda device" in capsys.readouterr().err
    assert runs.device("auto") in ("cpu", "mps")


def test_main_turns_mistakes_and_file_errors_into_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/some/where/train_test.py"])
    for problem, code in [(runs.Mistake("bad flag", 2), 2), (runs.Mistake("bad\ndata"), 1),
                          (OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)]:
        def script():
            raise problem
        with pytest.raises(SystemExit) as stop:
            runs.main(script)
        err = capsys.readouterr().err
        assert stop.value.code == code and err.strip().startswith("train_test.py: ") and err.strip().count("\n") == 0
    with pytest.raises(ZeroDivisionError):  # our own mistakes keep their traceback
        runs.main(lambda: 1 / 0)


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    runs.write(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        runs.write(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_durations():
    assert [runs.duration(s) for s in (0, 42, 185, 3600 * 2 + 7 * 60, 59.7)] == ["0s", "42s", "3m05s", "2h07m", "1m00s"]


def test_curves_leave_out_what_was_not_measured_and_what_is_nothing_but_zeros(run, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(runs, "line_chart", lambda series, title, *_, **__: titles.append(title) or Image.new("RGB", (9, 9)))
    one = run(charts=[("score", ["score"])])
    one.start()
    one.log(step(1)._replace(penalty=torch.tensor(0.0)))
    one.draw_curves()
    assert titles == ["critic loss", "Wasserstein estimate"]
    one.log(step(2), score=1.0)
    one.draw_curves()
    assert titles[2:] == ["critic loss", "Wasserstein estimate", "penalty", "score"]
    assert np.isnan(one.read_log()["score"]).tolist() == [True, False]


def test_curves_are_drawn_with_a_checkpoint_every_ten_minutes(run, tmp_path):
    one = run("--checkpoint-seconds", "0")
    one.start(G=torch.nn.Linear(1, 1))
    one.log(step(1))
    one.checkpoint(1)
    assert not (tmp_path / "run" / "curves.png").exists()
    one.drawn_at -= 601
    one.log(step(2))
    one.checkpoint(2)
    assert Image.open(tmp_path / "run" / "curves.png").width > 500
