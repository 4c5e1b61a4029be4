"""The folder of a training run: what it may hold, how it is resumed, its log."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import math
import os
import shlex
import shutil
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from dataset.faces import FaceSet
from dataset.landmarks import definition_to_keep
from models import checkpoint
from models.architecture import Architecture
from training.config import TrainConfig
from training.step import TrainingStep
from utils.files import (
    UserError,
    atomic_write,
    describe_os_error,
    make_folder,
    read_json,
    require_file_or_nothing,
    write_json,
)
from utils.runtime import Processes, describe_machine, git_commit

RUNS = Path("checkpoints")
FILES = ("config.json", "log.csv", "curve.png", "last.pt", "final.pt")
COLUMNS = ("epoch", "loss", "lr", "temperature", "test_nme_percent", "images_per_s", "seconds")


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, with what its defaults amount to."""
    return asdict(config) | {"warmup_epochs": config.warmup}


def run_record(
    config: TrainConfig,
    train: FaceSet,
    test: FaceSet,
    *,
    device: torch.device,
    processes: Processes,
    kind: type[Architecture] = Architecture,
) -> dict[str, Any]:
    """Everything worth knowing about a run, as plain values: goes to ``config.json`` and into its
    checkpoints.
    """
    settings = settings_of(config) | {"num_landmarks": train.scheme.num_points}

    return settings | {
        "arm": kind.from_config(settings).describe(),
        "scheme": train.scheme.name,
        "scheme_definition": definition_to_keep(train.scheme),
        "resample": train.meta.get("resample", "nearest"),
        "box_scale": train.meta.get("box_scale", 1.0),
        "faces": {"train": len(train), "test": len(test)},
        "fingerprint": train.fingerprint(),
        "device_type": device.type,
        "processes": processes.count,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": git_commit(),
        "machine": describe_machine(device),
    }


class RunFolder:
    """Files of one run: ``last.pt`` while it goes, ``final.pt`` once done, ``config.json``,
    ``log.csv``, milestones. A context, which ends the lock on the folder.

    Args:
        run: the run's name.
        runs: folder that holds a folder for every run.
    """

    def __init__(self, run: str, runs: Path = RUNS) -> None:
        self.path = runs / run
        self.last, self.final = self.path / "last.pt", self.path / "final.pt"
        self.rows: list[dict[str, Any]] = []
        self._locked: int | None = None
        self._new = False  # whether the run was started here, and not resumed

    def saved(self, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """Look at what is there, without changing it.

        Returns:
            The content of ``last.pt`` when there is something to resume, else None.

        Raises:
            UserError: a run is there and neither resume nor overwrite was asked for, or something
                lies in the place of a file that the run will write.
        """
        if self.path.is_dir():
            for name in FILES:
                require_file_or_nothing(self.path / name)

        if self._existing() and not (resume or overwrite):
            raise UserError(
                f"{self.path} already holds a run; add --resume to carry it on, --overwrite to "
                "replace it, or choose another name with --run"
            )

        if not (resume and self.last.exists()):
            return None

        content = checkpoint.read(self.last)
        checkpoint.check_own(content, self.last)

        return content

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._new and kind is not None and issubclass(kind, Exception):
            self._remove_traces()

        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def lock(self) -> None:
        """Keep other processes out of the folder, where there is one, until this one leaves.

        Raises:
            UserError: another process trains in it.
        """
        if self._locked is not None or not self.path.is_dir():
            return

        descriptor = os.open(self.path, os.O_RDONLY)  # the folder itself: no file is left behind
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise UserError(
                f"{self.path} is in use by another training process; wait for it or stop it, or "
                "choose another name with --run"
            ) from None

        self._locked = descriptor

    def refuse_other_remains(self, record: dict[str, Any]) -> None:
        """Refuse to start afresh over the log or milestones of a run with other settings."""
        if not (self._milestones() or self._logged_epochs()):
            return

        settings = read_json(self.path / "config.json")
        if settings is None:
            raise UserError(
                f"{self.path} holds a log or milestones but no last.pt and no config.json to go on "
                "from; add --overwrite to replace them, or choose another name with --run"
            )

        refuse_other_settings(settings, record, self.path)

    def start(self, *, overwrite: bool) -> None:
        """Make the folder ready for a run's first step; call when nothing can go wrong any more.

        Only ``overwrite`` removes an old run. Otherwise its milestones stay until equal ones take
        their place, and its log gets another name.
        """
        make_folder(self.path)
        self.lock()
        self._new = True

        if overwrite:
            names = ("config.json", "curve.png")
            remains = [*self._existing(), *(self.path / name for name in names)]
            for file in (*remains, *self._milestones()):
                file.unlink(missing_ok=True)

            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

        elif self._logged_epochs():
            number = 1 + len(list(self.path.glob("log_old*.csv")))
            os.replace(self.path / "log.csv", self.path / f"log_old{number}.csv")

    def _remove_traces(self) -> None:
        """Leave no folder of a run that could not do its first epoch, so that the next try, with
        other settings, finds nothing in its way.
        """
        if self.rows or self._milestones() or self.last.exists() or self.final.exists():
            return

        for name in ("config.json", "log.csv"):
            (self.path / name).unlink(missing_ok=True)

        with contextlib.suppress(OSError):  # something else may lie there
            self.path.rmdir()

    def _milestones(self) -> list[Path]:
        return list(self.path.glob("epoch_*.pt"))

    def _logged_epochs(self) -> int:
        log = self.path / "log.csv"

        return max(0, len(log.read_text().splitlines()) - 1) if log.is_file() else 0

    def _existing(self) -> list[Path]:
        return [file for file in (self.final, self.last, self.path / "log.csv") if file.exists()]

    def start_log(self, record: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Write ``config.json`` and the log's first rows; rows past a checkpoint are thereby cut.

        What a run that was killed while it wrote has left is removed.
        """
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

        write_json(self.path / "config.json", record)
        self.rows = [dict(row) for row in rows]

        with atomic_write(self.path / "log.csv", "w") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writeheader()
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(self.rows)

    def log(self, row: dict[str, Any]) -> None:
        """Append one epoch to the log."""
        self.rows.append(row)
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
        try:
            with (self.path / "log.csv").open("a", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError as error:
            raise describe_os_error(error, self.path / "log.csv") from error

    def milestone(self, epoch: int) -> Path:
        """Name of the weights kept after ``epoch`` epochs."""
        return self.path / f"epoch_{epoch:04d}.pt"


def refuse_other_settings(saved: dict[str, Any], record: dict[str, Any], where: Path) -> None:
    """Name every setting that differs between a saved run and the one that wants to resume it.

    Settings in ``TrainConfig.FREE`` cannot change the result and may differ; what ``record`` lacks
    is not compared.
    """
    # A run saved before a setting existed had its default.
    saved = {setting.name: setting.default for setting in fields(TrainConfig)} | saved
    names = [
        setting.name for setting in fields(TrainConfig) if setting.name not in TrainConfig.FREE
    ]
    names += ["device_type", "resample", "scheme_definition", "fingerprint"]
    labels = {
        "scheme_definition": "landmark scheme",
        "device_type": "kind of device",
        "resample": "resampling of the data",
        "fingerprint": "training faces",
    }

    different = [
        f"{labels.get(name, '--' + name.replace('_', '-'))} was {saved.get(name)}, is "
        f"{record[name]}"
        for name in names
        if name in record and saved.get(name) != record[name]
    ]

    if different:
        raise UserError(
            f"{where} cannot be resumed with other settings: {'; '.join(different)}; use the "
            "saved ones"
        )


def refuse_damaged_state(saved: dict[str, Any], step: TrainingStep, where: Path) -> None:
    """Check that ``saved["training"]``, the loop's state in ``last.pt``, can be gone on from.

    Raises:
        UserError: naming the entry that is missing or impossible.
    """
    training = saved.get("training")
    if not isinstance(training, dict):
        raise UserError(f"{where}: holds no state of a training; it cannot be resumed")

    def is_count(value: Any, limit: int) -> bool:
        return type(value) is int and 0 <= value < limit

    momentum, seconds, loss_sum = (
        training.get(name) for name in ("momentum", "seconds", "loss_sum")
    )

    wanted = {
        name: weight.shape for name, weight in step.model.named_parameters() if step.config.momentum
    }

    valid = {
        "epoch": is_count(training.get("epoch"), step.config.epochs),
        "position": is_count(training.get("position"), step.iterations),
        "seconds": isinstance(seconds, (int, float)) and 0 <= seconds < math.inf,
        "loss_sum": _is_finite(loss_sum, torch.Size([1])),
        "log": _is_log(training.get("log"), training.get("epoch")),
        "momentum": isinstance(momentum, dict)
        and momentum.keys() == wanted.keys()
        and all(_is_finite(momentum[name], shape) for name, shape in wanted.items()),
    }

    wrong = [name for name, is_valid in valid.items() if not is_valid]
    if wrong:
        raise UserError(
            f"{where}: its {wrong[0]} is missing or impossible for this run; it cannot be resumed, "
            "train anew with --overwrite"
        )


def _is_finite(tensor: Any, shape: torch.Size | None = None) -> bool:
    """Whether this is a tensor of finite floating-point numbers (of that shape)."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and (shape is None or tensor.shape == shape)
        and bool(torch.isfinite(tensor).all())
    )


def _is_log(rows: Any, epochs: Any) -> bool:
    """Whether these are the log's rows of so many epochs."""
    return (
        isinstance(rows, list)
        and len(rows) == epochs
        and all(isinstance(row, dict) and row.keys() == set(COLUMNS) for row in rows)
        and all(
            isinstance(value, (int, float)) or value == "" for row in rows for value in row.values()
        )
    )
