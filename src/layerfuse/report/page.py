"""The run as one HTML file that needs nothing else: no network, no folder beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from layerfuse import __version__, figures
from layerfuse.files import atomic_write
from layerfuse.report import choosing, facts, mistakes, weighing
from layerfuse.report.parts import Figure, Section, percent, points
from layerfuse.report.reading import Run

__all__ = ["save_figures", "sections_of", "write_page"]

_SNIPPET = "window.vegaEmbed = vegaEmbed;"  # what the bundle of vl-convert hands to the page


def sections_of(run: Run) -> list[Section]:
    """The page's sections, in the order of a reader's questions."""
    found = (
        choosing.verdict(run),
        choosing.choice(run),
        choosing.curves(run),
        choosing.path(run),
        weighing.pairs(run),
        weighing.cost(run),
        mistakes.classes(run),
        mistakes.calibration(run),
        weighing.labels(run),
        mistakes.hardest(run),
        facts.duplicates(run),
        facts.data(run),
        facts.resources(run),
        facts.use(run),
        facts.provenance(run),
    )
    return [section for section in found if section is not None]


def write_page(run: Run, sections: list[Section], path: Path) -> Path:
    """Write the page to ``path``, whole or not at all.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    charts = {figure.id: _described(figure) for figure in _figures(sections)}
    script = _bundle() + _asset("page.js")
    html = (
        _environment()
        .get_template("page.html")
        .render(
            title=f"{run.result['data']['name']}: layerfuse report",
            name=run.result["data"]["name"],
            created=run.details["created"].partition("T")[0],
            version=__version__,
            headline=_headline(run),
            sections=sections,
            css=Markup(_asset("page.css")),  # noqa: S704  # from this package
            script=Markup(script),  # noqa: S704  # from this package and vl-convert
            policy=_policy_of(script),
            data=Markup(_json({"charts": charts, "themes": figures.THEMES})),  # noqa: S704  # escaped
        )
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def save_figures(sections: list[Section], folder: Path) -> list[Path]:
    """Every figure as SVG and PNG, on light ground."""
    return [
        figures.save_chart(figure.chart, folder / f"{figure.id}{ending}")
        for figure in _figures(sections)
        for ending in (".svg", ".png")
    ]


def _figures(sections: list[Section]) -> Iterator[Figure]:
    for section in sections:
        yield from section.figures


def _described(figure: Figure) -> dict[str, Any]:
    """The figure's object, with what screen readers say of it."""
    return {**figures.vega_spec(figure.chart), "description": f"{figure.title}. {figure.summary}"}


def _headline(run: Run) -> dict[str, Any]:
    """What the first screen says."""
    verdict, own, cost = run.result["verdict"], run.result[run.where], run.result["cost"]
    advice = verdict["advice"]
    sentence = " ".join(verdict["sentence"].replace(advice, "").split())
    low, high = own["ci95"]
    won, at_least, at_most = (verdict["gain"][name] for name in ("difference", "low", "high"))
    ratio = verdict["time_ratio"]
    against = ", ".join(verdict["against"])
    return {
        "sentence": sentence[:1].upper() + sentence[1:],
        "advice": advice,
        "gained": verdict["gained"],
        "numbers": [
            (
                "Accuracy",
                percent(own["accuracy"]),
                f"95 % interval {percent(low)} to {percent(high)}",
                f"on {own['n']:,} {run.rows_in_words}",
            ),
            (
                "Gain over the last layer",
                f"{points(won)} points",
                f"95 % interval {points(at_least)} to {points(at_most)}",
                f"against {against}",
            ),
            (
                "Cost of a text",
                f"{cost['ms_per_text']:.2f} ms",
                "" if ratio is None else f"{ratio:.1f}× the last layer's time",
                f"{cost['memory_mb']:.0f} MB of weights, {cost['dims']:,} dimensions",
            ),
        ],
    }


def _json(value: Any) -> str:
    """JSON that can stand in a script element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _policy_of(script: str) -> str:
    """Only this script may run, and nothing may be fetched."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _environment() -> Environment:
    """Where templates come from; what they are given is escaped."""
    return Environment(
        loader=PackageLoader("layerfuse.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    """A file of the package's own."""
    return (files("layerfuse.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script; none of it may end the script element."""
    script: str = vl_convert.javascript_bundle(_SNIPPET, vl_version=figures.vega_lite_version())
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
