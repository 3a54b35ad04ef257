"""What the rules of lint read, a model as a graph by names, and what they say of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.file import OnnxFile, static_values
from ofq_deploy.runtime_tests.runners.ort import open_session, optimized_graph

if TYPE_CHECKING:
    import onnx

    Node = onnx.NodeProto

Kind = Literal["hard", "wrong", "slow", "hint"]
UNKNOWN = "UNDEFINED"  # ONNX's name of a type that is not known


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. `node` is the node's name in the file, or that of its output where it has none.

    kind: hard  the runtime refuses the model
          wrong it computes other numbers than the file says or training computed
          slow  it multiplies in float, or slower than it could
          hint  it works here, and is not sure to work elsewhere or costs precision
    """

    rule: str
    node: str
    operator: str
    cause: str
    cure: str
    kind: Kind = "slow"


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a value.

    type:  ONNX's name of the element type, as FLOAT16
    shape: -1 for a size that is not known, None for an unknown rank
    """

    type: str = UNKNOWN
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes, those of subgraphs too, and values by name.

    constants: stored tensors: initializers, those that can be overridden too, and tensors of Constant nodes
    static:    names of the constants and of everything that is computed from them alone
    readers:   None stands for the caller, who reads the outputs
    """

    nodes: tuple["Node", ...]
    inputs: frozenset[str]
    constants: dict[str, "onnx.TensorProto"]
    static: frozenset[str]
    producers: dict[str, "Node"]
    readers: dict[str, list["Node | None"]]

    @classmethod
    def of(cls, model: "onnx.ModelProto") -> "Graph":
        nodes = tuple(_nodes(model.graph))
        readers: dict[str, list[Node | None]] = {value.name: [None] for value in model.graph.output}
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        producers: dict[str, Node] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                constants[node.output[0]] = node.attribute[0].t
            for name in filter(None, node.output):
                if any(readers.get(name, [])) and name not in producers:  # two branches may share a name
                    # A cycle would keep the rules that follow a graph from ending.
                    raise OnnxFileError(f"{name} is read before it is computed; sort the nodes of the model")
                producers[name] = node
        inputs = frozenset(value.name for value in model.graph.input)
        return cls(nodes, inputs, constants, frozenset(static_values(nodes, constants)), producers, readers)

    def of_kind(self, *kinds: str) -> Iterator["Node"]:
        return (node for node in self.nodes if node.op_type in kinds)

    def array(self, name: str) -> NDArray[Any] | None:
        """The stored tensor of that name, if there is one."""
        import onnx

        tensor = self.constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)


@dataclass(frozen=True)
class Model:
    """A file, and what ONNX and ONNX Runtime make of it, as soon as a rule asks."""

    source: OnnxFile

    @cached_property
    def file(self) -> Graph:
        return Graph.of(self.source.proto)

    @cached_property
    def _inferred(self) -> dict[str, Value]:
        import onnx

        try:
            graph = onnx.shape_inference.infer_shapes(self.source.proto, data_prop=True).graph
        except onnx.shape_inference.InferenceError:  # a node that ONNX forbids
            graph = self.source.proto.graph
        values = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            sizes = (size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
            values[value.name] = Value(
                element_type(tensor.elem_type), tuple(sizes) if tensor.HasField("shape") else None
            )
        return values | {n: Value(element_type(t.data_type), tuple(t.dims)) for n, t in self.file.constants.items()}

    def inferred(self, name: str) -> Value:
        """What ONNX infers of a value in the file, which need not load in any runtime."""
        return self._inferred.get(name, Value())

    @cached_property
    def _optimized(self) -> "onnx.ModelProto":
        return optimized_graph(self.source)

    @cached_property
    def executed(self) -> Graph:
        return Graph.of(self._optimized)

    @cached_property
    def _types(self) -> dict[str, tuple[str, list[Any]]]:
        """Element type and shape of all executed values, as ONNX Runtime infers them: the graph does not say."""
        import onnx

        copy = onnx.ModelProto()
        copy.CopyFrom(self._optimized)
        made = {name for node in copy.graph.node for name in node.output if name}
        made -= {value.name for value in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(made))
        session = open_session(copy, optimize=False)
        types = {v.name: (v.type[7:-1], v.shape) for v in (*session.get_inputs(), *session.get_outputs())}
        constants = self.executed.constants.items()
        return types | {name: (element_type(t.data_type).lower(), list(t.dims)) for name, t in constants}

    def type(self, name: str) -> str:
        """Like `uint8`; empty where it is not known."""
        return self._types.get(name, ("", []))[0]

    def rank(self, name: str) -> int:
        """0 where it is not known, too."""
        return len(self._types.get(name, ("", []))[1])

    def is_vector(self, name: str) -> bool:
        return any(size != 1 for size in self._types.get(name, ("", []))[1])

    def finding(self, rule: str, node: "Node", cause: str, cure: str, kind: Kind = "slow") -> Finding:
        """The optimizer appends to the names of nodes that it merges, or renames them; most outputs keep theirs."""
        own = {made.name for made in self.file.nodes if made.name}
        kept = [name for name in own if node.name.startswith(name) and node.name[len(name) :][:1] in ("", "/", "_")]
        made = next(filter(None, node.output), node.op_type)
        origin = self.file.producers.get(made)
        name = max(kept, key=len, default="") or (origin.name if origin else "") or made
        return Finding(rule, name, node.op_type, cause, cure, kind)


Rule = Callable[[Model], Iterator[Finding]]


def element_type(number: int) -> str:
    """ONNX's name of an element type, UNKNOWN for a number that stands for none."""
    import onnx

    types = onnx.TensorProto.DataType
    return types.Name(number) if number in types.values() else UNKNOWN


def _nodes(graph: "onnx.GraphProto") -> Iterator["Node"]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner)
