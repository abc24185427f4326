"""The plots of the report: utility against separability, and loss curves. Plotly figures as dicts.

Colours say which edges a job cuts, the same in every plot and table (Okabe and Ito 2008: told apart
by colour-blind readers). Backgrounds and text colours are the page's: it sets them for light and
dark.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

from gr_sweep.metrics import keys
from gr_sweep.report.collect import Estimate, Job, Sweep

COLOURS = {
    "dense": "#7d8590",
    "none": "#cc79a7",
    "weight": "#d55e00",
    "act": "#009e73",
    "both": "#0072b2",
}
"""Colour of each choice of edges; `dense` has none to choose."""

MARKERS = {
    "peers": ("circle", "●"),
    "forget": ("diamond", "◆"),
    "tree": ("square", "■"),
    "lattice": ("hexagon", "⬢"),
    "dense": ("x", "✕"),
    "filtered": ("triangle-up", "▲"),
}
"""Marker of each plan or method: its name for Plotly, and the same shape as a letter."""

_OTHER_COLOUR = "#b8860b"
_OTHER_MARKER = ("star", "★")
_POINTS_A_CURVE = 200
"""A longer curve is thinned to this many points: a screen shows no more."""
_POINTS_WITH_BARS = 40
"""With more points their error bars would be a thicket; hovering tells the intervals."""
_LABELLED_GROUPS = 14
"""With more groups of jobs their names would cover one another; hovering tells them."""


def colour(edges: str) -> str:
    """The colour of a choice of edges."""
    return COLOURS.get(edges, _OTHER_COLOUR)


def symbol(kind: str) -> str:
    """Plotly's name for the marker of a plan or method."""
    return MARKERS.get(kind, _OTHER_MARKER)[0]


def glyph(kind: str) -> str:
    """The marker of a plan or method as a letter."""
    return MARKERS.get(kind, _OTHER_MARKER)[1]


def scatter(sweep: Sweep) -> dict[str, Any] | None:
    """Mean selectivity over mean L(d), a point a job; None where no job has both.

    Jobs that differ in their seed alone are small points with a marker at their mean. A job without
    selectivity (dense, filtered) is a vertical line at its mean loss.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    points = {
        job.name: (loss, selectivity)
        for job in sweep.jobs
        if (loss := job.mean_loss) is not None and (selectivity := job.mean_selectivity) is not None
    }
    if not points:
        return None
    x_range, y_range = _ranges(sweep, list(points.values()))
    centres = {
        group[0].name: (_mean([p[0] for p in found]), _mean([p[1] for p in found]))
        for group in sweep.replicates
        if (found := [points[job.name] for job in group if job.name in points])
    }
    several_kinds = len({job.kind for job in sweep.jobs if job.name in points}) > 1
    labelled = len(sweep.replicates) <= _LABELLED_GROUPS
    barred = len(points) <= _POINTS_WITH_BARS
    in_legend: set[str] = set()
    for group in sweep.replicates:
        jobs = [job for job in group if job.name in points]
        if not jobs:
            _add_line(figure, sweep, group, labelled)
            continue
        first = jobs[0]
        losses = [points[job.name][0] for job in jobs]
        selectivities = [points[job.name][1] for job in jobs]
        centre = mean_loss, mean_selectivity = centres[group[0].name]
        name = f"{first.edges} · {first.kind}" if several_kinds else first.edges
        marker = {"color": colour(first.edges), "symbol": symbol(first.kind)}
        text = html.escape(short_label(sweep, first)) if labelled else ""
        named = {
            "mode": "markers+text" if text else "markers",
            "textposition": _text_position(centre, list(centres.values()), x_range, y_range),
            "showlegend": name not in in_legend,
        }
        several = len(jobs) > 1
        figure.add_scatter(
            x=[loss.value for loss in losses],
            y=[selectivity.value for selectivity in selectivities],
            error_x=_error_bars(losses, barred),
            error_y=_error_bars(selectivities, barred),
            text=[text] * len(jobs),
            hovertext=[_hover(sweep, job) for job in jobs],
            hoverinfo="text",
            name=name,
            legendgroup=name,
            opacity=0.45 if several else 1,
            marker={**marker, "size": 6 if several else 11},
            **({"mode": "markers", "showlegend": False} if several else named),
        )
        if several:
            label = html.escape(sweep.label(first, seed=False))
            figure.add_scatter(
                x=[mean_loss],
                y=[mean_selectivity],
                text=[text],
                hovertext=[
                    f"<b>{label}</b><br>mean of {len(jobs)} seeds<br>"
                    f"mean L(d) {mean_loss:.3f}<br>mean selectivity {mean_selectivity:.3f}"
                ],
                hoverinfo="text",
                name=name,
                legendgroup=name,
                marker={**marker, "size": 12},
                **named,
            )
        in_legend.add(name)
    figure.update_layout(
        **_layout(),
        xaxis={"title": _title("mean L(d), nats per token  (← lower is better)")},
        yaxis={
            "title": _title("mean selectivity, nats  (higher is better →)"),
            "zeroline": True,
        },
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"l": 62, "r": 12, "t": 36, "b": 56},
        hovermode="closest",
    )
    figure.update_xaxes(range=x_range)
    figure.update_yaxes(range=y_range)
    return _plain(figure)


def _ranges(
    sweep: Sweep, points: Sequence[tuple[Estimate, Estimate]]
) -> tuple[list[float], list[float]]:
    """Axes with room for the names; selectivity 0, no separation, is always on the page."""
    losses = [loss.value for job in sweep.jobs if (loss := job.mean_loss) is not None]
    xs = [*losses, *(bound for loss, _ in points for bound in loss.interval or ())]
    ys = [0.0]
    for _, selectivity in points:
        ys += [selectivity.value, *(selectivity.interval or ())]
    ranges = []
    for values in (xs, ys):
        pad = 0.08 * (max(values) - min(values)) or 0.1
        ranges.append([min(values) - pad, max(values) + pad])
    return ranges[0], ranges[1]


def _text_position(
    centre: tuple[float, float],
    centres: Sequence[tuple[float, float]],
    x_range: Sequence[float],
    y_range: Sequence[float],
) -> str:
    """Side of a point for its name: towards the middle, and away from the points near it."""
    width, height = x_range[1] - x_range[0], y_range[1] - y_range[0]
    x, y = centre
    near = [
        other_y
        for other_x, other_y in centres
        if abs(other_x - x) < 0.12 * width and abs(other_y - y) < 0.1 * height
    ]
    above, below = any(other > y for other in near), any(other < y for other in near)
    vertical = "middle" if above and below else "bottom" if above else "top"
    return f"{vertical} {'right' if x - x_range[0] < width / 2 else 'left'}"


def _mean(estimates: Sequence[Estimate]) -> float:
    return math.fsum(estimate.value for estimate in estimates) / len(estimates)


def curves(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Loss by step, a figure a domain: training as thin lines, held-out as lines with markers.

    The jobs that cut the same edges are one trace, so that a hundred of them stay quick to draw.
    """
    import plotly.graph_objects as go

    figures = {}
    seen: list[float] = []
    for domain in sweep.domains:
        figure = go.Figure()
        for held_out, key in ((False, keys.train_loss(domain)), (True, keys.eval_loss(domain))):
            traces: dict[str, tuple[list[Any], list[Any], list[str]]] = {}
            for job in sweep.jobs:
                points = _curve(job, key)
                if not points:
                    continue
                steps, losses, names = traces.setdefault(job.edges, ([], [], []))
                # None breaks the line between two jobs.
                steps += [*(step for step, _ in points), None]
                losses += [*(loss for _, loss in points), None]
                names += [html.escape(sweep.labels[job.name])] * (len(points) + 1)
            for edges, (steps, losses, names) in traces.items():
                seen += [loss for loss in losses if loss is not None]
                figure.add_scatter(
                    x=steps,
                    y=losses,
                    mode="lines+markers" if held_out else "lines",
                    line={"color": colour(edges), "width": 2 if held_out else 1},
                    marker={"size": 5},
                    opacity=1 if held_out else 0.4,
                    text=names,
                    hovertemplate="%{text}<br>step %{x}<br>"
                    + ("held out" if held_out else "training")
                    + " %{y:.3f}<extra></extra>",
                    showlegend=False,
                )
        if figure.data:
            figure.update_layout(
                **_layout(), hovermode="closest", margin={"l": 38, "r": 8, "t": 8, "b": 34}
            )
            figures[domain] = figure
    for figure in figures.values():
        # One range for all, so that domains compare.
        pad = 0.04 * (max(seen) - min(seen)) or 0.1
        figure.update_yaxes(range=[min(seen) - pad, max(seen) + pad])
        figure.update_xaxes(rangemode="tozero")
    return {domain: _plain(figure) for domain, figure in figures.items()}


def short_label(sweep: Sweep, job: Job) -> str:
    """The values that set a job apart, without their names and the seed: for beside a point."""
    return " · ".join(value for _, value in sweep.apart(job, seed=False))


def _add_line(figure: Any, sweep: Sweep, group: Sequence[Job], labelled: bool) -> None:
    losses = [loss for job in group if (loss := job.mean_loss) is not None]
    if not losses:
        return
    figure.add_vline(
        x=_mean(losses),
        line={"color": colour(group[0].edges), "width": 1.5, "dash": "dot"},
        annotation={
            "text": html.escape(short_label(sweep, group[0])) if labelled else "",
            "textangle": -90,
            "xanchor": "right",
            "yanchor": "top",
            "y": 1,
        },
    )


def _hover(sweep: Sweep, job: Job) -> str:
    lines = [f"<b>{html.escape(sweep.labels[job.name])}</b>"]
    for name, estimate in (("mean L(d)", job.mean_loss), ("selectivity", job.mean_selectivity)):
        if estimate is not None:
            lines.append(f"{name} {_number(estimate)}")
    for domain in job.domains:
        parts = [
            f"{name} {_number(estimate)}"
            for name, estimate in (
                ("L", job.estimate(keys.loss_full(domain))),
                ("selectivity", job.estimate(keys.selectivity(domain))),
            )
            if estimate is not None
        ]
        lines.append(f"{html.escape(domain)}: {', '.join(parts)}")
    return "<br>".join(lines)


def _number(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{estimate.value:.3f}"
    low, high = estimate.interval
    return f"{estimate.value:.3f} [{low:.3f}, {high:.3f}]"


def _error_bars(estimates: Sequence[Estimate], visible: bool) -> dict[str, Any]:
    above = [(e.interval[1] - e.value) if e.interval else 0 for e in estimates]
    below = [(e.value - e.interval[0]) if e.interval else 0 for e in estimates]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1,
        "width": 0,
        "visible": visible,
    }


def _curve(job: Job, key: str) -> list[tuple[int, float]]:
    points = [
        (row["step"], float(row[key]))
        for row in job.history
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    stride = max(1, math.ceil(len(points) / _POINTS_A_CURVE))
    # Counted from the end, because the last point is the one that is read off.
    return points[::-1][::stride][::-1]


def _title(text: str) -> dict[str, Any]:
    # As small as the ticks: at the default size it is cut off on a phone.
    return {"text": text, "font": {"size": 12}}


def _layout() -> dict[str, Any]:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12},
        "hoverlabel": {"align": "left"},
    }


def _plain(figure: Any) -> dict[str, Any]:
    plain: dict[str, Any] = figure.to_plotly_json()
    # The default template is a white page of its own; ours comes from the style sheet.
    plain["layout"].pop("template", None)
    return plain
