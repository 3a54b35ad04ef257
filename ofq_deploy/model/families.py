"""The families of networks, by the name that the frozen file gives them."""

from dataclasses import asdict
from typing import Any

import msgspec

from ofq_deploy.model.architecture import Architecture
from ofq_deploy.model.vit import Vit

FAMILIES: dict[str, type[Any]] = {"vit": Vit}


def encode_architecture(architecture: Architecture) -> dict[str, Any]:
    """As JSON, with its family."""
    family = next(name for name, kind in FAMILIES.items() if isinstance(architecture, kind))
    return {"family": family, **asdict(architecture)}  # type: ignore[call-overload]  # a dataclass, as its docstring says


def decode_architecture(table: Any) -> Architecture:
    """From JSON; ValueError for a family that is not known, or sizes that are none."""
    if not isinstance(table, dict):
        raise ValueError(f"the architecture is {table!r}")
    sizes = {key: value for key, value in table.items() if key != "family"}
    family = table.get("family", "vit")  # format 1 knew no other
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; there are {', '.join(FAMILIES)}")
    try:
        architecture: Architecture = msgspec.convert(sizes, FAMILIES[family])
    except msgspec.ValidationError as error:
        raise ValueError(f"the architecture cannot be read: {error}") from error
    return architecture
