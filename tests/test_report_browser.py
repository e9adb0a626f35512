"""The page in a real browser, headless: it opens, sorts, filters, hides methods, and asks nobody for anything."""

from __future__ import annotations

import base64
import importlib.util
import os
import shutil
import struct
import time

import pytest
from report_runs import certified, many, run

from osscar_opt.bench.report.evaluation import evaluate
from osscar_opt.bench.report.page import write_page

pytest.importorskip("matplotlib")
REQUIRED = (
    os.environ.get("OSSCAR_OPT_BROWSER") == "required"
)  # a skip would then hide that nothing was tested
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = not (BROWSER and DRIVER and importlib.util.find_spec("selenium"))
pytestmark = pytest.mark.skipif(
    MISSING and not REQUIRED,
    reason="needs selenium, chromium and chromedriver (Debian: apt install chromium chromium-driver)",
)
EVIL = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1360,900",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    assert not MISSING, "OSSCAR_OPT_BROWSER=required, but there is no selenium, chromium or chromedriver"
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(service=webdriver.ChromeService(DRIVER), options=options)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def small(folder):
    rows = [
        *many(60),
        certified("exact", 4.0, instance=EVIL),
        run("greedy", None, instance=EVIL, reason=f"No: {EVIL}"),
    ]
    return write_page(evaluate(rows), folder / "small.html", title="Heuristics against certified optima")


@pytest.fixture
def opened(browser, small):
    browser.get_log("performance")
    browser.get(small.as_uri())
    return Page(browser)


class Page:
    """What a reader does with the page."""

    def __init__(self, driver):
        self.driver = driver

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.one(selector).text

    def column(self, key, table="runs"):
        """Texts of a column, as it is shown now."""
        script = """
            const root = document.querySelector(`[data-table=${arguments[0]}]`);
            const at = [...root.querySelectorAll('thead th')].findIndex(th => th.textContent === arguments[1]);
            return [...root.querySelectorAll('tbody tr')].map(row => row.cells[at].textContent);
        """
        return self.driver.execute_script(script, table, key)

    def drawn(self, series):
        """Whether a method is seen: False if all that belongs to it is hidden, an error if only some of it is."""
        script = """
            const nodes = [...document.querySelectorAll(`[data-series='${arguments[0]}']`)];
            return nodes.map(node => getComputedStyle(node).display !== 'none');
        """
        shown = set(self.driver.execute_script(script, series))
        assert len(shown) == 1
        return shown.pop()

    def head(self, name, table="runs"):
        return next(th for th in self.all(f"[data-table={table}] thead th") if th.text.startswith(name))

    def errors(self):
        return [entry for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]


def numbers(texts):
    """Times as seconds; None for what is not known."""
    scale = {"ms": 1e-3, "s": 1.0}
    parts = [text.split() for text in texts]
    return [float(part[0]) * scale[part[1]] if len(part) == 2 else None for part in parts]


def test_it_opens_without_errors_and_asks_for_nothing(opened):
    assert opened.errors() == []
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert opened.driver.execute_script(script) == []
    asked = [
        entry["message"]
        for entry in opened.driver.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"] and '"url":"http' in entry["message"]
    ]
    assert asked == []
    assert opened.text("h1") == "Heuristics against certified optima"
    assert opened.text("[data-table=runs] .count").startswith("242 runs, rows 1 to 50")


def test_an_evil_name_is_a_name(opened):
    opened.one("[data-table=runs] input[type=search]").send_keys("onerror")
    assert opened.column("Instance") == [EVIL, EVIL]
    assert opened.driver.title == "Heuristics against certified optima"
    assert opened.driver.execute_script("return document.images.length") == 0


def test_a_click_sorts_and_another_turns_it_round(opened):
    opened.head("Time").find_element("css selector", "button").click()
    up = numbers(opened.column("Time"))
    assert opened.head("Time").get_attribute("aria-sort") == "ascending"
    assert up == sorted(up)
    opened.head("Time").find_element("css selector", "button").click()
    down = numbers(opened.column("Time"))
    assert opened.head("Time").get_attribute("aria-sort") == "descending"
    assert down == sorted(down, reverse=True)
    assert down[0] > up[-1]


def test_what_is_not_known_comes_last_either_way(opened):
    opened.one("[data-table=runs] input[type=search]").send_keys("greedy")
    for _ in range(2):
        opened.head("Gap").find_element("css selector", "button").click()
        shown = opened.column("Gap")
        unknown = [index for index, text in enumerate(shown) if text == "–"]
        assert unknown == list(range(len(shown) - len(unknown), len(shown)))


def test_sorting_with_the_keyboard(opened):
    button = opened.head("Instance", "pairs").find_element("css selector", "button")
    opened.driver.execute_script("arguments[0].focus()", button)
    opened.driver.switch_to.active_element.send_keys("\ue007")  # Enter
    assert opened.head("Instance", "pairs").get_attribute("aria-sort") == "ascending"
    opened.driver.switch_to.active_element.send_keys(" ")
    assert opened.head("Instance", "pairs").get_attribute("aria-sort") == "descending"


def test_filters_narrow_the_rows_and_the_count_says_so(opened):
    opened.one("[data-table=runs] [data-column=method] option:nth-child(2)").click()
    assert len(set(opened.column("Method"))) == 1
    opened.one("[data-table=runs] [data-column=family] option:nth-child(2)").click()
    opened.one("[data-table=runs] [data-column=outcome] option[value=ok]").click()
    families, outcomes = set(opened.column("Family")), set(opened.column("Outcome"))
    assert (len(families), outcomes) == (1, {"ok"})
    count = opened.text("[data-table=runs] .count")
    assert count == f"{len(opened.column('Family'))} of 242 runs"
    opened.one("[data-table=runs] input[type=search]").send_keys("nothing is called this")
    assert opened.text("[data-table=runs] .count") == "0 of 242 runs"
    assert "Nothing matches" in opened.text("[data-table=runs] tbody")
    opened.one("[data-table=runs] .controls button").click()
    assert opened.text("[data-table=runs] .count").startswith("242 runs")


def test_words_of_a_filter_are_all_wanted_in_any_order(opened):
    opened.one("[data-table=runs] input[type=search]").send_keys("SEARCH ffn-")
    assert set(opened.column("Method")) == {"search"}
    assert {name.partition("-")[0] for name in opened.column("Instance")} == {"ffn"}


def test_hiding_a_method_hides_its_curves_rows_and_column(opened):
    box = opened.one("#methods input[value='0']")
    name = opened.text("#methods label:first-child").strip()
    assert opened.drawn(0)
    assert opened.drawn(1)
    box.click()
    assert not opened.drawn(0)
    assert opened.drawn(1)
    assert name not in opened.column("Method")
    assert not [
        th for th in opened.all("[data-table=pairs] thead th") if th.is_displayed() and th.text == name
    ]
    box.click()
    assert name in opened.column("Method")


def test_the_summary_sorts_too(opened):
    heads = opened.all("#summary thead th")
    button = next(th for th in heads if th.text.startswith("Median time")).find_element(
        "css selector", "button"
    )
    button.click()
    script = "return [...document.querySelectorAll('#summary tbody tr')].map(r => Number(r.cells[7].dataset.value))"
    times = opened.driver.execute_script(script)
    assert times == sorted(times)


def test_pages_turn(opened):
    first = opened.column("Instance")
    opened.all("[data-table=runs] .pager button")[1].click()
    assert opened.text("[data-table=runs] .count") == "242 runs, rows 51 to 100"
    assert opened.column("Instance") != first
    opened.one("[data-table=runs] .pager option[value='1000']").click()
    assert len(opened.column("Instance")) == 242


def test_light_dark_and_the_button(opened):
    def paper():
        return opened.driver.execute_script("return getComputedStyle(document.body).backgroundColor")

    def system(scheme):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)

    system("light")
    assert paper() == "rgb(255, 255, 255)"
    system("dark")
    dark = paper()
    assert dark != "rgb(255, 255, 255)"
    opened.one("#theme").click()  # light, whatever the system says
    assert paper() == "rgb(255, 255, 255)"
    system("light")
    opened.one("#theme").click()
    assert paper() == dark


@pytest.mark.parametrize("width", [400, 1360])
def test_it_fits_the_width_and_can_be_photographed(opened, width, folder):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert opened.driver.execute_script("return document.documentElement.scrollWidth") <= width
        shot = base64.b64decode(
            opened.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        )
        (folder / f"page-{width}.png").write_bytes(shot)
        assert struct.unpack(">II", shot[16:24]) == (width, 900)
    finally:
        opened.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_ten_thousand_runs_stay_quick(browser, folder):
    path = write_page(evaluate(many(2500)), folder / "large.html")
    began = time.monotonic()
    browser.get(path.as_uri())
    assert time.monotonic() - began < 60.0  # a second or two on a machine that does nothing else
    opened = Page(browser)
    assert opened.text("[data-table=runs] .count").startswith("10,000 runs")
    script = """
        const began = performance.now();
        document.querySelectorAll('[data-table=runs] thead button')[arguments[0]].click();
        return performance.now() - began;
    """
    assert max(browser.execute_script(script, column) for column in (0, 5, 10)) < 20_000
    assert opened.errors() == []
