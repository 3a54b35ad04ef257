"""Bits are a property of each layer: random mixtures through every export, the proof, and every command on a run."""

import json
import shutil
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ofq_deploy import api
from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.export.network import build
from ofq_deploy.export.packing import packed_bytes
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.bits import LayerBits
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import Frozen, load_frozen, save_frozen
from ofq_deploy.model.graph import node_macs
from ofq_deploy.model.nodes import Linear, Product
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Quantization
from ofq_deploy.runs.folder import load_run, write_manifest
from ofq_deploy.runtime_tests.proof.proof import prove_free_run, prove_operators, prove_weights
from ofq_deploy.runtime_tests.speed.arithmetic import work
from ofq_deploy.targets import TARGETS, Target
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.freeze import freeze
from ofq_deploy.train.sources.models import build_model
from ofq_deploy.train.witness import TorchRunner
from tests.support.kernels import provable_targets
from tests.support.models import frozen_model, random_images, small_vit

FORMS = [
    Quantization(4, 4),
    Quantization(3, 5, "qk", "token", weights="lsq"),
    Quantization(4, 4, "qk", "tensor", shifts=False),
    Quantization(2, 3, "qkr", "tensor"),
]


def random_bits(frozen: Frozen, seed: int, most: int = 8) -> LayerBits:
    """Another width for every layer and quantizer of the blocks; q, k and v share one weight quantizer, and its bits."""
    random = np.random.default_rng(seed)
    weights = {name: int(random.integers(2, most + 1)) for name in frozen.linears if name.startswith("blocks.")}
    for name in weights:
        if name.endswith((".k", ".v")) and f"{name[:-1]}q" in weights:
            weights[name] = weights[f"{name[:-1]}q"]
    return LayerBits(
        weights, {name: int(random.integers(2, 9)) for name in frozen.quantizers if name.startswith("blocks.")}
    )


def mixed_student(model: torch.nn.Module, config: Quantization, bits: LayerBits, channels: int) -> torch.nn.Module:
    student = convert(model, config, bits=bits)[0].eval()
    calibrate(student, random_images(8, channels))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith(("before", "after")):
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view(parameter.shape))
    return student


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", FORMS, ids=lambda config: f"{config.attention}-{config.act_step}-{config.weights}")
def test_every_target_computes_a_mixture(config: Quantization, seed: int, tmp_path: Path) -> None:
    uniform = frozen_model(config)
    channels = uniform.graph.image[0]
    bits = random_bits(uniform, seed, most=7)  # OpenVINO has no exact product for 8-bit StatsQ
    student = mixed_student(small_vit(channels == 3, channels, depth=2), config, bits, channels)
    save_frozen(freeze(student, config, uniform.preprocessing, uniform.labels), tmp_path / "frozen.safetensors")
    frozen, images = load_frozen(tmp_path / "frozen.safetensors"), random_images(6, channels).numpy()

    assert {name: frozen.linear(name).bits for name in bits.weights} == bits.weights
    assert {name: frozen.quantizer(name).bits for name in bits.activations} == bits.activations
    for target in provable_targets():
        if target.name == "openvino" and config.act_step == "token":
            with pytest.raises(UnsupportedByTarget):
                build(frozen, target)
            continue
        write_checked(build(frozen, target), tmp_path / "model.onnx")
        file, backend = OnnxFile(tmp_path / "model.onnx"), target.only_on or "ort-cpu"
        _check_packed_bytes(file, frozen, target)

        assert prove_weights(file, frozen).passed
        for comparison in prove_operators(file, frozen, images, TorchRunner(student), Reporter(), backend):
            assert comparison.passed, (target.name, comparison.faults())
        assert prove_free_run(file, frozen, images, Reporter(), backend).passed


def _check_packed_bytes(file: OnnxFile, frozen: Frozen, target: Target) -> None:
    """Every weight lies at its own width; above 4 bits at a byte, but in planes of fused operators."""
    tensors = {tensor.name: len(tensor.raw_data) for tensor in file.proto.graph.initializer}
    for name, node in frozen.linears.items():
        linear = frozen.linear(name)
        cut = node.parts > 1 and f"{name}.weight.codes" not in tensors
        parts = [f"{name}.{part}" for part in range(node.parts)] if cut else [name]
        stored = sum(tensors.get(f"{part}.weight.codes", 0) or tensors[f"{part}.weight"] for part in parts)
        expected = packed_bytes(linear.bits, linear.codes.size) if target.packs_weights else linear.codes.size
        assert stored == (-(-linear.bits * linear.codes.size // 8) if target.library else expected), name


@pytest.fixture(scope="module")
def mixed_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's teacher as a student of mixed bits, in a run folder of its own."""
    path = tmp_path_factory.mktemp("mixed") / "runs" / "mixed"
    shutil.copytree(tiny_run, path, ignore=shutil.ignore_patterns("*.onnx", "*.md", "*.json", "*.html"))
    recipe, uniform = load_run(tiny_run).recipe, load_frozen(tiny_run / "frozen.safetensors")
    teacher = build_model(recipe.model, 1, 10)
    teacher.load_state_dict(load_file(tiny_run / "teacher.safetensors"))
    bits = replace(random_bits(uniform, 7), weights={**random_bits(uniform, 7).weights, "blocks.0.mlp.fc1": 2})
    student = mixed_student(teacher, recipe.quantization, bits, channels=1)
    save_file(student.state_dict(), path / "weights.safetensors")
    frozen = freeze(student, recipe.quantization, uniform.preprocessing, uniform.labels)
    save_frozen(frozen, path / "frozen.safetensors", force=True)
    write_manifest(path, "mixed", {})
    return path


@pytest.fixture(scope="module")
def mixed_model(mixed_run: Path) -> Path:
    return api.export(mixed_run, target="ort-cpu")


def test_the_run_is_proven_after_reloading(mixed_model: Path) -> None:
    result = api.validate(mixed_model, images=4)

    assert result["passed"], result["faults"]
    assert api.lint(mixed_model) == []


def test_inspect_tells_the_bits_of_each_layer(mixed_run: Path, mixed_model: Path, tmp_path: Path) -> None:
    frozen = load_frozen(mixed_run / "frozen.safetensors")
    alone = tmp_path / "alone" / "below" / "model.onnx"  # without its frozen file, by the model's own word
    alone.parent.mkdir(parents=True)
    shutil.copy(mixed_model, alone)

    for model in (mixed_model, alone):
        rows = {row["name"]: row for row in api.inspect(model)["layers"]}
        assert {name: row["bits_trained"] for name, row in rows.items()} == {
            name: node.bits for name, node in frozen.linears.items()
        }
    read = {name: frozen.graph.quantizer_of(node.x).bits for name, node in frozen.linears.items()}
    assert {row["name"]: row["act_bits"] for row in api.inspect(mixed_model)["layers"]} == read


def test_bench_counts_the_bits_of_each_product(mixed_run: Path, mixed_model: Path) -> None:
    frozen = load_frozen(mixed_run / "frozen.safetensors")
    shapes, by_hand = frozen.graph.shapes, 0
    for node in frozen.graph.nodes:
        if isinstance(node, Linear):
            by_hand += node_macs(node, frozen.graph) * node.bits * frozen.graph.quantizer_of(node.x).bits
        elif isinstance(node, Product):
            left, right = (frozen.graph.quantizer_of(name).bits for name in (node.left, node.right))
            by_hand += node_macs(node, frozen.graph) * left * right
            if node.key_shift:  # a float for each row of the right side
                by_hand += prod(shapes[node.right]) * 32 * right
            if node.bias_of:
                heads, bits = shapes[node.right][0], frozen.graph.quantizer_of(node.bias_of).bits
                by_hand += prod(shapes[node.bias_of]) * heads * 32 * bits

    assert api.bench(mixed_model, seconds=0.0)["arithmetic"]["bit_operations"] == by_hand


def test_pages_and_packages_tell_of_a_mixture(mixed_run: Path, mixed_model: Path, tmp_path: Path) -> None:
    api.package(mixed_model, kind="ort", output=tmp_path / "served")
    result = api.validate(mixed_model, images=1)
    (mixed_run / "result.json").write_text(json.dumps(result))
    page = Path(api.report(mixed_run, output=tmp_path / "report.html")["report"]).read_text()

    assert "2- to 8-bit weights and 2- to 8-bit activations" in mixed_model.with_name("model.ort-cpu.md").read_text()
    assert "mixed" in page
    assert "onnxruntime>=1.24" in (tmp_path / "served" / "README.md").read_text().replace(" ", "")


def test_uniform_models_say_nothing_of_layers(portable_model: Path) -> None:
    assert "bits" not in OnnxFile(portable_model).properties


def test_packed_weights_on_the_signed_grid_are_counted(tmp_path: Path) -> None:
    """LSQ's codes reach their product by a Cast alone, and ONNX Runtime has no Shape of 4-bit types."""
    frozen = frozen_model(Quantization(4, 4, "qk", "tensor", weights="lsq", shifts=False))
    write_checked(build(frozen, TARGETS["ort-cpu"]), tmp_path / "model.onnx")
    by_hand = sum(
        node_macs(node, frozen.graph) * (8 if node.name in ("patch_embed", "head") else 4) ** 2
        for node in frozen.graph.nodes
    )

    assert work(OnnxFile(tmp_path / "model.onnx"), (1, *frozen.graph.image)).bit_operations == by_hand
