"""Formulas as MathML, which browsers draw themselves, and pages that load nothing from elsewhere.

The arithmatex extension marks formulas in the page's HTML; here each one is translated while the
site is built. One that cannot be translated is a warning, and so is a page that would load a
script, a style or a picture from another host: a strict build fails.
"""

from __future__ import annotations

import html
import logging
import re
from typing import Any

from latex2mathml.converter import convert

_LOG = logging.getLogger("mkdocs.hooks.self_contained")
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)
# Tags that make a browser load something; a link only for what a page is drawn with.
_LOADING = re.compile(
    r"<(?:script|img|iframe|source|video|audio|object|embed)\b[^>]*>"
    r"|<link\b(?=[^>]*\brel=\"?(?:stylesheet|preconnect|preload|modulepreload|icon))[^>]*>"
)
_ELSEWHERE = re.compile(r"\b(?:src|href|data)=\"?(?:https?:)?//")


def formula(tex: str, *, block: bool) -> str:
    """A formula of TeX as MathML.

    Raises:
        Exception: Whatever the translator raises about TeX that it does not know.
    """
    found = convert(tex.strip(), display="block" if block else "inline")
    unknown = re.search(r"<m[io]>(\\[a-zA-Z]+|&(?:amp;)?)</m[io]>", found)
    if unknown is not None:
        raise ValueError(f"not known: {unknown[1]}")
    return found


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replaces all formulas of one page; called by mkdocs."""

    def replaced(match: re.Match[str]) -> str:
        tex = html.unescape(match["tex"])
        try:
            return formula(tex, block=match["open"] == "[")
        except Exception as error:  # the translator's errors have no common class
            _LOG.warning("%s: formula %r: %s", page.file.src_path, tex, error)
            return match.group()

    return _FORMULA.sub(replaced, content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Warns of what one page would load from another host; called by mkdocs."""
    for tag in _LOADING.findall(output):
        if _ELSEWHERE.search(tag):
            _LOG.warning("%s: loads from elsewhere: %s", page.file.src_path, tag)
    return output
