"""The page in a real browser, on a real service: what a person sees and does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.browser import DESKTOP, PHONE, open_browser
from tests.helpers.stream import RECENT, SEGMENT, make_config, make_data, save_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60  # for an answer, on a machine that is busy
CSS = "css selector"
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


class _Page:
    """The page as a person uses it; `browser` is a WebDriver."""

    def __init__(self, browser: Any, address: str):
        self.browser, self.address = browser, address

    def open(self, user: str = "") -> None:
        self.browser.get(f"{self.address}/?user={user}" if user else self.address)
        self.wait(lambda: self.columns() if user else self.all("#examples button"))

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(CSS, selector)

    def text(self, selector: str) -> str:
        return self.browser.find_element(CSS, selector).text

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(f"return {script}", *arguments)

    def columns(self) -> dict[str, list[str]]:
        """Return the items of each column by its name."""
        return dict(
            self.run(
                "[...document.querySelectorAll('.column')].map((c) => [c.dataset.column,"
                " [...c.querySelectorAll('.items button')].map((b) => b.dataset.item)])"
            )
        )

    def count(self) -> int:
        """Return the number of events that the page states."""
        return int(self.text("#counts").split(" event")[0].replace(",", ""))

    def wait(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(f"nothing came; the page says {self.text('#error')!r}")

    def add(self, column: str, place: int = 0) -> str:
        """Click an item, wait until its event is shown, and return the item."""
        before = self.count()
        button = self.all(f"[data-column='{column}'] .items button")[place]
        item = button.get_attribute("data-item")
        button.click()
        self.wait(lambda: self.count() == before + 1 and self.text("#status"))
        return item

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def service(tmp_path_factory, request):
    """Yield (address, user with the most events, process) of `launch.serve` on a small dataset."""
    directory = tmp_path_factory.mktemp("service")
    dataset = make_data(directory)
    save_run(directory / "run", dataset, make_config(types=2, times=True))
    save_run(directory / "long", dataset, make_config("full", types=2, times=True))
    command = [sys.executable, "-m", "launch.serve", f"--workdir={directory}/run", "--port=0"]
    command += [f"--data={directory}/data", f"--compare={directory}/long"]
    command += [f"--store={directory}/store"]
    # Most of the start is compilation.
    env = os.environ | {"XLA_FLAGS": QUICK, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env["JAX_COMPILATION_CACHE_DIR"] = str(request.config.cache.mkdir("jax"))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    said = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if address := re.search(r"http://\S+", line):
            break
    else:
        pytest.fail(f"the service did not start: {''.join(said)[-2000:]}")
    yield address[0], dataset.user(int(np.argmax(dataset.lengths))), process
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


@pytest.fixture(scope="module")
def desktop(service):
    with open_browser(*DESKTOP) as browser:
        yield _Page(browser, service[0])


def test_a_person_looks_at_a_user_and_adds_an_event(desktop, service):
    page, (_, user, _) = desktop, service
    page.open()
    page.run("document.getElementById('user').focus()")
    page.browser.switch_to.active_element.send_keys(user, "\ue007")  # the enter key
    columns = page.wait(page.columns)
    assert list(columns) == [
        "history",
        "memory and recent events",
        "memory only",
        "recent events only",
        "full history (long)",
    ]
    assert all(len(items) == 10 for items in columns.values())
    assert page.text("#stored-title") == f"User {user}" and user in page.browser.title
    assert page.run("location.search") == f"?user={user}"

    before = page.count()
    item = page.add("memory and recent events", 3)
    after = page.columns()
    assert page.count() == before + 1 and after["history"][0] == item
    assert item in page.text("#status") and f"{before + 1} events" in page.text("#status")
    assert after["recent events only"] != columns["recent events only"]
    page.open(user)
    assert page.count() == before + 1 and page.columns()["history"] == after["history"]
    assert not page.console()


def test_the_memory_changes_at_its_update(desktop, service):
    page, user = desktop, "somebody new"
    page.open(user)
    assert page.text("#counts").startswith("No events yet")
    assert list(page.columns()) == ["history", "memory and recent events"]
    page.run("document.querySelector('.main .items button').click()")
    page.wait(lambda: "1 event now" in page.text("#status"))
    for _ in range(SEGMENT + RECENT - 2):
        page.add("memory and recent events")
    assert page.columns()["memory only"] == [] and "1 more event." in page.text("#columns")
    page.add("recent events only")
    assert "memory was updated" in page.text("#status")
    expected = page.columns()["memory only"]
    page.add("recent events only", 5)
    assert len(expected) == 10 and page.columns()["memory only"] == expected
    assert not page.console()


def test_items_are_found_by_title_and_time_passes(desktop, service):
    page, (_, user, _) = desktop, service
    page.open(user)
    page.all("#item")[0].send_keys("i7")
    page.wait(lambda: page.all("#items option"))
    before = page.count()
    page.all("#add button")[0].click()
    page.wait(lambda: page.count() == before + 1)
    assert page.columns()["history"][0] == "i7"
    when = page.run("document.getElementById('time').value")
    before = page.columns()
    page.all("[data-seconds='604800']")[0].click()
    page.wait(lambda: page.columns() != before)
    assert page.run("document.getElementById('time').value") > when
    assert not page.console()


def test_the_keyboard_is_enough(desktop, service):
    """From the user's field on, tab reaches an item; enter adds it, and the focus stays there."""
    page, (_, user, _) = desktop, service
    page.open(user)
    page.run("document.getElementById('user').focus()")
    for _ in range(20):
        page.browser.switch_to.active_element.send_keys("\ue004")  # the tab key
        if page.run("!!document.activeElement.closest('.items')"):
            break
    active = page.browser.switch_to.active_element
    assert active.get_attribute("data-item") == page.columns()["history"][0]
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = page.count()
    active.send_keys("\ue007")
    page.wait(lambda: page.count() == before + 1 and page.text("#status"))
    assert page.run("!!document.activeElement.closest('[data-column=history] .items')")


def test_everything_has_a_name_and_both_schemes_have_contrast(desktop, service):
    page, (_, user, _) = desktop, service
    page.open(user)
    unnamed = page.run(
        "[...document.querySelectorAll('input, select, button')].filter((e) => !(e.labels && "
        "e.labels.length) && !e.ariaLabel && !e.textContent.trim()).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        paper = _luminance(page.run("getComputedStyle(document.body).backgroundColor"))
        for selector in ("body", ".quiet", ".items .side", "#model"):
            ink = _luminance(
                page.run(f"getComputedStyle(document.querySelector('{selector}')).color")
            )
            low, high = sorted((ink, paper))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, selector)
        assert (paper > 0.5) == (scheme == "light")


def _luminance(color: str) -> float:
    """Return the relative luminance of rgb(..), as WCAG defines it."""
    parts = np.array([int(part) for part in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_phone_needs_no_sideways_scrolling(service):
    with open_browser(*PHONE) as browser:
        page = _Page(browser, service[0])
        for user in ("", service[1], "x" * 200):
            page.open(user)
            width = page.run("[innerWidth, document.documentElement.scrollWidth]")
            assert width == [PHONE[0], PHONE[0]], user
        page.open(service[1])
        small = page.run(
            "[...document.querySelectorAll('button, input')].filter((e) => e.offsetParent && "
            "e.getBoundingClientRect().height < 40).map((e) => e.outerHTML)"
        )
        assert small == [], "too small for a finger"
        assert not page.console()


def test_what_fails_is_said_in_a_sentence(desktop, service):
    """The last test: it ends the service."""
    page, (_, user, process) = desktop, service
    page.open(user)
    before = page.count()
    page.run("(document.getElementById('time').value = '1970-01-01T00:01')")
    page.all(".main .items button")[0].click()
    assert "before" in (text := page.wait(lambda: page.text("#error"))) and text.endswith(".")
    assert page.count() == before
    page.browser.switch_to.active_element.send_keys("\ue00c")  # the escape key
    assert page.text("#error") == "" and not page.console()
    page.open(user)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    page.all(".main .items button")[0].click()
    text = page.wait(lambda: page.text("#error"))
    assert text == "The service does not answer. Check that it is running, and try again."
    assert page.columns(), "what was shown stays"
