"""What `bench` tells on a GPU."""

from typing import Annotated

from msgspec import UNSET, Struct, UnsetType

from ofq_deploy.results.fields import Count, Digest, Interval, Result, about


class Protocol(Struct, frozen=True, kw_only=True):
    """How latency was measured."""

    warm_up_calls: Annotated[Count, about("fewest calls before")]
    warm_up_seconds: Annotated[float, about("least time before, s")]
    rounds: Annotated[Count, about("fewest rounds")]
    seconds: Annotated[float, about("least time of all rounds, s")]
    samples: Annotated[Count, about("samples of a round")]
    calls: Annotated[Count, about("calls of a sample")]
    moved: Annotated[float, about("relative change of the clock that makes a round worthless")]


class ClockedRounds(Struct, frozen=True, kw_only=True):
    """The clock while calls were timed."""

    batch: Annotated[Count, about("images a call")]
    graph: Annotated[bool, about("whether calls were CUDA graphs")]
    sm_clock_mhz: Annotated[
        list[int | None],
        about("clock of the multiprocessors before the first round and after each, MHz; null without nvidia-smi"),
    ]
    discarded: Annotated[Count, about("rounds left out because the clock moved")]


class GpuLatency(Struct, frozen=True, kw_only=True):
    """Times of one form at one batch size."""

    form: Annotated[str | UnsetType, about("which form of a block, torch-cuda")] = UNSET
    batch: Annotated[Count, about("images a call")]
    calls: Annotated[Count, about("calls measured")]
    p10: Annotated[float, about("10th percentile, ms")]
    p50: Annotated[float, about("median, ms")]
    p90: Annotated[float, about("90th percentile, ms")]
    p99: Annotated[float, about("99th percentile, ms")]
    images_per_s: Annotated[float, about("at the median")]
    samples: Annotated[
        list[float], about("ms a call, each the mean of protocol.calls calls; at most 500, evenly thinned")
    ]


class Ratio(Struct, frozen=True, kw_only=True):
    """Speed beside the baseline's in the same rounds."""

    batch: Annotated[Count, about("images a call")]
    rounds: Annotated[Count, about("rounds of each")]
    ratio_of_medians: Annotated[
        float, about("baseline's median over the model's, of the medians of rounds: above 1 the model is faster")
    ]
    interval: Annotated[Interval, about("95 % bootstrap interval of the ratio")]
    noise: Annotated[float, about("interquartile range of the baseline over its median")]
    conclusive: Annotated[bool, about("whether the interval allows a conclusion")]
    difference: Annotated[str, about("in a word")]


class ProductForms(Struct, frozen=True, kw_only=True):
    """One matrix product of a block in every form."""

    batch: Annotated[Count, about("images a call")]
    name: Annotated[str, about("in the block")]
    left: Annotated[Count, about("matrices on the left, an image")]
    right: Annotated[Count, about("matrices on the right")]
    m: Annotated[Count, about("rows")]
    n: Annotated[Count, about("columns")]
    k: Annotated[Count, about("inner size")]
    constant: Annotated[bool, about("whether the right side is a weight")]
    skipped: Annotated[dict[str, str], about("forms that were not timed, and why")]
    wrong: Annotated[dict[str, str], about("forms that are not exact, and how")]
    latency_ms: Annotated[dict[str, GpuLatency], about("by form")]
    fastest_float: Annotated[str, about("the float form with the lowest median")]
    speedup: Annotated[dict[str, Ratio], about("speed of each int8 form over the fastest float one")]
    sm_clock_mhz: Annotated[
        list[int | None],
        about("clock of the multiprocessors before the first round and after each, MHz; null without nvidia-smi"),
    ]
    discarded: Annotated[Count, about("rounds left out because the clock moved")]


class BlockForms(Struct, frozen=True, kw_only=True):
    """A whole block in every form."""

    batch: Annotated[Count, about("images a call")]
    skipped: Annotated[dict[str, str], about("forms that were not timed, and why")]
    wrong: Annotated[dict[str, str], about("forms that are not exact, and how")]
    latency_ms: Annotated[dict[str, GpuLatency], about("by form")]
    fastest_float: Annotated[str, about("the float form with the lowest median")]
    speedup: Annotated[dict[str, Ratio], about("speed of each int8 form over the fastest float one")]
    sm_clock_mhz: Annotated[
        list[int | None],
        about("clock of the multiprocessors before the first round and after each, MHz; null without nvidia-smi"),
    ]
    discarded: Annotated[Count, about("rounds left out because the clock moved")]


class EngineSettings(Struct, frozen=True, kw_only=True):
    """How an engine was built."""

    batch: Annotated[Count, about("images a call")]
    optimization_level: Annotated[int | None, about("the builder's; null for its own choice")]
    engine_from_cache: Annotated[bool, about("whether it was built before")]
    timing_cache_warm: Annotated[bool, about("whether timings of earlier builds were there")]
    load_ms: Annotated[float, about("time to build it, or to read it from the cache, ms")]
    plan_bytes: Annotated[Count, about("bytes of the engine")]
    device_memory_bytes: Annotated[Count, about("what a call needs on the GPU beside weights, inputs and outputs")]


class Engine(Struct, frozen=True, kw_only=True):
    """An engine as a runner tells of itself."""

    backend: Annotated[str, about("tensorrt")]
    runtime: Annotated[str, about("package and version")]
    device: Annotated[str, about("the GPU's name")]
    tie: Annotated[float, about("how far from a threshold, in steps, a code may be judged a tie")]
    settings: Annotated[EngineSettings, about("of the build")]
    inputs: Annotated[list[str], about("names")]
    outputs: Annotated[list[str], about("names")]


class EngineProducts(Struct, frozen=True, kw_only=True):
    """What an engine multiplies."""

    integer: Annotated[Count, about("products of two int8 operands, or by an int8 kernel")]
    float: Annotated[Count, about("all other products but the small ones")]
    small: Annotated[Count, about("small products per key, that shifts and a query bias need, in float")]
    fused_attention: Annotated[Count, about("how many of the products are whole attentions")]
    kernels: Annotated[dict[str, int], about("how often each integer kernel occurs")]
    layers: Annotated[dict[str, int], about("how often each kind of layer occurs")]


class Agreement(Struct, frozen=True, kw_only=True):
    """An engine's logits beside ONNX Runtime's."""

    images: Annotated[Count, about("images")]
    same_prediction: Annotated[Count, about("images with the same largest logit")]
    worst_logit_difference: Annotated[
        float | None, about("largest absolute difference; null where a logit is not finite")
    ]


class EngineAtBatch(Struct, frozen=True, kw_only=True):
    """An engine for one batch size."""

    batch: Annotated[Count, about("images a call")]
    engine: Annotated[Engine, about("how it was made")]
    products: Annotated[EngineProducts, about("what it multiplies, by its inspector")]
    against_onnxruntime: Annotated[Agreement, about("on random images")]


class GpuMeasured(Struct, frozen=True, kw_only=True):
    """One network, by batch size."""

    what: Annotated[str, about("what was measured")]
    batches: Annotated[list[EngineAtBatch] | UnsetType, about("its engines by batch size, tensorrt")] = UNSET
    latency_ms: Annotated[list[GpuLatency], about("by batch size, as CUDA graphs")]
    latency_ms_without_graph: Annotated[
        list[GpuLatency] | UnsetType, about("the same launched one by one, tensorrt")
    ] = UNSET


class GpuModel(GpuMeasured, frozen=True, kw_only=True):
    """The network that the result is about, with its file."""

    path: Annotated[str, about("of the file")]
    sha256: Annotated[Digest, about("hex digest of the model file")]
    file_bytes: Annotated[Count, about("bytes")]


class Gpu(Struct, frozen=True, kw_only=True):
    """A GPU."""

    name: Annotated[str, about("its name")]
    capability: Annotated[str, about("compute capability")]
    driver: Annotated[str, about("version; empty where it is not known")]
    uuid: Annotated[str, about("its identity")]


class BenchGpuResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/bench-gpu/1"):
    """Result of ofq-deploy bench on a GPU (--backend tensorrt or torch-cuda)."""

    backend: Annotated[str, about("runtime")]
    protocol: Annotated[Protocol, about("how it was measured; see docs/gpu.md")]
    rounds: Annotated[list[ClockedRounds] | UnsetType, about("by batch size and way of launching, tensorrt")] = UNSET
    products: Annotated[list[ProductForms] | UnsetType, about("every matrix product of a block, torch-cuda")] = UNSET
    blocks: Annotated[list[BlockForms] | UnsetType, about("one whole block, torch-cuda")] = UNSET
    model: Annotated[GpuModel, about("the model; with torch-cuda its fastest int8 block")]
    baseline: Annotated[
        GpuMeasured | UnsetType, about("what it was compared with; with torch-cuda the fastest float block")
    ] = UNSET
    float32: Annotated[GpuMeasured | UnsetType, about("the float model in float32, tensorrt")] = UNSET
    gpu: Annotated[Gpu, about("the GPU")]
    faults: Annotated[list[str], about("what failed")]
    passed: Annotated[
        bool,
        about(
            "false ends the command with exit code 3: nothing ran in integers, an engine overflowed, or an int8 form is not exact"
        ),
    ]
    speedup: Annotated[list[Ratio] | UnsetType, about("by batch size, where there is a baseline")] = UNSET
    speedup_without_graph: Annotated[
        list[Ratio] | UnsetType, about("the same of calls launched one by one, tensorrt")
    ] = UNSET
    verdict: Annotated[str, about("the conclusion in one sentence")]
