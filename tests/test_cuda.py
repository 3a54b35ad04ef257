"""What is asked of torch and nvidia-smi, with both played by stand-ins: the order of events, captures and replays."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ofq_deploy.errors import BackendMissing, UnsupportedByTarget
from ofq_deploy.runtime_tests.runners import cuda

GPU = cuda.Gpu("NVIDIA H100", "9.0", "580", "GPU-1")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script of that name, which answers what the file beside it says, and notes what it was asked."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/answer\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize(("answer", "mhz"), [("1980\n", 1980), ("[N/A]\n", None), ("", None)])
def test_the_clock_is_that_of_the_gpu_that_torch_uses(nvidia_smi: Path, answer: str, mhz: int | None) -> None:
    (nvidia_smi / "answer").write_text(answer)

    assert cuda.sm_clock(GPU) == mhz
    asked = (nvidia_smi / "asked").read_text()
    assert asked == "--query-gpu=clocks.sm --format=csv,noheader,nounits --id=GPU-1\n"


def test_without_nvidia_smi_there_is_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert cuda.sm_clock(GPU) is None


def test_the_gpu_is_described(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nvidia_smi / "answer").write_text("580.65.06\n")
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, uuid="1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)

    assert cuda.gpu("") == cuda.Gpu("NVIDIA H100", "9.0", "580.65.06", "GPU-1")


def test_the_driver_is_read_from_its_module_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "version"
    module.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n")
    monkeypatch.setattr(cuda, "MODULE", module)
    monkeypatch.setenv("PATH", "/nowhere")

    assert cuda._driver("GPU-1") == "580.65.06"


@pytest.mark.parametrize(("build", "why"), [(None, "has no CUDA"), ("13.0", "no NVIDIA GPU is visible")])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, build: str | None, why: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(BackendMissing, match=f"{why}.*; do this"):
        cuda.gpu("do this")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.int64])
def test_a_buffer_takes_numbers_of_any_type_into_its_own(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    buffer = cuda.empty((2, 3), dtype)

    cuda.fill(buffer[:1], np.asfortranarray(np.arange(3.0)[None]))

    assert buffer.numpy().dtype == dtype
    assert buffer[0].tolist() == [0, 1, 2]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda's streams, events and graphs write down what happens to them."""
    log: list[str] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.time = 0.0

        def record(self, stream: Any) -> None:
            Event.made += 1
            self.time = 10.0 * Event.made
            log.append("event")

        def elapsed_time(self, after: "Event") -> float:
            return after.time - self.time

    class Graph:
        def replay(self) -> None:
            log.append(f"replay {self.slot}")

        slot = ""

    @contextlib.contextmanager
    def graph(graph: Graph, pool: str, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        log.append("capture")
        yield
        graph.slot = log[-1]
        log.append("captured")

    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: log.append("wait"))
    for name, value in {
        "Stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "graph_pool_handle": lambda: "pool",
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return log


def test_samples_lie_between_events_and_are_waited_for_once(log: list[str]) -> None:
    stream = cuda.Stream()

    times = stream.timer(lambda number: log.append(f"call {number}"), samples=2, calls=2)

    assert log == ["event", "call 0", "call 1", "event", "call 2", "call 3", "event", "wait"]
    assert times == [5.0, 5.0]  # ten milliseconds between events, two calls
    assert stream.handle == 7


def test_every_slot_runs_twice_before_it_is_captured_and_replays_in_turn(log: list[str]) -> None:
    replay = cuda.Stream().capture(lambda number: log.append(f"call {number}"))
    recorded = log.copy()
    log.clear()
    for number in range(6):
        replay(number)

    assert recorded == [
        entry
        for slot in range(cuda.SLOTS)
        for entry in (*[f"call {slot}", "wait"] * 2, "capture", f"call {slot}", "captured")
    ]
    assert log == [f"replay call {slot}" for slot in (0, 1, 2, 3, 0, 1)]


def test_what_torch_says_of_the_driver_is_told_in_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver\non your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)

    with pytest.raises(BackendMissing) as caught:
        cuda.gpu("do something else")

    reason = "CUDA initialization: The NVIDIA driver on your system is too old"
    assert str(caught.value) == f"no NVIDIA GPU is visible ({reason}); do something else"


def test_too_little_memory_is_told_by_batch_size() -> None:
    message = "^batch 256 does not fit into the GPU's memory; pass a smaller --batch$"
    with pytest.raises(UnsupportedByTarget, match=message), cuda.enough_memory(256):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
