"""The training loop, and ``train()``, which is what the scripts call.

Nothing random happens in the loop: an epoch's order and augmentation follow from (seed, epoch). So
a run is its weights, momentum buffers, log and a position, and going on from those is going on
exactly.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from tqdm import tqdm

from dataset.faces import FaceSet, load_faces
from evaluation.evaluate import face_errors, true_landmarks
from evaluation.figures import save, training_curve
from models import checkpoint
from models.architecture import Architecture
from models.checkpoint import LoadedModel
from models.vanilla import VanillaCNN
from training.config import NETWORK, TAU, TrainConfig
from training.initial import (
    describe_start,
    settings_of_file,
    start_from,
)
from training.run import (
    COLUMNS,
    RUNS,
    RunFolder,
    refuse_damaged_state,
    refuse_other_settings,
    run_record,
    settings_of,
)
from training.step import TrainingStep
from utils.files import UserError
from utils.metrics import nme
from utils.runtime import (
    StopRequest,
    available_memory,
    duration,
    keep_freed_memory,
    note,
    process_group,
    progress,
)
from utils.schedule import temperature

LOOK_SECONDS = 30.0  # at least so often, however slow the steps are
TIMED_STEPS = 5  # that say how long a run will take, after a first one
LONG_RUN = 600.0  # seconds from which on a run's duration is told
LOG_EVERY = 50  # steps between two looks at the loss: on CUDA each waits for the device


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    runs: Path = RUNS,
    kind: type[Architecture] = Architecture,
) -> int:
    """Train one network as configured, into ``<runs>/<run>/``.

    Args:
        config: settings of the run.
        resume: carry on what was stopped.
        overwrite: replace what is there.
        runs: folder that holds a folder for every run.
        kind: what makes a network of the settings; a subclass may know further normalisations.

    Returns:
        Exit code: 0 when the run is finished, 128 + the signal's number when a signal stopped it
        after saving.

    Raises:
        UserError: wrong settings, bad data, a run that is in the way, a loss that is no longer
            finite, a full disk.
    """
    asked = config
    folder = RunFolder(config.run, runs)

    if resume and folder.final.exists() and not folder.last.exists():
        _tell_finished(config, folder)
        return 0

    with process_group(config.device) as (processes, device), folder:
        if processes.is_main:
            folder.lock()
        saved = folder.saved(resume=resume, overwrite=overwrite)
        start = checkpoint.load_model(config.init) if config.init and saved is None else None
        config = _settled(config, saved, start)
        config.check()
        _require_programs(config)

        train_faces, test_faces = _load_splits(config)
        record = run_record(
            config, train_faces, test_faces, device=device, processes=processes, kind=kind
        )

        if device.type == "cuda":
            torch.backends.cudnn.deterministic = True
        else:
            keep_freed_memory()

        if saved is not None:
            refuse_other_settings(saved["config"], record, folder.last)
        elif resume and processes.is_main:
            folder.refuse_other_remains(record)
            print(f"{folder.path}: nothing was saved to resume; the run starts at its first step")

        model = _initial_model(config, kind.from_config(record), train_faces)
        if start is not None:
            words = start_from(model, start, train_faces, config)
            if processes.is_main:
                print(describe_start(config, asked, start, words))

        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        step = TrainingStep(model, train_faces, config, processes=processes)

        if saved is not None:
            refuse_damaged_state(saved, step, folder.last)
        if processes.count > 1:
            distributed.barrier()  # everybody has read what is there
        if saved is None and processes.is_main:
            folder.start(overwrite=overwrite)

        return fit(step, test_faces, record=record, folder=folder, saved=saved)


def _settled(
    config: TrainConfig, saved: dict[str, Any] | None, start: LoadedModel | None
) -> TrainConfig:
    """The settings with what they leave open: of the run that goes on, or of the file of
    ``--init``.
    """
    if start is not None:
        return config.settled(settings_of_file(start))
    if saved is not None and config.init:  # the run has taken them from that file
        return config.settled({name: saved["config"].get(name) for name in (*NETWORK, TAU)})

    return config.settled()


def _tell_finished(config: TrainConfig, folder: RunFolder) -> None:
    """Say that there is nothing to do, unless what is finished had other settings."""
    finished = checkpoint.read(folder.final)
    checkpoint.check_own(finished, folder.final)
    settings = settings_of(_settled(config, finished, None))
    refuse_other_settings(finished["config"], settings, folder.final)
    print(f"{folder.path} is finished already; nothing to do")


def _load_splits(config: TrainConfig) -> tuple[FaceSet, FaceSet]:
    """The training and the test faces."""
    train_faces = load_faces(config.data, "train", limit=config.limit)
    test_faces = load_faces(config.data, "test", limit=config.limit)

    if train_faces.scheme != test_faces.scheme:
        raise UserError(f"{config.data}: train and test faces have different numbers of landmarks")

    return train_faces, test_faces


def _require_programs(config: TrainConfig) -> None:
    """Refuse options that need what is not installed."""
    if config.compile and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError(
            "--compile needs a C++ compiler, and none was found; install g++ or leave --compile out"
        )

    if config.tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard needs the package tensorboard; pip install tensorboard, or leave it out"
        )


def _initial_model(config: TrainConfig, architecture: Architecture, faces: FaceSet) -> VanillaCNN:
    """The network before the first step: drawn from the seed, then ``--mean-shape-init``."""
    _require_memory(architecture)
    torch.manual_seed(config.seed)
    model = architecture.build(config.temperature or 1.0)

    if config.mean_shape_init:
        with torch.no_grad():
            model.fc2.bias.copy_(faces.mean_shape().flatten())

    return model


def _require_memory(architecture: Architecture) -> None:
    """Refuse a network whose weights, gradients and momentum cannot be held; the system would end
    the process without a word.
    """
    with torch.device("meta"):  # allocates nothing
        try:
            outline = architecture.build()
        except RuntimeError:  # more than 2**63 bytes
            raise UserError("no memory holds this network; lower --width or --sets") from None

    needed = 3 * sum(weight.numel() * weight.element_size() for weight in outline.parameters())
    free = available_memory()

    if free is not None and needed > free:
        raise UserError(
            f"this network needs {needed / 2**30:,.1f} GiB to be trained, {free / 2**30:,.1f} GiB "
            "are free; lower --width or --sets"
        )


def fit(
    step: TrainingStep,
    test_faces: FaceSet,
    *,
    record: dict[str, Any],
    folder: RunFolder,
    saved: dict[str, Any] | None = None,
) -> int:
    """Run the loop from the start, or from what ``last.pt`` held, to the last epoch.

    Args:
        step: the network, its optimizer and its training faces.
        test_faces: faces of the NME in the log; nothing is selected on them.
        record: plain values that go into every checkpoint.
        folder: where files go.
        saved: content of ``last.pt``.

    Returns:
        See :func:`train`.
    """
    loop = Loop(step, test_faces, record, folder)
    first, resumed = 0, None

    if saved is not None:
        checkpoint.load_weights(step.model, saved["model"], folder.last)
        resumed = saved["training"]
        first = resumed["epoch"]

    if step.processes.is_main:
        folder.start_log(record, resumed["log"] if resumed is not None else [])
        print(header(step, record))
        warn_of_warm_end(step.config)
        loop.report = Report(step.config, folder, iterations=step.iterations, first_epoch=first)

    with StopRequest() as stop, loop.report or contextlib.nullcontext():
        for epoch in range(first, step.config.epochs):
            signal = loop.train_epoch(epoch, stop, resumed)
            resumed = None

            if signal:
                return 128 + signal

            if step.processes.is_main:
                loop.close_epoch(epoch)

    if step.processes.is_main:
        folder.last.unlink(missing_ok=True)
        percent = folder.rows[-1]["test_nme_percent"]
        mean_shape = _mean_shape_nme(step.faces, test_faces)
        worse = f", worse than the mean shape's {mean_shape:.2f} %" if percent > mean_shape else ""
        print(f"test NME {percent:.2f} % after the last epoch{worse}; weights in {folder.final}")

    return 0


def _mean_shape_nme(train: FaceSet, test: FaceSet) -> float:
    """Test NME, in percent, of the training faces' mean shape as the answer to every face."""
    target = true_landmarks(test)
    answer = train.mean_shape().cpu().numpy()

    return 100 * float(
        nme(np.broadcast_to(answer, target.shape), target, test.scheme.outer_eyes).mean()
    )


class Loop:
    """What happens in an epoch and after it, with the clock of the saves.

    Args:
        step: one iteration; the loop knows neither its network nor its faces.
        test_faces, record, folder: as of :func:`fit`.
    """

    def __init__(
        self, step: TrainingStep, test_faces: FaceSet, record: dict[str, Any], folder: RunFolder
    ) -> None:
        self.step, self.config, self.is_main = step, step.config, step.processes.is_main
        self.test_faces, self.record, self.folder = test_faces, record, folder
        self.report: Report | None = None  # the first process's
        self.began = self.last_save = time.monotonic()
        self.loss = float("nan")  # mean of the epoch that was trained last, crop px

    def train_epoch(self, epoch: int, stop: StopRequest, resumed: dict[str, Any] | None) -> int:
        """Train one epoch, from its first step or from where ``resumed`` stood in it.

        Returns:
            0 at the end of the epoch, or the signal that stopped it, after saving.
        """
        step = self.step
        step.start_epoch(epoch)
        self.began = time.monotonic()

        if resumed is not None:
            step.load_state(resumed)
            self.began -= resumed["seconds"]

        for i in range(int(step.position), step.iterations):
            due = self.is_main and time.monotonic() - self.last_save > 60 * self.config.save_every
            signal, due = _same_everywhere(stop.signal, due, step, i)

            if signal or due:
                self._save_last(epoch)

            if signal:
                if self.is_main:
                    done = epoch * step.iterations + i
                    tqdm.write(f"stopped at step {done}, saved {self.folder.last}; use --resume")

                return signal

            step()

            if self.report is not None:
                self.report.tell_duration(epoch * step.iterations + i + 1)
            if (i + 1) % LOG_EVERY == 0 or self._silent_for_long():
                self._look(epoch, i + 1)

        step.raise_if_not_finite(epoch)
        self.loss = step.mean_loss()  # over all processes, which must all ask

        return 0

    def close_epoch(self, epoch: int) -> None:
        """Log the epoch and keep its weights where that is due; the first process's work."""
        assert self.report is not None, "only the first process has one"
        step, config, done = self.step, self.config, epoch + 1
        seconds = time.monotonic() - self.began
        rate = step.learning_rates(done * step.iterations - 1)
        self.report.show(epoch, step.iterations, loss=self.loss, rate=rate)

        # Weights first: nothing that evaluation may meet costs the days of training behind it.
        if done == config.epochs:
            self._save_weights(self.folder.final)
        if config.keep_every and done % config.keep_every == 0:
            self._save_weights(self.folder.milestone(done))

        test = done == config.epochs or (config.eval_every and done % config.eval_every == 0)
        tau = "" if config.temperature is None else temperature(epoch, start=config.temperature)
        self.report.log(
            {
                "epoch": epoch,
                "loss": self.loss,
                "lr": rate,
                "temperature": tau,
                "test_nme_percent": _test_nme(step, self.test_faces) if test else "",
                "images_per_s": round(step.iterations * config.batch_size / seconds, 1),
                "seconds": round(seconds, 2),
            }
        )

    def _silent_for_long(self) -> bool:
        """Steps may be slow; alone, a process looks at the loss whenever it likes."""
        if self.report is None or self.step.processes.count > 1:
            return False

        return time.monotonic() - self.report.last_look > LOOK_SECONDS

    def _look(self, epoch: int, done: int) -> None:
        """Stop where the loss is no longer finite; show it. Waits for the device."""
        self.step.raise_if_not_finite(epoch)
        loss = self.step.mean_loss()

        if self.report is not None:
            self.report.show(epoch, done, loss=loss, rate=float(self.step.rate))

    def _save_weights(self, path: Path) -> None:
        """A checkpoint to evaluate and use, but not to resume."""
        checkpoint.save(path, self._content())

    def _save_last(self, epoch: int) -> None:
        """A checkpoint to resume; refuses to replace a good one by values that are not finite.

        All processes must call it; the first one writes.
        """
        self.step.raise_if_not_finite(epoch)
        position = {"epoch": epoch, "seconds": time.monotonic() - self.began}
        training = {**self.step.state(), **position, "log": self.folder.rows}

        if self.is_main:
            checkpoint.save(self.folder.last, self._content() | {"training": training})
        if self.step.processes.count > 1:
            distributed.barrier()  # torchrun ends the others as soon as one has left

        self.last_save = time.monotonic()

    def _content(self) -> dict[str, Any]:
        model = self.step.model.state_dict()

        return {"model": model, "config": self.record, "format": checkpoint.FORMAT}


def _same_everywhere(signal: int, due: bool, step: TrainingStep, i: int) -> tuple[int, bool]:
    """The signal to stop for (0 for none) and whether to save, the same in every process at the
    same step.
    """
    if step.processes.count == 1:
        return signal, due
    if step.device.type == "cuda" and i % LOG_EVERY:
        return 0, False  # asking everybody waits for the device

    flags = torch.tensor([signal, int(due)], device=step.device)
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    signal, due = flags.tolist()

    return signal, bool(due)


def _test_nme(step: TrainingStep, faces: FaceSet) -> float:
    """NME of the test faces in percent."""
    return 100 * float(face_errors(step.model, faces, device=step.device).mean())


def header(step: TrainingStep, record: dict[str, Any]) -> str:
    """What runs, on what, how: the lines printed before training."""
    config, machine, faces = step.config, record["machine"], record["faces"]
    parameters = sum(weight.numel() for weight in step.model.parameters())
    device = (
        machine["cuda"]
        if step.device.type == "cuda"
        else f"{machine['cpu']}, {machine['threads']} threads"
    )

    tau = ""
    if config.temperature is not None:
        last = temperature(config.epochs - 1, start=config.temperature)
        tau = f", temperature {config.temperature:g} falling by 1 an epoch to {last:g}"
        if config.temperature == 1:
            tau = ", temperature 1"

    precision = config.precision
    if step.device.type == "cuda":
        precision += f", TF32 convolutions {'on' if torch.backends.cudnn.allow_tf32 else 'off'}"

    return "\n".join(
        (
            f"{record['arm']}; {parameters:,} parameters",
            f"data      {config.data}: {faces['train']} train, {faces['test']} test faces, "
            f"{record['scheme']}, {record['resample']} resampling"
            + (", released geometry" if config.released_geometry else ""),
            f"schedule  {config.epochs} epochs of {step.iterations} steps of batch "
            f"{config.batch_size} ({step.processes.count} processes), "
            f"warm-up {config.warmup:g} epochs, peak lr {config.lr:g}, "
            f"momentum {config.momentum:g}, weight decay {config.weight_decay:g}{tau}",
            f"machine   {device}; {precision}{', compiled' if config.compile else ''}; "
            f"torch {machine['torch']}, Python {machine['python']}",
            f"repeat    seed {config.seed}, commit {record['commit'] or 'unknown'}, command: "
            f"{record['command']}",
        )
    )


def warn_of_warm_end(config: TrainConfig) -> None:
    """Say where the softmax is still flattened when the run ends, and is so in what it leaves."""
    if config.temperature is None:
        return

    last = temperature(config.epochs - 1, start=config.temperature)
    if last > 1:
        note(
            f"warning: after {config.epochs} epochs from --temperature {config.temperature:g} the "
            f"softmax is still at temperature {last:g}, and the network is tested and kept at it; "
            f"--temperature {config.epochs} or less, or more --epochs, end at 1"
        )


class Report:
    """What a run shows while it goes: progress bar, log, TensorBoard. A context: files are finished
    when it is left.
    """

    def __init__(
        self, config: TrainConfig, folder: RunFolder, *, iterations: int, first_epoch: int
    ) -> None:
        self.folder, self.batch_size, self.iterations = folder, config.batch_size, iterations
        total, first = config.epochs * iterations, first_epoch * iterations
        self.bar = progress(desc=config.run, total=total, initial=first, unit="step")
        self.epochs, self.last_look = config.epochs, time.monotonic()
        self._timed: list[float] = []  # when each of the first steps was done
        self.writer = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder.path / "tensorboard", purge_step=first_epoch)

    def show(self, epoch: int, done: int, *, loss: float, rate: float) -> None:
        """Move the bar to step ``done`` of ``epoch``."""
        self.last_look = time.monotonic()
        self.bar.n = epoch * self.iterations + done
        elapsed = max(self.bar.format_dict["elapsed"], 1e-9)
        speed = (self.bar.n - self.bar.initial) * self.batch_size / elapsed

        self.bar.set_postfix_str(
            f"epoch {epoch + 1} of {self.epochs}, loss {loss:.3f} px, lr {rate:.2e}, "
            f"{speed:.0f} images/s"
        )

    def tell_duration(self, done: int) -> None:
        """Say how long the run will take, as soon as some steps have shown it.

        Args:
            done: steps of the run that are done.
        """
        if len(self._timed) > TIMED_STEPS:
            return

        self._timed.append(time.monotonic())
        if len(self._timed) > TIMED_STEPS:
            step = (self._timed[-1] - self._timed[0]) / TIMED_STEPS
            left = (self.bar.total or 0) - done
            if left * step > LONG_RUN:
                note(f"{left:,} steps of about {1000 * step:.0f} ms to go: {duration(left * step)}")

    def log(self, row: dict[str, Any]) -> None:
        """Add one epoch to the log."""
        self.folder.log(row)
        if self.writer is not None:
            for name in COLUMNS[1:]:
                if row[name] != "":
                    self.writer.add_scalar(name, row[name], row["epoch"])

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()
        if self.folder.rows:  # an error on the way here is the one to tell
            with contextlib.nullcontext() if kind is None else contextlib.suppress(UserError):
                save(training_curve(self.folder.rows), self.folder.path / "curve.png")
