"""R7: no tensors from clients. A prompt is text or token ids: embeddings, images, audio and whatever else would be
decoded into a tensor are refused by name on every path, in every shape that other servers take.

Positive control: without the list that refuses a field the same check fails for it.
"""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ramet.runtime import messages
from ramet.runtime.server import conversation, sampling
from ramet.runtime.server.routes import ROUTERS

from ..server.serving import WAIT, serving

ROOT = Path(__file__).resolve().parent.parent.parent
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "one"}], "max_tokens": 1}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"text": "one", "sampling_params": {"max_new_tokens": 1}},
    "/v1/completions": {"model": "tiny", "prompt": "one", "max_tokens": 1},
    "/v1/chat/completions": CHAT,
}
# A header of a pickled tensor (a zip archive), of one in numpy's format, and of a safetensors file.
SAVED = [
    b"PK\x03\x04archive/data.pkl",
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}",
    b"\x10\0\0\0\0\0\0\0" + b'{"x":{}}        ',
]
VALUES: list[Any] = [
    [[0.1, 0.2], [0.3, 0.4]],
    [[[0.1] * 4] * 4],
    {"shape": [2, 2], "dtype": "float32", "data": "AAAA"},
    *(base64.b64encode(saved).decode() for saved in SAVED),
]
FIELDS = ("input_embeds", "prompt_embeds", "image_data", "video_data", "audio_data", "multi_modal_data")


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving() as served, httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def refused(http: httpx.Client, path: str, fields: dict[str, Any], word: str) -> bool:
    """Whether a request is a 400 that names `word`."""
    answer = http.post(path, json={**BODIES[path], **fields})
    assert answer.status_code in (200, 400), answer.text
    return answer.status_code == 400 and word in json.dumps(answer.json())


@pytest.mark.model
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", FIELDS)
def test_fields_that_bring_tensors(http: httpx.Client, path: str, field: str) -> None:
    assert not refused(http, path, {}, field)
    for value in VALUES:
        assert refused(http, path, {field: value}, field)


@pytest.mark.model
@pytest.mark.parametrize("field", FIELDS)
def test_control_a_field_that_is_not_listed_is_not_refused(
    http: httpx.Client, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_UNOFFERED", {n: why for n, why in sampling._UNOFFERED.items() if n != field})
    assert not refused(http, "/generate", {field: VALUES[0]}, field)


PROMPTS: dict[str, tuple[str, str, Any]] = {  # path, field, value
    "floats for ids": ("/v1/completions", "prompt", [0.5, 1.5]),
    "a matrix": ("/v1/completions", "prompt", [[0.5, 1.5]]),
    "bytes of a tensor": ("/v1/completions", "prompt", [{"prompt_embeds": VALUES[-1]}]),
    "ids that are floats": ("/generate", "input_ids", [0.5]),
    "a tensor for ids": ("/generate", "input_ids", VALUES[2]),
    "ids three deep": ("/generate", "input_ids", [[[1, 2]]]),
}
PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    {"type": "image_embeds", "image_embeds": VALUES[-1]},
    {"type": "prompt_embeds", "prompt_embeds": VALUES[-1]},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "video_url", "video_url": {"url": "file:///x.mp4"}},
    {"type": "tensor", "tensor": VALUES[2]},
]


@pytest.mark.model
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_that_are_tensors(http: httpx.Client, name: str) -> None:
    path, field, value = PROMPTS[name]
    body = {k: v for k, v in BODIES[path].items() if k != "text"}
    answer = http.post(path, json={**body, field: value})
    assert answer.status_code == 400, answer.text


@pytest.mark.model
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part["type"])
def test_parts_that_are_tensors(http: httpx.Client, part: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}, part]}]}
    assert refused(http, "/v1/chat/completions", fields, part["type"])
    # the control: a type that counts as text is not refused for what it is
    monkeypatch.setattr(conversation, "TEXTS", {**conversation.TEXTS, part["type"]: "text"})
    assert not refused(
        http, "/v1/chat/completions", {"messages": [{"role": "user", "content": [{**part, "text": "x"}]}]}, "type"
    )


@pytest.mark.model
@pytest.mark.parametrize("op", [{"type": "embeds"}, {"type": "text", "parts": [{"type": "tensor", "data": "AAAA"}]}])
def test_operations_of_programs_have_no_tensors(http: httpx.Client, op: dict[str, Any]) -> None:
    answer = http.post("/v1/programs", json={"ops": [{"id": "0.0", "seq": "0", **op}]})
    assert answer.status_code == 400, answer.text


# --- in the code

DECODERS = {"frombuffer", "from_numpy", "b64decode", "fromstring", "load_file", "loads_tensor"}


def decoders(source: str) -> list[str]:
    """Calls that make a tensor or bytes out of what came as text, and imports of torch."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DECODERS:
            found.append(ast.unparse(node.func))
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in ("torch", "safetensors")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "safetensors"):
            found.append(node.module or "")
    return found


# The one call: the nesting of a body is counted over its bytes.
ALLOWED = {"strict_json.py": ["np.frombuffer"]}


def test_the_server_decodes_nothing_into_a_tensor() -> None:
    files = sorted((ROOT / "runtime" / "server").rglob("*.py"))
    assert len(files) > 40 and len(ROUTERS) > 5
    assert {file.name: decoders(file.read_text()) for file in files if decoders(file.read_text())} == ALLOWED


SEEDED = [
    "import numpy as np\nnp.frombuffer(b'')",
    "import torch",
    "from torch import frombuffer",
    "import base64\nbase64.b64decode('')",
    "from safetensors.torch import load_file",
    "def f():\n    import torch.nn",
]


@pytest.mark.parametrize("source", SEEDED)
def test_control_a_decoder_is_found(source: str) -> None:
    assert decoders(source) != []


def test_orders_to_the_engine_have_no_field_for_a_tensor() -> None:
    """What crosses into the engine is made of texts, numbers and lists of them: no bytes that it would decode."""
    orders = [kind for name, kind in vars(messages).items() if name.startswith("Order") and isinstance(kind, type)]
    assert len(orders) >= 5
    for kind in orders:
        for field, annotation in kind.__annotations__.items():
            assert "bytes" not in str(annotation) and "ndarray" not in str(annotation), f"{kind.__name__}.{field}"
