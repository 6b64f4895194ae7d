"""The playground in a headless Chromium, against real servers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calm_graph.http.settings import HttpSettings
from calm_graph.model.composed import ComposedModel
from calm_graph.serve.local import LocalClient
from tests.http.conftest import Served, serving
from tests.http.scripted import ScriptedClient

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.browser
TRAINED = Path(__file__).parents[2] / "examples" / "arithmetic" / "trained"
# Chromium has services of its own, which would look for hosts elsewhere.
FLAGS = (
    *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the dev extra")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver on the PATH (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_window_size(1280, 820)
    yield chrome
    chrome.quit()


class Page:
    """The playground as somebody uses it."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def open(self, url: str, *, ready: bool = True) -> Page:
        self.chrome.get("about:blank")
        self.chrome.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
        self.chrome.execute_script("window.name = ''")
        self.chrome.get(f"{url}/")
        self.chrome.execute_script("sessionStorage.clear()")
        if ready:
            self.wait(lambda: self.run("return !document.getElementById('model').disabled"))
        return self

    def wait(self, is_so: Callable[[], Any], timeout_s: float = 10) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        ignored = (StaleElementReferenceException, IndexError)
        return WebDriverWait(self.chrome, timeout_s, 0.02, ignored).until(lambda _: is_so())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def all(self, css: str) -> list[WebElement]:
        return [each for each in self.chrome.find_elements("css selector", css) if each.is_displayed()]

    def one(self, css: str) -> WebElement:
        self.wait(lambda: self.all(css))
        (found,) = self.all(css)
        return found

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.chrome, duration=0).send_keys(*keys).perform()

    def chord(self, held: str, key: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.chrome, duration=0).key_down(held).send_keys(key).key_up(held).perform()

    def point(self, element: WebElement) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.chrome, duration=0).move_to_element(element).perform()

    def fill(self, css: str, text: str) -> None:
        self.one(css).clear()
        self.one(css).send_keys(text)

    def send(self, prompt: str) -> None:
        self.one("#prompt").send_keys(prompt + "\ue007")

    def answer(self) -> str:
        """Wait for the last answer's end, and return its text."""
        self.wait(lambda: self.all("#send") and not self.all("[aria-busy]"))
        return self.all(".answer")[-1].text.strip()

    def notice(self, kind: str) -> WebElement:
        return self.one(f".notice[data-kind={kind}]")

    def focused(self) -> str:
        return str(self.run("return document.activeElement.id || document.activeElement.className"))

    def emulate(self, **features: str) -> None:
        entries = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": entries})

    def width(self, width: int, height: int = 740) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def background(self) -> str:
        return str(self.run("return getComputedStyle(document.body).backgroundColor"))


@pytest.fixture
def page(chrome: Chrome) -> Iterator[Page]:
    chrome.get_log("browser")
    yield Page(chrome)
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    # What the server refuses is logged too; an error of the script, or against the policy, is one of ours.
    said = [
        entry["message"] for entry in chrome.get_log("browser") if "Failed to load resource" not in entry["message"]
    ]
    assert not said


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The demo's composition: two price lists, and an anchor without a chat template."""
    client = LocalClient({"demo-both": ComposedModel.from_pretrained(TRAINED)})
    try:
        with serving(client) as served:  # type: ignore[arg-type]
            yield served.url
    finally:
        client.close()


def tokens(page: Page) -> list[str]:
    script = "return [...document.querySelectorAll('.turn:last-child .token')].map((token) => token.textContent)"
    return [str(text) for text in page.run(script)]


def last_token(page: Page) -> WebElement:
    return page.one(".turn:last-child .token:last-child")


def numbers(page: Page) -> str:
    """Return what the last token's numbers say."""
    page.point(last_token(page))
    return page.one("#tip").text


def test_a_prompt_is_answered_and_an_augmenter_switched_off_writes_nothing(page: Page, demo: str) -> None:
    page.open(demo)
    assert page.one("#welcome-graph svg").size["width"] > 400
    page.one("#temperature").send_keys("\ue011")  # Home: 0
    page.send("bab+dad=")
    both = page.answer()
    assert both.isdecimal()
    said = numbers(page)
    assert "demo-prices-garden" in said and "demo-prices-kitchen" in said and "%" in said
    assert "gradient" in page.one(".token").value_of_css_property("background-image")
    assert "9 + 2 tokens" in page.one(".meta").text and "tokens/s" in page.one(".meta").text
    assert [each.text[:6] for each in page.all(".wrote")] == ["wrote ", "wrote "]
    arrow = '.graph [data-augmenter="demo-prices-kitchen"]'
    before = page.run(f"return document.querySelector('{arrow}').style.opacity")

    page.one('[data-name="demo-prices-kitchen"] .switch').click()
    assert page.run(f"return document.querySelector('{arrow}').style.opacity") < before
    page.one(".regenerate").click()
    page.answer()
    said = numbers(page)
    assert "demo-prices-garden" in said and "demo-prices-kitchen" not in said
    assert [each.text for each in page.all(".wrote")][1] == "wrote nothing"
    assert "demo-prices-kitchen off" in page.one(".meta").text


def test_the_graph_opens_beside_a_conversation(page: Page, demo: str) -> None:
    page.open(demo).send("2+3=")
    assert page.answer() == "5"
    page.one("#show-graph").click()
    assert page.one("#dialog-graph svg").get_attribute("aria-label").startswith("demo-both: ")
    page.press("\ue00c")
    page.wait(lambda: not page.all("#graph-dialog"))
    assert page.focused() == "show-graph"


def test_the_anchor_alone_has_no_augmenters(page: Page, demo: str) -> None:
    page.open(demo)
    page.one("#model option[value=demo-arithmetic]").click()
    page.wait(lambda: not page.all("#augmenters-section"))
    page.send("2+3=")
    assert page.answer() == "5" and "No augmenter" in numbers(page)


def test_text_streams_and_stop_stops(page: Page, served: Served) -> None:
    page.open(served.url).send("!slow")
    page.wait(lambda: len(tokens(page)) >= 3)
    assert page.all("[aria-busy=true]") and served.client.under_way
    page.one("#stop").click()
    page.answer()
    assert "stopped" in page.one(".meta").text
    page.wait(lambda: not served.client.under_way)
    assert len(tokens(page)) < 30 and tokens(page)[:3] == ["0 ", "1 ", "2 "]
    assert page.focused() == "prompt"


def test_settings_are_sent(page: Page, served: Served) -> None:
    page.open(served.url)
    page.fill("#max-tokens", "4")
    page.fill("#seed", "7")
    page.one("#temperature").send_keys("\ue010")  # End: 2
    page.one('[data-name="prices-garden"] [type=range]').send_keys("\ue010")
    page.one('[data-name="prices-kitchen"] .switch').click()
    page.send("hello")
    assert page.answer() == "0 1 2 3"
    request = served.client.requests[-1]
    sampling = request.sampling
    assert (sampling.max_new_tokens, sampling.seed, sampling.temperature) == (4, 7, 2.0)
    assert request.scales == {"prices-garden": 2.0, "prices-kitchen": 0.0} and request.contributions


def test_a_conversation_goes_on_and_begins_anew(page: Page, served: Served) -> None:
    def read() -> str:
        return str(served.client.tokenizer.decode(list(served.client.requests[-1].prompt_ids)))

    page.open(served.url)
    page.fill("#max-tokens", "2")
    page.send("first")
    page.answer()
    page.send("second")
    page.answer()
    assert read() == "<user>first\n<assistant>0 1 \n<user>second\n<assistant>"
    page.one(".regenerate").click()
    page.answer()
    assert read() == "<user>first\n<assistant>0 1 \n<user>second\n<assistant>" and len(page.all(".turn")) == 2
    page.one("#new").click()
    assert not page.all(".turn")
    page.send("third")
    page.answer()
    assert read() == "<user>third\n<assistant>"


def test_without_a_template_each_prompt_stands_alone(page: Page) -> None:
    with serving(ScriptedClient(has_template=False)) as served:
        page.open(served.url)
        assert "each prompt stands alone" in page.one("#welcome").text
        page.fill("#max-tokens", "2")
        for prompt in ("first", "second"):
            page.send(prompt)
            page.answer()
        assert served.client.requests[-1].prompt_text == "second"


def test_what_people_write_is_text(page: Page, served: Served) -> None:
    page.open(served.url).send("<img src=x onerror=alert(1)><b>bold</b>")
    page.answer()
    assert page.one(".asked").text.endswith("<b>bold</b>") and not page.all("#thread img, #thread b")


def test_colours_can_leave_an_augmenter_out(page: Page, served: Served) -> None:
    page.open(served.url)
    page.fill("#max-tokens", "5")
    page.send("hello")
    page.answer()
    last = last_token(page)
    assert "gradient" in last.value_of_css_property("background-image")
    assert page.one("#ramp-max").text == "40%"
    page.one('.chips [title="prices-garden"]').click()
    assert "gradient" not in last.value_of_css_property("background-image")


@pytest.mark.parametrize(
    "prompt, kind, says",
    [
        ("!refuse", "refused", "something that the engine refuses"),
        ("long " * 60, "long", "the context of 'garden' is 192 tokens"),
        ("!lost", "unready", "the replica is gone"),
        ("!crash", "broken", "internal error"),
        ("!break", "cut", "the replica is gone"),
    ],
)
def test_each_failure_says_what_happened(page: Page, served: Served, prompt: str, kind: str, says: str) -> None:
    page.open(served.url).send(prompt)
    notice = page.notice(kind)
    assert says in notice.text and notice.find_element("css selector", "[role=alert]")
    assert notice.find_element("tag name", "button").text == ("Start anew" if kind == "long" else "Try again")
    assert tokens(page) == (["0 ", "1 ", "2 "] if kind == "cut" else [])
    assert ("request " in notice.text) is (kind in ("broken", "cut"))
    if kind == "long":
        notice.find_element("tag name", "button").click()
        assert not page.all(".turn") and page.one("#prompt").get_property("value") == prompt


def test_an_overloaded_server_is_asked_again_after_a_while(page: Page, served: Served) -> None:
    page.open(served.url).send("!overload")
    button = page.notice("busy").find_element("tag name", "button")
    assert not button.is_enabled() and button.text == "Try again in 3 s"
    page.wait(lambda: button.text == "Try again in 2 s")
    page.wait(lambda: button.is_enabled() and button.text == "Try again")
    button.click()
    page.wait(lambda: len(served.client.requests) == 2)


def test_a_key_is_asked_for_and_kept_for_the_tab(page: Page, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:sesame\n")
    with serving(settings=HttpSettings(api_keys_file=keys)) as served:
        page.open(served.url, ready=False)
        page.wait(lambda: page.focused() == "key")
        page.press("wrong", "\ue007")
        page.wait(lambda: "does not know" in page.one("#key-form").text)
        page.press("sesame", "\ue007")
        page.wait(lambda: page.all("#welcome-graph, #model:enabled") and not page.all("#key-form, .notice"))
        page.send("hello")
        assert page.answer().startswith("0 1 2")
        page.chrome.refresh()
        page.wait(lambda: page.all("#model:enabled"))
        assert not page.all("#key-form")
        assert page.run("return [sessionStorage.length, localStorage.length]") == [1, 0]
        page.one("#forget-key").click()
        page.send("hello again")
        page.notice("key")
        page.press("sesame", "\ue007")
        assert page.answer().startswith("0 1 2")


def test_a_server_that_is_gone_and_comes_back(page: Page) -> None:
    with serving() as served:
        port = int(served.url.rpartition(":")[2])
        page.open(served.url).send("!slow")
        page.wait(lambda: len(tokens(page)) >= 2)
    assert "cut off" in page.notice("cut").text and len(tokens(page)) >= 2
    page.fill("#max-tokens", "4")
    page.send("hello")
    notice = page.notice("unreachable")
    assert "cannot be reached" in notice.text
    with serving(port=port):
        notice.find_element("tag name", "button").click()
        assert page.answer().startswith("0 1 2")
        assert not page.all("[data-kind=unreachable]")


def test_keyboard_alone(page: Page, served: Served) -> None:
    page.open(served.url)
    assert page.focused() == "prompt"
    page.fill("#max-tokens", "20")
    page.one("#prompt").click()
    page.press("one")
    page.chord("\ue008", "\ue007")  # Shift+Enter
    page.press("two")
    assert page.one("#prompt").get_property("value") == "one\ntwo" and not served.client.requests
    page.chord("\ue009", "\ue007")  # Ctrl+Enter
    page.answer()
    page.press("!slow", "\ue007")
    page.wait(lambda: len(tokens(page)) >= 2)
    page.press("\ue00c")  # Escape
    page.answer()
    assert "stopped" in page.all(".meta")[-1].text and page.focused() == "prompt"
    passed = []
    while (focused := page.focused()) != "answer":
        passed.append(focused)
        assert len(passed) < 10
        page.chord("\ue008", "\ue004")  # Shift+Tab
    page.press("\ue014", "\ue014")  # right, right
    assert page.one("#tip").text.startswith("1") and "prices-garden 10%" in page.run(
        "return document.getElementById('status').textContent"
    )
    page.press("\ue00c")
    assert not page.all("#tip")
    page.run("document.activeElement.blur()")
    order = []
    page.run("document.querySelector('.skip').focus()")
    for _ in range(4):
        page.press("\ue004")
        order.append(page.focused())
    assert order == ["model", "new", "theme", "answer"]
    unnamed = page.run(
        """return [...document.querySelectorAll("button, input, select, textarea")].filter((each) =>
        !each.textContent.trim() && !each.ariaLabel && !each.labels?.length).map((each) => each.outerHTML)"""
    )
    assert unnamed == []


def test_dark_and_light(page: Page, served: Served) -> None:
    light, dark = "rgb(251, 250, 247)", "rgb(21, 24, 27)"
    page.emulate(prefers_color_scheme="light")
    page.open(served.url)
    assert page.background() == light
    page.emulate(prefers_color_scheme="dark")
    assert page.background() == dark
    seen = []
    for _ in range(3):
        page.one("#theme").click()
        seen.append((page.one("#theme").get_attribute("title"), page.background()))
    assert seen == [("Theme: light", light), ("Theme: dark", dark), ("Theme: system", dark)]
    page.one("#theme").click()
    page.chrome.refresh()
    page.wait(lambda: page.background() == light)


def test_no_motion_where_none_is_wanted(page: Page, served: Served) -> None:
    page.emulate(prefers_reduced_motion="reduce")
    page.open(served.url).send("!slow")
    page.one("[aria-busy=true]")
    assert page.run("return getComputedStyle(document.querySelector('.answer'), '::after').animationName") == "none"
    page.press("\ue00c")


def test_a_phone(page: Page, demo: str) -> None:
    page.width(360)
    page.open(demo)

    def overhang() -> int:
        return int(page.run("return document.documentElement.scrollWidth - innerWidth"))

    assert overhang() <= 0 and page.run("return innerWidth") == 360
    page.send("2+3=" + "0" * 90)
    page.answer()
    page.wait(lambda: page.all(".meta") or page.all(".notice"))
    assert overhang() <= 0
    page.one("#open-settings").click()
    page.wait(lambda: page.focused() == "close-settings")
    page.wait(lambda: page.one("#settings").rect["x"] + page.one("#settings").rect["width"] == 360)
    assert overhang() <= 0 and len(page.all(".switch")) == 2
    page.press("\ue00c")
    page.wait(lambda: not page.all("#settings"))
    assert page.focused() == "open-settings"
    small = [each.rect for each in page.all("#bar button, #composer button") if min(each.size.values()) < 36]
    assert small == []
