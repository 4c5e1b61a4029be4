"""One iteration of the recipe, on the device as a whole: eager, or a captured CUDA graph."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dataset.augment import Epoch, batch, draw_epoch
from dataset.faces import FaceSet
from models import SepBatchNorm2d
from models.sepbn import synchronize_statistics
from training.config import TrainConfig
from utils.files import UserError
from utils.runtime import Processes
from utils.schedule import learning_rate, temperature

# Steps before a CUDA graph is captured, so that libraries are initialised and buffers exist.
WARM_STEPS = 3


def _refuse_impossible(
    config: TrainConfig, faces: int, processes: Processes, device: torch.device
) -> None:
    """Refuse settings that do not go with so many training faces, the processes or the device."""
    if config.batch_size % processes.count:
        raise UserError(
            f"--batch-size {config.batch_size} cannot be shared equally by {processes.count} "
            "processes"
        )

    if faces < config.batch_size:
        raise UserError(f"--batch-size {config.batch_size} is more than the {faces} training faces")

    on_cuda = device.type == "cuda"
    if on_cuda and config.precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("--precision bf16: this GPU has no bfloat16; use --precision fp32")


class TrainingStep:
    """One iteration of the recipe, with everything it reads and writes on the device.

    Order, warp matrices, targets and learning rates of an epoch lie on the device, and a counter
    there says which batch is next. So a step needs nothing from the host, which on CUDA allows to
    replay it as one graph.

    Args:
        model: the network, on its device; trained in place.
        faces: training faces; moved to the model's device.
        config: the run's settings.
        processes: who else trains; shares of the batch are equal.
        graph: replay a captured CUDA graph. By default where the device is CUDA and this process
            trains alone, unless ``config.no_graph`` is set.
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
        parameter = next(model.parameters())
        _refuse_impossible(config, len(faces), processes, parameter.device)

        self.device, self.dtype = parameter.device, parameter.dtype
        self.model, self.config, self.processes = model, config, processes
        self.faces = faces.to(self.device)
        self.iterations = len(faces) // config.batch_size
        self.network = self._wrap(model)
        # The rate is a tensor: a float would be baked into a captured graph.
        self.rate = torch.zeros((), device=self.device)

        self.optimizer = torch.optim.SGD(
            model.parameters(),
            self.rate,
            config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )

        if config.momentum:  # buffers of zeros make the first step like every other
            for weight in model.parameters():
                self.optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

        share = config.batch_size // processes.count
        self.share = torch.arange(share, device=self.device) + processes.rank * share
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.loss_sum = torch.zeros(1, dtype=torch.float64, device=self.device)
        self.first_bad = torch.full((1,), -1, dtype=torch.int64, device=self.device)
        self.rates = torch.zeros(self.iterations, device=self.device)
        self.epoch: Epoch | None = None
        alone_on_cuda = self.device.type == "cuda" and processes.count == 1
        self._use_graph = alone_on_cuda and not config.no_graph if graph is None else graph
        self._graph: torch.cuda.CUDAGraph | None = None

    def _wrap(self, model: nn.Module) -> nn.Module:
        network = model
        if self.processes.count > 1:
            network = synchronize_statistics(model)
            # In channels_last, weights of 1 x 1 have strides that their gradients lack, of which
            # DistributedDataParallel warns.
            for weight in model.parameters():
                if weight.dim() == 4 and weight.shape[2:] == (1, 1):
                    weight.data = weight.data.clone(memory_format=torch.contiguous_format)

        if self.config.compile:
            network = torch.compile(network)  # type: ignore[assignment]

        if self.processes.count > 1:
            with warnings.catch_warnings():
                # torch 2.13 warns of this argument's name, 2.8 knows no other
                warnings.simplefilter("ignore", FutureWarning)
                network = DistributedDataParallel(
                    network, broadcast_buffers=False, gradient_as_bucket_view=True
                )

        return network

    @property
    def learning_rates(self) -> Callable[[int], float]:
        """Learning rate of an iteration, counted from the run's start."""
        total = self.config.epochs * self.iterations
        warmup = min(round(self.config.warmup * self.iterations), total - 1)

        return lambda step: learning_rate(
            step, total_steps=total, warmup_steps=warmup, peak=self.config.lr
        )

    def start_epoch(self, number: int) -> None:
        """Draw epoch ``number`` (from 0), set its temperature and learning rates, and go to its
        first batch.
        """
        drawn = draw_epoch(
            self.faces,
            seed=self.config.seed,
            epoch=number,
            released_geometry=self.config.released_geometry,
            photometric_changes=self.config.photometric,
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
            try:
                self._graph = self._capture()
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"the training step cannot be captured as a CUDA graph ({reason}); --no-graph "
                    "trains without one"
                ) from error

        self._graph.replay()

    def _step(self) -> None:
        assert self.epoch is not None, "start_epoch comes first"
        rows = self.epoch.order[self.position * self.config.batch_size + self.share]
        images, targets = batch(self.faces, self.epoch, rows)
        self.rate.copy_(self.rates[self.position][0])
        self.optimizer.zero_grad(set_to_none=True)

        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        ):
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
        state += [
            values["momentum_buffer"]
            for values in self.optimizer.state.values()
            if "momentum_buffer" in values
        ]

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
        """Mean loss, in crop pixels, of the epoch's steps so far, over all processes; waits for the
        device.
        """
        return self._shared_loss_sum().item() / max(1, int(self.position))

    def _shared_loss_sum(self) -> torch.Tensor:
        """The sum of the epoch's losses, averaged over all processes, which must all ask."""
        total = self.loss_sum.clone()
        if self.processes.count > 1:
            distributed.all_reduce(total)
        return total / self.processes.count

    def raise_if_not_finite(self, epoch: int) -> None:
        """Stop a run whose loss or weights are no longer numbers, naming the first bad step."""
        # One norm over all weights and one wait for the device.
        norm = nn.utils.get_total_norm([weight.detach() for weight in self.model.parameters()])
        first_bad, norm = torch.stack([self.first_bad[0].double(), norm.double()]).tolist()
        bad = int(first_bad)
        if bad < 0 and math.isfinite(norm):
            return

        step = epoch * self.iterations + (bad if bad >= 0 else int(self.position) - 1)
        raise UserError(
            f"the loss is no longer finite at step {step} (epoch {epoch}, learning rate "
            f"{self.learning_rates(step):.3g}); the last checkpoint is from before; lower --lr, "
            "lengthen --warmup-epochs or use a normalisation"
        )

    def state(self) -> dict[str, Any]:
        """Momentum buffers and counters, for ``last.pt``; all processes must ask."""
        names: dict[torch.Tensor, str] = {
            weight: name for name, weight in self.model.named_parameters()
        }
        buffers = {
            names[weight]: values["momentum_buffer"]
            for weight, values in self.optimizer.state.items()
            if "momentum_buffer" in values
        }

        return {
            "momentum": buffers,
            "position": int(self.position),
            "loss_sum": self._shared_loss_sum().cpu(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned; call after :meth:`start_epoch`."""
        for name, weight in self.model.named_parameters():
            if name in state["momentum"]:
                self.optimizer.state[weight]["momentum_buffer"].copy_(state["momentum"][name])
        self.position.fill_(state["position"])
        self.loss_sum.copy_(state["loss_sum"])
