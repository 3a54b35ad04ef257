"""Bits are a property of each layer: any mixture is converted, frozen, reloaded and computed as it was asked for."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import ModelError
from ofq_deploy.model.bits import LayerBits
from ofq_deploy.model.frozen import Frozen, frozen_bytes, load_frozen, save_frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Model, Quantization, Recipe, dump_toml
from ofq_deploy.runs.folder import Run
from ofq_deploy.runtime_tests.proof.compare import compare_operators
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.freeze import freeze
from ofq_deploy.train.reference import load_student
from ofq_deploy.train.sources.models import build_model
from ofq_deploy.train.witness import TorchRunner
from tests.support.models import random_images, small_vit

PREPROCESSING = Preprocessing(16, 16, "bilinear", (0.5,), (0.25,))
LABELS = tuple("abcdefg")
SIZES = Model("deit", distilled=True, image_size=16, patch_size=4, dim=16, depth=2, heads=2)


def frozen_with(bits: LayerBits, config: Quantization, model: torch.nn.Module | None = None) -> Frozen:
    """Converted, calibrated and frozen."""
    student, _ = convert(model or small_vit(distilled=True, dim=16, depth=2), config, bits=bits)
    calibrate(student, random_images())
    return freeze(student, config, PREPROCESSING, LABELS)


@cache
def names_of(attention: str) -> LayerBits:
    """Every layer of a form, by name."""
    return LayerBits.of(frozen_with(LayerBits(), Quantization(attention=attention)))  # type: ignore[arg-type]


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Quantization, LayerBits]:
    """A form, and bits for some of its layers; q, k and v agree."""
    widths = st.integers(2, 8)
    config = Quantization(
        weight_bits=draw(widths),
        act_bits=draw(widths),
        attention=draw(st.sampled_from(["qkr", "qk"])),
        act_step=draw(st.sampled_from(["token", "tensor"])),
        weights=draw(st.sampled_from(["statsq", "lsq"])),
        shifts=draw(st.booleans()),
    )
    names = names_of(config.attention)
    weights = draw(st.dictionaries(st.sampled_from(sorted(names.weights)), widths))
    if config.attention == "qk":
        for block in range(SIZES.depth):
            shared = [f"blocks.{block}.attn.{part}" for part in "qkv"]
            asked = [weights.pop(name) for name in shared if name in weights]
            weights |= dict.fromkeys(shared, asked[0]) if asked else {}
    return config, LayerBits(weights, draw(st.dictionaries(st.sampled_from(sorted(names.activations)), widths)))


def expected_bits(config: Quantization, bits: LayerBits) -> LayerBits:
    """What is asked for; else 8 for patch embedding and heads, and the recipe's for the rest."""

    def width(name: str, asked: dict[str, int], default: int) -> int:
        return asked.get(name, 8 if name.startswith(("patch_embed", "head")) else default)

    names = names_of(config.attention)
    return LayerBits(
        {name: width(name, dict(bits.weights), config.weight_bits) for name in names.weights},
        {name: width(name, dict(bits.activations), config.act_bits) for name in names.activations},
    )


@given(mixture=mixtures())
@settings(max_examples=12)
def test_every_layer_is_frozen_with_the_bits_that_it_is_asked_for(mixture, tmp_path_factory):
    config, bits = mixture
    path = tmp_path_factory.mktemp("mixed") / "frozen.safetensors"
    save_frozen(frozen_with(bits, config), path)

    assert expected_bits(config, bits) == LayerBits.of(load_frozen(path))


@given(mixture=mixtures())
@settings(max_examples=8)
def test_a_run_whose_frozen_file_mixes_bits_reloads(mixture, tmp_path_factory):
    config, bits = mixture
    folder = tmp_path_factory.mktemp("run")
    student, _ = convert(build_model(SIZES, 1, len(LABELS)), config, 64, bits)
    calibrate(student, random_images())
    frozen = freeze(student, config, PREPROCESSING, LABELS)
    save_frozen(frozen, folder / "frozen.safetensors")
    save_file(student.state_dict(), folder / "weights.safetensors")
    (folder / "recipe.toml").write_text(dump_toml(Recipe("mixed", model=SIZES, quantization=config)))
    again = load_student(Run(folder, {}), load_frozen(folder / "frozen.safetensors"))

    assert frozen_bytes(frozen) == frozen_bytes(freeze(again, config, PREPROCESSING, LABELS))
    assert torch.equal(student(random_images(seed=1)), again(random_images(seed=1)))


@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_a_mixture_computes_what_the_oracle_defines(attention):
    config, names = Quantization(attention=attention), names_of(attention)
    weights = {name: 2 + index % 7 for index, name in enumerate(names.weights) if not name.endswith(("q", "k", "v"))}
    bits = LayerBits(weights, {name: 2 + index % 7 for index, name in enumerate(names.activations)})
    student, _ = convert(small_vit(distilled=True, dim=16, depth=2), config, bits=bits)
    calibrate(student, random_images())
    frozen = freeze(student, config, PREPROCESSING, LABELS)
    (parity,) = compare_operators(frozen, TorchRunner(student), [], random_images(4, seed=2).numpy(), Reporter())
    codes = TorchRunner(student).infer({"image": 3 * random_images(8).numpy()})
    widest = {name: int(abs(codes[name] + 0.5).max() + 0.5) for name in bits.activations}

    assert parity.faults() == []
    assert parity.compared > 10_000
    assert all(widest[name] <= 2**width for name, width in bits.activations.items())
    assert {name for name, width in bits.activations.items() if width == 8 and widest[name] > 2**4}


def test_bits_that_are_not_given_are_the_recipes():
    config = Quantization(weight_bits=3, act_bits=5)
    model = small_vit(distilled=True, dim=16, depth=2)
    given_all = expected_bits(config, LayerBits())

    assert frozen_bytes(frozen_with(LayerBits(), config, model)) == frozen_bytes(frozen_with(given_all, config, model))


def test_q_k_and_v_share_a_quantizer_and_so_their_bits():
    with pytest.raises(ModelError, match=r"blocks\.1\.attn\.q 8, blocks\.1\.attn\.k 4, blocks\.1\.attn\.v 4"):
        frozen_with(LayerBits({"blocks.1.attn.q": 8}), Quantization(attention="qk"))

    shared = {f"blocks.1.attn.{part}": 8 for part in "qkv"}
    assert frozen_with(LayerBits(shared), Quantization(attention="qk")).linear("blocks.1.attn.k").bits == 8


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (LayerBits({"blocks.0.mlp.fc3": 4}), r"blocks\.0\.mlp\.fc3, .* linear layer; the nearest one is blocks\.0\.mlp\.fc"),
        (LayerBits({"blocks.0.attn.q": 4}), r"blocks\.0\.attn\.q, .* linear layer"),  # under QKR there is none
        (LayerBits({}, {"blocks.0.mlp.fc1.inputs": 4}), r"activation quantizer; the nearest one is blocks\.0\.mlp\.fc1\.input$"),
        (LayerBits({}, {"blocks.0.mlp.fc1": 4}), "activation quantizer; the nearest one is"),
        (LayerBits({}, {"embedding": 4}), "activation quantizer"),
    ],
)  # fmt: skip
def test_bits_of_a_layer_that_there_is_not_name_the_nearest(bits, message):
    with pytest.raises(ModelError, match=message):
        convert(small_vit(distilled=True), Quantization(), bits=bits)


@pytest.mark.parametrize("bits", [1, 9, 0, 4.0, True, "4"])
def test_widths_without_a_grid_are_refused(bits):
    for wrong in ({"weights": {"head": bits}}, {"activations": {"head.input": bits}}):
        with pytest.raises(ModelError, match=r"head.* quantizers exist for 2 to 8"):
            LayerBits(**wrong)


def test_bits_of_a_frozen_file_are_those_of_its_layers():
    frozen = frozen_with(LayerBits({"head": 5}, {"blocks.0.attn.z": 6}), Quantization())

    assert LayerBits.of(frozen).weights["head"] == 5
    assert LayerBits.of(frozen).activations["blocks.0.attn.z"] == 6
    assert LayerBits.of(replace(frozen, quantization=Quantization(8, 8))) == LayerBits.of(frozen)
