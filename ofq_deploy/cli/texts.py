"""Results as the commands print them."""

import sys
from typing import TYPE_CHECKING

from msgspec import UNSET

if TYPE_CHECKING:
    from ofq_deploy.results.accuracy import Accuracy, Paired
    from ofq_deploy.results.findings import CheckResult, LintResult
    from ofq_deploy.results.foreign import ForeignResult
    from ofq_deploy.results.golden import GoldenResult
    from ofq_deploy.results.machine import DoctorResult
    from ofq_deploy.results.models import InspectResult, PredictResult
    from ofq_deploy.results.proof import ParityResult, ProofResult


def validation_text(result: "ProofResult | GoldenResult | ForeignResult") -> str:
    """What `validate` found, a line each."""
    from ofq_deploy.results.foreign import ForeignResult
    from ofq_deploy.results.golden import GoldenResult

    if isinstance(result, GoldenResult):
        return _golden_text(result)
    return _foreign_text(result) if isinstance(result, ForeignResult) else _proof_text(result)


def _proof_text(result: "ProofResult") -> str:
    lines = [f"{result.model} ({result.target}) on {result.test_images} test images of {result.data}"]
    lines.append(f"input: {_input(result)}")
    weights = result.weights
    lines.append(
        f"weights: {weights.codes_differing} of {weights.codes_compared:,} stored codes differ; "
        f"{len(result.constants.differing)} of {result.constants.compared:,} other constants"
    )
    for proof in result.operators:
        lines.append(
            f"operators, {proof.witness} against the oracle: {proof.codes_differing} of "
            f"{proof.codes_compared:,} codes differ, {proof.ties} of them ties; "
            f"floats to {proof.worst_float_error:.1e}"
        )
    free = result.free_run
    lines.append(f"free run: {len(free.divergences)} of {free.images} images leave the oracle")
    lines += [
        f"  image {entry.image} at {entry.operator} ({'a tie' if entry.is_tie else 'NO tie'})"
        for entry in free.divergences[:5]
    ]
    accuracy = result.accuracy
    lines += _shares(accuracy, "top-5", "top-1")
    if pair := result.against_float:
        line = f"same prediction as the float model: {pair.agreement:.2f} %"
        if accuracy.top1 is not UNSET:
            lines[-1] += f"; torch {result.top1_torch:.2f} %, float model {result.top1_float:.2f} %"
            line += _alone_right(pair, "this model", "the float model")
        lines.append(line)
        lines.append(
            f"same prediction as torch: {result.agreement:.2f} %; as torch float64: runtime "
            f"{result.runtime_agrees_with_float64}, torch float32 {result.float32_agrees_with_float64} images"
        )
    lines += [f"FAULT {fault}" for fault in result.faults]
    lines.append(result.verdict)
    return "\n".join(lines)


def _foreign_text(result: "ForeignResult") -> str:
    """What `validate --reference` found, a line each."""
    lines = [
        f"{result.model} beside {result.reference} on {result.test_images} images of {result.data}, {result.backend}",
        f"input, {result.preprocessing_from}: {_input(result)}",
    ]
    for name, table in (("model", result.accuracy), ("reference", result.accuracy_reference)):
        shares = _shares(table, "top-1", "top-5")
        lines.append(", ".join([f"{name}: {table.images_per_s:.0f} images/s", *shares]))
    pair = result.against_float
    lines.append(f"same prediction: {pair.agreement:.2f} %")
    if pair.mcnemar_p is not UNSET:
        lines[-1] += _alone_right(pair, "the model", "the reference")
    executed, lint = result.executed, result.lint
    lines.append(f"products: {executed.integer} in integers, {executed.float} in float")
    if lint is not None:
        lines[-1] += f"; lint for {lint.target}: {lint.findings} findings"
    for entry in result.half_quantized:
        lines.append(f"warning: {entry.node} multiplies codes by floats; {entry.tensor} is not quantized")
    worst = result.worst_tensor
    lines.append(
        f"tensors: {len(result.tensors)} compared on {result.images_compared} images, each operator on the "
        f"reference's inputs; worst {worst.name}: off by {worst.error:.3g}, the gain of a channel by "
        f"{worst.gain_error:.3g}, allowed {result.tolerance:g}"
    )
    lines += [f"FAULT {fault}" for fault in result.faults]
    lines.append(result.verdict)
    return "\n".join(lines)


def _shares(accuracy: "Accuracy", *names: str) -> list[str]:
    """Those of top-1 and top-5 that were measured, with their intervals."""
    measured = {
        "top-1": (accuracy.top1, accuracy.top1_interval),
        "top-5": (accuracy.top5, accuracy.top5_interval),
    }
    return [
        "{} {:.2f} % ({:.1f} to {:.1f} with 95 % confidence)".format(name, share, *interval)
        for name in names
        for share, interval in [measured[name]]
        if interval
    ]


def _alone_right(pair: "Paired", own: str, reference: str) -> str:
    return (
        f"; alone right: {own} on {pair.only_model_right} images, {reference} on {pair.only_reference_right} "
        f"(McNemar p = {pair.mcnemar_p:.2g})"
    )


def _input(result: "ProofResult | ForeignResult") -> str:
    """The preprocessing, and what it made of the first batch."""
    how = result.preprocessing
    return (
        f"{how.resize} {how.interpolation}, crop {how.size}, {len(how.mean)} channels; first batch sha256 "
        f"{result.first_batch_sha256[:16]}"
    )


def check_text(result: "CheckResult") -> str:
    """What `check` found, a line each."""
    layers = f"{result.int8_gemms} int8, {result.float_gemms} float, {result.dequantizing_gemms} dequantizing"
    lines = [
        f"{result.model} in {result.package} {result.version}: {result.layers} layers, of them products: "
        f"{layers}; built in {result.build_seconds:.1f} s",
        f"products: {result.int8} of {result.expected} quantized ones are computed in int8; in float "
        f"{len(result.small)} small ones for shifts, {len(result.in_float)} others",
    ]
    lines += [f"WARNING {warning}" for warning in result.warnings]
    lines += [f"FAULT {fault.operator} {fault.node}: {fault.cause}" for fault in result.faults]
    return "\n".join([*lines, ("PASSED: " if result.passed else "FAILED: ") + result.verdict])


def parity_text(result: "ParityResult") -> str:
    """What `parity` found, a line each."""
    lines = [f"{result.model}, {result.images} images"]
    for role, runner in (("leader", result.runners.leader), ("follower", result.runners.follower)):
        settings = ", ".join(f"{key} {value}" for key, value in runner.settings.items())
        lines.append(f"{role}: {runner.backend} ({runner.runtime} on {runner.device}; {settings})")
    for row in result.parity:
        line = f"{row.follower} against {row.reference}, fed the codes of {row.leader}: "
        line += f"{row.codes_differing} of {row.codes_compared:,} codes differ, {row.ties} of them ties"
        if row.histogram:
            line += " (" + ", ".join(f"{step}: {count}" for step, count in row.histogram.items()) + ")"
        lines.append(f"{line}; floats to {row.worst_float_error:.1e}")
    free = result.free_run
    lines.append(f"free runs: {len(free.divergences)} of {free.images} images part")
    lines += [
        f"  image {entry.image} at {entry.operator} ({'a tie' if entry.is_tie else 'NO tie'})"
        for entry in free.divergences[:5]
    ]
    lines += [f"FAULT {fault}" for fault in result.faults]
    lines.append(result.verdict)
    return "\n".join(lines)


def _golden_text(result: "GoldenResult") -> str:
    """What `validate --golden` found, a line each."""
    lines = [f"{result.run} against {result.golden}, {result.images} images"]
    lines += [
        f"weight {row.name}: {row.differing} of {row.compared:,} codes differ, steps within {row.step_ulp:.1f} ulp"
        for row in result.weights
    ]
    lines += [
        f"codes of {row.operator}: {row.differing} of {row.compared:,} differ, {row.ties} of them ties"
        for row in result.activations
    ]
    lines += [f"{row.operator}: equal to {row.error:.1e} of its largest value" for row in result.floats]
    for row in result.blocks:
        flips = "".join(f"; flipped {f.operator} {f.index}, {f.distance:.1e} from a tie" for f in row.flips)
        lines.append(f"{row.block}: {'equal' if row.passed else 'DIFFERS'} to {row.max_error:.1e}{flips}")
    lines.append(f"same prediction on {result.same_prediction} of {result.images} images")
    lines += [f"FAULT {fault}" for fault in result.faults]
    lines.append(result.verdict)
    return "\n".join(lines)


def print_layers(result: "InspectResult") -> None:
    """The table of `inspect`, and the bytes by kind."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.model} ({result.target}), {result.file_bytes:,} bytes")
    for column in ("layer", "shape", "trained", "stored", "computed", "bytes", "input bits", "input steps"):
        table.add_column(column, justify="left" if column in ("layer", "input steps") else "right")
    for row in result.layers:
        shape = "x".join(map(str, row.shape)) if row.shape else "?"
        steps = "{:.4g} to {:.4g}".format(*row.step_range) if row.step_range else "-"
        cells = [
            row.name,
            shape,
            row.bits_trained,
            row.bits_stored or "?",
            row.bits_computed,
            f"{row.bytes:,}",
        ]
        table.add_row(*map(str, cells), str(row.act_bits or "-"), steps)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(", ".join(f"{kind} {size:,}" for kind, size in result.bytes_by_kind.items()) + " bytes")


def prediction_text(result: "PredictResult") -> str:
    """The likeliest labels, a line an image."""
    return "\n".join(
        f"{row.image}: " + ", ".join(f"{best.label} {100 * best.probability:.1f} %" for best in row.top5)
        for row in result.predictions
    )


def lint_text(result: "LintResult") -> str:
    """What `lint` found, a line each."""
    lines = [f"{row.kind} {row.rule}: {row.operator} {row.node}: {row.cause}; {row.cure}" for row in result.faults]
    return "\n".join(lines) or "clean"


def doctor_text(result: "DoctorResult") -> str:
    """What can run here, a line each."""
    lines = [f"{name:14} {number}" for name, number in result.environment.packages.items()]
    lines += [f"cpu {name}: {'yes' if entry.present else 'no'} ({entry.means})" for name, entry in result.cpu.items()]
    lines += [
        f"backend {name}: {'ready' if b.ready else b.why + '; ' + b.install}" for name, b in result.backends.items()
    ]
    fused = result.kernels
    lines.append(f"fused operators: {f'ready, by {fused.chosen}' if fused.ready else fused.why}")
    lines += [f"  not by {name}: {why}" for name, why in fused.choices.items() if why]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in result.warnings)])
