"""Adult: columns of the paper, scaling, one-hot, labels; damaged and missing files."""

from __future__ import annotations

import urllib.error

import numpy as np
import pytest
import real_formats

from data import adult, load_data
from lipschitz.errors import InputError

POSITIONS = {
    "age": 0,
    "fnlwgt": 10,
    "education-num": 27,
    "capital-gain": 63,
    "capital-loss": 64,
    "hours-per-week": 65,
}


def expected_row(record, train_records):
    """The encoding of one record, spelled out."""
    row = []
    for name in real_formats.ADULT_ORDER:
        if name in POSITIONS:
            seen = [other[name] for other in train_records]
            assert len(row) == POSITIONS[name]
            row.append((record[name] - min(seen)) / (max(seen) - min(seen)))
        else:
            values = sorted(real_formats.ADULT_VALUES[name])
            row += [float(record[name] == value) for value in values]
    return row


@pytest.mark.parametrize(("train", "indices"), [(True, range(42)), (False, range(3, 9))])
def test_encoding(data_folder, train, indices):
    real_formats.write_adult(data_folder)
    x, y = load_data("adult", train=train).take(0, 100)
    train_records = [real_formats.adult_record(index) for index in range(42)]
    expected = [expected_row(real_formats.adult_record(i), train_records) for i in indices]
    assert x.shape == (len(indices), 108)
    assert np.allclose(x.numpy(), expected)
    assert y.tolist() == [int(index % 3 == 0) for index in indices]


def test_continuous_columns_are_the_papers(data_folder):
    real_formats.write_adult(data_folder)
    assert adult.continuous_columns() == tuple(POSITIONS.values()) == (0, 10, 27, 63, 64, 65)


def test_a_constant_column_stays_finite(data_folder):
    folder = real_formats.write_adult(data_folder)
    records = [real_formats.adult_record(i) | {"capital-gain": 7} for i in range(42)]
    lines = [real_formats.adult_line(record, ">50K") for record in records]
    (folder / "adult.data").write_text("".join(lines))
    x, _ = load_data("adult", train=True).take(0, 42)
    assert x[:, POSITIONS["capital-gain"]].abs().max() == 0


def append(path, text):
    path.write_text(path.read_text() + text)


RECORD = real_formats.adult_record(0)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "adult.test",
            real_formats.adult_line(RECORD | {"race": "Martian"}, ">50K."),
            "race 'Martian' is in adult.test but not in adult.data",
        ),
        (
            "adult.data",
            real_formats.adult_line(RECORD | {"race": "Martian"}, ">50K"),
            "gives 109 columns, expected 108",
        ),
        (
            "adult.data",
            real_formats.adult_line(RECORD | {"age": "old"}, ">50K"),
            "is not the Adult data .* delete it",
        ),
        ("adult.data", real_formats.adult_line(RECORD, "rich"), "labels other than"),
        ("adult.data", "17, Private, 5\n", "is not the Adult data"),
    ],
)
def test_damaged_files(data_folder, name, text, words):
    folder = real_formats.write_adult(data_folder)
    append(folder / name, text)
    with pytest.raises(InputError, match=words) as error:
        load_data("adult", train=False)
    assert "adult" in str(error.value)


@pytest.mark.parametrize("content", ["", "<html>404</html>\n", "a,b\n" * 3, "\0\1"])
def test_files_that_are_something_else(data_folder, content):
    folder = real_formats.write_adult(data_folder)
    (folder / "adult.data").write_text(content)
    with pytest.raises(InputError, match="is not the Adult data"):
        load_data("adult", train=True)


def test_cut_off_file_has_too_few_columns(data_folder):
    real_formats.write_adult(data_folder, train_count=40)
    with pytest.raises(InputError, match="gives 106 columns, expected 108"):
        load_data("adult", train=True)


def test_missing_files_say_what_to_put_where(data_folder):
    with pytest.raises(InputError, match=r"download https://.*/adult.data into .*adult$"):
        load_data("adult", train=True)
    (real_formats.write_adult(data_folder) / "adult.test").unlink()
    assert len(load_data("adult", train=True)) == 42  # training needs no test file
    with pytest.raises(InputError, match=r"download https://.*/adult.test into .*adult$"):
        load_data("adult", train=False)


def test_download_and_its_failure(data_folder, tmp_path, monkeypatch):
    source = real_formats.write_adult(tmp_path / "server")
    monkeypatch.setenv("LIPSCHITZ_OFFLINE", "0")
    monkeypatch.setattr(adult, "_URL", source.as_uri())
    assert len(load_data("adult", train=False)) == 6
    assert sorted(path.name for path in (data_folder / "adult").iterdir()) == [
        "adult.data",
        "adult.test",
    ]

    def unreachable(url):
        raise urllib.error.URLError("Name or service not known")

    (data_folder / "adult" / "adult.test").unlink()
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(InputError, match=r"download failed: .*service not known.*; download"):
        load_data("adult", train=False)
