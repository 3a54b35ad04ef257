"""Models of fused operators with random faults, run one after another in this process: `fuzz_kernels.py LIBRARY MODELS FIRST COUNT`.

Made for a process under sanitizers, which end it at their first report: it loads neither torch nor this project, and says what
it is about to do before it does it. Standard output gets a line of JSON for each case:

    {"seed": 7}                                           before
    {"seed": 7, "case": "...", "outcome": "ran", ...}     behind it; or the message of the exception that ended it
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]
Feeds = dict[str, Array]

SIZES = (-1, 0, 1, 2, 3, 4, 8, 12, 63, 64, 192, 198, 2**15, 2**20, 2**31 - 1, 2**31, 2**40, -(2**63))
FLOATS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1.0, 3e38, -3e38, 1e-45, 1e9)
INTEGERS = (-(2**31), 2**31 - 1, 0, -1, 40000, -40000)
BYTES = (0, 1, 15, 127, 128, 255)
OTHER_TYPES = (np.float32, np.float64, np.float16, np.uint8, np.int8, np.int32, np.int64)
LARGEST = 1 << 22  # elements of what is fed


@dataclass(frozen=True)
class Subject:
    """A model that runs, with what it is fed and what it gives."""

    name: str
    model: ModelProto
    feeds: Feeds
    expected: Sequence[Array]


@dataclass
class Case:
    """A subject that is being damaged."""

    model: ModelProto
    node: NodeProto
    feeds: Feeds
    random: np.random.Generator

    def any(self, values: Sequence[Any]) -> Any:
        return values[self.random.integers(len(values))]


def open_session(library: Path, model: ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """Every tensor in memory of its own size, so that a step beyond it is seen."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def subjects(library: Path, models: Path) -> Iterator[Subject]:
    """Every network, and every fused operator of it alone."""
    random = np.random.default_rng(0)
    for path in sorted(models.glob("*.onnx")):
        model = onnx.load(path)
        shape = [dim.dim_value or 2 for dim in model.graph.input[0].type.tensor_type.shape.dim]
        feeds = {model.graph.input[0].name: random.normal(size=shape).astype(np.float32)}
        told = ModelProto()
        told.CopyFrom(model)
        del told.graph.output[:]
        names = [name for node in model.graph.node for name in node.output]
        told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        found = open_session(library, told, 1).run(names, feeds)
        values = feeds | dict(zip(names, found, strict=True))
        yield Subject(path.stem, model, feeds, [values[output.name] for output in model.graph.output])
        for node in model.graph.node:
            yield alone(library, path.stem, model, node, values, proof=False)
            if node.op_type == "Attention":
                yield alone(library, path.stem, model, node, values, proof=True)


def alone(library: Path, name: str, model: ModelProto, node: NodeProto, values: Feeds, proof: bool) -> Subject:
    """One operator; proof: attention that is given its probabilities, and gives them."""
    own = NodeProto()
    own.CopyFrom(node)
    feeds = {value: values[value] for value in node.input if value in values}
    if proof:
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        shape = (len(values[node.output[0]]), sizes["heads"], sizes["rows"], sizes["tokens"])
        own.input.extend([""] * (17 - len(own.input)) + ["forced"])
        own.output.append("probabilities")
        feeds["forced"] = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    fed = [helper.make_tensor_value_info(value, helper.np_dtype_to_tensor_dtype(array.dtype), None) for value, array in feeds.items()]
    constants = [constant for constant in model.graph.initializer if constant.name in node.input]
    graph = helper.make_graph([own], "operator", fed, [onnx.ValueInfoProto(name=value) for value in own.output], constants)
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    found = open_session(library, made, 1).run(None, feeds)
    return Subject(f"{name}: {node.name}{' forced' if proof else ''}", made, feeds, found)


# Faults. Each returns what it did, or nothing where there was nothing to do it to.


def change_attribute(case: Case) -> str:
    if not case.node.attribute:
        return ""
    attribute, own = case.any(case.node.attribute), case.any(case.node.attribute).i
    name, near = attribute.name, (own - 1, own + 1, own // 2, 2 * own)  # of another attribute as often as of the same
    value = case.any([*SIZES, *near, *near, None, 1.5, "4", [4, 4], 0.0, np.nan])
    case.node.attribute.remove(attribute)
    if value is not None:
        case.node.attribute.append(helper.make_attribute(name, value))
    return f"{name} = {value}"


def constant_of(case: Case) -> TensorProto | None:
    own = [constant for constant in case.model.graph.initializer if constant.name in case.node.input]
    return case.any(own) if own else None


def change_constant(case: Case, change: Callable[[Case, Array], tuple[Array, str]]) -> str:
    constant = constant_of(case)
    if constant is None:
        return ""
    array, what = change(case, numpy_helper.to_array(constant).copy())
    constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    return f"{constant.name} {what}"


def resized(case: Case, array: Array) -> tuple[Array, str]:
    rows = len(array) if array.ndim else 1
    count = int(case.any([0, 1, rows - 1, rows + 1, rows // 2, 2 * rows, 16, 17, 32, 64, 80]))
    return np.resize(array, (max(count, 0), *array.shape[1:])), f"of {count} rows"


def reshaped(case: Case, array: Array) -> tuple[Array, str]:
    one = np.resize(array, 1)
    forms = [array.reshape(-1), array.reshape(1, -1), array.reshape(-1, 1), array.T, array[..., :-1] if array.ndim else one]
    forms += [array[None, None, None, None], np.repeat(array[..., None], 2, -1), one, one.reshape(())]
    made = case.any(forms).copy()
    return made, f"of shape {made.shape}"


def of_another_type(case: Case, array: Array) -> tuple[Array, str]:
    dtype = case.any(OTHER_TYPES)
    with np.errstate(all="ignore"):
        return array.astype(dtype), f"as {np.dtype(dtype)}"


def filled(case: Case, array: Array) -> tuple[Array, str]:
    """One element, all, or random ones."""
    every = slice(None), slice(None, None, 3)
    value, place = case.any({"f": FLOATS, "u": BYTES, "i": INTEGERS}[array.dtype.kind]), case.any([*every, "one"])
    if place == "one":
        place = slice(first := case.random.integers(max(array.size, 1)), first + 1)
    with np.errstate(all="ignore"):
        array.reshape(-1)[place] = np.asarray(value).astype(array.dtype)
    return array, f"with {value} at {place}"


def shuffled(case: Case, array: Array) -> tuple[Array, str]:
    case.random.shuffle(array.reshape(-1))
    return array, "shuffled"


def change_inputs(case: Case) -> str:
    inputs = list(case.node.input)
    if not inputs:
        return ""
    place, other = case.random.integers(len(inputs), size=2)
    what = case.any(["without", "swapped", "cut", "twice", "fed", "from"])
    if what == "without":
        inputs[place] = ""
    elif what == "swapped":
        inputs[place], inputs[other] = inputs[other], inputs[place]
    elif what == "cut":
        del inputs[place:]
    elif what == "twice":
        inputs[place] = inputs[other]
    elif what == "fed":
        constant = constant_of(case)
        if constant is None:
            return ""
        case.feeds[constant.name] = numpy_helper.to_array(constant)
        case.model.graph.input.append(helper.make_tensor_value_info(constant.name, constant.data_type, None))
        case.model.graph.initializer.remove(constant)
    else:  # any value of the graph, the wrong way round where it must be
        names = [constant.name for constant in case.model.graph.initializer] + [value.name for value in case.model.graph.input]
        inputs[place] = case.any(names)
    del case.node.input[:]
    case.node.input.extend(inputs)
    return f"input {place} {what} {other}"


def change_outputs(case: Case) -> str:
    """A second one, or another shape that the graph declares of the first."""
    if case.random.integers(2):
        case.node.output.append("more")
        return "one output more"
    name = case.any(["uint8", "float", "shape"])
    dtype = TensorProto.FLOAT if name == "float" else TensorProto.UINT8
    case.model.graph.output[0].CopyFrom(helper.make_tensor_value_info(case.model.graph.output[0].name, dtype, [1, 2, 3]))
    return f"output declared as {name}"


def change_fed(case: Case) -> str:
    name = case.any(list(case.feeds))
    array = case.feeds[name].copy()
    kind = case.any(["shape", "shape", "shape", "batch", "fill", "fill", "type", "rank"])
    if kind == "batch":
        array = np.resize(array, (case.any([0, 1, 3, 5]), *array.shape[1:]))
    elif kind == "shape" and array.ndim:
        axis, shape = case.random.integers(array.ndim), list(array.shape)
        shape[axis] = case.any([0, 1, 2, shape[axis] - 1, shape[axis] + 1, 2 * shape[axis], 16, 64])
        array = np.resize(array, shape) if 0 <= np.prod(shape) < LARGEST else array
    elif kind == "fill":
        array, _ = filled(case, array)
    elif kind == "type":
        array, _ = of_another_type(case, array)
    elif kind == "rank":
        array, _ = reshaped(case, array)
    case.feeds[name] = array
    return f"{name} fed as {array.dtype} {array.shape} ({kind})"


FAULTS: tuple[Callable[[Case], str], ...] = (
    change_attribute,
    change_attribute,
    change_attribute,
    lambda case: change_constant(case, resized),
    lambda case: change_constant(case, reshaped),
    lambda case: change_constant(case, of_another_type),
    lambda case: change_constant(case, filled),
    lambda case: change_constant(case, filled),
    lambda case: change_constant(case, shuffled),
    change_inputs,
    change_outputs,
    change_fed,
    change_fed,
    change_fed,
)


def run_case(library: Path, among: Sequence[Subject], seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    subject = among[random.integers(len(among))]
    model = ModelProto()
    model.CopyFrom(subject.model)
    case = Case(model, model.graph.node[random.integers(len(model.graph.node))], dict(subject.feeds), random)
    faults = [case.any(FAULTS)(case) for _ in range(case.any([0, 1, 1, 1, 1, 1, 2, 2, 3, 4]))]
    told = {"seed": seed, "case": f"{subject.name}: {'; '.join(faults)}", "node": case.node.name}
    try:
        session = open_session(library, model, threads=1 + seed % 2)
        try:
            found = session.run(None, case.feeds)
        finally:
            session.run(None, dict(subject.feeds) if case.feeds.keys() == subject.feeds.keys() else case.feeds)
    except Exception as error:  # onnxruntime raises its own classes, all of them direct children of Exception
        return told | {"outcome": str(error)}
    if not any(faults):
        for value, expected in zip(found, subject.expected, strict=True):
            np.testing.assert_array_equal(value, expected)
    return told | {"outcome": "ran"}


def main() -> None:
    library, models, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    among = list(subjects(library, models))
    for seed in range(first, first + count):
        print(json.dumps({"seed": seed}), flush=True)
        print(json.dumps(run_case(library, among, seed)), flush=True)


if __name__ == "__main__":
    main()
