"""Folders without labels, tables of files and labels, rows of encoded images, and files that name classes."""

import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import convert
from PIL import Image

from ofq_deploy import api
from ofq_deploy.cli import texts
from ofq_deploy.data.classes import UNKNOWN, Classes, read_classes
from ofq_deploy.data.datasets import load_dataset
from ofq_deploy.data.imagenet import names, wnids
from ofq_deploy.data.images import load_image
from ofq_deploy.errors import BackendMissing, DataError
from ofq_deploy.results.proof import ProofResult
from tests.support.real_data import real

DIGITS = tuple("0123456789")


def images(folder: Path, count: int = 3) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    files = [f"{index}.png" for index in range(count)]
    for file in files:
        Image.fromarray(generator.integers(0, 255, (20, 20), dtype=np.uint8)).save(folder / file)
    return files


def table(path: Path, rows: list[tuple[str, str]], head: str = "file,label") -> str:
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return str(path)


def test_a_folder_of_images_alone_has_no_labels(tmp_path: Path) -> None:
    images(tmp_path)
    data = load_dataset(str(tmp_path), 16, labels=DIGITS)

    assert not data.test.labelled
    assert data.test.classes.tolist() == [UNKNOWN] * 3
    assert data.test.images(range(3)).shape == (3, 3, 16, 16)


@pytest.mark.parametrize("spelled", [("7", "0", "7"), ("seven", "zero", "seven")])
def test_a_table_names_classes_by_index_or_label(spelled: tuple[str, ...], tmp_path: Path) -> None:
    files = images(tmp_path / "pictures")
    rows = [(f"pictures/{file}", label) for file, label in zip(files, spelled, strict=True)]
    labels = ("zero", "one", "two", "three", "four", "five", "six", "seven")

    data = load_dataset(table(tmp_path / "data.csv", rows), 16, labels=labels)

    assert data.test.classes.tolist() == [7, 0, 7]


def test_a_number_that_is_a_label_is_no_index(tmp_path: Path) -> None:
    """Class folders are sorted as text: a model that learnt from 0 to 10 has "10" in third place."""
    files, labels = images(tmp_path), tuple(sorted(map(str, range(11))))
    rows = list(zip(files, ("2", "10", "0"), strict=True))

    assert load_dataset(table(tmp_path / "d.csv", rows), 16, labels=labels).test.classes.tolist() == [3, 2, 0]


def test_a_table_finds_imagenet_by_its_ids(tmp_path: Path) -> None:
    files = images(tmp_path)
    rows = [(file, wnids()[index]) for file, index in zip(files, (5, 0, 999), strict=True)]

    assert load_dataset(table(tmp_path / "d.csv", rows), 16, labels=names()).test.classes.tolist() == [5, 0, 999]


def test_more_columns_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "d.csv").write_text("\ufefflabel,who,file\n3,me,0.png\n", encoding="utf-8")

    assert load_dataset(str(tmp_path / "d.csv"), 16, labels=DIGITS).test.classes.tolist() == [3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows with the columns file and label"),
        ("file,label\n", "no rows with the columns file and label"),
        ("path,class\n0.png,1\n", "no rows with the columns file and label"),
        ("file,label\n0.png\n", "no rows with the columns file and label"),
        ("file,label\n0.png,ten\n", "classes that the model does not know: ten"),
        ("file,label\n0.png,10\n", "classes that the model does not know: 10"),
        ("file,label\n0.png,1\nabsent.png,1\n", "names 1 files that do not exist, as "),
    ],
)
def test_tables_that_cannot_be_used_are_refused(text: str, said: str, tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "d.csv").write_text(text, encoding="utf-8")

    with pytest.raises(DataError) as caught:
        load_dataset(str(tmp_path / "d.csv"), 16, labels=DIGITS)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_or_binary_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00file")

    for name in ("absent.csv", "binary.csv"):
        with pytest.raises(DataError, match=name):
            load_dataset(str(tmp_path / name), 16, labels=DIGITS)


def test_validate_without_labels_proves_and_counts_agreement(
    tiny_run: Path, portable_model: Path, tmp_path: Path
) -> None:
    images(tmp_path / "data", 5)
    result = api.validate(portable_model, run=tiny_run, data=str(tmp_path / "data"), images=2)

    assert result["passed"]
    assert (result["top1_runtime"], result["top1_float"], result["by_class"]) == (None, None, [])
    assert {"agreement"} == set(result["against_float"])
    with pytest.raises(DataError, match="has no labels, and --max-drop needs them"):
        api.validate(portable_model, run=tiny_run, data=str(tmp_path / "data"), max_drop=1.0)


def test_nothing_can_be_trained_without_labels(tmp_path: Path) -> None:
    images(tmp_path / "data", 5)

    with pytest.raises(DataError, match="cannot be trained on"):
        api.train(overrides={"data": str(tmp_path / "data")}, output=tmp_path / "run")


# Rows: parquet files and data sets of the datasets library.


def rows(count: int = 4, labels: Sequence[object] = (3, 1, 4, 1)) -> dict[str, list[Any]]:
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        stream = BytesIO()
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    return {"image": encoded, "label": list(labels)}


def parquet(path: Path, columns: dict[str, list[Any]], features: str | None = None) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    described = {"huggingface": features} if features else None
    files.write_table(pyarrow.table(columns).replace_schema_metadata(described), path)
    return str(path)


def test_a_parquet_file_holds_images_and_labels(tmp_path: Path) -> None:
    columns = rows()
    data = load_dataset(parquet(tmp_path / "d.parquet", columns), 16, labels=DIGITS)
    plain = {"image": [row["bytes"] for row in columns["image"]], "label": ["3", "1", "4", "1"]}
    same = load_dataset(parquet(tmp_path / "plain.parquet", plain), 16, labels=DIGITS)

    assert data.test.classes.tolist() == same.test.classes.tolist() == [3, 1, 4, 1]
    assert (len(data.train), data.test.images(range(4)).shape) == (0, (4, 3, 16, 16))
    assert data.test.first_batch_sha256() == same.test.first_batch_sha256()
    file = tmp_path / "0.png"
    file.write_bytes(columns["image"][0]["bytes"])
    np.testing.assert_array_equal(data.test.load(0), load_image(file, data.preprocessing))


def test_a_folder_of_parquet_files_has_splits_to_train_on(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows(4))
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows(2, (0, 2)))
    parquet(tmp_path / "data" / "test.parquet", rows(1, (4,)))
    data = load_dataset(str(tmp_path), 16)

    assert data.train.classes.tolist() == [3, 1, 4, 1, 0, 2]
    assert data.test.classes.tolist() == data.validation.classes.tolist() == [4]
    assert data.labels == ("0", "1", "2", "3", "4")
    before = data.fingerprint
    parquet(tmp_path / "data" / "test.parquet", rows(2, (4, 4)))
    assert load_dataset(str(tmp_path), 16).fingerprint != before


def test_the_shared_sample_of_cifar10_is_read() -> None:
    data = load_dataset(str(real("data/cifar10")), 32)

    assert (len(data.train), len(data.test)) == (5000, 1000)
    assert np.bincount(data.test.classes).tolist() == [100] * 10


def test_rows_without_labels_are_unlabelled(tmp_path: Path) -> None:
    for labels in ((-1, -1, -1, -1), (None, 1, None, 1)):
        data = load_dataset(parquet(tmp_path / "d.parquet", rows(4, labels)), 16, labels=DIGITS)
        assert not data.test.labelled


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (rows(4, (3, 1, 10, -2)), "has labels outside the model's 10 classes (0 to 9): -2, 10"),
        (rows(2, ("cat", "3")), "has classes that the model does not know: cat; name them with --classes"),
        (rows(2, (0.5, 1.0)), "row 0 of {path} has the label 0.5; expected whole numbers, or names"),
        (rows(2, ("1", None)), "row 1 of {path} has the label None; expected whole numbers, or names"),
        ({"image": rows(1)["image"], "class": [1]}, "{path} lacks the column label; it has image, class"),
        ({"pixels": [1], "class": [1]}, "{path} lacks the column image and label; it has pixels, class"),
        ({"image": [], "label": []}, "{path} holds no rows"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(columns: dict[str, list[Any]], said: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", columns)

    with pytest.raises(DataError) as caught:
        load_dataset(path, 16, labels=DIGITS)
    assert said.format(path=path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_without_a_readable_image_is_named(tmp_path: Path) -> None:
    for value, said in (
        ({"bytes": b"no image", "path": None}, "row 1 of {path} is not a readable image ("),
        ({"bytes": None, "path": None}, "row 1 of {path} holds no image bytes"),
    ):
        columns = rows(3, (1, 2, 3))
        columns["image"][1] = value
        path = parquet(tmp_path / "d.parquet", columns)
        with pytest.raises(DataError) as caught:
            load_dataset(path, 16, labels=DIGITS).test.images(range(3))
        assert str(caught.value).startswith(said.format(path=path))


@pytest.mark.parametrize("features", ["{", "[1]", '{"info": {"features": {"label": {"names": 3}}}}'])
def test_a_parquet_file_that_describes_itself_wrongly_is_refused(features: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", rows(), features)

    with pytest.raises(DataError, match="describes its features in another way than the datasets library does"):
        load_dataset(path, 16, labels=DIGITS)


def test_a_damaged_or_absent_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(Path(parquet(tmp_path / "d.parquet", rows())).read_bytes()[:-20])

    with pytest.raises(DataError, match=r"cut.parquet is no readable parquet file \("):
        load_dataset(str(tmp_path / "cut.parquet"), 16)
    with pytest.raises(DataError, match=r"no data set .*absent.parquet"):
        load_dataset(str(tmp_path / "absent.parquet"), 16)


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "d.parquet"), ("datasets", "hf:a/b")])
def test_a_missing_package_is_named(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    said = r"is not installed; install it with: pip install 'ofq-deploy\[data\]'"
    with pytest.raises(BackendMissing, match=said) as caught:
        load_dataset(name, 16)
    assert caught.value.exit_code == 4


@pytest.fixture
def hub(tmp_path: Path) -> str:
    """A data set with two splits and named classes, as the datasets library saves it."""
    datasets = pytest.importorskip("datasets")
    names = ["cat", "dog", "bird"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    datasets.disable_progress_bars()
    parts = {"train": rows(4, (0, 1, 2, 1)), "test": rows(3, (2, 0, 1))}
    whole = datasets.DatasetDict({n: datasets.Dataset.from_dict(part, features) for n, part in parts.items()})
    whole.save_to_disk(str(tmp_path / "saved"))
    return f"hf:{tmp_path / 'saved'}"


def test_a_hub_data_set_has_its_splits_and_names(hub: str) -> None:
    data = load_dataset(hub, 16)

    assert (data.labels, data.train.classes.tolist(), data.test.classes.tolist()) == (
        ("cat", "dog", "bird"),
        [0, 1, 2, 1],
        [2, 0, 1],
    )
    assert data.test.images(range(3)).shape == (3, 3, 16, 16)
    assert load_dataset(f"{hub}:train", 16).test.classes.tolist() == [0, 1, 2, 1]


def test_names_of_a_hub_data_set_are_found_among_the_models(hub: str) -> None:
    """Its indices mean nothing to a model that has its classes in another order, or more of them."""
    assert load_dataset(hub, 16, labels=("dog", "fish", "cat", "bird")).test.classes.tolist() == [3, 2, 0]
    assert load_dataset(hub, 16, labels=("0", "1", "2")).test.classes.tolist() == [2, 0, 1]
    with pytest.raises(DataError, match="does not know: bird, cat, dog"):
        load_dataset(hub, 16, labels=DIGITS)
    with pytest.raises(DataError, match="does not know: bird; name them with --classes"):
        load_dataset(hub, 16, labels=("dog", "cat", "owl"))  # its cat is the second class there, not the first
    assert load_dataset(hub, 16, labels=("cat", "dog", "owl")).test.classes.tolist() == [2, 0, 1]


def test_a_hub_data_set_that_cannot_be_had_is_refused(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    with pytest.raises(DataError, match="has no split 'val'; it has train, test"):
        load_dataset(f"{hub}:val", 16)

    def fail(name: str) -> None:
        raise ConnectionError(f"Couldn't reach {name}\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError) as caught:
        load_dataset("hf:no/such", 16)
    assert str(caught.value) == (
        "hf:no/such cannot be loaded (Couldn't reach no/such); expected HUB/NAME or a folder; without a network it must "
        "be in the cache of the datasets library"
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail(f"asked the hub for {name}"))
    with pytest.raises(DataError, match=r"no data set 'no/such': it is neither .* nor hf:NAME"):
        load_dataset("no/such", 16)


# Files that name classes.


def classes(path: Path, text: str, labels: tuple[str, ...] = ("0", "1", "2")) -> Classes:
    path.write_text(text, encoding="utf-8")
    return read_classes(path, Classes.of(labels))


def test_a_line_per_class_names_them(tmp_path: Path) -> None:
    known = classes(tmp_path / "c.txt", "cat\ndog\nbird\n\n")

    assert known.labels == ("cat", "dog", "bird")
    assert known.find(["bird", "cat", "1"], "x") == {"bird": 2, "cat": 0, "1": 1}


def test_a_table_gives_classes_more_names(tmp_path: Path) -> None:
    known = classes(tmp_path / "c.csv", "index,wnid,name\n2,n01,a bird\n0,n02,cat\n2,n03,owl\n")

    assert known.labels == ("cat", "1", "a bird")
    assert known.find(["n01", "n02", "n03", "owl", "1"], "x") == {"n01": 2, "n02": 0, "n03": 2, "owl": 2, "1": 1}


def test_a_table_without_an_index_maps_folders_to_labels(tmp_path: Path) -> None:
    for folder in ("moggy", "woofer"):
        images(tmp_path / "data" / folder, 2)
    known = classes(tmp_path / "c.csv", "folder,name\nwoofer,dog\nmoggy,cat\n", ("cat", "dog", "bird"))
    data = load_dataset(str(tmp_path / "data"), 16, labels=known)

    assert known.labels == ("cat", "dog", "bird")
    assert data.test.classes.tolist() == [0, 0, 1, 1]


def test_a_name_of_two_classes_means_neither(tmp_path: Path) -> None:
    known = classes(tmp_path / "c.txt", "crane\nheron\ncrane\n")

    assert known.labels == ("crane", "heron", "crane")
    with pytest.raises(DataError, match="does not know: crane"):
        known.find(["crane"], "x")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.txt", "cat\ndog\n", "names 2 classes on 2 lines, the model has 3; expected the name of one class per line"),
        ("c.txt", "cat\n\ndog\n", "names 2 classes on 3 lines, the model has 3"),
        ("c.csv", "", "has no rows; expected the column index and columns of names"),
        ("c.csv", "index,name\n3,cat\n", "line 2 has the index '3'; expected 0 to 2"),
        ("c.csv", "index,name\n1,dog\nx,cat\n", "line 3 has the index 'x'; expected 0 to 2"),
        ("c.csv", "index,name\n1,\n", "line 2 holds no name"),
        ("c.csv", "folder,name\na,b\n", "line 2 has no column index and 0 classes that the model knows; expected one"),
        ("c.csv", "folder,name\n0,1\n", "line 2 has no column index and 2 classes that the model knows; expected one"),
        ("absent", None, "no file "),
        ("c.txt", b"\xff\xfe", "is no readable file of class names ("),
    ],
)
def test_class_files_that_cannot_be_used_are_refused(name: str, text: Any, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(DataError) as caught:
        read_classes(tmp_path / name, Classes.of(("0", "1", "2")))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validate_takes_folders_by_the_names_of_a_class_file(
    tiny_run: Path, portable_model: Path, tmp_path: Path
) -> None:
    for folder in ("three", "five"):
        images(tmp_path / "data" / folder, 2)
    with pytest.raises(DataError, match="does not know: five, three; name them with --classes"):
        api.validate(portable_model, run=tiny_run, data=str(tmp_path / "data"), images=1)
    (tmp_path / "c.csv").write_text("index,name\n3,three\n5,five\n")
    result = api.validate(
        portable_model, run=tiny_run, data=str(tmp_path / "data"), images=1, classes=tmp_path / "c.csv"
    )

    assert [(row["label"], row["images"]) for row in result["by_class"]] == [("three", 2), ("five", 2)]
    assert len(result["first_batch_sha256"]) == 64
    assert result["preprocessing"]["size"] == 16
    assert result["first_batch_sha256"][:16] in texts.validation_text(convert(result, ProofResult))
