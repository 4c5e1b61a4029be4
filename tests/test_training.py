"""Training through the public command lines: exact resume, repeatable numbers, clear refusals."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import refused, write_checkpoint, write_official_set
from filelock import FileLock

from dataset.faces import load_faces
from dataset.landmarks import to_ibug_68
from models.checkpoint import load_model, read
from models.vanilla import BaselineSepDyBN, released_state_dict
from training import recipe
from training import run as run_module
from training.run import Run
from utils.files import UserError

SEPBN = "trainBaselineSepDyBN.py"
# 3 steps an epoch on the 12 synthetic faces
SHORT = "--width 2 --epochs 4 --batch-size 4 --lr 0.02".split()
STILL = "--lr 0 --weight-decay 0 --epochs 1".split()  # but for the schedule's floor of 1e-10
TIMES = ("images_per_s", "seconds")
FOLDER = Path("checkpoints/baseline")


@pytest.fixture(autouse=True)
def in_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs go to checkpoints/ in the current folder


@pytest.fixture
def train(run_script, prepared_set):
    """Run a training script on the synthetic faces -> (exit code, stdout, stderr)."""

    def run(*argv, script="trainBaseline.py"):
        return run_script(script, "--data", prepared_set, *SHORT, *argv)

    return run


@pytest.fixture
def train_until(train, monkeypatch):
    """Start a run and send it a signal while it is in its ``step``-th training step."""

    def run(step, *argv, number=signal.SIGTERM, **options):
        with monkeypatch.context() as patch:
            signal_at(patch, step, number)
            code, output, _ = train(*argv, **options)

        assert code == 128 + number and f"stopped at step {step}," in output

    return run


def signal_at(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    original, calls = Run.after_step, []

    def after_step(self, i, loss):
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        original(self, i, loss)

    monkeypatch.setattr(Run, "after_step", after_step)


def weights(run: str) -> dict[str, torch.Tensor]:
    return read(f"checkpoints/{run}/final.pt")["model"]


def log(run: str) -> list[dict]:
    with open(f"checkpoints/{run}/log.csv") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_ending(one: str, other: str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert log(one) == log(other)


def assert_near(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("script", ["trainBaseline.py", SEPBN])
def test_a_run_leaves_what_it_promises(train, script):
    sepbn, options = script == SEPBN, ("--run", "a", "--eval-every", "2", "--keep-every", "2")
    code, output, errors = train(*options, script=script)

    assert code == 0 and errors == ""
    assert ("SepBN, K = 3 sets, G = 2 groups" in output) == sepbn
    assert "12 train, 8 test faces" in output and "seed 0" in output and "test NME" in output

    files = {path.name for path in Path("checkpoints/a").iterdir()}
    milestones = {"epoch_0002.pt", "epoch_0004.pt"}
    assert files == {"final.pt", "config.json", "log.csv", "curve.png"} | milestones

    rows = log("a")
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["test_nme_percent"] != "" for row in rows] == [False, True, False, True]
    assert rows[0]["temperature"] == ("2.0" if sepbn else "")  # half of the epochs, then down to 1
    assert ("temperature 2 falling by 1 an epoch to 1" in output) == sepbn

    config = json.loads(Path("checkpoints/a/config.json").read_text())
    assert config == read("checkpoints/a/final.pt")["config"]
    assert config["scheme"] == "WFLW-98" and config["warmup_epochs"] == 1.6
    assert config["machine"]["torch"]

    loaded = load_model("checkpoints/a/final.pt")
    assert not sepbn or loaded.model.bn1.temperature == 1


def test_a_run_learns(train):
    assert train("--epochs", "30", "--lr", "0.05", "--width", "4")[0] == 0
    losses = [float(row["loss"]) for row in log("baseline")]
    assert losses[-1] < 0.6 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(train):
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train("--run", run, "--seed", seed)[0] == 0
    assert_same_ending("a", "b")
    assert not torch.equal(weights("a")["fc2.weight"], weights("c")["fc2.weight"])


def test_every_norm_has_a_run_of_its_own(train):
    for options in ([], ["--norm", "none"]):
        assert train("--epochs", "1", *options)[0] == 0
    assert {path.name for path in Path("checkpoints").iterdir()} == {"baseline", "none"}


# --- stopped and resumed -------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_bit_for_bit(train, train_until, step, number):
    script = SEPBN if number == signal.SIGTERM else "trainBaseline.py"
    assert train("--run", "straight", script=script)[0] == 0

    train_until(step, "--run", "stopped", number=number, script=script)
    assert not os.path.exists("checkpoints/stopped/final.pt")
    assert train("--run", "stopped", "--resume", script=script)[0] == 0
    assert_same_ending("straight", "stopped")


def test_photometric_training_is_another_training(train):
    assert train("--run", "plain")[0] == train("--run", "other", "--photometric")[0] == 0
    assert not torch.equal(weights("plain")["fc2.weight"], weights("other")["fc2.weight"])


def test_rows_past_the_checkpoint_are_cut(train, train_until):
    assert train("--run", "straight")[0] == 0
    train_until(5, "--run", "stopped")
    with open("checkpoints/stopped/log.csv", "a") as file:
        file.write("1,9,9,9,9,9,9\n2,9,9,9,9,9,9\n")  # as if it had then lost its save

    assert train("--run", "stopped", "--resume")[0] == 0
    assert_same_ending("straight", "stopped")


def test_a_run_saved_before_a_setting_or_a_column_existed_is_resumed(train, train_until):
    train_until(5)
    saved = read(FOLDER / "last.pt")
    del saved["config"]["photometric"], saved["training"]["log"][0]["lr"]
    torch.save(saved, FOLDER / "last.pt")

    code, _, errors = train("--resume", "--photometric")
    assert code == 1 and "--photometric was False, is True" in errors
    assert train("--resume")[0] == 0
    assert [row["lr"] != "" for row in log("baseline")] == [False, True, True, True]


def test_the_times_of_a_resumed_epoch_include_what_came_before(train, train_until):
    train_until(2)
    saved = read(FOLDER / "last.pt")
    assert 0 < saved["training"]["seconds"] < 60

    saved["training"]["seconds"] = 1000.0
    torch.save(saved, FOLDER / "last.pt")
    assert train("--resume")[0] == 0
    first, second, *_ = csv.DictReader((FOLDER / "log.csv").read_text().splitlines())
    assert 1000 < float(first["seconds"]) < 1060 > float(second["seconds"]) + 1000


def test_resume_where_nothing_was_saved_and_where_nothing_is_left_to_do(train):
    assert train("--run", "a")[0] == 0
    code, output, _ = train("--run", "b", "--resume")
    assert code == 0 and "nothing was saved to resume" in output
    assert_same_ending("a", "b")

    code, output, _ = train("--run", "b", "--resume")
    assert code == 0 and "finished already" in output

    code, output, errors = train("--run", "b", "--resume", "--lr", "0.5", "--norm", "none")
    assert (code, output) == (1, "")
    assert "--norm was bn, is none" in errors and "--lr was 0.02, is 0.5" in errors


def test_a_damaged_last_checkpoint_is_one_line(train, train_until):
    train_until(5)  # in the second epoch of three steps each
    last = FOLDER / "last.pt"
    whole = read(last)
    state, model = whole["training"], whole["model"]

    def without(lost, values):
        return {name: value for name, value in values.items() if name != lost}

    wrong = [
        *(without(lost, whole) for lost in ("model", "config", "training")),
        *(whole | {"training": without(lost, state)} for lost in state),
        whole | {"model": model | {"fc2.bias": torch.full((196,), torch.nan)}},
        whole | {"model": model | {"fc2.bias": torch.zeros(7)}},
        whole | {"training": 5},
        whole | {"training": state | {"position": None}},
        whole | {"training": state | {"losses": torch.zeros(3)}},
        whole | {"training": state | {"momentum": {}}},
    ]

    for content in wrong:
        torch.save(content, last)
        before = last.read_bytes()
        code, output, errors = train("--resume")
        assert code == 1 and errors.count("\n") == 1 and "last.pt" in errors, errors
        assert not output and last.read_bytes() == before

    torch.save(whole, last)
    assert train("--resume")[0] == 0


def test_resuming_with_other_settings_names_them(train, train_until):
    train_until(2)
    other = "--lr 0.5 --seed 3 --width 4 --save-every 9".split()
    code, _, errors = train("--resume", *other)
    assert code == 1 and errors.count("\n") == 1 and "save-every" not in errors
    for words in ("--lr was 0.02, is 0.5", "--seed was 0, is 3", "--width was 2, is 4"):
        assert words in errors

    code, _, errors = train("--resume", "--limit", "8")
    assert code == 1 and "training faces was" in errors
    # cannot change the result
    assert train("--resume", "--save-every", "9", "--eval-every", "1")[0] == 0


# --- nothing is lost -----------------------------------------------------------------------------


def test_an_existing_run_is_not_touched_without_saying_so(train):
    assert train()[0] == 0
    before = contents(FOLDER)
    code, _, errors = train("--seed", "1")
    assert code == 1 and "already holds a run; add --resume" in errors
    assert contents(FOLDER) == before

    assert train("--seed", "1", "--overwrite")[0] == 0
    assert contents(FOLDER)["final.pt"] != before["final.pt"]


@pytest.mark.parametrize("wrong", ["--batch-size 13", "--init absent.pt", "--warmup-epochs 9"])
def test_overwriting_with_settings_that_cannot_run_loses_nothing(train, wrong):
    assert train("--keep-every", "2")[0] == 0
    before = contents(FOLDER)
    assert train("--overwrite", *wrong.split())[0] == 1
    assert contents(FOLDER) == before


def test_resume_after_losing_final_pt_removes_nothing(train):
    options = ("--epochs", "3", "--keep-every", "1")
    assert train(*options)[0] == 0
    (FOLDER / "final.pt").unlink()
    before = contents(FOLDER)

    code, _, errors = train(*options, "--lr", "0.5", "--resume")
    assert code == 1 and errors.startswith("error: ") and "--lr was" in errors
    assert contents(FOLDER) == before

    assert train(*options, "--resume")[0] == 0
    after = contents(FOLDER)
    assert after.keys() == {*before, "final.pt", "log_old1.csv"}
    assert after["log_old1.csv"] == before["log.csv"]


def test_a_second_process_in_the_folder_of_a_run_is_refused(train):
    assert train("--epochs", "1")[0] == 0
    before = contents(FOLDER)

    with FileLock(FOLDER / ".lock"):
        code, _, errors = train("--epochs", "1", "--overwrite")

    assert code == 1 and "in use by another training process" in errors
    assert contents(FOLDER) == before | {".lock": b""}
    assert train("--epochs", "1", "--overwrite")[0] == 0


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(
    train, train_until, monkeypatch
):
    train_until(2)
    original, calls = Run.after_step, []

    def poisoned(self, i, loss):
        original(self, i, loss)
        calls.append(None)
        if len(calls) == 2:
            with torch.no_grad():
                self.model.fc2.bias.fill_(torch.nan)

    monkeypatch.setattr(Run, "after_step", poisoned)
    code, _, errors = train("--resume", "--save-every", "1e-9")
    assert code == 1 and errors.count("\n") == 1
    assert "no longer finite at step 4 (epoch 1, learning rate 0.016)" in errors

    saved = read(FOLDER / "last.pt")
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert saved["training"]["epoch"] * 3 + saved["training"]["position"] == 4


def test_a_full_disk_stops_the_run_with_one_line(train, train_until, monkeypatch):
    train_until(2)
    before, original = (FOLDER / "last.pt").read_bytes(), os.fsync

    def full(descriptor):
        if "last.pt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    code, _, errors = train("--resume", "--save-every", "0")
    assert code == 1
    assert errors == f"error: cannot write {FOLDER}/last.pt: No space left on device\n"
    assert (FOLDER / "last.pt").read_bytes() == before


def test_weights_are_kept_where_their_evaluation_fails(train, monkeypatch):
    def fail(*_, **__):
        raise UserError("no test face can be evaluated")

    monkeypatch.setattr(run_module, "face_errors", fail)
    code, _, errors = train("--epochs", "1")
    assert code == 1 and "no test face can be evaluated" in errors
    assert load_model(FOLDER / "final.pt").name == "baseline"


def test_a_run_that_fails_in_its_first_epoch_changes_nothing(train, monkeypatch):
    diverging = ("--lr", "1e30", "--warmup-epochs", "0")
    code, _, errors = train(*diverging)
    assert code == 1 and "--lr" in errors and not FOLDER.exists()

    def no_memory(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(recipe, "eager_step", no_memory)
        code, _, errors = train()
        assert code == 1 and "memory" in errors and not FOLDER.exists()

    assert train()[0] == 0
    before = contents(FOLDER)
    assert train("--overwrite", *diverging)[0] == 1
    assert contents(FOLDER) == before


# --- options -------------------------------------------------------------------------------------


def test_optional_packages_and_compilers_that_are_missing(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(run_module.shutil, "which", lambda name: None)
    assert "pip install tensorboard" in train("--tensorboard")[2]
    assert "--compile needs a C++ compiler" in train("--compile")[2]


def test_tensorboard_events(train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train("--tensorboard")[0] == 0
    events = EventAccumulator("checkpoints/baseline/tensorboard").Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3]
    assert len(events.Scalars("test_nme_percent")) == 1


def test_bf16_keeps_master_weights_and_statistics_in_fp32(train):
    assert train("--run", "half", "--precision", "bf16", script=SEPBN)[0] == 0
    assert train("--run", "full", script=SEPBN)[0] == 0
    half, full = weights("half"), weights("full")
    assert all(value.dtype == full[name].dtype for name, value in half.items())
    assert not torch.equal(half["conv1.weight"], full["conv1.weight"])
    for name in ("bn1.running_mean", "bn1.running_var"):
        assert torch.allclose(half[name], full[name], rtol=0.05, atol=0.02)


def test_a_run_that_stays_warm_says_so(train):
    code, output, errors = train("--temperature", "9", script=SEPBN)
    assert (code, errors) == (0, "") and "temperature 9 falling by 1 an epoch to 6" in output
    assert "warning   after 4 epochs the softmax is still at temperature 6" in output


def test_the_saved_command_can_be_run_again(train, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/trainBaseline.py", "--run", "it's one", "--data=a b"])
    assert train("--epochs", "1")[0] == 0
    command = json.loads((FOLDER / "config.json").read_text())["command"]
    assert shlex.split(command) == ["trainBaseline.py", "--run", "it's one", "--data=a b"]


# --- initial weights -----------------------------------------------------------------------------


def test_mean_shape_init(train, prepared_set):
    landmarks = load_faces(prepared_set, "train").landmarks.double() - 64
    expected = landmarks.mean(dim=0).flatten().float()
    assert train("--mean-shape-init", *STILL)[0] == 0
    assert_near(weights("baseline")["fc2.bias"], expected, 1e-4)

    # of the file's network, all but its last layer
    options = ("--run", "again", "--init", FOLDER / "final.pt", "--mean-shape-init", *STILL)
    assert "last layer anew, at the mean shape" in train(*options)[1]
    first, again = weights("baseline"), weights("again")
    assert_near(again["conv4.weight"], first["conv4.weight"])
    assert_near(again["fc2.bias"], expected, 1e-4)


def test_a_run_may_start_from_the_weights_that_it_overwrites(train):
    assert train()[0] == 0
    before = weights("baseline")
    assert train("--overwrite", "--init", FOLDER / "final.pt", *STILL)[0] == 0
    for name in ("conv4.weight", "fc2.weight"):
        assert_near(weights("baseline")[name], before[name])


def test_init_from_weights_of_other_landmarks(train, prepared_set):
    assert train()[0] == 0
    first = weights("baseline")
    state = {f"module.{name}": value for name, value in first.items()}
    last = ("module.fc2.weight", "module.fc2.bias")
    torch.save(state | {name: state[name][:136] for name in last}, "points68.pth")

    code, output, _ = train("--run", "other", "--init", "points68.pth", *STILL)
    words = "points68.pth: norm bn, last layer: 60 points copied, 38 at the mean shape"
    assert code == 0 and words in output
    assert_near(weights("other")["conv4.weight"], first["conv4.weight"])

    # iBUG's points in WFLW's places, the others at the mean shape
    biases = (first["fc2.bias"], weights("other")["fc2.bias"])
    theirs, ours = (bias.unflatten(0, (98, 2)) for bias in biases)
    mean = load_faces(prepared_set, "train").mean_shape()
    for place, point in ((0, 0), (32, 16), (33, 17), (42, 22), (54, 30), (72, 45), (95, 67)):
        assert_near(ours[place], theirs[point], 1e-5)
    for place in (1, 38, 61, 96):
        assert_near(ours[place], mean[place], 1e-4)


def test_init_takes_the_network_from_the_file(run_script, prepared_set):
    """A released file with nothing that the defaults describe."""
    released = released_state_dict(BaselineSepDyBN(4, 1, 1.0, width=3))
    torch.save(released, "released.pth")
    settings = ["--data", prepared_set, "--epochs", 1, "--batch-size", 4, "--init", "released.pth"]
    code, output, errors = run_script(SEPBN, *settings)
    start = next(line for line in output.splitlines() if line.startswith("start "))

    assert (code, errors) == (0, "") and start.endswith(
        "released.pth: width 3, sets 4, groups 1, temperature 1.0, last layer as it "
        "is, its patches cut with nearest, box scale 1"
    )
    config = read("checkpoints/sepbn/final.pt")["config"]
    assert [config[name] for name in ("width", "sets", "groups", "temperature")] == [3, 4, 1, 1.0]
    for norm in ([], ["--norm", "bn"]):
        assert SEPBN in refused(run_script, "trainBaseline.py", *settings, *norm)
    wide = refused(run_script, SEPBN, *settings, "--run", "wide", "--width", 8)
    assert "width is 3, not 8; leave out --width" in wide


def test_98_points_become_68(run_script, tmp_path):
    """Before anything is learnt, the new network answers what `--points 68` would."""
    official = write_official_set(tmp_path / "official", train=4, test=2, num_points=68)
    arguments = ["--wflw", official, "--out", "data"]
    assert run_script("dataset/createWFLW256.py", *arguments)[0] == 0

    path = write_checkpoint(tmp_path / "points98" / "final.pt")
    settings = ["--data", "data", "--batch-size", 4, *STILL, "--init", path]
    code, output, _ = run_script(SEPBN, *settings)
    assert code == 0 and "last layer: 60 points copied, 8 interpolated" in output
    assert "worse than the mean shape's" in output

    ours, theirs = weights("sepbn")["fc2.weight"], read(path)["model"]["fc2.weight"]
    rows = theirs.unflatten(0, (98, 2)).movedim(-1, 0).numpy()  # (D, 98, 2)
    expected = torch.from_numpy(to_ibug_68(rows)).movedim(0, -1).flatten(0, 1)
    assert_near(ours, expected)
