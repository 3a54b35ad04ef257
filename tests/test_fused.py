"""Graphs of fused operators, computed by the numpy reference of docs/kernels.md: every form is what the oracle defines."""

import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.export import fused, patterns
from ofq_deploy.export.fused import exponentials
from ofq_deploy.export.network import build
from ofq_deploy.export.patterns import Attention, Heads, LinearCodes, LinearSum, NormCodes, PatchEmbedding, find_pattern
from ofq_deploy.export.write import to_proto, write_checked
from ofq_deploy.kernels import DOMAIN
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import Frozen, load_frozen
from ofq_deploy.model.graph import Graph
from ofq_deploy.model.nodes import AnyNode
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.lint.findings import Finding, Model
from ofq_deploy.runtime_tests.lint.rules import not_fused
from ofq_deploy.runtime_tests.proof.compare import compare_operators
from ofq_deploy.runtime_tests.proof.oracle import Oracle
from ofq_deploy.runtime_tests.proof.parity import Parity
from ofq_deploy.runtime_tests.proof.proof import prove_constants, prove_weights
from ofq_deploy.runtime_tests.proof.tapped import TappedModel
from ofq_deploy.targets import ORT_OFQ
from ofq_deploy.train.convert import convert
from ofq_deploy.train.freeze import freeze
from tests.support.fused_reference import ReferenceRunner
from tests.support.models import frozen_model, random_images, sizes, small_vit
from tests.test_mixed_bits import mixed_student, random_bits
from tests.test_vits import NAMES, frozen_of, random_model

FILES = Path(__file__).parent / "data" / "frozen-format1.zip"
# Of every form: bits, q and k apart or not, steps per token or tensor, shifts, one head or two, StatsQ and LSQ.
with zipfile.ZipFile(FILES) as archive:
    FORMS = [name for name in archive.namelist() if not name.endswith("teacher.safetensors")]
TOKEN, TENSOR = Quantization(4, 4), Quantization(3, 4, "qk", "tensor", shifts=False)


def exported(frozen: Frozen, path: Path) -> OnnxFile:
    write_checked(build(frozen, ORT_OFQ), path / "model.onnx")
    return OnnxFile(path / "model.onnx")


def proven(file: OnnxFile, frozen: Frozen, count: int = 3) -> Parity:
    """Every operator on the oracle's codes."""
    images = random_images(count, frozen.graph.image[0]).numpy()
    with TappedModel(file, frozen, ReferenceRunner) as model:
        (found,) = compare_operators(frozen, Oracle(frozen), [model], images, Reporter())
    return found


def operators(file: OnnxFile) -> Counter[str]:
    """Fused ones by name, all others as one."""
    return Counter(node.op_type if node.domain == DOMAIN else "ordinary" for node in file.proto.graph.node)


def check(frozen: Frozen, path: Path) -> OnnxFile:
    file = exported(frozen, path)
    found = proven(file, frozen)

    assert prove_weights(file, frozen).passed
    assert found.faults() == []
    assert found.compared > 10_000
    assert found.worst_float_error < 2e-7  # sums in float64, rounded once for each operator
    return file


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_what_the_oracle_defines(form: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(FILES) as files:
        frozen = load_frozen(files.extract(form, tmp_path))
    file = check(frozen, tmp_path)
    blocks, heads = sizes(frozen).depth, len(sizes(frozen).classifiers)

    assert operators(file) == {
        "Patches": 1,
        "LayerNorm": 2 * blocks + heads,
        "Linear": blocks * (4 if frozen.quantization.attention == "qk" else 3),
        "Attention": blocks,
        "LinearAdd": 1 + 2 * blocks,
        "LinearHead": heads,
    }


@pytest.mark.parametrize("config", [TOKEN, TENSOR], ids=lambda config: config.act_step)
@pytest.mark.parametrize("name", NAMES)
def test_other_vits_are_what_the_oracle_defines(name: str, config: Quantization, tmp_path: Path) -> None:
    """Registers, LayerScale, no biases; means of tokens, which no fused operator computes."""
    frozen = frozen_of(convert(random_model(name), config)[0].eval(), config, tmp_path / "frozen.safetensors")
    file = check(frozen, tmp_path)
    parts = list(not_fused(Model(file)))

    if sizes(frozen).pool == "token":
        assert parts == []
    else:
        (part,) = parts
        assert part.rule == "not-fused"
        assert f"it takes {operators(file)['ordinary']} ordinary ones (Transpose, Reshape, Slice, " in part.cause


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("attention", ["qk", "qkr"])
def test_mixtures_of_bits_are_what_the_oracle_defines(attention: Any, seed: int, tmp_path: Path) -> None:
    config = Quantization(4, 4, attention, "tensor" if seed % 2 else "token")
    uniform = frozen_model(config)
    channels = uniform.graph.image[0]
    model = small_vit(channels == 3, channels, depth=2)
    student = mixed_student(model, config, random_bits(uniform, seed), channels)

    check(freeze(student, config, uniform.preprocessing, uniform.labels), tmp_path)


def leave_out(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fused, patterns):
        monkeypatch.setattr(
            module, "find_pattern", lambda *given: None if isinstance(found := find_pattern(*given), kind) else found
        )


@pytest.mark.parametrize("kind", [PatchEmbedding, NormCodes, LinearCodes, LinearSum, Heads, Attention])
@pytest.mark.parametrize("config", [TOKEN, TENSOR, Quantization(2, 2, "qk")], ids=lambda config: config.label)
def test_mixed_graphs_are_what_the_oracle_defines(
    kind: type, config: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of the patterns: its part is lowered by ordinary operators, between the others."""
    leave_out(kind, monkeypatch)

    assert operators(check(frozen_model(config), tmp_path))["ordinary"] > 0


def renamed(frozen: Frozen) -> Frozen:
    """The same network with names that mean nothing, but for the image and the logits."""
    names = {node.name: f"n{place}" for place, node in enumerate(frozen.graph.nodes)}
    names |= {"image": "image", "logits": "logits"}

    def long(value: str) -> str:
        name = value if value in names else value.rpartition(".")[0]
        return names[name] + value[len(name) :]

    def moved(node: AnyNode) -> AnyNode:
        fields = {"name": names[node.name]}
        for field in ("x", "left", "right", "bias_of"):
            if getattr(node, field, ""):
                fields[field] = long(getattr(node, field))
        terms = {"terms": tuple(map(long, node.terms))} if hasattr(node, "terms") else {}
        return msgspec.structs.replace(node, **fields, **terms)

    owners = sorted(names, key=len, reverse=True)
    arrays = {}
    for name, array in frozen.arrays.items():
        owner = next(owner for owner in owners if name == owner or name.startswith(f"{owner}."))
        arrays[names[owner] + name[len(owner) :]] = array
    return replace(frozen, graph=Graph(tuple(map(moved, frozen.graph.nodes))), arrays=arrays)


@pytest.mark.parametrize("config", [TOKEN, TENSOR], ids=lambda config: config.act_step)
def test_patterns_do_not_depend_on_names(config: Quantization, tmp_path: Path) -> None:
    frozen = frozen_model(config)
    own, other = (to_proto(build(of, ORT_OFQ)) for of in (frozen, renamed(frozen)))

    assert [node.op_type for node in own.graph.node] == [node.op_type for node in other.graph.node]
    assert {node.domain for node in other.graph.node} == {DOMAIN}
    pairs = zip(own.graph.initializer, other.graph.initializer, strict=True)
    assert all(numpy_helper.to_array(a).tobytes() == numpy_helper.to_array(b).tobytes() for a, b in pairs)


def test_steps_per_tensor_leave_no_optional_input(tmp_path: Path) -> None:
    file = exported(frozen_model(Quantization(4, 4, "qk", "tensor")), tmp_path)
    kinds: dict[str, set[tuple[bool, ...]]] = {}
    for node in file.proto.graph.node:
        kinds.setdefault(node.op_type, set()).add(tuple(map(bool, node.input)))
    whole = (True,) * 8

    assert kinds["Linear"] == {(True,) * 4, (True, True, *(False,) * 5, True)}  # plain, and thresholds behind GELU
    assert kinds["LinearAdd"] == {(True,) * 5}
    assert kinds["LayerNorm"] == {(True,) * 3}
    # An exponential table; of the shifts those of queries (9) and values (14).
    assert kinds["Attention"] == {(*whole, False, True, *(False,) * 4, True)}


def test_a_last_block_cuts_rows_without_an_operator(tmp_path: Path) -> None:
    file = exported(frozen_model(TOKEN), tmp_path)
    rows = [
        attribute.i
        for node in file.proto.graph.node
        if node.op_type == "Attention"
        for attribute in node.attribute
        if attribute.name == "rows"
    ]

    assert rows == [18, 2]
    assert operators(file)["ordinary"] == 0


def test_exponentials_are_written_where_no_code_shows_the_cut() -> None:
    def table(scale: float, count: int = 1) -> Any:
        return exponentials(np.full(count, scale, dtype=np.float32))

    assert table(0.1).shape == (64,)
    assert table(0.033).shape == (64,)  # 2 ** (-1023 * 0.033) < 1e-10
    assert table(0.032).shape == (80,)
    assert table(0.0021).shape == (80,)
    assert table(0.0020) is None
    assert table(0.1, count=2) is None
    assert table(-0.1) is None
    np.testing.assert_allclose(table(0.01)[[1, 33, 65]], 2.0 ** -np.asarray([0.32, 0.01, 10.24]), rtol=1e-6)


def test_a_file_tells_of_channels_that_could_not_be_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = frozen_model(TENSOR)
    told = exported(frozen, tmp_path).properties
    monkeypatch.setattr(fused, "settle", lambda layer, scale, bias: (scale, bias, 1))
    (tmp_path / "other").mkdir()

    assert "unproven" not in told
    assert exported(frozen, tmp_path / "other").properties["unproven"] == "6"  # q, k and v of two blocks


# Files that were changed.

Change = Callable[[NDArray[Any]], NDArray[Any]]
CHANGES: dict[str, tuple[str, Change]] = {
    "blocks.0.mlp.fc1.rising": ("blocks.0.mlp.fc2.input", lambda x: x + 40),
    "blocks.1.attn.q.scale": ("blocks.1.attn.q", lambda x: x * 1.5),
    "blocks.0.attn.v.bias": ("blocks.0.attn.v", lambda x: x + 1),
    "blocks.1.attn.proj.scale": ("blocks.1.middle", lambda x: x * 1.01),
    "blocks.0.attn.input.gamma": ("blocks.0.attn.input", lambda x: x * 1.5),
    "blocks.0.attn.scores.scale": ("blocks.0.attn.softmax", lambda x: x * 1.5),
    "blocks.0.attn.softmax.reciprocal": ("blocks.0.attn.softmax", lambda x: x * 1.5),
    "blocks.1.attn.context.bias": ("blocks.1.attn.proj.input", lambda x: x + 1),
    "patch_embed.input.reciprocal": ("patch_embed.input", lambda x: x * 1.1),
    "patch_embed.position.placed": ("embedding", lambda x: x + 0.1),
    "head.scale": ("logits", lambda x: x * 1.01),
}


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return frozen_model(Quantization(4, 4, "qk", "tensor"))


def changed(frozen: Frozen, name: str, change: Change, path: Path) -> OnnxFile:
    """An export one of whose constants is another."""
    file = exported(frozen, path)
    tensor = next(tensor for tensor in file.proto.graph.initializer if tensor.name == name)
    before = numpy_helper.to_array(tensor)
    after = np.asarray(change(before.copy()), dtype=before.dtype)
    assert (before != after).any()
    tensor.CopyFrom(numpy_helper.from_array(after, name))
    return file


def first_faults(found: Parity) -> set[str]:
    """What differs: every operator is fed the right codes, so only the changed one does."""
    return {result.operator for result in found.codes if result.mismatches} | {
        result.operator for result in found.floats if not result.passed
    }


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_constant_is_caught_at_its_operator(name: str, frozen: Frozen, tmp_path: Path) -> None:
    behind, change = CHANGES[name]
    file = changed(frozen, name, change, tmp_path)

    assert prove_constants(file, to_proto(build(frozen, ORT_OFQ))).differing == (name,)
    assert first_faults(proven(file, frozen)) == {behind}


@pytest.mark.parametrize(
    "name", ["blocks.0.mlp.fc1.rising", "blocks.0.attn.q.scale", "blocks.1.attn.scores.exponentials"]
)
def test_a_constant_that_moves_no_code_is_caught_all_the_same(name: str, frozen: Frozen, tmp_path: Path) -> None:
    def smallest(array: NDArray[Any]) -> NDArray[Any]:
        array.flat[-1] = array.flat[-1] + 1 if array.dtype == np.int16 else np.nextafter(array.flat[-1], np.float32(2))
        return array

    file = changed(frozen, name, smallest, tmp_path)

    assert prove_constants(file, to_proto(build(frozen, ORT_OFQ))).differing == (name,)


@pytest.mark.parametrize("layer", ["patch_embed", "blocks.0.attn.k", "blocks.1.mlp.fc2", "head"])
def test_a_changed_weight_is_caught(layer: str, frozen: Frozen, tmp_path: Path) -> None:
    def flip(array: NDArray[Any]) -> NDArray[Any]:
        array[len(array) // 2] ^= 16
        return array

    proof = prove_weights(changed(frozen, f"{layer}.weight.codes", flip, tmp_path), frozen)

    assert (proof.differing, proof.layers) == (1, (layer,))


def test_planes_of_another_size_are_other_weights(frozen: Frozen, tmp_path: Path) -> None:
    file = exported(frozen, tmp_path)
    for node in file.proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "LinearHead" and attribute.name == "weight_bits":
                attribute.i = 7

    assert prove_weights(file, frozen).layers == ("head",)


def test_a_file_without_a_tap_is_refused(frozen: Frozen, tmp_path: Path) -> None:
    file = exported(frozen, tmp_path)
    for node in file.proto.graph.node:
        names = [name.replace("blocks.0.middle", "blocks.0.centre") for name in node.input]
        node.input[:] = names
        node.output[:] = [name.replace("blocks.0.middle", "blocks.0.centre") for name in node.output]

    with pytest.raises(OnnxFileError, match=r"does not compute the codes of blocks\.0\.middle"):
        TappedModel(file, frozen, ReferenceRunner)


def test_not_fused_names_each_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out(Attention, monkeypatch)
    file = exported(frozen_model(TENSOR), tmp_path)
    parts: list[Finding] = list(not_fused(Model(file)))

    assert len(parts) == 2  # one in each block
    assert all("Softmax" in part.cause for part in parts)
    assert sum(int(part.cause.split("it takes ")[1].split()[0]) for part in parts) == operators(file)["ordinary"]
