"""Photograph a report's page in a headless Chromium, for the documentation.

    python benchmarks/photograph.py report.html docs/_static/report.png --width 1360 --height 1500
    python benchmarks/photograph.py report.html dark.png --scheme dark --section figures

Needs selenium, and Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import tempfile
from pathlib import Path

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1360)
    parser.add_argument("--height", type=int, help="of the part photographed; all of it by default")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--section", help="begin at this part: findings, summary, figures, pairs, runs")
    arguments = parser.parse_args()
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        sys.exit("photograph: needs chromium and chromedriver: apt install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        arguments.picture.write_bytes(photograph(arguments, browser, driver, profile))


def photograph(arguments: argparse.Namespace, browser: str, driver: str, profile: str) -> bytes:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, "--hide-scrollbars", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    window = webdriver.Chrome(service=webdriver.ChromeService(driver), options=options)
    try:
        size = {"width": arguments.width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        scheme = [{"name": "prefers-color-scheme", "value": arguments.scheme}]
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        window.get(arguments.page.resolve().as_uri())
        script = "return document.documentElement.scrollHeight"
        top, whole = 0, window.execute_script(script)
        if arguments.section:
            script = "return document.getElementById(arguments[0]).getBoundingClientRect().top + scrollY - 24"
            top = window.execute_script(script, arguments.section)
        height = min(arguments.height or whole, whole - top)
        clip = {"x": 0, "y": top, "width": arguments.width, "height": height, "scale": 1}
        shot = window.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        return base64.b64decode(shot["data"])
    finally:
        window.quit()


if __name__ == "__main__":
    main()
