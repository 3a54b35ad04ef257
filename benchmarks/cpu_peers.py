"""Speed on the CPU of our files beside what one would use instead: float models and 8-bit quantizers.

    python benchmarks/cpu_peers.py -o benchmarks/results/cpu_peers.json

DeiT-T and DeiT-S (distilled, 224 x 224) with random weights: speed does not depend on what a network has learned.
Everything runs in one process, one call of each entry per round in a new random order, and an entry's ratio is the
median over the rounds of baseline time / own time in that round. One thread is compared by CPU time, which other
programs disturb least; several threads by wall time, because waiting threads spin.
OpenVINO and NNCF are optional (pip install openvino nncf); what is absent or fails is named and left out.
"""

import argparse
import contextlib
import copy
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from peers import export_float, quantized_by_onnxruntime
from safetensors.torch import save_file
from torch import Tensor, nn

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.environment import environment
from ofq_deploy.export.fp32 import build_fp32
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.runners.executed import executed_operators
from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits
from ofq_deploy.targets import TARGETS
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.freeze import freeze

MODELS = {"t": "deit_tiny_distilled_patch16_224", "s": "deit_small_distilled_patch16_224"}
FORMS: dict[str, dict[str, Any]] = {
    "qk, tensor steps, no shifts": {"attention": "qk", "act_step": "tensor", "shifts": False},
    "qk, tensor steps + shifts": {"attention": "qk", "act_step": "tensor"},
    "qkr, tensor steps, no shifts": {"attention": "qkr", "act_step": "tensor", "shifts": False},
    "qk, token steps + shifts": {"attention": "qk", "act_step": "token"},
    "qkr, token steps + shifts": {"attention": "qkr", "act_step": "token"},
}
PLAIN_FORMS = {
    "qk, tensor steps, no shifts",
    "qk, token steps + shifts",
    "qkr, token steps + shifts",
}  # of ordinary operators too
IMAGE = (3, 224, 224)
PREPROCESSING = Preprocessing(224, 248, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BASELINE = "ORT fp32, our export"
CALIBRATION_IMAGES = 8
WARM_UP = 3
REST_S = 0.005  # before each call on several threads: those of the call before stop spinning

Images = NDArray[np.float32]
Run = Callable[[Images], Images]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to measure.

    open:     from batch size and threads (1 or more) to the function that is timed
    products: how many the runtime computes in integers and in float, where it says so
    is_float: its logits must be torch's
    """

    name: str
    open: Callable[[int, int], Run]
    file_bytes: int | None = None
    products: tuple[int, int] | None = None
    is_float: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4], help="of weights and activations of our files")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 0], help="0: one per core")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # the peers' own remarks
    warnings.simplefilter("ignore")
    report, results = Reporter(quiet=False), []
    left_out: dict[str, str] = {}
    for size in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            network = random_network(size)
            with contextlib.redirect_stdout(sys.stderr):  # NNCF draws its progress on stdout
                entries = prepare(network, arguments.bits, Path(folder), report, left_out)
            for threads in dict.fromkeys(count or os.cpu_count() or 1 for count in arguments.threads):
                for batch in arguments.batches:
                    title = f"DeiT-{size.upper()}, batch {batch}, threads {threads}"
                    report.say(title)
                    rows = measure(entries, network, batch, threads, arguments.rounds, report, left_out)
                    print(f"\n{title}\n\n{markdown(rows)}", flush=True)
                    results.append({"model": MODELS[size], "batch": batch, "threads": threads, "entries": rows})
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    where = environment()
    with contextlib.suppress(metadata.PackageNotFoundError):
        where["packages"]["nncf"] = metadata.version("nncf")
    result: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "environment": where, "baseline": BASELINE}
    result |= {"rounds": arguments.rounds, "results": results, "left_out": left_out}
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


# The networks.


def random_network(size: str) -> Any:
    """timm's model with its initial weights, and query, key and value biases as a trained one has."""
    torch.manual_seed(0)
    network: Any = timm.create_model(MODELS[size]).eval()
    for block in network.blocks:
        nn.init.normal_(block.attn.qkv.bias, std=0.5)
    return network


def pruned_network(network: Any) -> Any:
    """A copy whose last block computes only the tokens that are read, as our integer files do."""
    pruned = copy.deepcopy(network)
    pruned.blocks[-1] = PrunedBlock(pruned.blocks[-1], pruned.num_prefix_tokens)
    return pruned.eval()


class PrunedBlock(nn.Module):
    """timm's block for the first `rows` tokens."""

    def __init__(self, block: Any, rows: int) -> None:
        super().__init__()
        self.block, self.rows, dim = block, rows, block.attn.qkv.in_features
        self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        for name in ("weight", "bias"):
            whole = getattr(block.attn.qkv, name).data
            getattr(self.q, name).data, getattr(self.kv, name).data = whole[:dim], whole[dim:]

    def forward(self, x: Tensor) -> Tensor:
        block, h = self.block, self.block.norm1(x)
        parts = [self.q(h[:, : self.rows]), *self.kv(h).chunk(2, -1)]
        q, k, v = (part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for part in parts)
        context = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x[:, : self.rows] + block.attn.proj(context)
        return x + block.mlp(block.norm2(x))


def frozen_network(network: Any, config: Quantization) -> Frozen:
    """The network quantized as `config` says: steps from noise, shifts random because training moves them."""
    torch.manual_seed(0)
    quantized, _ = convert(network, config)
    calibrate(quantized, torch.randn(2, *IMAGE))
    with torch.no_grad():
        for name, parameter in quantized.named_parameters():
            if name.endswith((".before", ".after")):
                parameter.normal_(std=0.05)
    return freeze(quantized, config, PREPROCESSING, tuple(map(str, range(1000))))


# The files.


def prepare(network: Any, bits: list[int], folder: Path, report: Reporter, left_out: dict[str, str]) -> list[Entry]:
    """Every file of one network, written to `folder`, as an entry; what cannot be made goes to `left_out`."""
    entries: list[Entry] = []

    def add(make: Callable[..., Entry], name: str, *arguments: Any, **options: Any) -> None:
        report.say(f"prepare {name}")
        with attempt(name, left_out):
            entries.append(make(name, *arguments, **options))

    own = folder / "own.onnx"
    save_file(network.state_dict(), folder / "weights.safetensors")
    for width in bits:
        for form, choices in FORMS.items():
            frozen = frozen_network(network, Quantization(width, width, **choices))
            if not own.exists():
                write_checked(build_fp32(frozen, folder / "weights.safetensors"), own)
                add(ort_entry, BASELINE, own, is_float=True)
            for target in ("ort-ofq", "ort-cpu", "portable", "openvino"):
                if (target != "ort-ofq" and form not in PLAIN_FORMS) or (
                    target == "openvino" and choices["act_step"] == "token"
                ):
                    continue
                path = folder / f"{target}-{len(entries)}.onnx"
                write_checked(build(frozen, TARGETS[target]), path)
                if target != "openvino":
                    add(ort_entry, f"ours {target}, W{width}A{width} {form}", path)
                if target in ("ort-cpu", "openvino"):
                    add(openvino_entry, f"ours {target} in OpenVINO f32, W{width}A{width} {form}", path, "f32")
    for model, suffix in ((network, ""), (pruned_network(network), ", last block pruned")):
        path = folder / f"float{len(entries)}.onnx"
        export_float(model, IMAGE, path)
        add(ort_entry, f"ORT fp32, torch.onnx{suffix}", path, is_float=True)
        add(ort_quantized, f"ORT quantize_dynamic{suffix}", path, is_static=False)
        add(ort_quantized, f"ORT quantize_static QDQ{suffix}", path, is_static=True)
        for hint in ("f32", ""):
            precision = hint or "default precision"
            add(openvino_entry, f"OpenVINO fp32, {precision}{suffix}", path, hint, is_float=hint == "f32")
            add(nncf_entry, f"OpenVINO NNCF int8, {precision}{suffix}", path, hint)
    entries.append(Entry("torch eager", partial(open_torch, network), is_float=True))
    entries.append(Entry("torch.compile", partial(open_compiled, network), is_float=True))
    return entries


@contextlib.contextmanager
def attempt(name: str, left_out: dict[str, str]) -> Iterator[None]:
    """Note an exception and go on: one peer that fails must not cost the others."""
    try:
        yield
    except Exception as error:
        lines = [line for line in str(error).splitlines() if not line.startswith("Exception from")]
        left_out[name] = f"{type(error).__name__}: {' '.join(lines)[:300]}"
        print(f"left out: {name}: {left_out[name]}", file=sys.stderr, flush=True)


def calibration_images() -> list[Images]:
    return list(np.random.default_rng(1).standard_normal((CALIBRATION_IMAGES, 1, *IMAGE), dtype=np.float32))


def ort_quantized(name: str, source: Path, is_static: bool) -> Entry:
    return ort_entry(name, quantized_by_onnxruntime(source, "image", calibration_images(), is_static))


def nncf_entry(name: str, source: Path, precision: str) -> Entry:
    import nncf
    import openvino

    path = source.with_suffix(".nncf.xml")
    if not path.exists():
        model, images = openvino.Core().read_model(source), nncf.Dataset(calibration_images())
        kind = nncf.ModelType.TRANSFORMER
        quantized = nncf.quantize(model, images, model_type=kind, subset_size=CALIBRATION_IMAGES)
        openvino.save_model(quantized, path, compress_to_fp16=False)
    return openvino_entry(name, path, precision)


# How each runtime is opened.


def ort_entry(name: str, path: Path, is_float: bool = False) -> Entry:
    executed = executed_operators(OnnxFile(path))
    products = executed.integer, executed.float
    return Entry(
        name, lambda _, threads: partial(run_logits, open_session(path, threads)), size(path), products, is_float
    )


def openvino_entry(name: str, path: Path, precision: str, is_float: bool = False) -> Entry:
    """precision: its hint, or "" for the plugin's own choice, bfloat16 where the CPU has it"""
    import openvino

    core = openvino.Core()

    def compiled(batch: int, threads: int) -> Any:
        model = core.read_model(path)
        model.reshape([batch, *IMAGE])
        hint = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        return core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, **hint})

    def opened(batch: int, threads: int) -> Run:
        request = compiled(batch, threads).create_infer_request()
        return lambda images: request.infer([images], share_inputs=True, share_outputs=True)[0]

    return Entry(name, opened, size(path), openvino_products(compiled(1, 1)), is_float)


def openvino_products(compiled: Any) -> tuple[int, int]:
    """Products with a node of their own; those inside a fused subgraph are not seen."""
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [
        info["runtimePrecision"].astype(str)
        for info in nodes
        if info["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
    ]
    integer = kinds.count("i8") + kinds.count("u8")
    return integer, len(kinds) - integer


def open_torch(function: Any, batch: int, threads: int) -> Run:
    def run(images: Images) -> Images:
        with torch.inference_mode():
            return function(torch.from_numpy(images)).numpy()

    torch.set_num_threads(threads)
    return run


def open_compiled(network: Any, batch: int, threads: int) -> Run:
    torch.set_num_threads(threads)
    torch.compiler.reset()  # compiled code holds the number of threads and the batch size
    run = open_torch(torch.compile(network), batch, threads)
    run(np.zeros((batch, *IMAGE), dtype=np.float32))  # compiles, which is part of loading
    return run


def size(path: Path) -> int:
    """Bytes of a model: OpenVINO's are a pair of files."""
    return sum(part.stat().st_size for part in {path, path.with_suffix(".bin")} if part.exists())


# The measurement.


def measure(
    entries: list[Entry],
    network: Any,
    batch: int,
    threads: int,
    rounds: int,
    report: Reporter,
    left_out: dict[str, str],
) -> list[dict[str, Any]]:
    """Open every entry, then call each once a round."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch, *IMAGE), dtype=np.float32)
    expected = open_torch(network, batch, threads)(images)
    ready: list[tuple[Entry, Run, float]] = []
    with report.task("open", len(entries)) as advance:
        for entry in entries:
            with attempt(entry.name, left_out):
                start = time.perf_counter()
                run = entry.open(batch, threads)
                load_ms = 1000 * (time.perf_counter() - start)
                for _ in range(WARM_UP):
                    logits = run(images)
                if entry.is_float and np.abs(logits - expected).max() > 1e-4 * np.abs(expected).max():
                    raise ValueError("its logits are not those of torch")
                ready.append((entry, run, load_ms))
            advance()
    times = np.empty((2, len(ready), rounds))  # wall and CPU ms
    with report.task("measure", rounds) as advance:
        for number in range(rounds):
            for index in generator.permutation(len(ready)):
                if threads > 1:
                    time.sleep(REST_S)
                wall, cpu = time.perf_counter(), time.process_time()
                ready[index][1](images)
                times[:, index, number] = 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)
            advance()
    compared = times[1 if threads == 1 else 0]
    baseline = compared[[entry.name for entry, _, _ in ready].index(BASELINE)]
    return [
        {
            "name": entry.name,
            "file_bytes": entry.file_bytes,
            "products_integer_float": entry.products,
            "load_ms": load_ms,
            "wall_ms": float(np.median(times[0, index])),
            "cpu_ms": float(np.median(times[1, index])),
            "ratio": float(np.median(baseline / compared[index])),
            "ratio_quartiles": np.percentile(baseline / compared[index], [25, 75]).tolist(),
        }
        for index, (entry, _, load_ms) in enumerate(ready)
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table; behind the ratio its quartiles."""
    heads = ["entry", "file MB", "products int / float", "load ms", "wall ms", "CPU ms", "ratio"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        file_mb = "" if row["file_bytes"] is None else f"{row['file_bytes'] / 1e6:.1f}"
        products = " / ".join(map(str, row["products_integer_float"] or []))
        low, high = row["ratio_quartiles"]
        times = f"{row['load_ms']:.0f}", f"{row['wall_ms']:.1f}", f"{row['cpu_ms']:.1f}"
        lines.append([row["name"], file_mb, products, *times, f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
