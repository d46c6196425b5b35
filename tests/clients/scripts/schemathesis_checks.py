"""What schemathesis checks of every answer: see SCHEMATHESIS_HOOKS."""

import schemathesis


@schemathesis.check
def answered(ctx, response, case):
    """No 5xx, except a missed deadline that the request itself set; and what is wrong is said."""
    late = response.status_code == 504 and isinstance(case.body, dict) and "timeout" in case.body
    if response.status_code >= 500 and not late:
        raise AssertionError(f"status {response.status_code}: {response.text[:500]}")
    if response.status_code >= 400 and not response.json().get("error"):
        raise AssertionError(f"an error without an error object: {response.text[:500]}")
