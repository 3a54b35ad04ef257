"""Results as the commands print them."""

import sys
from typing import Any

SHOWN = 16  # rows of a profile
NAMED = 5  # nodes in a warning


def validation_text(result: dict[str, Any]) -> str:
    """What `validate` found, a line each."""
    lines = [f"{result['model']} ({result['target']}) on {result['test_images']} test images of {result['data']}"]
    lines.append(f"input: {_input(result)}")
    weights = result["weights"]
    lines.append(
        f"weights: {weights['codes_differing']} of {weights['codes_compared']:,} stored codes differ; "
        f"{len(result['constants']['differing'])} of {result['constants']['compared']:,} other constants"
    )
    for proof in result["operators"]:
        lines.append(
            f"operators, {proof['witness']} against the oracle: {proof['codes_differing']} of "
            f"{proof['codes_compared']:,} codes differ, {proof['ties']} of them ties; "
            f"floats to {proof['worst_float_error']:.1e}"
        )
    free = result["free_run"]
    lines.append(f"free run: {len(free['divergences'])} of {free['images']} images leave the oracle")
    lines += [
        f"  image {entry['image']} at {entry['operator']} ({'a tie' if entry['is_tie'] else 'NO tie'})"
        for entry in free["divergences"][:5]
    ]
    accuracy = result["accuracy"]
    lines += _shares(accuracy, "top-5", "top-1")
    if "top1_torch" in result:
        pair = result["against_float"]
        line = f"same prediction as the float model: {pair['agreement']:.2f} %"
        if "top1" in accuracy:
            lines[-1] += f"; torch {result['top1_torch']:.2f} %, float model {result['top1_float']:.2f} %"
            line += _alone_right(pair, "this model", "the float model")
        lines.append(line)
        lines.append(
            f"same prediction as torch: {result['agreement']:.2f} %; as torch float64: runtime "
            f"{result['runtime_agrees_with_float64']}, torch float32 {result['float32_agrees_with_float64']} images"
        )
    lines += [f"FAULT {fault}" for fault in result["faults"]]
    lines.append(result["verdict"])
    return "\n".join(lines)


def foreign_text(result: dict[str, Any]) -> str:
    """What `validate --reference` found, a line each."""
    lines = [
        f"{result['model']} beside {result['reference']} on {result['test_images']} images of {result['data']}, "
        f"{result['backend']}",
        f"input, {result['preprocessing_from']}: {_input(result)}",
    ]
    for name, key in (("model", "accuracy"), ("reference", "accuracy_reference")):
        table = result[key]
        shares = _shares(table, "top-1", "top-5")
        lines.append(", ".join([f"{name}: {table['images_per_s']:.0f} images/s", *shares]))
    pair = result["against_float"]
    lines.append(f"same prediction: {pair['agreement']:.2f} %")
    if "mcnemar_p" in pair:
        lines[-1] += _alone_right(pair, "the model", "the reference")
    executed, lint = result["executed"], result["lint"]
    lines.append(f"products: {executed['integer']} in integers, {executed['float']} in float")
    if lint is not None:
        lines[-1] += f"; lint for {lint['target']}: {lint['findings']} findings"
    for entry in result["half_quantized"]:
        lines.append(f"warning: {entry['node']} multiplies codes by floats; {entry['tensor']} is not quantized")
    worst = result["worst_tensor"]
    lines.append(
        f"tensors: {len(result['tensors'])} compared on {result['images_compared']} images, each operator on the "
        f"reference's inputs; worst {worst['name']}: off by {worst['error']:.3g}, the gain of a channel by "
        f"{worst['gain_error']:.3g}, allowed {result['tolerance']:g}"
    )
    lines += [f"FAULT {fault}" for fault in result["faults"]]
    lines.append(result["verdict"])
    return "\n".join(lines)


def _shares(accuracy: dict[str, Any], *names: str) -> list[str]:
    """Those of top-1 and top-5 that were measured, with their intervals."""
    keys = [(name, name.replace("-", "")) for name in names]
    return [
        "{} {:.2f} % ({:.1f} to {:.1f} with 95 % confidence)".format(name, accuracy[key], *accuracy[f"{key}_interval"])
        for name, key in keys
        if key in accuracy
    ]


def _alone_right(pair: dict[str, Any], own: str, reference: str) -> str:
    return (
        f"; alone right: {own} on {pair['only_model_right']} images, {reference} on {pair['only_reference_right']} "
        f"(McNemar p = {pair['mcnemar_p']:.2g})"
    )


def _input(result: dict[str, Any]) -> str:
    """The preprocessing, and what it made of the first batch."""
    how = result["preprocessing"]
    return (
        f"{how['resize']} {how['interpolation']}, crop {how['size']}, {len(how['mean'])} channels; first batch sha256 "
        f"{result['first_batch_sha256'][:16]}"
    )


def check_text(result: dict[str, Any]) -> str:
    """What `check` found, a line each."""
    layers = f"{result['int8_gemms']} int8, {result['float_gemms']} float, {result['dequantizing_gemms']} dequantizing"
    lines = [
        f"{result['model']} in {result['package']} {result['version']}: {result['layers']} layers, of them products: "
        f"{layers}; built in {result['build_seconds']:.1f} s",
        f"products: {result['int8']} of {result['expected']} quantized ones are computed in int8; in float "
        f"{len(result['small'])} small ones for shifts, {len(result['in_float'])} others",
    ]
    lines += [f"WARNING {warning}" for warning in result["warnings"]]
    lines += [f"FAULT {fault['operator']} {fault['node']}: {fault['cause']}" for fault in result["faults"]]
    return "\n".join([*lines, ("PASSED: " if result["passed"] else "FAILED: ") + result["verdict"]])


def parity_text(result: dict[str, Any]) -> str:
    """What `parity` found, a line each."""
    lines = [f"{result['model']}, {result['images']} images"]
    for role, runner in result["runners"].items():
        settings = ", ".join(f"{key} {value}" for key, value in runner["settings"].items())
        lines.append(f"{role}: {runner['backend']} ({runner['runtime']} on {runner['device']}; {settings})")
    for row in result["parity"]:
        line = f"{row['follower']} against {row['reference']}, fed the codes of {row['leader']}: "
        line += f"{row['codes_differing']} of {row['codes_compared']:,} codes differ, {row['ties']} of them ties"
        if row["histogram"]:
            line += " (" + ", ".join(f"{step}: {count}" for step, count in row["histogram"].items()) + ")"
        lines.append(f"{line}; floats to {row['worst_float_error']:.1e}")
    free = result["free_run"]
    lines.append(f"free runs: {len(free['divergences'])} of {free['images']} images part")
    lines += [
        f"  image {entry['image']} at {entry['operator']} ({'a tie' if entry['is_tie'] else 'NO tie'})"
        for entry in free["divergences"][:5]
    ]
    lines += [f"FAULT {fault}" for fault in result["faults"]]
    lines.append(result["verdict"])
    return "\n".join(lines)


def golden_text(result: dict[str, Any]) -> str:
    """What `validate --golden` found, a line each."""
    lines = [f"{result['run']} against {result['golden']}, {result['images']} images"]
    lines += [
        f"weight {row['name']}: {row['differing']} of {row['compared']:,} codes differ, steps within {row['step_ulp']:.1f} ulp"
        for row in result["weights"]
    ]
    lines += [
        f"codes of {row['operator']}: {row['differing']} of {row['compared']:,} differ, {row['ties']} of them ties"
        for row in result["activations"]
    ]
    lines += [f"{row['operator']}: equal to {row['error']:.1e} of its largest value" for row in result["floats"]]
    for row in result["blocks"]:
        flips = "".join(f"; flipped {f['operator']} {f['index']}, {f['distance']:.1e} from a tie" for f in row["flips"])
        lines.append(f"{row['block']}: {'equal' if row['passed'] else 'DIFFERS'} to {row['max_error']:.1e}{flips}")
    lines.append(f"same prediction on {result['same_prediction']} of {result['images']} images")
    lines += [f"FAULT {fault}" for fault in result["faults"]]
    lines.append(result["verdict"])
    return "\n".join(lines)


def bench_text(result: dict[str, Any]) -> str:
    """What `bench` measured, a line each."""
    lines = []
    for role in ("model", "baseline"):
        if role not in result:
            continue
        entry, run = result[role], result[role]["executed"]
        lines.append(
            f"{role} {entry['path']}: {entry['file_bytes']:,} bytes, load {entry['load_ms']:.0f} ms, "
            f"peak +{entry['peak_mb']:.1f} MB; products: {run['integer']} in integers, {run['float']} in float, "
            f"{run['small']} small per-key ones"
        )
        if run["integer"] and run["float"]:
            named = ", ".join(run["float_nodes"][:NAMED]) + (", ..." if run["float"] > NAMED else "")
            lines.append(f"  warning: {run['float']} products of a quantized model run in float: {named}")
        lines += [
            f"  batch {row['batch']}: p50 {row['p50']:.3f} ms, p90 {row['p90']:.3f}, p99 {row['p99']:.3f}, "
            f"{row['images_per_s']:.0f} images/s ({row['calls']} calls)"
            + (f", CPU time p50 {row['cpu_p50']:.3f} ms" if row["cpu_p50"] is not None else "")
            for row in entry["latency_ms"]
        ]
    for role in ("model", "baseline"):
        for kind, shares in result.get(role, {}).get("profile", {}).items():
            lines.append(f"{role} by {kind}:")
            lines += [
                f"  {row['name']:48} {row['nodes']:4} nodes {row['ms']:8.3f} ms {100 * row['share']:5.1f} %"
                for row in shares[:SHOWN]
            ]
    return "\n".join([*lines, *_arithmetic_lines(result["arithmetic"]), _conditions_line(result), result["verdict"]])


def _arithmetic_lines(done: dict[str, Any]) -> list[str]:
    """What the model multiplies, and how far it is from what the CPU could."""
    line = f"arithmetic: {done['macs'] / 1e6:,.1f} M multiply-accumulates, {done['bit_operations'] / 1e9:,.2f} G bit operations"
    if base := done.get("baseline"):
        line += f" (baseline: {base['macs'] / 1e6:,.1f} M, {base['bit_operations'] / 1e9:,.2f} G)"
    lines = [line + "".join(f"; {operator} is not counted" for operator in done["uncounted"])]
    if done["distance"] is not None:
        peak = done["peak_macs_per_s"]
        lines.append(
            f"  p50 is {done['distance']:.1f} times the {done['floor_ms']:.3f} ms that these would take at the rates of "
            f"ONNX Runtime's best kernels here ({peak['int8'] / 1e9:.0f} G/s in int8, {peak['float32'] / 1e9:.0f} G/s in float32)"
        )
    return lines


def _conditions_line(result: dict[str, Any]) -> str:
    how = result["conditions"]
    cpus = "unknown" if how["affinity"] is None else ", ".join(map(str, how["affinity"]))
    spinning = " (idle ones spin)" if how["spinning"] else ""
    return (
        f"conditions: {how['runtime']} on {how['device']}, threads: {how['threads']}{spinning}, CPUs: {cpus}; "
        "one call of each model per round, in random order"
    )


def gpu_bench_text(result: dict[str, Any]) -> str:
    """What `bench` measured on a GPU, a line each."""
    gpu = result["gpu"]
    lines = [
        f"{result['model']['path']} on {gpu['name']}, compute capability {gpu['capability']}, "
        f"driver {gpu['driver'] or 'unknown'}"
    ]
    for role in ("model", "baseline", "float32"):
        if role not in result:
            continue
        lines.append(f"{role}: {result[role]['what']}")
        for key, what in (("latency_ms", "CUDA graph"), ("latency_ms_without_graph", "plain launches")):
            lines += [
                f"  batch {row['batch']}, {row.get('form', what)}: p50 {row['p50']:.3f} ms, p10 {row['p10']:.3f}, "
                f"p90 {row['p90']:.3f}, {row['images_per_s']:.0f} images/s ({row['calls']} calls)"
                for row in result[role].get(key, [])
            ]
    for row in result.get("speedup", []):
        noise = "" if row["conclusive"] else ", not conclusive"
        lines.append(
            f"batch {row['batch']}: {row['ratio_of_medians']:.2f}x the baseline's speed "
            "({:.2f} to {:.2f} with 95 % confidence".format(*row["interval"])
            + f"{noise})"
        )
    lines += [f"FAULT {fault}" for fault in result["faults"]]
    return "\n".join([*lines, result["verdict"]])


def print_layers(result: dict[str, Any]) -> None:
    """The table of `inspect`, and the bytes by kind."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']} ({result['target']}), {result['file_bytes']:,} bytes")
    for column in ("layer", "shape", "trained", "stored", "computed", "bytes", "input bits", "input steps"):
        table.add_column(column, justify="left" if column in ("layer", "input steps") else "right")
    for row in result["layers"]:
        shape = "x".join(map(str, row["shape"])) if row["shape"] else "?"
        steps = "{:.4g} to {:.4g}".format(*row["step_range"]) if row["step_range"] else "-"
        cells = [
            row["name"],
            shape,
            row["bits_trained"],
            row["bits_stored"] or "?",
            row["bits_computed"],
            f"{row['bytes']:,}",
        ]
        table.add_row(*map(str, cells), str(row["act_bits"] or "-"), steps)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(", ".join(f"{kind} {size:,}" for kind, size in result["bytes_by_kind"].items()) + " bytes")
