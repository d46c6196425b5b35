"""Which structural tags tell their JSON apart from all other text, so that its strings may get lanes (lanes.py).

In: a format of a structural tag as parsed JSON. Out: whether at every place inside of JSON nothing else may stand, and
no text needs the control characters that lanes take. False wherever that is not plain.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

_SIGNALS = re.compile(r"\\u000[123]|\\x0[123]|[\x01-\x03]")


def told_apart(spec: Any) -> bool:
    """For a whole format, which need not be a valid one."""
    return not _SIGNALS.search(json.dumps(spec)) and _format(spec)


def _format(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    kind = value.get("type")
    if kind in ("const_string", "json_schema"):
        return True
    if kind == "sequence" and isinstance(value.get("elements"), list):
        several = [one for one in value["elements"] if not isinstance(one, dict) or one.get("type") != "const_string"]
        return len(several) <= 1 and all(map(_format, several))
    if kind == "tag":
        return _content(value)
    if kind in ("tags_with_separator", "triggered_tags"):
        return _tags(value.get("tags"))
    return False


def _content(tag: Any) -> bool:
    """Free text in a tag ends with it, and has no JSON beside it."""
    content = tag.get("content") if isinstance(tag, dict) else None
    return isinstance(content, dict) and (content.get("type") == "any_text" or _format(content))


def _tags(tags: Any) -> bool:
    """Tags none of which begins like another. Free text around them never contains what they begin with."""
    if not isinstance(tags, list) or not all(
        isinstance(one, dict) and isinstance(one.get("begin"), str) for one in tags
    ):
        return False
    begins = sorted(one["begin"] for one in tags)
    apart = all(begins) and not any(after.startswith(one) for one, after in pairwise(begins))
    return apart and all(map(_content, tags))
