"""A stand-in for the module `tensorrt` and for a GPU: engines that ONNX Runtime executes, in the memory that they are told.

It has the names that runtime_tests/runners/tensorrt.py and tensorrt_build.py use; tools/tensorrt_names.py compares those
with the real module's.
"""

import base64
import ctypes
import json
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx

from ofq_deploy.runtime_tests.runners.ort import OrtRunner
from ofq_deploy.runtime_tests.speed.rounds import wall_timer


class Severity(IntEnum):
    ERROR = 1
    VERBOSE = 4


class ILogger:
    def log(self, severity: Any, text: str) -> None:
        raise NotImplementedError


class Mode(IntEnum):
    INPUT = 1
    OUTPUT = 2


class Context:
    def __init__(self, engine: "CudaEngine") -> None:
        self.engine, self.shapes, self.addresses = engine, dict(engine.shapes), dict[str, int]()
        self.enqueued: list[dict[str, int]] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes = {key: (shape[0], *known[1:]) for key, known in self.shapes.items()} | {name: shape}
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name, shape in self.shapes.items() if -1 in shape]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle != 0, "the default stream"
        self.enqueued.append(dict(self.addresses))
        feeds = {name: self._memory(name) for name in self.engine.inputs}
        for name, values in self.engine.runner.infer(feeds).items():
            self._memory(name)[...] = values
        return True

    def _memory(self, name: str) -> Any:
        dtype = np.dtype(self.engine.dtypes[name])
        size = int(np.prod(self.shapes[name])) * dtype.itemsize
        buffer = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memoryview(buffer), dtype).reshape(self.shapes[name])


class CudaEngine:
    device_memory_size_v2 = 1 << 20

    def __init__(self, plan: dict[str, Any]) -> None:
        model = onnx.load_from_string(base64.b64decode(plan["onnx"]))
        self.runner, self.layers = OrtRunner(model, 1), plan["layers"]
        values = [*model.graph.input, *model.graph.output]
        self.inputs = [value.name for value in model.graph.input]
        self.names = [value.name for value in values]
        self.dtypes = {
            value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in values
        }
        self.shapes = {
            value.name: tuple(axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim) for value in values
        }
        self.contexts: list[Context] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.dtypes[name]

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": self.layers}))


class Tensor:
    def __init__(self, value: Any) -> None:
        self.name, self.shape = value.name, tuple(a.dim_value or -1 for a in value.type.tensor_type.shape.dim)


class Network:
    content = b""

    @property
    def num_inputs(self) -> int:
        return len(self._graph.input)

    def get_input(self, index: int) -> Tensor:
        return Tensor(self._graph.input[index])

    @property
    def _graph(self) -> Any:
        return onnx.load_from_string(self.content).graph


class Parser:
    num_errors = 0

    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network = network

    def parse(self, content: bytes) -> bool:
        self.network.content = content
        assert all(value.type.tensor_type.elem_type for value in onnx.load_from_string(content).graph.output)
        return True


class Config:
    def __init__(self) -> None:
        self.timings = b""

    def clear_flag(self, flag: Any) -> None:
        pass

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.timings = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.timings + b"timed ")


class FakeTensorRT(ModuleType):
    """layers: what the inspector tells of an engine, by whether the network has DequantizeLinear"""

    def __init__(self, layers: Callable[[bool], list[dict[str, Any]]]) -> None:
        super().__init__("tensorrt")
        self.__version__ = "11.4.0.106"
        self.layers, self.builds, self.engines = layers, 0, list[CudaEngine]()
        self.ILogger, self.TensorIOMode, self.OnnxParser = ILogger, Mode, Parser
        self.NetworkDefinitionCreationFlag = SimpleNamespace()
        self.BuilderFlag = SimpleNamespace(TF32=0)
        self.ProfilingVerbosity = SimpleNamespace(DETAILED=2)
        self.LayerInformationFormat = SimpleNamespace(JSON=1)
        self.nptype = lambda dtype: dtype

    def Builder(self, logger: ILogger) -> Any:
        return SimpleNamespace(
            create_network=lambda flags: Network(),
            create_builder_config=Config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *shapes: None),
            build_serialized_network=self._build,
        )

    def Runtime(self, logger: ILogger) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _build(self, network: Network, config: Config) -> bytes:
        self.builds += 1
        quantized = any(node.op_type == "DequantizeLinear" for node in network._graph.node)
        plan = {
            "build": self.builds,
            "layers": self.layers(quantized),
            "onnx": base64.b64encode(network.content).decode(),
        }
        return json.dumps(plan).encode()

    def _deserialize(self, plan: bytes) -> CudaEngine:
        self.engines.append(CudaEngine(json.loads(plan)))
        return self.engines[-1]


class FakeStream:
    """What ofq_deploy.runtime_tests.runners.cuda.Stream does, at once and on the processor."""

    handle = 7
    timer = staticmethod(wall_timer)

    def run(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, call: Callable[[int], None]) -> Callable[[int], None]:
        for number in range(2):
            call(number)
        return call
