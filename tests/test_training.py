"""Training through the public command lines: exact resume, repeatable numbers, clear refusals."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_checkpoint, write_official_set
from filelock import FileLock

from dataset.augment import draw_epoch
from dataset.faces import load_faces
from dataset.landmarks import to_ibug_68
from models.checkpoint import load_model, read
from models.vanilla import BaselineSepDyBN, released_state_dict
from training import recipe
from training import run as run_module
from training.recipe import eager_step
from training.run import Run
from utils.files import UserError

# 3 steps an epoch on the 12 drawn faces
SHORT = "--width 2 --epochs 4 --batch-size 4 --lr 0.02".split()
TIMES = ("images_per_s", "seconds")


@pytest.fixture(autouse=True)
def in_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs go to checkpoints/ in the current folder


@pytest.fixture
def train(run_script, prepared_set):
    """Run a training script on the drawn faces -> (exit code, stdout, stderr)."""

    def run(*argv, script="trainBaseline.py"):
        return run_script(script, "--data", prepared_set, *SHORT, *argv)

    return run


def weights(run: str) -> dict[str, torch.Tensor]:
    return read(f"checkpoints/{run}/final.pt")["model"]


def log(run: str) -> list[dict]:
    with open(f"checkpoints/{run}/log.csv") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same_ending(one: str, other: str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert log(one) == log(other)


def signal_at(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send the process a signal while it is in its ``step``-th training step."""
    original, calls = Run.after_step, []

    def after_step(self, i, loss):
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        original(self, i, loss)

    monkeypatch.setattr(Run, "after_step", after_step)


@pytest.mark.parametrize("script", ["trainBaseline.py", "trainBaselineSepDyBN.py"])
def test_a_run_leaves_what_it_promises(train, script):
    code, output, errors = train(
        "--run", "a", "--eval-every", "2", "--keep-every", "2", script=script
    )

    assert code == 0 and errors == ""
    assert ("SepBN, K = 3 sets, G = 2 groups" in output) == (script == "trainBaselineSepDyBN.py")
    assert "12 train, 8 test faces" in output and "seed 0" in output and "test NME" in output

    files = {path.name for path in (Path("checkpoints/a")).iterdir()}

    assert files == {
        "final.pt",
        "config.json",
        "log.csv",
        "curve.png",
        "epoch_0002.pt",
        "epoch_0004.pt",
    }

    rows = log("a")
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["test_nme_percent"] != "" for row in rows] == [False, True, False, True]
    sepbn = script == "trainBaselineSepDyBN.py"
    assert rows[0]["temperature"] == ("2.0" if sepbn else "")  # half of the epochs, then down to 1
    assert ("temperature 2 falling by 1 an epoch to 1" in output) == sepbn

    config = json.loads(open("checkpoints/a/config.json").read())
    assert config == read("checkpoints/a/final.pt")["config"]
    assert (
        config["scheme"] == "WFLW-98"
        and config["warmup_epochs"] == 1.6
        and config["machine"]["torch"]
    )

    loaded = load_model("checkpoints/a/final.pt")
    if sepbn:
        assert loaded.model.bn1.temperature == 1


def test_a_run_learns(train):
    assert train("--epochs", "30", "--lr", "0.05", "--width", "4")[0] == 0
    losses = [float(row["loss"]) for row in log("baseline")]
    assert losses[-1] < 0.6 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(train):
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train("--run", run, "--seed", seed)[0] == 0
    assert_same_ending("a", "b")
    assert not torch.equal(weights("a")["fc2.weight"], weights("c")["fc2.weight"])


@pytest.mark.parametrize("step", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_bit_for_bit(train, monkeypatch, step, number):
    script = "trainBaselineSepDyBN.py" if number == signal.SIGTERM else "trainBaseline.py"
    assert train("--run", "straight", script=script)[0] == 0

    with monkeypatch.context() as patch:
        signal_at(patch, step, number)
        code, output, _ = train("--run", "stopped", script=script)

    assert code == 128 + number and f"stopped at step {step}," in output
    assert not os.path.exists("checkpoints/stopped/final.pt")
    assert train("--run", "stopped", "--resume", script=script)[0] == 0
    assert_same_ending("straight", "stopped")


def test_photometric_training_is_another_training_and_resumes_bit_for_bit(train, monkeypatch):
    assert train("--run", "plain")[0] == 0
    assert train("--run", "straight", "--photometric")[0] == 0
    assert not torch.equal(weights("plain")["fc2.weight"], weights("straight")["fc2.weight"])

    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        train("--run", "stopped", "--photometric")

    assert train("--run", "stopped", "--resume", "--photometric")[0] == 0
    assert_same_ending("straight", "stopped")


def test_a_run_saved_before_a_setting_existed_had_its_default(train, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 3)
        train()

    saved = torch.load("checkpoints/baseline/last.pt", weights_only=True)
    del saved["config"]["photometric"]
    torch.save(saved, "checkpoints/baseline/last.pt")
    code, _, errors = train("--resume", "--photometric")

    assert code == 1 and "--photometric was False, is True" in errors
    assert train("--resume")[0] == 0


def test_rows_past_the_checkpoint_are_cut(train, monkeypatch):
    assert train("--run", "straight")[0] == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 5)
        train("--run", "stopped")

    with open(
        "checkpoints/stopped/log.csv", "a"
    ) as file:  # as if it had gone on and then lost its save
        file.write("1,9,9,9,9,9,9\n2,9,9,9,9,9,9\n")

    assert train("--run", "stopped", "--resume")[0] == 0
    assert_same_ending("straight", "stopped")


def test_resume_before_anything_was_saved_starts_afresh(train):
    assert train("--run", "a")[0] == 0
    assert train("--run", "b", "--resume")[0] == 0
    assert_same_ending("a", "b")

    code, output, _ = train("--run", "b", "--resume")
    assert code == 0 and "finished already" in output

    code, output, errors = train("--run", "b", "--resume", "--lr", "0.5", "--norm", "none")

    assert (
        code == 1
        and "--norm was bn, is none" in errors
        and "--lr was 0.02, is 0.5" in errors
        and not output
    )

    code, output, _ = train("--run", "c", "--resume")
    assert code == 0 and "nothing was saved to resume" in output


def test_killed_runs_resume_bit_for_bit(train, prepared_set):
    long = ("--epochs", "60")  # still going when the kill comes
    assert train("--run", "straight", *long)[0] == 0

    command = [
        sys.executable,
        str(ROOT / "trainBaseline.py"),
        "--data",
        str(prepared_set),
        *SHORT,
        *long,
    ]

    command += ["--run", "killed", "--save-every", "0"]
    process = subprocess.Popen([*command], env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not os.path.exists("checkpoints/killed/last.pt") and process.poll() is None:
        time.sleep(0.002)

    process.kill()
    assert process.wait() == -signal.SIGKILL

    Path("checkpoints/killed/.last.pt.abc.tmp").touch()  # as of a kill within a save
    assert train("--run", "killed", *long, "--resume")[0] == 0
    assert not list(Path("checkpoints/killed").glob(".*"))
    assert_same_ending("straight", "killed")


def test_a_damaged_last_checkpoint_is_one_line(train, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 5)  # in the second epoch of three steps each
        assert train()[0] == 143

    last = Path("checkpoints/baseline/last.pt")
    whole = read(last)
    state = whole["training"]
    wrong = [
        *({name: value for name, value in whole.items() if name != lost} for lost in whole),
        whole | {"config": ["norm"]},
        whole | {"model": whole["model"] | {"fc2.bias": torch.full((196,), torch.nan)}},
        whole | {"model": whole["model"] | {"fc2.bias": torch.zeros(7)}},
        whole | {"training": 5},
    ]
    changes = [
        *({"position": value} for value in (-1, 10**30, None)),
        *({"epoch": value} for value in (4, "1")),
        {"losses": torch.zeros(3)},
        {"log": [{}]},
        {"momentum": {}},
    ]
    wrong += [whole | {"training": state | change} for change in changes]
    wrong += [
        whole | {"training": {name: value for name, value in state.items() if name != lost}}
        for lost in state
    ]

    for content in wrong:
        torch.save(content, last)
        before = last.read_bytes()
        code, output, errors = train("--resume")
        assert code == 1 and errors.count("\n") == 1 and "last.pt" in errors, errors
        assert not output and last.read_bytes() == before

    torch.save(whole, last)
    assert train("--resume")[0] == 0


def test_resuming_with_other_settings_names_them(train, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        train()

    code, _, errors = train(
        "--resume", "--lr", "0.5", "--seed", "3", "--width", "4", "--save-every", "9"
    )

    assert code == 1 and errors.count("\n") == 1
    assert (
        "--lr was 0.02, is 0.5" in errors
        and "--seed was 0, is 3" in errors
        and "--width was 2, is 4" in errors
    )

    assert "save-every" not in errors
    code, _, errors = train("--resume", "--limit", "8")
    assert code == 1 and "training faces was" in errors
    # cannot change the result
    assert train("--resume", "--save-every", "9", "--eval-every", "1")[0] == 0


def test_an_existing_run_is_not_touched_without_saying_so(train):
    assert train()[0] == 0
    before = open("checkpoints/baseline/final.pt", "rb").read()
    code, _, errors = train("--seed", "1")
    assert code == 1 and "already holds a run; add --resume" in errors
    assert open("checkpoints/baseline/final.pt", "rb").read() == before
    assert train("--seed", "1", "--overwrite")[0] == 0
    assert open("checkpoints/baseline/final.pt", "rb").read() != before


@pytest.mark.parametrize(
    "wrong", [["--batch-size", "13"], ["--init", "absent.pt"], ["--warmup-epochs", "9"]]
)
def test_overwriting_with_settings_that_cannot_run_loses_nothing(train, wrong):
    assert train("--keep-every", "2")[0] == 0
    folder = Path("checkpoints/baseline")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert train("--overwrite", *wrong)[0] == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_may_start_from_the_weights_that_it_overwrites(train):
    assert train()[0] == 0
    before = weights("baseline")["conv4.weight"]
    settings = ["--lr", "0", "--weight-decay", "0", "--epochs", "1"]
    assert train("--overwrite", "--init", "checkpoints/baseline/final.pt", *settings)[0] == 0
    assert torch.allclose(weights("baseline")["conv4.weight"], before, rtol=0, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(train, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        assert train("--norm", "none")[0] == 143

    before = open("checkpoints/baseline/last.pt", "rb").read()
    original, calls = Run.after_step, []

    def poisoned(self, i, loss):
        original(self, i, loss)
        calls.append(None)
        if len(calls) == 2:
            with torch.no_grad():
                self.model.fc2.bias.fill_(torch.nan)

    monkeypatch.setattr(Run, "after_step", poisoned)
    code, _, errors = train("--norm", "none", "--resume", "--save-every", "1e-9")
    assert code == 1 and errors.count("\n") == 1
    assert "no longer finite at step 4 (epoch 1, learning rate 0.016)" in errors

    saved = read("checkpoints/baseline/last.pt")
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert before and saved["training"]["epoch"] * 3 + saved["training"]["position"] == 4


def test_the_times_of_a_resumed_epoch_include_what_came_before(train, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        train()

    saved = read("checkpoints/baseline/last.pt")
    assert 0 < saved["training"]["seconds"] < 60

    saved["training"]["seconds"] = 1000.0
    torch.save(saved, "checkpoints/baseline/last.pt")
    assert train("--resume")[0] == 0

    with open("checkpoints/baseline/log.csv") as file:
        rows = list(csv.DictReader(file))

    assert 1000 < float(rows[0]["seconds"]) < 1060 > float(rows[1]["seconds"]) + 1000
    assert os.path.exists("checkpoints/baseline/curve.png")


def test_a_full_disk_stops_the_run_with_one_line(train, monkeypatch):
    from utils import files

    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        train()

    before = open("checkpoints/baseline/last.pt", "rb").read()
    original = os.fsync

    def full(descriptor):
        if "last.pt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    code, _, errors = train("--resume", "--save-every", "0")
    assert code == 1 and errors.startswith(
        "error: cannot write checkpoints/baseline/last.pt: No space left on device"
    )
    assert open("checkpoints/baseline/last.pt", "rb").read() == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data", "absent"], "absent holds no prepared faces"),
        (["--batch-size", "13"], "--batch-size 13 is more than the 12 training faces"),
        (["--warmup-epochs", "4"], "--warmup-epochs 4 is not shorter than the run"),
        (["--init", "absent.pt"], "absent.pt: no such checkpoint file"),
        (["--device", "cuda:7"], "--device cuda:7"),
        (["--device", "tpu"], "--device tpu cannot be used"),
    ],
)
def test_bad_input_is_one_line(train, argv, words):
    code, _, errors = train(*argv)
    assert code == 1 and errors.count("\n") == 1 and words in errors
    assert not os.path.exists("checkpoints/baseline/final.pt")


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
    assert train("--run", "half", "--precision", "bf16", script="trainBaselineSepDyBN.py")[0] == 0
    assert train("--run", "full", script="trainBaselineSepDyBN.py")[0] == 0
    half, full = weights("half"), weights("full")
    assert all(value.dtype == full[name].dtype for name, value in half.items())
    assert not torch.equal(half["conv1.weight"], full["conv1.weight"])
    for name in ("bn1.running_mean", "bn1.running_var"):
        assert torch.allclose(half[name], full[name], rtol=0.05, atol=0.02)


def test_mean_shape_init(train, prepared_set):
    train("--mean-shape-init", "--lr", "0", "--epochs", "1")
    landmarks = load_faces(prepared_set, "train").landmarks.double() - 64
    expected = torch.stack(
        [landmarks[:, :, 0].mean(0), landmarks[:, :, 1].mean(0)], dim=1
    ).flatten()
    assert torch.allclose(weights("baseline")["fc2.bias"].double(), expected, atol=1e-4)


def test_init_from_weights_of_the_same_and_of_another_number_of_landmarks(train, prepared_set):
    assert train("--run", "first")[0] == 0

    assert (
        train(
            "--run",
            "same",
            "--init",
            "checkpoints/first/final.pt",
            "--lr",
            "0",
            "--weight-decay",
            "0",
        )[0]
        == 0
    )

    first, same = weights("first"), weights("same")
    for name in ("conv4.weight", "fc2.weight"):  # the schedule's floor of 1e-10 moves them a little
        assert torch.allclose(first[name], same[name], rtol=0, atol=1e-6)

    content = read("checkpoints/first/final.pt")
    state = {f"module.{name}": value for name, value in content["model"].items()}
    state["module.fc2.weight"], state["module.fc2.bias"] = (
        state["module.fc2.weight"][:136],
        state["module.fc2.bias"][:136],
    )
    torch.save(state, "points68.pth")
    code, output, _ = train(
        "--run", "other", "--init", "points68.pth", "--lr", "0", "--weight-decay", "0"
    )

    assert (
        code == 0
        and "points68.pth: norm bn, last layer: 60 points copied, 38 at the mean shape" in output
    )
    assert torch.allclose(
        weights("other")["conv4.weight"], first["conv4.weight"], rtol=0, atol=1e-6
    )
    # iBUG's points in WFLW's places, the others at the mean shape
    theirs, ours = first["fc2.bias"].unflatten(0, (98, 2)), weights("other")["fc2.bias"]
    ours, mean = ours.unflatten(0, (98, 2)), load_faces(prepared_set, "train").mean_shape()
    for place, point in ((0, 0), (32, 16), (33, 17), (42, 22), (54, 30), (72, 45), (95, 67)):
        assert torch.allclose(ours[place], theirs[point], rtol=0, atol=1e-5), place
    for place in (1, 38, 61, 96):
        assert torch.allclose(ours[place], mean[place], rtol=0, atol=1e-4), place

    code, _, errors = train(
        "--run", "wrong", "--init", "checkpoints/first/final.pt", "--norm", "none"
    )
    assert code == 1 and "do not fit the network" in errors

    code, _, errors = train(
        "--run", "wrong", "--init", "checkpoints/first/final.pt", "--mean-shape-init"
    )

    assert code == 1 and "--mean-shape-init has no effect" in errors
    assert train("--run", "shape", "--init", "points68.pth", "--mean-shape-init")[0] == 0


def test_init_takes_the_network_from_the_file(run_script, prepared_set):
    """A released file with nothing that the defaults describe."""
    released = released_state_dict(BaselineSepDyBN(4, 1, 1.0, width=3))
    torch.save(released, "released.pth")
    settings = ["--data", prepared_set, "--epochs", 1, "--batch-size", 4, "--init", "released.pth"]
    code, output, errors = run_script("trainBaselineSepDyBN.py", *settings)
    start = next(line for line in output.splitlines() if line.startswith("start "))

    assert (code, errors) == (0, "") and start.endswith(
        "released.pth: width 3, sets 4, groups 1, temperature 1.0, last layer as it "
        "is, its patches cut with nearest, box scale 1"
    )
    config = read("checkpoints/sepbn/final.pt")["config"]
    assert [config[name] for name in ("width", "sets", "groups", "temperature")] == [3, 4, 1, 1.0]

    code, _, errors = run_script("trainBaseline.py", *settings, "--norm", "bn")
    assert code == 1 and errors.count("\n") == 1 and "trainBaselineSepDyBN.py" in errors


def test_98_points_become_68(run_script, tmp_path):
    """Before anything is learnt, the new network answers what `--points 68` would."""
    official = write_official_set(tmp_path / "official", train=4, test=2, num_points=68)
    arguments = ["--wflw", official, "--out", "data"]
    assert run_script("dataset/createWFLW256.py", *arguments)[0] == 0

    path = write_checkpoint(tmp_path / "points98" / "final.pt")
    settings = ["--data", "data", "--epochs", 1, "--batch-size", 4, "--lr", 0, "--weight-decay", 0]
    code, output, _ = run_script("trainBaselineSepDyBN.py", *settings, "--init", path)
    assert code == 0 and "last layer: 60 points copied, 8 interpolated" in output
    assert "worse than the mean shape's" in output

    ours, theirs = weights("sepbn")["fc2.weight"], read(path)["model"]["fc2.weight"]
    rows = theirs.unflatten(0, (98, 2)).movedim(-1, 0).numpy()  # (D, 98, 2)
    expected = torch.from_numpy(to_ibug_68(rows)).movedim(0, -1).flatten(0, 1)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-6)


def test_a_run_that_stays_warm_says_so(train):
    script = "trainBaselineSepDyBN.py"
    code, output, errors = train("--temperature", "9", script=script)
    assert (code, errors) == (0, "") and "temperature 9 falling by 1 an epoch to 6" in output
    assert "warning   after 4 epochs the softmax is still at temperature 6" in output


def test_the_rate_of_every_step_counts(prepared_set):
    faces = load_faces(prepared_set, "train")
    model = BaselineSepDyBN(width=2)
    optimizer = torch.optim.SGD(model.parameters(), torch.zeros(()), fused=True)
    step = eager_step(model, optimizer, faces)
    draws = draw_epoch(faces, seed=0, epoch=0)
    moved = []

    for rate in (0.0, 1e-3, 1e-2):
        before = model.fc2.weight.detach().clone()
        step(draws, draws.order[:4], rate)
        moved.append((model.fc2.weight - before).abs().sum().item())

    assert moved[0] == 0 and moved[2] > 5 * moved[1] > 0


def test_resume_after_losing_final_pt_removes_nothing(train):
    options = ("--epochs", "3", "--keep-every", "1", "--run", "kept")
    assert train(*options)[0] == 0

    folder = Path("checkpoints/kept")
    (folder / "final.pt").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    code, _, errors = train(*options, "--lr", "0.5", "--resume")
    assert code == 1 and errors.startswith("error: ") and "--lr was" in errors
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    assert train(*options, "--resume")[0] == 0
    after = {path.name for path in folder.iterdir()}
    assert after == {*before, "final.pt", "log_old1.csv"}
    assert (folder / "log_old1.csv").read_bytes() == before["log.csv"]


def test_a_log_without_config_and_weights_is_not_overwritten(train):
    folder = Path("checkpoints/other")
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text("epoch,loss\n0,1.5\n")

    code, _, errors = train("--run", "other", "--epochs", "1", "--resume")
    assert code == 1 and "--overwrite" in errors and errors.count("\n") == 1
    assert (folder / "log.csv").read_text() == "epoch,loss\n0,1.5\n"


def test_a_second_process_in_the_folder_of_a_run_is_refused(train):
    assert train("--run", "shared", "--epochs", "1")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("checkpoints/shared").iterdir()}

    with FileLock("checkpoints/shared/.lock"):
        code, _, errors = train("--run", "shared", "--epochs", "1", "--overwrite")

    assert code == 1 and "in use by another training process" in errors
    after = {path.name: path.read_bytes() for path in Path("checkpoints/shared").iterdir()}
    assert after == before | {".lock": b""}
    assert train("--run", "shared", "--epochs", "1", "--overwrite")[0] == 0


def test_weights_are_kept_where_their_evaluation_fails(train, monkeypatch):
    def fail(*_, **__):
        raise UserError("no test face can be evaluated")

    monkeypatch.setattr(run_module, "face_errors", fail)
    code, _, errors = train("--run", "spared", "--epochs", "1")

    assert code == 1 and "no test face can be evaluated" in errors
    assert load_model("checkpoints/spared/final.pt").name == "spared"


def test_the_saved_command_can_be_run_again(train, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/trainBaseline.py", "--run", "it's one", "--data=a b"])
    assert train("--epochs", "1")[0] == 0
    command = json.loads(Path("checkpoints/baseline/config.json").read_text())["command"]
    assert shlex.split(command) == ["trainBaseline.py", "--run", "it's one", "--data=a b"]


def test_a_run_that_fails_in_its_first_epoch_is_not_in_the_way_of_the_next(train, monkeypatch):
    code, _, errors = train("--lr", "1e30", "--warmup-epochs", "0")
    assert code == 1 and "--lr" in errors and not os.path.exists("checkpoints/baseline")

    def no_memory(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(recipe, "eager_step", no_memory)
        code, _, errors = train()
        assert code == 1 and "memory" in errors and not os.path.exists("checkpoints/baseline")

    assert train()[0] == 0


@pytest.mark.parametrize("name", ["config.json", "log.csv", "curve.png", "last.pt", "final.pt"])
@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_what_lies_in_a_files_place_is_found_before_the_first_step(train, name, option):
    os.makedirs(f"checkpoints/baseline/{name}")
    code, _, errors = train(option)
    assert code == 1 and errors.count("\n") == 1 and f"baseline/{name}" in errors
    assert os.listdir("checkpoints/baseline") == [name]
