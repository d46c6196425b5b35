"""Importing ramet is cheap: the language alone."""

import ast
import subprocess
import sys
from pathlib import Path


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


def test_names_are_imported_when_they_are_used():
    assert probe("import ramet, sys; print([m for m in sys.modules if m.startswith('ramet.')])") == "[]"
    code = (
        "import ramet, sys; ramet.ModelError; print('ramet.frontend.run' in sys.modules, 'ModelError' in vars(ramet))"
    )
    assert probe(code) == "False True"


def test_type_checkers_see_the_names_where_they_are_found():
    import ramet

    tree = ast.parse(Path(ramet.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    shown = {
        alias.asname or alias.name: (node.module.removeprefix("ramet.frontend."), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert shown == ramet._HOME
    assert set(ramet.__all__) == set(shown) and set(ramet.__all__) <= set(dir(ramet))
