"""R1: nothing in the tree can turn bytes into code. An AST walk over every file, with an empty allow-list.

Positive controls: each forbidden thing, in each way of writing it, is found in a file that has it.
"""

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
    "code",
    "codeop",
    "copyreg",
    "xmlrpc",
}
BUILTINS = {"eval", "exec"}
PARTS = {  # modules inside packages that unpickle what they are sent, or what they are given to read
    "multiprocessing.connection",
    "multiprocessing.managers",
    "multiprocessing.queues",
    "multiprocessing.pool",
    "torch.package",
    "torch.serialization",
    "torch.distributed.rpc",
    "torch.utils.model_zoo",
    "logging.config",
    "torch.multiprocessing",
}
QUALIFIED = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.export.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
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
ATTRIBUTES = {"recv_pyobj", "send_pyobj", "read_pickle", "to_pickle", "load_inline", "cpp_extension"}
KEYWORDS = {"trust_remote_code", "allow_pickle"}
CONTEXTS = {"Queue", "JoinableQueue", "SimpleQueue", "Pipe", "Manager", "Pool"}  # of multiprocessing.get_context()


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
            if top in MODULES or alias.name in PARTS:
                self._say(node, f"import {alias.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        for alias in node.names:
            full = f"{module}.{alias.name}"
            self._names[alias.asname or alias.name] = full
            named = {module, full} & PARTS or full in QUALIFIED or alias.name in ATTRIBUTES
            if module.split(".")[0] in MODULES or named:
                self._say(node, f"from {module} import {alias.name}")

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in BUILTINS | {"__import__"} and isinstance(node.ctx, ast.Load):
            self._say(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = self._dotted(node)
        if node.attr in ATTRIBUTES or full in QUALIFIED or any(full.startswith(part) for part in PARTS):
            self._say(node, full or node.attr)
        made = node.value if isinstance(node.value, ast.Call) else None  # a context of multiprocessing, made in place
        if made is not None and node.attr in CONTEXTS and self._dotted(made.func).endswith("get_context"):
            self._say(node, node.attr)
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key in node.keys:  # keywords that are handed on with **
            if isinstance(key, ast.Constant) and key.value in KEYWORDS:
                self._say(node, f"{key.value!r}:")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS:
                self._say(node, f"{keyword.arg}=")
        texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        called = self._dotted(node.func)
        if called == "importlib.import_module" and any(text.split(".")[0] in MODULES for text in texts):
            self._say(node, f"import_module({texts[0]!r})")
        if called == "getattr" and {*texts} & (BUILTINS | ATTRIBUTES | {"__import__"}):
            self._say(node, f"getattr(..., {texts[0]!r})")
        if called == "getattr" and node.args and any(f"{self._dotted(node.args[0])}.{t}" in QUALIFIED for t in texts):
            self._say(node, f"getattr(..., {texts[0]!r})")
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


OURS = {".git", ".venv", "build", "dist"}  # not of the tree: what is installed and built


def unwalked(root: Path) -> list[str]:
    """Python in the tree that the walk does not read: by its name, or by its first line."""
    walked, found = set(files()), []
    tops = [top for top in root.iterdir() if top.name not in OURS and top.suffix != ".egg-info"]
    for path in (each for top in tops for each in ([top] if top.is_file() else top.rglob("*"))):
        if path in walked or "__pycache__" in path.parts or not path.is_file():
            continue
        with path.open("rb") as file:
            head = file.readline(100)
        if path.suffix in (".py", ".pyi", ".pyx", ".ipynb", ".pth") or (head[:2] == b"#!" and b"python" in head):
            found.append(path.relative_to(root).as_posix())
    return found


def test_the_walk_covers_the_tree(tmp_path):
    seen = {path.relative_to(ROOT).parts[0] for path in files()}
    assert {"ramet", "frontend", "runtime", "kernels", "examples", "tests"} <= seen
    assert list(ROOT.glob("*.py")) == [ROOT / "setup.py"], "modules belong into the folders"
    assert [name for name in unwalked(ROOT) if not name.startswith(".")] == []
    (tmp_path / "tool").write_text("#!/usr/bin/env python3\nimport pickle\n")  # the control
    (tmp_path / "page.ipynb").write_text("{}")
    assert sorted(unwalked(tmp_path)) == ["page.ipynb", "tool"]


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
    "import multiprocessing as mp\nmp.get_context('spawn').Queue()",
    "from multiprocessing.connection import Client",
    "import multiprocessing.managers",
    "from multiprocessing import managers",
    "import torch\ntorch.jit.load('x')",
    "import torch\ntorch.export.load('x.pt2')",
    "from torch import serialization\nserialization.load('x')",
    "import torch.package as p",
    "import torch\ngetattr(torch, 'load')('x')",
    "import builtins\ngetattr(builtins, 'exec')('x')",
    "AutoModel.from_pretrained('x', **{'trust_remote_code': True})",
    "import logging.config\nlogging.config.listen()",
]


@pytest.mark.parametrize("source", SEEDED)
def test_a_seeded_bad_file_is_found(source, tmp_path):
    """Positive control: every forbidden thing, in a file as the walk reads it."""
    bad = tmp_path / "bad.py"
    bad.write_text(source, encoding="utf-8")
    assert forbidden(bad.read_text(encoding="utf-8")) != []


def test_innocent_code_passes():
    assert forbidden("import json, torch\njson.loads('1')\nmodel.eval()\ntorch.tensor([1])\nre.compile('x')") == []
