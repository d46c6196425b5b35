"""SGLang's frontend language with constraints: patterns, schemas, types. argv: base URL, model."""

import json
import re
import sys

import sglang as sgl

URL, MODEL = sys.argv[1:3]
sgl.set_default_backend(sgl.RuntimeEndpoint(URL))
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Nile", "Amazon"]}, "long": {"type": "boolean"}},
    "required": ["name", "long"],
    "additionalProperties": False,
}


@sgl.function
def constrained(s):
    s += "A code: " + sgl.gen("code", max_tokens=40, regex="[0-9]{3}-[0-9]{2}") + "\n"
    s += "A river: " + sgl.gen("river", max_tokens=80, json_schema=json.dumps(SCHEMA)) + "\n"
    s += "A number: " + sgl.gen("number", max_tokens=400, dtype=int) + "\n"


state = constrained.run(temperature=1.0)
assert re.fullmatch("[0-9]{3}-[0-9]{2}", state["code"])
assert set(json.loads(state["river"])) == {"name", "long"}
assert MODEL
