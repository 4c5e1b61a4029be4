"""A training run: its folder, lock and log, what it saves and resumes, signals, progress.

``recipe.py`` trains; everything around that is here. An epoch's order and augmentation follow from
(seed, epoch), so a run is its weights, momentum buffers, losses, log and position, and going on
from those is going on exactly.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, distributed, nn
from tqdm import tqdm

from dataset.augment import Epoch
from dataset.faces import FaceSet, load_faces
from evaluation.evaluate import errors_of, face_errors
from evaluation.figures import save as save_figure
from evaluation.figures import training_curve
from models import checkpoint
from models.vanilla import VanillaCNN
from training.config import TrainConfig
from training.initial import describe_start, settings_of_file, start_from
from training.processes import Processes, leave, process_group
from training.record import header, refuse_other_settings, run_record
from utils.device import keep_freed_memory
from utils.files import UserError, atomic_write, read_json, write_json
from utils.progress import note, progress
from utils.schedule import learning_rate, temperature

RUNS = Path("checkpoints")
FILES = ("config.json", "log.csv", "curve.png", "last.pt", "final.pt")
MILESTONES = "epoch_*.pt"
COLUMNS = ("epoch", "loss", "lr", "temperature", "test_nme_percent", "images_per_s", "seconds")
# Those of them that the system has: Windows knows no hang-up.
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]

# steps of an epoch between two looks at the loss: on CUDA each waits for the device
LOOK_EVERY = 50
LOOK_SECONDS = 10.0  # at least so often, however slow the steps are

Build = Callable[[TrainConfig, int], VanillaCNN]  # settings and number of landmarks -> network
Network = Callable[[Tensor], Tensor]  # (B, 3, 128, 128) -> (B, 2P)
Step = Callable[[Epoch, Tensor, Any], Tensor]  # draws, rows, rate -> loss


class Diverged(UserError):
    """The loss or the weights are no longer finite."""


class Stopped(Exception):
    """A signal of this number came, and the run was saved."""


class Run:
    """What is around the training of one network; used in the order of its public methods.

    Attributes:
        config: the settings, with nothing left open.
        epoch, position: how many epochs are done, and how many steps of the next one.
        steps: steps of an epoch.
        network, schedule, augmentation: what ``Processes.network``, ``learning_rate`` and
            ``draw_epoch`` are told.
        on_one_gpu: whether the step is to be captured as a CUDA graph.
        rate: the learning rate, on the device: a number would be baked into a CUDA graph.
        exit_code: 0, or 128 + the number of the signal that stopped the run after saving.
    """

    def __init__(
        self, config: TrainConfig, path: Path, processes: Processes, device: torch.device
    ) -> None:
        self.asked, self.config, self.path = config, config, path
        self.last, self.final = path / "last.pt", path / "final.pt"
        self.processes, self.device, self.is_main = processes, device, processes.rank == 0
        self.rate = torch.zeros((), device=device)
        self.epoch = self.position = self.steps = self.exit_code = 0
        self.rows_logged: list[dict[str, Any]] = []
        self._saved: dict[str, Any] | None = None  # what the run goes on from
        self._finished = False  # there is nothing left to do
        self._init: checkpoint.LoadedModel | None = None  # what --init names
        self._claimed = False  # whether the files in the folder are this run's own
        self._signal = 0
        self._handlers: dict[int, Any] = {}  # of signals, before the first step
        self._began = self._last_save = self._last_look = time.monotonic()
        self._bar: tqdm | None = None
        self._writer: Any = None
        self._exits = ExitStack()

    @classmethod
    @contextmanager
    def open(
        cls,
        config: TrainConfig,
        *,
        runs: Path = RUNS,
        resume: bool = False,
        overwrite: bool = False,
    ) -> Iterator[Run]:
        """Look at what is there, without changing it, and leave everything in order at the end.

        Args:
            config: settings of the run.
            runs: folder that holds a folder for every run.
            resume: carry on what was stopped, or start where nothing was saved.
            overwrite: replace what is there.

        Raises:
            UserError: wrong settings, bad data, a run that is in the way or in use, a full disk.
            Diverged: the loss is no longer finite.
        """
        config.check()
        with process_group(config.device) as (processes, device):
            run = cls(config, runs / config.run, processes, device)
            with run._exits:
                try:
                    run._look_around(resume=resume, overwrite=overwrite)
                    yield run
                except Stopped as stopped:
                    run.exit_code = 128 + stopped.args[0]

        run.exit_code = leave(run.exit_code)

    # --- before the first step ---

    def _look_around(self, *, resume: bool, overwrite: bool) -> None:
        """Lock the folder, read what the run goes on or starts from, and settle the settings."""
        if self.is_main:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"{self.path} is in use by another training process; wait for it or stop it, "
                    "or choose another name with --run"
                ) from None

            self._exits.callback(self._unlock, lock)

        remains = (self.final, self.last, self.path / "log.csv")
        if not (resume or overwrite) and any(file.exists() for file in remains):
            raise UserError(
                f"{self.path} already holds a run; add --resume to carry it on, --overwrite to "
                "replace it, or choose another name with --run"
            )

        self._resume, self._overwrite = resume, overwrite
        source = None

        self._finished = resume and self.final.exists() and not self.last.exists()
        self._source = self.final if self._finished else self.last
        if resume and self._source.exists():
            self._saved = checkpoint.read(self._source)
            with checkpoint.understood(self._source):
                before = self._saved["config"]
            source = before if self.asked.init is not None else None  # it has what --init gave
        elif self.asked.init is not None:
            self._init = checkpoint.load_model(self.asked.init)
            source = settings_of_file(self._init)

        self.config = self.asked.settled(source)
        self.config.check()

    def _unlock(self, lock: FileLock) -> None:
        """Let others into the folder, which goes if it is empty."""
        lock.release()
        with suppress(OSError):  # another process may have come, or something may lie there
            (self.path / ".lock").unlink(missing_ok=True)
            self.path.rmdir()

    def load_faces(self) -> FaceSet:
        """The training faces, on the device; the test faces are read, and all of them checked."""
        config, count = self.config, self.processes.count
        train = load_faces(config.data, "train", limit=config.limit)
        self.test_faces = load_faces(config.data, "test", limit=config.limit)

        if train.scheme != self.test_faces.scheme:
            raise UserError(f"{config.data}: train and test faces have different landmarks")
        if config.batch_size % count or len(train) < config.batch_size:
            raise UserError(
                f"--batch-size {config.batch_size}: must be at most {len(train)}, the training "
                f"faces, and a multiple of {count}, the processes"
            )

        self.steps = len(train) // config.batch_size
        total = config.epochs * self.steps
        self.schedule: dict[str, Any] = {
            "total_steps": total,
            "warmup_steps": min(round(config.warmup_epochs * self.steps), total - 1),
            "peak": config.lr,
        }
        self.network = {"compiled": config.compile, "bf16": config.precision == "bf16"}
        alone_on_cuda = self.device.type == "cuda" and count == 1
        self.on_one_gpu = alone_on_cuda and not config.no_graph
        self.augmentation: dict[str, Any] = {
            "seed": config.seed,
            "released_geometry": config.released_geometry,
            "photometric_changes": config.photometric,
        }
        self.record = run_record(
            config, train, self.test_faces, device=self.device, processes=count
        )
        self.faces = train.to(self.device)

        if self._saved is not None:
            refuse_other_settings(self._saved["config"], self.record, self._source)
            self._tell_other_code(self._saved["config"].get("commit"))
        elif self._resume and self.is_main:
            if (before := read_json(self.path / "config.json")) is not None:
                refuse_other_settings(before, self.record, self.path)
            print(f"{self.path}: nothing was saved to resume; the run starts at its first step")

        return self.faces

    def _tell_other_code(self, commit: str | None) -> None:
        """A changed loss, for one, cannot be seen from the settings."""
        now = self.record["commit"]
        if self.is_main and now is not None and now != commit:
            note(f"note: {self._source} was saved by other code, commit {commit}; this is {now}")

    def place(self, model: VanillaCNN) -> VanillaCNN:
        """A fresh network with the weights that it is to start from, on the device."""
        if self.config.mean_shape_init:
            with torch.no_grad():
                model.fc2.bias.copy_(self.faces.mean_shape().flatten())

        if self._saved is not None:
            with checkpoint.understood(self._source):
                checkpoint.load_weights(model, self._saved["model"], self._source)
        elif self._init is not None:
            words = start_from(model, self._init, self.faces, self.config)
            if self.is_main:
                print(describe_start(self.config, self.asked, self._init, words))

        if self.device.type == "cuda":
            torch.backends.cudnn.deterministic = True
        else:
            keep_freed_memory()

        layout: Any = {"memory_format": torch.channels_last}  # the order of the crops
        return model.to(self.device, **layout)

    def restore(self, model: VanillaCNN, optimizer: torch.optim.Optimizer) -> None:
        """Take up what was saved; show what runs; listen to signals."""
        self.model, self.optimizer = model, optimizer
        self._losses = torch.zeros(self.steps, dtype=torch.float64, device=self.device)

        if self.config.momentum:  # buffers of zeros make the first step like every other
            for weight in model.parameters():
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

        self._began = time.monotonic()
        if self._saved is not None:
            self._take_up(self._saved)

        if self.processes.count > 1:
            distributed.barrier()  # all have read what is there
        if self.is_main and self._finished:
            print(f"{self.path} is finished already; nothing to do")
        elif self.is_main:
            self._start_showing()

        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores hang-ups: keep that
                self._handlers[number] = signal.signal(number, self._note)

        self._exits.callback(self._restore_handlers)

    def _take_up(self, saved: dict[str, Any]) -> None:
        """Position, losses, momentum and log of ``last.pt``."""
        if self._finished:
            self.epoch = self.config.epochs
            return

        with checkpoint.understood(self.last):
            state = saved["training"]
            self.epoch, self.position = state["epoch"], state["position"]
            self.rows_logged = [dict.fromkeys(COLUMNS, "") | row for row in state["log"]]
            self._began -= state["seconds"]
            self._losses[: self.position] = state["losses"]

            for name, buffer in self._momentum().items():
                buffer.copy_(state["momentum"][name])

    def _momentum(self) -> dict[str, Tensor]:
        """Momentum buffers by the names of their weights."""
        state = self.optimizer.state
        return {
            name: state[weight]["momentum_buffer"]
            for name, weight in self.model.named_parameters()
            if "momentum_buffer" in state[weight]
        }

    def _start_showing(self) -> None:
        """Header, progress bar, TensorBoard."""
        config = self.config
        print(header(config, self.record, self.model, self.steps))
        total, done = config.epochs * self.steps, self.epoch * self.steps + self.position
        self._bar = progress(desc=config.run, total=total, initial=done, unit="step")
        self._exits.callback(self._bar.close)

        if config.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError(
                    "--tensorboard needs the package tensorboard; pip install tensorboard, or "
                    "leave it out"
                ) from None

            if self._saved is None:
                shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            self._writer = SummaryWriter(self.path / "tensorboard", purge_step=self.epoch)
            self._exits.callback(self._writer.close)

    # --- after a step ---

    def after_step(self, i: int, loss: Tensor) -> None:
        """Keep the loss; look at it, save and stop where that is due."""
        self._losses[i] = loss
        self.position = i + 1

        alone = self.processes.count == 1  # looking at the loss at another time than the others
        silent = alone and time.monotonic() - self._last_look > LOOK_SECONDS
        if self.position % LOOK_EVERY == 0 or silent:
            self._look()
        if self.position < self.steps:
            self._save_or_stop()

    def after_epoch(self) -> None:
        """Keep the weights where that is due, then test them; log the epoch."""
        loss = self._look()
        self.epoch += 1

        if self.is_main:
            self._close_epoch(loss)

        self._began, self.position = time.monotonic(), 0
        if self.epoch < self.config.epochs:
            self._save_or_stop()
        elif self.is_main:
            self._finish()

    def _note(self, number: int, _frame: object) -> None:
        """Remember a signal instead of dying at once; a second one acts as usual."""
        self._signal = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _save_or_stop(self) -> None:
        """Save where it is time to, or where any process was told to stop."""
        due = self.is_main and time.monotonic() - self._last_save > 60 * self.config.save_every
        if self.processes.count > 1 and self.device.type == "cuda" and self.position % LOOK_EVERY:
            return  # asking everybody waits for the device

        number, due_anywhere = self.processes.agree(self._signal, int(due), device=self.device)
        if number or due_anywhere:
            self._save_last()

        if number:
            if self.is_main:
                done = self.epoch * self.steps + self.position
                self._draw_curve()
                tqdm.write(f"stopped at step {done}, saved {self.last}; use --resume")
            raise Stopped(number)

    def _look(self) -> float:
        """Stop where the loss is no longer finite; show its mean. Waits for the device."""
        self._require_finite()
        loss = self.processes.mean(self._losses[: self.position].mean()).item()
        self._last_look = time.monotonic()

        if self._bar is not None:
            self._bar.update(self.epoch * self.steps + self.position - self._bar.n)
            self._bar.set_postfix_str(
                f"epoch {self.epoch + 1} of {self.config.epochs}, loss {loss:.3f} px, "
                f"lr {float(self.rate):.2e}"
            )

        return loss

    def _require_finite(self) -> None:
        """Stop a run whose loss or weights are no longer numbers, naming the first bad step."""
        bad = (~torch.isfinite(self._losses[: self.position])).nonzero()
        norm = nn.utils.get_total_norm([weight.detach() for weight in self.model.parameters()])
        if not len(bad) and torch.isfinite(norm):
            return

        i = int(bad[0]) if len(bad) else self.position - 1
        rate = learning_rate(self.epoch * self.steps + i, **self.schedule)
        raise Diverged(
            f"the loss is no longer finite at step {self.epoch * self.steps + i} (epoch "
            f"{self.epoch}, learning rate {rate:.3g}); such weights are not saved; lower --lr, "
            "lengthen --warmup-epochs or use a normalisation"
        )

    # --- what is written ---

    def _claim_folder(self) -> None:
        """Before the first file of this run is written, so that one that comes to nothing leaves
        what was there. Only ``overwrite`` removes an old run. Otherwise its milestones stay until
        equal ones take their place, and its log gets another name.
        """
        if self._claimed:
            return

        self._claimed, log = True, self.path / "log.csv"
        if self._overwrite:
            for old in (*map(self.path.joinpath, FILES), *self.path.glob(MILESTONES)):
                old.unlink(missing_ok=True)
            if self._writer is None:
                shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        elif self._saved is None and log.is_file() and log.read_text().count("\n") > 1:
            number = 1 + len(list(self.path.glob("log_old*.csv")))
            os.replace(log, self.path / f"log_old{number}.csv")

        for leftover in self.path.glob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)

        write_json(self.path / "config.json", self.record)
        self._write_log()  # rows past a checkpoint are thereby cut

    def _content(self) -> dict[str, Any]:
        model = self.model.state_dict()
        return {"model": model, "config": self.record, "format": checkpoint.FORMAT}

    def _save_last(self) -> None:
        """A checkpoint to resume; refuses to replace a good one by values that are not finite."""
        self._require_finite()
        losses = self.processes.mean(self._losses[: self.position])

        if self.is_main:
            self._claim_folder()
            training = {
                "epoch": self.epoch,
                "position": self.position,
                "losses": losses.cpu(),
                "momentum": self._momentum(),
                "seconds": time.monotonic() - self._began,
                "log": self.rows_logged,
            }
            checkpoint.save(self.last, self._content() | {"training": training})

        if self.processes.count > 1:
            distributed.barrier()  # torchrun ends the others as soon as one has left
        self._last_save = time.monotonic()

    def _close_epoch(self, loss: float) -> None:
        """Weights first: nothing that evaluation may meet costs the days of training behind it."""
        config, done = self.config, self.epoch
        seconds = time.monotonic() - self._began

        self._claim_folder()
        if done == config.epochs:
            checkpoint.save(self.final, self._content())
        if config.keep_every and done % config.keep_every == 0:
            checkpoint.save(self.path / f"epoch_{done:04d}.pt", self._content())

        percent: float | str = ""
        if done == config.epochs or (config.eval_every and done % config.eval_every == 0):
            errors = face_errors(self.model, self.test_faces, device=self.device)
            percent = 100 * float(errors.mean())

        tau = config.temperature
        row = {
            "epoch": done - 1,
            "loss": loss,
            "lr": learning_rate(done * self.steps - 1, **self.schedule),
            "temperature": "" if tau is None else temperature(done - 1, start=tau),
            "test_nme_percent": percent,
            "images_per_s": round(self.steps * config.batch_size / seconds, 1),
            "seconds": round(seconds, 2),
        }

        self.rows_logged.append(row)
        self._write_log()
        if self._writer is not None:
            for name in COLUMNS[1:]:
                if row[name] != "":
                    self._writer.add_scalar(name, row[name], row["epoch"])

    def _write_log(self) -> None:
        """Whole, since a run that goes on may have lost epochs that an earlier log had."""
        with atomic_write(self.path / "log.csv", "w", wait=False) as file:
            log = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            log.writeheader()
            log.writerows(self.rows_logged)

    def _finish(self) -> None:
        self.last.unlink(missing_ok=True)
        self._draw_curve()
        percent = self.rows_logged[-1]["test_nme_percent"]
        shape = self.faces.mean_shape().cpu().numpy()
        answer = np.broadcast_to(shape, self.test_faces.landmarks.shape)
        mean_shape = 100 * float(errors_of(answer, self.test_faces).mean())
        worse = f", worse than the mean shape's {mean_shape:.2f} %" if percent > mean_shape else ""
        print(f"test NME {percent:.2f} % after the last epoch{worse}; weights in {self.final}")

    def _draw_curve(self) -> None:
        if self.rows_logged:
            save_figure(training_curve(self.rows_logged), self.path / "curve.png")
