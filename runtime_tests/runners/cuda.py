"""The NVIDIA GPU through torch: which one it is, buffers, and a stream with its events and graphs."""

import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofq_deploy.errors import BackendMissing, UnsupportedByTarget

if TYPE_CHECKING:
    import torch
    from numpy.typing import DTypeLike, NDArray

    from ofq_deploy.runtime_tests.speed.rounds import Call

DEVICE = "cuda"
SLOTS = 4  # input buffers in rotation: a GPU multiplies the same numbers over and over faster than new ones
MODULE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first visible GPU.

    capability: as "9.0"; driver: its version, empty where nothing tells it
    """

    name: str
    capability: str
    driver: str
    uuid: str


def gpu(otherwise: str) -> Gpu:
    """The GPU that torch uses; BackendMissing when there is none, which ends in what to do `otherwise`."""
    import torch

    if torch.version.cuda is None:
        raise BackendMissing(f"this build of torch has no CUDA, and GPU buffers come from torch; {otherwise}")
    with warnings.catch_warnings(record=True) as caught:  # in which torch says why, as that the driver is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        reason = f" ({' '.join(str(caught[0].message).split())})" if caught else ""
        raise BackendMissing(f"no NVIDIA GPU is visible{reason}; {otherwise}")
    found = torch.cuda.get_device_properties(0)
    uuid = f"GPU-{getattr(found, 'uuid', '')}"
    return Gpu(found.name, f"{found.major}.{found.minor}", _driver(uuid), uuid)


@contextmanager
def enough_memory(batch: int) -> Iterator[None]:
    """Raise UnsupportedByTarget where torch runs out of the GPU's memory."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UnsupportedByTarget(
            f"batch {batch} does not fit into the GPU's memory; pass a smaller --batch"
        ) from error


def sm_clock(device: Gpu) -> int | None:
    """MHz of the multiprocessors now, or None without nvidia-smi."""
    text = _smi("clocks.sm", device.uuid)
    return int(text) if text.isdigit() else None


def empty(shape: tuple[int, ...], dtype: "DTypeLike") -> "torch.Tensor":
    """A buffer on the GPU; dtype: one of numpy's"""
    import numpy as np
    import torch

    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=DEVICE)


def fill(buffer: "torch.Tensor", values: "NDArray[Any]") -> None:
    """Copy numbers into a buffer, in its own type, and wait."""
    import numpy as np
    import torch

    buffer.copy_(torch.from_numpy(np.ascontiguousarray(values)))


class Stream:
    """A stream that is not the default one, on which TensorRT would wait for the whole device at every call.

    Its graphs share one pool of memory: they run one after another, and what they compute is not read later.
    """

    def __init__(self) -> None:
        import torch

        self._stream: Any = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def handle(self) -> int:
        return self._stream.cuda_stream

    def run(self, work: Callable[[], None]) -> None:
        """Do `work` with this stream as torch's current one, and wait for its end."""
        import torch

        with torch.cuda.stream(self._stream):
            work()
        self._stream.synchronize()

    def timer(self, call: "Call", samples: int, calls: int) -> list[float]:
        """Milliseconds of one call, by events around every `calls` calls; see ofq_deploy.runtime_tests.speed.rounds."""
        import torch

        events = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]

        def work() -> None:
            events[0].record(self._stream)
            for sample, event in enumerate(events[1:]):
                for number in range(calls):
                    call(sample * calls + number)
                event.record(self._stream)

        self.run(work)
        return [before.elapsed_time(after) / calls for before, after in pairwise(events)]

    def capture(self, call: "Call") -> "Call":
        """The same call as CUDA graphs, one for each of its `SLOTS` inputs."""
        import torch

        graphs = []
        for slot in range(SLOTS):
            for _ in range(2):  # whatever is allocated or compiled at first must not be captured
                self.run(lambda slot=slot: call(slot))  # type: ignore[misc]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                call(slot)
            graphs.append(graph)
        return lambda number: graphs[number % SLOTS].replay()


def _driver(uuid: str) -> str:
    found = _smi("driver_version", uuid)
    if not found and MODULE.is_file():
        match = re.search(r"\d+(\.\d+)+", MODULE.read_text())
        found = match[0] if match else ""
    return found


def _smi(field: str, uuid: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", f"--id={uuid}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
