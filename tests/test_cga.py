"""Confidence-guided annealing: only undecided weights move (OFQ, ICML 2023, section 4)."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ofq_deploy.model.grids import code_range
from ofq_deploy.recipe import Annealing, Quantization
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.methods.annealing import ConfidenceGuided, annealed_layers
from ofq_deploy.train.quantizers import LsqWeight, StatsQ, WeightQuantizer, statsq_units
from tests.support.models import random_images, small_vit

RANGE = 0.05  # wide, so that small layers have enough undecided weights
CONFIGS = [
    Quantization(attention=attention, weights=weights) for attention in ("qkr", "qk") for weights in ("statsq", "lsq")
]


def undecided(weight: Tensor, quantizer: WeightQuantizer, boundary_range: float = RANGE) -> Tensor:
    """The definition: within the range of k + 1/2 for a code k that has a neighbour above."""
    low, high = code_range(quantizer.grid, quantizer.bits)
    units = statsq_units(weight, quantizer.bits)[0] if isinstance(quantizer, StatsQ) else weight / quantizer.step
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for code in range(low, high):
        mask |= (units - code - 0.5).abs() <= boundary_range
    return mask


def trained(config: Quantization, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A calibrated model after ordinary training steps: AdamW's moments are not zero."""
    model, _ = convert(small_vit(), config)
    calibrate(model, random_images())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(steps):
        backward(model, optimizer, step)
        optimizer.step()
    return model, optimizer


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(random_images(seed=seed)).square().sum().backward()


def anneal(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One step after backward; returns the share of the weights that could move."""
    return ConfidenceGuided(Annealing(boundary_range=RANGE)).step(model, optimizer)["trainable_share"]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_frozen_weights_keep_their_bits_and_undecided_ones_move(config):
    model, optimizer = trained(config)
    layers = annealed_layers(model)
    before = [(layer.weight.clone(), undecided(layer.weight.detach(), layer.quantizer)) for layer in layers]
    others = {name: p.clone() for name, p in model.named_parameters() if all(p is not layer.weight for layer in layers)}
    backward(model, optimizer, 7)
    share = anneal(model, optimizer)

    assert len(layers) == 4
    for layer, (old, mask) in zip(layers, before, strict=True):
        assert 0 < mask.sum() < mask.numel()
        assert torch.equal(mask, layer.weight != old)
    counts = torch.tensor([[mask.sum(), mask.numel()] for _, mask in before]).sum(0)
    assert counts[0] / counts[1] == pytest.approx(share)
    assert [name for name, p in model.named_parameters() if name in others and torch.equal(p, others[name])] == []


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_mask_is_made_anew_in_every_step(config):
    model, optimizer = trained(config)
    layer, masks = model.blocks[0].mlp.fc1, []
    for seed in range(3):
        masks.append(undecided(layer.weight.detach(), layer.weight_quant))
        old = layer.weight.detach().clone()
        backward(model, optimizer, seed)
        anneal(model, optimizer)

        assert torch.equal(masks[-1], layer.weight != old)
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


def test_a_layer_without_gradient_stays():
    model, optimizer = trained(CONFIGS[0])
    backward(model, optimizer, 7)
    layer = model.blocks[0].mlp.fc2
    layer.weight.grad, old = None, layer.weight.detach().clone()
    anneal(model, optimizer)

    assert torch.equal(old, layer.weight)


def product_gradients(model: nn.Module, qk: str) -> tuple[Any, ...]:
    """The product with its gradient, the query's gradient and the logits under one setting of `qk`."""
    ConfidenceGuided(Annealing(boundary_range=RANGE, qk=qk)).start(model)  # type: ignore[arg-type]
    attention, seen = model.blocks[0].attn, []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        seen.append(args[0])

    handle = attention.product_quant.register_forward_pre_hook(keep)
    model.zero_grad()
    logits = model(random_images(seed=7))
    logits.square().sum().backward()
    handle.remove()
    return seen[0].detach(), seen[0].grad, attention.query.grad.clone(), logits.detach()


def test_mask_limits_the_gradient_of_the_product_and_free_does_not():
    model, _ = trained(CONFIGS[0])
    product, free, free_query, free_logits = product_gradients(model, "free")
    _, masked, masked_query, masked_logits = product_gradients(model, "mask")
    _, again, _, _ = product_gradients(model, "free")
    mask = undecided(product, model.blocks[0].attn.product_quant)
    query_from_mask = torch.einsum("hic,hdc->hid", model.blocks[0].attn.key.view(2, 16, 32), masked.view(2, 32, 32))

    assert (free != 0).all()
    assert torch.equal(free * mask, masked)
    torch.testing.assert_close(masked_query, query_from_mask.reshape(32, 32))
    assert not torch.allclose(free_query, masked_query)
    assert torch.equal(free_logits, masked_logits)
    assert torch.equal(free, again)


def test_query_and_key_train_on_under_free():
    model, optimizer = trained(CONFIGS[0])
    ConfidenceGuided(Annealing(boundary_range=RANGE, qk="free")).start(model)
    attention = model.blocks[0].attn
    query, key = attention.query.clone(), attention.key.clone()
    backward(model, optimizer, 7)
    anneal(model, optimizer)

    assert (query != attention.query).all()
    assert (key != attention.key).all()


@pytest.mark.parametrize(
    ("bits", "boundary_range", "percent"),
    [
        (2, 0.003, 0.45),
        (2, 0.01, 1.52),
        (3, 0.005, 0.84),
        (3, 0.007, 1.13),
        (4, 0.005, 0.87),
        (4, 0.01, 1.74),
    ],
)
def test_share_of_undecided_gaussian_weights(bits, boundary_range, percent):
    weight = torch.randn(8000, 192, generator=torch.Generator().manual_seed(0))

    assert percent == pytest.approx(
        100 * StatsQ(bits).trainable(weight, boundary_range).float().mean().item(), rel=0.05
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("value", [0.0, 0.5, -0.5, 0.3])
def test_a_row_of_equal_values_is_undecided_because_its_scale_puts_it_on_a_threshold(bits, value):
    row = torch.full((1, 8), value)

    assert StatsQ(bits).trainable(row, 0.005).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_on_a_level_or_beyond_the_last_one_are_frozen(bits):
    low, high = code_range("signed", bits)
    levels = torch.cat([torch.arange(low, high + 1), torch.tensor([low - 0.5, high + 0.5, 2.0 * low, 2.0 * high])])
    quantizer = LsqWeight(bits, levels[None])
    with torch.no_grad():
        quantizer.step.fill_(0.25)

    assert not quantizer.trainable(levels[None] * 0.25, 0.005).any()
