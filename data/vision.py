"""MNIST, CIFAR-10 and TinyImageNet, read by torchvision.

Training and test images get the same normalisation; only training images of CIFAR-10 and
TinyImageNet are augmented (horizontal flip, shifts of up to 4 pixels), as in the paper.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, TensorDataset

from data.spec import DataSpec
from data.storage import announce_download, data_root, may_download, missing, time_limit
from lipschitz.errors import InputError
from models.torchvision_compat import import_torchvision

TINY_IMAGENET_FOLDER = "tiny-imagenet-200"
# Where the download script of Tiny ImageNet unpacks, its own folder, unless told otherwise.
_SCRIPT_FOLDER = Path(__file__).resolve().parent / "tinyImageNet"

MNIST = DataSpec(
    name="MNIST",
    input_shape=(1, 28, 28),
    classes=10,
    mean=(0.0,),
    std=(1.0,),
    pixel_range=(0.0, 1.0),
    help="handwritten digits, downloaded on first use",
    source="LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist, CC BY-SA 3.0",
    channels_shape=(1, 28, 28),
)
CIFAR = DataSpec(
    name="CIFAR",
    input_shape=(3, 32, 32),
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2009, 0.2009, 0.2009),
    pixel_range=(0.0, 1.0),
    help="CIFAR-10 photographs, downloaded on first use",
    source="Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html, for research, no licence stated",
    channels_shape=(3, 32, 32),
)
TINY_IMAGENET = DataSpec(
    name="tinyimagenet",
    input_shape=(3, 64, 64),
    classes=200,
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.22, 0.22, 0.22),
    pixel_range=(0.0, 1.0),
    help="200 classes of ImageNet at 64x64; run data/tinyImageNet/tinyimagenet_download.sh first",
    source="Stanford CS231n, cs231n.stanford.edu/tiny-imagenet-200.zip, non-commercial research",
    channels_shape=(3, 64, 64),
)


def load_mnist(
    spec: DataSpec, *, train: bool, root: str | os.PathLike[str] | None, seed: int
) -> TensorDataset:
    """MNIST in memory; `seed` is not used, the split is the published one."""
    stored = _torchvision_set("MNIST", root, train)
    if stored.data.shape[1:] != (28, 28) or len(stored.data) != len(stored.targets):
        raise InputError(f"MNIST in {data_root(root)}: images and labels do not match; delete it")
    x = stored.data.unsqueeze(1).float() / 255
    return TensorDataset(x, stored.targets)


def load_cifar(
    spec: DataSpec, *, train: bool, root: str | os.PathLike[str] | None, seed: int
) -> Dataset[Any]:
    """CIFAR-10; `seed` is not used, the split is the published one."""
    return _torchvision_set("CIFAR10", root, train, _transform(spec, train))


def load_tiny_imagenet(
    spec: DataSpec, *, train: bool, root: str | os.PathLike[str] | None, seed: int
) -> Dataset[Any]:
    """TinyImageNet; its `val` part serves as test set, and `seed` is not used.

    Raises:
        InputError: The images are not there, or the validation images are not sorted.
    """
    script = "run data/tinyImageNet/tinyimagenet_download.sh" + (f" {root}" if root else "")
    candidates = [data_root(root) / TINY_IMAGENET_FOLDER]
    if root is None:
        candidates.append(_SCRIPT_FOLDER / TINY_IMAGENET_FOLDER)
    folder = next((path for path in candidates if path.is_dir()), None)
    if folder is None:
        raise InputError(f"tinyimagenet not found in {candidates[0]}; {script}")
    if not (folder / "train").is_dir() or not (folder / "val").is_dir():
        raise InputError(f"{folder} lacks its train or val folder; delete it and {script}")
    if (folder / "val" / "images").is_dir():
        raise InputError(f"the images in {folder / 'val'} are not sorted into classes; {script}")
    datasets = _torchvision("datasets")
    classes = {part: datasets.folder.find_classes(folder / part)[0] for part in ("train", "val")}
    if classes["train"] != classes["val"]:
        raise InputError(f"{folder}: train and val have different classes; {script}")
    if len(classes["train"]) != spec.classes:
        found = len(classes["train"])
        raise InputError(f"{folder} has {found} classes, expected {spec.classes}; {script}")
    part = folder / ("train" if train else "val")
    return datasets.ImageFolder(part, transform=_transform(spec, train))


def _torchvision_set(
    name: str, root: str | os.PathLike[str] | None, train: bool, transform: Any = None
) -> Any:
    """Opens a torchvision data set, unpacking or downloading it if it is not there."""
    datasets = _torchvision("datasets")
    folder = data_root(root)
    archives = _archives(datasets, name, folder)

    def open_set(download: bool) -> Any:
        # torchvision reports on stdout, where only results belong.
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(datasets, name)(
                folder, train=train, transform=transform, download=download
            )

    try:
        return open_set(download=False)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        # "Dataset not found (or corrupted)": files are missing or have wrong check sums.
        if "not found" not in str(error):
            raise InputError(f"{name} in {folder} is damaged ({error}); delete it") from error
        reason = "LIPSCHITZ_OFFLINE is set"
    is_downloaded = all(datasets.utils.check_integrity(path, md5) for path, md5 in archives)
    if is_downloaded or may_download():
        if not is_downloaded:
            announce_download(name, folder)
        try:
            with time_limit():
                return open_set(download=True)
        except (OSError, RuntimeError) as error:  # torchvision wraps some failures of the network
            reason = f"download failed: {error}"
    files = ", ".join(path.name for path, _ in archives)
    raise missing(name, files, archives[0][0].parent, reason)


def _torchvision(submodule: str) -> Any:
    try:
        return import_torchvision(submodule)
    except ImportError as error:
        raise InputError(
            f"images are read by torchvision: pip install torchvision ({error})"
        ) from error


def _archives(datasets: Any, name: str, folder: Path) -> list[tuple[Path, str]]:
    """Files that torchvision downloads, with their md5 sums; if they are there it only unpacks."""
    if name == "MNIST":
        raw = folder / "MNIST" / "raw"
        return [(raw / file, md5) for file, md5 in datasets.MNIST.resources]
    return [(folder / datasets.CIFAR10.filename, datasets.CIFAR10.tgz_md5)]


def _transform(spec: DataSpec, train: bool) -> Any:
    transforms = _torchvision("transforms")
    steps: list[Any] = []
    if train:
        side = spec.channels_shape[-1]
        steps += [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(side, 4, padding_mode="edge"),
        ]
    steps += [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
    return transforms.Compose(steps)
