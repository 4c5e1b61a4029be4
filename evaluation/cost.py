"""What a model costs: parameters, multiply-accumulates, latency, throughput."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dataset.crop import CROP_SIZE


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
    model: nn.Module, device: torch.device, *, batch_size: int = 64, seconds: float = 1.0
) -> dict[str, Any]:
    """Time of the forward pass alone (input already on the device), after warm-up, synchronised
    around each call.

    Returns:
        latency of one face in milliseconds (median and 95th percentile) and throughput in faces per
        second.
    """
    crops = torch.zeros(batch_size, 3, CROP_SIZE, CROP_SIZE, device=device)
    crops = crops.to(memory_format=torch.channels_last)
    single = _timings(model, crops[:1], seconds, at_least=20)
    batch = _timings(model, crops, seconds, at_least=3)
    name, precision = f"cpu, {torch.get_num_threads()} threads", "fp32"

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        precision += ", TF32 convolutions allowed" if torch.backends.cudnn.allow_tf32 else ""

    return {
        "device": name,
        "precision": precision,
        "latency_ms_median": 1000 * float(np.median(single)),
        "latency_ms_p95": 1000 * float(np.percentile(single, 95)),
        "throughput_batch_size": batch_size,
        "throughput_faces_per_second": batch_size / float(np.median(batch)),
    }


def _timings(
    model: nn.Module, crops: torch.Tensor, seconds: float, *, at_least: int
) -> list[float]:
    """Seconds of each forward pass, after a quarter of that time to warm up.

    Passes are made for about ``seconds`` in all, but not fewer than ``at_least`` and not more than
    1,000.
    """

    def one_pass() -> float:
        start = time.perf_counter()
        model(crops)
        if crops.is_cuda:
            # a CUDA launch returns long before its work is done
            torch.cuda.synchronize(crops.device)
        return time.perf_counter() - start

    def passes(seconds: float, at_least: int) -> list[float]:
        timings: list[float] = []
        end = time.perf_counter() + seconds
        while len(timings) < at_least or (time.perf_counter() < end and len(timings) < 1000):
            timings.append(one_pass())
        return timings

    passes(seconds / 4, 1)

    return passes(seconds, at_least)
