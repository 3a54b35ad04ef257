"""What `lint` and `check` tell: what is not computed in integers."""

from typing import Annotated

from msgspec import Struct

from ofq_deploy.results.fields import Count, Result, about


class Unquantized(Struct, frozen=True, kw_only=True):
    """A product that should be int8 and is not."""

    node: Annotated[str, about("name")]
    operator: Annotated[str, about("type")]
    cause: Annotated[str, about("why")]


class CheckResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/check/1"):
    """Result of ofq-deploy check."""

    model: Annotated[str, about("path of the ONNX file")]
    target: Annotated[str, about("tensorrt")]
    verdict: Annotated[str, about("the conclusion in one sentence")]
    passed: Annotated[bool, about("the verdict; false ends the command with exit code 3")]
    package: Annotated[str, about("the compiler")]
    version: Annotated[str, about("its version")]
    batches: Annotated[list[int], about("smallest, best and largest batch size of the engine")]
    expected: Annotated[Count, about("products of the file whose operands are both dequantized")]
    int8: Annotated[Count, about("those of them that an int8 product computes")]
    small: Annotated[list[str], about("names of float products that shifts need")]
    in_float: Annotated[list[str], about("names of all other products in float")]
    int8_gemms: Annotated[Count, about("layers")]
    float_gemms: Annotated[Count, about("layers")]
    dequantizing_gemms: Annotated[Count, about("float products that read int8, layers")]
    layers: Annotated[Count, about("of the engine")]
    plan_bytes: Annotated[Count, about("bytes of the engine")]
    build_seconds: Annotated[float, about("s")]
    warnings: Annotated[list[str], about("of the compiler")]
    faults: Annotated[list[Unquantized], about("products that should be int8 and are not")]


class Finding(Struct, frozen=True, kw_only=True):
    """What keeps a model from integers."""

    rule: Annotated[str, about("name")]
    node: Annotated[str, about("name")]
    operator: Annotated[str, about("type")]
    cause: Annotated[str, about("why")]
    cure: Annotated[str, about("what to do")]
    kind: Annotated[
        str,
        about(
            "hard: the runtime refuses the model; wrong: it computes other numbers; slow: slower than it could; hint: works here, but not surely elsewhere"
        ),
    ]


class LintResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/lint/1"):
    """Result of ofq-deploy lint."""

    faults: Annotated[list[Finding], about("what keeps the model from integers; empty when it is clean")]
