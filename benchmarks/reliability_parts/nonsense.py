"""Requests that are nearly right, or not HTTP at all: in: an OpenAPI description and a number. Out: bytes.

Request `number` of a seed is always the same one, so that a report of it can be repeated.
"""

from __future__ import annotations

import json
import random
from typing import Any

JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**30, -0.5, 1e308, "", "x", "\x00", "\U0001f600", "<|im_end|>", "../.."),
    *([], {}, [[]], [None] * 3, {"": None}, {"type": "object"}, ["\ud800"], "a" * 5000, "$ref", "%00"),
)
TEXTS = (
    "",
    "a",
    "Once upon a time",
    "default",
    "user",
    "assistant",
    "text",
    "\U0001f600",
    "river " * 500,
    "\u202e",
    "0",
)
INTEGERS = (0, 1, 2, 3, 8, 20, -1, 129, 49_151, 49_152, 10**9, -(2**63))
NUMBERS = (0, 1, 0.5, 1e-9, -1, 2.5, 1e300, *INTEGERS)
STRANGE_FIELDS = (
    "regex",
    "tools",
    "guided_json",
    "grammar",
    "tempurature",
    "\x7f",
    "stream",
    "n",
    "stop",
    "logit_bias",
)
NAMES = ("default", "nobody", "%00", "..%2f..", "%F0%9F%98%80", "x" * 3000, "a/b/c", "%", "?", "%0d%0aX:1")
METHODS = ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW", "GET", "POST")


class Nonsense:
    """What a client might send that was written by nobody. `api`: the description of the server."""

    def __init__(self, api: dict[str, Any], host: str, seed: int) -> None:
        self._api = api
        self._host = host
        self._seed = seed
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.plain: list[tuple[str, str]] = []
        for path, methods in sorted(api["paths"].items()):
            for method, operation in sorted(methods.items()):
                content = operation.get("requestBody", {}).get("content", {})
                schema = content.get("application/json", {}).get("schema")
                if schema is not None:
                    self.bodies.append((path, schema))
                else:
                    self.plain.append((method.upper(), path))

    def request(self, number: int) -> bytes:
        """A request that ends, and whose connection may go on."""
        rng = random.Random(f"{self._seed} {number}")
        if rng.random() < 0.1:
            method, path = rng.choice(self.plain)
            method = rng.choice(METHODS) if rng.random() < 0.3 else method
            path = path.replace("{name}", rng.choice(NAMES)).replace("{id}", rng.choice(NAMES))
            path += rng.choice(("", "", "?dp_rank=x", "?include=%FF", "?" + "a=b&" * 100, "/", "//", "/../health"))
            return self._framed(method, path, None, rng)
        path, schema = rng.choice(self.bodies)
        return self._framed("POST", path, self._body(schema, rng), rng)

    def _framed(self, method: str, path: str, content: bytes | None, rng: random.Random) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}"]
        if content is not None:
            kinds = ("application/json",) * 12 + (
                "text/plain",
                "application/json; charset=utf-16",
                "multipart/form-data",
            )
            lines += [f"Content-Type: {rng.choice(kinds)}", f"Content-Length: {len(content)}"]
        if rng.random() < 0.03:
            lines.append(rng.choice(("X-Request-Timeout: nan", "X-Request-Id: \x80", "Accept: */*;q=x", "Expect: 100")))
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (content or b"")

    def _body(self, schema: dict[str, Any], rng: random.Random) -> bytes:
        """A body as bytes: of the schema, or with one thing changed, or not JSON at all."""
        body = self._value(schema, rng, 0)
        change = rng.choice(("none", "none", "field", "unknown", "text", "whole"))
        if change == "whole":
            body = rng.choice(JUNK)
        elif change == "field" and isinstance(body, dict) and body:
            body[rng.choice(sorted(body))] = rng.choice(JUNK)
        elif change == "unknown" and isinstance(body, dict):
            body[rng.choice(STRANGE_FIELDS)] = rng.choice(JUNK)
        text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
        if change == "text":
            cut = rng.randrange(len(text) + 1)
            text = rng.choice((text[:cut], text + "}", "[" * 200 + text, text.replace("1", "NaN"), "", "\\ud800"))
        content = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.05 and content:
            at = rng.randrange(len(content))
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        return content

    def _value(self, schema: dict[str, Any], rng: random.Random, depth: int) -> Any:
        """A value of a schema, as far as its types go; deep down whatever is short."""
        if "$ref" in schema:
            named = self._api["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            return self._value(named, rng, depth + 1)
        if depth > 7:
            return rng.choice(JUNK)
        branches = schema.get("anyOf") or schema.get("oneOf")
        if branches:
            return self._value(rng.choice(branches), rng, depth + 1)
        if "const" in schema or "enum" in schema:
            return rng.choice(schema.get("enum") or [schema["const"]])
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, rng, depth)
        if kind == "array":
            return [self._value(schema.get("items", {}), rng, depth + 1) for _ in range(rng.randrange(4))]
        plain = {"string": TEXTS, "integer": INTEGERS, "number": NUMBERS, "boolean": (True, False), "null": (None,)}
        return rng.choice(plain.get(str(kind), JUNK))

    def _object(self, schema: dict[str, Any], rng: random.Random, depth: int) -> dict[str, Any]:
        """What is required and some of the rest; now and then an example of the description."""
        fields = schema.get("properties", {})
        if not fields:
            return {rng.choice(("type", "x", "0", "7")): rng.choice(JUNK) for _ in range(rng.randrange(3))}
        made = dict(rng.choice([{}, *schema.get("examples", ())]))
        rest = sorted(set(fields) - set(schema.get("required", ())))
        for name in (*schema.get("required", ()), *rng.sample(rest, min(len(rest), rng.randrange(5)))):
            if name in fields:
                usual = name == "model" and rng.random() < 0.8
                made[name] = "default" if usual else self._value(fields[name], rng, depth + 1)
        return made

    def raw(self, number: int) -> bytes:
        """Bytes that are no request, or one whose frame lies; the client sends no more after them."""
        rng = random.Random(f"{self._seed} raw {number}")
        host, body = f"Host: {self._host}\r\n", b'{"text":"x","sampling_params":{"max_new_tokens":2}}'
        post = f"POST /generate HTTP/1.1\r\n{host}Content-Type: application/json\r\n".encode()
        chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
        shapes = (
            bytes(rng.randrange(256) for _ in range(rng.randrange(1, 300))),
            b"GET / HTTP/9.9\r\n" + host.encode() + b"\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
            b"GET /" + b"a" * rng.choice((9000, 70_000)) + b" HTTP/1.1\r\n" + host.encode() + b"\r\n",
            b"GET /health HTTP/1.1\r\n" + host.encode() + b"X: " + b"y" * 90_000 + b"\r\n\r\n",
            b"GET /health HTTP/1.1\r\n" + host.encode() + b"A: b\r\n" * 3000 + b"\r\n",
            b"GET /health HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"GET /health\x00 HTTP/1.1\r\n" + host.encode() + b"\r\n",
            post + b"Content-Length: -1\r\n\r\n" + body,
            post + b"Content-Length: 99999999999999999999\r\n\r\n" + body,
            post + b"Content-Length: 12\r\nContent-Length: 13\r\n\r\n" + body,
            post + b"Content-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + body,
            post + f"Content-Length: {len(body) + 50}\r\n\r\n".encode() + body,
            post + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
            chunked + b"zz\r\n" + body,
            chunked + b"ffffffffffffffff\r\n" + body,
            chunked + f"{len(body):x}\r\n".encode() + body,
            post[: rng.randrange(1, len(post))],
        )
        return rng.choice(shapes)
