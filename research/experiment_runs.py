"""Training runs of the experiments: arms, the tuned learning rate, one folder and one CSV row a
run.

Used by ``research/experiments.py``, which explains the suites.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from dataset.annotations import read_crop_list, write_crop_list
from dataset.faces import FaceSet, list_path, load_faces, read_meta
from evaluation.evaluate import face_errors, summarize
from research.differences import column
from research.relatives import build, load_network
from training.config import SEPBN_OPTIONS, TrainConfig
from training.recipe import train
from training.record import run_record
from training.run import RUNS, Diverged
from utils.device import select_device
from utils.files import UserError, atomic_write, make_folder, write_json

HOLD_OUT = 0.25  # share of the training faces
COLUMNS = (
    "suite run stage arm seed lr epochs warmup_epochs temperature width batch_size parameters "
    "n_train n_test status nme_percent fr_percent auc train_seconds device cpu threads python "
    "torch numpy opencv commit"
).split()


@dataclass(frozen=True)
class Part:
    """One size of a suite; seeds are 0 to ``seeds`` - 1, in tuning 0 to ``tune_seeds`` - 1."""

    epochs: int
    seeds: int
    tune_epochs: int
    tune_seeds: int = 1
    width: int = 8


@dataclass(frozen=True, kw_only=True)
class Plan(Part):
    """Which arms are to be trained for how long, on what; of a single rate none is tuned, nor for
    arms of known rates.

    A suite is one plan or several, of different lengths or widths. A run is known by its faces and
    settings, so suites that need the same run share it.
    """

    suite: str
    data: Path
    work: Path
    arms: tuple[str, ...]
    rates: tuple[float, ...]
    known_rates: tuple[tuple[str, float], ...]  # of arms
    published: bool
    limit: int | None
    device: str


class Stopped(Exception):
    """A signal ended a run after it was saved; holds the exit code."""


def split_arm(arm: str) -> tuple[str, dict[str, Any]]:
    """Name of an arm -> (name without endings, settings of :class:`TrainConfig`)."""
    sepbn = r"sepbn-g([1-9]\d*)k([1-9]\d*)(?:-grid([1-9]\d*))?(-fixed)?"
    match = re.fullmatch(rf"(none|bn|bn-se|an-k[1-9]\d*|{sepbn})(-released)?", arm)

    if match is None:
        raise UserError(
            f"--arms {arm}: no such arm; use none, bn, bn-se, an-kK or sepbn-gGkK[-gridT][-fixed], "
            "each with or without -released"
        )

    name, groups, sets, grid, fixed, released = match.groups()
    settings: dict[str, Any] = {"norm": name, "released_geometry": released is not None}
    settings |= dict.fromkeys(SEPBN_OPTIONS)

    if groups is not None:
        name = name.removesuffix("-fixed")
        settings |= {"norm": "sepbn", "sets": int(sets), "groups": int(groups)}
        settings["attention_grid"] = int(grid) if grid else None
        settings["temperature"] = 1.0 if fixed else 30.0

    return name, settings


def configuration(plan: Plan, arm: str, *, run: str, lr: float, seed: int) -> TrainConfig:
    """Settings of a run; ``experiments.py`` says how short ones differ from the recipe."""
    settings = split_arm(arm)[1]

    if not plan.published:
        if settings["temperature"] is not None:
            settings["temperature"] = min(settings["temperature"], max(1.0, plan.epochs // 3))
        settings |= {"warmup_epochs": plan.epochs / 10, "mean_shape_init": True}

    settings |= {name: getattr(plan, name) for name in ("width", "epochs", "device", "limit")}
    settings |= {"data": str(plan.data.resolve()), "run": run, "lr": lr, "seed": seed}

    return TrainConfig(**settings)


def run_once(plan: Plan, arm: str, lr: float, *, seed: int, stage: str) -> dict[str, Any]:
    """Train and evaluate one network, or return what an earlier call found.

    Returns:
        The row of the CSV, and ``errors``: (N,) NME of every test face as a fraction, None where
        training diverged.
    """
    run = f"{plan.data.resolve().name}-{stage}-{arm}-w{plan.width}-e{plan.epochs}-lr{lr:g}-s{seed}"
    run += (f"-n{plan.limit}" if plan.limit else "") + ("-published" if plan.published else "")
    config = configuration(plan, arm, run=run, lr=lr, seed=seed)
    folder = plan.work / RUNS / config.run
    result, errors = folder / "result.json", folder / "errors.npy"

    if result.is_file():
        row = json.loads(result.read_text(encoding="utf-8"))
        if row.pop("lists") != digest(config.data):
            raise UserError(
                f"{folder} is a run on other faces than {config.data}; choose another --work"
            )

        found = np.load(errors) if errors.is_file() else None
        return row | {"suite": plan.suite, "run": config.run, "errors": found}

    print(config.run, file=sys.stderr, flush=True)
    found = _train(config, plan.work)

    make_folder(folder)  # a run that diverged in its first epoch leaves none
    status = "diverged" if found is None else "finished"
    row = _row(config, folder) | {"suite": plan.suite, "stage": stage, "arm": arm, "status": status}

    if found is not None:
        network = load_network(folder / "final.pt")
        row["parameters"] = sum(weight.numel() for weight in network.parameters())
        summary = summarize(found, {"full": np.full(len(found), True)})["full"]
        row |= {name: summary[name] for name in ("nme_percent", "fr_percent", "auc")}
        with atomic_write(errors) as file:
            np.save(file, found)

    write_json(result, row | {"lists": digest(config.data)})

    return row | {"run": config.run, "errors": found}


def _row(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """What is known of a run: settings, faces, machine, time."""
    faces = [load_faces(config.data, split, limit=config.limit) for split in ("train", "test")]
    record = run_record(config.settled(), *faces, device=select_device(config.device))
    machine, log = record["machine"], folder / "log.csv"
    row = {name: value for name, value in (record | machine).items() if name in COLUMNS}
    row |= {f"n_{split}": count for split, count in record["faces"].items()}
    row["device"] = machine["cuda"] if record["device_type"] == "cuda" else "cpu"
    lines = csv.DictReader(log.read_text(encoding="utf-8").splitlines()) if log.exists() else ()

    return row | {"train_seconds": round(sum(float(line["seconds"]) for line in lines), 1)}


def _train(config: TrainConfig, work: Path) -> np.ndarray | None:
    """Train in ``work`` -> errors of the test faces, None where training diverged."""
    runs = make_folder(work) / RUNS

    with redirect_stdout(sys.stderr):
        try:
            code = train(config, build, resume=True, runs=runs)
        except Diverged:
            return None

    if code:
        raise Stopped(code)

    model = load_network(runs / config.run / "final.pt")
    faces = test_faces(config.data, config.limit)
    errors = face_errors(model, faces, device=select_device(config.device))
    # Weights too may blow up, in the very last steps.
    return errors if np.isfinite(errors).all() else None


@cache
def digest(data: str) -> str:
    """Of a folder's lists and, where it has any (released lists have none), its meta data."""
    files = [list_path(Path(data), split) for split in ("train", "test")]
    files += [path for path in [Path(data) / "meta.json"] if path.exists()]

    return blake2b(b"\0".join(file.read_bytes() for file in files), digest_size=16).hexdigest()


@cache
def test_faces(data: str, limit: int | None) -> FaceSet:
    """The test faces of a prepared folder, read once."""
    return load_faces(data, "test", limit=limit)


def hold_out(plan: Plan) -> Path:
    """A prepared folder: the plan's *training* faces in two parts, always the same."""
    landmarks, patches = read_crop_list(list_path(plan.data, "train"))
    folder = make_folder(plan.work / "splits" / plan.data.resolve().name)
    order = np.random.default_rng(0).permutation(len(patches))
    held = max(1, round(HOLD_OUT * len(patches)))

    for split, rows in (("test", np.sort(order[:held])), ("train", np.sort(order[held:]))):
        write_crop_list(list_path(folder, split), landmarks[rows], [patches[i] for i in rows])
    write_json(folder / "meta.json", read_meta(plan.data), indent=None)  # digest() is of its bytes

    return folder


def tune(plan: Plan, arm: str, rows: list[dict[str, Any]]) -> float:
    """The rate with the lowest hold-out NME, mean of seeds; its runs are added to ``rows``."""
    grid, tried = sorted(plan.rates), {}
    split = replace(plan, data=hold_out(plan), epochs=plan.tune_epochs)
    ratio = grid[1] / grid[0]
    wanted = grid

    for extension in range(3):
        for lr in wanted:
            found = []
            for seed in range(plan.tune_seeds):
                row = run_once(split, arm, lr, seed=seed, stage="tune")
                add(plan, rows, row)
                found.append(row.get("nme_percent", float("inf")))
            tried[lr] = np.mean(found)

        best = min(tried, key=lambda lr: tried[lr])
        outward = {min(tried): best / ratio, max(tried): best * ratio}
        if best not in outward or extension == 2 or tried[best] == float("inf"):
            break
        wanted = [float(f"{outward[best]:.2g}")]

    if tried[best] == float("inf"):
        raise UserError(
            f"every learning rate tried for {arm} diverged: {sorted(tried)}; "
            "give lower ones with --rates"
        )

    return best


def run_arms(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Tune and train all arms with all seeds; adds the runs to ``rows``, the suite's."""
    rates = dict(plan.known_rates)
    for base in dict.fromkeys(split_arm(arm)[0] for arm in plan.arms):
        if base not in rates:
            rates[base] = plan.rates[0] if len(plan.rates) == 1 else tune(plan, base, rows)

    for seed in range(plan.seeds):
        for arm in plan.arms:
            add(plan, rows, run_once(plan, arm, rates[split_arm(arm)[0]], seed=seed, stage="main"))

    main = finished(rows)
    heads = [
        column(f"{row['arm']} width {row['width']} epochs {row['epochs']}", row["seed"])
        for row in main
    ]
    with atomic_write(plan.work / f"{plan.suite}_faces.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["test_face", *heads])
        for face, errors in enumerate(zip(*(row["errors"] for row in main), strict=True)):
            writer.writerow([face, *(f"{error:.6f}" for error in errors)])


def finished(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The main runs that did not diverge."""
    return [row for row in rows if row["stage"] == "main" and row["errors"] is not None]


def rows_of(plan: Plan, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a suite's runs that belong to one of its plans."""
    wanted = {"main": plan.epochs, "tune": plan.tune_epochs}
    return [
        row for row in rows if (row["epochs"], row["width"]) == (wanted[row["stage"]], plan.width)
    ]


def add(plan: Plan, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Add a run, unless it is there, and bring the suite's CSV up to date."""
    if row["run"] not in {other["run"] for other in rows}:
        rows.append(row)

    with atomic_write(make_folder(plan.work) / f"{plan.suite}.csv", "w") as file:
        writer = csv.DictWriter(
            file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
