"""`ramet chat`: on a terminal, with a piped prompt, on an engine here and on servers, and when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import ramet as rt
from ramet.__main__ import app
from ramet.frontend.commands import WrongUsage, opening
from ramet.frontend.commands.chat import Conversation, command
from ramet.frontend.commands.opening import address, find
from ramet.frontend.commands.screen import plain
from ramet.frontend.commands.turn import conversing

from ...server.serving import Served, serving
from ..remotely import Peer, closed_url, said, silent, streamed
from .terminal import WAIT, Terminal

MODELS = {"/v1/models": said({"data": [{"id": "m"}]})}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "RAMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key=("sesame",)) as server:
        yield server


def chat(*arguments: str, say: str | bytes = "hi") -> Result:
    """`ramet chat` with a piped prompt, in this process."""
    return CliRunner().invoke(app, ["chat", *arguments], input=say)


def one_line(done: Result, status: int) -> str:
    """The error of a command that ended with `status` and said nothing else."""
    assert (done.exit_code, done.stdout) == (status, ""), done.output
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def delta(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


# --- a piped prompt


@pytest.mark.model
def test_a_piped_prompt_is_answered_by_an_engine_here() -> None:
    """And by a server with the same model: the same words, nothing around them."""
    words = ("--max-tokens", "5", "--temperature", "0", "--model")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ramet", "chat", *words, "random:tiny", "--threads", "1"],
        input=b"hi\n",
        capture_output=True,
        timeout=120,
        check=False,
    )
    with rt.Engine("random:tiny", threads=1, in_process=True) as engine:
        run = conversing({"max_tokens": 5, "temperature": 0}).using(backend=engine)([("user", "hi")])
        assert (done.returncode, done.stdout.decode()) == (0, run.result(WAIT) + "\n")
    assert done.stderr == b"[cut at --max-tokens 5]\n"


@pytest.mark.model
def test_a_server_says_what_its_engine_says(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    program = conversing({"max_tokens": 6, "temperature": 0}).using(backend=served.offline())
    expected = program([("system", "Be brief."), ("user", "hi")]).result(WAIT) + "\n"
    options = ("--system", "Be brief.", "--max-tokens", "6", "--temperature", "0")
    host = served.url.removeprefix("http://")
    for url in (served.url, served.url + "/v1", host):
        done = chat(url, "--api-key", "sesame", *options)
        assert (done.exit_code, done.stdout) == (0, expected), done.output
    monkeypatch.setenv("OPENAI_BASE_URL", served.url + "/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    assert chat(*options).stdout == expected
    monkeypatch.setenv("RAMET_API_KEY", "sesame,other")
    assert chat(host, *options).stdout == expected


def test_keys_are_asked_for(served: Served) -> None:
    assert "asks for a key (401): give --api-key" in one_line(chat(served.url), 1)
    assert "refuses the key (401): give --api-key" in one_line(chat(served.url, "--api-key", "open"), 1)
    assert "api_key: a key is printable ASCII" in one_line(chat(served.url, "--api-key", "é"), 1)


def test_what_the_server_refuses_is_told_in_one_line(served: Served) -> None:
    long = chat(served.url, "--api-key", "sesame", say="word " * 3000)
    assert "maximum context length is 1024 tokens. However, you requested 30" in one_line(long, 1)
    unknown = chat(served.url, "--api-key", "sesame", "--model", "nope")
    assert "404: the model `nope` is not served here; served: `tiny`" in one_line(unknown, 1)
    assert "(branch" not in unknown.stderr, "the person has written no program"


def test_without_a_server_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    url = closed_url()
    assert f"no server answers at {url}/v1 (" in one_line(chat(url), 1)
    assert "start one with `ramet serve`, or check the address" in chat(url).stderr
    monkeypatch.setattr(opening, "PATIENCE", 0.2)
    with silent() as mute:
        assert f"no server answers at {mute}/v1 (timed out)" in one_line(chat(mute), 1)


def test_a_server_of_another_protocol() -> None:
    with Peer({"/v1/models": said("hello"), "/x/models": said({"error": {"message": "broken"}}, 500)}) as peer:
        assert "does not answer as a server of OpenAI's protocol does" in one_line(chat(peer.url), 1)
        assert "500: broken" in one_line(chat(f"{peer.url}/x"), 1)
    with Peer({}) as peer:
        assert "name the model with --model" in one_line(chat(peer.url), 2)


def test_the_base_url_is_found_below_a_prefix() -> None:
    with Peer({"/a/v1/models": said({"data": [{"id": "m"}, {}]})}) as peer:
        assert find(f"{peer.url}/a", None).base == f"{peer.url}/a/v1"
        assert find(f"{peer.url}/a/v1", None).models == ("m",)


def test_a_stream_that_breaks_off_is_an_error() -> None:
    broken = {**MODELS, "/v1/chat/completions": streamed(delta("Hel"), delta("lo"), done=False)}
    with Peer(broken) as peer:
        done = chat(peer.url)
    assert (done.exit_code, done.stdout) == (1, "Hello\n")
    assert "the stream broke off before its end" in done.stderr


def test_wrong_usage_is_status_2_and_loads_nothing() -> None:
    assert "standard input is empty" in one_line(chat("--model", "nope", say=" \n"), 2)
    assert "no UTF-8 text: invalid start byte at byte 2" in one_line(chat("--model", "nope", say=b"hi\xff"), 2)
    assert "temperature=101.0: must be between" in one_line(chat("--temperature", "101", "--model", "nope"), 2)
    assert "a model goes to --model" in one_line(chat("smollm2"), 2)
    assert "must begin with http://" in one_line(chat("ftp://host"), 2)
    for arguments in (
        ("--max-tokens", "0"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--treads", "2"),
        ("a", "b"),
    ):
        done = chat(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")


@pytest.mark.parametrize("url", ["localhost", "localhost:1/v1", "10.0.0.1:80", "[::1]:80", "a.b:1", "https://a.b/v1"])
def test_addresses(url: str) -> None:
    assert address(url) == (url if "://" in url else f"http://{url}")


@pytest.mark.parametrize("url", ["a b", "a.b", "http://", "x:y", "localhost:port"])
def test_no_addresses(url: str) -> None:
    with pytest.raises(WrongUsage):
        address(url)


# --- a conversation


def talk(answers: Any, **options: Any) -> tuple[Conversation, rt.Mock]:
    mock = rt.Mock(answers)
    return Conversation(mock, conversing({}), **options), mock


def test_a_conversation_remembers(capsys: pytest.CaptureFixture[str]) -> None:
    here, mock = talk(["one", "two\n", "three"], system="Be brief.")
    here.ask("first")
    here.ask("second")
    assert capsys.readouterr() == ("one\ntwo\n", "")
    assert all(said in mock.prompts[1] for said in ("Be brief.", "first", "one", "second"))
    assert command(here, "/reset")
    assert command(here, "/system")
    here.ask("third")
    assert "first" not in mock.prompts[2]
    assert "Be brief." not in mock.prompts[2]
    assert command(here, "/system You are  a pirate. ")
    assert here.system == "You are  a pirate."


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    here, _ = talk(["a\x1b[2Jb", "c d"])
    for line in ("/stats", "/tree"):
        assert command(here, line)
        assert capsys.readouterr().err == "nothing was answered yet\n"
    here.ask("clear\x1b[2J")
    here.ask("again")
    capsys.readouterr()
    assert command(here, "/stats")
    assert "2 generated in " in capsys.readouterr().err
    assert command(here, "/tree")
    tree = capsys.readouterr().err
    assert "gen answer 'c d' [2 tokens, stop]" in tree
    assert "\x1b" not in tree
    assert command(here, "/sttas")
    assert "did you mean /stats?" in capsys.readouterr().err
    assert command(here, "/help")
    assert "/system TEXT" in capsys.readouterr().err
    assert not command(here, "/exit")
    assert not command(here, " /quit ")


def test_after_an_error_the_conversation_is_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    mock = rt.Mock(["fine", "lost", "found"], context_length=12)
    here = Conversation(mock, conversing({}))
    here.ask("a b")
    before = here.messages
    with pytest.raises(rt.ContextOverflow) as failed:
        here.ask("word " * 20)
    assert "(branch" not in str(failed.value)
    assert here.messages == before
    here.ask("c")
    assert "word" not in mock.prompts[-1]
    assert capsys.readouterr().out.startswith("fine\n")


def test_a_cut_is_never_silent(capsys: pytest.CaptureFixture[str]) -> None:
    here = Conversation(rt.Mock("a b c d"), conversing({"max_tokens": 2}), max_tokens=2)
    here.ask("hi")
    assert capsys.readouterr() == ("a b\n", "[cut at --max-tokens 2]\n")


# --- a terminal


def test_a_chat_on_a_terminal() -> None:
    """Streams, stops at Ctrl-C and goes on with what was said, joins lines, shows control characters, ends at
    Ctrl-D."""
    hold = threading.Event()

    def answer(body: Any) -> Any:
        def frames() -> Iterator[bytes]:
            [first] = streamed(delta("Hel\x1b[31mlo \u202ethere"), done=False)(None)[2]
            yield first
            if body["messages"][-1]["content"] == "wait":
                hold.wait(WAIT)
            yield from streamed(delta("!", "stop"))(None)[2]

        return 200, {}, frames()

    with Peer({**MODELS, "/v1/chat/completions": answer}) as peer, Terminal("chat", peer.url) as screen:
        screen.until(f"m at {peer.url}/v1\n")
        screen.until(">>> ")
        screen.type("wait\r")
        screen.until("Hel\\x1b[31mlo \\u202ethere")  # while the rest has not been sent
        screen.interrupt("[stopped]\n>>> ")
        hold.set()
        screen.type("go \\\r")
        screen.until("... ")
        screen.type("on\r")
        screen.until("there!\n")
        screen.until(">>> ")
        screen.type("half a line")
        screen.until("half a line")
        screen.interrupt("leaves]\n>>> ")
        screen.type("//slash\r")
        screen.until("there!\n>>> ")  # Ctrl-D counts only where a line is being read
        screen.type("\x04")
        assert screen.ended() == 0
        asked = [body["messages"] for body in peer.to("/v1/chat/completions")]
    assert "\x1b[31m" not in screen.raw
    assert [message["content"] for message in asked[1]] == ["wait", "Hel\x1b[31mlo \u202ethere", "go \non"]
    assert asked[2][-1]["content"] == "/slash"


def test_an_error_keeps_the_chat() -> None:
    with (
        Peer({**MODELS, "/v1/chat/completions": said({"error": {"message": "no\x1b[2J way"}}, 400)}) as peer,
        Terminal("chat", peer.url) as screen,
    ):
        screen.until(">>> ")
        screen.type("hi\r")
        screen.until("error: ")
        assert "no\\x1b[2J way" in screen.until("\n>>> ")
        screen.type("/exit\r")
        assert screen.ended() == 0
    assert "\x1b[2J" not in screen.raw


@pytest.mark.model
def test_a_chat_on_a_terminal_with_an_engine_here() -> None:
    arguments = ("--model", "random:tiny", "--threads", "1", "--max-tokens", "4", "--temperature", "0")
    with Terminal("chat", *arguments) as screen:
        screen.until("random:tiny: ")
        screen.until(">>> ")
        screen.type("hi\r")
        answer = screen.until("[cut at --max-tokens 4]").split("hi\n", 1)[1]
        screen.until(">>> ")
        screen.type("/stats\r")
        screen.until("4 generated in")
        screen.until(">>> ")
        screen.type("/tree\r")
        screen.until("user 'hi'")
        screen.until(f"gen answer {answer.removesuffix(chr(10))!r} [4 tokens, length]")
        screen.until(">>> ")
        screen.type("\x04")
        assert screen.ended() == 0


# --- what a terminal may see


@given(st.text())
def test_plain_text_moves_no_cursor(text: str) -> None:
    shown = plain(text)
    assert all(c in "\n\t" or (ord(c) >= 0x20 and not 0x7F <= ord(c) < 0xA0) for c in shown)
    assert plain(shown) == shown
    assert shown == text or any(c not in shown for c in text)


def test_output_in_a_narrow_encoding() -> None:
    with Peer({**MODELS, "/v1/chat/completions": streamed(delta("é\ud7ff→", "stop"))}) as peer:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ramet", "chat", peer.url],
            input=b"hi",
            capture_output=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\xe9\\ud7ff\\u2192\n", b"")
