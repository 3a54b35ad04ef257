"""Layouts: the same numbers in another order, as a pattern says it (after einops)."""

from collections.abc import Iterator
from math import prod

import msgspec

from ofq_deploy.model.nodes import Layout, Shape


class LayoutSteps(msgspec.Struct, frozen=True):
    """A layout as reshape to `split`, transpose by `order`, reshape to `merged`.

    parts: for each axis of the input, its places in `split`
    """

    split: Shape
    order: tuple[int, ...]
    merged: Shape
    parts: tuple[tuple[int, ...], ...]

    @property
    def whole_axes(self) -> tuple[int, ...] | None:
        """The order of the input's axes that gives `order`; None where one of them comes apart."""
        turned = sorted(range(len(self.parts)), key=lambda axis: self.order.index(self.parts[axis][0]))
        places = tuple(place for axis in turned for place in self.parts[axis])
        return tuple(turned) if places == self.order else None


def layout_steps(layout: Layout, shape: Shape) -> LayoutSteps:
    """What a layout does to a value of some shape; ValueError when the pattern does not fit the shape."""
    before, after = (_axes(side) for side in layout.pattern.split(" -> "))
    expect(len(before) == len(shape), f"{layout.pattern} does not fit {shape}")
    sizes: dict[str, int] = dict(layout.sizes)
    for axes, size in zip(before, shape, strict=True):
        open_axes = [axis for axis in axes if axis not in sizes]
        known = prod(sizes[axis] for axis in axes if axis in sizes)
        expect(len(open_axes) <= 1 and size % known == 0, f"{layout.pattern} with {layout.sizes} does not fit {shape}")
        sizes |= dict.fromkeys(open_axes, size // known)
        expect(prod(sizes[axis] for axis in axes) == size, f"{layout.pattern} with {layout.sizes} does not fit {shape}")
    flat = [axis for axes in before for axis in axes]
    order = [axis for axes in after for axis in axes if axis != "1"]
    expect(sorted(flat) == sorted(order), f"{layout.pattern} has other axes on its two sides")
    return LayoutSteps(
        split=tuple(sizes[axis] for axis in flat),
        order=tuple(flat.index(axis) for axis in order),
        merged=tuple(prod(sizes[axis] for axis in axes if axis != "1") for axes in after),
        parts=tuple(tuple(flat.index(axis) for axis in axes) for axes in before),
    )


def _axes(side: str) -> list[list[str]]:
    """Of "n (h d)" they are [["n"], ["h", "d"]]."""
    groups: Iterator[list[str]] = (group.split() for group in side.replace("(", "|").replace(")", "|").split("|"))
    return [
        axes
        for place, group in enumerate(groups)
        for axes in ([group] if place % 2 else [[axis] for axis in group])
        if axes
    ]


def expect(holds: bool, otherwise: str) -> None:
    """Raise ValueError `otherwise`."""
    if not holds:
        raise ValueError(otherwise)
