"""The lens of a host that is no decoder as one HTML file that needs nothing else: each stack of layers as a grid of
heads, and a head from near, over words or over a picture.

All data lie in the page as JSON and reach it as text, never as markup. Attention from a token is computed by the
browser from the head's queries and keys.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from headwise.files import read_text, write_text
from headwise.report.html import document
from headwise.report.lens_page import PARTS, STYLE

SCRIPT, OWN_STYLE = (Path(__file__).parent / f"host_page.{kind}" for kind in ("js", "css"))

BODY = """
<h1>{title}</h1>
<p id="read"></p>
<p>Each square is a head, layers down and heads across, coloured by a lens; a click opens it.
Heads with a dark frame can be looked into down to the single token.</p>
<div class="tools"><label id="which">layers <select id="stack"></select></label>
<label>lens <select id="lens"></select></label> <span id="scale"></span></div>
<p id="about"></p>
<div class="sides">
<div class="wide"><div id="grid" role="grid" aria-label="heads"></div></div>
<section id="head" aria-live="polite"><h2 id="name"></h2><p id="told"></p>
<div class="maps">
<figure><canvas id="whole" width="384" height="384"></canvas><figcaption id="tiled"></figcaption></figure>
<figure id="exact"><canvas id="block" width="384" height="384"></canvas><figcaption id="where"></figcaption></figure>
</div></section></div>
<section id="near"><h2 id="asks"></h2><p id="looks"></p><ol id="best"></ol>
<div id="queries"></div><h2 id="answers"></h2><div id="keys"></div></section>
<div id="refused"></div>
"""


def write_host_page(result: dict[str, Any], drawn: dict[str, Any], shown: dict[str, Any], path: Path) -> None:
    """Write the page of a host's JSON object, with what patterns are drawn from, and by name what was read: words of
    tokens, or a picture with its grid."""
    write_text(path, host_page(result, drawn, shown))


def host_page(result: dict[str, Any], drawn: dict[str, Any], shown: dict[str, Any]) -> str:
    """The whole page."""
    title = f"headwise lens: {Path(result['model']).name or result['model']}"
    data = json.dumps(result | {"drawn": drawn, "shown": shown}, allow_nan=False).replace("<", "\\u003c")
    parts = [
        f"<style>{read_text(STYLE)}{read_text(OWN_STYLE)}</style>{BODY.format(title=escape(title))}",
        f'<script type="application/json" id="data">{data}</script>',
        f"<script>{read_text(PARTS)}{read_text(SCRIPT)}</script>",
    ]
    return document(title, "\n".join(parts))
