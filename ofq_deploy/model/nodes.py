"""The kinds of nodes that a network is made of, about a dozen, and who shares a step: the granularities.

Shapes are those of one image; a batch axis comes first in every value. A value is called after the node that makes it
(`Node.output`); arrays are found in the frozen file under the node's name.

All are msgspec Structs, which the frozen file's header holds as they are, and refuses when a field is wrong (decision 8).
"""

from typing import Annotated, Literal

import msgspec

from ofq_deploy.model.grids import MAX_BITS, MIN_BITS

Shape = tuple[int, ...]
Bits = Annotated[int, msgspec.Meta(ge=MIN_BITS, le=MAX_BITS)]
Size = Annotated[int, msgspec.Meta(ge=1)]


# Granularity: which elements of a value share a step.


class PerTensor(msgspec.Struct, frozen=True, tag=True, tag_field="kind", forbid_unknown_fields=True):
    """One step for all: step [1]."""

    @property
    def shape(self) -> Shape:
        return (1,)


class PerToken(msgspec.Struct, frozen=True, tag=True, tag_field="kind", forbid_unknown_fields=True):
    """One step per token, the last axis but one: value [..., tokens, width] -> step [tokens].

    A value that holds only the first rows of all tokens takes the first steps.
    """

    tokens: Size

    @property
    def shape(self) -> Shape:
        return (self.tokens,)


class PerTokenHead(msgspec.Struct, frozen=True, tag=True, tag_field="kind", forbid_unknown_fields=True):
    """One step per token and head: value [tokens, heads * width] -> step [tokens, heads]."""

    tokens: Size
    heads: Size

    @property
    def shape(self) -> Shape:
        return (self.tokens, self.heads)


class PerChannel(msgspec.Struct, frozen=True, tag=True, tag_field="kind", forbid_unknown_fields=True):
    """One step per channel: value [tokens, channels] or an image [channels, height, width] -> step [channels].

    axis: of the channels in the value without its batch axis: 0 in images, 1 behind them
    """

    axis: Literal[0, 1]
    channels: Size

    @property
    def shape(self) -> Shape:
        return (self.channels,)


Granularity = PerTensor | PerToken | PerTokenHead | PerChannel


# Nodes.


class Node(msgspec.Struct, frozen=True, tag=True, tag_field="kind", forbid_unknown_fields=True):
    """One operation; `inputs` are values of nodes before it, `output` is the value that it makes."""

    name: str

    @property
    def output(self) -> str:
        return self.name

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()


class _Unary(Node, frozen=True):
    x: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


class Image(Node, frozen=True):
    """The input: float [channels, size, size]."""

    channels: Size
    size: Size


class Constant(Node, frozen=True):
    """Array `<name>`, float32 of `shape`: positions, class tokens."""

    shape: tuple[Size, ...]


class Quantize(_Unary, frozen=True):
    """Float to codes of the same shape: code = clip(round((x + before) / step)); a tap.

    Arrays: `<name>.step`, shaped by the granularity; `<name>.before`, of shape `before`, where it is not empty.
    folded: the Linear in front already divides by the step: code = clip(round(x))
    """

    grid: Literal["signed", "unsigned"]
    bits: Bits
    granularity: Granularity
    before: tuple[Size, ...] = ()
    folded: bool = False

    @property
    def output(self) -> str:
        return f"{self.name}.codes"


class Linear(_Unary, frozen=True):
    """Codes [..., in] to float [..., out]: (codes @ integers.T) * scale [* token step of the codes] [+ bias].

    Arrays: `<name>.weight.codes` int8 [out, in], `<name>.weight.step` [out], `<name>.scale` [out], `<name>.bias` [out].
    grid:  of the weights; integers are 2 codes + 1 on "half", else the codes
    parts: above 0 the columns are cut into so many equal parts, each with its own scale: scale [parts, out]

    In a float network x is float, `<name>.weight` [out, in] are the weights, and there is no scale.
    """

    inputs_width: Size
    width: Size
    grid: Literal["half", "signed"]
    bits: Bits
    bias: bool = True
    parts: int = 0

    @property
    def output(self) -> str:
        return f"{self.name}.out"


class Product(Node, frozen=True):
    """Codes left [heads or 1, m, k] @ codes right [heads, k, n] to float [heads, m, n], scaled to what they stand for.

    out = (left @ right) * scale [* token step of left]
          + key_shift @ right [* token step of right]      the shift that follows the left quantizer
          + key_bias @ bias_of^T [* token step of bias_of]  the query bias under reparameterization, one row for all m
          + sum(left) * row_sum [* token step of left]     the shift that follows the right quantizer
          + bias

    Arrays: `<name>.scale`, shaped by the granularity of the right quantizer; where they exist `<name>.key_shift` [heads of
    left, k], `<name>.key_bias` [heads, width of bias_of], `<name>.row_sum` and `<name>.bias` [heads * n].
    bias_of: codes [n, width] that `key_bias` meets, empty without one

    In a float network both are float and only the product is left.
    """

    left: str
    right: str
    key_shift: bool = False
    bias_of: str = ""
    row_sum: bool = False
    bias: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.left, self.right, *([self.bias_of] if self.bias_of else []))


class LayerNorm(_Unary, frozen=True):
    """Over the last axis; arrays `<name>.weight` and `<name>.bias` [width]."""

    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1)]


class Softmax(_Unary, frozen=True):
    """Over the last axis."""


class Gelu(_Unary, frozen=True):
    """x * Phi(x), the exact form."""


class Add(Node, frozen=True):
    """The sum of values of one shape; of one value, that value.

    tap: the proof watches it (residual stream and logits)
    """

    terms: tuple[str, ...]
    tap: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.terms


class Concat(Node, frozen=True):
    """Values [tokens, width] below one another."""

    terms: tuple[str, ...]
    tap: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.terms


class Rows(_Unary, frozen=True):
    """The first `count` tokens: [tokens, width] -> [count, width]."""

    count: Size


class Token(_Unary, frozen=True):
    """One token: [tokens, width] -> [width]."""

    index: Annotated[int, msgspec.Meta(ge=0)]


class Pool(_Unary, frozen=True):
    """The mean of the tokens from `start` on: float [tokens, width] -> [width]."""

    start: Annotated[int, msgspec.Meta(ge=0)]


class Layout(_Unary, frozen=True):
    """The same numbers in another order, as in "n (h d) -> h n d" with sizes {"h": 3}; 1 stands for a new axis."""

    pattern: str
    sizes: dict[str, Size]


AnyNode = (
    Image
    | Constant
    | Quantize
    | Linear
    | Product
    | LayerNorm
    | Softmax
    | Gelu
    | Add
    | Concat
    | Rows
    | Token
    | Pool
    | Layout
)
