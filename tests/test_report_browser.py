"""The report's page in a real browser: on a desk and on a telephone, light and dark, by keys, and on paper."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from report_runs import rich_run
from unpoison.reporting import figures
from unpoison.reporting.sections import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "google-chrome-stable"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no Chromium or no chromedriver on PATH: `apt-get install chromium chromium-driver`",
)
VIEWS = [(width, scheme) for width in (1200, 390) for scheme in ("light", "dark")]
LOOK = (Path(__file__).parent / "look_at_page.js").read_text()
KINDS = ("wide", "overlapping", "spilling", "small", "pale", "images", "boxes", "focus", "order")
NOTHING: dict[str, list[str]] = {kind: [] for kind in KINDS}

Findings = dict[str, Any]


class Browser:
    """One Chromium for all tests of this file."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        options.add_argument("--headless=new")
        options.add_argument("--disable-dev-shm-usage")
        # Without a network nobody can be asked, and nothing is to be told; root has no sandbox.
        options.add_argument("--disable-background-networking")
        if os.geteuid() == 0:
            options.add_argument("--no-sandbox")
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))

    def show(self, page: Path, width: int, scheme: str, media: str = "screen") -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        self.driver.get(page.as_uri())

    def look(self) -> Findings:
        """What is wrong with the page that is shown, by kind, and what there is to see at all."""
        found: Findings = self.driver.execute_script(LOOK)
        return found

    def of_focus(self) -> Findings:
        """What has the focus."""
        found: Findings = self.driver.execute_script("return look.ofFocus()")
        return found

    def press(self, key: str) -> None:
        ActionChains(self.driver, duration=0).send_keys(key).perform()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.driver.quit()


def blank(figure: Figure) -> bytes:
    """A white picture about as large as a figure: what is drawn takes most of the time, and no part in the layout."""
    buffer = io.BytesIO()
    width, height = (int(side * figure.dpi) for side in figure.get_size_inches())
    Image.new("L", (width, height), 255).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all there can be."""
    path: Path = tmp_path_factory.mktemp("page") / "index.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png_of", blank)
        path.write_text(report(rich_run()).html(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def views(browser: Browser, page: Path) -> dict[tuple[int, str], Findings]:
    found = {}
    for view in VIEWS:
        browser.show(page, *view)
        found[view] = browser.look()
    return found


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_nothing_is_wrong_with_a_page_of_long_and_odd_names(
    view: tuple[int, str], views: dict[tuple[int, str], Findings]
) -> None:
    found = views[view]
    assert {kind: found[kind] for kind in NOTHING} == NOTHING
    # Of what was looked at there is enough: 5 detectors with 14 suspects each, their charts, sheets and masks.
    assert found["lang"] == "en"
    assert found["headings"][0] == "H1"
    assert set(found["headings"][1:]) == {"H2"}
    assert found["counts"]["images"] > 5 * 14 + 20
    assert found["counts"]["texts"] > 500
    # The table of classes is wider than either screen, most tables and the sheets are wider than a telephone.
    assert found["counts"]["overflowing"] >= (1 if view[0] == 1200 else 8)


def test_the_two_schemes_differ(views: dict[tuple[int, str], Findings]) -> None:
    backs = {scheme: views[390, scheme]["back"] for scheme in ("light", "dark")}
    assert backs["light"] > 0.9
    assert backs["dark"] < 0.1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_wide_tables_are_reached_and_scrolled_by_keys(scheme: str, browser: Browser, page: Path) -> None:
    browser.show(page, 390, scheme)
    boxes = browser.look()["labels"]
    reached = []
    for _ in boxes:
        browser.press(Keys.TAB)
        reached.append(browser.of_focus())
    assert [focus["label"] for focus in reached] == boxes
    assert min(focus["width"] for focus in reached) >= 2
    assert min(focus["contrast"] for focus in reached) >= 3
    assert {focus["style"] for focus in reached} == {"solid"}
    # The last one is a sheet, far wider than a telephone. It scrolls, the page does not.
    assert reached[-1]["scrolled"] == 0
    browser.press(Keys.ARROW_RIGHT)
    WebDriverWait(browser.driver, 5, 0.05).until(lambda _: browser.of_focus()["scrolled"] > 0)
    assert browser.driver.execute_script("return scrollX") == 0


def test_on_paper_nothing_hides_in_a_box(browser: Browser, page: Path) -> None:
    browser.show(page, 1000, "light", media="print")
    styles = browser.driver.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(box => getComputedStyle(box).overflowX)"
    )
    assert set(styles) == {"visible"}
    stuck = browser.driver.execute_script(
        "return [...document.querySelectorAll('th, td')].filter(c => getComputedStyle(c).position === 'sticky').length"
    )
    assert stuck == 0


FAULTS = {
    "wide": '<div style="width: 2000px; height: 9px"></div>',
    "overlapping": '<div><div style="height: 40px"></div><div style="height: 40px; margin-top: -20px"></div></div>',
    "spilling": '<p style="width: 40px; overflow-wrap: normal">unbrokenunbrokenunbroken</p>',
    "small": '<p style="font-size: 11px">small</p>',
    "pale": '<p style="color: #999">pale</p>',
    "images": '<img alt=" " src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==">',
    "boxes": '<div style="overflow-x: auto; width: 99px" tabindex="0"><div style="width: 300px; height: 9px"></div></div>',
    "focus": '<button tabindex="-1">press</button>',
    "order": "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>b</td></tr></tbody></table>",
}


def test_each_fault_is_found(browser: Browser, tmp_path: Path) -> None:
    # What finds nothing on a good page must find each fault on a bad one, and no other.
    start = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><body style="background: #fff; color: #000"><h1>page</h1>'
    )
    found = {}
    for kind, fault in FAULTS.items():
        (tmp_path / f"{kind}.html").write_text(f"{start}<main>{fault}</main>", encoding="utf-8")
        browser.show(tmp_path / f"{kind}.html", 390, "light")
        looked = browser.look()
        found[kind] = [other for other in NOTHING if looked[other]]
    assert found == {kind: [kind] for kind in FAULTS}
