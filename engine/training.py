"""The training loop: one step, eager or as a captured CUDA graph, and ``train()``, which is what the scripts call.

Nothing random happens in the loop: an epoch's order and augmentation follow from (seed, epoch). So a run is its
weights, momentum buffers, log and a position, and going on from those is going on exactly.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dataset.augment import Epoch, batch, draw_epoch
from dataset.faces import FaceSet, load_faces
from engine import checkpoint
from engine.config import TrainConfig
from engine.curve import training_curve
from engine.evaluation import face_errors
from engine.run_folder import COLUMNS, RunFolder, refuse_other_settings, run_record, settings_of
from models import SepBatchNorm2d
from models.sepbn import synchronize_statistics
from utils.files import InputError
from utils.runtime import Processes, StopRequest, keep_freed_memory, process_group, progress
from utils.schedule import learning_rate, temperature

LOG_EVERY = 50  # steps between two looks at the loss: on CUDA each waits for the device
WARM_STEPS = 3  # steps before a CUDA graph is captured, so that libraries are initialised and buffers exist


class TrainingStep:
    """One iteration of the recipe, with everything it reads and writes on the device.

    Order, warp matrices, targets and learning rates of an epoch lie on the device, and a counter there says which
    batch is next. So a step needs nothing from the host, which on CUDA allows to replay it as one graph.

    Args:
        model: the network, on its device; trained in place.
        faces: training faces; moved to the model's device.
        config: the run's settings.
        processes: who else trains; shares of the batch are equal.
        graph: replay a captured CUDA graph. By default where the device is CUDA and this process trains alone.
    """

    def __init__(
        self,
        model: nn.Module,
        faces: FaceSet,
        config: TrainConfig,
        *,
        processes: Processes = Processes(),
        graph: bool | None = None,
    ) -> None:
        if config.batch_size % processes.count:
            raise InputError(
                f"--batch-size {config.batch_size} cannot be shared equally by {processes.count} processes"
            )
        if len(faces) < config.batch_size:
            raise InputError(f"--batch-size {config.batch_size} is more than the {len(faces)} training faces")
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.model, self.config, self.processes = model, config, processes
        self.faces = faces.to(self.device)
        self.iterations = len(faces) // config.batch_size
        self.network = self._wrap(model)
        # The rate is a tensor: a float would be baked into a captured graph.
        self.rate = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.SGD(
            model.parameters(), self.rate, config.momentum, weight_decay=config.weight_decay, fused=True
        )
        if config.momentum:  # buffers of zeros make the first step like every other
            for weight in model.parameters():
                self.optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        share = config.batch_size // processes.count
        self.lane = torch.arange(share, device=self.device) + processes.rank * share
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.loss_sum = torch.zeros(1, dtype=torch.float64, device=self.device)
        self.first_bad = torch.full((1,), -1, dtype=torch.int64, device=self.device)
        self.rates = torch.zeros(self.iterations, device=self.device)
        self.epoch: Epoch | None = None
        self._use_graph = self.device.type == "cuda" and processes.count == 1 if graph is None else graph
        self._graph: torch.cuda.CUDAGraph | None = None

    def _wrap(self, model: nn.Module) -> nn.Module:
        network = synchronize_statistics(model) if self.processes.count > 1 else model
        if self.config.compile:
            network = torch.compile(network)
        if self.processes.count > 1:
            with warnings.catch_warnings():  # torch 2.13 warns of this argument's name, 2.8 knows no other
                warnings.simplefilter("ignore", FutureWarning)
                network = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
        return network

    @property
    def learning_rates(self) -> Callable[[int], float]:
        """Learning rate of an iteration, counted from the run's start."""
        total = self.config.epochs * self.iterations
        warmup = min(round(self.config.warmup * self.iterations), total - 1)
        return lambda step: learning_rate(step, total_steps=total, warmup_steps=warmup, peak=self.config.lr)

    def start_epoch(self, number: int) -> None:
        """Draw epoch ``number`` (from 0), set its temperature and learning rates, and go to its first batch."""
        drawn = draw_epoch(
            self.faces, seed=self.config.seed, epoch=number, released_geometry=self.config.released_geometry
        )
        if self.epoch is None:
            self.epoch = drawn
        for field in fields(Epoch):  # a captured graph reads these very tensors
            getattr(self.epoch, field.name).copy_(getattr(drawn, field.name))
        first, rate = number * self.iterations, self.learning_rates
        self.rates.copy_(torch.tensor([rate(first + i) for i in range(self.iterations)]))
        if self.config.temperature is not None:
            for module in self.model.modules():
                if isinstance(module, SepBatchNorm2d):
                    module.temperature.fill_(temperature(number, start=self.config.temperature))
        self.position.zero_()
        self.loss_sum.zero_()

    def __call__(self) -> None:
        """Train on the next batch of the epoch."""
        if not self._use_graph:
            self._step()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _step(self) -> None:
        rows = self.epoch.order[self.position * self.config.batch_size + self.lane]
        images, targets = batch(self.faces, self.epoch, rows)
        self.rate.copy_(self.rates[self.position][0])
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            prediction = self.network(images.to(self.dtype))
        loss = F.l1_loss(prediction.to(self.dtype), targets.to(self.dtype))
        loss.backward()
        self.optimizer.step()
        loss = loss.detach()
        known = torch.isfinite(loss) | (self.first_bad >= 0)
        self.first_bad.copy_(torch.where(known, self.first_bad, self.position))
        self.loss_sum += loss
        self.position += 1

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record one step as a graph and leave all state as it was before."""
        state = [*self.model.state_dict().values(), self.position, self.loss_sum, self.first_bad]
        state += [values["momentum_buffer"] for values in self.optimizer.state.values() if "momentum_buffer" in values]
        saved = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_STEPS):
                self.position.zero_()
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        with torch.no_grad():
            for tensor, value in zip(state, saved, strict=True):
                tensor.copy_(value)
        return graph

    def mean_loss(self) -> float:
        """Mean loss, in crop pixels, of the epoch's steps so far, over all processes; waits for the device."""
        return self._shared_loss_sum().item() / max(1, int(self.position))

    def _shared_loss_sum(self) -> torch.Tensor:
        """The sum of the epoch's losses, averaged over all processes, which must all ask."""
        total = self.loss_sum.clone()
        if self.processes.count > 1:
            distributed.all_reduce(total)
        return total / self.processes.count

    def raise_if_not_finite(self, epoch: int) -> None:
        """Stop a run whose loss or weights are no longer numbers, naming the first bad step."""
        bad = int(self.first_bad)
        if bad < 0 and all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters()):
            return
        step = epoch * self.iterations + (bad if bad >= 0 else int(self.position) - 1)
        raise InputError(
            f"the loss is no longer finite at step {step} (epoch {epoch}, "
            f"learning rate {self.learning_rates(step):.3g}); "
            "the last checkpoint is from before; lower --lr, lengthen --warmup-epochs or use a normalisation"
        )

    def state(self) -> dict[str, Any]:
        """Momentum buffers and counters, for ``last.pt``; all processes must ask."""
        names = {weight: name for name, weight in self.model.named_parameters()}
        buffers = {
            names[weight]: values["momentum_buffer"]
            for weight, values in self.optimizer.state.items()
            if "momentum_buffer" in values
        }
        return {"momentum": buffers, "position": int(self.position), "loss_sum": self._shared_loss_sum().cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned; call after :meth:`start_epoch`."""
        for name, weight in self.model.named_parameters():
            if name in state["momentum"]:
                self.optimizer.state[weight]["momentum_buffer"].copy_(state["momentum"][name])
        self.position.fill_(state["position"])
        self.loss_sum.copy_(state["loss_sum"])


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False) -> int:
    """Train one network as configured, into ``checkpoints/<run>/``.

    Returns:
        Exit code: 0 when the run is finished, 128 + the signal's number when a signal stopped it after saving.

    Raises:
        InputError: wrong settings, bad data, a run that is in the way, a loss that is no longer finite, a full disk.
    """
    config.check()
    if config.compile and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise InputError("--compile needs a C++ compiler, and none was found; install g++ or leave --compile out")
    if config.tensorboard and find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard; pip install tensorboard, or leave it out")
    folder = RunFolder(config.run)
    if resume and folder.final.exists():
        refuse_other_settings(checkpoint.read(folder.final).get("config", {}), settings_of(config), folder.final)
        print(f"{folder.path} is finished already; nothing to do")
        return 0
    with process_group(config.device) as (processes, device):
        train_faces = load_faces(config.data, "train", limit=config.limit)
        test_faces = load_faces(config.data, "test", limit=config.limit)
        if train_faces.scheme != test_faces.scheme:
            raise InputError(f"{config.data}: train and test faces have different numbers of landmarks")
        record = run_record(config, train_faces, test_faces, device=device, processes=processes)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic = True
        else:
            keep_freed_memory()
        saved = folder.saved(resume=resume, overwrite=overwrite)
        if saved is not None:
            refuse_other_settings(saved["config"], record, folder.last)
        elif resume and processes.leads:
            print(f"{folder.path}: nothing was saved to resume; the run starts at its first step")
        init = config.init if saved is None else None  # what was saved replaces it
        model = _initial_model(config, record, train_faces, init=init, announce=processes.leads)
        model = model.to(device, memory_format=torch.channels_last)
        step = TrainingStep(model, train_faces, config, processes=processes)
        if processes.count > 1:
            distributed.barrier()  # everybody has read what is there
        if saved is None and processes.leads:
            folder.clear()
        return fit(step, test_faces, record=record, folder=folder, saved=saved)


def _initial_model(
    config: TrainConfig, record: dict[str, Any], faces: FaceSet, *, init: str | None, announce: bool
) -> nn.Module:
    """The network before the first step: drawn from the seed, then ``--mean-shape-init`` and the weights ``init``."""
    torch.manual_seed(config.seed)
    model = checkpoint.build_model(record)
    if config.mean_shape_init:
        with torch.no_grad():
            model.fc2.bias.copy_(faces.mean_shape().flatten())
    if init is not None:
        loaded = checkpoint.load_model(init)
        weights = loaded.model.state_dict()
        if loaded.config["num_landmarks"] != record["num_landmarks"]:
            if announce:
                print(
                    f"{init} has {loaded.config['num_landmarks']} landmarks, the data "
                    f"{record['num_landmarks']}: the last layer starts anew"
                )
            weights |= {name: value for name, value in model.state_dict().items() if name.startswith("fc2.")}
        elif config.mean_shape_init:
            raise InputError(f"--mean-shape-init has no effect: --init {init} has a last bias; leave one of them out")
        checkpoint.load_weights(model, weights, loaded.path)
    return model


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
    config, leads = step.config, step.processes.leads
    resumed = saved["training"] if saved is not None else None
    if saved is not None:
        checkpoint.load_weights(step.model, saved["model"], folder.last)
    first_epoch = resumed["epoch"] if resumed is not None else 0
    report = contextlib.nullcontext()
    if leads:
        folder.start_log(record, resumed["log"] if resumed is not None else [])
        print(header(step, record))
        report = Report(config, folder, iterations=step.iterations, first_epoch=first_epoch)
    last_save = time.monotonic()
    with StopRequest() as stop, report:
        for epoch in range(first_epoch, config.epochs):
            step.start_epoch(epoch)
            began = time.monotonic()
            if resumed is not None:
                step.load_state(resumed)
                began -= resumed["seconds"]
                resumed = None
            for i in range(int(step.position), step.iterations):
                due = leads and time.monotonic() - last_save > 60 * config.save_every
                signal, due = _agreed(stop.signal, due, step, i)
                if signal or due:
                    _save_last(folder, step, record, epoch, seconds=time.monotonic() - began)
                    last_save = time.monotonic()
                if signal:
                    if leads:
                        tqdm.write(f"stopped at step {epoch * step.iterations + i}, saved {folder.last}; use --resume")
                    return 128 + signal
                step()
                if (i + 1) % LOG_EVERY == 0:
                    step.raise_if_not_finite(epoch)
                    loss = step.mean_loss()
                    if leads:
                        report.show(epoch, i + 1, loss=loss, rate=float(step.rate))
            step.raise_if_not_finite(epoch)
            row = {
                "epoch": epoch,
                "loss": step.mean_loss(),
                "lr": step.learning_rates((epoch + 1) * step.iterations - 1),
                "temperature": "" if config.temperature is None else temperature(epoch, start=config.temperature),
            }
            seconds = time.monotonic() - began
            if leads:
                report.show(epoch, step.iterations, loss=row["loss"], rate=row["lr"])
                evaluate = epoch + 1 == config.epochs or (config.eval_every and (epoch + 1) % config.eval_every == 0)
                row["test_nme_percent"] = _test_nme(step, test_faces) if evaluate else ""
                row["images_per_s"] = round(step.iterations * config.batch_size / seconds, 1)
                row["seconds"] = round(seconds, 2)
                report.log(row)
                if config.keep_every and (epoch + 1) % config.keep_every == 0:
                    _save_weights(folder.milestone(epoch + 1), step, record)
    if leads:
        _save_weights(folder.final, step, record)
        folder.last.unlink(missing_ok=True)
        print(f"test NME {row['test_nme_percent']:.2f} % after the last epoch; weights in {folder.final}")
    return 0


def _agreed(signal: int, due: bool, step: TrainingStep, i: int) -> tuple[int, bool]:
    """The signal to stop for (0 for none) and whether to save, the same in every process at the same step."""
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


def _save_weights(path: Path, step: TrainingStep, record: dict[str, Any]) -> None:
    """A checkpoint to evaluate and use, but not to resume."""
    checkpoint.save(path, {"model": step.model.state_dict(), "config": record, "format": checkpoint.FORMAT})


def _save_last(folder: RunFolder, step: TrainingStep, record: dict[str, Any], epoch: int, *, seconds: float) -> None:
    """A checkpoint to resume; refuses to replace a good one by one with values that are not finite.

    All processes must call it; the first one writes. ``seconds`` is what the epoch has taken so far.
    """
    step.raise_if_not_finite(epoch)
    training = {**step.state(), "epoch": epoch, "seconds": seconds, "log": folder.rows}
    content = {"model": step.model.state_dict(), "config": record, "format": checkpoint.FORMAT, "training": training}
    if step.processes.leads:
        checkpoint.save(folder.last, content)


def header(step: TrainingStep, record: dict[str, Any]) -> str:
    """What runs, on what, how: the lines printed before training."""
    config, machine = step.config, record["machine"]
    parameters = sum(weight.numel() for weight in step.model.parameters())
    device = machine["cuda"] if step.device.type == "cuda" else f"{machine['cpu']}, {machine['threads']} threads"
    precision = config.precision
    if step.device.type == "cuda":
        precision += f", TF32 convolutions {'on' if torch.backends.cudnn.allow_tf32 else 'off'}"
    return "\n".join(
        (
            f"{record['arm']}; {parameters:,} parameters",
            f"data      {config.data}: {record['faces']['train']} train, {record['faces']['test']} test faces, "
            f"{record['scheme']}, {record['resample']} resampling"
            + (", released geometry" if config.released_geometry else ""),
            f"schedule  {config.epochs} epochs of {step.iterations} steps of batch {config.batch_size} "
            f"({step.processes.count} processes), warm-up {config.warmup:g} epochs, peak lr {config.lr:g}, "
            f"momentum {config.momentum:g}, weight decay {config.weight_decay:g}",
            f"machine   {device}; {precision}{', compiled' if config.compile else ''}; torch {machine['torch']}, "
            f"Python {machine['python']}",
            f"repeat    seed {config.seed}, commit {record['commit'] or 'unknown'}, command: {record['command']}",
        )
    )


class Report:
    """What a run shows while it goes: progress bar, log, TensorBoard. A context: files are finished when it is left."""

    def __init__(self, config: TrainConfig, folder: RunFolder, *, iterations: int, first_epoch: int) -> None:
        self.folder, self.batch_size, self.iterations = folder, config.batch_size, iterations
        total, first = config.epochs * iterations, first_epoch * iterations
        self.bar = progress(desc=config.run, total=total, initial=first, unit="step")
        self.writer = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder.path / "tensorboard", purge_step=first_epoch)

    def show(self, epoch: int, done: int, *, loss: float, rate: float) -> None:
        """Move the bar to step ``done`` of ``epoch``."""
        self.bar.update(epoch * self.iterations + done - self.bar.n)
        speed = (self.bar.format_dict["rate"] or 0.0) * self.batch_size
        self.bar.set_postfix_str(f"loss {loss:.3f} px, lr {rate:.2e}, {speed:.0f} images/s")

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
            with contextlib.nullcontext() if kind is None else contextlib.suppress(InputError):
                training_curve(self.folder.rows, self.folder.path / "curve.png")
