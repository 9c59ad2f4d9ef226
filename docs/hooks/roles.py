"""Roles of docstrings, such as `:func:` before a name, are left out of pages."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(?=<code)")


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Removes the roles of one page; called by mkdocs."""
    return _ROLE.sub("", content)
