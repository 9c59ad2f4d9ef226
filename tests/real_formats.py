"""Writers of small data sets in the formats in which the real ones are published."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

_ADULT_TEXT = {
    "workclass": (
        "State-gov Self-emp-not-inc Private Federal-gov Local-gov ? Self-emp-inc Without-pay "
        "Never-worked"
    ),
    "education": (
        "Bachelors HS-grad 11th Masters 9th Some-college Assoc-acdm Assoc-voc 7th-8th Doctorate "
        "Prof-school 5th-6th 10th 1st-4th Preschool 12th"
    ),
    "marital-status": (
        "Never-married Married-civ-spouse Divorced Married-spouse-absent Separated "
        "Married-AF-spouse Widowed"
    ),
    "occupation": (
        "Adm-clerical Exec-managerial Handlers-cleaners Prof-specialty Other-service Sales "
        "Craft-repair Transport-moving Farming-fishing Machine-op-inspct Tech-support ? "
        "Protective-serv Armed-Forces Priv-house-serv"
    ),
    "relationship": "Not-in-family Husband Wife Own-child Unmarried Other-relative",
    "race": "White Black Asian-Pac-Islander Amer-Indian-Eskimo Other",
    "sex": "Male Female",
    "native-country": (
        "United-States Cuba Jamaica India ? Mexico South Puerto-Rico Honduras England Canada "
        "Germany Iran Philippines Italy Poland Columbia Cambodia Thailand Ecuador Laos Taiwan "
        "Haiti Portugal Dominican-Republic El-Salvador France Guatemala China Japan Yugoslavia "
        "Peru Outlying-US(Guam-USVI-etc) Scotland Trinadad&Tobago Greece Nicaragua Vietnam Hong "
        "Ireland Hungary Holand-Netherlands"
    ),
}
ADULT_VALUES = {name: text.split() for name, text in _ADULT_TEXT.items()}


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of bytes in MNIST's idx format: magic number, big-endian sizes, values."""
    header = bytes([0, 0, 8, array.ndim])
    return header + np.array(array.shape, dtype=">i4").tobytes() + array.astype(np.uint8).tobytes()


def mnist_arrays(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images [count, 28, 28] and labels [count]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count)


def write_mnist(folder: Path, train_count: int = 12, test_count: int = 5) -> dict[str, str]:
    """MNIST's four gzipped files under folder/MNIST/raw; returns their md5 sums by name."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    md5_sums = {}
    for part, count, seed in (("train", train_count, 0), ("t10k", test_count, 1)):
        images, labels = mnist_arrays(count, seed)
        for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            content = gzip.compress(idx_bytes(array), mtime=0)
            (raw / f"{name}-ubyte.gz").write_bytes(content)
            md5_sums[f"{name}-ubyte.gz"] = hashlib.md5(content).hexdigest()
    return md5_sums


def unpack_mnist(folder: Path) -> None:
    """Does `gunzip` on the files of `write_mnist`."""
    for path in (folder / "MNIST" / "raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))


def cifar_batch(count: int, seed: int) -> dict[str, object]:
    """One CIFAR-10 batch: rows of 3,072 bytes, the red, green and blue planes one after another."""
    rng = np.random.default_rng(seed)
    return {
        "batch_label": "a batch",
        "labels": [int(label) for label in rng.integers(0, 10, count)],
        "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        "filenames": ["image.png"] * count,
    }


def write_cifar(folder: Path, count: int = 4) -> dict[str, str]:
    """The unpacked cifar-10-batches-py (and its archive); returns md5 sums by file name."""
    contents = {f"data_batch_{i}": cifar_batch(count, i) for i in range(1, 6)}
    contents["test_batch"] = cifar_batch(count, 6)
    contents["batches.meta"] = {"label_names": [f"class {i}" for i in range(10)]}
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    md5_sums = {}
    for name, content in contents.items():
        # Protocol 2, as Python 2 wrote the published files.
        data = pickle.dumps(content, protocol=2)
        (batches / name).write_bytes(data)
        md5_sums[name] = hashlib.md5(data).hexdigest()
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, batches.name)
    md5_sums[archive.name] = hashlib.md5(archive.read_bytes()).hexdigest()
    return md5_sums


def class_colour(index: int) -> tuple[int, int, int]:
    """A colour that tells class `index` of `write_tiny_imagenet` from the others."""
    return (index, 255 - index, (index * 7) % 256)


def write_tiny_imagenet(folder: Path, classes: int = 200) -> Path:
    """tiny-imagenet-200 as unpacked: one image per class, the validation images not yet sorted."""
    top = folder / "tiny-imagenet-200"
    names = [f"n{10_000_000 + index}" for index in range(classes)]
    (top / "val" / "images").mkdir(parents=True)
    annotations = []
    for index, name in enumerate(names):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), class_colour(index)).save(buffer, "JPEG", quality=95)
        images = top / "train" / name / "images"
        images.mkdir(parents=True)
        (images / f"{name}_0.JPEG").write_bytes(buffer.getvalue())
        (top / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
        # Backwards, so that the order of the files is not the order of the classes.
        image = f"val_{classes - 1 - index}.JPEG"
        (top / "val" / "images" / image).write_bytes(buffer.getvalue())
        annotations.append(f"{image}\t{name}\t0\t32\t44\t62\n")
    (top / "val" / "val_annotations.txt").write_text("".join(annotations))
    (top / "wnids.txt").write_text("\n".join(names) + "\n")
    return top


def adult_record(index: int) -> dict[str, object]:
    """A census record; records 0, 1, ... run through all values of every column."""
    record: dict[str, object] = {
        "age": 17 + index,
        "fnlwgt": 10_000 + 100 * index,
        "education-num": 1 + index % 16,
        "capital-gain": 1000 * (index % 3),
        "capital-loss": 50 * (index % 5),
        "hours-per-week": 20 + index % 40,
    }
    record |= {name: values[index % len(values)] for name, values in ADULT_VALUES.items()}
    return record


ADULT_ORDER = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
)


def adult_line(record: dict[str, object], label: str) -> str:
    """A record as a line of the file, fields separated by comma and space."""
    return ", ".join(str(record[name]) for name in ADULT_ORDER) + f", {label}\n"


def write_adult(folder: Path, train_count: int = 42, test_count: int = 6) -> Path:
    """adult.data and adult.test; every third person has a high income. Returns their folder."""
    adult = folder / "adult"
    adult.mkdir(parents=True)

    def lines(indices: range, full_stop: str) -> str:
        labels = {index: (">50K" if index % 3 == 0 else "<=50K") + full_stop for index in indices}
        return "".join(adult_line(adult_record(index), labels[index]) for index in indices)

    # Both published files end in an empty line; the test file starts with a remark.
    (adult / "adult.data").write_text(lines(range(train_count), "") + "\n")
    test = "|1x3 Cross validator\n" + lines(range(3, 3 + test_count), ".") + "\n"
    (adult / "adult.test").write_text(test)
    return adult
