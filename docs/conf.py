"""Settings of Sphinx: ``make docs`` builds the pages offline, and a warning ends the build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils.utils.math.latex2mathml import tex2mathml

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
import layerfuse

project = "layerfuse"
author = "The layerfuse developers"
copyright = author  # noqa: A001  # Sphinx's name for it
version = release = layerfuse.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name` for names
highlight_language = "none"
exclude_patterns = ["_build"]
suppress_warnings = ["ref.python"]  # the n of a shape (n, dim) names no attribute called n

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stay short; docstrings say what is taken
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"layerfuse {version}"
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"


def setup(app: Any) -> dict[str, bool]:
    """Formulas as MathML, which browsers draw themselves: pages load nothing from elsewhere."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: Any) -> None:
    _write(translator, node, as_block=False)


def _display(translator: Any, node: Any) -> None:
    _write(translator, node, as_block=True)


def _write(translator: Any, node: Any, *, as_block: bool) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(tex2mathml(node.astext(), as_block=as_block))
    raise SkipNode
