"""Which kernels compute: what is asked for, what is there, and what is said where they differ."""

from __future__ import annotations

import re

import pytest

from ramet.frontend.backends.engine import Engine
from ramet.frontend.errors import EngineError
from ramet.runtime import native


def test_where_the_native_kernels_are_missing_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: "they were not built: there was no compiler")
    with pytest.raises(EngineError, match="dtype='int8': needs the native kernels: they were not built"):
        Engine("random:tiny", dtype="int8", in_process=True)
    with pytest.raises(EngineError, match="needs the native kernels"):
        Engine("random:tiny", kernels="native", in_process=True)


def test_torch_serves_where_the_native_kernels_are_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "available", lambda: "they were not built: there was no compiler")
    with Engine("random:tiny", in_process=True) as engine:
        assert engine.info()["kernels"] == "torch"
    told = [record.getMessage() for record in caplog.records]
    assert told == ["the native kernels cannot serve, torch does, slower: they were not built: there was no compiler"]


@pytest.mark.parametrize(
    ("options", "kernels", "dtype"),
    [
        ({}, "native", "bfloat16"),
        ({"dtype": "bfloat16"}, "native", "bfloat16"),
        ({"dtype": "int4"}, "native", "int4"),
        ({"dtype": "float32"}, "torch", "float32"),
        ({"dtype": "bfloat16", "kernels": "torch"}, "torch", "bfloat16"),
    ],
)
def test_which_kernels_serve(options: dict[str, str], kernels: str, dtype: str) -> None:
    with Engine("random:tiny", in_process=True, device="cpu", **options) as engine:
        info = engine.info()
    assert str(info["kernels"]).startswith(kernels)
    assert info["dtype"] == dtype


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kernels": "fast"}, "kernels='fast': choose auto, native or torch"),
        ({"kernels": "torch", "dtype": "int8"}, "dtype='int8': is of the native kernels; leave out kernels='torch'"),
        ({"kernels": "native", "dtype": "float32"}, "dtype='float32': kernels='native' have bfloat16, int8 and int4"),
    ],
)
def test_kernels_that_do_not_fit(options: dict[str, str], said: str) -> None:
    with pytest.raises(EngineError, match=re.escape(said)):
        Engine("random:tiny", in_process=True, **options)
