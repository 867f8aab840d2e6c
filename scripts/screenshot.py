"""Make the pictures of the pages in docs/pictures/, in headless Chromium.

tinygpt report out -o report.html && python scripts/screenshot.py report report.html; walk and attention are parts of it
tinygpt serve out                 && python scripts/screenshot.py chat http://127.0.0.1:8000
tinygpt advise lines.csv          && python scripts/screenshot.py advise out-advise/advise.html
tinygpt lab reports --quick       && python scripts/screenshot.py lab out-lab-reports-quick/reports.html
python scripts/screenshot.py whole report.html --output phone.png --width 390 --dark
"""

import argparse
import base64
import shutil
import tempfile
import time
from collections.abc import Callable
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


def type_text(driver: webdriver.Chrome, text: str) -> None:
    box = driver.find_element("css selector", "#text")
    box.clear()
    box.send_keys(text)
    time.sleep(1)  # attention follows the text after a moment


def report(driver: webdriver.Chrome) -> None:
    type_text(driver, "ROMEO:\nO, she doth teach the torches to burn br")
    for name, value in (("temperature", 1.4), ("top-k", 8), ("top-p", 0.9)):
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        driver.execute_script(script, driver.find_element("css selector", f"#{name}"), value)
    time.sleep(1)
    driver.find_element("css selector", "[data-layer='2'][data-head='1']").click()


def walk(driver: webdriver.Chrome) -> None:
    type_text(driver, "ROMEO:\nO, she doth teach the torches to burn br")
    for _ in range(3):
        driver.find_element("css selector", "#walk-on").click()
    time.sleep(1)


def chat(driver: webdriver.Chrome) -> None:
    time.sleep(2)
    driver.find_element("css selector", "#box").send_keys("ROMEO:\ue007")  # the key Enter
    time.sleep(5)


def unfold(driver: webdriver.Chrome) -> None:
    time.sleep(1)
    script = "for (const panel of document.querySelectorAll('.panel')) panel.style.position = 'static'"
    driver.execute_script(script)


# What to do on the page, the element to show, and at most how many pixels of it.
PARTS: dict[str, tuple[Callable[[webdriver.Chrome], None], str, int]] = {
    "report": (report, "#type", 5000),
    "walk": (walk, "#walk", 5000),
    "attention": (report, "#attention", 5000),
    "chat": (chat, "html", 800),
    "advise": (unfold, "html", 840),
    "lab": (unfold, "html", 1000),
    "whole": (unfold, "html", 100_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("page", help="a file, or the address of a server on this machine")
    parser.add_argument("--output", type=Path, help="default: docs/pictures/PART.png")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    act, shown, most = PARTS[args.part]
    output = args.output or Path(f"docs/pictures/{args.part}.png")
    with tempfile.TemporaryDirectory() as profile:
        driver = chromium(profile, local=True)
        try:
            resize(driver, args.width, args.dark, scale=1 if args.part == "whole" else 1.5)
            driver.get(args.page if args.page.startswith("http://") else Path(args.page).resolve().as_uri())
            act(driver)
            driver.execute_script("document.activeElement.blur()")
            top, bottom = driver.execute_script(
                f"const box = document.querySelector('{shown}').getBoundingClientRect();"
                "return [box.top + scrollY, box.bottom + scrollY]"
            )
            clip = {"x": 0, "y": top, "width": args.width, "height": min(bottom - top, most)}
            output.write_bytes(picture(driver, clip))
        finally:
            driver.quit()
    print(f"written: {output}")


if __name__ == "__main__":
    main()
