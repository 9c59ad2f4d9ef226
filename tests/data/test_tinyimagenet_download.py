"""The download script: unpacking, sorting, second runs, and its errors; no network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import real_formats

from data import load_data

SCRIPT = Path(__file__).resolve().parents[2] / "data/tinyImageNet/tinyimagenet_download.sh"


@pytest.fixture
def commands(tmp_path):
    """A folder of commands that come before the system's."""
    folder = tmp_path / "commands"
    folder.mkdir()
    return folder


def command(folder, name, body):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run(folder, commands):
    return subprocess.run(
        ["bash", str(SCRIPT), str(folder)],
        env=os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def refuse_network(commands):
    command(commands, "curl", "echo no network >&2; exit 6")


def test_an_unpacked_folder_is_sorted_and_loads(data_folder, commands):
    refuse_network(commands)
    top = real_formats.write_tiny_imagenet(data_folder)
    done = run(data_folder, commands)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (top / "val" / "images").exists()
    data = load_data("tinyimagenet", train=False)
    for index in (0, 77, 199):
        expected = real_formats.class_colour(index)
        colour = data.examples.loader(data.examples.samples[index][0]).getpixel((5, 5))
        assert max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= 3
    again = run(data_folder, commands)
    assert again.returncode == 0
    assert "sorting" not in again.stdout


def test_an_interrupted_sorting_is_finished(data_folder, commands):
    top = real_formats.write_tiny_imagenet(data_folder, classes=5)
    moved = top / "val" / "n10000000"
    moved.mkdir()
    (top / "val" / "images" / "val_4.JPEG").rename(moved / "val_4.JPEG")
    assert run(data_folder, commands).returncode == 0
    images = sorted(path.parent.name for path in (top / "val").glob("*/*.JPEG"))
    assert images == [f"n1000000{index}" for index in range(5)]


def test_download_unpack_sort(tmp_path, data_folder, commands):
    source = tmp_path / "server"
    real_formats.write_tiny_imagenet(source, classes=3)
    archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", source)
    # A curl that "downloads" the archive to the file after --output, and an md5sum that agrees.
    command(
        commands,
        "curl",
        f'while [ "$1" != --output ]; do shift; done; cp "{archive}" "$2"',
    )
    command(commands, "md5sum", "exit 0")
    done = run(data_folder, commands)
    assert (done.returncode, done.stderr) == (0, "")
    top = data_folder / "tiny-imagenet-200"
    assert len(list((top / "val").glob("n*/*.JPEG"))) == 3
    assert len(list((top / "train").glob("n*/images/*.JPEG"))) == 3


def assert_one_error_line(done, words):
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert words in lines[0]


def test_no_network(data_folder, commands):
    refuse_network(commands)
    assert_one_error_line(run(data_folder, commands), "cannot download http://cs231n.stanford.edu")


def test_damaged_archive(data_folder, commands):
    data_folder.mkdir()
    (data_folder / "tiny-imagenet-200.zip").write_bytes(b"PK")
    assert_one_error_line(run(data_folder, commands), "is damaged (wrong md5 sum); delete it")


def test_missing_annotations(data_folder, commands):
    top = real_formats.write_tiny_imagenet(data_folder, classes=1)
    (top / "val" / "val_annotations.txt").unlink()
    assert_one_error_line(run(data_folder, commands), "val_annotations.txt is missing")


def test_image_without_a_class(data_folder, commands):
    top = real_formats.write_tiny_imagenet(data_folder, classes=1)
    (top / "val" / "images" / "val_7.JPEG").write_bytes(b"")
    assert_one_error_line(run(data_folder, commands), "has images without a class")
