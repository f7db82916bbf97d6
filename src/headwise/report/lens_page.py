"""The lens as one HTML file that needs nothing else: the model as a grid of heads, and each head from near.

All data lie in the page as JSON and reach it as text, never as markup. A block of a pattern is computed by the browser
from the head's queries and keys, so that a pattern of 8000 tokens is exact wherever one looks, and no image of it is
kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from headwise.files import read_text, write_text
from headwise.report.html import document

PARTS, SCRIPT, STYLE = (Path(__file__).parent / name for name in ("lens_parts.js", "lens_page.js", "lens_page.css"))

BODY = """
<h1>{title}</h1>
<p id="read"></p>
<p>Each square is a head, layers down and heads across, coloured by a lens; a click opens it.
Heads with a dark frame can be looked into down to the single token.</p>
<div class="tools"><label id="which" hidden>look at <select id="side"></select></label>
<label>lens <select id="lens"></select></label> <span id="scale"></span></div>
<p id="about"></p>
<div class="sides">
<div class="wide"><div id="grid" role="grid" aria-label="heads"></div></div>
<section id="head" aria-live="polite"><h2 id="name"></h2><p id="told"></p>
<div class="maps">
<figure><canvas id="whole" width="384" height="384"></canvas><figcaption>The whole text in tiles: queries down, what
they look at across. A click goes to a place.</figcaption></figure>
<figure id="besides" hidden><canvas id="other" width="384" height="384"></canvas><figcaption id="named"></figcaption>
</figure>
<figure id="exact"><canvas id="block" width="384" height="384"></canvas><figcaption id="where"></figcaption></figure>
</div></section></div>
<section id="together" hidden><h2>What breaks without the best heads of this lens</h2><p id="lost"></p>
<table id="worst"></table></section>
<section id="planned" hidden><h2>What the plan breaks</h2><p id="cost"></p><table id="missed"></table></section>
<section id="near"><h2>Token by token</h2><p id="looks">A click on a token shows what the head looks at from there: the
darker, the more.</p><ol id="best"></ol><div id="text"></div>
<div class="maps"><div><h2>What it writes</h2><p>When it attends to a token, it makes these more likely; read from its
weights alone.</p><table id="writes"></table></div>
<div><h2>What breaks without this head</h2><p id="loss"></p><table id="hurt"></table></div></div></section>
{refused}
"""


def write_page(results: Sequence[dict[str, Any]], patterns: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the page of a lens's JSON objects, one or two that are compared, with what patterns are drawn from."""
    write_text(path, page(results, patterns))


def page(results: Sequence[dict[str, Any]], patterns: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    title = f"headwise lens: {' beside '.join(dict.fromkeys(Path(x['model']).name or x['model'] for x in results))}"
    told = dict.fromkeys(f"{name} was not taken: {why}" for one in results for name, why in one["refused"].items())
    sides = [one | {"patterns": drawn} for one, drawn in zip(results, patterns, strict=True)]
    data = json.dumps(sides, allow_nan=False).replace("<", "\\u003c")
    body = BODY.format(title=escape(title), refused="".join(f"<p>{escape(one)}</p>" for one in told))
    parts = [
        f"<style>{read_text(STYLE)}</style>{body}",
        f'<script type="application/json" id="data">{data}</script>',
        f"<script>{read_text(PARTS)}{read_text(SCRIPT)}</script>",
    ]
    return document(title, "\n".join(parts))
