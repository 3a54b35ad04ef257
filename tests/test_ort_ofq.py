"""The target ort-ofq with its library: exported, proven, described, served. Skipped, with a reason, where the library is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ofq_deploy import api
from ofq_deploy.kernels import library_path
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.graph import node_macs
from ofq_deploy.model.nodes import Linear
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.lint.rules import lint
from ofq_deploy.runtime_tests.proof.tapped import TappedModel, open_tapped
from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits
from ofq_deploy.runtime_tests.runners.registry import open_runner
from ofq_deploy.runtime_tests.speed.arithmetic import work
from tests.support.fused_reference import ReferenceRunner
from tests.support.kernels import needs_kernels
from tests.support.models import frozen_model, random_images
from tests.test_fused import exported

pytestmark = needs_kernels


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fused") / "runs" / "tiny"
    shutil.copytree(tiny_run, path, ignore=shutil.ignore_patterns("model.*", "*.html"))
    return path


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    return api.export(run, target="ort-ofq")


def test_a_run_is_proven_and_clean(model: Path) -> None:
    result = api.validate(model, images=4)

    assert result["passed"], result["faults"]
    assert result["free_run"]["codes_between_optimization_levels"] > 0
    assert result["constants"]["differing"] == []
    assert api.lint(model) == []


def test_other_runtimes_are_refused(model: Path) -> None:
    with pytest.raises(Exception, match="is made for ONNX Runtime; prove it there with --backend ort-cpu"):
        api.validate(model, images=4, backend="openvino")


def test_the_library_of_another_interpreter_is_ours(model: Path, run: Path) -> None:
    images = random_images(2).numpy()
    with (
        open_runner(f"ort-cpu@{sys.executable}", OnnxFile(model)) as elsewhere,
        open_runner("ort-cpu", OnnxFile(model)) as here,
    ):
        found, expected = (runner.infer({"image": images})["logits"] for runner in (elsewhere, here))

    np.testing.assert_array_equal(found, expected)


def test_parity_holds_with_another_interpreters_runtime(model: Path) -> None:
    result = api.parity(model, follower=f"ort-cpu:plain@{sys.executable}", images=2)

    assert result["passed"], result


@pytest.mark.parametrize("attention", ["qk", "qkr"])
def test_the_file_as_it_is_gives_the_logits_that_were_proven(attention: Any, tmp_path: Path) -> None:
    """The proof reads every tap, so that sums cannot take the residual stream's memory; a deployment's do."""
    frozen = frozen_model(Quantization(4, 4, attention, "tensor"))
    file, images = exported(frozen, tmp_path), random_images(3).numpy()
    with open_tapped("ort-cpu", file, frozen) as tapped:
        expected = tapped.infer({"image": images})["logits"]

    np.testing.assert_array_equal(run_logits(open_session(file.path), images), expected)


@pytest.mark.parametrize("attention", ["qk", "qkr"])
def test_multiply_accumulates_are_those_of_the_network(attention: Any, tmp_path: Path) -> None:
    frozen = frozen_model(Quantization(3, 4, attention, "tensor"))
    counted = work(exported(frozen, tmp_path), (2, *frozen.graph.image))
    layers = (node for node in frozen.graph.nodes if node.name.startswith("blocks.") and isinstance(node, Linear))

    assert (counted.macs, counted.float_macs) == (frozen.graph.macs(), 0)
    assert counted.bit_operations > 12 * sum(
        node_macs(node, frozen.graph) for node in layers
    )  # 3 x 4 bits, and what has more


def test_it_is_described_and_timed(model: Path) -> None:
    contents, speed = api.inspect(model), api.bench(model, seconds=0.0)
    card = model.with_suffix(".md").read_text()
    rows = {row["name"]: row for row in contents["layers"]}
    products = speed["model"]["executed"]

    assert "options.register_custom_ops_library(str(ofq_kernels.library_path()))" in card
    assert f"ofq-deploy validate {model.name} --run RUN_FOLDER --backend ort-cpu\n" in card
    assert rows["blocks.0.mlp.fc1"]["bits_stored"] == 4
    assert (products["float"], products["small"], products["leftover_dequantize"]) == (0, 0, 0)
    # Patches; z, v, scores, context, proj, fc1, fc2 of two blocks; two heads.
    assert products["integer"] == 1 + 2 * 7 + len([name for name in rows if name.startswith("head")])


def test_a_package_brings_the_library(model: Path, run: Path, tmp_path: Path) -> None:
    manifest = api.package(model, kind="ort", output=tmp_path / "package")
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "package" / "predict.py"), str(tmp_path / "image.png")],
        capture_output=True, text=True, env={"PATH": "/usr/bin"},
    )  # fmt: skip
    told, own = json.loads(done.stdout), api.predict([tmp_path / "image.png"], model=model)

    packed = f"libofq_kernels{library_path().suffix}"
    assert packed in manifest["files"]
    assert f"`{packed}` | its fused operators" in (tmp_path / "package" / "README.md").read_text()
    assert told["top5"][0]["label"] == own[0]["top5"][0]["label"]


def test_other_packages_bring_none(run: Path, tmp_path: Path) -> None:
    manifest = api.package(api.export(run, target="ort-cpu"), kind="ort", output=tmp_path / "package")

    assert not [name for name in manifest["files"] if "kernels" in name]


@pytest.mark.parametrize("attention", ["qk", "qkr"])
@pytest.mark.parametrize("act_step", ["tensor", "token"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_library_computes_what_the_reference_does(attention: Any, act_step: Any, bits: int, tmp_path: Path) -> None:
    frozen = frozen_model(Quantization(bits, bits, attention, act_step))
    file = exported(frozen, tmp_path)
    images = 2 * random_images(5, frozen.graph.image[0], seed=3).numpy()
    with open_tapped("ort-cpu", file, frozen) as own, TappedModel(file, frozen, ReferenceRunner) as reference:
        found, expected = own.infer({"image": images}), reference.infer({"image": images})

    differing = [name for name in frozen.quantizers if (found[name] != expected[name]).any()]
    assert differing == []
    assert lint(file, "ort-ofq") == []
    np.testing.assert_allclose(
        found["logits"], expected["logits"], rtol=0, atol=1e-5 * np.abs(expected["logits"]).max()
    )


def test_logits_do_not_depend_on_threads_or_batch(model: Path) -> None:
    images = random_images(5).numpy()
    one = run_logits(open_session(model, threads=1), images)

    np.testing.assert_array_equal(run_logits(open_session(model, threads=3), images), one)
    for place in range(5):
        np.testing.assert_array_equal(
            run_logits(open_session(model, threads=1), images[place : place + 1])[0], one[place]
        )
