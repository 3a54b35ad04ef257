"""The configuration of a model in NVIDIA's Triton Inference Server, as protobuf text.

Fields: model_config.proto in triton-inference-server/common. What a backend demands of them: its README and checks on load.
"""

import json
import shlex
from dataclasses import dataclass

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.servable import ORT_TARGETS, Servable, Tensor

MAX_BATCH = 8
QUEUE_DELAY_US = 1000
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where the server's container has it

# The targets whose operators a backend reads.
BACKENDS = {"onnxruntime": (*ORT_TARGETS, "tensorrt"), "tensorrt": ("tensorrt", "fp32")}


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

    @property
    def preferred(self) -> list[int]:
        """Batch sizes that the server need not wait any longer for; empty where it does not batch."""
        return sorted({size for size in (self.max_batch // 2, self.max_batch) if size > 1})


def choose_serving(model: Servable, name: str, backend: str | None, max_batch: int | None, threads: int) -> Serving:
    """How to serve a model; by default with the backend that it was exported for, in batches of up to 8.

    Raises UnsupportedByTarget for a backend that does not read the model, or a batch size that the model does not take.
    """
    chosen = backend or ("tensorrt" if model.target == "tensorrt" else "onnxruntime")
    if chosen not in BACKENDS:
        raise UnsupportedByTarget(f"no Triton backend {chosen!r}; there are {', '.join(BACKENDS)}")
    if model.target not in BACKENDS[chosen]:
        raise UnsupportedByTarget(
            f"{model.path} was made for {model.target}, which Triton's {chosen} backend does not read; export it with "
            f"--target {' or '.join(BACKENDS[chosen][:2])}"
        )
    if model.batch is not None and (model.batch != 1 or max_batch is not None):
        raise UnsupportedByTarget(
            f"{model.path} takes exactly {model.batch} images at a time, a server cannot batch for it; "
            "export it with a symbolic batch axis"
        )
    batch = 0 if model.batch == 1 else max_batch or MAX_BATCH
    return Serving(name, chosen, "tensorrt" in (chosen, model.target), batch, threads)


def config(model: Servable, serving: Serving) -> str:
    """The text of config.pbtxt."""
    parts = [
        f'name: {_text(serving.name)}\nbackend: "{serving.backend}"\nmax_batch_size: {serving.max_batch}',
        _tensor("input", model.image, serving, ""),
        _tensor("output", model.logits, serving, '\n    label_filename: "labels.txt"'),
        "version_policy { latest { num_versions: 1 } }",
        f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if serving.gpu else 'KIND_CPU'} }} ]",
    ]
    if serving.preferred:
        sizes = ", ".join(map(str, serving.preferred))
        parts.append(
            f"dynamic_batching {{\n  preferred_batch_size: [ {sizes} ]\n"
            f"  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}"
        )
    if not serving.gpu:
        parts.append(f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{serving.threads}" }} }}')
    if serving.gpu and serving.backend == "onnxruntime":
        parts.append(_accelerator(model, serving))
    sizes_to_warm = sorted({1, serving.max_batch} - {0})
    parts.append("model_warmup [\n" + ",\n".join(_warmup(model.image, serving, size) for size in sizes_to_warm) + "\n]")
    return "\n".join(parts) + "\n"


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


def _tensor(field: str, tensor: Tensor, serving: Serving, more: str) -> str:
    return (
        f"{field} [\n  {{\n    name: {_text(tensor.name)}\n    data_type: TYPE_FP32\n"
        f"    dims: [ {_dims(tensor, serving)} ]{more}\n  }}\n]"
    )


def _warmup(image: Tensor, serving: Serving, size: int) -> str:
    return (
        f'  {{\n    name: "batch of {size}"\n    batch_size: {size}\n    inputs {{\n      key: {_text(image.name)}\n'
        f"      value {{ data_type: TYPE_FP32 dims: [ {_dims(image, serving)} ] random_data: true }}\n    }}\n  }}"
    )


def _accelerator(model: Servable, serving: Serving) -> str:
    """TensorRT inside of ONNX Runtime; INT8 lets it take the model's own quantization."""
    options = {"precision_mode": "INT8"}
    options |= {f"trt_profile_{end}_shapes": shapes for end, shapes in _profile(model, serving).items()}
    lines = [f"        parameters {{ key: {_text(key)} value: {_text(value)} }}\n" for key, value in options.items()]
    return (
        'optimization {\n  execution_accelerators {\n    gpu_execution_accelerator [\n      {\n        name: "tensorrt"\n'
        + "".join(lines)
        + "      }\n    ]\n  }\n}"
    )


def _dims(tensor: Tensor, serving: Serving) -> str:
    """Without the batch axis where the server batches: it adds that axis itself."""
    return ", ".join(str(axis) for axis in (tensor.shape[1:] if serving.max_batch else tensor.shape))


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
