"""One program per file; each runs by itself (`python -m ramet.examples.<name>`) and is tested."""
