"""The documentation site in a real browser: every page loads, no link is dead, search and table work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from zoo import catalog

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("mkdocs", reason="the site needs the extra [docs]")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-extensions",
         "--window-size=1280,900"]  # fmt: skip
LOOK = """
return {title: document.title, ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
        links: [...document.querySelectorAll("a[href]")].map((e) => e.href),
        broken: [...document.images].filter((e) => e.complete && !e.naturalWidth).map((e) => e.src),
        wide: document.documentElement.scrollWidth > window.innerWidth + 1,
        fetched: performance.getEntriesByType("resource").map((e) => e.name)};
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; the build is strict and says nothing but what it does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert not re.search("WARNING|ERROR", output), output[-3000:]
    return folder


@pytest.fixture(scope="module")
def address(site):
    """The site's address while it is served on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="driving a browser needs selenium (extra [test])")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser: install chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def wait(browser, script: str, *arguments: object, seconds: float = 30):
    """Until the script gives something."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(lambda b: b.execute_script(script, *arguments))


def test_every_page_loads_cleanly_and_no_link_is_dead(site, address, browser):
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert {"index.html", "models.html", "api/index.html", "papers/droppos.html"} <= set(pages)
    for slug in catalog.list_papers():
        assert {f"papers/{slug}.html", f"api/{slug}.html"} <= set(pages)
    seen = {}
    for page in pages:
        browser.get(address + page)
        # On a busy machine the driver can return while the page is still being parsed.
        wait(browser, "return document.readyState == 'complete' && location.href == arguments[0]", address + page)
        seen[page] = browser.execute_script(LOOK)
    problems = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    for page, found in seen.items():
        problems += [f"{page}: no picture at {source}" for source in found["broken"]]
        problems += [f"{page} fetches {name}" for name in found["fetched"] if not name.startswith((address, "data:"))]
        problems += [f"{page} is wider than the window"] if found["wide"] else []
        for link in set(found["links"]):
            if not link.startswith(address):
                continue
            target, anchor = urldefrag(link.removeprefix(address))
            target = unquote(target) or "index.html"
            target += "index.html" if target.endswith("/") else ""
            if target in seen:
                there = not anchor or unquote(anchor) in seen[target]["ids"]
            else:
                there = (site / target).is_file() and not anchor
            problems += [] if there else [f"{page}: dead link {link.removeprefix(address)}"]
    assert not problems, "\n".join(problems[:30])


@pytest.mark.parametrize("name", ["droppos-vit-cifar10", "bert_uncased_L-4_H-256_A-4"])
def test_the_search_finds_a_model(address, browser, name):
    browser.get(address + "index.html")
    browser.execute_script("document.querySelector('label[for=__search]').click()")
    field = browser.find_element("css selector", "input.md-search__input")
    wait(browser, "arguments[0].focus(); return document.activeElement === arguments[0]", field)
    field.send_keys(name)
    found = "return [...document.querySelectorAll('a.md-search-result__link')].map((e) => e.href)"
    wait(browser, f"return ({found.replace('return ', '')}).some((link) => link.includes(arguments[0]))", f"#{name}")
    first = browser.execute_script(found)[0]
    assert first.split("?")[0].endswith(f"papers/{catalog.info(name).paper}.html"), first


def test_the_table_filters_searches_and_sorts(address, browser):
    browser.get(address + "models.html")
    wait(browser, "return document.querySelector('.zoo-models select[name=domain]')")
    models = catalog.list_models()
    assert len(shown(browser)) == len(models)

    choose(browser, "domain", "text")
    text = {name for slug in catalog.list_papers() if catalog.paper_info(slug).domain == "text"
            for name in catalog.paper_info(slug).models}  # fmt: skip
    assert set(shown(browser)) == text
    choose(browser, "search", "electra base")
    assert set(shown(browser)) == {"electra-base-discriminator", "electra-base-generator"}
    choose(browser, "search", "")
    choose(browser, "domain", "")

    choose(browser, "licence", "CC-BY-NC-4.0")
    assert set(shown(browser)) == {name for name in models if catalog.info(name).license == "CC-BY-NC-4.0"}
    choose(browser, "domain", "text")
    assert shown(browser) == [name for name in text if catalog.info(name).license == "CC-BY-NC-4.0"]
    choose(browser, "domain", "")
    choose(browser, "licence", "")

    by_size = sorted(models, key=lambda name: catalog.info(name).parameters or 0)
    click = "[...document.querySelectorAll('.zoo-models th button')].find((e) => e.textContent == arguments[0]).click()"
    browser.execute_script(click, "Parameters")
    assert shown(browser)[0] == by_size[0]
    browser.execute_script(click, "Parameters")
    assert catalog.info(shown(browser)[0]).parameters == catalog.info(by_size[-1]).parameters
    browser.execute_script(click, "Model")
    assert sorted(shown(browser)) == models


def choose(browser, field: str, value: str) -> None:
    """Sets a field of the table's form as a user does."""
    browser.execute_script(
        "const e = document.querySelector(`.zoo-models [name=${arguments[0]}]`);"
        "e.value = arguments[1]; e.dispatchEvent(new Event('input', {bubbles: true}));",
        field,
        value,
    )


def shown(browser) -> list[str]:
    """Names of the models that the table shows, in its order; the count above it agrees."""
    names, count = browser.execute_script(
        "return [[...document.querySelectorAll('.zoo-models tbody tr')].filter((e) => e.offsetParent)"
        ".map((e) => e.cells[0].textContent.trim()), document.querySelector('.zoo-models output').textContent]"
    )
    assert count.startswith(f"{len(names)} of ")
    return names


PHONE = ["index", "models", "papers/droppos", "papers/clip2point", "api/index", "troubleshooting"]


@pytest.mark.parametrize("page", PHONE)
def test_pages_fit_a_phone(address, browser, page):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        browser.get(address + page + ".html")
        width = browser.execute_script("return document.documentElement.scrollWidth")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 390, f"{page} is {width} pixels wide"
