"""Optional packages that single methods need."""

from __future__ import annotations

import importlib.util

from lipschitz.errors import InputError


def require_extra(method: str, package: str, module: str | None = None) -> None:
    """Load an optional package, so that no bound's seconds count its import.

    Args:
        method: Name for the message.
        package: What pip installs.
        module: What Python imports; the same name if None.

    Raises:
        InputError: It is not installed.
    """
    module = module or package
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"{method} needs the package {package}, which is optional: pip install {package}"
        )
    importlib.import_module(module)
