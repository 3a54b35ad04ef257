"""The names in an exported file: short there, long everywhere else.

Every block repeats the same hundred names; in a 4-bit DeiT-T they would take 60 kB. So `blocks.3.attn.q.codes` becomes
`3.h`, h (in base 36) being its role's place in the list that the metadata keeps; names outside of the blocks become `.i`.
"""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

ROLES = "ofq_deploy.roles"
BLOCK_NAME = re.compile(r"blocks\.(\d+)\.(.+)")
SHORT_NAME = re.compile(r"(\d*)\.([0-9a-z]+?)(_.*|quant.*)?")  # quantizers append to names


def shorten(model: "onnx.ModelProto") -> None:
    """Shorten all names but those of inputs and outputs, and keep the list of roles, in place."""
    roles: dict[str, int] = {}
    public = {"", *(value.name for value in (*model.graph.input, *model.graph.output))}

    def short(name: str) -> str:
        if name in public:
            return name
        match = BLOCK_NAME.fullmatch(name)
        block, role = match.groups() if match else ("", name)
        return f"{block}.{np.base_repr(roles.setdefault(role, len(roles)), 36).lower()}"

    _rename(model, short)
    if roles:
        model.metadata_props.add(key=ROLES, value=json.dumps(list(roles), separators=(",", ":")))


def lengthen(model: "onnx.ModelProto", made_from: "onnx.ModelProto | None" = None) -> None:
    """Undo `shorten`, where it was done, in place; nodes without a name get that of their first output.

    made_from: the model whose metadata tells the roles, where this one has lost its own

    Raises ValueError, IndexError, KeyError or TypeError for names that do not fit the list of roles.
    """
    roles = _roles(model) or (_roles(made_from) if made_from else [])

    def long(name: str) -> str:
        match = SHORT_NAME.fullmatch(name) if roles else None
        if match is None:
            return name
        role = roles[int(match[2], 36)] + (match[3] or "")
        return f"blocks.{match[1]}.{role}" if match[1] else role

    _rename(model, long)
    for node in model.graph.node:
        node.name = node.name or node.output[0]


def _rename(model: "onnx.ModelProto", renamed: Callable[[str], str]) -> None:
    """Of values, in the order in which nodes make and read them, then of initializers."""
    for node in model.graph.node:
        for names in (node.output, node.input):
            for index, name in enumerate(names):
                names[index] = renamed(name)
    for tensor in model.graph.initializer:
        tensor.name = renamed(tensor.name)


def _roles(model: "onnx.ModelProto") -> list[str]:
    return next((json.loads(entry.value) for entry in model.metadata_props if entry.key == ROLES), [])
