"""Without the package that reads a file: what to install; what is wrong anyway comes first."""

import sys

import pytest

from lipschitz import load_model
from lipschitz.errors import InputError

HDF5 = b"\x89HDF\r\n\x1a\n"
PACKAGES = [(".onnx", "onnx"), (".h5", "h5py")]


@pytest.mark.parametrize(("suffix", "package"), PACKAGES)
def test_it_says_what_to_install(tmp_path, monkeypatch, suffix, package):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"net{suffix}"
    path.write_bytes(HDF5)
    with pytest.raises(InputError, match=rf"net\{suffix}.*pip install {package}"):
        load_model(path)


@pytest.mark.parametrize(("suffix", "package"), PACKAGES)
def test_what_is_wrong_without_it_comes_first(tmp_path, monkeypatch, suffix, package):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"net{suffix}"
    with pytest.raises(InputError, match="no file"):
        load_model(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        load_model(path)
    path.write_bytes(HDF5)
    with pytest.raises(InputError, match="no argument 'width'"):
        load_model(path, width=3)


def test_a_file_that_is_no_hdf5_is_refused_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    path = tmp_path / "net.h5"
    path.write_bytes(b"weights of something else")
    with pytest.raises(InputError, match="not an HDF5 file"):
        load_model(path)
    path.write_bytes(bytes(1024) + HDF5)  # behind a block of the writer's own
    with pytest.raises(InputError, match="pip install h5py"):
        load_model(path)
