"""What every test process needs before torch is loaded."""

from __future__ import annotations

import os

# OpenMP threads that spin while they wait slow everything down as soon as two processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
