"""The page in a real browser: it is whole, alone, drawn, and can be used by anyone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from browser import Opened, colours, faults, open_browser, open_page
from commandline import rows, succeed, write_csv
from families import TinyModels

SECTIONS = [
    "worth",
    "chosen",
    "layers",
    "cost",
    "classes",
    "calibration",
    "labels",
    "texts",
    "data",
    "provenance",
]
HOSTILE = (
    '<script>window.broken = "script"</script>',
    "<img src=x onerror='window.broken = 1'>",
    "مرحبا بالعالم \u202e evil",
    "a label that goes on and on " * 8,
    "quote \" ' & </script> --> {{ 7 * 7 }} ${7*7}",
)
FEW = ["--cv", 2, "--fusion", "concat", "--head", "ridge"]


pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(autouse=True)
def _closed(browser: Browser) -> Iterator[None]:
    """Pages that stay open slow down those that follow."""
    yield
    for context in browser.contexts:
        context.close()


@pytest.fixture(scope="module")
def runs(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders: two encoders with a test set and a learning curve; 52 classes; hostile labels
    and texts with one encoder; hardly any data and no test set."""
    root = tmp_path_factory.mktemp("runs")
    store = ["--store", root / "store"]
    bert, gpt = f"bert={tiny('bert')}", f"gpt={tiny('gpt2')}"
    two = ["-e", bert, "-e", gpt, "--pooling", "mean,last", *store]
    train = write_csv(root / "train.csv", rows(120))
    test = write_csv(root / "test.csv", [*rows(70, seed=1), *rows(3)])
    succeed("fit", train, "--test", test, *two, *FEW, "--out", root / "demo")
    shares = ["--shares", "25,100", "--repeats", 2]
    succeed("curve", train, "--test", test, *two, *shares, "--out", root / "demo" / "curve.json")
    succeed("report", root / "demo")

    names = [f"class {number:02}" for number in range(52)]
    many = [
        (f"{text} w{place % 37} w{place // 37}", names[place % 52])
        for place, (text, _) in enumerate(rows(52 * 6))
    ]
    train = write_csv(root / "many.csv", many[: 52 * 4])
    test = write_csv(root / "many-test.csv", many[52 * 4 :])
    succeed("fit", train, "--test", test, "-e", bert, *store, *FEW, "--out", root / "classes")

    bad = [
        (f"{text} {HOSTILE[place % 5]}", HOSTILE[place % 5])
        for place, (text, _) in enumerate(rows(50))
    ]
    train = write_csv(root / "bad.csv", bad)
    succeed("fit", train, "-e", bert, *store, *FEW, "--out", root / "hostile")

    train = write_csv(root / "few.csv", rows(12, labels=["news", "schlecht ü"]))
    succeed("fit", train, "-e", bert, "--layers", "-1", *store, *FEW, "--out", root / "few")
    return {name: root / name for name in ("demo", "classes", "hostile", "few")}


NAMES = ("demo", "classes", "hostile", "few")


def page_of(runs: dict[str, Path], name: str) -> Path:
    return runs[name] / "report.html"


def open_all(opened: Opened) -> None:
    """Unfold everything, and wait for the charts inside."""
    opened.page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    expect(opened.page.locator("[data-chart]:not(:has(svg))")).to_have_count(0, timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_nothing_asks_for_nothing_and_draws_everything_for_everyone(
    browser: Browser, runs: dict[str, Path], name: str, scheme: str
):
    opened = open_page(browser, page_of(runs, name), scheme=scheme)
    open_all(opened)
    page = opened.page
    assert page.locator("[data-chart]").count() >= 5
    for chart in page.locator("[data-chart]").all():
        shapes = chart.evaluate(
            """(e) => [...e.querySelectorAll('svg [role=graphics-symbol], svg .mark-symbol path,'
               + ' svg .mark-rect path, svg .mark-rule line, svg .mark-line path')]
               .filter((s) => { const b = s.getBBox(); return b.width + b.height > 0; }).length"""
        )
        assert shapes > 0, chart.get_attribute("data-chart")
        assert colours(chart) > 4, chart.get_attribute("data-chart")
    assert opened.said == []
    assert opened.asked == []
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    found = page.eval_on_selector_all("main > section", "(all) => all.map((e) => e.id)")
    expected = [s for s in SECTIONS if s != "labels" or name == "demo"]
    assert found == expected
    links = page.eval_on_selector_all("nav a", "(all) => all.map((e) => e.hash.slice(1))")
    assert links == expected
    assert faults(page, "serious", "critical") == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_a_phone(browser: Browser, runs: dict[str, Path], name: str):
    opened = open_page(browser, page_of(runs, name), width=390)
    open_all(opened)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_reaches_everything(browser: Browser, runs: dict[str, Path]):
    page = open_page(browser, page_of(runs, "demo")).page

    def focused(what: str) -> str:
        return str(page.evaluate(f"document.activeElement.{what}") or "")

    page.keyboard.press("Tab")
    assert focused("className") == "skip"
    assert page.locator(".skip").bounding_box()["y"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert focused("id") == "main"
    page.reload()
    page.locator("html[data-drawn]").wait_for(state="attached")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert focused("id") == "theme"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("Enter")
    page.locator("html[data-drawn=dark]").wait_for(state="attached")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert focused("getAttribute('aria-label')") == "Switch to light colors"
    reached, opened = set(), False
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.add(focused("tagName"))
        if focused("tagName") == "BODY":
            break
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", focused("outerHTML")[:200]
        if focused("tagName") == "SUMMARY" and not opened:
            page.keyboard.press("Enter")
            opened = page.evaluate("document.activeElement.parentElement.open")
            assert opened
    assert {"A", "SUMMARY", "DIV"} <= reached


def test_a_point_tells_what_it_is_when_hovered(browser: Browser, runs: dict[str, Path]):
    page = open_page(browser, page_of(runs, "demo")).page
    point = page.locator("[data-chart=pareto] svg [role=graphics-symbol]").last
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert re.search(r"accuracy, %\s*\d+\.\d", tip.inner_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_is_light_and_not_empty(browser: Browser, runs: dict[str, Path], scheme: str):
    page = open_page(browser, page_of(runs, "demo"), scheme=scheme).page
    page.emulate_media(media="print", color_scheme="dark" if scheme == "dark" else "light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert len(page.pdf(format="A4")) > 50_000


def test_hostile_labels_and_texts_are_shown_as_they_are(browser: Browser, runs: dict[str, Path]):
    page = open_page(browser, page_of(runs, "hostile")).page
    cells = page.eval_on_selector_all(
        "#classes th[scope=row]", "(e) => e.map((c) => c.textContent)"
    )
    assert set(HOSTILE) <= {*cells}
    texts = page.locator("#texts td.wide").first
    assert texts.get_attribute("dir") == "auto"
    html = page_of(runs, "hostile").read_text(encoding="utf-8")
    assert "<script>window" not in html
    assert "<img src=x" not in html


def test_without_scripts_the_numbers_are_still_there(browser: Browser, runs: dict[str, Path]):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_of(runs, "demo").as_uri())
    assert page.locator("noscript").count() == 1
    assert page.locator("#worth table tbody tr").count() >= 5
