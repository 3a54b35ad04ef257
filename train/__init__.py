"""From a timm vision transformer to frozen codes. `ofq_deploy.train(...)` runs a recipe."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ != "ofq_deploy.train":
    raise ImportError("import ofq_deploy.train, not train")


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Path:
        from ofq_deploy.api import train

        return train(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
