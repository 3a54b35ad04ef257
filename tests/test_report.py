"""The report: self-contained, escaped, complete, silent about what is not there; what is kept and found again; cards."""

import copy
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from ofq_deploy import api, cli
from ofq_deploy.data.images import load_image
from ofq_deploy.errors import DataError, OutputError, RunError
from ofq_deploy.files import sha256, write_text
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.pages import html
from ofq_deploy.pages.card import MARKER, _verify, card, card_path
from ofq_deploy.pages.charts import BINS, bars, distributions, intervals, ticks
from ofq_deploy.pages.html import TEMPLATES
from ofq_deploy.pages.report import render
from ofq_deploy.progress import Reporter
from ofq_deploy.results.kinds import decode
from ofq_deploy.results.record import keep, to_json
from ofq_deploy.results.verdicts import validation_verdict
from ofq_deploy.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]


@pytest.fixture(scope="module")
def measured(portable_model: Path) -> list[Result]:
    """What validate, bench and inspect say of the tiny model, as it is read from JSON."""
    results = [
        api.validate(portable_model, images=4),
        api.bench(portable_model, seconds=0.0, batches=[1, 4], profile=True),
        api.inspect(portable_model),
    ]
    return [json.loads(to_json(result)) for result in results]


@pytest.fixture
def results(measured: list[Result]) -> list[Result]:
    """The same with every optional part, free to be changed."""
    validation, bench, contents = copy.deepcopy(measured)
    parity = validation["parity"][0]
    parity |= {
        "codes_differing": 3,
        "ties": 2,
        "histogram": {"-1": 2, "+7": 1},
        "first_divergence": "blocks.1.attn.input",
    }
    parity["operators"][4] |= {"differing": 3, "ties": 2, "worst": None, "histogram": {"-1": 2, "+7": 1}}
    for role in ("model", "baseline"):
        for row in bench[role]["latency_ms"]:
            row["samples"] = [row["p50"]] * 3 + [row["p99"] * 100]
    for row in bench["speedup"]:
        row |= {"interval": [0.51, 0.73], "conclusive": row["batch"] == 1, "noise": 0.25}
    bench["conditions"] = {"threads": 1, "affinity": [0, 1], "spinning": False}
    peaks = {"int8": 4.2e11, "float32": 1.1e11}
    bench["arithmetic"] = {"macs": 1234567, "bit_operations": 7654321, "peak_macs_per_s": peaks}
    bench["arithmetic"] |= {"floor_ms": 0.0123, "distance": 45.6}
    return [validation, bench, contents]


@pytest.fixture
def run_copy(tiny_run: Path, portable_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("model.*"))
    shutil.copyfile(portable_model, folder / portable_model.name)
    return folder


def _kept(run: Path, results: list[Result]) -> list[Path]:
    """Keep the results of validate and bench with the model in a run folder, as the commands do."""
    model = run / "model.portable.onnx"
    results[0]["model"] = results[1]["model"]["path"] = str(model)
    for result in results[:2]:
        keep(decode(result))
    return sorted(run.glob("*.json"))


class _Reader(HTMLParser):
    """The tags and the text of a page, style apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += "" if self.tags and self.tags[-1][0] == "style" else f"{data} "


def _text(page: str) -> str:
    return " ".join(_Reader(page).text.split())


# The page.


def test_the_page_loads_nothing_and_runs_nothing(results: list[Result]) -> None:
    page = render("title", results)
    tags = _Reader(page).tags

    assert {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "img", "base", "form"} == set()
    assert [key for _, given in tags for key in given if key in ("src", "href", "action") or key.startswith("on")] == []
    assert re.findall(r"https?:|url\(|@import|//", page.replace("<!doctype html>", "")) == []
    assert page.startswith("<!doctype html>")


def _hostile(value: Any, free: bool = False) -> Any:
    """Every text as one that would break out of text and of attributes, if it could; names too where they are free."""
    if isinstance(value, dict):
        return {
            _hostile(key) if free else key: _hostile(entry, key in ("packages", "bytes_by_kind", "peak_kernels"))
            for key, entry in value.items()
            if key != "histogram"
        } | ({"histogram": value["histogram"]} if "histogram" in value else {})
    if isinstance(value, list):
        return [_hostile(entry) for entry in value]
    return f"\"'><marquee onload=x>{value}</marquee>&amp;<script>" if isinstance(value, str) else value


def test_texts_from_files_stay_texts(results: list[Result]) -> None:
    hostile = [_hostile(result) | {"schema": result["schema"]} for result in results]
    page = render("<marquee>", hostile)
    tags = _Reader(page).tags

    assert not {"marquee", "script"} & {tag for tag, _ in tags}
    assert not any(key.startswith("on") for _, given in tags for key in given)
    label, operator = results[0]["by_class"][0]["label"], results[0]["parity"][0]["operators"][0]["operator"]
    for text in (label, operator, results[0]["data"], results[2]["layers"][0]["name"]):
        assert f"\"'><marquee onload=x>{text}</marquee>&amp;<script>" in _text(page)


def _every_kind(results: list[Result]) -> list[Result]:
    """Results that fill every template: beside those measured, of golden data, a model from elsewhere, runners and a GPU."""
    validation, bench, _ = results
    stamp = {key: validation[key] for key in ("command", "environment", "verdict", "model", "backend", "data")}
    counts = {"compared": 5, "differing": 2, "ties": 1}
    golden: Result = stamp | {"schema": "ofq-deploy/validate/1", "golden": "g.npz", "images": 2, "passed": False}
    golden |= {"run": "runs/mini", "faults": ["block 1"], "weights": [{"name": "blocks.0.attn.v", **counts}]}
    golden |= {"activations": [{"operator": "blocks.0.attn.input", **counts}]}
    golden |= {"floats": [{"operator": "embedding", "error": 1e-7}]}
    golden |= {"blocks": [{"block": "blocks.0", "max_error": 1e-7, "passed": True}]}
    foreign: Result = stamp | {
        "schema": "ofq-deploy/validate/1",
        "reference": "float.onnx",
        "passed": True,
        "faults": [],
    }
    foreign |= {"accuracy": validation["accuracy"], "accuracy_reference": validation["accuracy"]}
    foreign |= {"tensors": [{"name": "a tensor", "error": None}], "first_beyond_tolerance": {"name": "a tensor"}}
    parity: Result = stamp | {"schema": "ofq-deploy/parity/1", "leader": "torch", "follower": "ort-cpu", "passed": True}
    parity |= {"parity": validation["parity"], "faults": ["a runner"]}
    settings = {"load_ms": 1.0, "plan_bytes": 10, "device_memory_bytes": 10}
    engine: Result = {"batch": 1, "engine": {"settings": settings}}
    engine |= {"products": {"integer": 1, "float": 0, "small": 0, "fused_attention": 0}}
    engine |= {"against_onnxruntime": {"same_prediction": 1, "images": 1}}
    latency = [row | {"form": "a form"} for row in bench["model"]["latency_ms"]]
    timed = {"path": bench["model"]["path"], "what": "an engine", "latency_ms": latency, "batches": [engine]}
    gpu: Result = stamp | {"schema": "ofq-deploy/bench-gpu/1", "model": timed, "passed": False, "faults": ["an engine"]}
    gpu |= {"gpu": {"name": "a GPU", "capability": "9.0", "driver": "1.2"}, "speedup": bench["speedup"]}
    kernels = {"arithmetic": bench["arithmetic"] | {"peak_kernels": {"int8": "a kernel"}}}
    return [*results, golden, foreign, parity, gpu, bench | kernels]


def test_no_template_takes_a_text_for_markup(results: list[Result]) -> None:
    """Each text with markup gives the same elements as the text without, and is found in the page as it is."""
    results[1]["baseline"]["path"] = "other.onnx"  # not the run's float model, whose name decides what is shown
    plain = _every_kind(results)
    hostile = [_hostile(result) | {"schema": result["schema"]} for result in copy.deepcopy(plain)]
    for kind in (plain, hostile):  # a second model, so that they stand beside one another
        kind.append(kind[2] | {"model": f"{kind[2]['model']}.other"})
    page = render("<marquee>title</marquee>", hostile, note="<marquee>note</marquee>")
    text = _text(page)
    expected = ["<marquee>title</marquee>", "<marquee>note</marquee>"]
    expected += [
        f"\"'><marquee onload=x>{value}</marquee>&amp;<script>"
        for value in ("blocks.0", "embedding", "a tensor", "a runner", "a GPU", "a kernel", "a form", "an engine")
    ]

    assert [tag for tag, _ in _Reader(render("title", plain, note="note")).tags] == [
        tag for tag, _ in _Reader(page).tags
    ]
    assert [words for words in expected if words not in text] == []


class _Typed(msgspec.Struct):
    there: int = 0
    left_out: int | msgspec.UnsetType = msgspec.UNSET
    empty: int | None = None


@pytest.mark.parametrize("result", [_Typed(), {"there": 0, "empty": None}], ids=["of a type", "a dictionary"])
def test_templates_ask_what_is_there(result: Any) -> None:
    fields = ("there", "left_out", "empty", "unknown")
    found = [html._environment().compile_expression(f"result.{name} is present")(result=result) for name in fields]

    assert found == [True, False, False, False]


def test_the_numbers_are_there(results: list[Result]) -> None:
    validation, bench, contents = results
    text = _text(render("title", results)).replace("\xa0", " ")
    accuracy, weights = validation["accuracy"], validation["weights"]
    expected = [validation["verdict"], bench["verdict"]]
    expected += [
        "{:.2f} % ({:.1f} to {:.1f})".format(accuracy[k], *accuracy[f"{k}_interval"]) for k in ("top1", "top5")
    ]
    expected += [f"{validation[key]:.2f} %" for key in ("top1_torch", "top1_float", "agreement")]
    expected += [f"{weights['codes_compared']:,} {weights['codes_differing']}", f"{accuracy['images']:,} test images"]
    for pair in validation["parity"]:
        expected.append(
            f"{pair['codes_compared']:,} {pair['codes_differing']} {pair['ties']} {pair['worst_float_error']:.1e}"
        )
        expected += [f"{row['operator']} {row['compared']:,} {row['differing']}" for row in pair["operators"]]
    expected += ["blocks.1.attn.input", "\u22121: 2, +7: 1", "not finite"]
    expected += [f"{row['label']} {row['images']} {row['top1']:.2f} %" for row in validation["by_class"]]
    for role in ("model", "baseline"):
        for row in bench[role]["latency_ms"]:
            expected.append(
                " ".join(f"{row[key]:.3f}" for key in ("p50", "p90", "p99")) + f" {row['images_per_s']:,.0f}"
            )
        run = bench[role]["executed"]
        expected.append(f"{bench[role]['file_bytes']:,} {bench[role]['load_ms']:.0f} {bench[role]['peak_mb']:.1f}")
        expected.append(f"{run['integer']} {run['float']} {run['small']}")
    expected += [f"{row['ratio_of_medians']:.2f} (0.51 to 0.73)" for row in bench["speedup"]]
    noisy = bench["model"]["latency_ms"][1]
    expected.append(f"{noisy['calls']} {bench['speedup'][1]['ratio_of_medians']:.2f}, not conclusive")
    expected += ["Too noisy to conclude: batch 4.", "affinity: 0, 1", "1 of 4 samples lie beyond"]
    expected += ["1,234,567", "7,654,321", "420.0 GMAC/s", "110.0 GMAC/s", "0.0123 ms", "45.6 times"]
    expected += [f"{kind} {size:,} B" for kind, size in contents["bytes_by_kind"].items()]
    for row in contents["layers"]:
        shape = "x".join(map(str, row["shape"]))
        bits = f"{row['bits_trained']} {row['bits_stored']:g} {row['bits_computed']} {row['act_bits']}"
        expected.append(f"{row['name']} {shape} {bits} {row['bytes']:,}")
    expected += [row["name"] for row in bench["model"]["profile"]["roles"][:12]]
    expected += [str(v) for v in contents["environment"]["packages"].values()]
    expected += [result["command"] for result in results] + [f"sha256 {contents['model_sha256']}"]

    assert [words for words in expected if words not in text] == []


SECTIONS = {"validate": {"Accuracy", "Proof"}, "inspect": {"Size", "Bits trained, stored and computed"}}
SECTIONS["bench"] = {f"{name} in ort-cpu" for name in ("Speed", "Arithmetic", "Where the time goes")}


@pytest.mark.parametrize("kept", [(0,), (1,), (2,), (0, 2), (1, 0)], ids=str)
def test_sections_appear_when_their_data_is_there(kept: tuple[int, ...], results: list[Result]) -> None:
    chosen = [results[index] for index in kept]
    titles = re.findall(r"<h3>(.*?)</h3>", render("title", chosen))

    assert set(titles) == set().union(*(SECTIONS[result["schema"].split("/")[1]] for result in chosen))


def test_parts_that_were_not_measured_leave_no_trace(measured: list[Result], results: list[Result]) -> None:
    bench = copy.deepcopy(measured[1])
    for key in ("profile",):
        del bench["model"][key], bench["baseline"][key]
    for row in bench["speedup"]:
        row.pop("interval", None)
    bench.pop("arithmetic", None)
    for role in ("model", "baseline"):
        for row in bench[role]["latency_ms"]:
            row.pop("samples", None)
    page = render("title", [bench])

    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Speed in ort-cpu"]
    assert "<svg" not in page
    assert "<svg" in render("title", results)


def test_a_comparison_of_two_runners_is_a_section_of_its_own(portable_model: Path, results: list[Result]) -> None:
    compared = json.loads(to_json(api.parity(portable_model, leader="ort-cpu", follower="ort-cpu:plain", images=2)))
    page = render("title", [*results, compared])

    assert "<h3>ort-cpu:plain against ort-cpu</h3>" in page
    assert compared["verdict"] in _text(page)
    assert f"{compared['parity'][0]['codes_compared']:,}" in page


def test_no_labels_no_accuracy(results: list[Result]) -> None:
    validation = results[0]
    for key in ("top1", "top1_interval", "top5", "top5_interval"):
        del validation["accuracy"][key]
    validation |= {"top1_runtime": None, "top1_torch": None, "by_class": []}
    text = _text(render("title", [validation]))

    assert "They have no labels." in text
    assert "Top-1" not in text


def test_a_negative_verdict_is_told_first_and_every_fault(results: list[Result]) -> None:
    results[0] |= {"passed": False, "verdict": "Not proven: a & b.", "faults": ["a & b", "c"]}
    page = render("title", results)

    assert '<p class="verdict bad"><strong>Not proven:</strong> a &amp; b.</p>' in page
    assert "Fault: a &amp; b" in page
    assert "Fault: c" in page


@pytest.mark.parametrize(("flips", "end"), [(0, "2 images."), (3, "2 images, after following 3 rounding ties.")])
def test_a_comparison_with_golden_data_tells_the_ties_that_it_followed(flips: int, end: str) -> None:
    golden = {"faults": [], "golden": "g.npz", "images": 2, "blocks": [{"flips": []}, {"flips": [{}] * flips}]}

    assert validation_verdict(golden) == f"Proven: the run computes what the official code computed on {end}"


def test_models_stand_beside_one_another(results: list[Result]) -> None:
    second = copy.deepcopy(results)
    second[0]["model"] = second[1]["model"]["path"] = second[2]["model"] = "other.onnx"
    page = render("title", [*results, *second])
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    float_row = f"float model 32 / 32 {results[0]['top1_float']:.2f} % {results[1]['baseline']['file_bytes']:,} B"

    assert titles == ["Models", "model.portable.onnx", "other.onnx", "Environment", "Reproduce"]
    assert float_row in _text(page)
    for name, shown in (("elsewhere/model.portable.onnx", results[0]["model"]), ("other.onnx", "model.portable.onnx")):
        second[0]["model"] = second[1]["model"]["path"] = second[2]["model"] = name
        verdicts = re.findall(r'<p class="verdict.*?">(.*?)</p>', render("title", [*results, *second]))
        assert f'<span class="quiet">{shown}</span><br><strong>Proven:</strong> the model' in verdicts[0]
        assert f'<span class="quiet">{name}, ort-cpu</span><br>batch 1' in verdicts[3]
    second[0]["top1_float"] += 1  # another run's float model
    assert "float model 32 / 32" not in _text(render("title", [*results, *second]))


def test_environments_that_differ_are_told_apart(results: list[Result]) -> None:
    results[1]["environment"]["cpu"] = "another one"
    text = _text(render("title", results))

    assert text.count(results[1]["command"]) == 2  # with its environment, and to reproduce
    assert "cpu another one" in text


# Charts.


def _widths(html: str) -> list[float]:
    return [float(width) for width in re.findall(r"width:([\d.]+)%", html)]


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=8))
def test_bars_are_as_long_as_their_values(values: list[float]) -> None:
    widths = _widths(bars([(str(k), value, "") for k, value in enumerate(values)], "caption"))

    np.testing.assert_allclose(widths, 100 * np.array(values) / (max(values) or 1), atol=0.006)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
def test_the_dot_lies_in_its_interval(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    html = intervals([("row", value, (low, high), "")], "caption", mark=50.0)
    left, dot = (float(re.findall(rf'class="{name}" style="left:([\d.]+)%', html)[0]) for name in ("band", "dot"))
    (width,) = _widths(html)

    assert 0 <= left <= dot + 0.02
    assert dot <= left + width + 0.02
    assert left + width <= 100.01


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_within(low: float, length: float) -> None:
    found = ticks(low, low + length)

    assert 1 <= len(found) <= 6
    assert all(low - 1e-9 * length <= tick <= low + length * (1 + 1e-9) for tick in found)
    np.testing.assert_allclose(np.diff(found), np.diff(found)[0] if len(found) > 1 else [], rtol=1e-6)


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=60))
def test_the_histogram_counts_every_sample(samples: list[float]) -> None:
    p50, p90, p99 = np.percentile(samples, [50, 90, 99])
    html = distributions([("row", samples, {"p50": p50, "p90": p90, "p99": p99})], "ms")
    heights = [40 - float(y) for y in re.findall(r"V([\d.]+)h1", html)]
    beyond = int((re.findall(r"(\d+) of \d+ samples lie beyond", html) or ["0"])[0])
    end = min(1.2 * p90, 4 * p50)

    assert len(heights) == BINS
    assert max(heights) == pytest.approx(40)
    assert sum(height > 0 for height in heights) <= len(samples) - beyond
    if end > min(samples):
        assert beyond == sum(sample > end for sample in samples)


def _colours() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", (TEMPLATES / "style.css").read_text(), re.DOTALL)
    found = {name: dict(re.findall(r"--(\w+): (#\w{6})", text)) for name, text in (("light", light), ("dark", dark))}
    assert found["light"].keys() == found["dark"].keys()
    return found


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return float(
        np.dot([0.2126, 0.7152, 0.0722], [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts])
    )


def _contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(scheme: str) -> None:
    colours = _colours()[scheme]
    texts = [("text", 4.5), ("quiet", 4.5), ("own", 4.5), ("good", 4.5), ("bad", 4.5), ("other", 3)]

    for name, least in texts:
        for ground in ("page", "soft"):
            assert _contrast(colours[name], colours[ground]) >= least, (name, ground)


# In a browser.


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(_chromium() is None, reason="no Chromium here")
def test_no_window_scrolls_sideways(results: list[Result], tmp_path: Path) -> None:
    """Long names included; the tool fails when a page is wider than its window."""
    results[0]["model"] = results[1]["model"]["path"] = results[2]["model"] = f"{'long/' * 60}{'x' * 300}.onnx"
    results[0]["by_class"][0]["label"] = "l" * 400
    second = copy.deepcopy(results)
    second[0]["model"] = second[1]["model"]["path"] = second[2]["model"] = "other.onnx"
    page = tmp_path / "page.html"
    page.write_text(render("y" * 300, [*results, *second]).replace("<details>", "<details open>"))
    command = [sys.executable, *map(str, (ROOT / "tools" / "screenshots.py", page, "-o", tmp_path / "shots"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "takes 390 of 390 pixels" in done.stdout
    assert len({sha256(file) for file in (tmp_path / "shots").glob("*.png")}) == 4  # dark is not light

    page.write_text(page.read_text().replace("</body>", '<div style="width: 500px">wide</div></body>'))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout


# The command.


class _Heard(Reporter):
    def __init__(self) -> None:
        super().__init__(quiet=False)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_results_are_kept_beside_models_of_runs_alone(results: list[Result], run_copy: Path, tmp_path: Path) -> None:
    names = ["manifest.json", "model.portable.bench.ort-cpu.json", "model.portable.validate.ort-cpu.json"]
    assert [path.name for path in _kept(run_copy, results)] == names

    outside = tmp_path / "outside"
    outside.mkdir()
    results[0]["model"] = str(outside / "model.onnx")
    keep(decode(results[0]))
    assert list(outside.iterdir()) == []


def test_a_report_of_a_run(results: list[Result], run_copy: Path) -> None:
    _kept(run_copy, results)
    answer = api.report(run_copy)
    page = (run_copy / "report.html").read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", page)

    assert answer["report"] == str(run_copy / "report.html")
    assert answer["results"] == 3
    assert answer["cards"] == [str(run_copy / "model.portable.md")]
    assert set(titles) == set().union(*SECTIONS.values())
    with pytest.raises(OutputError, match=r"report\.html exists already; pass --force"):
        api.report(run_copy)
    assert api.report(run_copy, force=True, output=None)["results"] == 3


def test_a_report_of_a_folder_with_results(results: list[Result], tmp_path: Path) -> None:
    for index, result in enumerate(results):
        write_text(tmp_path / f"{index}.json", to_json(result), False)
    (tmp_path / "foreign.json").write_text('{"schema": "other"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.json").write_text('{"schema": "ofq-deploy/val')
    answer = api.report(tmp_path, output=tmp_path / "page.html")

    assert (answer["results"], answer["cards"]) == (3, [])
    assert (tmp_path / "page.html").read_text() == render(f"ofq-deploy report: {tmp_path.name}", results)


def test_results_about_another_file_are_left_out(results: list[Result], run_copy: Path) -> None:
    _kept(run_copy, results)
    model = run_copy / "model.portable.onnx"
    model.write_bytes(api.export(run_copy, opset=22, output=run_copy / "new.onnx").read_bytes())
    heard = _Heard()
    expected = f"{run_copy} holds no result of validate or bench; make one with: ofq-deploy validate, ofq-deploy bench"
    with pytest.raises(DataError) as error:
        api.report(run_copy, report=heard)

    assert str(error.value) == expected
    assert [
        line.endswith("is about another model.portable.onnx than the one beside it and is left out; make it again")
        for line in heard.lines
    ] == [True, True]
    assert not (run_copy / "report.html").exists()


def test_moved_runs_keep_their_results(results: list[Result], run_copy: Path, tmp_path: Path) -> None:
    _kept(run_copy, results)
    moved = run_copy.rename(tmp_path / "moved")
    api.report(moved)

    titles = re.findall(r"<h[23]>(.*?)</h[23]>", (moved / "report.html").read_text())
    assert titles[:3] == ["model.portable.onnx", "Accuracy", "Proof"]
    assert "Size" in titles[: titles.index("Environment")]
    assert titles.count("model.portable.onnx") == 1


def test_a_folder_without_results_is_refused(run_copy: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, run_copy):
        with pytest.raises(DataError) as error:
            api.report(folder)
        assert str(error.value).startswith(f"{folder} holds no result of validate or bench; make one with: ")
    for wrong in (tmp_path / "absent", run_copy / "model.portable.onnx"):
        with pytest.raises(RunError) as refused:
            api.report(wrong)
        assert str(refused.value) == f"{wrong} is no folder; expected a run folder or a folder with results of -o"
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize("damage", ["parity", "accuracy", "weights", "environment", "verdict", "command"])
def test_a_damaged_result_is_named(damage: str, results: list[Result], tmp_path: Path) -> None:
    results[0][damage] = 3 if damage != "accuracy" else {"top1": 1}
    if damage in ("verdict", "command"):
        del results[0][damage]
    file = tmp_path / "damaged.json"
    file.write_text(to_json(results[0]))
    with pytest.raises(DataError) as error:
        api.report(tmp_path)

    assert str(error.value).startswith(f"{file} is no whole result of validate (")
    assert str(error.value).endswith("); make it again, or remove it")


def test_a_result_of_another_version_is_refused(results: list[Result], tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    file.write_text(to_json(results[0] | {"schema": "ofq-deploy/validate/2"}))
    with pytest.raises(DataError) as error:
        api.report(tmp_path)

    assert str(error.value) == f"{file} has schema ofq-deploy/validate/2, this version reads ofq-deploy/validate/1"


@pytest.fixture
def in_folder(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run_copy.parent.parent)
    return run_copy


def test_report_option_and_command_as_they_are_typed(in_folder: Path) -> None:
    runner = CliRunner()
    model = "runs/tiny/model.portable.onnx"
    measure = ["bench", model, "--seconds", "0", "--quiet"]
    done = runner.invoke(cli.app, [*measure, "--report", "page.html", "--json"])
    assert done.exit_code == 0, done.output
    page = Path("page.html").read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", page)

    assert json.loads(done.stdout)["schema"] == "ofq-deploy/bench/1"
    assert {"Speed in ort-cpu", "Size", "Bits trained, stored and computed"} <= set(titles)
    assert "Proof" not in titles
    again = runner.invoke(cli.app, [*measure, "--report", "page.html"])
    assert isinstance(again.exception, OutputError)
    assert str(again.exception) == "page.html exists already; pass --force to replace it or -o for another place"
    assert Path("page.html").read_text() == page
    both = runner.invoke(cli.app, [*measure, "--report", "both", "-o", "./both"])
    assert both.exit_code == 2
    assert "both cannot hold the page and the JSON object" in " ".join(both.output.split())
    assert not Path("both").exists()

    done = runner.invoke(cli.app, ["report"])  # the newest run
    assert (done.exit_code, done.stdout) == (0, "runs/tiny/report.html\n"), done.output
    assert "runs/tiny/model.portable.onnx" in Path("runs/tiny/report.html").read_text()


# The model card.


def test_export_writes_a_card(tiny_run: Path, tmp_path: Path) -> None:
    model = api.export(tiny_run, target="ort-cpu", output=tmp_path / "small.onnx")
    text = (tmp_path / "small.md").read_text()
    contents = api.inspect(model)
    top1 = json.loads((tiny_run / "manifest.json").read_text())["results"]["test_top1"]

    assert text.startswith(f"{MARKER}\n\n# small.onnx\n")
    for words in (
        "4-bit weights and 4-bit activations",
        "`ort-cpu`",
        "StatsQ",
        "query-key reparameterization",
        "10 labels",
    ):
        assert words in text
    assert f"sha256 `{sha256(model)}`" in text
    assert f"{contents['file_bytes']:,} bytes: packed codes {contents['bytes_by_kind']['packed codes']:,}" in text
    assert f"top-1 on the test images {top1:.2f} %" in text
    assert "Proof" not in text


def test_the_float_model_has_a_card_of_its_own(tiny_run: Path, tmp_path: Path) -> None:
    text = card_path(api.export(tiny_run, target="fp32", output=tmp_path / "float.onnx")).read_text()

    assert "float32: the model that a quantized one of the same run started from" in text
    assert "StatsQ" not in text
    assert "ofq-deploy validate" not in text


def test_the_float_model_of_an_imported_checkpoint_is_called_what_it_is(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "imported", ignore=shutil.ignore_patterns("model.*"))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"results": {}}))
    text = card_path(api.export(run, target="fp32")).read_text()

    assert "an imported checkpoint's latent weights" in text
    assert "started from" not in text


def test_a_report_brings_the_card_up_to_date(results: list[Result], run_copy: Path) -> None:
    _kept(run_copy, results)
    api.report(run_copy)
    text = (run_copy / "model.portable.md").read_text()

    assert results[0]["verdict"] in text
    assert results[1]["verdict"] in text
    assert f"Top-1 on {results[0]['accuracy']['images']} test images of digits" in text
    assert all(f"Batch {row['batch']}: median {row['p50']:.3f} ms" in text for row in results[1]["model"]["latency_ms"])

    (run_copy / "model.portable.md").write_text("my own notes")
    heard = _Heard()
    answer = api.report(run_copy, force=True, report=heard)
    assert answer["cards"] == []
    assert "model.portable.md exists already and is no card of ours" in heard.lines[0]
    assert (run_copy / "model.portable.md").read_text() == "my own notes"


def test_the_code_of_the_card_predicts_what_predict_predicts(tiny_run: Path, tmp_path: Path) -> None:
    model = api.export(tiny_run, output=tmp_path / "model.onnx")
    wide = np.kron(load_digits().images[7].T * 15, np.ones((3, 4)))  # not square, not of the model's size
    Image.fromarray(wide.astype(np.uint8)).save(tmp_path / "image.png")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "model.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    best = api.predict([tmp_path / "image.png"], model=model)[0]["top5"][0]["label"]

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[{best}]\n"
    assert len(code.splitlines()) <= 10


@pytest.mark.parametrize("shape", [(49, 70), (30, 98), (16, 16), (107, 100)])
def test_the_code_of_the_card_prepares_images_as_validate_does(
    shape: tuple[int, int], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 / 49 * 49 is less than 16: sizes are rounded where the runner rounds them."""
    model = api.export(tiny_run, output=tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[274] = 6  # lies on its side
    image.save(tmp_path / "image.png", exif=image.getexif())
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "model.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(code.rpartition("print(")[0], found)  # all but the last line

    expected = load_image(tmp_path / "image.png", OnnxFile(model).described.preprocessing)
    np.testing.assert_allclose(found["x"][0], expected, atol=1e-6)


def test_the_card_names_what_each_result_is(results: list[Result], run_copy: Path) -> None:
    validation, bench, contents = results
    engine = {"backend": "tensorrt", "gpu": {"name": "NVIDIA H100", "driver": None}, "passed": True}
    parity = validation | {"follower": "openvino", "leader": "torch", "verdict": "Equal: all codes."}
    del parity["accuracy"]
    shown = [validation, bench, bench | engine, parity | {"schema": "ofq-deploy/parity/1"}]
    text = card(OnnxFile(run_copy / "model.portable.onnx"), contents, "name.onnx", run_copy, shown)

    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    expected = ["Proof and accuracy in ort-cpu", "Latency in ort-cpu", "Latency in tensorrt", "openvino against torch"]
    assert [title for title in titles if title in expected] == expected
    assert "On NVIDIA H100, driver unknown. " in text
    assert "openvino 20" not in text  # it had no part in these


def test_an_openvino_model_is_verified_in_openvino() -> None:
    assert _verify("m.onnx", TARGETS["openvino"]) == "ofq-deploy validate m.onnx --run RUN_FOLDER --backend openvino"
    assert _verify("m.onnx", TARGETS["ort-cpu"]) == "ofq-deploy validate m.onnx --run RUN_FOLDER"
    assert _verify("m.onnx", TARGETS["fp32"]) == "ofq-deploy bench m.onnx"


def test_a_file_in_the_place_of_the_card_is_kept(tiny_run: Path, tmp_path: Path) -> None:
    notes, model = tmp_path / "model.md", tmp_path / "model.onnx"
    notes.write_text("my own notes")
    expected = f"{notes} exists already and is no card of ours; pass --force to replace it or -o for another place"
    with pytest.raises(OutputError) as error:
        api.export(tiny_run, output=model)

    assert str(error.value) == expected
    assert notes.read_text() == "my own notes"
    assert not model.exists()
    api.export(tiny_run, output=model, force=True)
    assert notes.read_text().startswith(MARKER)
    model.unlink()
    api.export(tiny_run, output=model)  # a card of ours gives way without a word


def test_a_model_cannot_be_called_as_its_card(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as error:
        api.export(tiny_run, output=tmp_path / "model.md")

    assert str(error.value) == f"{tmp_path / 'model.md'} is the name of a model card; name the model model.onnx"
    assert list(tmp_path.iterdir()) == []
