"""The README's clients, run as they stand against a server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .serving import serving

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
PROGRAM = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)[0]
CLIENTS = re.findall(r"^```py\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_clients_run(tmp_path: Path) -> None:
    assert len(CLIENTS) >= 2
    script = tmp_path / "clients.py"
    with serving() as server:
        text = "\n\n".join((PROGRAM, *CLIENTS)).replace("http://127.0.0.1:30000", server.url)
        script.write_text(text, encoding="utf-8")
        command = [sys.executable, "-P", str(script)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False
        )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^.* \d+$", done.stdout, re.MULTILINE), done.stdout
