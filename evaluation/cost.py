"""What a model costs: parameters, multiply-accumulates, latency, throughput."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dataset.crop import CROP_SIZE
from models.folding import fold_normalisation


@torch.no_grad()
def model_cost(model: nn.Module, device: torch.device) -> dict[str, int]:
    """Parameters, and multiply-accumulates of convolutions, linear layers and SepBN's attention for
    one crop.

    One MAC is two of the counter's flops. The published 1.56 G without and 1.58 G with SepBN differ
    by counting K BatchNorms; counted here, the two networks have 1.555 G and 1.556 G.
    """
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, CROP_SIZE, CROP_SIZE, device=device))

    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": counter.get_total_flops() // 2,
    }


@torch.no_grad()
def measure_speed(
    models: Sequence[nn.Module], device: torch.device, *, batch_size: int = 64, seconds: float = 1.0
) -> list[dict[str, Any]]:
    """Time of the forward pass alone (input already on the device), after warm-up, synchronised
    around each call.

    The models are folded, as predict.py uses them, and run in turn, so that what else the machine
    does meets all of them alike.

    Returns:
        for each model, latency of one face in milliseconds (median and 95th percentile) and
        throughput in faces per second.
    """
    layout: Any = {"memory_format": torch.channels_last}
    folded = [fold_normalisation(model).to(**layout) for model in models]
    crops = torch.zeros(batch_size, 3, CROP_SIZE, CROP_SIZE, device=device).to(**layout)
    single = _timings(folded, crops[:1], seconds, at_least=20)
    batch = _timings(folded, crops, seconds, at_least=3)
    name, precision = f"cpu, {torch.get_num_threads()} threads", "fp32"

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        precision += ", TF32 convolutions allowed" if torch.backends.cudnn.allow_tf32 else ""

    return [
        {
            "device": name,
            "precision": precision,
            "latency_ms_median": 1000 * float(np.median(one)),
            "latency_ms_p95": 1000 * float(np.percentile(one, 95)),
            "throughput_batch_size": batch_size,
            "throughput_faces_per_second": batch_size / float(np.median(many)),
        }
        for one, many in zip(single, batch, strict=True)
    ]


def _timings(
    models: Sequence[nn.Module], crops: torch.Tensor, seconds: float, *, at_least: int
) -> list[list[float]]:
    """Seconds of each model's forward passes, made for about ``seconds`` with each of them: no
    fewer than ``at_least`` passes, no more than 1,000.
    """

    def one_pass(model: nn.Module) -> float:
        start = time.perf_counter()
        model(crops)
        if crops.is_cuda:
            # a CUDA launch returns long before its work is done
            torch.cuda.synchronize(crops.device)
        return time.perf_counter() - start

    def rounds(seconds: float, at_least: int) -> list[list[float]]:
        begin, timings = time.perf_counter(), [[one_pass(model) for model in models]]
        while len(timings) < at_least or (
            time.perf_counter() - begin < seconds * len(models) and len(timings) < 1000
        ):
            turn = -1 if len(timings) % 2 else 1  # every other round the other way round
            timings.append([one_pass(model) for model in models[::turn]][::turn])
        return timings

    rounds(seconds / 4, at_least=1)
    return [list(own) for own in zip(*rounds(seconds, at_least), strict=True)]
