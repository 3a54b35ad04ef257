"""Latency of a model in TensorRT, interleaved with float16 and float32 engines of the same network."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ofq_deploy.model.file import OnnxFile
from ofq_deploy.progress import Reporter
from ofq_deploy.runner import logits
from ofq_deploy.runtime_tests.runners import cuda
from ofq_deploy.runtime_tests.runners.ort import OrtRunner
from ofq_deploy.runtime_tests.runners.tensorrt import TensorRTRunner, count_products
from ofq_deploy.runtime_tests.speed.float16 import float16
from ofq_deploy.runtime_tests.speed.rounds import Protocol, latency, measure, ratio

if TYPE_CHECKING:
    import onnx

ROLES = {"model": "the model", "baseline": "the float model in float16", "float32": "the float model in float32"}
SUFFIX = {True: "", False: "_without_graph"}


def bench_tensorrt(
    model: OnnxFile,
    float_model: OnnxFile | None,
    batches: tuple[int, ...],
    shape: tuple[int, ...],
    report: Reporter,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Measure `model` and, in turn with it, `float_model` as float16 and float32 engines, at every batch size.

    shape: of an image, [channels, height, width]

    Every engine is first compared with ONNX Runtime on the same graph. Rows are of CUDA graphs; those of plain
    launches are under `latency_ms_without_graph` and `speedup_without_graph`. `passed` is false when no product of
    the model runs in integers, and when an engine overflows. Raises what TensorRTRunner raises.
    """
    protocol = protocol or Protocol()
    graphs = {"model": model.proto}
    if float_model is not None:
        graphs |= {"baseline": float16(float_model.proto), "float32": float_model.proto}
    result: dict[str, Any] = {"backend": "tensorrt", "protocol": asdict(protocol), "rounds": [], "faults": []}
    result |= {role: {"what": ROLES[role], "batches": []} for role in graphs}
    for batch in batches:
        with cuda.enough_memory(batch), ExitStack() as stack:
            first = stack.enter_context(TensorRTRunner(graphs["model"], batch))
            runners = {"model": first}
            for role in list(graphs)[1:]:
                runners[role] = stack.enter_context(TensorRTRunner(graphs[role], batch, first.stream))
            images = np.random.default_rng(batch).standard_normal((batch, *shape), dtype=np.float32)
            result["gpu"] = asdict(first.gpu)
            for role, runner in runners.items():
                result[role]["batches"].append(_described(runner, graphs[role], images))
            for captured in (True, False):
                _time(runners, batch, captured, protocol, report, result)
    counts = result["model"]["batches"][0]["products"]
    if not all(row["products"]["integer"] for row in result["model"]["batches"]):
        result["faults"].append(
            "no product of the engine runs in integers (ofq-deploy check MODEL --target tensorrt names them)"
        )
    for role in graphs:
        rows = result[role]["batches"]
        if any(row["against_onnxruntime"]["worst_logit_difference"] is None for row in rows):
            result["faults"].append(f"the engine of {ROLES[role]} gives logits that are not finite")
    result["passed"] = not result["faults"]
    failed = f"Failed: {result['faults'][0]}; " if result["faults"] else ""
    result["verdict"] = failed + _verdict(counts, result.get("speedup", []))
    return result


def _described(runner: TensorRTRunner, graph: "onnx.ModelProto", images: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What the engine is, what it multiplies, and how far its logits are from those of ONNX Runtime."""
    with OrtRunner(graph, 1) as reference:
        expected, found = logits(reference, images), logits(runner, images)
    finite = bool(np.isfinite(found).all())
    return {
        "batch": runner.batch,
        "engine": asdict(runner.metadata),
        "products": asdict(count_products(runner.layers)),
        "against_onnxruntime": {
            "images": len(images),
            "same_prediction": int((expected.argmax(-1) == found.argmax(-1)).sum()),
            "worst_logit_difference": float(np.abs(expected - found).max()) if finite else None,
        },
    }


def _time(
    runners: dict[str, TensorRTRunner],
    batch: int,
    captured: bool,
    protocol: Protocol,
    report: Reporter,
    result: dict[str, Any],
) -> None:
    first, suffix = runners["model"], SUFFIX[captured]
    calls = {role: runner.launches(captured) for role, runner in runners.items()}
    title = f"bench, batch {batch}" + (", CUDA graph" if captured else "")
    found = measure(calls, first.stream.timer, lambda: cuda.sm_clock(first.gpu), protocol, report, title)
    result["rounds"].append(
        {"batch": batch, "graph": captured, "sm_clock_mhz": found.clock, "discarded": found.discarded}
    )
    for role, rounds in found.rounds.items():
        result[role].setdefault(f"latency_ms{suffix}", []).append(asdict(latency(batch, rounds, protocol)))
    if "baseline" in runners:
        rows = result.setdefault(f"speedup{suffix}", [])
        rows.append(ratio(batch, found.rounds["baseline"], found.rounds["model"]))


def _verdict(counts: dict[str, Any], speedups: list[dict[str, Any]]) -> str:
    products = f"{counts['integer']} of {counts['integer'] + counts['float']} products run in integers"
    if not speedups:
        return f"{products}; nothing to compare with"
    ratios = ", ".join(
        f"{row['ratio_of_medians']:.2f} at batch {row['batch']}" + ("" if row["conclusive"] else " (not conclusive)")
        for row in speedups
    )
    return f"{products}; speed over float16: {ratios}"
