"""The study as one page, in Markdown and in HTML; every number comes from the results."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markdown_it import MarkdownIt
from markdown_it.token import Token

from benchmarks.markdown import percent, set_name
from benchmarks.study.claims import MIN_SETS, claims_of
from benchmarks.study.evidence import ALPHA, MARGIN, Evidence
from layerfuse._version import __version__
from layerfuse.files import atomic_write, human_bytes

FIGURES = "figures"
"""The folder of figures in a results folder."""

_SCROLL = '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>'


def page_of(folder: Path, place: str) -> str:
    """The page of a results folder; ``place`` is the folder's path from where the page lies."""
    evidence = Evidence.read(folder)
    text = _template("page.md.jinja").render(
        e=evidence,
        settings=evidence.settings,
        machine=evidence.index["machine"],
        claims=claims_of(evidence),
        figures={path.stem for path in (folder / FIGURES).glob("*.svg")},
        place=f"{place}/{FIGURES}",
        alpha=f"{ALPHA:g}",
        margin=f"{100 * MARGIN:g}",
        min_sets=MIN_SETS,
    )
    text = re.sub(r"(?<=[^\n|])\n *(?![\n|#<!]|- )(?=.)", " ", text)  # a paragraph is one line
    return re.sub(r"\n{3,}", "\n\n", text)


def write_html(source: Path, path: Path) -> None:
    """Write a Markdown file, figures within, as HTML that needs nothing else."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    lines = source.read_text(encoding="utf-8").splitlines()
    # A comment there is for those who would edit it.
    tokens = markdown.parse("\n".join(line for line in lines if not line.startswith("<!--")))
    sections = list(_sections(tokens))
    for image in _images(tokens):
        place = (source.parent / str(image.attrs["src"])).resolve()
        if place.suffix != ".svg" or not place.is_relative_to(source.parent.resolve()):
            image.attrs["src"] = ""  # no figure of ours: the name of an encoder may be Markdown
            continue
        drawn = place.read_bytes()
        image.attrs["src"] = f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"
    body = markdown.renderer.render(tokens, markdown.options, {})
    # Wide tables scroll by themselves, for the keyboard too.
    body = body.replace("<table>", _SCROLL).replace("</table>", "</table></div>")
    css = (files("layerfuse.report") / "assets" / "page.css").read_text(encoding="utf-8")
    html = _template("page.html.jinja").render(
        body=body, sections=sections, css=css, version=__version__
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _template(name: str) -> Template:
    environment = Environment(  # noqa: S701  # what is not Markdown or its HTML is escaped there
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (set_name, percent, human_bytes, _points, _short, _estimate, _gain, _p_value)
    environment.filters |= {function.__name__.lstrip("_"): function for function in filters}
    return environment.get_template(name)


def _points(row: Any, prefix: str = "", suffix: str = "") -> str:
    """A difference in points with its interval, such as ``+2.1 (+1.0 to +3.2)``."""
    ends = ("difference", "low", "high")
    value, low, high = (100 * getattr(row, f"{prefix}{end}{suffix}") for end in ends)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _short(block: str, layers: int) -> str:
    """``mpnet:8:mean`` of 12 layers as ``8 of 12, mean``."""
    _, layer, pooling = block.rsplit(":", 2)
    return f"{layer} of {layers}, {pooling}"


def _estimate(value: float, low: float, high: float, sd: float) -> str:
    deviation = "" if math.isnan(sd) else f" ± {100 * sd:.1f}"
    return f"{percent(value)}{deviation} ({percent(low)} to {percent(high)})"


def _gain(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:+.1f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _sections(tokens: Sequence[Token]) -> Iterator[tuple[str, str]]:
    """Give each heading below the title an id; yield these with their texts."""
    number = 0
    for token, inside in pairwise(tokens):
        if token.type == "heading_open" and token.tag != "h1":
            number += 1
            token.attrs["id"] = f"part-{number}"
            yield f"part-{number}", inside.content


def _images(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        if token.type == "image":
            yield token
        yield from _images(token.children or ())
