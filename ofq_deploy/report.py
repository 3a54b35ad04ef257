"""One self-contained HTML page about a demo: verdict, numbers, layers, environment."""

import io
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --bad: #f85149; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } .good { color: var(--good); } .bad { color: var(--bad); }
.verdict { font-size: 1.1rem; padding: .8rem 1rem; background: var(--soft); border-radius: .5rem; }
svg { max-width: 100%; height: auto; } details > summary { cursor: pointer; }
details { margin: .5rem 0; } code { background: var(--soft); }
"""


def render(summary: dict[str, Any], details: list[dict[str, Any]]) -> str:
    """The page, from `summary.json` and per model what validate, bench and inspect returned."""
    models = summary["models"]
    compared, differing, ties = (sum(m[key] for m in models) for key in ("codes_compared", "codes_differing", "ties"))
    others = f"{ties} of the {differing} others are rounding ties" if differing else "none differs"
    verdict = f"ONNX Runtime computed {compared - differing:,} of {compared:,} integer codes as training did; {others}."
    state = "good" if summary["passed"] else "bad"
    word = "Proven." if summary["passed"] else "Not proven."
    parts = [
        "<h1>ofq-deploy: low-bit vision transformers, proven</h1>",
        f'<p class="verdict"><strong class="{state}">{word}</strong> {escape(verdict)}</p>',
        "<h2>Models</h2>",
        _models_table(summary, details),
        _charts(summary),
        "<h2>Speed beside the float model</h2>",
        _speed_table(models, details),
        "<p>Calls alternate with the float model's in one process, one thread, batch 1. These models are tiny (18 "
        "tokens of width 64): the integer graph has more, smaller operators and is not faster than float here.</p>",
        "<h2>Proof, operator by operator</h2>",
        _proof_table(models, details),
        *(_layers(model, detail) for model, detail in zip(models, details, strict=True)),
        "<h2>Environment</h2>",
        _environment(summary["environment"]),
        "<h2>Reproduce</h2>",
        f"<p><code>ofq-deploy demo --seed {summary['seed']}</code></p>",
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>ofq-deploy report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _models_table(summary: dict[str, Any], details: list[dict[str, Any]]) -> str:
    rows = [
        [
            "float model",
            "32 / 32",
            "-",
            f"{summary['float_top1']:.2f} %",
            "-",
            f"{summary['float_file_bytes']:,}",
        ]
    ]
    rows += [
        [
            m["name"],
            f"{m['weight_bits']} / {m['act_bits']}",
            f"{m['top1_torch']:.2f} %",
            f"{m['top1_runtime']:.2f} %",
            f"{m['agreement']:.2f} %",
            f"{m['file_bytes']:,}",
        ]
        for m in summary["models"]
    ]
    images = details[0]["validation"]["test_images"]
    head = ["model", "bits W / A", "torch", "ONNX Runtime", "same prediction", "file bytes"]
    return _table(head, rows) + f"<p>Top-1 on the {images} test images, which decided nothing.</p>"


def _speed_table(models: list[dict[str, Any]], details: list[dict[str, Any]]) -> str:
    rows = []
    for model, detail in zip(models, details, strict=True):
        own, base = (detail["bench"][role]["latency_ms"][0] for role in ("model", "baseline"))
        ratio = detail["bench"]["speedup"][0]["ratio_of_medians"]
        run = detail["bench"]["model"]["executed"]
        products = f"{run['integer']} / {run['float']} / {run['small']}"
        rows.append([model["name"], f"{own['p50']:.3f} ms", f"{base['p50']:.3f} ms", f"{ratio:.2f}", products])
    return _table(["model", "p50", "float p50", "float / model", "products: integer / float / per-key"], rows)


def _proof_table(models: list[dict[str, Any]], details: list[dict[str, Any]]) -> str:
    rows = []
    for model, detail in zip(models, details, strict=True):
        weights = detail["validation"]["weights"]
        rows.append(
            [
                model["name"],
                "weights in the file",
                f"{weights['codes_compared']:,}",
                str(weights["codes_differing"]),
                "-",
            ]
        )
        for proof in detail["validation"]["operators"]:
            name = f"{proof['witness']} against the oracle"
            rows.append(
                [
                    model["name"],
                    name,
                    f"{proof['codes_compared']:,}",
                    str(proof["codes_differing"]),
                    str(proof["ties"]),
                ]
            )
    return _table(["model", "compared", "codes", "differing", "of them ties"], rows)


def _layers(model: dict[str, Any], detail: dict[str, Any]) -> str:
    rows = [
        [
            layer["name"],
            "x".join(map(str, layer["shape"])),
            str(layer["bits_trained"]),
            str(layer["bits_stored"]),
            str(layer["bits_computed"]),
            f"{layer['bytes']:,}",
        ]
        for layer in detail["contents"]["layers"]
    ]
    table = _table(["layer", "shape", "bits trained", "bits stored", "bits computed", "bytes"], rows)
    return f"<details><summary>Layers of {escape(model['name'])}</summary>{table}</details>"


def _environment(environment: dict[str, Any]) -> str:
    rows = [
        [key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
        for key, value in environment.items()
        if key != "packages"
    ]
    rows += [[name, number] for name, number in environment["packages"].items()]
    return _table(["what", "value"], rows)


def _charts(summary: dict[str, Any]) -> str:
    """Errors and bytes side by side, as inline SVG that reads on light and dark pages."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    grey = "#808080"
    labels = ["float", *(f"W{m['weight_bits']}A{m['act_bits']}" for m in summary["models"])]
    errors = [100 - summary["float_top1"], *(100 - m["top1_runtime"] for m in summary["models"])]
    sizes = [summary["float_file_bytes"] / 1000, *(m["file_bytes"] / 1000 for m in summary["models"])]
    style: Any = {
        "svg.hashsalt": "ofq-deploy",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "text.color": grey,
    }
    with plt.rc_context(style | {"axes.labelcolor": grey, "xtick.color": grey, "ytick.color": grey}):
        figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
        for axis, values, title in zip(axes, (errors, sizes), ("top-1 error, %", "file, kB"), strict=True):
            bars = axis.barh(labels[::-1], values[::-1], color=["#4c8dd6"] * (len(values) - 1) + [grey])
            axis.bar_label(bars, fmt="%.2f" if values is errors else "%.0f", padding=3)
            axis.set_title(title, fontsize=10)
            axis.margins(x=0.15)
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.spines["left"].set_color(grey)
            axis.set_xticks([])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
