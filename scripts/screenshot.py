"""Make a screenshot of a part of a report in headless Chromium: report.png, attention.png in docs/pictures/.

tinygpt report out -o report.html && python scripts/screenshot.py report.html
python scripts/screenshot.py report.html --section attention --output docs/pictures/attention.png
python scripts/screenshot.py report.html --output phone.png --width 390 --dark --whole
"""

import argparse
import base64
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

LOCAL = "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # no other host has an address
SWITCHES = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking hide-scrollbars"


def chromium(profile: str | Path, local: bool = False) -> webdriver.Chrome:
    """Start Chromium or Chrome without a window and without a network; `profile`: an empty folder.

    local: servers of this machine can be reached.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for switch in [*SWITCHES.split(), "disable-component-update", "disable-sync", f"user-data-dir={profile}", LOCAL]:
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": not local, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    return driver


def resize(
    driver: webdriver.Chrome,
    width: int,
    dark: bool = False,
    scale: float = 1,
    motion: bool = False,
    height: int = 900,
) -> None:
    """Set the size of the screen in pixels; with a width below 500, it is a phone. motion: pages may move."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    moving = {"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme, moving]})


def picture(driver: webdriver.Chrome, clip: dict[str, Any]) -> bytes:
    asked = {"captureBeyondViewport": True, "clip": {"scale": 1, **clip}}
    return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/report.png"))
    parser.add_argument("--text", default="ROMEO:\nO, she doth teach the torches to burn br", help="text to type")
    parser.add_argument("--section", choices=("type", "attention"), default="type")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="take the complete page, as it opens")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile:
        driver = chromium(profile)
        try:
            resize(driver, args.width, args.dark, scale=1 if args.whole else 1.5)
            driver.get(args.page.resolve().as_uri())
            clip = {"x": 0, "y": 0, "width": args.width}
            if args.whole:
                time.sleep(1)  # attention follows the text after a moment
                driver.execute_script(
                    "for (const panel of document.querySelectorAll('.panel')) panel.style.position = 'static'"
                )
                clip["height"] = driver.execute_script("return document.documentElement.scrollHeight")
            else:
                box = driver.find_element("css selector", "#text")
                box.clear()
                box.send_keys(args.text)
                for name, value in (("temperature", 1.4), ("top-k", 8), ("top-p", 0.9)):
                    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
                    driver.execute_script(script, driver.find_element("css selector", f"#{name}"), value)
                time.sleep(1)
                driver.find_element("css selector", "[data-layer='2'][data-head='1']").click()
                driver.execute_script("document.activeElement.blur()")
                top, bottom = driver.execute_script(
                    f"const box = document.querySelector('#{args.section}').getBoundingClientRect();"
                    "return [box.top + scrollY, box.bottom + scrollY]"
                )
                clip |= {"y": top, "height": bottom - top}
            args.output.write_bytes(picture(driver, clip))
        finally:
            driver.quit()
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
