"""Folders without labels, and tables of files and labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ofq_deploy import api
from ofq_deploy.datasets import UNKNOWN, load_dataset
from ofq_deploy.errors import DataError
from ofq_deploy.imagenet import names, wnids

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
