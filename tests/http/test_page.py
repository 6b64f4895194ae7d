"""The playground's routes; tests/http/test_page_browser.py drives the page itself."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2 as httpx
import pytest

from calm_graph.http.playground import FOLDER, MEDIA_TYPES
from calm_graph.http.settings import HttpSettings
from calm_graph.model.composed import ComposedModel
from calm_graph.plan import svg
from calm_graph.plan.draw import colours
from calm_graph.serve.local import LocalClient
from tests.http.conftest import Served, serving
from tests.http.scripted import ScriptedClient

TRAINED = Path(__file__).parents[2] / "examples" / "arithmetic" / "trained"
PATHS = {"/": "index.html", **{f"/page/{name}": name for name in MEDIA_TYPES}}


@pytest.mark.parametrize("path", PATHS)
def test_files_come_with_their_type_and_a_strict_policy(served: Served, path: str) -> None:
    answer = httpx.get(served.url + path)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / PATHS[path]).read_bytes()
    assert answer.headers["content-type"] == MEDIA_TYPES[PATHS[path]]
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert {policy[name] for name in policy if name.endswith("-src")} == {"'none'", "'self'"}


def test_every_file_of_the_folder_is_served() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(MEDIA_TYPES)


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_the_browser_has_is_not_sent_again(served: Served, path: str) -> None:
    tag = httpx.get(served.url + path).headers["etag"]
    again = httpx.get(served.url + path, headers={"If-None-Match": tag})
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == tag
    assert httpx.get(served.url + path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_is_answered_without_a_body(served: Served) -> None:
    answer = httpx.head(f"{served.url}/")
    assert answer.status_code == 200 and answer.content == b""


@pytest.mark.parametrize("name", ["other.js", "..%2fapp.py", "%2e%2e/app.py", "page.js.map"])
def test_other_files_are_not_there(served: Served, name: str) -> None:
    answer = httpx.get(f"{served.url}/page/{name}")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_nothing_comes_from_elsewhere() -> None:
    for name in MEDIA_TYPES:
        text = (FOLDER / name).read_text("utf-8")
        assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text.replace("http://www.w3.org/2000/svg", "")) == []
    page = (FOLDER / "index.html").read_text("utf-8")
    assert "style=" not in page and not re.search(r"\bon\w+=|<script>|<style>", page)
    assert "innerHTML" not in (FOLDER / "page.js").read_text("utf-8")


def test_the_page_needs_no_key_and_what_it_asks_does(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:sesame\n")
    with serving(settings=HttpSettings(api_keys_file=keys)) as served:
        for path in PATHS:
            assert httpx.get(served.url + path).status_code == 200
        assert httpx.get(f"{served.url}/v1/compositions").status_code == 401


def test_the_page_is_not_part_of_the_api(served: Served) -> None:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


@pytest.mark.parametrize("has_template", [True, False])
def test_compositions_say_whether_their_anchor_reads_conversations(has_template: bool) -> None:
    with serving(ScriptedClient(has_template=has_template)) as served:
        (garden,) = httpx.get(f"{served.url}/v1/compositions").json()["data"]
    assert garden["chat_template"] is has_template


def test_the_graph_comes_with_its_drawing_and_colours() -> None:
    model = ComposedModel.from_pretrained(TRAINED)
    client = LocalClient({"both": model})
    try:
        graph = client.models["both"].graph
    finally:
        client.close()
    assert graph["svg"] == svg.svg(model.plan)
    assert graph["colours"] == colours(model.plan)
    assert set(graph["colours"]) == {"demo-arithmetic", "demo-prices-garden", "demo-prices-kitchen"}
    assert graph["svg"].count('<path data-augmenter="demo-prices-garden"') == 1


def test_the_style_knows_the_drawing_s_neutral_colours_and_classes() -> None:
    """The page may not take over the drawing's own style, so its style sheet has the same again."""
    css = (FOLDER / "page.css").read_text("utf-8")
    for colour in (svg.INK, svg.SOFT, svg.PALE):
        assert f'="{colour}"]' in css
    drawing = svg.svg(ComposedModel.from_pretrained(TRAINED).plan)
    for style in set(re.findall(r'class="(\w+)"', drawing)):
        assert f".graph .{style}" in css
    assert set(re.findall(r' style="([^"]*)"', drawing)) <= set(re.findall(r"fill:#[0-9a-f]{3,6}", drawing))
