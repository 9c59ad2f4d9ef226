"""MNIST, CIFAR-10 and TinyImageNet through torchvision, from files in the real formats."""

from __future__ import annotations

import pickle
import urllib.error

import numpy as np
import pytest
import real_formats
import torch

from data import load_data
from lipschitz.errors import InputError
from models.torchvision_compat import import_torchvision

datasets = import_torchvision("datasets")


def use_md5_of_mnist(monkeypatch, md5_sums):
    resources = [(name, md5_sums[name]) for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)


def use_md5_of_cifar(monkeypatch, md5_sums):
    """torchvision knows the published files by check sum; this makes it know the test's files."""
    cifar = datasets.CIFAR10
    for part in ("train_list", "test_list"):
        files = [[name, md5_sums[name]] for name, _ in getattr(cifar, part)]
        monkeypatch.setattr(cifar, part, files)
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5_sums["batches.meta"]})
    monkeypatch.setattr(cifar, "tgz_md5", md5_sums["cifar-10-python.tar.gz"])


@pytest.mark.parametrize(("train", "count", "seed"), [(True, 12, 0), (False, 5, 1)])
def test_mnist_pixels_are_scaled_only(data_folder, train, count, seed):
    real_formats.write_mnist(data_folder)
    real_formats.unpack_mnist(data_folder)
    images, labels = real_formats.mnist_arrays(count, seed)
    x, y = load_data("mnist", train=train).take(0, 100)
    assert x.shape == (count, 1, 28, 28)
    assert np.allclose(x[:, 0].numpy() * 255, images, atol=1e-4)
    assert y.tolist() == labels.tolist()
    flat, _ = load_data("mnist", train=train, model_input_shape=(784,)).take(0, 100)
    assert torch.equal(flat, x.flatten(1))


def test_mnist_archives_put_there_by_hand_are_unpacked_without_the_network(
    data_folder, monkeypatch, capsys
):
    use_md5_of_mnist(monkeypatch, real_formats.write_mnist(data_folder))
    assert len(load_data("mnist", train=True)) == 12
    assert capsys.readouterr().out == ""


def damage_by_cutting(raw):
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])


def damage_by_other_content(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")


def damage_by_fewer_labels(raw):
    labels = real_formats.idx_bytes(np.zeros(11, dtype=np.uint8))
    (raw / "train-labels-idx1-ubyte").write_bytes(labels)


def damage_by_emptying(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [damage_by_cutting, damage_by_other_content, damage_by_fewer_labels, damage_by_emptying],
)
def test_damaged_mnist(data_folder, damage):
    real_formats.write_mnist(data_folder)
    real_formats.unpack_mnist(data_folder)
    damage(data_folder / "MNIST" / "raw")
    with pytest.raises(InputError, match=r"MNIST in .* delete it"):
        load_data("mnist", train=True)


def cifar_pixels(count, seed):
    """The batch decoded by hand: channel planes of 1,024 bytes, rows of 32."""
    batch = real_formats.cifar_batch(count, seed)
    return batch["data"].reshape(count, 3, 32, 32) / 255, batch["labels"]


def test_cifar_test_images_are_normalised(data_folder, monkeypatch):
    use_md5_of_cifar(monkeypatch, real_formats.write_cifar(data_folder))
    x, y = load_data("CIFAR", train=False).take(0, 10)
    pixels, labels = cifar_pixels(4, 6)
    mean = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    assert np.allclose(x.numpy(), (pixels - mean) / 0.2009, atol=1e-5)
    assert y.tolist() == labels


def test_cifar_training_images_are_shifted_or_flipped_and_normalised_alike(
    data_folder, monkeypatch
):
    use_md5_of_cifar(monkeypatch, real_formats.write_cifar(data_folder))
    data = load_data("CIFAR", train=True)
    assert len(data) == 20
    pixels, labels = cifar_pixels(4, 1)
    mean = np.array([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    image = (pixels[0] - mean) / 0.2009
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="edge")
    windows = [padded[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    allowed = [window[..., ::step] for window in windows for step in (1, -1)]
    torch.manual_seed(0)
    drawn = [data.take(0, 1) for _ in range(12)]
    for x, y in drawn:
        assert y.item() == labels[0]
        assert any(np.allclose(x[0].numpy(), window, atol=1e-5) for window in allowed)
    assert len({x.sum().item() for x, _ in drawn}) > 6  # they do differ


def test_cifar_batches_with_worker_processes(data_folder, monkeypatch):
    use_md5_of_cifar(monkeypatch, real_formats.write_cifar(data_folder))
    data = load_data("CIFAR", train=False, model_input_shape=(3072,))
    ((x, y),) = data.batches(8, workers=1)
    assert torch.equal(x, data.take(0, 4)[0])
    assert y.tolist() == cifar_pixels(4, 6)[1]


def test_cifar_archive_put_there_by_hand_is_unpacked(data_folder, monkeypatch, capsys):
    use_md5_of_cifar(monkeypatch, real_formats.write_cifar(data_folder))
    for path in (data_folder / "cifar-10-batches-py").iterdir():
        path.unlink()
    assert len(load_data("cifar", train=True)) == 20
    assert capsys.readouterr().out == ""


def test_cifar_with_a_wrong_check_sum_is_refused(data_folder, monkeypatch):
    use_md5_of_cifar(monkeypatch, real_formats.write_cifar(data_folder))
    path = data_folder / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": np.zeros((4, 3072)), "labels": [0] * 4}))
    (data_folder / "cifar-10-python.tar.gz").unlink()
    with pytest.raises(InputError, match="CIFAR10 not found or damaged"):
        load_data("cifar", train=True)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", r"download train-images-idx3-ubyte.gz, .* into .*MNIST.raw"),
        ("cifar", r"download cifar-10-python.tar.gz into"),
    ],
)
def test_missing_files_say_what_to_put_where(name, files):
    with pytest.raises(InputError, match=r"LIPSCHITZ_OFFLINE is set\); " + files):
        load_data(name, train=False)


@pytest.mark.parametrize("name", ["mnist", "cifar"])
def test_no_network_says_what_to_put_where(name, monkeypatch, capsys):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("LIPSCHITZ_OFFLINE", "0")
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(InputError, match=r"download failed: .*service not known.*; download"):
        load_data(name, train=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "downloading" in captured.err


def sort_validation_images(top):
    for line in (top / "val" / "val_annotations.txt").read_text().splitlines():
        image, name = line.split("\t")[:2]
        (top / "val" / name).mkdir()
        (top / "val" / "images" / image).rename(top / "val" / name / image)
    (top / "val" / "images").rmdir()


def test_tiny_imagenet(data_folder):
    sort_validation_images(real_formats.write_tiny_imagenet(data_folder))
    mean, std = np.array([0.4802, 0.4481, 0.3975]), 0.22
    for train in (True, False):
        data = load_data("TinyImageNet", train=train)
        assert len(data) == 200
        x, y = data.take(150, 3)
        assert x.shape == (3, 3, 64, 64)
        assert y.tolist() == [150, 151, 152]
        # One colour per class: neither flips nor shifts change it, JPEG does by little.
        for row, label in enumerate(y.tolist()):
            colour = x[row].mean(dim=(1, 2)).numpy() * std + mean
            assert np.allclose(colour * 255, real_formats.class_colour(label), atol=3)


def test_tiny_imagenet_that_is_not_ready(data_folder):
    script = f"run data/tinyImageNet/tinyimagenet_download.sh {data_folder}"

    def refused(words):
        with pytest.raises(InputError, match=words) as error:
            load_data("tinyimagenet", train=False, root=data_folder)
        assert script in str(error.value)

    refused("tinyimagenet not found in")
    top = data_folder / "tiny-imagenet-200"
    top.mkdir(parents=True)
    refused("lacks its train or val folder")
    top.rmdir()
    real_formats.write_tiny_imagenet(data_folder, classes=3)
    refused("are not sorted into classes")
    sort_validation_images(top)
    refused("has 3 classes, expected 200")
    (top / "val" / "n10000000").rename(top / "val" / "n1")
    refused("train and val have different classes")
