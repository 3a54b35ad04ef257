"""The configuration of a model in NVIDIA's Triton Inference Server, as protobuf text.

Fields: model_config.proto in triton-inference-server/common. What a backend demands of them: its README and checks on load.
"""

import json
import shlex
from dataclasses import dataclass
from typing import Any

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.serving.servable import Servable, Tensor
from ofq_deploy.targets import TARGETS

MAX_BATCH = 8
QUEUE_DELAY_US = 1000
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where the server's container has it

# Triton's backends, and whether one runs on a GPU only.
BACKENDS = {"onnxruntime": False, "tensorrt": True}


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served.

    max_batch: images that the server may run at once, 0 for a model whose batch axis is fixed
    threads:   of one operator on the CPU, 0 for one per core
    """

    name: str
    backend: str
    gpu: bool
    max_batch: int
    threads: int


class Enum(str):
    """A value that is written without quotes."""


def choose_serving(model: Servable, name: str, backend: str | None, max_batch: int | None, threads: int) -> Serving:
    """How to serve a model; by default with the backend that it was exported for, in batches of up to 8.

    Raises UnsupportedByTarget for a backend that does not read the model, or a batch size that the model does not take.
    """
    if threads < 0 or (max_batch is not None and max_batch < 1):
        raise ValueError(f"expected threads from 0 and max_batch from 1, got {threads} and {max_batch}")
    chosen = backend or next(iter(model.target.triton or BACKENDS))
    if chosen not in BACKENDS:
        raise UnsupportedByTarget(f"no Triton backend {chosen!r}; there are {', '.join(BACKENDS)}")
    if chosen not in model.target.triton:
        readable = [target for target in TARGETS.values() if chosen in target.triton]
        readable.sort(key=lambda target: target.triton[0] != chosen)
        raise UnsupportedByTarget(
            f"{model.path} was made for {model.target.name}, which Triton's {chosen} backend does not read; export it with "
            f"--target {' or '.join(target.name for target in readable[:2])}"
        )
    if model.batch is not None and (model.batch != 1 or max_batch is not None):
        raise UnsupportedByTarget(
            f"{model.path} has its batch axis fixed to {model.batch}, a server cannot put images together for it; export it "
            "with a symbolic one"
        )
    batch = 0 if model.batch == 1 else max_batch or MAX_BATCH
    return Serving(name, chosen, BACKENDS[chosen] or BACKENDS[model.target.triton[0]], batch, threads)


def config(model: Servable, serving: Serving) -> str:
    """The text of config.pbtxt."""
    message: dict[str, Any] = {
        "name": serving.name,
        "backend": serving.backend,
        "max_batch_size": serving.max_batch,
        "input": _tensor(model.image, serving),
        "output": _tensor(model.logits, serving) | {"label_filename": "labels.txt"},
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": {"count": 1, "kind": Enum("KIND_GPU" if serving.gpu else "KIND_CPU")},
    }
    sizes = sorted({size for size in (serving.max_batch // 2, serving.max_batch) if size > 1})
    if sizes:
        message["dynamic_batching"] = {
            "preferred_batch_size": sizes,
            "max_queue_delay_microseconds": QUEUE_DELAY_US,
        }
    if not serving.gpu:
        message["parameters"] = {"key": "intra_op_thread_count", "value": {"string_value": str(serving.threads)}}
    elif not BACKENDS[serving.backend]:  # TensorRT inside of it; INT8 lets it take the model's own quantization
        options = {"precision_mode": "INT8"}
        options |= {f"trt_profile_{end}_shapes": shapes for end, shapes in _profile(model, serving).items()}
        parameters = [{"key": key, "value": value} for key, value in options.items()]
        accelerator = {"name": "tensorrt", "parameters": parameters}
        message["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": accelerator}}
    message["model_warmup"] = [
        {"name": f"batch of {size}", "batch_size": size, "inputs": _random_image(model.image, serving)}
        for size in sorted({1, serving.max_batch} - {0})
    ]
    return _text(message)


def plan_command(model: Servable, serving: Serving) -> str:
    """The command that compiles the model, in the folder of the repository."""
    version = f"{serving.name}/1"
    words = [TRTEXEC, "--stronglyTyped", f"--onnx={version}/model.onnx", f"--saveEngine={version}/model.plan"]
    words += [f"--{end}Shapes={shapes}" for end, shapes in _profile(model, serving).items()]
    return " \\\n    ".join(shlex.quote(word) for word in words)


def _profile(model: Servable, serving: Serving) -> dict[str, str]:
    """Shapes that an engine must take, tuned for the largest; empty where the batch axis is fixed."""
    if not serving.max_batch:
        return {}
    sides = "x".join(str(axis) for axis in model.image.shape[1:])
    sizes = {"min": 1, "opt": serving.max_batch, "max": serving.max_batch}
    return {end: f"{model.image.name}:{size}x{sides}" for end, size in sizes.items()}


def _tensor(tensor: Tensor, serving: Serving) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": Enum("TYPE_FP32"), "dims": _dims(tensor, serving)}


def _random_image(image: Tensor, serving: Serving) -> dict[str, Any]:
    value = {"data_type": Enum("TYPE_FP32"), "dims": _dims(image, serving), "random_data": True}
    return {"key": image.name, "value": value}


def _dims(tensor: Tensor, serving: Serving) -> list[int | None]:
    """Without the batch axis where the server batches: it adds that axis itself."""
    return list(tensor.shape[1:] if serving.max_batch else tensor.shape)


def _text(message: dict[str, Any], indent: str = "") -> str:
    """Protobuf's text format; a list is a repeated field."""
    lines = []
    for field, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                lines.append(f"{indent}{field} {{\n{_text(item, indent + '  ')}{indent}}}\n")
            else:
                scalar = item if isinstance(item, Enum) else json.dumps(item, ensure_ascii=False)
                lines.append(f"{indent}{field}: {scalar}\n")
    return "".join(lines)
