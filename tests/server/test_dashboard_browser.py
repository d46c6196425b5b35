"""The dashboard's page in a browser: drawn from live frames, at the sizes that people have, and safe from names."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .browser import Tab, browser
from .held import FORK, PROMPT, gen, held
from .serving import Served, serving

pytestmark = pytest.mark.model
EVIL = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
LIVE = 'document.body.dataset.state === "live"'
NAMED = '[...document.querySelectorAll(".program:not(.over) h3")].map(each => each.textContent)'


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(dashboard=True) as made:
        yield made


@pytest.fixture
def tab() -> Iterator[Tab]:
    with browser() as made:
        made.look(1280, 800)
        yield made


def test_a_live_page(tab: Tab, served: Served):
    tab.open(f"{served.url}/dashboard")
    tab.until(LIVE)
    assert tab.run('document.querySelector(".programs").classList.contains("bare")')  # says that nothing runs
    with held(served, EVIL):
        tab.until(f"{NAMED}.length === 1")
        assert tab.run(NAMED) == [EVIL[:96]]
        rows = '[...document.querySelectorAll(".branch .what")].map(each => each.textContent)'
        waits = ["root waits for its program", *(f"1.b{n} waits for its program" for n in (0, 1))]
        tab.until(f"JSON.stringify({rows}) === JSON.stringify({json.dumps(waits)})")  # a frame later, perhaps
        assert tab.run('document.querySelectorAll(".bar.held").length') >= 3
        assert tab.run('document.getElementById("kv-used").textContent') != "0"
        assert tab.run('[document.title, document.querySelectorAll("main img, main script").length]') == ["ramet", 0]
    tab.until(f"{NAMED}.length === 0")
    assert tab.complaints() == []


def test_the_tree_can_be_walked_with_the_keyboard(tab: Tab, served: Served):
    tab.open(f"{served.url}/dashboard")
    with held(served, "walked"):
        tab.until('document.querySelectorAll(".bar.held").length >= 3')
        tab.run('document.getElementById("icicle").focus()')
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
            tab.call("Input.dispatchKeyEvent", type="keyDown", key=key)
            tab.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        assert "tokens" in tab.run('document.getElementById("detail").textContent')
        active = tab.run('document.getElementById("icicle").getAttribute("aria-activedescendant")')
        assert tab.run(f'document.getElementById("{active}").getAttribute("role")') == "treeitem"


@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 800, False), (390, 844, True), (768, 1024, False)])
def test_it_fits(tab: Tab, served: Served, width: int, height: int, phone: bool):
    """Nothing sticks out at the side; on a desk, all of it is in sight at once, and it stays so when there is a lot."""
    tab.look(width, height, phone=phone)
    tab.open(f"{served.url}/dashboard")
    tab.until(LIVE)
    names = [f"0.1.b{n}" for n in range(60)]
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    empty = tab.run(size)
    with held(served, "wide " * 40, (PROMPT, {**FORK, "into": names}, *(gen(name, 2) for name in names))):
        tab.until('document.querySelectorAll(".branch").length > 50')
        full = tab.run(size)
    assert full == empty and full[0] == tab.run("document.documentElement.clientWidth")  # and so nothing has jumped
    if width == 1280:
        assert full[1] == height


@pytest.mark.parametrize("dark", [False, True])
def test_themes(tab: Tab, served: Served, dark: bool):
    tab.look(1280, 800, dark=dark)
    tab.open(f"{served.url}/dashboard")
    shown = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128"
    assert tab.run(shown) is dark
    tab.run('document.getElementById("theme").click()')
    assert tab.run(shown) is not dark


def test_a_key_is_asked_for_and_kept_in_memory_alone(tab: Tab):
    with serving(dashboard=True, api_key=("open sesame".replace(" ", "-"),)) as guarded:
        tab.open(f"{guarded.url}/dashboard")
        tab.until('document.body.dataset.state === "key"')
        assert tab.run("document.activeElement.id") == "key"
        enter = 'document.getElementById("key").value = "{}"; document.getElementById("gate").requestSubmit()'
        tab.run(enter.format("wrong"))
        tab.until('document.getElementById("gate-why").className === "bad"')
        tab.run(enter.format("open-sesame"))
        tab.until(LIVE)
        kept = "JSON.stringify([location.href, document.cookie, {...localStorage}, {...sessionStorage}])"
        assert "sesame" not in tab.run(kept) and "sesame" not in tab.run("document.documentElement.outerHTML")


def test_a_lost_connection_is_said(tab: Tab):
    with serving(dashboard=True) as short:
        tab.open(f"{short.url}/dashboard")
        tab.until(LIVE)
        tab.call("Network.enable")
        tab.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        tab.run("stream.abort.abort()")
        tab.until('document.body.dataset.state === "lost"')
        assert "again in" in tab.run('document.getElementById("status").textContent')
        tab.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        tab.until(LIVE)
        tab.call("Page.navigate", url="about:blank")
