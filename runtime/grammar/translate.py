"""Every kind of constraint to its translator.

In: an `ir.Constraint`. Out: its `Translation`. `Calls` are structures by then: runtime/tools.py writes them.
"""

from __future__ import annotations

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar import choices, ebnf, json_schema, regex, structure
from ramet.runtime.grammar.translation import Translation


def translate(constraint: ir.Constraint) -> Translation:
    """Raises `ConstraintError`, whose message begins with the field and, of a document, the place in it."""
    match constraint:
        case ir.Regex(pattern):
            return regex.translate(pattern)
        case ir.JsonSchema(schema, whitespace):
            return json_schema.translate(schema, whitespace)
        case ir.Choices(texts):
            return choices.translate(texts)
        case ir.Grammar(text, syntax):
            return ebnf.translate(text, syntax)
        case ir.Structure(spec):
            return structure.translate(spec)
        case ir.Calls():
            raise ConstraintError("tools: calls are compiled as the structure that the model's notation gives them")
