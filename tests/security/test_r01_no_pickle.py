"""R1: nothing in the tree can turn bytes into code. An AST walk over every file, with an empty allow-list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("ramet", "frontend", "runtime", "kernels", "examples", "benchmarks", "tests", ".ci")
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
    "pickletools",
}
BUILTINS = {"eval", "exec"}
QUALIFIED = {
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "multiprocessing.Queue",
    "multiprocessing.JoinableQueue",
    "multiprocessing.SimpleQueue",
    "multiprocessing.Pipe",
    "multiprocessing.Manager",
    "multiprocessing.Pool",
    "concurrent.futures.ProcessPoolExecutor",
    "numpy.load",
    "pandas.read_pickle",
    "builtins.eval",
    "builtins.exec",
}
ATTRIBUTES = {"recv_pyobj", "send_pyobj", "read_pickle", "to_pickle"}
KEYWORDS = {"trust_remote_code", "allow_pickle"}


class Walk(ast.NodeVisitor):
    """Collects what is forbidden, with its line; names are followed through `import ... as` and `from ... import`."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []
        self._names: dict[str, str] = {}

    def _say(self, node: ast.AST, what: str) -> None:
        self.found.append((getattr(node, "lineno", 0), what))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            top = alias.name.split(".")[0]
            self._names[alias.asname or top] = alias.name if alias.asname else top
            if top in MODULES:
                self._say(node, f"import {alias.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        for alias in node.names:
            full = f"{module}.{alias.name}"
            self._names[alias.asname or alias.name] = full
            if module.split(".")[0] in MODULES or full in QUALIFIED or alias.name in ATTRIBUTES:
                self._say(node, f"from {module} import {alias.name}")

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in BUILTINS | {"__import__"} and isinstance(node.ctx, ast.Load):
            self._say(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = self._dotted(node)
        if node.attr in ATTRIBUTES or full in QUALIFIED:
            self._say(node, full or node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS:
                self._say(node, f"{keyword.arg}=")
        if self._dotted(node.func) == "importlib.import_module":
            for argument in node.args[:1]:
                constant = argument.value if isinstance(argument, ast.Constant) else None
                if isinstance(constant, str) and constant.split(".")[0] in MODULES:
                    self._say(node, f"import_module({constant!r})")
        self.generic_visit(node)

    def _dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self._names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            left = self._dotted(node.value)
            return f"{left}.{node.attr}" if left else ""
        return ""


def forbidden(source: str) -> list[tuple[int, str]]:
    walk = Walk()
    walk.visit(ast.parse(source))
    return walk.found


def files() -> Iterator[Path]:
    yield from sorted(ROOT.glob("*.py"))
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", list(files()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_can_load_code_from_bytes(path):
    assert forbidden(path.read_text(encoding="utf-8")) == []


def test_the_walk_covers_the_tree():
    seen = {path.relative_to(ROOT).parts[0] for path in files()}
    assert {"ramet", "frontend", "runtime", "kernels", "examples", "tests"} <= seen
    assert list(ROOT.glob("*.py")) == [ROOT / "setup.py"], "modules belong into the folders"


SEEDED = [
    "import pickle",
    "import pickle as p\np.loads(b'')",
    "from cloudpickle import loads",
    "import dill.session",
    "import marshal",
    "import shelve",
    "from joblib import load",
    "eval('1')",
    "exec('x = 1')",
    "run = eval",
    "import builtins\nbuiltins.exec('x')",
    "import torch\ntorch.load('file')",
    "import torch as t\nt.load('file')",
    "from torch import load",
    "from torch import load as read_weights",
    "import yaml\nyaml.load('a: 1')",
    "from multiprocessing import Queue",
    "import multiprocessing as mp\nmp.Pipe()",
    "import multiprocessing\nmultiprocessing.Manager()",
    "from concurrent.futures import ProcessPoolExecutor",
    "socket.recv_pyobj()",
    "import numpy as np\nnp.load('x', allow_pickle=True)",
    "AutoModel.from_pretrained('x', trust_remote_code=True)",
    "import importlib\nimportlib.import_module('pickle')",
    "__import__('pickle')",
    "def f():\n    if True:\n        import marshal",
]


@pytest.mark.parametrize("source", SEEDED)
def test_a_seeded_bad_file_is_found(source, tmp_path):
    """Positive control: every forbidden thing, in a file as the walk reads it."""
    bad = tmp_path / "bad.py"
    bad.write_text(source, encoding="utf-8")
    assert forbidden(bad.read_text(encoding="utf-8")) != []


def test_innocent_code_passes():
    assert forbidden("import json, torch\njson.loads('1')\nmodel.eval()\ntorch.tensor([1])\nre.compile('x')") == []
