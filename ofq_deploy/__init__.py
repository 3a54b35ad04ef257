"""Low-bit vision transformers, from OFQ training to integer runtimes.

`convert`, `train`, `freeze`, `export`, `validate`, `bench` and `load_frozen` do what the commands do.
Nothing heavy is imported before one of them is used.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["bench", "convert", "export", "freeze", "load_frozen", "train", "validate"]

# In a checkout the subpackages live beside this folder; in a wheel they are inside it and this does nothing.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "train" / "__init__.py").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name in {"train", "export"}:  # packages that are callable: see docs/decisions/0003
        return _import_module(f"ofq_deploy.{name}")
    if name in __all__:
        return getattr(_import_module("ofq_deploy.api"), name)
    raise AttributeError(f"module 'ofq_deploy' has no attribute {name!r}")
