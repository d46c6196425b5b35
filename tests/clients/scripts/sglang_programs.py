"""SGLang's own frontend test programs, unmodified, over `RuntimeEndpoint`. argv: base URL, model, names of programs.

Each name is a function of `sglang.test.test_programs`. `NAME!`: what it asserts about the model's knowledge may be
wrong (a failed request is no assertion there, but another error).
"""

import contextlib
import sys

import sglang as sgl
from sglang.test import test_programs

URL, _, *NAMES = sys.argv[1:]
sgl.set_default_backend(sgl.RuntimeEndpoint(URL))
for name in NAMES:
    program = getattr(test_programs, name.removesuffix("!"))
    options = program.__code__.co_varnames[: program.__code__.co_argcount]
    with contextlib.suppress(*[AssertionError] * name.endswith("!")):
        program(**({"check_answer": not name.endswith("!")} if "check_answer" in options else {}))
