"""From the frozen file to ONNX. `ofq_deploy.export(...)` writes a model."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ != "ofq_deploy.export":
    raise ImportError("import ofq_deploy.export, not export")


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Path:
        from ofq_deploy.api import export

        return export(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
