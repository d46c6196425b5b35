"""Guards over the source tree: what may import what, how long files and functions are, what a module opens with."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("ramet", "frontend", "runtime", "kernels", "examples")
FOLDERS = (*SHIPPED, "benchmarks", "tests", ".ci")
BARE = ("frontend", "runtime", "kernels", "examples")
DOOR = ROOT / "frontend" / "backends" / "engine.py"


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module's dotted name; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield dots + (node.module or "")
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_repository_root_is_not_on_sys_path():
    """transformers imports a package called `kernels`; our folder must not shadow it."""
    assert [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() == ROOT] == []


def test_bare_names_of_our_folders_are_not_ours():
    for name in BARE:
        module = sys.modules.get(name)
        origin = getattr(module, "__file__", None)
        assert origin is None or ROOT not in Path(origin).resolve().parents or ".venv" in origin


@pytest.mark.parametrize("path", modules(*FOLDERS), ids=named)
def test_no_bare_imports_of_our_folders(path):
    """And no relative ones, except between the modules of a test folder."""
    shipped = path.relative_to(ROOT).parts[0] in SHIPPED
    wrong = [name for name in imports(parsed(path)) if under(name, *BARE) or (shipped and name.startswith("."))]
    assert wrong == [], f"import ramet.<folder> instead of {wrong}"


@pytest.mark.parametrize("path", modules("frontend"), ids=named)
def test_frontend_imports_neither_torch_nor_the_runtime(path):
    banned = ("torch", "transformers", "ramet.kernels", "ramet.examples")
    banned += () if path == DOOR else ("ramet.runtime",)
    assert [name for name in imports(parsed(path)) if under(name, *banned)] == []


def test_the_door_to_the_runtime_is_lazy():
    """Its imports of the runtime stand inside functions, or are for the type checker."""
    tree = parsed(DOOR)
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [name for node in top for name in imports(node) if under(name, "ramet.runtime")] == []


# What patterns, schemas and calls of tools are: the language refuses at the user's line what the engine refuses.
SPECIFICATIONS = tuple(
    f"ramet.frontend.{name}"
    for name in ("anchors", "charsets", "patterns", "regular", "schemas", "schema_refs", "toolcalls")
)


# Compiled programs are data, and how they go on from a value to the next operations is the same for all who run them.
PLANS = tuple(f"ramet.frontend.{name}" for name in ("course", "parameters", "plan_file", "planned", "rebuilt"))


@pytest.mark.parametrize("path", modules("runtime", "kernels"), ids=named)
def test_the_engine_knows_no_program_body(path):
    """Of the language, runtime and kernels know the operations, the errors and the backends' protocol; what
    specifications mean; the server, what compiled programs are."""
    known = ("ramet.frontend.ir", "ramet.frontend.errors", "ramet.frontend.backends.base", *SPECIFICATIONS)
    known += PLANS if path == ROOT / "runtime" / "server" / "plans.py" else ()
    ours = [name for name in imports(parsed(path)) if under(name, "ramet.frontend") and name != "ramet.frontend"]
    assert [name for name in ours if not under(name, *known)] == []


def test_import_ramet_loads_nothing_heavy():
    heavy = ("torch", "transformers", "zmq", "numpy", "rich", "typer")
    code = f"import sys, ramet; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", modules(*SHIPPED, "benchmarks"), ids=named)
def test_modules_open_with_a_docstring_and_stay_short(path):
    tree = parsed(path)
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: a file is one idea"
    if path.name != "__init__.py" or tree.body:
        assert ast.get_docstring(tree), "a module opens with what flows in and what flows out"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # a kernel's signature names dozens of pointers and sizes, one a line: what must be short is the body
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            assert length <= 60, f"{node.name}: {length} lines"


@pytest.mark.parametrize("path", modules(*SHIPPED, "benchmarks"), ids=named)
def test_public_names_have_docstrings(path):
    """Modules, public classes, public functions, public methods; overloads and nested functions aside."""
    bodies: list[tuple[str, ast.Module | ast.ClassDef]] = [("", parsed(path))]
    missing = []
    for prefix, body in bodies:
        for node in body.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef):
                bodies.append((f"{prefix}{node.name}.", node))
            elif any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list):
                continue
            if ast.get_docstring(node) is None:
                missing.append(f"{prefix}{node.name}")
    assert missing == []


# Folders that only some machine has: a checkout, a home, a scratch directory. Written apart so as not to match itself.
MACHINE = re.compile("|".join(f"(?<![\\w.])/{name}/" for name in ("home", "root", "work", "Users", "opt", "mnt")))


def texts() -> list[Path]:
    documents = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", ".ci/run")]
    return [path for path in documents if path.exists()] + modules(*FOLDERS)


@pytest.mark.parametrize("path", texts(), ids=named)
def test_nothing_names_a_machine(path):
    assert MACHINE.findall(path.read_text(encoding="utf-8")) == []


def test_the_guards_can_fail():
    """Positive controls of what the guards look for."""
    bad = ast.parse("import kernels.cpu\nfrom runtime import x\nfrom . import y\nimport torch.nn as nn")
    assert [name for name in imports(bad) if under(name, *BARE)] == ["kernels.cpu", "runtime", "runtime.x"]
    assert any(under(name, "torch") for name in imports(bad))
    assert any(name.startswith(".") for name in imports(bad))
    assert not under("kernelspec", "kernels")
    assert MACHINE.search("see " + "/" + "work/thing")
