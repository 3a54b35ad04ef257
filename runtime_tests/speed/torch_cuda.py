"""Where there is a GPU but no TensorRT: a model's own layers in int8 against float16, in torch and Triton.

These are times of torch._int_mm and of Triton kernels. They say nothing about TensorRT.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.nodes import Gelu, LayerNorm, Linear, Product
from ofq_deploy.progress import Reporter
from ofq_deploy.runtime_tests.proof.parity import TIE_SHARE
from ofq_deploy.runtime_tests.runners import cuda
from ofq_deploy.runtime_tests.speed.int8_block import Block, check_block, check_int8, product
from ofq_deploy.runtime_tests.speed.rounds import Call, Clock, Protocol, Timer, latency, measure, ratio

if TYPE_CHECKING:
    import torch

Multiply = dict[str, Callable[..., Any]]  # by name, functions of the signature of int8_block.product
Run = Callable[[dict[str, Call], int, str], dict[str, Any]]

WITHOUT_GPU = "time the model on the processor with: ofq-deploy bench MODEL --backend ort-cpu"
TRITON = "Triton"
INT_MM = "torch._int_mm"
FLOATS = ("float16", "bfloat16")
CHECKED_IMAGES = 2
BLOCK = "blocks.0"
CODES, LIMITS = (-8, 8), (-8, 7)
WORST_MEAN = 1e-3  # a compiled block may round a code otherwise here and there; an error would be everywhere


@dataclass(frozen=True, slots=True)
class Shape:
    """One product of a block for one image: [left, m, k] times [right, n, k] transposed.

    left, right: how many matrices are on each side; constant: the right side is a weight
    """

    name: str
    left: int
    right: int
    m: int
    n: int
    k: int
    constant: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """Where calls run and how they are timed; without a stream, on the processor (for tests)."""

    device: str
    timer: Timer
    stream: cuda.Stream | None = None

    def captured(self, call: Call) -> Call:
        """The call as CUDA graphs where there is a stream, after it has run at least twice."""
        if self.stream is not None:
            return self.stream.capture(call)
        call(0)
        return call


def block_products(frozen: Frozen) -> tuple[Shape, ...]:
    """The matrix products of one block, in the sizes of the model: those with weights, then those of codes alone."""
    network, tokens = frozen.graph, _input_shape(frozen)[0]
    nodes = [(node.name.removeprefix(f"{BLOCK}."), node) for node in network.part(BLOCK)]
    weights = [
        Shape(name, 1, 1, tokens, node.width, node.inputs_width, True)
        for name, node in nodes
        if isinstance(node, Linear)
    ]
    others = []
    for name, node in nodes:
        if isinstance(node, Product):
            (left, _, k), (heads, _, n) = network.shapes[node.left], network.shapes[node.right]
            others.append(Shape(name, left, heads, tokens, n, k, False))
    return (*weights, *others)


def available() -> None:
    """Raise BackendMissing without a GPU."""
    cuda.gpu(WITHOUT_GPU)


def bench_torch_cuda(
    frozen: Frozen,
    batches: tuple[int, ...],
    report: Reporter,
    protocol: Protocol | None = None,
    lane: Lane | None = None,
) -> dict[str, Any]:
    """Time every product of a block, and the whole block, at every batch size.

    Every int8 form is first compared with exact integers, and the block with the oracle; `passed` is false, and the
    form is not timed, when they differ. Raises BackendMissing without a GPU, UnsupportedByTarget when codes leave int8.
    """
    import torch

    check_int8(frozen)
    gpu = cuda.gpu(WITHOUT_GPU) if lane is None else None
    if lane is None:
        stream = cuda.Stream()
        lane = Lane(cuda.DEVICE, stream.timer, stream)
    protocol = protocol or Protocol()
    clock = partial(cuda.sm_clock, gpu) if gpu else lambda: None
    run = partial(_compare, lane=lane, clock=clock, protocol=protocol, report=report)
    result: dict[str, Any] = {"backend": "torch-cuda", "protocol": asdict(protocol), "products": [], "blocks": []}
    result |= {"gpu": asdict(gpu) if gpu else None, "faults": []}
    multiply = {INT_MM: product, **_triton(lane.device)}
    with torch.no_grad():
        for batch in batches:
            with cuda.enough_memory(batch):
                for shape in block_products(frozen):
                    row = _time_product(shape, batch, multiply, lane.device, run)
                    result["products"].append({"batch": batch, **asdict(shape), **row})
                result["blocks"].append({"batch": batch, **_time_block(frozen, batch, multiply, lane.device, run)})
    for row in (*result["products"], *result["blocks"]):
        where = f"{row.get('name', 'a block')} at batch {row['batch']}"
        result["faults"] += [f"{form} of {where} {why}" for form, why in row["wrong"].items()]
    result["passed"] = not result["faults"]
    result |= _summary(result["blocks"])
    if result["faults"]:
        result["verdict"] = f"Failed: {result['faults'][0]}; {result['verdict']}"
    return result


def _time_product(shape: Shape, batch: int, multiply: Multiply, device: str, run: Run) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(shape.n)
    images, m = (1, batch * shape.m) if shape.constant else (batch, shape.m)  # all tokens are rows of one matrix

    def codes(*size: int) -> "torch.Tensor":
        return torch.randint(*CODES, size, dtype=torch.int8, generator=generator).to(device)

    def positive(*size: int) -> "torch.Tensor":
        return (torch.rand(size, generator=generator) + 0.01).to(device)

    left = [codes(images, shape.left, m, shape.k) for _ in range(cuda.SLOTS)]
    right = codes(images, shape.right, shape.n, shape.k)
    column, row, step = positive(1, shape.n), positive(m), positive(1, m, 1)
    calls, skipped, wrong = {}, {}, {}
    for name in FLOATS:
        dtype = getattr(torch, name)
        calls[name] = _rotating(torch.matmul, [x.to(dtype) for x in left], right.to(dtype).transpose(2, 3))
    exact = (left[0].double() @ right.double().transpose(2, 3)).float() * column[:, None] * row[:, None]
    rounded = torch.clamp(torch.round(exact / step), *LIMITS).to(torch.int8)
    for name, own in multiply.items():
        reason = _refusal(shape, m, device) if name == INT_MM else ""
        if reason:
            skipped[name] = reason
            continue
        for form, ending, expected in (("float32", (), exact), ("int8", (None, step, LIMITS), rounded)):
            if torch.equal(own(left[0], right, column, row, *ending), expected):
                calls[f"{name} to {form}"] = _rotating(own, left, right, column, row, *ending)
            else:
                wrong[f"{name} to {form}"] = "differs from exact integers"
    return {"skipped": skipped, "wrong": wrong, **run(calls, batch, f"{shape.name}, batch {batch}")}


def _time_block(frozen: Frozen, batch: int, multiply: Multiply, device: str, run: Run) -> dict[str, Any]:
    import torch

    shape, generator = _input_shape(frozen), torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, *shape, generator=generator).to(device) for _ in range(cuda.SLOTS)]
    checked = torch.randn(CHECKED_IMAGES, *shape, generator=generator).to(device)
    forms: dict[str, tuple[Callable[..., torch.Tensor], list[torch.Tensor]]] = {}
    for name in FLOATS:
        dtype = getattr(torch, name)
        forms[name] = (_float_block(frozen, dtype, device), [x.to(dtype) for x in inputs])
    skipped, wrong = {}, {}
    for name, own in multiply.items():
        shapes = [shape for shape in block_products(frozen) if shape.constant and name == INT_MM]
        reasons = [reason for shape in shapes if (reason := _refusal(shape, batch * shape.m, device))]
        if reasons:
            skipped[name] = reasons[0]
            continue
        judged = check_block(Block(frozen, BLOCK, CHECKED_IMAGES, own, device), checked)
        ties, compared = sum(row.ties for row in judged), sum(row.compared for row in judged)
        if any(row.mismatches for row in judged) or ties > max(1, TIE_SHARE * compared):
            wrong[name] = "codes differ from the oracle's"
        else:
            forms[name] = (Block(frozen, BLOCK, batch, own, device), inputs)
    calls = {name: _rotating(block, values) for name, (block, values) in forms.items()}
    torch.compiler.reset()  # a compiler that meets one function too often gives up
    for name, (block, values) in forms.items() if device == cuda.DEVICE else ():
        compiled, reason = compiled_block(block, values[0])
        if compiled is None:
            skipped[f"{name}, compiled"] = reason
        else:
            calls[f"{name}, compiled"] = _rotating(compiled, values)
    return {"skipped": skipped, "wrong": wrong, **run(calls, batch, f"block, batch {batch}")}


def compiled_block(
    block: Callable[..., "torch.Tensor"], x: "torch.Tensor", backend: str = "inductor"
) -> tuple[Callable[..., "torch.Tensor"] | None, str]:
    """The block by torch.compile, or None and why it cannot be used."""
    import torch

    compiled = torch.compile(lambda value: block(value), fullgraph=True, dynamic=False, backend=backend)
    try:
        found, expected = compiled(x).float(), block(x).float()
    except Exception as error:  # the compiler raises whatever its parts raise
        return None, f"torch.compile: {type(error).__name__} {next(iter(str(error).splitlines()), '')}"
    worse = float((found - expected).abs().mean() / expected.abs().mean())
    return (compiled, "") if worse <= WORST_MEAN else (None, f"compiled, it differs by {worse:.1e} on average")


def _compare(
    calls: dict[str, Call], batch: int, title: str, lane: Lane, clock: Clock, protocol: Protocol, report: Reporter
) -> dict[str, Any]:
    """Latency of every call, and its speed over the fastest float one; as CUDA graphs, which hide launches."""
    captured = {name: lane.captured(call) for name, call in calls.items()}
    found = measure(captured, lane.timer, clock, protocol, report, title)
    rows = {name: latency(batch, rounds, protocol) for name, rounds in found.rounds.items()}
    fastest = min((name for name in rows if name.startswith(FLOATS)), key=lambda name: rows[name].p50)
    return {
        "latency_ms": {name: asdict(row) for name, row in rows.items()},
        "fastest_float": fastest,
        "speedup": {
            name: ratio(batch, found.rounds[fastest], rounds)
            for name, rounds in found.rounds.items()
            if not name.startswith(FLOATS)
        },
        "sm_clock_mhz": found.clock,
        "discarded": found.discarded,
    }


def _summary(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest int8 form of the block against its fastest float form, in the shape of other backends' results."""
    model: list[dict[str, Any]] = []
    baseline: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for row in blocks:
        if not row["speedup"]:
            continue
        form, floats = min(row["speedup"], key=lambda name: row["latency_ms"][name]["p50"]), row["fastest_float"]
        model.append({"form": form, **row["latency_ms"][form]})
        baseline.append({"form": floats, **row["latency_ms"][floats]})
        ratios.append(row["speedup"][form])
    verdict = "no int8 form of a block could be timed"
    if ratios:
        texts = [
            f"{row['ratio_of_medians']:.2f} at batch {row['batch']} ({own['form']})"
            for row, own in zip(ratios, model, strict=True)
        ]
        verdict = f"one block, its fastest int8 form over its fastest float form: {', '.join(texts)}; not TensorRT"
    return {
        "model": {"what": "one block in int8, torch and Triton", "latency_ms": model},
        "baseline": {"what": "one block of the same sizes in float16 or bfloat16, torch", "latency_ms": baseline},
        "speedup": ratios,
        "verdict": verdict,
    }


def _refusal(shape: Shape, m: int, device: str) -> str:
    """Why torch._int_mm does not take a product, or nothing."""
    if not shape.constant:
        return "torch has no batched int8 product"
    if device == cuda.DEVICE and (m <= 16 or shape.k % 8 or shape.n % 8):
        return f"on a GPU it takes more than 16 rows, and sizes that 8 divides; here {m} x {shape.k} x {shape.n}"
    return ""


def _triton(device: str) -> Multiply:
    """Triton's kernel where it can run: on a GPU."""
    if device != cuda.DEVICE or find_spec("triton") is None:
        return {}
    from ofq_deploy.runtime_tests.speed import triton_int8

    return {TRITON: triton_int8.product}


def _input_shape(frozen: Frozen) -> tuple[int, ...]:
    """[tokens, dim] of the block"""
    return frozen.graph.shapes[frozen.graph.part(BLOCK)[0].inputs[0]]


def _float_block(frozen: Frozen, dtype: "torch.dtype", device: str) -> "torch.nn.Module":
    """torch's own pre-norm block of the same sizes with random weights: its speed does not depend on them."""
    import torch

    network = frozen.graph
    (_, dim), block_nodes = _input_shape(frozen), network.part(BLOCK)
    heads = next(network.shapes[node.output][0] for node in block_nodes if isinstance(node, Product))
    hidden = next(network.shapes[node.output][-1] for node in block_nodes if isinstance(node, Gelu))
    epsilon = next(node.epsilon for node in block_nodes if isinstance(node, LayerNorm))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = torch.nn.TransformerEncoderLayer(
            *(dim, heads, hidden),
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=epsilon,
            batch_first=True,
            norm_first=True,
        )
    return block.to(device, dtype).eval()


def _rotating(function: Callable[..., Any], inputs: list["torch.Tensor"], *rest: Any) -> Call:
    """Call with another input every time."""

    def call(number: int) -> None:
        function(inputs[number % len(inputs)], *rest)

    return call
