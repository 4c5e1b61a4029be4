"""One typed, frozen configuration of a training run; the command line is derived from it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from utils.files import UserError, wait_for_first_process

TAU = "temperature"
SEPBN_OPTIONS = ("sets", "groups", "attention_grid", "temperature")

# What describes a network. Where the user leaves it open, it is that of the file --init names, or
# else this.
NETWORK = {"norm": "bn", "width": 64, "sets": 3, "groups": 2, "attention_grid": None}

# --norm -> name of a run that gets none; other ones are called as their norm is.
RUN_OF = {None: "baseline", "bn": "baseline"}

# The least that numbers may be.
LEAST = dict.fromkeys(("sets", "groups", "width", "epochs", "batch_size", "limit", TAU), 1)
LEAST |= dict.fromkeys(("lr", "momentum", "weight_decay", "seed", "warmup_epochs"), 0)
LEAST |= dict.fromkeys(("eval_every", "save_every", "keep_every"), 0)

TYPES = {"int": int, "float": float, "str": str}  # of options, by their annotations


def _option(default: Any, help: str, *, choices: tuple | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run; the defaults are the published recipe (except normalisation and
    groups, see README). :meth:`settled` fills in what is left open with None; SepBN's options stay
    None where another normalisation is chosen.
    """

    data: str = _option("dataset/WFLW256", "folder prepared by dataset/createWFLW256.py")
    run: str = _option(
        None, "name of the run (default: baseline for bn, else the normalisation: none, sepbn)"
    )
    norm: str = _option(None, "normalisation; none: the released baseline", choices=("bn", "none"))
    sets: int = _option(None, "K, mapping sets (scale and shift) of each SepBN module")
    groups: int = _option(None, "G, channel groups with an attention each; the released code has 1")
    attention_grid: int | None = _option(
        None, "attention on a T x T grid, as the paper's diagram may mean", choices=(1, 2, 4)
    )
    temperature: float = _option(
        None,
        "softmax temperature at epoch 0; falls by 1 an epoch, stays at 1 (default: as --init, or "
        "half of --epochs, at most 30)",
    )
    width: int = _option(None, "channels of the first stage; the published network has 64")
    epochs: int = _option(2000, "passes over the training faces")
    warmup_epochs: float = _option(None, "epochs of linear warm-up (default: 0.4 of --epochs)")
    batch_size: int = _option(8, "faces an iteration, over all processes together")
    lr: float = _option(
        1e-3, "peak learning rate; the released code has 1e-3 * sqrt(batch size // 8)"
    )
    momentum: float = _option(0.9, "momentum of SGD")
    weight_decay: float = _option(5e-4, "weight decay on every parameter")
    seed: int = _option(0, "seed of initial weights, order and augmentation")
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = _option(
        "fp32", "bf16: autocast with fp32 master weights and statistics", choices=("fp32", "bf16")
    )
    compile: bool = _option(False, "compile the network (needs a C++ compiler)")
    no_graph: bool = _option(False, "on CUDA: launch every step anew instead of replaying a graph")
    init: str | None = _option(
        None,
        "start from this checkpoint (released files too), whose network it takes; other landmarks "
        "start from the same points, or the mean shape",
    )
    limit: int | None = _option(None, "use the first N faces of each split only, for a quick try")
    eval_every: int = _option(0, "epochs between test NMEs in the log; 0: only after the last")
    save_every: float = _option(5.0, "minutes between saves of last.pt")
    keep_every: int = _option(0, "epochs between milestones epoch_<n>.pt that are kept; 0: none")
    mean_shape_init: bool = _option(False, "start at the mean shape of the training faces")
    photometric: bool = _option(False, "also vary colours, sharpness, noise; cover parts of faces")
    tensorboard: bool = _option(False, "also write TensorBoard's files (pip install tensorboard)")
    released_geometry: bool = _option(False, "labels as released, off by up to a crop pixel")

    # Settings that cannot change the result, so that a run may be resumed with other values of
    # them.
    FREE: ClassVar[tuple[str, ...]] = (
        *("data", "run", "device", "no_graph", "tensorboard"),
        *("eval_every", "save_every", "keep_every"),
    )

    def settled(self, source: Mapping[str, Any] | None = None) -> TrainConfig:
        """The same settings, which are checked, with what is left open filled in.

        Args:
            source: settings of another network, of which ``NETWORK`` and the temperature are
                taken where they are not None.
        """
        known: dict[str, Any] = NETWORK | {TAU: max(1.0, min(30.0, self.epochs / 2))}
        known |= {"warmup_epochs": 0.4 * self.epochs}
        for name in (*NETWORK, TAU):
            if source is not None and source.get(name) is not None:
                known[name] = source[name]

        values = {name: value for name, value in known.items() if getattr(self, name) is None}

        if (self.norm or known["norm"]) != "sepbn":
            values |= dict.fromkeys(SEPBN_OPTIONS)

        return replace(self, **values)

    def check(self) -> None:
        """Refuse values that no run could use.

        Raises:
            UserError: naming the option and what it must be.
        """
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < 2**63:  # which nan is not either
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option}: must be a number, at least {least} and below 2**63")

        if self.run in ("", "..") or self.run != Path(self.run).name:
            raise UserError(
                f"--run {self.run!r}: must be a plain name; files go to the folder checkpoints/RUN"
            )

        if self.groups and self.width and self.width % self.groups:
            raise UserError(
                f"--groups {self.groups} does not divide --width {self.width}: every group needs "
                "as many channels"
            )

        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise UserError(
                f"--warmup-epochs {self.warmup_epochs:g} is not shorter than the run of "
                f"{self.epochs} epochs; lower it or raise --epochs"
            )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the usage once, however many processes are asked."""

    def error(self, message: str) -> NoReturn:
        wait_for_first_process()
        super().error(message)


def parse_arguments(argv: list[str] | None, *, sepbn: bool) -> tuple[TrainConfig, dict[str, bool]]:
    """Command line of a training script -> (config, what to do with an existing run).

    Args:
        argv: arguments without the program's name; None takes the process's own.
        sepbn: options of ``trainBaselineSepDyBN.py`` instead of those of ``trainBaseline.py``.
    """
    what = "SepBN" if sepbn else "BatchNorm, or without normalisation"
    description = f"Train the Vanilla CNN with {what}. Files go to checkpoints/RUN."
    parser = _Parser(description=description, allow_abbrev=False)

    fixed: dict[str, Any] = {"norm": "sepbn"} if sepbn else dict.fromkeys(SEPBN_OPTIONS)

    for setting in fields(TrainConfig):
        if setting.name in fixed:
            continue

        option = "--" + setting.name.replace("_", "-")
        text, default = setting.metadata["help"], setting.default
        if setting.name in NETWORK:
            text += f" (default: as --init, or {NETWORK[setting.name] or 'as released'})"
        elif default is not None and default is not False:  # a default of 0 is shown
            text += " (default: %(default)s)"

        how: dict[str, Any] = {"action": "store_true"}
        if not isinstance(default, bool):
            how = {"type": TYPES[str(setting.type).removesuffix(" | None")], "default": default}
            how |= {"choices": setting.metadata["choices"]}

        parser.add_argument(option, help=text, **how)

    existing = parser.add_mutually_exclusive_group()
    resume = "carry on a stopped run (starts afresh if nothing was saved)"
    existing.add_argument("--resume", action="store_true", help=resume)
    existing.add_argument("--overwrite", action="store_true", help="replace an existing run")
    values: dict[str, Any] = vars(parser.parse_args(argv)) | fixed
    what_exists = {name: values.pop(name) for name in ("resume", "overwrite")}

    if values["run"] is None:
        values["run"] = RUN_OF.get(values["norm"], values["norm"])

    return TrainConfig(**values), what_exists
