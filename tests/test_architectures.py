"""An architecture and a weight quantizer are added from outside: an adapter, a family, an entry each, and everything serves
them: training, freezing, every target, the proof.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import ModelError
from ofq_deploy.export.fp32 import build_fp32
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.architecture import Codings, Floats
from ofq_deploy.model.bits import LayerBits
from ofq_deploy.model.families import FAMILIES
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import load_frozen, save_frozen
from ofq_deploy.model.graph import Graph
from ofq_deploy.model.grids import Grid
from ofq_deploy.model.nodes import Add, AnyNode, Gelu, Image, Layout, Linear, PerTensor, Quantize
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Annealing, Quantization
from ofq_deploy.runner import FORCED
from ofq_deploy.runtime_tests.proof.proof import prove_operators, prove_weights
from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits
from ofq_deploy.targets import TARGETS
from ofq_deploy.train.architectures.protocols import Layer, Product, Tap
from ofq_deploy.train.architectures.registry import ADAPTERS, adapter_of
from ofq_deploy.train.convert import Replacement, calibrate, convert, quantizers_off
from ofq_deploy.train.folding import Writer, folded_bias, optional, step_of
from ofq_deploy.train.freeze import freeze
from ofq_deploy.train.layers import QuantLinear
from ofq_deploy.train.loop.engine import parameter_groups
from ofq_deploy.train.loop.losses import distilled
from ofq_deploy.train.methods.annealing import ConfidenceGuided
from ofq_deploy.train.quantizers import WEIGHT_QUANTIZERS, Coded, Quantizers, WeightQuantizer
from ofq_deploy.train.reference import weight_units
from ofq_deploy.train.witness import TorchRunner
from tests.support.kernels import provable_targets
from tests.support.models import random_images, small_vit

PREPROCESSING = Preprocessing(16, 16, "bilinear", (0.5,), (0.25,))


class Toy(nn.Module):
    """Two linear layers with a residual connection between them."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(256, 16), nn.Linear(16, 3)
        self.activation, self.stream = activation or nn.GELU(), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(1))
        return self.last(self.stream(x + self.activation(x)))


class ToyAdapter:
    """Everything that training asks of `Toy`."""

    def faults(self, model: nn.Module) -> list[str]:
        return [] if isinstance(model.activation, nn.GELU) else [f"activation {model.activation}"]

    def convert(self, model: nn.Module, quantizers: Quantizers) -> None:
        for name in ("first", "last"):
            source = model.get_submodule(name)
            assert isinstance(source, nn.Linear)
            shift = (source.in_features,)
            into = quantizers.activation(f"{name}.input", PerTensor(), source.in_features, shifts=(shift, shift))
            setattr(model, name, QuantLinear(source, quantizers.weight(source.weight, name), into))

    def logits(self, model: nn.Module, images: Tensor) -> list[Tensor]:
        return [model(images)]

    def layers(self, model: nn.Module) -> Iterator[Layer]:
        for name in ("first", "last"):
            layer = model.get_submodule(name)
            assert isinstance(layer, QuantLinear)
            yield Layer((name,), layer.weight, layer.weight_quant, edge=name == "last")

    def products(self, model: nn.Module) -> Iterator[Product]:
        return iter(())

    def taps(self, model: nn.Module) -> dict[str, Tap]:
        paths = {"first.input": "first.input", "last.input": "last.input", "sum": "stream"}
        return {name: Tap(model.get_submodule(path)) for name, path in paths.items()}

    def freeze(self, model: nn.Module, writer: Writer) -> "ToySizes":
        for layer in self.layers(model):
            (name,), linear = layer.names, model.get_submodule(layer.names[0])
            assert isinstance(linear, QuantLinear)
            assert linear.input is not None
            coded, step = layer.quantizer.coded(layer.weight), step_of(linear.input)
            writer.quantizer(f"{name}.input", linear.input, step)
            bias = folded_bias(linear.bias, coded, linear.input.after)
            writer.linear(name, coded, layer.quantizer.bits, np.full(len(bias), step.item()), bias)
            writer.put(f"{name}.input.before", optional(linear.input.before))
        return ToySizes(side=16, dim=16, classes=3)


@dataclass(frozen=True, slots=True)
class ToySizes:
    """The toy network as a list of nodes."""

    side: int
    dim: int
    classes: int

    def graph(self, quantization: Quantization, quantizers: Codings, linears: Codings) -> Graph:
        def coded(name: str, x: str, width: int, out: int) -> list[AnyNode]:
            grid, bits = quantizers[f"{name}.input"].grid, quantizers[f"{name}.input"].bits
            assert grid != "half"
            weights = linears[name]
            assert weights.grid != "unsigned"
            return [
                Quantize(f"{name}.input", x, grid, bits, PerTensor(), before=(width,)),
                Linear(name, f"{name}.input.codes", width, out, weights.grid, weights.bits),
            ]

        return self._graph(coded)

    def float_graph(self) -> Graph:
        return self._graph(lambda name, x, width, out: [Linear(name, x, width, out, "signed", 8)])

    def float_arrays(self, weights: Mapping[str, Floats]) -> dict[str, Floats]:
        return {
            f"{name}.{part}": weights[f"{name}.{part}"] for name in ("first", "last") for part in ("weight", "bias")
        }

    def _graph(self, linear: Callable[[str, str, int, int], list[AnyNode]]) -> Graph:
        return Graph(
            (
                Image("image", 1, self.side),
                Layout("pixels", "image", "c h w -> (c h w)", {}),
                *linear("first", "pixels", self.side**2, self.dim),
                Gelu("activation", "first.out"),
                Add("sum", ("first.out", "activation"), tap=True),
                *linear("last", "sum", self.dim, self.classes),
                Add("logits", ("last.out",), tap=True),
            )
        )


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setitem(ADAPTERS, Toy, ToyAdapter())
    monkeypatch.setitem(FAMILIES, "toy", ToySizes)
    torch.manual_seed(0)
    return Toy()


def test_a_toy_network_is_converted_and_keeps_its_function(toy: Toy) -> None:
    student, replaced = convert(toy, Quantization())
    with quantizers_off(student):
        actual = student(random_images())

    assert replaced == [Replacement(name, "Linear", "QuantLinear") for name in ("first", "last")]
    torch.testing.assert_close(actual, toy(random_images()))


def test_a_toy_network_with_a_fault_is_refused(toy: Toy) -> None:
    with pytest.raises(ModelError, match=r"this Toy cannot be converted: it has activation ReLU"):
        convert(Toy(nn.ReLU()), Quantization())


def test_a_toy_network_trains_anneals_and_freezes(toy: Toy) -> None:
    config = Quantization(act_step="tensor")
    student, _ = convert(toy, config, bits=LayerBits({"last": 7}))
    calibrate(student, random_images())
    optimizer = torch.optim.AdamW(parameter_groups(student, 0.05), lr=1e-2)
    first, last = adapter_of(student).layers(student)
    before, free = first.weight.detach().clone(), first.quantizer.trainable(first.weight, 0.05)
    distilled(toy)(student, random_images(), torch.tensor([0, 1, 2, 0])).backward()
    share = ConfidenceGuided(Annealing(boundary_range=0.05)).step(student, optimizer)["trainable_share"]
    frozen = freeze(student, config, PREPROCESSING, ("a", "b", "c"))

    assert torch.equal(free, before != first.weight)
    assert 0 < share == free.sum() / free.numel()
    assert (last.quantizer.coded(last.weight).codes.numpy() == frozen["last.weight.codes"]).all()
    assert {name: node.bits for name, node in frozen.linears.items()} == {"first": 4, "last": 7}
    assert weight_units(student)["first"].shape == (16, 256)


@pytest.mark.parametrize("target", [target.name for target in provable_targets()])
def test_a_toy_network_is_exported_and_proven(target: str, toy: Toy, tmp_path: Path) -> None:
    config = Quantization(act_step="tensor")
    student, _ = convert(toy, config, bits=LayerBits({"first": 3}, {"last.input": 2}))
    calibrate(student, random_images())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape).abs())
    save_frozen(freeze(student, config, PREPROCESSING, ("a", "b", "c")), tmp_path / "frozen.safetensors")
    frozen, model = load_frozen(tmp_path / "frozen.safetensors"), tmp_path / "model.onnx"
    write_checked(build(frozen, TARGETS[target]), model)
    backend = "openvino" if target == "openvino" else "ort-cpu"
    images = random_images(8).numpy()
    runtime, witness = prove_operators(OnnxFile(model), frozen, images, TorchRunner(student), Reporter(), backend)

    assert prove_weights(OnnxFile(model), frozen).passed
    assert runtime.passed, runtime.faults()
    assert witness.passed, witness.faults()
    assert runtime.compared == 8 * (256 + 16)


def test_the_float_form_of_a_toy_network_computes_its_logits(toy: Toy, tmp_path: Path) -> None:
    config, images = Quantization(act_step="tensor"), random_images()
    student, _ = convert(toy, config)
    calibrate(student, images)
    save_file(toy.state_dict(), tmp_path / "teacher.safetensors")
    model = build_fp32(freeze(student, config, PREPROCESSING, ("a", "b", "c")), tmp_path / "teacher.safetensors")
    write_checked(model, tmp_path / "fp32.onnx")
    with torch.no_grad():
        expected = toy(images).numpy()

    np.testing.assert_allclose(run_logits(open_session(tmp_path / "fp32.onnx"), images.numpy()), expected, atol=1e-5)


def test_the_witness_sees_and_forces_the_taps_of_a_toy_network(toy: Toy) -> None:
    student, _ = convert(toy, Quantization())
    calibrate(student, random_images())
    runner, images = TorchRunner(student), random_images().numpy()
    free = runner.infer({"image": images})
    forced = runner.infer({"image": images, "sum" + FORCED: np.zeros_like(free["sum"])})

    assert list(free) == ["first.input", "sum", "last.input", "logits"]
    assert free["first.input"].dtype == np.int16
    assert np.array_equal(free["sum"], forced["sum"])  # what it would have been
    assert (forced["logits"] == forced["logits"][0]).all()
    assert not (free["logits"] == free["logits"][0]).all()


def test_a_network_without_an_adapter_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ModelError, match=r"Toy .* VisionTransformer"):
        convert(Toy(), Quantization())


def test_subclasses_are_served_by_the_nearest_adapter(toy: Toy) -> None:
    class Smaller(Toy):
        pass

    assert adapter_of(Smaller()) is ADAPTERS[Toy]
    assert adapter_of(small_vit(distilled=True)) is adapter_of(small_vit())


class Ternary(WeightQuantizer):
    """Codes -1, 0 and 1 on the signed grid, one step in all."""

    grid: ClassVar[Grid] = "signed"

    def quantized(self, weight: Tensor) -> Tensor:
        return weight + (self.coded(weight).dequantize() - weight).detach()

    def coded(self, weight: Tensor) -> Coded:
        step = weight.detach().abs().mean().expand(len(weight), 1).clone()
        codes = self.units(weight).round().clamp(-1, 1).to(torch.int8)
        return Coded(codes, step, torch.zeros_like(step), self.grid)

    def units(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return weight.detach().to(dtype) / weight.detach().to(dtype).abs().mean()


@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_a_toy_weight_quantizer_serves_every_layer(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a name that recipes take."""
    monkeypatch.setitem(WEIGHT_QUANTIZERS, "lsq", lambda bits, weight: Ternary(bits))
    config = Quantization(2, 4, attention=attention, weights="lsq")  # type: ignore[arg-type]
    student, _ = convert(small_vit(), config)
    calibrate(student, random_images())
    student(random_images()).sum().backward()
    frozen = freeze(student, config, PREPROCESSING, tuple("abcdefg"))
    body = [name for name in frozen.linears if name.startswith("blocks")]

    assert {-1, 0, 1} == {int(code) for name in body for code in np.unique(frozen[f"{name}.weight.codes"])}
    assert len(body) == (5 if attention == "qkr" else 6)
    assert all(layer.weight.grad is not None for layer in adapter_of(student).layers(student))
