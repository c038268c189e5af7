"""A report as one HTML file that needs nothing but a browser: no script, no other file."""

from __future__ import annotations

from pathlib import Path

import jinja2

from robustdd_bench.drawing.figures import attack_label
from robustdd_bench.drawing.rendering import TEMPLATES, Trusted, content_hash, environment, png_uri
from robustdd_bench.report.charts import Chart
from robustdd_bench.report.content import Report, checks, facts, passed

OWN_TEMPLATES = Path(__file__).with_name("templates")


def _style() -> str:
    return "".join(
        path.read_text(encoding="utf-8")
        for path in (TEMPLATES / "page.css", OWN_TEMPLATES / "report.css")
    )


def _templates() -> jinja2.Environment:
    templates = environment(OWN_TEMPLATES)
    templates.filters.update(uri=lambda picture: png_uri(picture.data), attack=attack_label)
    return templates


def html(report: Report) -> str:
    """The page's text."""
    style = _style()
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            title=report.title,
            runs=report.runs,
            groups=report.groups,
            comparisons=report.comparisons,
            accuracy=report.accuracy,
            metrics=report.metrics,
            pictures=report.pictures,
            facts=facts,
            checks=checks,
            passed=passed,
            style=Trusted(style),
            style_hash=content_hash(style),
        )
    )


def svg(chart: Chart) -> str:
    """A plot as a file of its own."""
    module = _templates().get_template("chart.html.j2").make_module()
    ground = "svg.plot{font-family:system-ui,sans-serif}.ground{fill:var(--bg)}"
    text = getattr(module, "svg")(chart, "chart", Trusted(_style() + ground))  # noqa: B009
    return str(text)
