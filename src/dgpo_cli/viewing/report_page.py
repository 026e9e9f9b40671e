"""The page of `dgpo report`: one HTML file that needs no network and lets nothing run but its own script.

Everything that was read (passages, questions, what models wrote) reaches the page as JSON in a block that no browser
runs, with `<` written as an escape, and is shown as text only. A content security policy stands behind that: it allows
the page's own script by its hash, and no request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from dgpo_cli.viewing.charts import COLORS, Chart


def render(content: Mapping[str, Any], charts: Sequence[Chart]) -> str:
    """`content` is what viewing/report.py gathers; it must be JSON."""
    assets = files("dgpo_cli.viewing").joinpath("page")
    script = assets.joinpath("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(assets.joinpath("report.html").read_text(encoding="utf-8")).substitute(
        policy=html.escape(policy),
        title=html.escape(f"dgpo report: {', '.join(run['name'] for run in content['runs'])}"),
        style=assets.joinpath("report.css").read_text(encoding="utf-8"),
        charts=_figures([chart for chart in charts if chart.main]),
        more_charts=_figures([chart for chart in charts if not chart.main]),
        content=embed({**content, "colors": COLORS}),
        script=script,
    )


def embed(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, so neither `</script>` nor `<!--` can occur.

    NaN and infinities are no JSON; nothing that is embedded holds them.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _figures(charts: Sequence[Chart]) -> str:
    return "\n".join(
        f'<figure data-metric="{html.escape(chart.metric)}"><figcaption>{html.escape(chart.title)}</figcaption>'
        f"{chart.svg}</figure>"
        for chart in charts
    )
