"""Where downloads lie, and what is said where a package that reads them is missing."""

import sys
from pathlib import Path

import pytest

from data import load_data, storage
from lipschitz.errors import InputError


def test_a_checkout_keeps_downloads_beside_its_code(monkeypatch):
    monkeypatch.delenv("LIPSCHITZ_DATA", raising=False)
    assert storage.data_root() == Path(storage.__file__).parent / "cache"
    monkeypatch.setenv("LIPSCHITZ_DATA", "/elsewhere")
    assert storage.data_root() == Path("/elsewhere")
    assert storage.data_root("here") == Path("here")


def test_an_installed_tool_keeps_them_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("LIPSCHITZ_DATA", raising=False)
    installed = tmp_path / "site-packages" / "lipschitz" / "_commands" / "data" / "storage.py"
    monkeypatch.setattr(storage, "__file__", str(installed))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert storage.data_root() == tmp_path / "cache" / "lipschitz"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.data_root() == tmp_path / ".cache" / "lipschitz"


@pytest.mark.parametrize(
    ("name", "package"), [("mnist", "torchvision"), ("cifar", "torchvision"), ("adult", "pandas")]
)
def test_a_missing_package_is_named(monkeypatch, tmp_path, name, package):
    (tmp_path / "adult").mkdir()
    (tmp_path / "adult" / "adult.data").write_text("")
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"pip install {package}"):
        load_data(name, train=True, root=tmp_path)
