"""timm's pre-norm vision transformer as a list of nodes: its forward pass, written once for codes and floats."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ofq_deploy.model.architecture import Coding, Codings, Floats
from ofq_deploy.model.graph import Graph
from ofq_deploy.model.grids import MAX_BITS
from ofq_deploy.model.nodes import (
    Add,
    AnyNode,
    Concat,
    Constant,
    Gelu,
    Granularity,
    Image,
    LayerNorm,
    Layout,
    Linear,
    PerChannel,
    PerTensor,
    PerToken,
    PerTokenHead,
    Pool,
    Product,
    Quantize,
    Rows,
    Softmax,
    Token,
)
from ofq_deploy.recipe import Quantization

HEADS = ("head", "head_dist")


@dataclass(frozen=True, slots=True)
class Vit:
    """The sizes of a pre-norm vision transformer."""

    image_size: int
    channels: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    hidden: int
    classes: int
    prefix: int  # class and distillation tokens: 0 to 2
    key_bias: bool  # under QKR: the query bias lives on as a key term
    epsilon: float  # of every LayerNorm
    registers: int = 0  # rows between these and the patches, which nothing reads at the end
    pool: Literal["token", "avg"] = "token"  # heads read a class token each, or one reads the mean of the patches
    norm: Literal["norm", "fc_norm"] = "norm"  # the last one lies before the pooling, or behind it

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not fit together."""
        sizes = (
            self.image_size,
            self.channels,
            self.patch_size,
            self.dim,
            self.depth,
            self.heads,
            self.hidden,
            self.classes,
        )
        whole = all(type(size) is int and size > 0 for size in sizes) and self.prefix in range(3) and self.epsilon > 0
        whole = whole and type(self.registers) is int and self.registers >= 0 and self.prefix >= (self.pool == "token")
        whole = whole and (self.pool == "avg" or self.norm == "norm")
        if not whole or self.image_size % self.patch_size or self.dim % self.heads:
            raise ValueError(f"the architecture's sizes do not fit together ({self})")

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def before_patches(self) -> int:
        return self.prefix + self.registers

    @property
    def tokens(self) -> int:
        return self.before_patches + self.patches

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Names of the heads; their sum is the output."""
        return HEADS[: self.prefix if self.pool == "token" else 1]

    def graph(self, quantization: Quantization, quantizers: Codings, linears: Codings) -> Graph:
        """The network on codes. The last block computes only the rows that the heads read.

        Raises ValueError for tables that lack a name or have one too many.
        """
        graph = _Builder(self, quantization, quantizers, linears).graph()
        for kind, table, named in (("quantizers", quantizers, graph.quantizers), ("linears", linears, graph.linears)):
            strangers = sorted(set(table) - set(named))
            if strangers:
                raise ValueError(f"the {kind} add {', '.join(strangers[:3])}")
        return graph

    def float_graph(self) -> Graph:
        """The same network with its quantizers off: q, k and v apart, all rows of the last block."""
        return _Builder(self, None, {}, {}).graph()

    def float_arrays(self, weights: Mapping[str, Floats]) -> dict[str, Floats]:
        """timm's tensors of the float model as the arrays of `float_graph`.

        The attention's scale is in the weights of q, LayerScale in those before it, the mean of two heads in theirs.
        Raises KeyError for a missing tensor.
        """
        arrays = {name: value for name, value in weights.items() if "norm" in name}
        arrays["patch_embed.weight"] = weights["patch_embed.proj.weight"].reshape(self.dim, -1)
        arrays["patch_embed.bias"] = weights["patch_embed.proj.bias"]
        names = [*("cls_token", "dist_token")[: self.prefix], *(["reg_token"] if self.registers else [])]
        position = weights["pos_embed"][0]
        arrays["patch_embed.position"] = position[-self.patches :]
        if names:
            tokens = np.concatenate([weights[name] for name in names], axis=1)[0]
            arrays["tokens"] = tokens + position[: -self.patches] if len(position) > self.patches else tokens
        for block in range(self.depth):
            arrays |= self._block_arrays(f"blocks.{block}", weights)
        share = np.float32(1 / len(self.classifiers))
        for head in self.classifiers:
            arrays |= {f"{head}.{part}": share * weights[f"{head}.{part}"] for part in ("weight", "bias")}
        return arrays

    def _block_arrays(self, block: str, weights: Mapping[str, Floats]) -> dict[str, Floats]:
        names = [
            f"{block}.{layer}.{part}" for layer in ("attn.proj", "mlp.fc1", "mlp.fc2") for part in ("weight", "bias")
        ]
        arrays = {name: weights[name] for name in names if name.endswith(".weight") or name in weights}
        for layer, scaling in (("attn.proj", "ls1"), ("mlp.fc2", "ls2")):
            gamma = weights.get(f"{block}.{scaling}.gamma")
            if gamma is not None:  # LayerScale: rows of the layer before it
                scaled = {name for name in arrays if name.startswith(f"{block}.{layer}.")}
                arrays |= {name: (arrays[name].T * gamma).T for name in scaled}
        factor = np.ones((3, 1), dtype=np.float32)
        factor[0] = self.head_dim**-0.5
        for part in ("weight", "bias"):
            whole = weights.get(f"{block}.attn.qkv.{part}") if part == "bias" else weights[f"{block}.attn.qkv.{part}"]
            if whole is not None:
                rows = (whole.reshape(3, -1) * factor).reshape(3, self.dim, *whole.shape[1:])
                arrays |= {f"{block}.attn.{name}.{part}": row for name, row in zip("qkv", rows, strict=True)}
        return arrays


class _Builder:
    """Appends nodes; without a `quantization` no quantizer is one of them."""

    def __init__(
        self,
        a: Vit,
        quantization: Quantization | None,
        quantizers: Codings,
        linears: Codings,
    ) -> None:
        self.a, self.quantization, self.quantizers, self.linears = a, quantization, quantizers, linears
        self.nodes: list[AnyNode] = []

    def graph(self) -> Graph:
        a = self.a
        x = self.stem()
        for index in range(a.depth):
            is_cut = self.quantization and index == a.depth - 1 and a.pool == "token"
            rows = a.prefix if is_cut else a.tokens
            x = self.block(f"blocks.{index}", x, rows)
        heads = self.heads(x)
        self.add(Add("logits", tuple(heads), tap=True))
        return Graph(tuple(self.nodes))

    def heads(self, x: str) -> list[str]:
        """Tokens [tokens, dim] to the logits of each head."""
        a = self.a
        if a.norm == "norm":
            x = self.add(LayerNorm("norm", x, a.epsilon))
        if a.pool == "token":
            return [
                self.head(name, self.add(Token(f"{name}.token", x, token))) for token, name in enumerate(a.classifiers)
            ]
        x = self.add(Pool("pooled", x, a.before_patches))
        x = self.add(LayerNorm("fc_norm", x, a.epsilon)) if a.norm == "fc_norm" else x
        return [self.head(name, x) for name in a.classifiers]

    def stem(self) -> str:
        """Image to tokens [tokens, dim]."""
        a, name = self.a, "patch_embed"
        pixels = a.channels * a.patch_size**2
        by_channel = PerChannel(0, a.channels) if a.channels > 1 else PerTensor()
        x = self.add(Image("image", a.channels, a.image_size))
        steps = self.per_token(by_channel)
        x = self.quantize(f"{name}.input", x, steps, before=(a.image_size, a.image_size))
        x = self.add(
            Layout(f"{name}.rows", x, "c (h p) (w q) -> (h w) (c p q)", {"p": a.patch_size, "q": a.patch_size})
        )
        parts = steps.shape[0] if self.quantization else 0
        x = self.linear(name, x, pixels, a.dim, bias=not self.quantization, parts=parts)
        position = self.add(Constant(f"{name}.position", (a.patches, a.dim)))
        if not a.before_patches:
            return self.add(Add("embedding", (x, position), tap=True))
        x = self.add(Add(f"{name}.placed", (x, position)))
        tokens = self.add(Constant("tokens", (a.before_patches, a.dim)))
        return self.add(Concat("embedding", (tokens, x), tap=True))

    def block(self, name: str, x: str, rows: int) -> str:
        """One block; only its first `rows` tokens are computed."""
        a, attn, mlp = self.a, f"{name}.attn", f"{name}.mlp"
        token = self.per_token(PerToken(a.tokens))
        h = self.add(LayerNorm(f"{name}.norm1", x, a.epsilon))
        h = self.quantize(f"{attn}.input", h, token)
        queries, residual = self.first(f"{attn}.queries", h, rows), self.first(f"{name}.residual", x, rows)
        scores = self.scores(attn, h, queries)
        h = self.attend(attn, scores, h, token)
        h = self.linear(f"{attn}.proj", self.quantize(f"{attn}.proj.input", h, token), a.dim, a.dim)
        x = self.add(Add(f"{name}.middle", (residual, h), tap=True))
        h = self.add(LayerNorm(f"{name}.norm2", x, a.epsilon))
        h = self.linear(f"{mlp}.fc1", self.quantize(f"{mlp}.fc1.input", h, token), a.dim, a.hidden)
        h = self.quantize(f"{mlp}.fc2.input", self.add(Gelu(f"{mlp}.act", h)), token, before=(a.hidden,))
        h = self.linear(f"{mlp}.fc2", h, a.hidden, a.dim)
        return self.add(Add(f"{name}.output", (x, h), tap=True))

    def scores(self, attn: str, x: str, queries: str) -> str:
        """[heads, rows, tokens]: q and k apart, or x and z = M x under reparameterization."""
        a, q = self.a, self.quantization
        token = self.per_token(PerToken(a.tokens))
        if q is None or q.attention == "qk":
            left = self.projected(f"{attn}.q", queries, a.dim, token)
            right = self.projected(f"{attn}.k", x, a.dim, token)
            left = self.add(Layout(f"{attn}.q.heads", left, "n (h d) -> h n d", {"h": a.heads}))
            right = self.add(Layout(f"{attn}.k.heads", right, "n (h d) -> h d n", {"h": a.heads}))
            bias_of = ""
        else:
            token_head = self.per_token(PerTokenHead(a.tokens, a.heads))
            right = self.projected(f"{attn}.z", x, a.heads * a.dim, token_head)
            right = self.add(Layout(f"{attn}.z.heads", right, "n (h d) -> h d n", {"h": a.heads}))
            left = self.add(Layout(f"{attn}.queries.heads", queries, "n c -> 1 n c", {}))
            bias_of = x if a.key_bias else ""
        return self.add(Product(f"{attn}.scores", left, right, key_shift=self.shifts, bias_of=bias_of))

    def attend(self, attn: str, scores: str, x: str, token: Granularity) -> str:
        """Scores [heads, rows, tokens] and the tokens behind the values to [rows, dim]."""
        a = self.a
        p = self.add(Softmax(f"{attn}.probabilities" if self.quantization else f"{attn}.softmax", scores))
        p = self.quantize(f"{attn}.softmax", p, token)
        v = self.projected(f"{attn}.v", x, a.dim, PerChannel(1, a.dim))
        v = self.add(Layout(f"{attn}.v.heads", v, "n (h d) -> h n d", {"h": a.heads}))
        context = self.add(Product(f"{attn}.context", p, v, row_sum=self.shifts, bias=self.shifts))
        return self.add(Layout(f"{attn}.context.flat", context, "h n d -> n (h d)", {}))

    def head(self, name: str, x: str) -> str:
        a = self.a
        x = self.quantize(f"{name}.input", x, PerTensor(), before=(a.dim,))
        return self.linear(name, x, a.dim, a.classes)

    # Nodes that depend on whether, and how, the network is quantized.

    @property
    def shifts(self) -> bool:
        return self.quantization is not None and self.quantization.shifts

    def per_token(self, fine: Granularity) -> Granularity:
        """A granularity, or one step per tensor where the recipe wants that."""
        return fine if self.quantization and self.quantization.act_step == "token" else PerTensor()

    def quantize(
        self, name: str, x: str, granularity: Granularity, before: tuple[int, ...] = (), folded: bool = False
    ) -> str:
        if self.quantization is None:
            return x
        coding = _entry(self.quantizers, name, "quantizers")
        if coding.grid == "half":
            raise ValueError(f"{name} has the grid half, which is for weights")
        before = before if self.shifts else ()
        return self.add(Quantize(name, x, coding.grid, coding.bits, granularity, before, folded))

    def linear(self, name: str, x: str, into: int, out: int, *, bias: bool = True, parts: int = 0) -> str:
        coding = _entry(self.linears, name, "linears") if self.quantization else Coding("signed", MAX_BITS)
        if coding.grid == "unsigned":
            raise ValueError(f"{name} has the grid unsigned, which is for activations")
        return self.add(Linear(name, x, into, out, coding.grid, coding.bits, bias, parts))

    def projected(self, name: str, x: str, out: int, granularity: Granularity) -> str:
        """A linear whose output goes straight to a quantizer; steps that are constant over the tokens fold into it."""
        folded = isinstance(granularity, (PerTensor, PerChannel))
        return self.quantize(name, self.linear(name, x, self.a.dim, out), granularity, folded=folded)

    def first(self, name: str, x: str, rows: int) -> str:
        return x if rows == self.a.tokens else self.add(Rows(name, x, rows))

    def add(self, node: AnyNode) -> str:
        self.nodes.append(node)
        return node.output


def _entry(table: Codings, name: str, kind: str) -> Coding:
    if name not in table:
        raise ValueError(f"the {kind} lack {name}")
    return table[name]
