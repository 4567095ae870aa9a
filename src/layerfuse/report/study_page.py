"""The study's summary as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from layerfuse._version import __version__
from layerfuse.files import atomic_write
from layerfuse.report.html import asset, environment, policy_of

__all__ = ["write_study_page"]


def write_study_page(folder: Path, path: Path) -> Path:
    """Write ``summary.md`` of a results folder, figures within, to ``path``.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    lines = (folder / "summary.md").read_text(encoding="utf-8").splitlines()
    # a comment there is for those who would edit it
    tokens = markdown.parse("\n".join(line for line in lines if not line.startswith("<!--")))
    sections = list(_sections(tokens))
    for image in _images(tokens):
        drawn = (folder / str(image.attrs["src"])).read_bytes()
        image.attrs["src"] = f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"
    body = markdown.renderer.render(tokens, markdown.options, {})
    html = (
        environment()
        .get_template("study.html")
        .render(
            body=Markup(_framed(body)),  # noqa: S704  # the parser escapes
            sections=sections,
            css=Markup(asset("page.css")),  # noqa: S704  # from this package
            version=__version__,
            title="layerfuse study",
            policy=policy_of(),
        )
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


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


def _framed(html: str) -> str:
    """Wide tables scroll by themselves, for the keyboard too."""
    start = '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>'
    return html.replace("<table>", start).replace("</table>", "</table></div>")
