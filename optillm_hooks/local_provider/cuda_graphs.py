"""CUDA graphs of decode steps: the kernels of a step are launched by one call.

A step of a model launches a thousand kernels or more, each of which takes the host longer than it
takes a GPU. A graph is captured for each number of rows, padded up to a few sizes, when it is first
needed. It reads all that changes from one table, which is updated in place.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from optillm_hooks.local_provider.attention import RowTokens
from optillm_hooks.local_provider.gpu_attention import GPUPlan, Kernels, StepTable
from optillm_hooks.local_provider.kv_cache import KVShape
from optillm_hooks.local_provider.transfer import in_host_memory

SIZES: Final = (1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), 160, 192, 224, 256)
"""Numbers of rows for which graphs are captured; steps of more rows run without one."""

_log = logging.getLogger(__name__)


class Captured(Protocol):
    """Recorded work that can be repeated on the same memory."""

    def replay(self) -> Tensor:
        """Repeat the work; return its result, which the next replay overwrites."""
        ...


Capture = Callable[[Callable[[], Tensor]], Captured]


class CudaGraph:
    """A CUDA graph of `work`; graphs with the same `memory` share it."""

    def __init__(self, work: Callable[[], Tensor], memory: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        try:
            self._capture(self._graph, work, memory)
        except Exception:
            # Torch's random generators believe that they are being captured, until a capture ends.
            device = torch.device("cuda", torch.cuda.current_device())
            self._capture(torch.cuda.CUDAGraph(), lambda: torch.zeros(1, device=device), None)
            raise

    def _capture(
        self, graph: torch.cuda.CUDAGraph, work: Callable[[], Tensor], memory: Any
    ) -> None:
        # Other models' threads may allocate meanwhile.
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            self._result = work()

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._result


def graphs_in_shared_memory() -> Capture:
    memory = torch.cuda.graph_pool_handle()
    return lambda work: CudaGraph(work, memory)


@dataclass(frozen=True, slots=True)
class _Graph:
    table: Tensor
    """The table that the graph reads."""

    captured: Captured


class DecodeGraphs:
    """The graphs of one model. `run` computes the logits [rows, V] of a plan."""

    def __init__(
        self,
        run: Callable[[GPUPlan], Tensor],
        shape: KVShape,
        kernels: Kernels,
        capture: Capture,
    ) -> None:
        self._run, self._shape, self._kernels, self._capture = run, shape, kernels, capture
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._works = True

    def step(self, feeds: Sequence[RowTokens]) -> Tensor | None:
        """Return the logits [rows, V] of a step of single tokens; None: no graph can run it."""
        size = next((size for size in SIZES if size >= len(feeds)), None)
        if size is None or not self._works:
            return None
        table = StepTable(feeds, self._shape)
        table.pad(size)
        graph = self._graphs.get((size, table.parts))
        if graph is None:
            return self._first(size, table)[: len(feeds)]
        graph.table.copy_(in_host_memory(self._shape.device, *table.lists()), non_blocking=True)
        return graph.captured.replay()[: len(feeds)].clone()

    def _first(self, size: int, table: StepTable) -> Tensor:
        """Run a step without a graph, and capture one for the next of its kind."""
        plan = GPUPlan(table, self._shape, self._kernels)
        logits = self._run(plan)
        plan.rows = []  # a graph must not keep them alive
        try:
            captured = self._capture(lambda: self._run(plan))
        except Exception as exc:  # a model's code may do what cannot be captured
            self._works = False
            self._graphs.clear()
            reason = str(exc).partition("\n")[0]
            _log.warning("decode steps run without CUDA graphs: %s: %s", type(exc).__name__, reason)
        else:
            self._graphs[size, table.parts] = _Graph(plan.table, captured)
        return logits
