"""What networks a folder holds: ``manifest.json``, a list of one object a network.

An object has ``name``, ``file``, ``input_shape``, ``centre`` and ``boxes``, and of its origin
``source_repo``, ``commit``, ``path``, ``licence`` and ``description``. Optional:

- ``layers`` of a ``.pth`` or ``.npz`` file, in order: ``{"linear": NAME}``, ``{"conv": NAME,
  "stride": 2, "padding": 0}``, ``flatten``, ``relu``, ``sigmoid``, ``tanh``. Weights are
  ``NAME.weight`` and ``NAME.bias`` of a state dict, or ``WNAME`` and ``bNAME`` of an archive, where
  ``y = x @ W + b``. An ONNX file holds its layers itself.
- ``mean``, ``std`` of channels: the network takes normalised pixels, and ``eps`` is of pixels.
- ``sha256`` of the file; ``published``: ``{"norm": 2, "region": "R^n", "value": 1.74}``.

``centre`` is ``{"array": FILE.npy, "index": 0}`` (pixels), ``{"values": [...]}``, or the middle
between ``low`` and ``high``; ``boxes`` are pairs ``{"eps": 0.01, "set": "table"}``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.others.box import Entry, centre_of, radius_of
from lipschitz.errors import InputError

SETS = ("table", "wider")
_NEEDED = ("name", "file", "input_shape", "centre", "boxes")
_ENDINGS = (".onnx", ".pth", ".pt", ".npz")
_PLAIN_LAYERS = ("flatten", "relu", "sigmoid", "tanh")


@dataclass(frozen=True)
class Box:
    """One box of one network.

    Attributes:
        entry: The network's object in the manifest.
        eps: Radius as it is written there.
        group: ``table`` or ``wider``.
    """

    entry: Entry
    eps: str
    group: str

    @property
    def name(self) -> str:
        """The network's name."""
        return str(self.entry["name"])


def read_manifest(folder: Path) -> list[Entry]:
    """The networks of a folder, checked.

    Raises:
        InputError: No manifest, or an entry that makes no sense: which, and what is expected.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; --nets names a folder with a manifest.json")
    try:
        entries = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: expected a list of networks, at least one")
    names = set()
    for place, entry in enumerate(entries):
        title = f"{path}, network {place + 1}"
        if not isinstance(entry, dict):
            raise InputError(f"{title}: expected an object")
        if isinstance(entry.get("name"), str):
            title += f" ({entry['name']})"
        try:
            _check(entry, folder)
        except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
            raise InputError(f"{title}: {error}") from None
        if entry["name"] in names:
            raise InputError(f"{title}: there are two networks of this name")
        names.add(entry["name"])
    return entries


def boxes_of(entries: list[Entry], group: str, only: str | None = None) -> list[Box]:
    """The boxes to run, in the manifest's order.

    Args:
        entries: Of the manifest.
        group: ``table``, ``wider`` or ``all``.
        only: Names of networks with commas between; all if None.

    Raises:
        InputError: A name that is not there, or nothing left.
    """
    names = [str(entry["name"]) for entry in entries]
    chosen = names if only is None else only.split(",")
    for name in chosen:
        if name not in names:
            raise InputError(f"--only {name}: expected {', '.join(names)}")
    boxes = [
        Box(entry, str(box["eps"]), box["set"])
        for entry in entries
        if entry["name"] in chosen
        for box in entry["boxes"]
        if group in ("all", box["set"])
    ]
    if not boxes:
        raise InputError(f"--set {group}: none of the boxes belongs to it")
    return boxes


def _check(entry: Entry, folder: Path) -> None:
    missing = [key for key in _NEEDED if key not in entry]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    if not isinstance(entry["name"], str) or not entry["name"] or "," in entry["name"]:
        raise ValueError("name: expected text without commas")
    shape = entry["input_shape"]
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"input_shape {shape}: expected whole numbers above 0")
    file = folder / entry["file"]
    if file.suffix not in _ENDINGS:
        raise ValueError(f"file {entry['file']}: expected {', '.join(_ENDINGS)}")
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    if "sha256" in entry and hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
        raise ValueError(f"{file} is another file than the manifest's: its sha256 differs")
    if (file.suffix == ".onnx") == ("layers" in entry):
        raise ValueError("layers: expected for .pth and .npz files, and only for these")
    for layer in entry.get("layers", []):
        if layer not in _PLAIN_LAYERS and not _has_weights(layer):
            raise ValueError(
                f"layer {layer!r}: expected {', '.join(_PLAIN_LAYERS)}, linear or conv"
            )
    centre_of(entry, folder)
    if not isinstance(entry["boxes"], list):
        raise ValueError('boxes: expected a list of {"eps": ..., "set": ...}')
    for box in entry["boxes"]:
        radius_of(entry, box["eps"])
        if box["set"] not in SETS:
            raise ValueError(f"set {box['set']!r}: expected {' or '.join(SETS)}")
    if "published" in entry:
        _check_published(entry["published"])


def _has_weights(layer: object) -> bool:
    return isinstance(layer, dict) and len({"linear", "conv"} & layer.keys()) == 1


def _check_published(published: dict[str, object]) -> None:
    if str(published["norm"]) not in ("1", "2", "inf"):
        raise ValueError(f"published norm {published['norm']!r}: expected 1, 2 or inf")
    value = published["value"]
    if value is not None and not (isinstance(value, int | float) and value > 0):
        raise ValueError(f"published value {value!r}: expected a number above 0, or null")
    if value is not None and published["region"] != "R^n":
        raise ValueError(f"published region {published['region']!r}: expected R^n")
    if value is None and "region" not in published:
        raise ValueError("published region is missing")
