"""What `bench` tells on a CPU."""

from typing import Annotated

from msgspec import UNSET, Struct, UnsetType

from ofq_deploy.results.fields import Count, Digest, Fraction, Interval, Result, about


class Conditions(Struct, frozen=True, kw_only=True):
    """What speed depends on beside the model and the machine."""

    runtime: Annotated[str | UnsetType, about("with its version")] = UNSET
    device: Annotated[str | UnsetType, about("cpu, or the GPU's name")] = UNSET
    threads: Annotated[int | str, about("threads")]
    affinity: Annotated[list[int] | None, about("CPUs that the process may use; null where the system does not say")]
    spinning: Annotated[bool, about("whether waiting threads spin")]


class Executed(Struct, frozen=True, kw_only=True):
    """Operators of the graph that the runtime executes."""

    integer: Annotated[Count, about("products in integers")]
    float: Annotated[Count, about("products in float")]
    small: Annotated[Count, about("small products per key, that shifts and a query bias need, in float")]
    leftover_dequantize: Annotated[Count, about("dequantizations that feed no small product")]
    operators: Annotated[dict[str, int], about("how often each operator occurs")]
    float_nodes: Annotated[list[str] | UnsetType, about("names of the products in float")] = UNSET


class Latency(Struct, frozen=True, kw_only=True):
    """Times at one batch size."""

    batch: Annotated[Count, about("images a call")]
    calls: Annotated[Count, about("calls measured")]
    p50: Annotated[float, about("median, ms")]
    p90: Annotated[float, about("90th percentile, ms")]
    p99: Annotated[float, about("99th percentile, ms")]
    images_per_s: Annotated[float, about("at the median")]
    cpu_p50: Annotated[float | UnsetType | None, about("median CPU time, ms")] = UNSET
    samples: Annotated[list[float] | UnsetType, about("ms a call, at most 500, evenly thinned")] = UNSET


class TimeShare(Struct, frozen=True, kw_only=True):
    """What one operator or role takes of a call."""

    name: Annotated[str, about("operator or role")]
    nodes: Annotated[Count, about("nodes")]
    ms: Annotated[float, about("a call, ms")]
    share: Annotated[Fraction, about("of all nodes' time")]


class Profile(Struct, frozen=True, kw_only=True):
    """Where the time goes."""

    operators: Annotated[list[TimeShare], about("largest first")]
    roles: Annotated[list[TimeShare], about("nodes of one name in all blocks, largest first")]


class Measured(Struct, frozen=True, kw_only=True):
    """One model."""

    path: Annotated[str, about("of the file")]
    file_bytes: Annotated[Count, about("bytes")]
    load_ms: Annotated[float, about("wall time to open it in a fresh process, ms")]
    peak_mb: Annotated[float, about("growth of that process's largest resident size, MB")]
    executed: Annotated[Executed, about("the optimized graph")]
    latency_ms: Annotated[list[Latency], about("by batch size")]
    profile: Annotated[Profile | UnsetType, about("time by operator and by role")] = UNSET
    sha256: Annotated[Digest | UnsetType, about("hex digest of the model file")] = UNSET


class Work(Struct, frozen=True, kw_only=True):
    """What the products of a network need."""

    macs: Annotated[Count, about("multiply-accumulates an image")]
    integer_macs: Annotated[Count | UnsetType, about("those of two integers of 8 bits or less")] = UNSET
    bit_operations: Annotated[Count, about("macs, each times the bits of both factors")]
    uncounted: Annotated[list[str] | UnsetType, about("operators that could not be counted")] = UNSET
    floor_ms: Annotated[float | None, about("least time of these at the peak, at the first batch size, ms")]
    distance: Annotated[float | None, about("median latency over floor_ms")]


class Arithmetic(Work, frozen=True, kw_only=True):
    """What the products of the model need, beside what this CPU could."""

    peak_macs_per_s: Annotated[dict[str, float] | None, about("measured here, multiply-accumulates per second by type")]
    peak_kernels: Annotated[dict[str, str] | UnsetType | None, about("what the peaks were measured with")] = UNSET
    baseline: Annotated[Work | UnsetType, about("the same of the baseline")] = UNSET


class CpuSpeedup(Struct, frozen=True, kw_only=True):
    """Speed by CPU time."""

    rounds: Annotated[Count, about("calls of each")]
    ratio_of_medians: Annotated[float, about("baseline's median over the model's: above 1 the model is faster")]
    interval: Annotated[Interval, about("95 % bootstrap interval of the ratio")]
    noise: Annotated[float, about("interquartile range of the baseline over its median")]
    conclusive: Annotated[bool, about("whether the interval allows a conclusion")]
    difference: Annotated[str, about("in a word")]


class Speedup(Struct, frozen=True, kw_only=True):
    """Speed beside the baseline's at one batch size."""

    batch: Annotated[Count, about("images a call")]
    rounds: Annotated[Count | UnsetType, about("calls of each")] = UNSET
    ratio_of_medians: Annotated[float, about("baseline's median over the model's: above 1 the model is faster")]
    interval: Annotated[Interval | UnsetType, about("95 % bootstrap interval of the ratio")] = UNSET
    noise: Annotated[float | UnsetType, about("interquartile range of the baseline over its median")] = UNSET
    conclusive: Annotated[bool | UnsetType, about("whether the interval allows a conclusion")] = UNSET
    difference: Annotated[str | UnsetType, about("in a word")] = UNSET
    cpu_time: Annotated[
        CpuSpeedup | UnsetType | None, about("the same of CPU times; null unless it ran on one thread")
    ] = UNSET


class BenchResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/bench/1"):
    """Result of ofq-deploy bench."""

    backend: Annotated[str, about("runtime")]
    threads: Annotated[int | str, about('threads, or "one per core"')]
    conditions: Annotated[Conditions | UnsetType, about("how it was measured")] = UNSET
    model: Annotated[Measured, about("the model")]
    baseline: Annotated[Measured | UnsetType, about("what it was compared with")] = UNSET
    arithmetic: Annotated[Arithmetic | UnsetType, about("what the products of the model need")] = UNSET
    speedup: Annotated[list[Speedup] | UnsetType, about("by batch size, where there is a baseline")] = UNSET
    verdict: Annotated[str, about("the conclusion in one sentence")]
