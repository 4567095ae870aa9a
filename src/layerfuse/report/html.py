"""A run as one HTML file that needs nothing else: no network, no folder beside it.

Needs the extra ``report``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from layerfuse._version import __version__
from layerfuse.files import atomic_write
from layerfuse.report.results import CurveResult
from layerfuse.report.run_report import RunReport
from layerfuse.report.sections import Section, sections_of
from layerfuse.report.tables import interval, percent, points, points_interval, sentence_case
from layerfuse.report.theme import DRAWING, THEMES, save_chart, vega_lite_version, vega_spec

_SNIPPET = "window.vegaEmbed = vegaEmbed;"  # what the bundle of vl-convert hands to the page


def write_page(
    report: RunReport, curve: CurveResult | None, path: Path, figures: Path | None = None
) -> tuple[list[Section], list[Path]]:
    """Write the page to ``path``, and its figures into the folder ``figures`` if there is one.

    Returns the page's sections and the files of figures. Several threads may write pages at once.
    """
    saved = []
    with DRAWING:
        sections = sections_of(report, curve)
        drawn = [figure for section in sections for figure in section.figures]
        charts = {
            figure.id: vega_spec(figure.chart)
            | {"description": f"{figure.title}. {figure.summary}"}  # what screen readers say
            for figure in drawn
        }
        if figures is not None:
            saved = [
                save_chart(figure.chart, figures / f"{figure.id}{ending}")
                for figure in drawn
                for ending in (".svg", ".png")
            ]
    script = _bundle() + _asset("page.js")
    templates = Environment(
        loader=PackageLoader("layerfuse.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        function.__name__: function
        for function in (interval, percent, points, points_interval, sentence_case)
    }
    html = templates.get_template("page.html").render(
        report=report,
        version=__version__,
        sections=sections,
        css=Markup(_asset("page.css")),  # noqa: S704  # from this package
        script=Markup(script),  # noqa: S704  # from this package and vl-convert
        policy=_policy_of(script),
        data=Markup(_json({"charts": charts, "themes": THEMES})),  # noqa: S704  # escaped
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return sections, saved


def _json(value: object) -> str:
    """JSON that can stand in a script element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _policy_of(script: str) -> str:
    """A content security policy: only this script may run, and nothing may be fetched."""
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{own}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    """A file of the package's own."""
    return (files("layerfuse.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script; none of it may end the script element."""
    script: str = vl_convert.javascript_bundle(_SNIPPET, vl_version=vega_lite_version())
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
