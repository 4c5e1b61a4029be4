"""A training step recorded once as a CUDA graph: replaying it costs one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dataset.augment import Epoch
from utils.files import UserError

WARM_STEPS = 3  # before the recording, so that libraries are initialised and buffers exist


class CapturedStep:
    """Does what ``step`` does, by a recording of it.

    A recording reads and writes the same memory in every replay: draws, rows and rate are copied
    there first.

    Args:
        step: an eager step, of :func:`training.recipe.eager_step`.
        model, optimizer: whose weights, statistics and momentum the step changes.
    """

    def __init__(
        self,
        step: Callable[[Epoch, Tensor, float | Tensor], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._step, self._model, self._optimizer = step, model, optimizer
        self._graph: torch.cuda.CUDAGraph | None = None
        self._drawn: Epoch | None = None

    def __call__(self, draws: Epoch, rows: Tensor, rate: float) -> Tensor:
        if self._graph is None:
            self._draws = Epoch(*(tensor.clone() for tensor in draws))
            self._rows, self._rate = rows.clone(), torch.full((), rate, device=rows.device)
            self._loss = torch.zeros((), device=rows.device)
            try:
                self._graph = self._record()
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"the training step cannot be captured as a CUDA graph ({reason}); --no-graph "
                    "trains without one"
                ) from error

        if draws is not self._drawn:
            for tensor, value in zip(self._draws, draws, strict=True):
                tensor.copy_(value)
            self._drawn = draws

        self._rows.copy_(rows)
        self._rate.fill_(rate)
        self._graph.replay()

        return self._loss

    def _run(self) -> None:
        """The step, on the memory of the recording."""
        self._loss.copy_(self._step(self._draws, self._rows, self._rate))

    def _record(self) -> torch.cuda.CUDAGraph:
        """Record one step and leave weights, statistics and momentum as they were."""
        state = [*self._model.state_dict().values()]
        state += [each for kept in self._optimizer.state.values() for each in kept.values()]

        saved = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())

        with torch.cuda.stream(stream):
            for _ in range(WARM_STEPS):
                self._run()

        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # on the stream of the warm-up, which libraries and autograd may know already
        with torch.cuda.graph(graph, stream=stream):
            self._run()

        with torch.no_grad():
            for tensor, value in zip(state, saved, strict=True):
                tensor.copy_(value)

        return graph
