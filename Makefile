# ramet: every target sets up .venv by itself (.ci/setup.py: idempotent, stamped by pyproject.toml + constraints.txt).
#   make demo    a multi-call program on a real language model, with the savings measured
#   make test    the whole test suite (without tests marked nightly or gpu)
#   make kernels the GPU kernels without a GPU: in Triton's interpreter, and compiled for sm_90
#   make sim     10^6 simulated steps with injected faults, 10^5 rounds of the prefix cache; a failure is a command
#   make clients other people's clients (openai, anthropic, ollama, langchain, sglang, ...) against the server
#   make fuzz    damaged weights, plans and programs with fresh seeds; the native kernels on random shapes, sanitized
#   make coverage  the branches of the scheduler, the prefix cache, the audit, the programs and the journal: all taken by tests
#   make check   ruff, ruff format, mypy --strict
#   make bench   the first table: step time, tokens/s, the demo's ratio
# ARGS passes options on (make test ARGS="-k radix"); PYTHON names the interpreter that makes .venv.

PYTHON ?= python3
ARGS ?=
# started first, so that neither of the two workers ends long after the other
LONGEST := tests/sim tests/benchmarks tests/test_packaging.py tests/runtime/test_greedy.py tests/runtime/test_valid_texts.py tests/security/test_r04_grammars.py
PACKAGES := frontend runtime kernels examples
RUN := .venv/bin/python -P
export PYTHONSAFEPATH := 1
# threads that wait must not take the cores from those that work
export OMP_WAIT_POLICY ?= PASSIVE
# a module, and a test with its asserts rewritten, is compiled once, and not in each of the hundreds of processes
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test kernels sim clients nightly fuzz coverage check bench types clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@$(PYTHON) .ci/setup.py

demo: setup
	@$(RUN) -m ramet demo $(ARGS)

test: setup
	@$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(LONGEST) tests -m "not nightly and not gpu and not triton and not aot and not clients" $(ARGS)

# Triton's interpreter and ahead-of-time compiler exclude each other in one process.
kernels: setup  # interpreter, table of registers, shared memory and spills, then the rest of the compiler
	@TRITON_INTERPRET=1 $(RUN) -m pytest -q -m triton tests/kernels/triton tests/benchmarks $(ARGS)
	@$(RUN) -m ramet.kernels.triton.aot
	@$(RUN) -m pytest -q -m aot tests/kernels/triton $(ARGS)

# Two processes, about ten minutes of two cores; ARGS="--steps 50000" for fewer, "--seed" for other seeds.
sim: setup
	@$(RUN) tests/sim/sim.py $(ARGS)

# Other people's clients, each in a virtual environment of its own, against a server process.
clients: setup
	@$(RUN) -m pytest -q -m "clients and not nightly" tests/clients tests/server $(ARGS)

nightly: setup
	@$(RUN) -m pytest -q -m "nightly" $(ARGS)

# Seeds are printed; a finding names its seed and number, with which the same input is made again.
fuzz: setup
	@$(RUN) -m pytest -q -s -m nightly tests/runtime/models/test_gguf_fuzz.py tests/server/test_program_fuzz.py tests/kernels/cpu/test_native_sanitized.py $(ARGS)

coverage: setup
	@.ci/coverage $(ARGS)

check: setup types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy --strict build/types/ramet

bench: setup
	@$(RUN) benchmarks/first.py $(ARGS)

# mypy reads the package mapping of pyproject.toml as a folder of links.
types:
	@mkdir -p build/types/ramet
	@for name in $(PACKAGES); do ln -sfn "../../../$$name" "build/types/ramet/$$name"; done
	@for name in __init__.py __main__.py py.typed; do ln -sfn "../../../ramet/$$name" "build/types/ramet/$$name"; done

clean:
	@rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
