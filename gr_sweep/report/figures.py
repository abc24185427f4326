"""Plots of the report, as Plotly figures in plain dictionaries: loss curves and relearning.

The scatter plot of jobs is made in the page, where its axes are chosen. To add a figure, return it
here and place it in `html.render` and page/index.html.j2.

Colours say which edges a job cuts, the same everywhere (Okabe and Ito 2008, which colour-blind
readers can tell apart). The page sets backgrounds and text colours for light and dark. The `meta`
of a trace names its jobs by their index in `Sweep.compared`, so that the page can filter them:
`points` has an index for each point, the indices that a mean is over, or None.
"""

import functools
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gr_sweep.config import is_number
from gr_sweep.metrics import registry
from gr_sweep.report.sweep import Job, Sweep

COLOURS = {
    "dense": "#7d8590",
    "none": "#cc79a7",
    "weight": "#d55e00",
    "act": "#009e73",
    "both": "#0072b2",
}
"""By edges; `dense` has none."""

HUES = (
    "#4c78a8", "#e0802b", "#54a24b", "#c8526b", "#8f6bb3", "#4fa3a0", "#a0745c", "#b8a13a",
)  # fmt: skip
"""Of domains, and of whatever edges do not distinguish."""

MARKERS = {
    "peers": ("circle", "●"),
    "forget": ("diamond", "◆"),
    "tree": ("square", "■"),
    "lattice": ("hexagon", "⬢"),
    "sgtm": ("star", "★"),
    "era": ("cross", "✚"),
    "gram": ("star-diamond", "✦"),
    "demix": ("pentagon", "⬟"),
    "btx": ("triangle-right", "▶"),
    "flexolmo": ("triangle-left", "◀"),
    "random": ("circle-open", "○"),  # Hollow, because it is a control.
    "dense": ("x", "✕"),
    "filtered": ("triangle-up", "▲"),
    "filtered_observed": ("triangle-up-open", "△"),
}
"""By plan or method: Plotly's name of the marker, and a similar letter."""

_DASHES = {"dense": "dot", "filtered": "dash", "filtered_observed": "dash"}
"""Of attacks, by plan or method."""
_OTHER_COLOUR = "#b8860b"
_OTHER_MARKER = ("triangle-down", "▼")
_POINTS_OF_A_CURVE, _POINTS_OF_ALL_CURVES = 200, 10_000
"""With many jobs each curve of a figure has fewer points."""

Figure = dict[str, Any]
Point = tuple[float | None, float | None, list[int] | int | None, str]
"""Of a trace: x, y, its job or jobs, and its tooltip; without numbers, a gap in the line."""
_GAP: Point = (None, None, None, "")

escaped = functools.partial(html.escape, quote=False)
"""For Plotly, which interprets a few HTML tags in its texts."""


def colour(edges: str) -> str:
    """The colour of a choice of edges."""
    return COLOURS.get(edges, _OTHER_COLOUR)


def identity(label: str, job: Job) -> dict[str, Any]:
    """How a job or a group is named and drawn everywhere on the page."""
    symbol, glyph = MARKERS.get(job.kind, _OTHER_MARKER)
    return {
        "label": label, "name": job.name, "edges": job.edges, "kind": job.kind,
        "colour": colour(job.edges), "symbol": symbol, "glyph": glyph,
    }  # fmt: skip


def indices(sweep: Sweep, jobs: Sequence[Job]) -> list[int]:
    """Index of each job in `Sweep.compared`."""
    return [sweep.places[job.name] for job in jobs]


def padded(values: Sequence[float], share: float = 0.04) -> list[float]:
    """A range with space around the values."""
    pad = share * (max(values) - min(values)) or share * abs(values[0]) or 0.1
    return [min(values) - pad, max(values) + pad]


def trace_of(points: Sequence[Point], **settings: Any) -> dict[str, Any]:
    """A trace for Plotly. Without tooltips the page shows the label of each point's job."""
    xs, ys, jobs, texts = map(list, zip(*points, strict=True))
    return {
        "type": "scatter",
        "x": xs,
        "y": ys,
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
        "meta": {"points": jobs},
        **({"text": texts} if any(texts) else {}),
        **settings,
    }


def _on_one_scale(by_domain: Mapping[str, list[dict[str, Any]]], across: str) -> dict[str, Figure]:
    """A figure for each domain, all with the same range, so that domains can be compared."""
    seen = [y for data in by_domain.values() for trace in data for y in trace["y"] if y is not None]
    layout = {
        "margin": {"l": 52, "r": 8, "t": 8, "b": 42},
        "xaxis": {"rangemode": "tozero", "title": {"text": across}},
        "yaxis": {"title": {"text": "loss, nats per token"}, "range": padded(seen or [0.0])},
    }
    return {domain: {"data": data, "layout": layout} for domain, data in by_domain.items() if data}


def curves(sweep: Sweep) -> dict[str, Figure]:
    """Loss by step for each domain: training as thin lines, held-out as lines with markers."""
    share = _POINTS_OF_ALL_CURVES // max(1, len(sweep.compared))
    num_points = max(12, min(_POINTS_OF_A_CURVE, share))
    found: dict[str, list[dict[str, Any]]] = {}
    for domain in sweep.domains:
        for what, key, look in (
            ("training", registry.TRAIN_LOSS_OF(domain), {"mode": "lines", "opacity": 0.4}),
            ("held out", registry.EVAL_LOSS(domain), {"mode": "lines+markers", "opacity": 1}),
        ):
            by_edges: dict[str, list[Point]] = {}
            for at, job in enumerate(sweep.compared):
                rows = [(row["step"], row[key]) for row in job.history if is_number(row.get(key))]
                stride = math.ceil(len(rows) / num_points) or 1
                # Counted from the end, to keep the last point.
                curve = [(step, round(of, 4), at, "") for step, of in rows[::-1][::stride][::-1]]
                if curve:
                    by_edges.setdefault(job.edges, []).extend([*curve, _GAP])
            found.setdefault(domain, []).extend(
                trace_of(
                    points,
                    line={"color": colour(edges), "width": 2 if what == "held out" else 1},
                    marker={"size": 5},
                    name=f"{edges}, {what}",
                    hovertemplate=f"%{{text}}<br>step %{{x}}<br>{what} %{{y:.3f}}<extra></extra>",
                    **look,
                )
                for edges, points in by_edges.items()
            )
    return _on_one_scale(found, "optimizer step")


def relearning(sweep: Sweep) -> dict[str, Figure]:
    """Held-out loss on a domain by tokens of the attack that teaches it again, at the learning rate
    that came lowest.

    Dashed: models that never saw the domain; dotted: dense models that unlearned it. A line has a
    gap where the attack diverged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for part in dict.fromkeys(node for job in sweep.compared for node in job.nodes):
        by_look: dict[tuple[str, str], list[Point]] = {}
        for at, job in enumerate(sweep.compared):
            attacks = [
                (min(finite), lr, tokens, losses)
                for lr, (tokens, losses) in job.attacks.get(part, {}).items()
                if (finite := [loss for loss in losses if math.isfinite(loss)])
            ]
            if attacks:
                _, lr, *strongest = min(attacks, key=lambda found: found[0])
                text = escaped(f"{sweep.labels[job.name]} (lr {lr:g})")
                points = by_look.setdefault((job.edges, job.kind), [])
                for tokens, loss in zip(*strongest, strict=True):
                    points.append((tokens, loss if math.isfinite(loss) else None, at, text))
                points.append(_GAP)
        found[part] = [
            trace_of(
                points,
                mode="lines+markers",
                line={"color": colour(edges), "width": 1.5, "dash": _DASHES.get(kind, "solid")},
                marker={"size": 6, "symbol": MARKERS.get(kind, _OTHER_MARKER)[0]},
                name=f"{edges} · {kind}",
                hovertemplate="%{text}<br>%{x:,} tokens<br>held out %{y:.3f}<extra></extra>",
            )
            for (edges, kind), points in by_look.items()
        ]
    return _on_one_scale(found, "tokens of the attack")
