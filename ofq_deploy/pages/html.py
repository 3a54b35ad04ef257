"""Templates, and how they write numbers and texts. Pages are escaped; cards are Markdown and are not."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> "Template":
    return _environment().get_template(name)


@cache
def _environment() -> "Environment":
    """What a template reads and is not there is an error, unless it asks first whether it `is present`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    class Missing(StrictUndefined):
        def __format__(self, spec: str) -> str:
            return str(self)  # an error that names what is missing

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=Missing,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": format,
        "percent": percent,
        "plain": plain,
        "prose": prose,
        "scientific": scientific,
    }
    environment.tests["present"] = _present
    return environment


def percent(value: float) -> str:
    return f"{value:.2f} %"


def scientific(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def prose(text: str) -> str:
    """A percent sign stays with its number."""
    return text.replace(" %", "\u00a0%")


def _present(value: Any) -> bool:
    """Whether a result has a field: fields of dictionaries are left out, those of types unset, either may be None."""
    from jinja2 import Undefined
    from msgspec import UNSET

    return value is not None and value is not UNSET and not isinstance(value, Undefined)
