"""Ask a server on this machine or its network: a proxy for the internet has no part in it."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(url: str, body: dict[str, Any], key: str | None, timeout_s: float) -> Any:
    """Post JSON, with the key if there is one, and return the JSON of the reply.

    Raises urllib.error.HTTPError for a refusal, OSError without an answer, ValueError for one that is no JSON.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with OPENER.open(request, timeout=timeout_s) as response:
        return json.load(response)
