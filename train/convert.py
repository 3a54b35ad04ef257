"""A float network in its quantized form."""

import copy
import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ofq_deploy.errors import ModelError
from ofq_deploy.model.bits import UNIFORM, LayerBits
from ofq_deploy.recipe import Quantization
from ofq_deploy.train.architectures.protocols import Adapter
from ofq_deploy.train.architectures.registry import adapter_of, check_supported
from ofq_deploy.train.quantizers import LsqQuantizer, Quantizers, WeightQuantizer


@dataclass(frozen=True, slots=True)
class Replacement:
    """One module that changed: its path, and the classes before and after."""

    path: str
    was: str
    now: str


def convert(
    model: nn.Module, config: Quantization, reference_batch: int = 1, bits: LayerBits = UNIFORM
) -> tuple[nn.Module, list[Replacement]]:
    """A quantized copy of a network that has an adapter (timm's ViT and DeiT), and what was replaced in it.

    Pretrained weights, biases and tokens are carried over, the query bias under QKR as the scores' key term.
    Activation steps wait for `calibrate`. `reference_batch` is the constant batch of LSQ's gradient scale.
    bits: of layers that depart from `config`, by the frozen file's names

    Raises ModelError, naming the part, for an architecture that has no quantized form here, for bits of a layer
    that there is not, and for bits that differ between q, k and v where one weight quantizer serves the three.
    """
    check_supported(model)
    adapter, model = adapter_of(model), copy.deepcopy(model)
    before = {path: type(module).__name__ for path, module in model.named_modules()}
    adapter.convert(model, Quantizers(config, bits, reference_batch))
    _refuse_unknown(bits, adapter, model)
    after = {path: type(module).__name__ for path, module in model.named_modules()}
    replaced = [Replacement(path, was, after[path]) for path, was in before.items() if after.get(path, was) != was]
    return model, replaced


def _refuse_unknown(bits: LayerBits, adapter: Adapter, model: nn.Module) -> None:
    linears = [name for layer in adapter.layers(model) for name in layer.names]
    linears += [product.name for product in adapter.products(model)]
    quantizers = [name for name, tap in adapter.taps(model).items() if isinstance(tap.module, LsqQuantizer)]
    _refuse_strangers("linear layer", bits.weights, linears)
    _refuse_strangers("activation quantizer", bits.activations, quantizers)


def _refuse_strangers(kind: str, asked: Iterable[str], known: list[str]) -> None:
    for name in asked:
        if name not in known:
            (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ModelError(f"bits are asked for {name}, but there is no such {kind}; the nearest one is {nearest}")


def activation_quantizers(model: nn.Module) -> dict[str, LsqQuantizer]:
    """Every activation quantizer by its path, in the order of the modules."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LsqQuantizer)}


@contextmanager
def quantizers_off(model: nn.Module) -> Iterator[None]:
    """Within the block the converted model computes in float, shifts included."""
    modules = [module for module in model.modules() if isinstance(module, (LsqQuantizer, WeightQuantizer))]
    try:
        for module in modules:
            module.enabled = False
        yield
    finally:
        for module in modules:
            module.enabled = True


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set every activation step from one pass over `images` [batch, channels, height, width], front to back.

    Each quantizer sees inputs that the quantizers before it have already quantized. Which images these are is
    the caller's choice and should be seeded; the same images give the same steps.
    """
    quantizers, training = activation_quantizers(model).values(), model.training
    model.eval()
    for quantizer in quantizers:
        quantizer.calibrating = True
    try:
        model(images)
    finally:
        for quantizer in quantizers:
            quantizer.calibrating = False
        model.train(training)
