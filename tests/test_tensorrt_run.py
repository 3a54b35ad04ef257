"""Running engines and judging them, on a stand-in for TensorRT; and what TensorRT-RTX makes of the two networks."""

import json
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from ofq_deploy import api
from ofq_deploy.cli import app
from ofq_deploy.commands.doctor import examine
from ofq_deploy.errors import BackendMissing, OnnxFileError
from ofq_deploy.model.file import OnnxFile, read_model, with_outputs
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.results.record import to_json
from ofq_deploy.runner import Arrays, logits
from ofq_deploy.runtime_tests.runners import cuda, engine_cache, tensorrt, tensorrt_build
from ofq_deploy.runtime_tests.runners.engine_cache import Ingredients
from ofq_deploy.runtime_tests.runners.ort import OrtRunner
from ofq_deploy.runtime_tests.runners.registry import open_runner
from ofq_deploy.runtime_tests.runners.tensorrt import TensorRTRunner, count_products, inspected_layers
from ofq_deploy.runtime_tests.speed import tensorrt_bench
from ofq_deploy.runtime_tests.speed.float16 import float16
from ofq_deploy.runtime_tests.speed.rounds import Protocol
from tests.support.fake_tensorrt import FakeStream, FakeTensorRT
from tests.support.schemas import check

GPU = cuda.Gpu("NVIDIA H100", "9.0", "580.65", "GPU-0")
QUICK = Protocol(warm_up_calls=1, warm_up_seconds=0, rounds=2, samples=2, calls=4)


def product(dtype: str, tactic: str = "", kind: str = "gemm") -> dict[str, Any]:
    tensors = [{"Name": name, "Format/Datatype": dtype} for name in "ab"]
    return {"Name": "fc1", "LayerType": kind, "Inputs": tensors, "Outputs": [], "TacticName": tactic, "Metadata": ""}


def integer_when_quantized(quantized: bool) -> list[dict[str, Any]]:
    return [product("Int8", "sm90_i8i8" if quantized else "") if quantized else product("Half", "sm90_f16f16")]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorRT:
    """A machine with a GPU and TensorRT, as far as our code can tell."""
    fake = FakeTensorRT(integer_when_quantized)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(tensorrt_build, "logger", tensorrt_build.logger.__wrapped__)
    monkeypatch.setattr(cuda, "gpu", lambda otherwise: GPU)
    monkeypatch.setattr(cuda, "sm_clock", lambda gpu: 1980)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "Stream", FakeStream)
    monkeypatch.setattr(tensorrt_bench, "Protocol", lambda: QUICK)
    monkeypatch.setenv("OFQ_CACHE", str(tmp_path / "cache"))
    return fake


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Path:
    return api.export(tiny_run, target="tensorrt")


@pytest.fixture(scope="module")
def float_model(tiny_run: Path) -> Path:
    return api.export(tiny_run, target="fp32")


def images(count: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.random.default_rng(count).standard_normal((count, 1, 16, 16), dtype=np.float32)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_images_runs_in_batches_of_the_engine(trt: FakeTensorRT, model: Path, count: int) -> None:
    with open_runner("tensorrt", OnnxFile(model), batch=2) as runner, OrtRunner(model, 1) as reference:
        ours = logits(runner, images(count))

        assert ours.shape == (count, 10)
        np.testing.assert_allclose(ours, logits(reference, images(count)), rtol=1e-5, atol=1e-6)
        assert (runner.metadata.inputs, runner.metadata.outputs) == (("image",), ("logits",))
        assert runner.metadata.device == "NVIDIA H100"
        assert runner.metadata.runtime == "tensorrt 11.4.0.106"


def test_launches_rotate_their_inputs_and_keep_their_outputs(trt: FakeTensorRT, model: Path) -> None:
    with TensorRTRunner(OnnxFile(model).proto, 2) as runner:
        for number in range(8):
            runner.launch(number)
        enqueued = trt.engines[-1].contexts[-1].enqueued

        assert [entry["image"] for entry in enqueued[:4]] == [entry["image"] for entry in enqueued[4:]]
        assert len({entry["image"] for entry in enqueued}) == cuda.SLOTS == 4
        assert len({entry["logits"] for entry in enqueued}) == 1


def test_an_engine_is_built_once_and_then_read(trt: FakeTensorRT, model: Path) -> None:
    settings = []
    for _ in range(2):
        with TensorRTRunner(OnnxFile(model).proto, 2) as runner:
            settings.append(runner.metadata.settings)

    assert trt.builds == 1
    assert [entry["engine_from_cache"] for entry in settings] == [False, True]
    assert stat.S_IMODE(engine_cache.folder().stat().st_mode) == 0o700


def test_what_was_timed_serves_the_next_build(trt: FakeTensorRT, model: Path) -> None:
    warm = []
    for batch in (1, 2):
        with TensorRTRunner(OnnxFile(model).proto, batch) as runner:
            warm.append(runner.metadata.settings["timing_cache_warm"])

    assert warm == [False, True]
    assert [path.read_bytes() for path in engine_cache.folder().glob("*.timings")] == [b"timed timed "]


@pytest.mark.parametrize("damage", ["cut", "swapped", "no note"])
def test_a_damaged_engine_is_built_again_and_never_deserialized(trt: FakeTensorRT, model: Path, damage: str) -> None:
    TensorRTRunner(OnnxFile(model).proto, 2).close()
    plan = next(engine_cache.folder().glob("*.plan"))
    if damage == "no note":
        plan.with_suffix(".json").unlink()
    else:
        plan.write_bytes(plan.read_bytes()[:-3] + {"cut": b"", "swapped": b"abc"}[damage])

    with TensorRTRunner(OnnxFile(model).proto, 2) as runner:
        assert not runner.metadata.settings["engine_from_cache"]

    assert trt.builds == len(trt.engines) == 2


def test_nothing_is_read_from_a_folder_that_others_write_to(trt: FakeTensorRT, model: Path) -> None:
    TensorRTRunner(OnnxFile(model).proto, 2).close()
    engine_cache.folder().chmod(0o777)

    with TensorRTRunner(OnnxFile(model).proto, 2) as runner:
        assert not runner.metadata.settings["engine_from_cache"]
        assert not runner.metadata.settings["timing_cache_warm"]

    assert trt.builds == 2


def test_a_cache_that_cannot_be_written_keeps_nothing(
    trt: FakeTensorRT, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OFQ_CACHE", str(tmp_path / "file"))

    with TensorRTRunner(OnnxFile(model).proto, 2) as runner:
        assert logits(runner, images(2)).shape == (2, 10)


@pytest.mark.parametrize("changed", ["batch", "level", "gpu", "driver", "version", "model"])
def test_another_ingredient_is_another_engine(
    trt: FakeTensorRT, model: Path, float_model: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    TensorRTRunner(OnnxFile(model).proto, 2).close()
    gpus = {"gpu": replace(GPU, name="NVIDIA H200"), "driver": replace(GPU, driver="590")}
    monkeypatch.setattr(cuda, "gpu", lambda otherwise: gpus.get(changed, GPU))
    if changed == "version":
        trt.__version__ = "10.16.1.11"

    TensorRTRunner(
        OnnxFile(float_model if changed == "model" else model).proto,
        3 if changed == "batch" else 2,
        optimization_level=5 if changed == "level" else None,
    ).close()

    assert trt.builds == 2


def test_every_ingredient_is_in_the_key() -> None:
    one = Ingredients("m", "b", "tensorrt", "11", "H100", "9.0", "580", (1, 1, 1), None)
    values: dict[str, Any] = {"profile": (2, 2, 2), "optimization_level": 4}
    others = [replace(one, **{field.name: values.get(field.name, "other")}) for field in fields(one)]

    assert len({entry.key for entry in [one, *others]}) == len(fields(one)) + 1
    assert replace(one).key == one.key


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OFQ_CACHE": "/own"}, "/own/engines"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/ofq-deploy/engines"),
        ({"HOME": "/home/me"}, "/home/me/.cache/ofq-deploy/engines"),
    ],
)
def test_where_engines_are_kept(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("OFQ_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert engine_cache.folder() == Path(expected)


def test_bench_measures_beside_float16_and_float32(trt: FakeTensorRT, model: Path, float_model: Path) -> None:
    result = tensorrt_bench.bench_tensorrt(OnnxFile(model), OnnxFile(float_model), (1, 3), (1, 16, 16), Reporter(True))

    assert result["passed"]
    assert "1 of 1 products run in integers" in result["verdict"]
    for role in ("model", "baseline", "float32"):
        assert [row["batch"] for row in result[role]["latency_ms"]] == [1, 3]
        assert [row["batch"] for row in result[role]["latency_ms_without_graph"]] == [1, 3]
        for row in result[role]["batches"]:
            compared = row["against_onnxruntime"]
            assert compared["same_prediction"] == compared["images"]
            assert compared["worst_logit_difference"] < 1e-5
    assert [row["batch"] for row in result["speedup"]] == [1, 3]
    assert all(row["interval"][0] <= row["ratio_of_medians"] <= row["interval"][1] for row in result["speedup"])
    assert [row["sm_clock_mhz"] for row in result["rounds"]] == [[1980] * 3] * 4
    json.dumps(result)


def test_an_engine_without_room_to_run_is_told(trt: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.fake_tensorrt.CudaEngine.create_execution_context", lambda engine: None)

    with pytest.raises(OnnxFileError, match="TensorRT cannot prepare the engine for batch 64: it did not say why"):
        TensorRTRunner(OnnxFile(model).proto, 64)


def test_an_engine_that_overflows_is_a_fault(
    trt: FakeTensorRT, model: Path, float_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = TensorRTRunner.infer

    def overflowing(self: TensorRTRunner, inputs: Arrays) -> Arrays:
        integer = count_products(self.layers).integer
        return {name: value if integer else value / 0 for name, value in infer(self, inputs).items()}

    monkeypatch.setattr(TensorRTRunner, "infer", overflowing)
    with np.errstate(all="ignore"):
        result = tensorrt_bench.bench_tensorrt(
            OnnxFile(model), OnnxFile(float_model), (1,), (1, 16, 16), Reporter(True)
        )

    assert not result["passed"]
    assert result["faults"] == [
        f"the engine of the float model in {dtype} gives logits that are not finite" for dtype in ("float16", "float32")
    ]
    assert "NaN" not in json.dumps(result)


def test_bench_exits_3_when_nothing_ran_in_integers(
    trt: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "layers", lambda quantized: [product("Half"), product("Int8", kind="runtime_fusion")])
    monkeypatch.setattr("ofq_deploy.runtime_tests.speed.rounds.Protocol", lambda seconds: QUICK)
    arguments = ["bench", str(model), "--backend", "tensorrt", "--seconds", "0", "--quiet"]

    failed = CliRunner().invoke(app, arguments)
    monkeypatch.setattr(trt, "layers", integer_when_quantized)
    monkeypatch.setenv("OFQ_CACHE", str(engine_cache.folder() / "other"))
    passed = CliRunner().invoke(app, [*arguments, "--json"])

    assert failed.exit_code == 3
    assert "FAULT no product of the engine runs in integers (ofq-deploy check MODEL" in failed.stdout
    assert "Failed: no product of the engine runs in integers" in failed.stdout
    assert "0 of 2 products run in integers" in failed.stdout
    assert passed.exit_code == 0
    document = json.loads(passed.stdout)
    check(document)
    assert document["schema"] == "ofq-deploy/bench-gpu/1"
    assert document["gpu"]["name"] == "NVIDIA H100"
    assert document["model"]["batches"][0]["products"]["kernels"] == {"sm90_i8i8": 1}


def test_the_result_is_kept_and_its_report_tells_it(
    trt: FakeTensorRT, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ofq_deploy.runtime_tests.speed.rounds.Protocol", lambda seconds: QUICK)
    run = tmp_path / "run"
    shutil.copytree(model.parent, run, ignore=shutil.ignore_patterns("*.json", "*.portable.*", "*.html"))
    shutil.copy(model.parent / "manifest.json", run)
    own = run / model.name
    words = ["bench", str(own), "--backend", "tensorrt", "--batch", "1", "--batch", "3", "--quiet"]

    done = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    kept = run / f"{own.stem}.bench.tensorrt.json"
    result = json.loads(kept.read_text())
    check(result)
    told = CliRunner().invoke(app, ["report", str(run)])
    assert told.exit_code == 0, told.output

    assert result["model"]["path"] == str(own)
    for page in (tmp_path / "page.html", run / "report.html"):
        text = page.read_text()
        assert "<h3>Speed in tensorrt on a GPU</h3>" in text
        assert result["verdict"] in text
        for role in ("model", "baseline", "float32"):
            for key in ("latency_ms", "latency_ms_without_graph"):
                assert [f"{row['p50']:.3f}" in text for row in result[role][key]] == [True, True]
    card = own.with_suffix(".md").read_text()
    assert f"## Latency in tensorrt\n\n{result['verdict']}" in card
    assert "On NVIDIA H100, driver " in card


def test_a_result_about_another_file_is_left_out(trt: FakeTensorRT, model: Path, tmp_path: Path) -> None:
    result = api.bench(model, backend="tensorrt", seconds=0.0)
    (tmp_path / "results").mkdir()
    copied = tmp_path / "results" / model.name
    copied.write_bytes(model.read_bytes() + b"\x00")
    (tmp_path / "results" / "gpu.json").write_text(to_json(result))

    said = CliRunner().invoke(app, ["report", str(tmp_path / "results")])

    assert "gpu.json is about another model.tensorrt.onnx" in said.output


def test_without_a_package_both_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tensorrt_build.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(BackendMissing) as caught:
        api.bench(backend="tensorrt")

    assert "neither tensorrt nor tensorrt_rtx can be imported" in str(caught.value)
    assert "ofq-deploy bench MODEL --backend torch-cuda" in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "advice"),
    [
        ("tensorrt", "ofq-deploy check MODEL --target tensorrt builds an engine without one"),
        ("torch-cuda", "ofq-deploy bench MODEL --backend ort-cpu"),
    ],
)
def test_without_a_gpu_the_way_out_is_named(
    trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, backend: str, advice: str
) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(BackendMissing, match=r"no NVIDIA GPU is visible|has no CUDA") as caught:
        api.bench(backend=backend)

    assert advice in str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("present", [True, False])
def test_doctor_says_what_bench_would(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr("ofq_deploy.commands.doctor.find_spec", lambda name: object())
    monkeypatch.setattr("ofq_deploy.commands.doctor._has_nvidia_gpu", lambda: present)

    found = examine().backends

    assert {name for name, entry in found.items() if entry.ready} == (
        set(found) if present else {"ort-cpu", "openvino"}
    )
    if not present:
        assert "ofq-deploy check MODEL --target tensorrt" in found["tensorrt"].install


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["tensorrt", "torch-cuda"])
def test_the_command_exits_4_with_one_line(backend: str) -> None:
    command = [sys.executable, "-m", "ofq_deploy", "bench", "model.onnx", "--backend", backend]
    done = subprocess.run(command, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(r"ofq-deploy: .*(no NVIDIA GPU is visible|has no CUDA|TensorRT is missing).*\n", done.stderr)


def test_a_folder_without_a_model_for_it_says_how_to_make_one(
    trt: FakeTensorRT, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("*.onnx"))

    with pytest.raises(OnnxFileError, match=r"ofq-deploy export .*run --target tensorrt"):
        api.bench(tmp_path / "run", backend="tensorrt")


@pytest.mark.parametrize("options", [["--profile"], ["--threads", "2"], ["--affinity", "0"]])
def test_options_of_cpus_are_refused(tiny_run: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", str(tiny_run), "--backend", "tensorrt", *options])

    assert "--profile, --threads and --affinity are for CPUs; leave them out on tensorrt" in str(result.exception)


# What the inspector says, in the words of several generations.

TWO = [{"Name": "a", "Format/Datatype": "Row major Int8 format"}, {"Name": "w", "Datatype": "Int8"}]
WEIGHTS = {"Inputs": TWO[:1], "Weights": {"Type": "Int8", "Count": 9408}}


@pytest.mark.parametrize(
    ("row", "integer"),
    [
        (product("Int8"), True),
        (product("Half"), False),
        (product("Row major linear FP32"), False),
        (product("Half", "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x64x64"), True),
        (product("Half", "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n"), False),
        (product("Half", "ampere_h16816gemm_256x128_ldg8_nn_v1"), False),
        (product("Int8", kind="runtime_fusion"), False),
        ({"Name": "fc1", "LayerType": "gemm", "Inputs": TWO}, True),
        ({"Name": "fc1", "LayerType": "gemm", "Inputs": TWO[:1]}, False),
        ({"Name": "fc1", "LayerType": "gemm", "Inputs": TWO[:1], "Constants": TWO[1:]}, True),
        ({"Name": "conv", "LayerType": "CaskConvolution", **WEIGHTS}, True),
        ({"Name": "_gemm_mha_v2_myl0_3", "LayerType": "fusion", "Inputs": TWO[:1]}, True),
        ({"Name": "_gemm_mha_v2_myl0_3", "LayerType": "fusion", "Inputs": [{"Datatype": "Half"}]}, False),
        ({"Name": "encoder_mha_proj", "LayerType": "gemm", "Inputs": TWO[:1]}, False),
    ],
)
def test_a_product_is_told_from_its_operands_or_its_kernel(row: dict[str, Any], integer: bool) -> None:
    found = count_products(inspected_layers(json.dumps({"Layers": [row], "Bindings": ["image"]})))

    assert (found.integer, found.float) == ((1, 0) if integer else (0, 1))


def test_what_is_no_product_is_not_counted() -> None:
    rows: list[Any] = [
        {"Name": "quantize", "LayerType": "kgen", "Inputs": TWO, "TacticName": "__myl_MulRou_int8"},
        {"Name": "Reformatting CopyNode for Input Tensor 0 to conv1", "LayerType": "Reformat", "Inputs": TWO},
        "only a name",
    ]
    small = {**product("Float"), "Metadata": "[ONNX Layer: blocks.0.attn.scores.key_shift.row]"}

    found = count_products(inspected_layers(json.dumps({"Layers": [*rows, small]})))

    assert (found.integer, found.float, found.small, found.fused_attention) == (0, 0, 1, 0)
    assert found.layers == {"Reformat": 1, "gemm": 1, "kgen": 1}


# The float baseline.


def test_float16_is_the_same_network(float_model: Path) -> None:
    half = float16(read_model(float_model))
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    with OrtRunner(half, 1) as ours, OrtRunner(float_model, 1) as reference:
        a, b = logits(ours, images(4)), logits(reference, images(4))

    assert onnx.TensorProto.FLOAT not in kinds.values()
    assert {value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)} == {1}
    assert 0 < np.abs(a - b).max() < 5e-3 * np.abs(b).max()


def test_the_compiler_fuses_the_baselines_attention_and_keeps_the_models_integers(
    model: Path, float_model: Path
) -> None:
    """Else the comparison would be with a straw man."""
    pytest.importorskip("tensorrt_rtx")
    half = float16(read_model(float_model)).SerializeToString()

    baseline = count_products(tensorrt_build.build(half, profile=(4, 4, 4)).layers)
    ours = count_products(tensorrt_build.build(OnnxFile(model), profile=(4, 4, 4)).layers)

    assert (baseline.integer, baseline.fused_attention) == (0, 2)
    assert (ours.float, ours.small) == (0, 4)
    assert ours.integer >= 12


def test_a_proof_can_run_through_engines(trt: FakeTensorRT, model: Path) -> None:
    """With taps as inputs and outputs of other types, and several batch sizes."""
    result = api.validate(model, backend="tensorrt", images=2)

    assert result["passed"], result["faults"]
    assert result["backend"] == "tensorrt"
    assert result["codes_compared"] > 50_000


def test_the_compiler_takes_the_graph_of_a_proof_and_keeps_its_integers(model: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    frozen = load_frozen(model.parent / "frozen.safetensors")
    taps = [node.output for node in frozen.graph.taps.values()]
    tapped = tensorrt._typed(with_outputs(read_model(model), taps))

    plain, observed = (
        count_products(tensorrt_build.build(graph.SerializeToString(), profile=(3, 3, 3)).layers)
        for graph in (read_model(model), tapped)
    )

    assert (observed.integer, observed.float) == (plain.integer, 0)
