"""What bench claims: intervals that hold, noise that is named, arithmetic that can be counted by hand."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec import convert
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ofq_deploy import api
from ofq_deploy.cli import speed_texts
from ofq_deploy.errors import OnnxFileError, UnsupportedByTarget
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.model.vit import Vit
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Quantization
from ofq_deploy.results.bench import BenchResult
from ofq_deploy.runner import Arrays, Metadata, Runner
from ofq_deploy.runtime_tests.runners import openvino
from ofq_deploy.runtime_tests.speed import bench, speedup
from ofq_deploy.runtime_tests.speed.arithmetic import Work, work
from ofq_deploy.runtime_tests.speed.speedup import Speedup
from ofq_deploy.targets import TARGETS
from tests.support.graphs import DEQUANTIZED, node, write
from tests.support.models import frozen_model, sizes

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")


# The interval.


def drifting(
    random: np.random.Generator, rounds: int, memory: float = 0.95, spread: float = 0.05
) -> NDArray[np.float64]:
    """Times around 1 ms that stay high or low for about 1 / (1 - memory) rounds, as on a shared machine."""
    steps, value, times = random.standard_normal(rounds), 0.0, np.empty(rounds)
    for index, step in enumerate(steps):
        value = memory * value + step * np.sqrt(1 - memory**2)
        times[index] = value
    return np.exp(spread * times)


def test_intervals_hold_the_true_ratio_under_drifting_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedup, "RESAMPLINGS", 200)
    random, ratio = np.random.default_rng(0), 1.5
    pairs = [(ratio * drifting(random, 600, 0.9), drifting(random, 600, 0.9)) for _ in range(120)]

    def coverage() -> float:
        found = [speedup.speedup(*pair).interval for pair in pairs]
        return float(np.mean([low <= ratio <= high for low, high in found]))

    held = coverage()
    monkeypatch.setattr(speedup, "BLOCKS", 600)  # as if every round were an observation of its own

    assert held >= 0.83
    assert coverage() < 0.5


def test_a_model_beside_itself_is_rarely_called_different() -> None:
    random, found = np.random.default_rng(1), []
    for _ in range(40):
        machine = drifting(random, 400, 0.98, 0.3)  # hits both calls of a round
        found.append(speedup.speedup(*(machine * drifting(random, 400, 0.5, 0.05) for _ in range(2))))

    assert sum(one.conclusive for one in found) >= 20
    assert sum(one.conclusive and one.difference != "none" for one in found) <= 1


@pytest.mark.parametrize(("factor", "difference"), [(1.2, "faster"), (0.8, "slower"), (1.0, "none")])
def test_a_quiet_machine_concludes(factor: float, difference: str) -> None:
    random = np.random.default_rng(2)
    found = speedup.speedup(factor * drifting(random, 300, 0, 0.01), drifting(random, 300, 0, 0.01))

    assert (found.conclusive, found.difference, found.rounds) == (True, difference, 300)
    assert found.ratio_of_medians == pytest.approx(factor, rel=0.01)
    assert found.interval[0] < found.ratio_of_medians < found.interval[1]


def test_two_percent_are_no_difference() -> None:
    random = np.random.default_rng(3)
    found = speedup.speedup(1.01 * drifting(random, 3000, 0, 0.01), drifting(random, 3000, 0, 0.01))

    assert found.interval[0] > 1  # sure, and still no more than where two sessions happen to lie in memory
    assert found.difference == "none"


def test_noise_concludes_nothing() -> None:
    random = np.random.default_rng(4)
    wide = speedup.speedup(drifting(random, 300, 0.98, 0.5), drifting(random, 300, 0.98, 0.5))
    few = speedup.speedup(np.full(10, 2.0), np.full(10, 1.0))
    restless = speedup.speedup(*[np.exp(random.standard_normal(40000))] * 2)

    assert not wide.conclusive
    assert not few.conclusive
    assert restless.interval == (1, 1)
    assert not restless.conclusive  # the two are equal, but the baseline's own times say little
    assert restless.noise > 0.5


def test_noise_is_the_middle_half_of_the_baselines_times() -> None:
    quiet = speedup.speedup(np.linspace(0.8, 1.2, 101), np.ones(101))
    restless = speedup.speedup(np.linspace(0.4, 1.6, 101), np.ones(101))

    assert (quiet.noise, restless.noise) == pytest.approx((0.2, 0.6))


def test_times_of_one_round_stay_together() -> None:
    shared = np.exp(np.random.default_rng(5).standard_normal(500))

    assert speedup.speedup(2 * shared, shared).interval == (2, 2)


def test_the_same_times_give_the_same_interval_and_exchanged_ones_its_inverse() -> None:
    random = np.random.default_rng(6)
    one, other = drifting(random, 301), 1.3 * drifting(random, 301)
    low, high = speedup.speedup(one, other).interval

    assert speedup.speedup(one, other).interval == (low, high)
    assert speedup.speedup(other, one).interval == pytest.approx((1 / high, 1 / low), rel=1e-3)


# The verdict.


def row(**changes: Any) -> dict[str, Any]:
    measured = {"batch": 1, "ratio_of_medians": 1.5, "interval": (1.4, 1.6), "conclusive": True, "difference": "faster"}
    return measured | {"noise": 0.6, "rounds": 100, "cpu_time": None} | changes


def test_verdicts() -> None:
    noisy = row(batch=8, conclusive=False)
    by_cpu = {"ratio_of_medians": 1.52, "interval": (1.51, 1.53), "conclusive": True}
    advice = "give it more --seconds, CPUs of its own (--affinity), or a quieter machine"

    assert bench.verdict([row()]) == "batch 1: 1.50x the baseline's speed (95 % interval 1.40 to 1.60)"
    assert bench.verdict([row(difference="none")]).startswith("batch 1: no clear difference, 1.50x")
    assert bench.verdict([row(), noisy]) == (
        "batch 1: 1.50x the baseline's speed (95 % interval 1.40 to 1.60); batch 8: too noisy to conclude: 1.50x the "
        f"baseline's speed (95 % interval 1.40 to 1.60), whose times spread by 60 %; {advice}"
    )
    assert "; by CPU time 1.52x the baseline's speed (95 % interval 1.51 to 1.53); give" in bench.verdict(
        [noisy | {"cpu_time": by_cpu}]
    )
    assert bench.verdict([noisy | {"rounds": 5}]) == f"batch 8: too few calls to conclude: 5; {advice}"
    assert bench.verdict([]).startswith("no speed-up is claimed")


# The arithmetic.


def by_hand(a: Vit, is_qkr: bool, last_rows: int) -> int:
    """MACs per image of a vision transformer whose last block computes `last_rows` rows."""
    count = a.patches * a.channels * a.patch_size**2 * a.dim + a.prefix * a.dim * a.classes
    for rows in [*[a.tokens] * (a.depth - 1), last_rows]:
        v, proj, mlp = a.tokens * a.dim**2, rows * a.dim**2, 2 * rows * a.dim * a.hidden
        context = rows * a.tokens * a.dim
        if is_qkr:  # z = M x per head, scores = x . z
            scores = a.heads * a.tokens * a.dim**2 + a.heads * rows * a.tokens * a.dim
        else:
            scores = (rows + a.tokens) * a.dim**2 + rows * a.tokens * a.dim
        count += scores + v + context + proj + mlp
    return count


def test_deit_tiny_by_hand() -> None:
    tiny = Vit(224, 3, 16, 192, 12, 3, 768, 1000, 2, True, 1e-6)

    assert by_hand(tiny, False, tiny.tokens) == 1_261_003_776


def test_a_trained_model_and_its_float_baseline(
    tiny_run: Path, portable_model: Path, ort_model: Path, tmp_path: Path
) -> None:
    a = sizes(load_frozen(tiny_run / "frozen.safetensors"))
    shape = (2, 1, a.image_size, a.image_size)
    fp32 = work(OnnxFile(api.export(tiny_run, target="fp32", output=tmp_path / "fp32.onnx")), shape)
    floats = by_hand(a, False, a.tokens)
    integers = by_hand(a, True, a.prefix)
    per_key = a.depth * a.heads * a.tokens * a.dim  # of the shifts, and as much of the query bias
    edges = a.patches * a.channels * a.patch_size**2 * a.dim + a.prefix * a.dim * a.classes

    assert fp32 == Work(0, floats, 32 * 32 * floats, ())
    expected = Work(integers, 2 * per_key, 8 * 8 * edges + 4 * 4 * (integers - edges) + 4 * 32 * 2 * per_key, ())
    assert work(OnnxFile(portable_model), shape) == expected
    assert work(OnnxFile(ort_model), shape) == expected
    assert expected.floor_ms({"int8": 1e9, "float32": 5e8}) == pytest.approx((integers + 4 * per_key) / 1e6)


@pytest.mark.parametrize("weight_bits", [2, 3, 4, 8])
def test_every_target_and_width_multiplies_the_same(weight_bits: int, tmp_path: Path) -> None:
    frozen = frozen_model(Quantization(weight_bits, 4, attention="qk", act_step="tensor"))
    a = sizes(frozen)
    shape = (1, a.channels, a.image_size, a.image_size)
    edges = a.patches * a.channels * a.patch_size**2 * a.dim + a.prefix * a.dim * a.classes
    macs = by_hand(a, False, a.prefix)
    batched = sum(2 * rows * a.tokens * a.dim for rows in [*[a.tokens] * (a.depth - 1), a.prefix])
    per_key = a.depth * a.tokens * a.dim
    bits = 64 * edges + 4 * weight_bits * (macs - edges - batched) + 16 * batched + 4 * 32 * per_key
    targets = ["portable", "ort-cpu", *(["openvino"] if weight_bits < 8 else [])]

    for target in targets:
        write_checked(build(frozen, TARGETS[target]), tmp_path / f"{target}.onnx")

        assert work(OnnxFile(tmp_path / f"{target}.onnx"), shape) == Work(macs, per_key, bits, ()), target


def save(path: Path, nodes: list[onnx.NodeProto], image: list[Any], **constants: Any) -> Path:
    """A model from elsewhere: input `x`, output that of the last node."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, image)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "foreign", [x], [onnx.ValueInfoProto(name=nodes[-1].output[0])], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, dtype=np.float32)


def test_convolutions_and_products_from_elsewhere(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x kernel", "map", group=2, pads=[1, 1, 1, 1]),  # [b, 6, 8, 8], 2 channels read by each
        node("Reshape", "map flat", "rows"),
        node("MatMul", "left right", "folded"),  # of constants: computed once
        node("Gemm", "rows folded", "y", transB=1),
    ]
    flat = np.array([-1, 384])
    path = save(
        tmp_path / "m.onnx",
        nodes,
        ["b", 4, 8, 8],
        kernel=ones(6, 2, 3, 3),
        flat=flat,
        left=ones(5, 7),
        right=ones(7, 384),
    )
    macs = 6 * 8 * 8 * 2 * 9 + 384 * 5

    assert work(OnnxFile(path), (3, 4, 8, 8)) == Work(0, macs, 32 * 32 * macs, ())


def test_codes_behind_dequantize_count_as_integers(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", DEQUANTIZED)

    assert work(OnnxFile(path), (5, 6, 8)) == Work(6 * 8 * 16, 0, 6 * 8 * 16 * 64, ())


def test_attention_counts_scores_and_context_and_einsum_is_named(tmp_path: Path) -> None:
    nodes = [node("Attention", "x x x", "mixed"), node("Einsum", "mixed mixed", "y", equation="bhnd,bhnd->bn")]
    path = save(tmp_path / "m.onnx", nodes, ["b", 2, 6, 4])
    model = onnx.load(path)
    model.opset_import[0].version = 23
    onnx.save(model, path)

    assert work(OnnxFile(path), (1, 2, 6, 4)) == Work(0, 2 * 2 * 6 * 6 * 4, 2 * 2 * 6 * 6 * 4 * 1024, ("Einsum",))


# The result.


@pytest.fixture(scope="module")
def measured(portable_model: Path) -> dict[str, Any]:
    return api.bench(portable_model, batches=[1, 3], seconds=0.2)


def test_the_result_is_json_with_the_agreed_names(measured: dict[str, Any]) -> None:
    result = json.loads(json.dumps(measured))
    arithmetic = result["arithmetic"]

    assert result["schema"] == "ofq-deploy/bench/1"
    assert {"threads", "affinity", "spinning"} <= set(result["conditions"])
    assert result["conditions"]["spinning"] is False
    assert [one["batch"] for one in result["speedup"]] == [1, 3]
    for one in result["speedup"]:
        assert {"ratio_of_medians", "interval", "conclusive", "noise"} <= set(one)
        low, high = one["interval"]
        assert low <= one["ratio_of_medians"] <= high
        assert one["cpu_time"]["rounds"] == one["rounds"]
    assert {"int8", "float32"} == set(arithmetic["peak_macs_per_s"]) == set(arithmetic["peak_kernels"])
    assert arithmetic["distance"] == result["model"]["latency_ms"][0]["p50"] / arithmetic["floor_ms"]
    assert arithmetic["bit_operations"] < arithmetic["baseline"]["bit_operations"]
    assert result["verdict"] == bench.verdict(result["speedup"])


def test_samples_are_single_calls(measured: dict[str, Any]) -> None:
    for role in ("model", "baseline"):
        for latency in measured[role]["latency_ms"]:
            samples = latency["samples"]
            assert len(samples) == min(latency["calls"], 500)
            assert min(samples) <= latency["p50"] <= max(samples)
            assert latency["cpu_p50"] > 0


def test_many_samples_are_thinned_evenly() -> None:
    latency = bench._latency(4, np.arange(1.0, 2001.0), None)

    assert (len(latency.samples), latency.samples[0], latency.samples[-1]) == (500, 1.0, 2000.0)
    assert set(np.diff(latency.samples)) <= {4.0, 5.0}
    assert (latency.calls, latency.cpu_p50, latency.images_per_s) == (2000, None, 4000 / latency.p50)


def test_several_threads_are_compared_by_wall_time_alone(portable_model: Path) -> None:
    result = api.bench(portable_model, seconds=0.0, threads=2)

    assert result["conditions"]["threads"] == 2
    assert result["conditions"]["spinning"] is True
    assert result["speedup"][0]["cpu_time"] is None
    assert result["model"]["latency_ms"][0]["cpu_p50"] is None


def test_the_text_says_what_was_measured(measured: dict[str, Any]) -> None:
    lines = speed_texts.bench_text(convert(measured, BenchResult)).splitlines()

    assert lines[-1] == measured["verdict"]
    assert any(line.startswith("conditions: onnxruntime ") and "threads: 1, CPUs: " in line for line in lines)
    assert any(line.startswith("arithmetic: ") and "(baseline: " in line for line in lines)
    assert not any("warning" in line for line in lines)


def test_a_float_product_in_a_quantized_model_is_named(measured: dict[str, Any]) -> None:
    names = tuple(f"blocks.{index}.mlp.fc1" for index in range(7))
    executed = measured["model"]["executed"] | {"float": 7, "float_nodes": names}
    text = speed_texts.bench_text(
        convert(measured | {"model": measured["model"] | {"executed": executed}}, BenchResult)
    )

    assert (
        "  warning: 7 products of a quantized model run in float: blocks.0.mlp.fc1, blocks.1.mlp.fc1, "
        "blocks.2.mlp.fc1, blocks.3.mlp.fc1, blocks.4.mlp.fc1, ...\n"
    ) in text


def test_executed_float_products_have_names(portable_model: Path, measured: dict[str, Any]) -> None:
    base = measured["baseline"]["executed"]

    assert measured["model"]["executed"]["float_nodes"] == []
    assert len(base["float_nodes"]) == base["float"]
    assert any("blocks.1.mlp.fc1" in name for name in base["float_nodes"])


# Models from elsewhere, and CPUs.


def convolution(path: Path, channels: int = 1, weight: float = 1.0) -> Path:
    nodes = [node("Conv", "x kernel", "map"), node("GlobalAveragePool", "map", "mean"), node("Flatten", "mean", "y")]
    return save(path, nodes, ["b", channels, 16, 16], kernel=weight * ones(10, channels, 4, 4))


@pytest.mark.parametrize("backend", ["ort-cpu", "openvino"])
def test_models_from_elsewhere_are_measured_beside_each_other(backend: str, tmp_path: Path) -> None:
    model, baseline = convolution(tmp_path / "a.onnx"), convolution(tmp_path / "b.onnx", weight=2.0)
    result = api.bench(model, baseline=baseline, backend=backend, seconds=0.0)

    assert result["baseline"]["path"] == str(baseline)
    assert result["arithmetic"]["macs"] == result["arithmetic"]["baseline"]["macs"] == 10 * 13 * 13 * 16
    assert result["arithmetic"]["distance"] > 0
    assert "too few calls to conclude" in result["verdict"]


def test_a_model_alone_has_no_speed_up(tmp_path: Path) -> None:
    result = api.bench(convolution(tmp_path / "a.onnx"), seconds=0.0)

    assert {"speedup", "baseline"}.isdisjoint(result)
    assert result["verdict"].startswith("no speed-up is claimed, because nothing was measured beside the model")


def test_a_baseline_of_another_shape_is_refused(tmp_path: Path) -> None:
    model, baseline = convolution(tmp_path / "a.onnx"), convolution(tmp_path / "b.onnx", channels=3)
    command = ["bench", str(model), "--baseline", str(baseline), "--seconds", "0"]
    done = subprocess.run([sys.executable, "-m", "ofq_deploy", *command], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ofq-deploy: the baseline takes images (3, 16, 16), the model (1, 16, 16)\n"


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1"])
def test_a_time_without_end_is_refused(seconds: str, tmp_path: Path) -> None:
    command = ["bench", str(convolution(tmp_path / "a.onnx")), "--seconds", seconds]
    done = subprocess.run([sys.executable, "-m", "ofq_deploy", *command], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ofq-deploy: Invalid value for '--seconds'")
    assert len(done.stderr.splitlines()) == 1


def test_a_text_file_is_no_baseline(tmp_path: Path) -> None:
    """Whatever it is called: an ending such as .json is a format of ONNX as well."""
    (tmp_path / "model.json").write_text('{"size": 16}')

    with pytest.raises(OnnxFileError, match=r"model.json is no ONNX file, or is cut"):
        api.bench(convolution(tmp_path / "a.onnx"), seconds=0.0, baseline=tmp_path / "model.json")


@needs_affinity
@pytest.mark.parametrize(
    ("cpus", "message"),
    [
        ("0,x", "Invalid value for --affinity: '0,x' is no list of CPU numbers, such as 0,1"),
        ("", "Invalid value for --affinity: '' is no list of CPU numbers, such as 0,1"),
        ("99999", "no CPU 99999 to run on; there are "),
    ],
)
def test_cpus_that_are_none_are_refused(cpus: str, message: str, tmp_path: Path) -> None:
    command = ["bench", str(convolution(tmp_path / "a.onnx")), "--seconds", "0", "--affinity", cpus]
    done = subprocess.run([sys.executable, "-m", "ofq_deploy", *command], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ofq-deploy: {message}")
    assert len(done.stderr.splitlines()) == 1


@needs_affinity
def test_everything_stays_on_the_chosen_cpus(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    chosen = max(before)
    code = "import os; print(os.sched_getaffinity(0))"
    with bench.pinned((chosen,)):
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        result = api.bench(convolution(tmp_path / "a.onnx"), seconds=0.0, threads=0, affinity=[chosen])

    assert child.stdout == f"{ {chosen} }\n"
    assert result["conditions"]["affinity"] == [chosen]
    assert result["conditions"]["threads"] == 1  # one for each of them
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_affinity_ends_with_an_error() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(OnnxFileError), bench.pinned((min(before),)):
        raise OnnxFileError("anything")
    with pytest.raises(UnsupportedByTarget, match="no CPU 99999"), bench.pinned((99999,)):
        pass

    assert os.sched_getaffinity(0) == before


def test_openvino_errors_name_nodes_in_full(ort_model: Path, tmp_path: Path) -> None:
    model = onnx.load(ort_model)
    norm = next(made for made in model.graph.node if made.op_type == "LayerNormalization")
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == norm.input[1])
    scale.CopyFrom(numpy_helper.from_array(ones(5), scale.name))
    onnx.save(model, tmp_path / "broken.onnx")

    with pytest.raises(OnnxFileError, match=r"broken.onnx does not load in OpenVINO: .*blocks\.0\.norm1"):
        openvino.compile_model(OnnxFile(tmp_path / "broken.onnx"), 1, 1)


def test_speedup_rows_are_plain() -> None:
    found = speedup.speedup(np.linspace(1, 2, 50), np.linspace(1, 2, 50))

    assert found == Speedup(50, 1.0, (1.0, 1.0), found.noise, True, "none")


# The order of calls.


class Recorder(Runner):
    """A runner that notes when it is opened and called, and takes no time."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes
        notes.append(f"open {name}")

    @property
    def metadata(self) -> Metadata:
        return Metadata("none", "none", "cpu", {}, ("image",), ("logits",))

    def infer(self, inputs: Arrays) -> Arrays:
        self.notes.append(self.name)
        return {"logits": np.zeros((1, 1))}

    def close(self) -> None:
        self.notes.append(f"close {self.name}")


def test_rounds_call_each_once_and_halves_open_in_both_orders() -> None:
    notes: list[str] = []
    openers: list[Callable[[], Runner]] = [partial(Recorder, name, notes) for name in "ab"]
    wall, cpu, _ = bench._interleaved(openers, (1, 1, 2, 2), 0.02, 1, Reporter())
    first = notes.index("close b")
    halves = notes[: first + 2], notes[first + 2 :]
    calls = [[note for note in half if len(note) == 1] for half in halves]
    rounds = [
        half[at : at + 2] for half in (own[2 * bench.WARM_UP :] for own in calls) for at in range(0, len(half), 2)
    ]

    assert [half[:2] + half[-2:] for half in halves] == [
        ["open a", "open b", "close b", "close a"],
        ["open b", "open a", "close a", "close b"],
    ]
    assert wall.shape == cpu.shape == (2, len(rounds))
    assert {"".join(pair) for pair in rounds} == {"ab", "ba"}
