"""The frozen file is the network: torch against the oracle tap by tap, round trips, refused damage."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import FrozenFileError, OutputError
from ofq_deploy.model import frozen as frozen_module
from ofq_deploy.model.frozen import Frozen, frozen_bytes, frozen_hash, load_frozen, save_frozen
from ofq_deploy.model.graph import Graph
from ofq_deploy.model.grids import code_range
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.proof import oracle
from ofq_deploy.train.convert import activation_quantizers, calibrate, convert
from ofq_deploy.train.freeze import freeze
from ofq_deploy.train.layers import QuantLinear
from ofq_deploy.train.witness import TorchRunner
from tests.support.models import random_images, small_vit

LABELS = tuple("abcdefg")
BITS = ((2, 2), (3, 3), (4, 4), (8, 8), (2, 4))
CONFIGS = [
    Quantization(weight_bits, act_bits, attention, act_step, weights)  # type: ignore[arg-type]
    for (weight_bits, act_bits), act_step, attention, weights in itertools.product(
        BITS, ("token", "tensor"), ("qkr", "qk"), ("statsq", "lsq")
    )
]
CONFIGS += [replace(config, shifts=False) for config in CONFIGS if config.act_bits == 3]
Damage = Callable[[NDArray[Any]], NDArray[Any]]


def trained(config: Quantization, **sizes: Any) -> Any:
    """A calibrated model whose shifts are not zero, as after training."""
    model: Any = convert(small_vit(**sizes), config)[0].eval()
    calibrate(model, random_images(16, model.patch_embed.proj.weight.shape[1], seed=1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("before", "after")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def frozen_of(model: torch.nn.Module, config: Quantization) -> Frozen:
    channels = model.patch_embed.proj.weight.shape[1]
    how = Preprocessing(16, 16, "bilinear", (0.5,) * channels, (0.25,) * channels)
    return freeze(model, config, how, LABELS)


def sizes_of(config: Quantization) -> dict[str, Any]:
    """Distilled colour models where there are shifts per token, plain grey ones otherwise."""
    rich = config.act_step == "token"
    return {"distilled": rich, "channels": 3 if rich else 1, "depth": 2}


def witness(
    model: Any, images: NDArray[np.float32], dtype: torch.dtype = torch.float32
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Codes and floats of a free run in torch."""
    made = TorchRunner(model, dtype).infer({"image": images})
    floats = {name: value for name, value in made.items() if np.issubdtype(value.dtype, np.floating)}
    return {name: value for name, value in made.items() if name not in floats}, floats


def only_ties(expected: NDArray[Any], actual: NDArray[Any], units: NDArray[Any]) -> bool:
    """Whether codes differ by one at most, and only where the unrounded value lies on a threshold."""
    differs = expected != actual
    from_threshold = np.abs(np.abs(units - np.rint(units)) - 0.5)[differs]
    return bool((np.abs(expected - actual) <= 1).all() and (from_threshold < 1e-3).all())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_oracle_reproduces_torch_tap_by_tap(config):
    model = trained(config, **sizes_of(config))
    images = random_images(3, 3 if config.act_step == "token" else 1, seed=2).numpy()
    codes, floats = witness(model, images)
    trace = oracle.run(frozen_of(model, config), images, {**codes, **floats})
    flips = sum(int((codes[name] != trace.codes[name]).sum()) for name in codes)

    assert codes.keys() == trace.codes.keys()
    assert floats.keys() == trace.floats.keys()
    assert flips <= 2e-4 * sum(made.size for made in codes.values())
    for name, made in codes.items():
        assert only_ties(made, trace.codes[name], trace.units[name]), name
    for name, value in floats.items():
        assert np.abs(value - trace.floats[name]).max() <= 1e-5 * np.abs(value).max(), name


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_free_oracle_has_the_logits_of_torch_in_float64(config):
    model = trained(config, **sizes_of(config))
    images = random_images(4, 3 if config.act_step == "token" else 1, seed=3).numpy()
    codes, floats = witness(model, images, torch.float64)
    trace = oracle.run(frozen_of(model, config), images)
    same = np.ones(len(images), dtype=bool)
    for name, made in codes.items():  # in the order of computation: the first difference must be a tie
        assert only_ties(made[same], trace.codes[name][same], trace.units[name][same]), name
        same &= (made == trace.codes[name]).reshape(len(images), -1).all(1)

    assert same.sum() >= 3
    np.testing.assert_allclose(trace.floats["logits"][same], floats["logits"][same], atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_unshifted_networks_without_biases_freeze(attention):
    config = Quantization(attention=attention, shifts=False)
    model = trained(config, qkv_bias=False, proj_bias=False)
    images = random_images(seed=2).numpy()
    _, floats = witness(model, images, torch.float64)
    frozen = frozen_of(model, config)

    assert frozen.get("blocks.0.attn.scores.key_bias") is None
    np.testing.assert_allclose(oracle.run(frozen, images).floats["logits"], floats["logits"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", CONFIGS[:8], ids=str)
def test_frozen_codes_are_those_of_the_training_quantizers(config):
    model = trained(config)
    frozen = frozen_of(model, config)
    for path, module in model.named_modules():
        if isinstance(module, QuantLinear) and not path.endswith((".value", ".qkv")):
            coded, linear = module.weight_quant.coded(module.weight), frozen.linear(path)
            assert np.array_equal(coded.codes.numpy(), linear.codes), path
            torch.testing.assert_close(
                module.weight_quant(module.weight).detach(),
                torch.from_numpy(linear.integers.astype(np.float32) * linear.step[:, None]),
                atol=0,
                rtol=0,
            )
    if config.attention == "qkr":
        attention = model.blocks[0].attn
        product = attention.product_quant.coded(attention.product())
        assert np.array_equal(product.codes.numpy(), frozen["blocks.0.attn.z.weight.codes"])
    else:
        qkv = model.blocks[0].attn.qkv
        parts = [frozen[f"blocks.0.attn.{part}.weight.codes"] for part in "qkv"]
        assert np.array_equal(qkv.weight_quant.coded(qkv.weight).codes.numpy(), np.concatenate(parts))


def test_freezing_reads_a_negative_step_as_its_floor():
    config = Quantization()
    model = trained(config)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.input.step[3] = -0.5
        model.patch_embed.proj.weight_quant.step[5] = -0.5
    frozen = frozen_of(model, config)

    assert np.float32(1e-5) == frozen["blocks.0.mlp.fc1.input.step"][3]
    assert np.float32(1e-5) == frozen["patch_embed.weight.step"][5]


def test_freezing_changes_nothing_in_the_model():
    model = trained(CONFIGS[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    witness(model, random_images().numpy(), torch.float64)
    first, second = frozen_of(model, CONFIGS[0]), frozen_of(model, CONFIGS[0])

    assert frozen_bytes(first) == frozen_bytes(second)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.float32 == model.head.weight.dtype


@pytest.mark.parametrize("config", CONFIGS[::5], ids=str)
def test_a_saved_file_loads_equal_and_has_the_same_bytes_twice(config, tmp_path):
    frozen = frozen_of(trained(config, **sizes_of(config)), config)
    save_frozen(frozen, tmp_path / "first.safetensors")
    save_frozen(frozen, tmp_path / "second.safetensors")
    loaded = load_frozen(tmp_path / "first.safetensors")

    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()
    assert frozen_hash(frozen) == frozen_hash(loaded)
    assert replace(frozen, arrays={}) == replace(loaded, arrays={})
    assert frozen.arrays.keys() == loaded.arrays.keys()
    for name, array in frozen.arrays.items():
        assert array.dtype == loaded[name].dtype, name
        assert np.array_equal(array, loaded[name]), name


def test_every_activation_quantizer_is_in_the_file():
    model = trained(CONFIGS[0], distilled=True)
    paths = {path.replace("patch_embed.proj.", "patch_embed.") for path in activation_quantizers(model)}

    assert paths == frozen_of(model, CONFIGS[0]).quantizers.keys()


def test_a_saved_file_is_replaced_only_by_force(tmp_path, frozen):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        save_frozen(frozen, path)

    assert path.read_bytes() == b"mine"
    save_frozen(frozen, path, force=True)
    assert frozen_bytes(frozen) == path.read_bytes()


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    config = Quantization()
    return frozen_of(trained(config, distilled=True), config)


@pytest.fixture(scope="module")
def frozen_apart() -> Frozen:
    config = Quantization(attention="qk", weights="lsq")
    return frozen_of(trained(config), config)


def refused(frozen: Frozen, path: Path, match: str) -> None:
    save_frozen(frozen, path, force=True)
    with pytest.raises(FrozenFileError, match=match):
        load_frozen(path)


@pytest.mark.parametrize("form", ["frozen", "frozen_apart"])
def test_every_missing_array_is_named(form, tmp_path, request):
    whole = request.getfixturevalue(form)
    for name in whole.arrays:
        if name.endswith("scores.key_bias"):
            continue  # a network without query biases has none
        arrays = {other: array for other, array in whole.arrays.items() if other != name}
        refused(replace(whole, arrays=arrays), tmp_path / "model.safetensors", name.replace(".", r"\."))


@pytest.mark.parametrize("form", ["frozen", "frozen_apart"])
def test_every_array_of_another_shape_is_named(form, tmp_path, request):
    whole = request.getfixturevalue(form)
    for name, array in whole.arrays.items():
        longer = {**whole.arrays, name: np.concatenate([array, array])}
        refused(replace(whole, arrays=longer), tmp_path / "model.safetensors", name.replace(".", r"\."))


def with_first(value: float) -> Damage:
    """The array with another first entry."""

    def damage(array: NDArray[Any]) -> NDArray[Any]:
        array = array.copy()
        array.flat[0] = value
        return array

    return damage


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("blocks.0.attn.proj.weight.codes", lambda codes: codes.astype(np.int16)),
        ("blocks.0.attn.proj.weight.codes", lambda codes: codes.astype(np.float32)),
        ("blocks.0.attn.proj.scale", lambda scale: scale.astype(np.float64)),
        ("norm.weight", lambda weight: weight.astype(np.float16)),
        ("tokens", with_first(np.nan)),
        ("blocks.0.mlp.fc1.bias", with_first(np.inf)),
        ("head.scale", with_first(-np.inf)),
        ("blocks.0.mlp.fc1.weight.codes", with_first(8)),
        ("blocks.0.attn.z.weight.codes", with_first(-9)),
        ("blocks.0.attn.z.step", with_first(0)),
        ("blocks.0.attn.input.step", with_first(-0.1)),
        ("head_dist.weight.step", with_first(0)),
    ],
)
def test_a_damaged_array_is_named(name, damage, frozen, tmp_path):
    arrays = {**frozen.arrays, name: damage(frozen[name])}
    refused(replace(frozen, arrays=arrays), tmp_path / "model.safetensors", name.replace(".", r"\."))


def test_an_unknown_array_is_named(frozen, tmp_path):
    arrays = {**frozen.arrays, "blocks.7.surprise": np.zeros(1, np.float32)}
    refused(replace(frozen, arrays=arrays), tmp_path / "model.safetensors", "surprise")


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_at_the_ends_of_their_range_are_accepted(bits, frozen, tmp_path):
    name, (low, high) = "blocks.0.mlp.fc1", code_range("half", bits)
    codes = np.clip(frozen[f"{name}.weight.codes"], low, high)
    codes.flat[:2] = low, high
    nodes = [structs.replace(node, bits=bits) if node.output == f"{name}.out" else node for node in frozen.graph.nodes]
    arrays = {**frozen.arrays, f"{name}.weight.codes": codes}
    save_frozen(replace(frozen, graph=Graph(tuple(nodes)), arrays=arrays), tmp_path / "model")

    assert np.array_equal(codes, load_frozen(tmp_path / "model").linear(name).codes)


def test_another_format_version_is_refused(frozen, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_module, "FORMAT", 3)
    save_frozen(frozen, tmp_path / "model.safetensors")
    monkeypatch.undo()

    with pytest.raises(FrozenFileError, match="format 3, this version reads 1 and 2"):
        load_frozen(tmp_path / "model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_a_cut_file_is_refused(share, frozen, tmp_path):
    whole, path = frozen_bytes(frozen), tmp_path / "model.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])

    with pytest.raises(FrozenFileError, match=r"model\.safetensors"):
        load_frozen(path)


def test_what_is_no_frozen_file_is_refused(frozen, tmp_path):
    (tmp_path / "text").write_text("not a model")
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "foreign")
    for name in ("absent", "text", "foreign", "."):
        with pytest.raises(FrozenFileError, match=str(tmp_path)):
            load_frozen(tmp_path / name)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("quantization", "weight_bits", 9),
        ("quantization", "attention", "linear"),
        ("architecture", "patch_size", 0),
        ("architecture", "dim", None),
        ("architecture", "heads", 3),
        ("preprocessing", "mean", None),
        ("architecture", "image_size", 32),
        ("architecture", "classes", 5),
        ("architecture", "family", "moon"),
        ("graph", 0, None),
        ("graph", 5, None),
        ("graph", -1, None),
        ("graph", 1, {"kind": "Quantise", "name": "x"}),
        ("graph", 2, {"kind": "Gelu", "name": "x"}),
        ("graph", 2, {"kind": "Gelu", "name": "x", "x": "nothing"}),
    ],
)
def test_a_damaged_header_is_refused(section, key, value, frozen, tmp_path):
    path = tmp_path / "model.safetensors"
    header = json.loads(_header(frozen, path))
    if value is None:
        del header[section][key]
    else:
        header[section][key] = value
    save_file(frozen.arrays, path, metadata={"ofq_deploy": json.dumps(header)})

    with pytest.raises(FrozenFileError, match=r"model\.safetensors"):
        load_frozen(path)


def _header(frozen: Frozen, path: Path) -> str:
    save_frozen(frozen, path)
    with safe_open(path, framework="numpy") as file:
        return file.metadata()["ofq_deploy"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Linear", {"bits": 9}),
        ("Linear", {"grid": "odd"}),
        ("Linear", {"inputs_width": 5}),
        ("Quantize", {"bits": 1}),
        ("Quantize", {"granularity": {"kind": "PerToken", "tokens": 3}}),
        ("Quantize", {"granularity": {"kind": "PerMoon"}}),
        ("Layout", {"pattern": "n (h d) -> h d"}),
        ("Add", {"terms": ["embedding"]}),
        ("LayerNorm", {"x": "blocks.0.attn.input.codes"}),
        ("LayerNorm", {"epsilon": float("inf")}),
        ("Gelu", {"surprise": 1}),
        ("Product", {"left": "embedding"}),
        ("Rows", {"count": 99}),
        ("Token", {"index": 99}),
        ("Constant", {"shape": [1, 2, 3]}),
    ],
)
def test_a_damaged_node_is_refused(kind, changes, frozen, tmp_path):
    path = tmp_path / "model.safetensors"
    header = json.loads(_header(frozen, path))
    node = next(node for node in header["graph"][8:] + header["graph"] if node["kind"] == kind)
    node |= changes
    save_file(frozen.arrays, path, metadata={"ofq_deploy": json.dumps(header)})

    with pytest.raises(FrozenFileError, match=r"model\.safetensors"):
        load_frozen(path)
