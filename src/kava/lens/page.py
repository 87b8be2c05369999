"""The lens's page: one file with its data, style and script, nothing from outside; the playground draws with the same script.

Text enters the page only as JSON, which the script shows with textContent. The policy in the page's head lets nothing run
or load but the style and the script that are in it.
"""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

TITLE = "kava lens"


def asset(name: str) -> str:
    """A file of this folder: lens.css, lens.js."""
    return (files("kava.lens") / name).read_text(encoding="utf-8")


def render_lens(data: dict[str, Any]) -> str:
    """The page of a report's `to_dict()`."""
    style, script = asset("lens.css"), asset("lens.js") + START
    # in a script element only "<" could end it; U+2028 and U+2029 are escaped, too
    document = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    allowed = f"style-src {policy_hash(style)}; script-src {policy_hash(script)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="kava lens">
<title>{TITLE}</title>
<style>{style}</style>
</head>
<body>
<main class="page" id="lens"><noscript>This page draws its data with its own script: allow scripts.</noscript></main>
<script type="application/json" id="data">{document}</script>
<script>{script}</script>
</body>
</html>
"""


START = '\nkavaLens.page(document.getElementById("lens"), JSON.parse(document.getElementById("data").textContent));\n'


def policy_hash(text: str) -> str:
    """What a Content-Security-Policy calls a style or script that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
