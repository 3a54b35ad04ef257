"""The check of the names that our code uses of TensorRT's module, on the one binding that needs no GPU.

`tools/tensorrt_names.py` alone does the same with TensorRT 10 and 11, whose bindings it downloads.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
TOOL = Path(__file__).resolve().parent.parent / "tools" / "tensorrt_names.py"


def examined(*sources: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, TOOL, "tensorrt_rtx", *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_name_that_we_use_exists() -> None:
    found = examined()

    assert found["missing"] == []
    assert {  # one of each kind of object: what is not followed is not checked
        "Builder.create_network",
        "BuilderFlag.TF32",
        "IBuilderConfig.set_timing_cache",
        "ICudaEngine.create_engine_inspector",
        "ICudaEngine.device_memory_size_v2",
        "EngineInspector.get_engine_information",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.infer_shapes",
        "IOptimizationProfile.set_shape",
        "INetworkDefinition.get_input",
        "ITensor.shape",
        "ITimingCache.serialize",
        "OnnxParser.parse",
        "ParserError.desc",
        "Runtime.deserialize_cuda_engine",
        "TensorIOMode.INPUT",
    } <= set(found["used"])


def test_names_that_do_not_exist_are_found(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "builder = trt.Builder(log)\nconfig = builder.create_builder_config()\n"
        "config.set_flag(trt.BuilderFlag.INT8)\nconfig.set_timing_cache(cache, ignore_nothing=True)\n"
        "builder.create_builder_config().int8_calibrator = None\n"
    )

    assert examined(source)["missing"] == [
        "BuilderFlag.INT8",  # of TensorRT 10
        "IBuilderConfig.int8_calibrator",  # the same
        "IBuilderConfig.set_timing_cache(ignore_nothing=)",
    ]
