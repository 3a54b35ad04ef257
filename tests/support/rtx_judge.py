"""What the parser and the builder of TensorRT-RTX make of a folder of models, in verdicts.json; needs no GPU.

A process of its own: the library keeps the first logger that it is given, and some models crash the compiler.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import onnx
import tensorrt_rtx


class Log(tensorrt_rtx.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[Any, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self.records.append((severity, message))


def judge(path: Path, log: Log) -> dict[str, Any]:
    """refused, what it complained of, how many products are integer ones, and how many attention kernels there are."""
    log.records.clear()
    builder = tensorrt_rtx.Builder(log)
    network = builder.create_network(0)
    parsed = tensorrt_rtx.OnnxParser(network, log).parse(path.read_bytes())
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt_rtx.ProfilingVerbosity.DETAILED
    refused = not parsed or builder.build_serialized_network(network, config) is None
    severities = (tensorrt_rtx.ILogger.WARNING, tensorrt_rtx.ILogger.ERROR, tensorrt_rtx.ILogger.INTERNAL_ERROR)
    listing = next((text for _, text in log.records if text.lstrip().startswith("Layers:")), "")
    layers = [line for line in listing.splitlines() if line.startswith("Name:")]
    return {
        "refused": refused,
        "complaints": [text for severity, text in log.records if severity in severities],
        "integer": sum(map(is_integer_product, layers)),
        "attention": sum("mha" in line.split(",")[0] for line in layers),
    }


def is_integer_product(line: str) -> bool:
    operands = line.split("Outputs: [")[0]
    kinds = re.findall(r"Datatype: (\w+)", operands)
    return re.search(r"LayerType: (gemm|correlation)", line) is not None and kinds[:2] == ["Int8", "Int8"]


def main(folder: Path) -> None:
    log = Log()
    parser = tensorrt_rtx.OnnxParser(tensorrt_rtx.Builder(log).create_network(0), log)
    standard = sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain})
    verdicts = {path.stem: judge(path, log) for path in sorted(folder.glob("*.onnx"))}
    unsupported = [name for name in standard if not parser.supports_operator(name)]
    (folder / "verdicts.json").write_text(json.dumps({"verdicts": verdicts, "unsupported": unsupported}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
