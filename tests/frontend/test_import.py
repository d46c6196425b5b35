"""Importing ramet is cheap: the language alone."""

import subprocess
import sys


def probe(code):
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return out.stdout.strip()


def test_import_pulls_neither_torch_nor_the_runtime():
    heavy = "torch transformers zmq fastapi numpy tokenizers safetensors jinja2 rich httpx pydantic"
    code = f"import ramet, sys; print([m for m in {heavy.split()!r} if m in sys.modules])"
    assert probe(code) == "[]"
    runtime = "import ramet, sys; print([m for m in sys.modules if m.startswith(('ramet.runtime', 'ramet.kernels'))])"
    assert probe(runtime) == "[]"


def test_running_a_program_on_a_mock_pulls_nothing_heavy_either():
    code = (
        "import sys, ramet as rt\n"
        "f = rt.function(lambda s: s.gen().get())\n"
        "assert f.using(backend=rt.Mock('x'))().result(10) == 'x'\n"
        "print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    )
    assert probe(code) == "[]"


def test_every_public_name_exists():
    import ramet

    for name in ramet.__all__:
        assert getattr(ramet, name) is not None
    assert sorted(ramet.__all__) == ramet.__all__


def test_import_adds_few_modules():
    """Modules are counted instead of seconds: no timing is asserted."""
    code = "import sys; before = set(sys.modules); import ramet; print(len(set(sys.modules) - before))"
    assert int(probe(code)) < 200
