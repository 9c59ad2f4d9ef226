"""Files of arrays and tables, and everything that can be wrong with them."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from data.array_files import read_numpy, read_table
from lipschitz.errors import InputError


def cut(path):
    np.savez(path.with_suffix(".npz"), x=np.random.default_rng(0).random(1000))
    content = path.with_suffix(".npz").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path):
    np.savez_compressed(path.with_suffix(".npz"), x=np.random.default_rng(0).random(1000))
    content = bytearray(path.with_suffix(".npz").read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def cut_array(path):
    np.save(path.with_suffix(".npy"), np.zeros(100))
    path.write_bytes(path.with_suffix(".npy").read_bytes()[:300])


def zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "hello")


def objects(path):
    np.save(path.with_suffix(".npy"), np.array([1, "a"], dtype=object))
    path.write_bytes(path.with_suffix(".npy").read_bytes())


def objects_in_zip(path):
    np.savez(path.with_suffix(".npz"), x=np.array([1, "a"], dtype=object))
    path.write_bytes(path.with_suffix(".npz").read_bytes())


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (cut, "is damaged"),
        (flipped, "is damaged"),
        (cut_array, "is damaged"),
        (zip_of_text, "is a zip file without arrays"),
        (objects, "holds Python objects"),
        (objects_in_zip, "holds Python objects"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"PK"), "is not a numpy .npz file"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "is damaged"),
        (lambda path: path.write_text("1,2\n"), "is not a numpy .npz file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_numpy_files_that_cannot_be_read(tmp_path, write, words):
    path = tmp_path / "points"
    write(path)
    with pytest.raises(InputError, match=f"^--input .*points.* {words}"):
        read_numpy("--input", path)


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("1,2\n3,4\n", None, [[1, 2], [3, 4]]),
        ("a,b\n1,2\n", ("a", "b"), [[1, 2]]),
        ("\ufeffa;b\r\n1;2\r\n\r\n", ("a", "b"), [[1, 2]]),
        ("# made by hand\n1\t-2e-3\n", None, [[1, -0.002]]),
        ("1.0 2.0\n3.0  4.0\n", None, [[1, 2], [3, 4]]),
        ('"a, in m", b\n1, 2\n', ("a, in m", "b"), [[1, 2]]),
        ("0,1,2\n5,6,7\n", ("0", "1", "2"), [[5, 6, 7]]),
        ("0,1\n5,6\n", None, [[0, 1], [5, 6]]),
        ("0,1,y\n5,6,7\n", ("0", "1", "y"), [[5, 6, 7]]),
        ("7\n", None, [[7]]),
        ("0,1,2\n", None, [[0, 1, 2]]),
        ("1,2,3\n4,5,6\n", None, [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_tables(tmp_path, text, names, values):
    (tmp_path / "t.csv").write_text(text)
    table = read_table("--input", tmp_path / "t.csv")
    assert table.names == names
    assert table.values.tolist() == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n", "holds no numbers"),
        ("\n", "holds no numbers"),
        ("", "is empty"),
        ("1,2\n3\n", "line 2 has 1 columns, expected 2"),
        ("a,sex\n1,male\n", "line 2, column 'sex': 'male' is not a number"),
        ("1,2\n# no\n3,\n", "line 3, column 2: '' is not a number"),
        ("0.5,1o\n3,4\n", "line 1, column 2: '1o' is not a number"),
    ],
)
def test_tables_that_are_none(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_table("--input", tmp_path / "t.csv")


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="is not text"):
        read_table("--input", tmp_path / "t.csv")
