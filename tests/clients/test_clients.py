"""Foreign clients, unmodified, each in an environment of its own, against a server process. `make clients`.

A script of `scripts/` is run by its client's interpreter with the server's URL and model; it passes when it ends with
status 0 in time.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .venvs import CLIENTS, EXTRA, HOME, NotInstallable, interpreter

pytestmark = pytest.mark.clients
SCRIPTS = Path(__file__).resolve().parent / "scripts"
SECONDS = 200.0
NOWHERE = "http://127.0.0.1:9"
MODEL = {"tiny": "tiny", "real": "default"}
# which script is of which environment
MUST = {
    "httpx_client": "httpx",
    "openai_sync": "openai",
    "openai_async": "openai",
    "openai_responses": "openai",
    "openai_structured": "openai",
    "anthropic_structured": "anthropic",
    "ollama_structured": "ollama",
    "sglang_structured": "sglang",
    "langchain_structured": "langchain",
    "litellm_structured": "litellm",
    "openai_tools": "openai",
    "anthropic_tools": "anthropic",
    "ollama_tools": "ollama",
    "langchain_tools": "langchain",
    "litellm_tools": "litellm",
    "smolagents_tools": "smolagents",
    "anthropic_client": "anthropic",
    "ollama_client": "ollama",
    "sglang_client": "sglang",
    "langchain_client": "langchain",
    "litellm_client": "litellm",
    "smolagents_client": "smolagents",
}
LONG = (
    "smolagents_client",
    "smolagents_tools",
)  # the instructions of its agents alone are longer than the tiny model's context
MAY = {
    "instructor_client": "instructor",
    "instructor_structured": "instructor",
    "pydantic_ai_structured": "pydantic_ai",
    "instructor_tools": "instructor",
    "pydantic_ai_tools": "pydantic_ai",
    "pydantic_ai_client": "pydantic_ai",
    "dspy_client": "dspy",
    "llama_index_client": "llama_index",
    "guidance_client": "guidance",
}
# SGLang's own test programs. "!": the default model, of 135M parameters, does not know what they ask. Left out: images,
# programs that need the package index of models, `test_react`, whose course depends on the model, and
# `test_decode_json`, whose pattern allows line breaks in strings that JSON does not.
SGLANG = (
    "test_few_shot_qa!",
    "test_mt_bench",
    "test_select!",
    "test_expert_answer!",
    "test_tool_use",
    "test_parallel_decoding",
    "test_parallel_encoding!",
    "test_stream",
    "test_decode_int!",
    "test_regex",
    "test_dtype_gen",
)


def run(client: str, script: str, *arguments: str) -> None:
    """Run a script to its end. No variable and no key of ours reaches it; its home is under `build`."""
    home = HOME / f"{client}.home"
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": "ignore",
        # whoever means to leave the loopback interface fails at once
        "HTTP_PROXY": NOWHERE,
        "HTTPS_PROXY": NOWHERE,
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(
        [str(interpreter(client)), "-P", str(SCRIPTS / f"{script}.py"), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


def test_every_client_has_its_script():
    assert set(MUST.values()) | {"schemathesis"} == set(CLIENTS)
    assert set(MAY.values()) == set(EXTRA)
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {*MUST, *MAY, "sglang_programs", "schemathesis_checks"}


@pytest.mark.parametrize("script", [name for name in MUST if name not in LONG])
def test_client(script: str, tiny: str):
    run(MUST[script], script, tiny, MODEL["tiny"])


@pytest.mark.parametrize("script", LONG)
def test_client_of_long_prompts(script: str, real: str):
    run(MUST[script], script, real, MODEL["real"])


@pytest.mark.nightly
@pytest.mark.parametrize("script", MAY)
def test_client_beyond(script: str, tiny: str):
    try:
        interpreter(MAY[script])
    except NotInstallable as error:
        pytest.skip(f"not installable here: {error}")
    run(MAY[script], script, tiny, MODEL["tiny"])


@pytest.mark.parametrize("program", SGLANG)
def test_sglangs_own_programs(program: str, real: str):
    run("sglang", "sglang_programs", real, MODEL["real"], program)
