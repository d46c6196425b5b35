"""Positive controls: a module whose rule was taken out, to see the rule's own check fail.

In: a module of ramet, and what to change in its source. Out: the changed module, imported under another name from a
temporary file. Nothing of the original module changes.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@dataclass(frozen=True)
class Mutant:
    """A changed source, by what was changed in it."""

    name: str
    source: str

    def load(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The module; it is forgotten when the test ends."""
        name = f"mutant_{abs(hash(self.source))}"
        path = folder / f"{name}.py"
        path.write_text(self.source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module


def changed(module: ModuleType, name: str, old: str, new: str) -> Mutant:
    """`old`, which must stand in the module's source exactly once, becomes `new`."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    return Mutant(name, source.replace(old, new))


class _Cut(ast.NodeTransformer):
    """Takes one place out, the `number`-th of its kind, and says in `name` which one it was; "" when there is none."""

    def __init__(self, number: int) -> None:
        self.left, self.name, self.where = number, "", ""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outer, self.where = self.where, node.name
        self.generic_visit(node)
        self.where = outer
        return node

    def _is_it(self) -> bool:
        self.left -= 1
        return self.left == -1


class _Guard(_Cut):
    """The condition of an `if ...: raise` becomes False."""

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.body[-1], ast.Raise) and self._is_it():
            self.name = f"{self.where}: {ast.unparse(node.test)}"
            node.test = ast.Constant(False)
        return node


class _Booking(_Cut):
    """A call of `self.meter` becomes `pass`."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if ast.unparse(node).startswith("self.meter.") and self._is_it():
            self.name = ast.unparse(node)
            return ast.copy_location(ast.Pass(), node)
        return node


def _one_by_one(module: ModuleType, kind: type[_Cut]) -> list[Mutant]:
    found: list[Mutant] = []
    while True:
        cut = kind(len(found))
        tree = cut.visit(ast.parse(inspect.getsource(module)))
        if not cut.name:
            return found
        found.append(Mutant(cut.name, ast.unparse(ast.fix_missing_locations(tree))))


@functools.cache
def without_guards(module: ModuleType) -> list[Mutant]:
    """One mutant for each `if ...: raise` of the module, without it."""
    return _one_by_one(module, _Guard)


@functools.cache
def without_bookings(module: ModuleType) -> list[Mutant]:
    """One mutant for each statement `self.meter.spend(...)` or `afford(...)` of the module, without it."""
    return _one_by_one(module, _Booking)


class _Asserts(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.body[-1], ast.Raise) and not node.orelse and len(node.body) == 1:
            return ast.copy_location(ast.Assert(ast.UnaryOp(ast.Not(), node.test), None), node)
        return node


def with_asserts(module: ModuleType) -> Mutant:
    """Every `if ...: raise` written as an assert, which `python -O` leaves out."""
    tree = _Asserts().visit(ast.parse(inspect.getsource(module)))
    return Mutant("asserts for guards", ast.unparse(ast.fix_missing_locations(tree)))
