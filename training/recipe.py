"""The recipe on one page: landmarks regressed by SGD on their mean absolute error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.augment import Epoch, batch, draw_epoch
from dataset.faces import FaceSet
from models.sepbn import set_temperature
from training.config import TrainConfig
from training.graph import CapturedStep
from training.run import Build, Network, Run, Step
from utils.schedule import learning_rate, temperature


def train(config: TrainConfig, build: Build, **options: Any) -> int:
    """Train ``build(config, number of landmarks)`` -> exit code; options as of `Run.open`."""
    with Run.open(config, **options) as run:  # folder, lock, resume, signals, log, progress
        config, faces = run.config, run.load_faces()
        torch.manual_seed(config.seed)
        model = run.place(build(config, faces.scheme.num_points))  # --init, device
        decay: dict[str, Any] = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        optimizer = torch.optim.SGD(model.parameters(), run.rate, fused=True, **decay)
        run.restore(model, optimizer)
        step = eager_step(run.processes.network(model, **run.network), optimizer, faces)
        step = CapturedStep(step, model, optimizer) if run.on_one_gpu else step

        for epoch in range(run.epoch, config.epochs):
            if config.temperature is not None:  # there is SepBN in the network
                set_temperature(model, temperature(epoch, start=config.temperature))
            draws = draw_epoch(faces, epoch=epoch, **run.augmentation)
            for i in range(run.position, run.steps):
                rate = learning_rate(epoch * run.steps + i, **run.schedule)
                loss = step(draws, run.processes.rows(draws.order, i, config.batch_size), rate)
                run.after_step(i, loss)  # finite? save? a signal? progress
            run.after_epoch()  # the weights first, then test NME and log

    return run.exit_code


def eager_step(network: Network, optimizer: torch.optim.Optimizer, faces: FaceSet) -> Step:
    """One update: (an epoch's draws, rows of the batch, rate) -> loss in crop pixels."""

    def step(draws: Epoch, rows: Tensor, rate: float | Tensor) -> Tensor:
        optimizer.param_groups[0]["lr"].fill_(rate)  # this tensor is `run.rate`
        images, targets = batch(faces, draws, rows)
        loss = F.l1_loss(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
