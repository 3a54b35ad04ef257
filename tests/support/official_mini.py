"""OFQ's official model at a size for tests, written from its formulas: a forward pass over a state dict in the
official layout, checkpoints as its timm saver writes them, and golden data of what it computes.

Nothing of ofq_deploy is used here, so that the two can be compared. float32 throughout; names are those of the
state dict. Every activation and weight quantizer leaves its codes and step behind.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

HEAD_DIM = 64  # of every official model; the other sizes are those of this file's checkpoints
IMAGE, PATCH, DIM, DEPTH, CLASSES = 32, 8, 128, 2, 10
HEADS, HIDDEN, PATCHES = DIM // HEAD_DIM, 4 * DIM, (IMAGE // PATCH) ** 2
EDGE_BITS = 8
STEP_FLOOR = 1e-5

Bits = int | tuple[int, int]
State = dict[str, Tensor]


def checkpoint(attention: str, distilled: bool, bits: Bits, seed: int = 0, signed: bool = True) -> dict[str, Any]:
    """What the official saver would write after training; steps follow LSQ's start rule on random images.

    attention: "qkr" or "qk"
    bits:      of all, or of weights and activations
    signed:    whether images had negative values (the image quantizer's grid)
    """
    weight_bits, act_bits = (bits, bits) if isinstance(bits, int) else bits
    random = torch.Generator().manual_seed(seed)
    state = _random_state(attention, distilled, random)
    state["patch_embed.proj.input_quant_fn.signed"] = torch.tensor([float(signed)])
    _Pass(state, weight_bits, act_bits, random).run(sample_images(4, seed + 1, signed))
    settings = argparse.Namespace(
        wq_bitw=weight_bits,
        aq_bitw=act_bits,
        qk_reparam=attention == "qkr",
        qk_reparam_type=0,
        model="deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224",
        lr=5e-4,
        crop_pct=None,
        lr_noise=[0.4, 0.9],
    )
    return {
        "epoch": 299,
        "arch": settings.model,
        "state_dict": state,
        "version": 2,
        "args": settings,
        "metric": 66.4,
    }


def sample_images(count: int, seed: int, signed: bool = True) -> Tensor:
    """float32 [count, 3, IMAGE, IMAGE], normally distributed; without negative values unless `signed`."""
    images = torch.randn(count, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(seed))
    return images if signed else images.abs()


def golden(file: dict[str, Any], images: Tensor | None = None) -> dict[str, NDArray[Any]]:
    """What the checkpoint computes for two images: logits, every block, block 0's codes and steps."""
    state, settings = file["state_dict"], file["args"]
    signed = bool(state["patch_embed.proj.input_quant_fn.signed"])
    images = sample_images(2, 99, signed) if images is None else images
    run = _Pass(dict(state), settings.wq_bitw, settings.aq_bitw)
    logits, blocks = run.run(images)
    arrays = {"images": images, "labels": logits.argmax(-1), "logits_f32": logits, "blocks": torch.stack(blocks)}
    for name, key in _golden_names(state).items():
        arrays[f"code_{name}"], arrays[f"step_{name}"] = run.codes[key], run.steps[key]
    return {name: value.numpy() for name, value in arrays.items()}


def _golden_names(state: State) -> dict[str, str]:
    names = {
        "image": "patch_embed.proj.input_quant_fn",
        "v": "blocks.0.attn.quan_a_v_fn",
        "p": "blocks.0.attn.quan_a_softmax_fn",
        "proj_in": "blocks.0.attn.proj.input_quant_fn",
        "fc1_in": "blocks.0.mlp.fc1.input_quant_fn",
        "fc2_in": "blocks.0.mlp.fc2.input_quant_fn",
        "w_proj": "blocks.0.attn.proj.weight",
        "w_fc1": "blocks.0.mlp.fc1.weight",
        "w_fc2": "blocks.0.mlp.fc2.weight",
        "w_patch": "patch_embed.proj.weight",
    }
    if "blocks.0.attn.q.weight" in state:
        names |= {"x": "blocks.0.attn.quant_x_4_qkv.input_quant_fn", "z": "blocks.0.attn.quan_a_qkx_fn"}
        names |= {"w_qk": "blocks.0.attn.qk_quant", "w_wv": "blocks.0.attn.v.weight"}
    else:
        names |= {"x": "blocks.0.attn.qkv.input_quant_fn", "w_qkv": "blocks.0.attn.qkv.weight"}
        names |= {"q": "blocks.0.attn.quan_a_q_fn", "k": "blocks.0.attn.quan_a_k_fn"}
    for head in ("head", "head_dist")[: 1 + ("dist_token" in state)]:
        names |= {f"{head}_in": f"{head}.input_quant_fn", f"w_{head}": f"{head}.weight"}
    return names


def _random_state(attention: str, distilled: bool, random: torch.Generator) -> State:
    """Everything but the steps."""
    state: State = {}

    def normal(name: str, *shape: int, deviation: float, mean: float = 0.0) -> None:
        state[name] = torch.randn(shape, generator=random) * deviation + mean

    def shifts(name: str, size: int, before: str = "move_b4", after: str = "move_aft") -> None:
        normal(f"{name}.{before}.bias", size, deviation=0.1)
        normal(f"{name}.{after}.bias", size, deviation=0.1)

    def linear(name: str, rows: int, columns: int, gain: float = 1.0, bias: bool = True) -> None:
        normal(f"{name}.weight", rows, columns, deviation=gain * columns**-0.5)
        if bias:
            normal(f"{name}.bias", rows, deviation=0.1)

    def statsq(name: str, rows: int, columns: int) -> None:
        linear(name, rows, columns)
        shifts(name, columns)
        state[f"{name}.statsq_fn.clip_val"] = torch.tensor([2.0])

    def norm(name: str) -> None:
        normal(f"{name}.weight", DIM, deviation=0.2, mean=1.0)
        normal(f"{name}.bias", DIM, deviation=0.1)

    heads = ["head", "head_dist"][: 1 + distilled]
    for token in ["cls_token", "dist_token"][: len(heads)]:
        normal(token, 1, 1, DIM, deviation=0.5)
    normal("pos_embed", 1, len(heads) + PATCHES, DIM, deviation=0.5)
    normal("patch_embed.proj.weight", DIM, 3, PATCH, PATCH, deviation=(3 * PATCH * PATCH) ** -0.5)
    normal("patch_embed.proj.bias", DIM, deviation=0.1)
    shifts("patch_embed.proj", IMAGE * IMAGE)
    norm("norm")
    for head in heads:
        linear(head, CLASSES, DIM)
        shifts(head, DIM)
    for index in range(DEPTH):
        attn, mlp = f"blocks.{index}.attn", f"blocks.{index}.mlp"
        norm(f"blocks.{index}.norm1")
        norm(f"blocks.{index}.norm2")
        statsq(f"{attn}.proj", DIM, DIM)
        statsq(f"{mlp}.fc1", HIDDEN, DIM)
        statsq(f"{mlp}.fc2", DIM, HIDDEN)
        if attention == "qkr":
            shifts(f"{attn}.quant_x_4_qkv", DIM)
            linear(f"{attn}.q", DIM, DIM, gain=1.5, bias=False)
            linear(f"{attn}.k", DIM, DIM, gain=1.5, bias=False)
            linear(f"{attn}.v", DIM, DIM)
            shifts(attn, HEADS * DIM, "move_qkx_b4", "move_qkx_aft")
            shifts(attn, DIM, "move_v_b4", "move_v_aft")
            state[f"{attn}.qk_quant.clip_val"] = state[f"{attn}.v_quant.clip_val"] = torch.tensor([2.0])
        else:
            statsq(f"{attn}.qkv", 3 * DIM, DIM)
            normal(f"{attn}.move_qkv_b4.bias", 3 * DIM, deviation=0.1)
            for part in "qkv":
                normal(f"{attn}.move_{part}_aft.bias", DIM, deviation=0.1)
    return state


@dataclass
class _Pass:
    """One forward pass; a step that the state lacks is set from what its quantizer sees.

    codes, steps: of every quantizer, by the name of its module, or of its weight
    """

    state: State
    weight_bits: int
    act_bits: int
    random: torch.Generator | None = None
    codes: State = field(default_factory=dict)
    steps: State = field(default_factory=dict)

    @torch.no_grad()
    def run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [batch, classes]; the input of block 0 and every block's output, [batch, tokens, dim]."""
        state = self.state
        heads = ["head", "head_dist"] if "dist_token" in state else ["head"]
        x = self.patches(images)
        tokens = [state[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token")[: len(heads)]]
        blocks = [torch.cat([*tokens, x], 1) + state["pos_embed"]]
        for index in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
            blocks.append(self.block(f"blocks.{index}", blocks[-1]))
        x = self.norm("norm", blocks[-1])
        logits = [self.head(name, x[:, token]) for token, name in enumerate(heads)]
        return torch.stack(logits).mean(0), blocks

    def patches(self, images: Tensor) -> Tensor:
        name = "patch_embed.proj"
        signed = bool(self.state[f"{name}.input_quant_fn.signed"])
        before, after = (self.state[f"{name}.{shift}.bias"].view(images.shape[2:]) for shift in ("move_b4", "move_aft"))
        x = self.lsq(f"{name}.input_quant_fn", images + before, (0, 2, 3), EDGE_BITS, signed, 2.0) + after
        weight = self.lsq_weight(name)
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride=weight.shape[2]).flatten(2).transpose(1, 2)

    def block(self, name: str, x: Tensor) -> Tensor:
        attend = self.attention_qkr if f"{name}.attn.q.weight" in self.state else self.attention_qk
        scores, v = attend(f"{name}.attn", self.norm(f"{name}.norm1", x))
        p = (scores * HEAD_DIM**-0.5).softmax(-1)
        p = self.lsq(f"{name}.attn.quan_a_softmax_fn", p, (0, 1, 3), signed=False, factor=4.0)
        context = (p @ self.by_head(v)).transpose(1, 2).flatten(2)
        x = x + self.linear(f"{name}.attn.proj", context)
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x)))
        return x + self.linear(f"{name}.mlp.fc2", hidden, signed=False)

    def attention_qkr(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """score = x_i . z_j with z = M x, M = Wq^T Wk of each head."""
        state, dim = self.state, x.shape[-1]
        x = self.shifted(f"{name}.quant_x_4_qkv", x)
        v = F.linear(x, self.statsq(f"{name}.v.weight"), state[f"{name}.v.bias"])
        query, key = (state[f"{name}.{part}.weight"].view(-1, HEAD_DIM, dim) for part in "qk")
        product = self.statsq(f"{name}.qk_quant", (query.transpose(1, 2) @ key).flatten(0, 1))
        z = F.linear(x, product) + state[f"{name}.move_qkx_b4.bias"]
        z = self.lsq(f"{name}.quan_a_qkx_fn", z.view(*x.shape[:2], -1, dim), (0, 3))
        z = z + state[f"{name}.move_qkx_aft.bias"].view(-1, dim)
        return torch.einsum("bid,bjhd->bhij", x, z), self.value(name, v + state[f"{name}.move_v_b4.bias"])

    def attention_qk(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        state = self.state
        q, k, v = (self.linear(f"{name}.qkv", x) + state[f"{name}.move_qkv_b4.bias"]).chunk(3, dim=-1)
        q, k = (
            self.lsq(f"{name}.quan_a_{part}_fn", self.by_head(value), (0, 1, 3))
            + state[f"{name}.move_{part}_aft.bias"].view(-1, 1, HEAD_DIM)
            for part, value in (("q", q), ("k", k))
        )
        return q @ k.transpose(2, 3), self.value(name, v)

    def value(self, name: str, v: Tensor) -> Tensor:
        return self.lsq(f"{name}.quan_a_v_fn", v, (0, 1)) + self.state[f"{name}.move_v_aft.bias"]

    def by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, HEAD_DIM).transpose(1, 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def linear(self, name: str, x: Tensor, signed: bool = True) -> Tensor:
        return F.linear(self.shifted(name, x, signed), self.statsq(f"{name}.weight"), self.state[f"{name}.bias"])

    def head(self, name: str, x: Tensor) -> Tensor:
        before, after = (self.state[f"{name}.{shift}.bias"] for shift in ("move_b4", "move_aft"))
        x = self.lsq(f"{name}.input_quant_fn", x + before, (0, 1), EDGE_BITS) + after
        return F.linear(x, self.lsq_weight(name), self.state[f"{name}.bias"])

    def shifted(self, name: str, x: Tensor, signed: bool = True) -> Tensor:
        """The quantizer of a block's linear input [batch, tokens, channels]: a step per token."""
        before, after = (self.state[f"{name}.{shift}.bias"] for shift in ("move_b4", "move_aft"))
        return (
            self.lsq(f"{name}.input_quant_fn", x + before, (0, 2), signed=signed, factor=2.0 if signed else 4.0) + after
        )

    def lsq(
        self,
        name: str,
        x: Tensor,
        shared: tuple[int, ...],
        bits: int | None = None,
        signed: bool = True,
        factor: float = 2.0,
    ) -> Tensor:
        """shared: the axes of x along which one step serves all"""
        bits = bits or self.act_bits
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        key = f"{name}.s"
        if key not in self.state:
            # Where LSQ's start value leaves the outer codes unused, as at 8 bits, a smaller step that uses them.
            start = torch.minimum(factor * x.abs().mean(shared) / math.sqrt(high), 0.9 * x.abs().amax(shared) / high)
            noise = torch.randn(start.shape, generator=self.random)
            self.state[key] = (start * (0.2 * noise).exp()).reshape(-1)
        sizes = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
        step = self.state[key].clamp_min(STEP_FLOOR).view(sizes)
        codes = (x / step).clamp(low, high).round()
        self.codes[name] = codes.to(torch.int8 if signed else torch.uint8)
        self.steps[name] = step.squeeze() if step.numel() > 1 else step.reshape(1)
        return codes * step

    def lsq_weight(self, name: str) -> Tensor:
        weight, key = self.state[f"{name}.weight"], f"{name}.lsqw_fn.s"
        if key not in self.state:
            self.state[key] = 2 * weight.flatten(1).abs().mean(1) / math.sqrt(127)
        step = self.state[key].clamp_min(STEP_FLOOR).view(-1, *[1] * (weight.ndim - 1))
        codes = (weight / step).clamp(-128, 127).round()
        self.codes[f"{name}.weight"], self.steps[f"{name}.weight"] = codes.to(torch.int8), step.reshape(-1)
        return codes * step

    def statsq(self, name: str, weight: Tensor | None = None) -> Tensor:
        """Leaves odd codes, 2k + 1, behind: their step is S / 2n."""
        weight, half = self.state[name] if weight is None else weight, 2 ** (self.weight_bits - 1)
        scale = 2 * weight.abs().mean(1, keepdim=True)
        codes = ((weight / scale).clamp(-1, 1 - 1e-6) * half - 0.5).round()
        odd = 2 * codes + 1
        self.codes[name] = odd.to(torch.int8 if self.weight_bits < 8 else torch.int16)
        self.steps[name] = (scale / (2 * half)).reshape(-1)
        return scale * ((codes + 0.5) / half)


def without_steps(state: State) -> State:
    """The state as it was before the first forward pass."""
    return {name: value for name, value in state.items() if not name.endswith("_fn.s")}


def edited(file: dict[str, Any], name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The checkpoint with one tensor changed; the original stays as it is."""
    state = dict(file["state_dict"])
    state[name] = change(state[name].clone())
    return file | {"state_dict": state}
