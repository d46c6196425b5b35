"""Numbers and strings of JSON schemas as terminals of llguidance's Lark dialect.

In: shapes of scalars. Out: named terminals, whether they have any text, an example. Numbers have up to 78 digits (256
bits) before and after the point and exponents of up to two, so that every text is a finite number for every reader;
numbers with bounds are written without exponents, integers without a fraction, and 0 without a sign.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Final

from llguidance import LLMatcher, LLTokenizer

from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar import json_patterns as patterns
from ramet.runtime.grammar import lanes
from ramet.runtime.grammar.json_keywords import value_text
from ramet.runtime.grammar.json_shapes import Bool, Null, Num, Shape, Str, Unenforced, fits, holds, normal

MOST_DIGITS: Final = 78
_EDGE: Final = Decimal(10) ** MOST_DIGITS
MOST_LENGTH: Final = 1_000_000
MOST_LISTED: Final = 1_000
_WHOLE: Final = f"(?:0|[1-9][0-9]{{0,{MOST_DIGITS - 1}}})"
_MAGNITUDES: Final = {
    "integer": _WHOLE,
    "any": rf"{_WHOLE}(?:\.[0-9]{{1,{MOST_DIGITS}}})?",
    "fraction": rf"{_WHOLE}\.[0-9]{{0,{MOST_DIGITS - 1}}}[1-9]",
}
_NUMBER: Final = rf"-?{_MAGNITUDES['any']}(?:[eE][+\-]?[0-9]{{1,2}})?"
_INTEGER: Final = rf"0|-?[1-9][0-9]{{0,{MOST_DIGITS - 1}}}"


class Terms:
    """Terminals by their definition, each defined once; names begin with `prefix`. `marks`: those that may get lanes
    (lanes.py) are marked; `open` are such that stand for themselves in rules, not in other terminals."""

    def __init__(self, prefix: str, marks: bool = False) -> None:
        self._prefix = prefix.upper()
        self.marks = marks
        self.open: set[str] = set()
        self._names: dict[str, str] = {}
        self._matchers: dict[str, LLMatcher] = {}
        self._searches: dict[tuple[str, bool], str] = {}
        self._tokenizer: LLTokenizer | None = None

    def name(self, expression: str) -> str:
        """The terminal that is defined so."""
        return self._names.setdefault(expression, f"{self._prefix}_{len(self._names)}")

    def regex(self, source: str) -> str:
        """The terminal of a regex."""
        return self.name(f"/{source}/")

    def search(self, pattern: str, wide: bool = False) -> str:
        """`json_patterns.search`, remembered."""
        found = self._searches.get((pattern, wide))
        if found is None:
            found = self._searches[pattern, wide] = patterns.search(pattern, wide=wide)
        return found

    def used(self, rules: list[str]) -> list[str]:
        """The definitions that rules need, directly or through each other."""
        by_name = {name: expression for expression, name in self._names.items()}
        todo = [name for rule in rules for name in self._mentioned(rule)]
        found: dict[str, str] = {}
        while todo:
            name = todo.pop()
            if name not in found:
                found[name] = by_name[name]
                todo.extend(self._mentioned(by_name[name]))
        return [f"{name}: {expression}" for name, expression in found.items()]

    def _mentioned(self, text: str) -> list[str]:
        return re.findall(rf"\b{self._prefix}_[0-9]+\b", _outside(text))

    def empty(self, name: str) -> bool:
        """Whether a terminal has no text at all, as the engine itself finds."""
        matcher = self._matcher(name).deep_copy()
        mask = matcher.compute_bitmask()
        return not any(mask) or (matcher.is_stopped() and not matcher.is_accepting())

    def accepts(self, name: str, text: str) -> bool:
        """Whether a terminal has this text."""
        matcher, octets = self._matcher(name).deep_copy(), list(text.encode())
        return matcher.try_consume_tokens(octets) == len(octets) and matcher.is_accepting()

    def _matcher(self, name: str) -> LLMatcher:
        """One at the beginning of a terminal; it is not moved."""
        matcher = self._matchers.get(name)
        if matcher is None:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer("byte")
            text = "\n".join(['%llguidance {"no_forcing": true}', f"start: {name}", *self.used([name])])
            matcher = self._matchers[name] = LLMatcher(self._tokenizer, text)
            if matcher.is_error():
                raise ConstraintError(f"json_schema: too complex for the engine: {matcher.get_error()[:300]}")
        return matcher


def _outside(expression: str) -> str:
    """A terminal's definition without its regexes and strings."""
    return re.sub(r'/(?:[^/\\]|\\.)*/|"(?:[^"\\]|\\.)*"', " ", expression)


def scalar(terms: Terms, shape: Null | Bool | Num | Str) -> str | None:
    """The terminal (or, for numbers that only the engine can count in, the rule's text) of a scalar shape; None where
    it has no texts."""
    if isinstance(shape, Null):
        return '"null"'
    if isinstance(shape, Bool):
        return terms.regex("|".join(value_text(value) for value in sorted(shape.values)))
    if isinstance(shape, Num):
        name = number(terms, shape)
        plain = not shape.excluded or shape.only is not None
        return name if name is None or plain or name.startswith("%") or not terms.empty(name) else None
    name = string(terms, shape)
    # Without patterns and formats there are texts: excluded ones are few.
    plain = not (shape.patterns or shape.others or shape.formats or (shape.excluded and shape.high is not None))
    return name if plain or not terms.empty(name) else None


def key(terms: Terms, shape: Str) -> str | None:
    """The terminal of a key, which has one spelling only, or a declared name could be written with escapes."""
    return terms.regex(f'"{patterns.ANY}*"') if shape == Str() else scalar(terms, shape)


# Strings


def string(terms: Terms, shape: Str) -> str:
    """The terminal of a string shape."""
    quote = '"'
    if shape.only is not None:
        texts = "|".join(patterns.literal(text) for text in sorted(shape.only))
        return terms.name(_every([terms.regex(f'"(?:{texts})"'), *_formats(terms, shape)]))
    if shape.low > MOST_LENGTH:
        raise Unenforced("minLength", f"{shape.low} is above {MOST_LENGTH} (limit: length)", shape.low)
    bound = ""
    if shape.low or shape.high is not None:
        bound = f"{{{shape.low},{'' if shape.high is None else min(shape.high, MOST_LENGTH)}}}"
    if not (shape.patterns or shape.others or shape.formats or shape.excluded):
        return terms.regex(f"{quote}{patterns.ANY_SPELLING}{bound or '*'}{quote}")
    parts = _formats(terms, shape)
    parts += [terms.regex(f"{quote}{terms.search(one)}{quote}") for one in sorted(shape.patterns)]
    whole = terms.regex(f"{quote}{patterns.ANY}{bound or '*'}{quote}")
    if bound or not parts:
        parts.append(whole)
    parts += ["~" + terms.regex(f"{quote}{terms.search(one, True)}{quote}") for one in sorted(shape.others)]
    if shape.excluded:
        parts.append("~" + names(terms, shape.excluded))
    name = terms.name(_every(parts)) if len(parts) > 1 else parts[0]
    if terms.marks and _open(terms, shape, name):
        name = terms.name(_every([terms.regex(lanes.free()), *(one for one in parts if bound or one != whole)]))
        terms.open.add(name)
    return name


def _open(terms: Terms, shape: Str, name: str) -> bool:
    """Whether any plain characters begin a string of this shape: surely, if some ending makes one of them all."""
    if shape.high is not None or shape.formats or shape.low > 100:
        return False
    if not (shape.patterns or shape.others):
        return not any(text.endswith(lanes.RARE) for text in shape.excluded)
    ending = lanes.RARE * max(1, shape.low) + "".join(map(patterns.example, sorted(shape.patterns)))
    try:
        ended = terms.regex(f'"{lanes.PLAIN}*{patterns.literal(ending)}"')
        return terms.empty(terms.name(f"{ended} & ~{name}"))
    except ConstraintError:  # too much to find out
        return False


def counted(terms: Terms, shape: Shape) -> str:
    """The terminal of a string of at most so many characters, where no other string may begin."""
    assert isinstance(shape, Str) and shape.high, "only strings with a length are counted"
    if shape.low > MOST_LENGTH:
        raise Unenforced("minLength", f"{shape.low} is above {MOST_LENGTH} (limit: length)", shape.low)
    return terms.regex(lanes.counted(shape.low, min(shape.high, MOST_LENGTH)))


def names(terms: Terms, texts: frozenset[str] | set[str]) -> str:
    """The terminal of some strings, in quotes."""
    return terms.regex('"(?:' + "|".join(patterns.literal(text) for text in sorted(texts)) + ')"')


def _formats(terms: Terms, shape: Str) -> list[str]:
    return [terms.regex(f'"(?:{patterns.FORMATS[one]})"') for one in sorted(shape.formats)]


def _every(parts: list[str]) -> str:
    return " & ".join(parts)


# Numbers


def number(terms: Terms, shape: Num) -> str | None:
    """The terminal of a number shape, or a `%json` rule where multiples must be counted."""
    shape = _listed(shape)
    if shape.only is not None:
        texts = sorted(value_text(value) for value in shape.only)
        return terms.regex("|".join(re.escape(text).replace("/", r"\/") for text in texts)) if texts else None
    magnitude = terms.regex(_MAGNITUDES[shape.kind])
    if shape.multiples:
        places = _power_of_ten(multiple(shape))
        if places is None:
            return _counted(shape)
        if shape.kind == "fraction" and places >= 0:
            return None
        magnitude = terms.regex(_tenths(-places) if shape.kind == "fraction" else _tens(places))
    elif shape == Num("integer"):
        return terms.regex(_INTEGER)
    elif shape == Num():
        return terms.regex(_NUMBER)
    if (shape.low is not None and shape.low >= _EDGE) or (shape.high is not None and shape.high <= -_EDGE):
        return None
    sides = [side for side in (_positive(terms, shape, magnitude), _negative(terms, shape, magnitude)) if side]
    return terms.name(" | ".join(sides)) if sides else None


def _listed(shape: Num) -> Num:
    """Few enough integers or multiples become a list."""
    if shape.only is not None or shape.low is None or shape.high is None:
        return shape
    if not shape.multiples and shape.kind != "integer":
        return shape
    unit = multiple(shape)
    first, last = _ceil(shape.low / unit), -_ceil(-shape.high / unit)
    if last - first >= (MOST_LISTED if shape.multiples else 20):
        return shape
    values = (unit * i for i in range(first, last + 1))
    return Num(only=frozenset(value for value in values if holds(shape, value)))


def multiple(shape: Num) -> Decimal:
    """The least number that all values are multiples of."""
    units = [*shape.multiples, *([Decimal(1)] if shape.kind == "integer" else [])]
    scale = Decimal(10) ** max(0, *(-int(unit.normalize().as_tuple().exponent) for unit in units))
    whole = 1
    for unit in units:
        other = int(unit * scale)
        whole = whole * other // _gcd(whole, other)
    return Decimal(whole) / scale


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


def _ceil(value: Decimal) -> int:
    return -int((-value).to_integral_value(rounding="ROUND_FLOOR"))


def _power_of_ten(unit: Decimal) -> int | None:
    _, digits, exponent = unit.normalize().as_tuple()
    return int(exponent) if digits == (1,) and abs(int(exponent)) < MOST_DIGITS else None


def _tenths(digits: int) -> str:
    """Multiples of 10 ** -digits that are not whole, without a sign."""
    return rf"{_WHOLE}\.[0-9]{{0,{digits - 1}}}[1-9]"


def _tens(places: int) -> str:
    """Multiples of 10 ** places, without a sign."""
    if places < 0:
        return rf"{_WHOLE}(?:\.[0-9]{{1,{-places}}})?"
    return f"(?:0|[1-9][0-9]{{0,{MOST_DIGITS - 1 - places}}}0{{{places}}})"


def _counted(shape: Num) -> str:
    """Multiples as the engine counts them. It reads bounds as doubles, so there are always some that fit."""
    edge, unit = Decimal(10) ** 15, multiple(shape)
    digits = unit.normalize().as_tuple().digits
    low = -edge if shape.low is None else max(shape.low, -edge)
    high = edge if shape.high is None else min(shape.high, edge)
    if len(digits) > 9 or not -9 <= unit.adjusted() <= 9 or low > high or shape.excluded or shape.kind == "fraction":
        raise Unenforced("multipleOf", f"multiples of {value_text(unit)} cannot be enforced beside the rest")
    first, last = unit * _ceil(low / unit), -unit * _ceil(-high / unit)
    if shape.low_open and first == shape.low:
        first += unit
    if shape.high_open and last == shape.high:
        last -= unit
    bounds = f'"multipleOf": {value_text(unit)}, "minimum": {value_text(first)}, "maximum": {value_text(last)}'
    return f'%json {{"type": "{"integer" if unit == int(unit) else "number"}", {bounds}}}'


def _positive(terms: Terms, shape: Num, magnitude: str) -> str | None:
    if shape.high is not None and shape.high < 0:
        return None
    low, opened = (shape.low, shape.low_open) if shape.low is not None and shape.low >= 0 else (Decimal(0), False)
    return _between(terms, magnitude, (low, opened), (shape.high, shape.high_open), _plain(shape, 1))


def _negative(terms: Terms, shape: Num, magnitude: str) -> str | None:
    if shape.low is not None and shape.low >= 0:
        return None
    below = shape.high is not None and shape.high < 0
    low = (-shape.high, shape.high_open) if below and shape.high is not None else (Decimal(0), True)
    high = None if shape.low is None else -shape.low
    return f'"-" ({_between(terms, magnitude, low, (high, shape.low_open), _plain(shape, -1))})'


def _plain(shape: Num, sign: int) -> list[Decimal]:
    return sorted(value * sign for value in shape.excluded if value * sign >= 0)


def _between(
    terms: Terms,
    magnitude: str,
    low: tuple[Decimal, bool],
    high: tuple[Decimal | None, bool],
    excluded: list[Decimal],
) -> str:
    parts = [magnitude]
    if low != (Decimal(0), False):
        parts.append(terms.regex(_at_least(*low)))
    if high[0] is not None and high[0] < _EDGE:  # no text has more digits
        parts.append("~" + terms.regex(_at_least(high[0], not high[1])))
    if excluded:
        texts = (value_text(value) for value in excluded)
        same = "|".join(re.escape(t) + ("0*" if "." in t else r"(?:\.0+)?") for t in texts)
        parts.append("~" + terms.regex(same))
    return _every(parts)


def _at_least(limit: Decimal, strict: bool) -> str:
    """Digits, with or without a fraction, of the numbers from `limit` (>= 0) on; `strict`: above it."""
    whole, _, fraction = value_text(limit).partition(".")
    longer = f"[1-9][0-9]{{{len(whole)},}}"
    above = [longer] if whole != "0" else ["[1-9][0-9]*"]
    for i, digit in enumerate(whole if whole != "0" else ""):
        if digit != "9":
            above.append(f"{whole[:i]}[{int(digit) + 1}-9][0-9]{{{len(whole) - i - 1}}}")
    same = [f"{fraction[:i]}[{int(d) + 1}-9][0-9]*" for i, d in enumerate(fraction) if d != "9"]
    same.append(fraction + ("[0-9]*[1-9][0-9]*" if strict else "[0-9]*" if fraction else "[0-9]+"))
    optional = "?" if not fraction and not strict else ""
    return rf"(?:{'|'.join(above)})(?:\.[0-9]+)?|{whole}(?:\.(?:{'|'.join(same)})){optional}"


# Examples


def example(terms: Terms, shape: Null | Bool | Num | Str, name: str) -> str | None:
    """A short text of a scalar shape, shortest where that is easy to know; None: unknown."""
    if isinstance(shape, Null):
        return "null"
    if isinstance(shape, Bool):
        return min((value_text(value) for value in shape.values), key=len)
    if isinstance(shape, Num):
        return min(_numbers_near(shape), key=len, default=None)
    candidates = sorted(set(_strings_near(shape)), key=lambda one: (len(one), one))
    if not (shape.patterns or shape.others or shape.formats):
        return next((text for text in candidates if fits(shape, json.loads(text))), None)
    return next((text for text in candidates if terms.accepts(name, text)), None)


def _numbers_near(shape: Num) -> list[str]:
    if shape.only is not None:
        return [value_text(value) for value in shape.only]
    unit = multiple(shape) if shape.multiples else Decimal(1)
    near = [Decimal(i) for i in range(10)]
    for edge in (shape.low, shape.high):
        if edge is not None:
            first = unit * _ceil(edge / unit)
            near += [edge, first, first + unit, first - unit, first + 2 * unit, first - 2 * unit]
            near += [first + Decimal(i) / 10 for i in range(-10, 10)]
    if shape.low is not None and shape.high is not None:
        near.append((shape.low + shape.high) / 2)
    near.append(Decimal("0.5"))
    return [value_text(value) for value in near if normal(shape) is not None and holds(shape, value)]


def _strings_near(shape: Str) -> list[str]:
    if shape.only is not None:
        return [json.dumps(text, ensure_ascii=False) for text in shape.only]
    found = [fill * max(shape.low, size) for size in (0, 1, 2) for fill in ("a", "0", "x-")]
    for pattern in shape.patterns:
        found.append(patterns.example(pattern))
        found += [found[-1] + fill * (shape.low - len(found[-1])) for fill in "a0"]
    found += [patterns.SHORT_TEXTS[one] for one in shape.formats]
    fitting = (t for t in found if len(t) >= shape.low and (shape.high is None or len(t) <= shape.high))
    return [json.dumps(text, ensure_ascii=False) for text in fitting if len(text) <= 10_000]
