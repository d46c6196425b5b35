"""R8: the server connects to nobody and opens no path that a client names. An audit hook, in a process of its own,
watches while every route is asked to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model
NAMED = "named-by-a-client"
PROBE = '''
import asyncio, json, os, sys
from ramet.runtime.server.routes import ROUTERS
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.gate import GateLimits
from ramet.runtime.server.service import Service
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.app import create_app
from ramet.runtime.start import start
import httpx

NAMED = sys.argv[1]
seen = []
WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "open")

def hook(event, args):
    if event in WATCHED and (event != "open" or NAMED in str(args[0])):
        seen.append([event, str(args[:2])[:200]])

URL = f"http://127.0.0.1:9/{NAMED}"
PATH = f"/{NAMED}/x"
STRINGS = (URL, PATH, f"file://{PATH}", f"{{% include '{PATH}' %}}")

def bodies():
    """Bodies that every protocol reads its own part of, with a URL or a path wherever somebody might follow one."""
    short = {"model": "tiny", "max_tokens": 1, "max_output_tokens": 1,
             "sampling_params": {"max_new_tokens": 1}, "options": {"num_predict": 1}}
    for i in range(11):
        text = STRINGS[i % 4]
        schema = {"$ref": text}
        contents = [
            text,
            [{"type": "image_url", "image_url": {"url": text}}, {"type": "text", "text": text}],
            [{"type": "image", "source": {"type": "url", "url": text}}],
            [{"type": "input_file", "file_url": text}],
        ]
        messages = [{"role": "user", "content": contents[i] if i < 4 else "x"}]
        extras = [
            {"chat_template": text, "chat_template_kwargs": {"template": text}},
            {"lora_path": text, "model_path": text},
            {"images": [text], "image_data": text},
            {"sampling_params": {"max_new_tokens": 1, "json_schema": json.dumps(schema)}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
            {"name": text, "path": text, "from": text, "url": text},
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": schema}}]},
        ]
        texts = {"messages": messages, "input": messages, "prompt": text, "text": text, "stream": False}
        yield {**short, **texts, **(extras[i - 4] if i >= 4 else {})}

async def main():
    client = start("random:tiny", {"threads": 1, "dtype": "float32", "kv_tokens": 4096, "context": 1024,
                   "device": "cpu"}, in_process=True)
    service = Service(client, names=("tiny",), limits=GateLimits())
    app = create_app(service, Settings(), Metrics("tiny", compat=True), ROUTERS)
    await service.start()
    statuses = {}
    inside = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=inside, base_url="http://localhost", timeout=60) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        await http.post("/generate", json={"text": "x", "sampling_params": {"max_new_tokens": 1}})
        sys.addaudithook(hook)
        for path, methods in paths.items():
            real = path.replace("{name}", NAMED).replace("{", "").replace("}", "")
            for method in methods:
                for body in (list(bodies()) if method == "post" else [None]):
                    answer = await http.request(method, real, json=body, params={"url": URL})
                    statuses[str(answer.status_code)] = statuses.get(str(answer.status_code), 0) + 1
        quiet, seen[:] = list(seen), []
        try:  # the control: what the hook would have seen
            import socket
            socket.create_connection(("127.0.0.1", 9), 0.1)
        except OSError:
            pass
        try:
            open(PATH)
        except OSError:
            pass
        print(json.dumps({"quiet": quiet, "control": [event for event, _ in seen], "statuses": statuses}))
    await service.close()

asyncio.run(main())
'''


def test_no_connection_and_no_file_of_a_client_s_choice(tmp_path: Path):
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    done = subprocess.run(
        [sys.executable, "-P", str(script), NAMED], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["quiet"] == []
    assert set(found["control"]) >= {"socket.connect", "open"}
    assert found["statuses"].get("200", 0) > 20 and "500" not in found["statuses"]
