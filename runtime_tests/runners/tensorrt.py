"""TensorRT and TensorRT-RTX on a GPU: engines with their buffers, and what in them multiplies integers."""

import hashlib
import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ofq_deploy.errors import BackendMissing, OnnxFileError
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runner import Arrays, Metadata, Opening, Runner
from ofq_deploy.runtime_tests.runners import cuda, engine_cache, tensorrt_build
from ofq_deploy.runtime_tests.runners.engine_cache import Ingredients
from ofq_deploy.runtime_tests.runners.executed import is_small_role
from ofq_deploy.runtime_tests.runners.tensorrt_build import ORIGIN, Layer

if TYPE_CHECKING:
    import onnx
    import torch

    from ofq_deploy.runtime_tests.speed.rounds import Call

WITHOUT_GPU = "ofq-deploy check MODEL --target tensorrt builds an engine without one"
WITHOUT_PACKAGE = (
    "TensorRT is missing: neither tensorrt nor tensorrt_rtx can be imported; install one (docs/gpu.md), or time the "
    "same layers with: ofq-deploy bench MODEL --backend torch-cuda"
)
DTYPES = {"int8": "Int8", "fp32": "Float", "float": "Float", "fp16": "Half", "half": "Half", "bf16": "BFloat16"}
DTYPE = re.compile(r"\b(int8|fp32|float|fp16|half|bf16)\b", re.IGNORECASE)


def available() -> tuple[Any, cuda.Gpu]:
    """The module, `tensorrt` or else `tensorrt_rtx`, and the GPU; BackendMissing without either."""
    try:
        trt = tensorrt_build.load()
    except BackendMissing as error:
        raise BackendMissing(WITHOUT_PACKAGE) from error
    return trt, cuda.gpu(WITHOUT_GPU)


def open_in_tensorrt(model: "OnnxFile | onnx.ModelProto", how: Opening) -> Runner:
    """One engine for one batch size, by default 1."""
    return TensorRTRunner(model.proto if isinstance(model, OnnxFile) else model, how.batch or 1)


class TensorRTRunner(Runner):
    """An engine of one batch size, from the cache or built now, with `cuda.SLOTS` input buffers in rotation.

    stream: by default one of its own; engines that are timed in turn share one

    Raises BackendMissing without TensorRT or without a GPU, OnnxFileError and UnsupportedByTarget when no engine can
    be built or run.
    """

    def __init__(
        self,
        model: "onnx.ModelProto",
        batch: int = 1,
        stream: cuda.Stream | None = None,
        optimization_level: int | None = None,
    ) -> None:
        (trt, self.gpu), self.batch = available(), batch
        start = time.perf_counter()
        found = _engine(trt, model, self.gpu, batch, optimization_level)
        load_ms = 1000 * (time.perf_counter() - start)
        self.layers = inspected_layers(_information(trt, found.engine))
        self._engine, self._context = found.engine, found.engine.create_execution_context()
        if self._context is None:  # of too little memory, mostly
            raise OnnxFileError(f"TensorRT cannot prepare the engine for batch {batch}: {_last_error()}")
        self.stream, self._buffers = stream or cuda.Stream(), self._allocate(trt)
        inputs = tuple(name for name, buffers in self._buffers.items() if len(buffers) == cuda.SLOTS)
        outputs = tuple(name for name in self._buffers if name not in inputs)
        settings = {
            "batch": batch,
            "optimization_level": optimization_level,
            "engine_from_cache": found.from_cache,
            "timing_cache_warm": found.timings_warm,
            "load_ms": round(load_ms, 3),
            "plan_bytes": found.plan_bytes,
            "device_memory_bytes": found.engine.device_memory_size_v2,
        }
        runtime = f"{trt.__name__} {trt.__version__}"
        self._metadata = Metadata("tensorrt", runtime, self.gpu.name, settings, inputs, outputs)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def infer(self, inputs: Arrays) -> Arrays:
        """Every output by its name. Any number of images: they run in batches of the engine's size."""
        parts = []
        for start in range(0, len(next(iter(inputs.values()))), self.batch):
            rows = {name: values[start : start + self.batch] for name, values in inputs.items()}
            count = len(next(iter(rows.values())))
            for name, values in rows.items():
                cuda.fill(self._buffers[name][0][:count], values)
            self.stream.run(lambda: self.launch(0))
            parts.append({name: self._buffers[name][0][:count].cpu().numpy().copy() for name in self.metadata.outputs})
        return {name: np.concatenate([part[name] for part in parts]) for name in self.metadata.outputs}

    def launch(self, number: int) -> None:
        """Enqueue one inference on the input buffers whose turn it is; nothing is copied and nothing waits."""
        for name in self.metadata.inputs:
            self._context.set_tensor_address(name, self._buffers[name][number % cuda.SLOTS].data_ptr())
        if not self._context.execute_async_v3(self.stream.handle):
            raise OnnxFileError(f"TensorRT did not start the engine: {_last_error()}")

    def launches(self, graph: bool) -> "Call":
        """`launch`, or the same captured in CUDA graphs."""
        return self.stream.capture(self.launch) if graph else self.launch

    def close(self) -> None:
        self._buffers, self._context, self._engine = {}, None, None

    def _allocate(self, trt: Any) -> dict[str, list["torch.Tensor"]]:
        """Buffers by name; an input has one for every slot, with random numbers in it. An output has one."""
        engine, context = self._engine, self._context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in inputs:
            context.set_input_shape(name, (self.batch, *tuple(engine.get_tensor_shape(name))[1:]))
        missing = context.infer_shapes()
        if missing:
            raise OnnxFileError(f"the engine leaves the shapes of {', '.join(missing)} open; fix them in the model")
        buffers = {}
        for name in names:
            shape, dtype = tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name))
            buffers[name] = [cuda.empty(shape, dtype) for _ in range(cuda.SLOTS if name in inputs else 1)]
            context.set_tensor_address(name, buffers[name][0].data_ptr())
        rng = np.random.default_rng(0)
        for buffer in (buffer for name in inputs for buffer in buffers[name]):
            cuda.fill(buffer, rng.standard_normal(tuple(buffer.shape)))
        return buffers


@dataclass(frozen=True, slots=True)
class Products:
    """What the products of an engine multiply.

    integer:         products of two int8 operands, or by an int8 kernel
    small:           float products of the per-key terms that shifts and the query bias need
    fused_attention: how many of the products are whole attentions
    kernels:         how often each integer kernel occurs
    layers:          how often each kind of layer occurs
    """

    integer: int
    float: int
    small: int
    fused_attention: int
    kernels: dict[str, int]
    layers: dict[str, int]


def count_products(layers: tuple[Layer, ...]) -> Products:
    """Count the products of an engine by what they multiply."""
    products = [layer for layer in layers if layer.is_product]
    integer = [layer for layer in products if layer.is_int8]
    floats = [layer for layer in products if not layer.is_int8]
    small = sum(is_small_role(layer.origin) for layer in floats)
    return Products(
        len(integer),
        len(floats) - small,
        small,
        sum(layer.is_attention for layer in products),
        dict(sorted(Counter(layer.tactic or "unnamed" for layer in integer).items())),
        dict(sorted(Counter(layer.kind for layer in layers).items())),
    )


def inspected_layers(information: str) -> tuple[Layer, ...]:
    """The layers in an engine inspector's JSON, which names data types differently in every generation."""
    return tuple(
        Layer(
            name=row["Name"],
            kind=row.get("LayerType", ""),
            inputs=_dtypes(row.get("Inputs", [])),
            constants=_dtypes([*row.get("Constants", []), row.get("Weights") or {}]),
            outputs=_dtypes(row.get("Outputs", [])),
            origin=tuple(ORIGIN.findall(row.get("Metadata", ""))),
            tactic=row.get("TacticName", ""),
        )
        for row in json.loads(information)["Layers"]
        if isinstance(row, dict)  # a bare name, where an engine was built with less detail
    )


def _dtypes(tensors: list[dict[str, Any]]) -> tuple[str, ...]:
    texts = [
        str(value)
        for row in tensors
        for key, value in row.items()
        if "datatype" in key.lower() or key.lower() == "type"
    ]
    return tuple(DTYPES[match[1].lower()] if (match := DTYPE.search(text)) else text for text in texts)


@dataclass(frozen=True, slots=True)
class _Deserialized:
    engine: Any
    from_cache: bool
    timings_warm: bool
    plan_bytes: int


def _engine(
    trt: Any, model: "onnx.ModelProto", gpu: cuda.Gpu, batch: int, optimization_level: int | None
) -> _Deserialized:
    content = _typed(model).SerializeToString(deterministic=True)
    ingredients = Ingredients(
        model=hashlib.sha256(content).hexdigest(),
        builder=hashlib.sha256(Path(tensorrt_build.__file__).read_bytes()).hexdigest(),
        package=trt.__name__,
        version=trt.__version__,
        gpu=gpu.name,
        capability=gpu.capability,
        driver=gpu.driver,
        profile=(batch, batch, batch),
        optimization_level=optimization_level,
    )
    runtime = trt.Runtime(tensorrt_build.logger())
    timings = engine_cache.load_timings(ingredients)
    plan = engine_cache.load(ingredients)
    engine = None if plan is None else runtime.deserialize_cuda_engine(plan)
    if plan is not None and engine is not None:
        return _Deserialized(engine, True, timings is not None, len(plan))
    built = tensorrt_build.build(
        content, profile=ingredients.profile, timing_cache=timings, optimization_level=optimization_level
    )
    engine = runtime.deserialize_cuda_engine(built.plan)
    if engine is None:
        raise OnnxFileError(f"{trt.__name__} built an engine that {gpu.name} does not take: {_last_error()}")
    engine_cache.store(ingredients, built.plan)
    if built.timing_cache:
        engine_cache.store_timings(ingredients, built.timing_cache)
    return _Deserialized(engine, False, timings is not None, len(built.plan))


def _typed(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model with the types of its outputs, which TensorRT asks for and a proof's taps leave open."""
    import onnx

    if all(output.type.tensor_type.elem_type for output in model.graph.output):
        return model
    return onnx.shape_inference.infer_shapes(model)


def _information(trt: Any, engine: Any) -> str:
    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


def _last_error() -> str:
    records = tensorrt_build.logger().records
    errors = [text for severity, text in records if severity in ("ERROR", "INTERNAL_ERROR")]
    return " ".join(errors[-1].split()) if errors else "it did not say why"
