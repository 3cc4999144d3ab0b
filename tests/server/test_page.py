"""The chat page in a real browser, against a stand-in for the public API that answers by a script.

Every test also fails on a script error, on anything that the content policy stops, and on a request to anywhere else.
"""

import base64
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fourfold.engine.engine import Engine
from fourfold.server.app import create_app
from fourfold.server.models import Models, serve
from fourfold.server.page import HEADERS, files, router
from fourfold.server.settings import Settings
from fourfold.text.tokenizer import Tokenizer
from tests.omni import make_omni
from tests.server.stand_in import CLIP, MARKDOWN, StandIn, data_url, picture, served

MUST = bool(os.environ.get("CI"))
if not MUST:
    pytest.importorskip("playwright", reason="Playwright is not here: pip install playwright")
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("background-networking", "component-update", "sync", "extensions", "default-apps", "dev-shm-usage")
ARGUMENTS = ["--no-sandbox", "--no-first-run", "--force-color-profile=srgb", *(f"--disable-{name}" for name in QUIET)]
PATIENCE = 60_000  # milliseconds, on a busy machine
browsing = pytest.mark.skipif(not (CHROMIUM or MUST), reason="Chromium is not here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        expect.set_options(PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[StandIn, str]]:
    api = StandIn()
    with served(api.app) as address:
        yield api, address


@pytest.fixture
def api(running: tuple[StandIn, str]) -> StandIn:
    running[0].reset()
    return running[0]


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """The page in a tab of its own; afterwards, that nothing went wrong in it and nobody else was asked."""
    with browser.new_context(**{"viewport": {"width": 1200, "height": 800}} | options) as context:
        wrong: list[str] = []
        asked: list[str] = []

        def note(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                wrong.append(message.text)

        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        assert not wrong
        assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


@pytest.fixture
def page(browser: Browser, running: tuple[StandIn, str], api: StandIn) -> Iterator[Page]:
    with opened(browser, running[1]) as page:
        expect(page.locator("#greeting")).to_have_text("Say something to omni.")
        yield page


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answered(page: Page) -> None:
    expect(page.locator("article.assistant").last).to_have_attribute("aria-busy", "false")


def figure(page: Page, row: str) -> list[str]:
    return page.get_by_role("row", name=row).get_by_role("cell").all_inner_texts()


# -- Files ---------------------------------------------------------------------------------------------------------------------


def test_files_come_with_the_policy_and_only_once() -> None:
    app = FastAPI()
    app.include_router(router)
    client = TestClient(app)
    first = client.get("/")
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert {name: first.headers[name] for name in HEADERS} == HEADERS
    again = client.get("/", headers={"If-None-Match": f'"x", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get("/", headers={"If-None-Match": '"x"'}).content == first.content
    assert client.head("/").headers["content-length"] == str(len(first.content))
    assert client.get("/page/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
    for name in ("none.js", "..%2fpage.py", "%2e%2e/page.py"):
        assert client.get(f"/page/{name}").status_code == 404


def test_policy_is_strict() -> None:
    policy = dict(each.split(" ", 1) for each in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search("unsafe|http|[*]", HEADERS["Content-Security-Policy"])


def test_files_name_each_other_and_nothing_else() -> None:
    named = {"index.html"}
    for name, file in files().items():
        text = file.content.decode()
        named |= set(re.findall(r'(?:href|src)="page/([^"]+)"', text)) | set(re.findall(r'from "\./([^"]+)"', text))
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|eval\(|document\.write|localStorage|indexedDB", text), name
        assert not re.findall(r"""https?://(?!www\.w3\.org|\[|\\)[a-z]""", text), name
    assert named == set(files())


# -- Conversation --------------------------------------------------------------------------------------------------------------


@browsing
def test_answer_streams_and_conversation_goes_on(page: Page, api: StandIn) -> None:
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    say(page, "hello")
    answered(page)
    expect(page.locator(".assistant .prose")).to_have_text("You said “hello” – ✓ 🙂.")
    expect(page.locator("#said")).to_have_text("You said “hello” – ✓ 🙂.")
    say(page, "again")
    answered(page)
    body = api.asked[-1]
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in body["messages"][::3]] == ["Be brief.", "again"]
    assert (body["model"], body["stream"], body["temperature"], body["thinking"]) == ("omni", True, 0.5, {"type": "disabled"})
    assert figure(page, "Tokens a second") == ["10.0", "10.0"]
    assert figure(page, "First token after") == ["0.50 s", "0.50 s"]
    assert figure(page, "… cached") == ["30 (75 %)", "60 (75 %)"]
    assert figure(page, "Price") == ["€0.000012", "€0.000024"]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    assert figure(page, "Tokens written") == ["–", "–"]


@browsing
def test_markdown_is_shown_and_markup_is_text(page: Page) -> None:
    say(page, "markdown")
    answered(page)
    prose = page.locator(".prose")
    expect(prose.locator("h3")).to_have_text("Title")
    assert [prose.locator(name).inner_text() for name in ("em", "strong", "p code")] == ["stress", "weight", "code < 1"]
    assert [link.get_attribute("href") for link in prose.locator("a").all()] == [
        "https://example.org/a_(b)",
        "https://example.org/x_y",
        "https://example.org/p.png",
    ]
    expect(prose.locator("ol > li")).to_have_count(2)
    expect(prose.locator("ol > li > ul > li")).to_have_text("inner")
    expect(prose.locator("pre")).to_have_text('print("<b>")')
    expect(prose).to_contain_text("snake_case_name, 2 * 3 * 4.")
    expect(prose).to_contain_text("[bad](javascript:alert(1))")
    expect(prose).to_contain_text('<img src=x onerror="window.broken=1"><script>')
    expect(prose.locator("img, script")).to_have_count(0)
    assert page.evaluate("window.broken") is None


@browsing
def test_events_are_the_same_wherever_the_stream_is_cut(page: Page) -> None:
    stream = ": keep-alive\n\ndata: {“1”}\r\n\r\ndata:two\ndata:  lines 🙂\n\nid: 3\revent: x\rdata: \r\rdata: [DONE]\n\n".encode()
    found = page.evaluate(
        """async (letters) => {
            const { events } = await import("/page/api.js");
            const bytes = Uint8Array.from(letters);
            const read = async (...pieces) => {
                const said = [];
                const stream = new ReadableStream({ start: (to) => (pieces.forEach((piece) => to.enqueue(piece)), to.close()) });
                for await (const data of events(stream)) said.push(data);
                return said;
            };
            return Promise.all(letters.map((_, at) => read(bytes.slice(0, at), bytes.slice(at, at + 1), bytes.slice(at + 1))));
        }""",
        [*stream],
    )
    assert len(found) == len(stream)
    assert all(said == ["{“1”}", "two\n lines 🙂", "", "[DONE]"] for said in found)


@browsing
def test_thinking_is_folded_and_asked_for(page: Page, api: StandIn) -> None:
    page.get_by_label("Think before answering").check()
    say(page, "think")
    answered(page)
    assert api.asked[-1]["thinking"] == {"type": "enabled"}
    expect(page.locator("details p")).to_be_hidden()
    page.locator("summary", has_text="Thought for").click()
    expect(page.locator("details p")).to_have_text("First this, then that.")
    expect(page.locator(".prose")).to_have_text("You said “think” – ✓ 🙂.")
    say(page, "more")
    answered(page)
    assert api.asked[-1]["messages"][1] == {"role": "assistant", "content": "You said “think” – ✓ 🙂."}


@browsing
def test_what_a_model_cannot_do_is_not_offered(page: Page, api: StandIn) -> None:
    thinking, attach = page.get_by_label("Think before answering"), page.get_by_role("button", name="Attach")
    page.get_by_label("Model").select_option("omni-reasoner")
    expect(thinking).to_be_disabled()
    expect(thinking).to_be_checked()
    assert page.locator("#pick").get_attribute("accept") == "image/*"
    page.locator("#pick").set_input_files({"name": "beep.wav", "mimeType": "audio/wav", "buffer": b"RIFF"})
    expect(page.get_by_role("alert")).to_contain_text("beep.wav: this model takes no sound.")
    page.get_by_label("Model").select_option("words")
    expect(attach).to_be_hidden()
    expect(thinking).not_to_be_checked()
    page.get_by_label("Model").select_option("elsewhere")
    expect(attach).to_be_visible()
    say(page, "hello")
    answered(page)
    assert "thinking" not in api.asked[-1]


@browsing
def test_a_drawing_that_begins_is_told_until_it_is_there(page: Page) -> None:
    say(page, "draw for ever")
    expect(page.locator(".status")).to_have_text("Drawing …")
    page.keyboard.press("Escape")
    expect(page.locator(".status")).to_have_text("Stopped.")
    say(page, "draw a cat")
    answered(page)
    expect(page.locator(".status").last).to_be_empty()


@browsing
def test_drawing_is_shown_sharp_kept_and_sent_back(page: Page, api: StandIn, tmp_path: Path) -> None:
    say(page, "draw a cat")
    answered(page)
    image = page.get_by_role("img", name="Drawn picture: draw a cat")
    expect(image).to_have_js_property("width", 288)
    assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    expect(page.locator("figcaption span")).to_have_text("16 × 16")
    assert [part.inner_text() for part in page.locator(".prose").all()] == ["Here:", "Done."]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "picture.png"
    assert download.value.path().read_bytes() == picture()
    say(page, "now a dog")
    answered(page)
    sent = api.asked[-1]["messages"][1]["content"]
    assert [part["type"] for part in sent] == ["text", "image_url", "text"]
    assert sent[1]["image_url"]["url"] == data_url(picture(), "image/png")


@browsing
def test_clip_plays_and_is_kept(page: Page) -> None:
    say(page, "film a dawn")
    answered(page)
    clip = page.get_by_label("Drawn clip: film a dawn")
    expect(page.locator("figcaption span")).to_have_text("32 × 24")
    expect(clip).to_have_js_property("width", 288)
    expect(clip).to_have_js_property("paused", False)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "clip.mp4"
    assert download.value.path().read_bytes() == CLIP


@browsing
def test_end_stays_in_sight_unless_scrolled_up(page: Page) -> None:
    page.set_viewport_size({"width": 700, "height": 400})
    talk, below = page.locator("#talk"), "node => node.scrollHeight - node.scrollTop - node.clientHeight"
    for text in ("markdown", "draw"):
        say(page, text)
        answered(page)
        expect(page.locator("figure img.sharp")).to_have_count(int(text == "draw"))
        expect(page.get_by_role("button", name="Retry")).to_be_in_viewport(ratio=1)
    say(page, "slow")
    expect(page.locator(".prose").last).to_contain_text("word1")
    talk.hover()
    page.mouse.wheel(0, -150)
    expect(page.locator(".prose").last).to_contain_text("word30")
    assert talk.evaluate(below) > 100
    page.mouse.wheel(0, 5000)
    expect(page.locator(".prose").last).to_contain_text("word60")
    assert talk.evaluate(below) < 60


@browsing
def test_files_are_attached_by_button_drop_and_paste(page: Page, api: StandIn) -> None:
    page.locator("#pick").set_input_files(
        [
            {"name": "a.png", "mimeType": "image/png", "buffer": picture()},
            {"name": "b.wav", "mimeType": "audio/x-wav", "buffer": b"RIFF"},
            {"name": "c.txt", "mimeType": "text/plain", "buffer": b"words"},
        ]
    )
    expect(page.get_by_role("alert")).to_contain_text("c.txt: is no picture, sound or clip.")
    for event, init, target in (("drop", "dataTransfer", "main"), ("paste", "clipboardData", "#text")):
        page.evaluate(
            """([event, init, target, name, letters]) => {
                const data = new DataTransfer();
                data.items.add(new File([Uint8Array.from(letters)], name, { type: event === "drop" ? "video/mp4" : "image/png" }));
                const kind = event === "drop" ? DragEvent : ClipboardEvent;
                const made = new kind(event, { [init]: data, bubbles: true, cancelable: true });
                document.querySelector(target).dispatchEvent(made);
            }""",
            [event, init, target, f"{event}.bin", [*picture()]],
        )
    expect(page.locator("#files li")).to_have_count(4)
    page.get_by_role("button", name="Remove paste.bin").click()
    say(page, "look")
    answered(page)
    expect(page.locator("#files li")).to_have_count(0)
    expect(page.locator(".user :is(img, audio, video)")).to_have_count(3)
    sound = {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}
    assert api.asked[-1]["messages"][-1]["content"] == [
        {"type": "image_url", "image_url": {"url": data_url(picture(), "image/png")}},
        {"type": "input_audio", "input_audio": sound},
        {"type": "video_url", "video_url": {"url": data_url(picture(), "video/mp4")}},
        {"type": "text", "text": "look"},
    ]


@browsing
def test_stop_ends_it_on_the_server_and_retry_asks_again(page: Page, api: StandIn) -> None:
    say(page, "slow")
    expect(page.locator(".prose")).to_contain_text("word2")
    page.get_by_label("Message", exact=True).fill("not lost")
    page.keyboard.press("Enter")  # does nothing while an answer comes
    page.keyboard.press("Escape")
    answered(page)
    assert api.left.wait(10)
    expect(page.locator(".status")).to_have_text("Stopped.")
    expect(page.get_by_label("Message", exact=True)).to_have_value("not lost")
    assert len(api.asked) == 1 and figure(page, "Tokens read") == ["–", "–"]
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".prose")).to_contain_text("word1")
    page.get_by_role("button", name="Stop").click()
    answered(page)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    assert api.asked[0]["messages"] == api.asked[1]["messages"]
    expect(page.locator("article")).to_have_count(2)


@browsing
def test_last_message_is_changed_and_sent_again(page: Page, api: StandIn) -> None:
    page.locator("#pick").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    say(page, "frist")
    answered(page)
    field = page.get_by_label("Message", exact=True)
    field.fill("a draft")
    page.get_by_role("button", name="Edit").click()
    expect(field).to_have_value("frist")
    page.keyboard.press("Escape")
    expect(field).to_have_value("a draft")
    page.get_by_role("button", name="Edit").click()
    say(page, "first")
    answered(page)
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator(".user p")).to_have_text("first")
    assert [part["type"] for part in api.asked[-1]["messages"][-1]["content"]] == ["image_url", "text"]
    assert len(api.asked[-1]["messages"]) == 1


@browsing
def test_keyboard(page: Page) -> None:
    field = page.get_by_label("Message", exact=True)
    expect(field).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(field).to_have_value("one\ntwo")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    answered(page)
    expect(field).to_be_focused()
    unnamed = """[...document.querySelectorAll("button, select, input, textarea")]
        .filter(node => !node.labels?.length && !node.ariaLabel && !node.innerText).map(node => node.id)"""
    assert page.evaluate(unnamed) == ["pick"]  # which is never shown


@browsing
def test_copy(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    say(page, "markdown")
    answered(page)
    page.locator(".code").get_by_role("button", name="Copy").click()
    expect(page.locator(".code .copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == 'print("<b>")'
    page.locator(".actions").get_by_role("button", name="Copy").click()
    expect(page.locator(".actions .copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN


# -- What goes wrong -----------------------------------------------------------------------------------------------------------


@browsing
def test_key_is_asked_for_and_kept_for_the_tab(page: Page, api: StandIn) -> None:
    expect(page.get_by_label("API key")).to_be_hidden()
    api.key = "sesame"
    say(page, "hello")
    expect(page.locator(".status")).to_have_text("no such key; ask for one")
    for key in ("wrong", "sesame"):
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        answered(page)
        expect(page.locator(".failed")).to_have_count(int(key == "wrong"))
    expect(page.get_by_label("API key")).to_be_hidden()
    page.reload()
    expect(page.locator("#greeting")).to_have_text("Say something to omni.")
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    page.evaluate("sessionStorage.clear()")
    page.reload()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#greeting")).to_have_text("Say something to omni.")


@browsing
def test_errors_are_a_line_with_retry(page: Page, api: StandIn) -> None:
    api.busy = True
    say(page, "hello")
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("the queue is full. Try again in 7 s.")
    api.busy = False
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".prose")).to_have_text("You said “hello” – ✓ 🙂.")
    expect(alert).to_have_count(0)
    say(page, "broken")
    expect(alert).to_have_text("the model stumbled")
    say(page, "too long")
    answered(page)
    expect(page.locator(".status").last).to_have_text("Cut off: the answer became too long.")
    page.context.set_offline(True)
    say(page, "anyone there?")
    expect(alert.last).to_have_text("The server cannot be reached.")


@browsing
def test_server_that_is_away_at_first(browser: Browser, running: tuple[StandIn, str], api: StandIn) -> None:
    with opened(browser, running[1]) as page:
        page.route("**/v1/models", lambda route: route.abort())
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
        page.unroute_all()
        page.get_by_role("button", name="Retry").click()
        expect(page.locator("#greeting")).to_have_text("Say something to omni.")
        expect(page.get_by_role("alert")).to_have_count(0)


# -- Screens -------------------------------------------------------------------------------------------------------------------


@browsing
@pytest.mark.parametrize("width", (320, 414, 800))
def test_narrow_screens(browser: Browser, running: tuple[StandIn, str], api: StandIn, width: int) -> None:
    with opened(browser, running[1], viewport={"width": width, "height": 640}, has_touch=True) as page:
        for text in ("markdown", "draw", "w" * 200):
            say(page, text)
            answered(page)
        assert page.evaluate("[document.documentElement.scrollWidth, document.querySelector('main').scrollWidth]") <= [width, width]
        panel, toggle = page.locator("#panel"), page.get_by_role("button", name="Settings and figures")
        expect(panel).to_be_hidden()
        toggle.tap()
        expect(panel).to_be_visible()
        expect(panel).to_contain_text("Tokens a second")
        page.keyboard.press("Escape")
        expect(panel).to_be_hidden()
        expect(toggle).to_be_focused()
        toggle.tap()
        page.set_viewport_size({"width": 1200, "height": 640})
        expect(toggle).to_be_hidden()
        expect(panel).to_be_visible()


@browsing
def test_follows_the_system(browser: Browser, running: tuple[StandIn, str], api: StandIn) -> None:
    light = {}
    for scheme in ("light", "dark"):
        with opened(browser, running[1], color_scheme=scheme, reduced_motion="reduce") as page:
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            light[scheme] = sum(map(int, re.findall(r"\d+", ground))) / 3
            say(page, "slow")
            expect(page.locator(".prose")).to_contain_text("word1")
            assert page.evaluate("document.getAnimations().length") == 0
    assert light["light"] > 200 and light["dark"] < 50


# -- The server itself ---------------------------------------------------------------------------------------------------------


@browsing
def test_with_the_real_server(browser: Browser, tokenizer: Tokenizer) -> None:
    model = make_omni(tokenizer)
    with torch.inference_mode():
        model(torch.arange(4)[None])  # which compiles the kernels: not a matter of the page
    settings = Settings(answer_tokens=8)
    models = Models([serve(model, "tiny-omni", Engine(model))], settings)
    with served(create_app(models, settings)) as address, opened(browser, address) as page:
        expect(page.locator("#abilities")).to_have_text("It sees pictures, watches clips, hears sound, draws, films and thinks.")
        page.locator("#pick").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
        page.get_by_label("Think before answering").check()
        written = 0  # random weights may end an answer early
        for text in ("the cat", "and the dog"):
            say(page, text)
            answered(page)
            expect(page.locator(".failed")).to_have_count(0)
            expect(page.locator(".assistant .body > *").last).not_to_be_empty()
            own, total = map(int, figure(page, "Tokens written"))
            written += own
            assert 0 < own <= 8 and total == written
        page.get_by_label("Model").select_option("tiny-omni-chat")
        expect(page.get_by_label("Think before answering")).to_be_disabled()
        say(page, "sat")
        answered(page)
        expect(page.locator(".failed, details:nth-of-type(3)")).to_have_count(0)
