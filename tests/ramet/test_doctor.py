"""`ramet doctor`: what it finds is what the engine then takes."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from ramet.__main__ import app
from ramet.frontend.errors import EngineError
from ramet.runtime import device
from ramet.runtime.device import Findings, choose, look
from ramet.runtime.sizing import native_dtype


def facts(*words: str) -> dict[str, str]:
    done = CliRunner().invoke(app, ["doctor", "--model", "random:tiny", "--threads", "1", *words])
    assert done.exit_code == 0, done.output
    return dict(line.split(maxsplit=1) for line in done.stdout.replace("cpu dtype", "cpu-dtype").splitlines())


def test_the_doctor_names_device_dtype_and_one_token():
    found = facts()
    assert found["device"] == choose("auto")
    assert found["cpu-dtype"].split(":")[0] == str(native_dtype()).removeprefix("torch.")
    assert ("avx2" in found["cpu"]) == torch.cpu._is_avx2_supported()
    assert "GiB" in found["memory"]
    assert found["engine"].startswith("random:tiny, ")
    assert found["one"].startswith("token ")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Findings("2.0", None), "built without CUDA"),
        (Findings("2.0", "13.0"), "nvidia-smi"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, capsys, found, said):
    from ramet.__main__ import _devices

    monkeypatch.setattr(device, "look", lambda: found)
    lines = dict(_devices())
    assert lines["device"] == "cpu"
    assert said in lines["no cuda"]
    assert "ramet[gpu]" in lines["triton"]
    with pytest.raises(EngineError, match=said):
        choose("cuda", lambda: found)


def test_this_machine():
    assert look().version == torch.__version__
