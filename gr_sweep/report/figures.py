"""Plots of the report, as Plotly figures in plain dictionaries.

Utility and separability against a setting, loss curves, relearning and entanglement. The scatter
plot of jobs is made in the page, where its axes are chosen. To add a figure, return it here and
place it in `html.render` and page/index.html.j2.

Colours say which edges a job cuts, the same everywhere (Okabe and Ito 2008, which colour-blind
readers can tell apart). The page sets backgrounds and text colours for light and dark. The `meta`
of a trace names its jobs by their index in `Sweep.compared`, so that the page can filter them:
`points` for each point (an index, the indices that a mean is over, or None), `jobs` for the trace.
"""

import functools
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gr_sweep.config import Method, is_number
from gr_sweep.metrics import registry
from gr_sweep.report import measures, tables
from gr_sweep.report.measures import Measure, number_text, rounded
from gr_sweep.report.sweep import DENSE, Estimate, Job, Sweep, short_name

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
    "demix": ("pentagon", "⬟"),
    "random": ("circle-open", "○"),  # Hollow, because it is a control.
    "dense": ("x", "✕"),
    "filtered": ("triangle-up", "▲"),
    "filtered_observed": ("triangle-up-open", "△"),
}
"""By plan or method: Plotly's name of the marker, and a similar letter."""

REMOVAL_RANGE = (-0.5, 1.5)
"""Range of removal that is drawn; its meaning is in 0 to 1."""

PARAMETERS = "parameters"
"""Name of the axis on which model sizes stand."""

_OTHER_COLOUR = "#b8860b"
_OTHER_MARKER = ("triangle-down", "▼")
_POINTS_OF_A_CURVE = 200
_POINTS_OF_ALL_CURVES = 10_000
"""In one figure; with many jobs each curve has fewer points."""
_FEWEST_POINTS = 12
_POINTS_WITH_BARS = 80
"""More error bars would hide the points."""
_INSIDE, _OUTSIDE = "#7a5bc0", "#c2691a"

Figure = dict[str, Any]

escaped = functools.partial(html.escape, quote=False)
"""For Plotly, which interprets a few HTML tags in its texts."""


def colour(edges: str) -> str:
    """The colour of a choice of edges."""
    return COLOURS.get(edges, _OTHER_COLOUR)


def symbol(kind: str) -> str:
    """Plotly's name of the marker of a plan or method."""
    return MARKERS.get(kind, _OTHER_MARKER)[0]


def glyph(kind: str) -> str:
    """The marker of a plan or method as a letter."""
    return MARKERS.get(kind, _OTHER_MARKER)[1]


def identity(label: str, job: Job) -> dict[str, Any]:
    """How a job or a group is named and drawn everywhere on the page."""
    return {
        "label": label,
        "edges": job.edges,
        "kind": job.kind,
        "colour": colour(job.edges),
        "glyph": glyph(job.kind),
    }


def indices(sweep: Sweep, jobs: Sequence[Job]) -> list[int]:
    """Index of each job in `Sweep.compared`."""
    places = {job.name: at for at, job in enumerate(sweep.compared)}
    return [places[job.name] for job in jobs]


def layout(**changes: Any) -> dict[str, Any]:
    """What all layouts have in common, and changes to it."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12},
        "hoverlabel": {"align": "left"},
        "hovermode": "closest",
        **changes,
    }


def axis_title(text: str) -> dict[str, Any]:
    """Title of an axis, small enough for a phone."""
    return {"text": text, "font": {"size": 12}}


def padded(values: Sequence[float], share: float = 0.04) -> list[float]:
    """A range with space around the values."""
    pad = share * (max(values) - min(values)) or share * abs(values[0]) or 0.1
    return [min(values) - pad, max(values) + pad]


def error_bars(estimates: Sequence[Estimate | None], visible: bool = True) -> dict[str, Any]:
    """Intervals as Plotly draws them."""
    above = [(e.interval[1] - e.value) if e and e.interval else 0 for e in estimates]
    below = [(e.value - e.interval[0]) if e and e.interval else 0 for e in estimates]
    return {
        "type": "data", "symmetric": False, "array": above, "arrayminus": below,
        "thickness": 1, "width": 0, "visible": visible and any(above + below),
    }  # fmt: skip


@dataclass
class Points:
    """Points of one trace, each with its estimate, its tooltip and the job or jobs it is of."""

    xs: list[float | None] = field(default_factory=list)
    ys: list[Estimate | None] = field(default_factory=list)
    jobs: list[list[int] | int | None] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(
        self, x: float | None, y: Estimate | None, jobs: list[int] | int | None, text: str = ""
    ) -> None:
        """One more point; without a y, a gap in the line."""
        self.xs.append(x)
        self.ys.append(y)
        self.jobs.append(jobs)
        self.texts.append(text)

    def break_line(self) -> None:
        """The next point is not joined to the last one."""
        self.add(None, None, None)

    @property
    def values(self) -> list[float]:
        """The values of all points."""
        return [y.value for y in self.ys if y is not None]

    def trace(self, **settings: Any) -> dict[str, Any]:
        """The trace for Plotly. Without texts the page shows the label of each point's job."""
        return {
            "type": "scatter",
            "x": self.xs,
            "y": [None if y is None else y.value for y in self.ys],
            "hovertemplate": "%{text}<extra></extra>",
            "showlegend": False,
            "meta": {"points": self.jobs},
            **({"text": self.texts} if any(self.texts) else {}),
            **settings,
        }


_Line = list[tuple[float, Sequence[Job]]]


def against(sweep: Sweep) -> list[tuple[str, list[Figure]]]:
    """Name and two plots of each numeric setting that differs between jobs equal in all others, and
    of model size by parameters.

    A line joins jobs that differ in this setting and their seed only: means over seeds with
    t-intervals, and the seeds as small points.
    """
    names = tables.setting_names(sweep, seed=False)
    axes = measures.best_axes([job for job in sweep.compared if job.parts])
    sizes = ("model.size", "model.path", "model.intermediate_size")
    settings: list[tuple[str, tuple[str, ...]]] = [
        (short_name(name), (name,)) for name in names if name not in sizes
    ]
    if any(name in names for name in sizes):
        settings.insert(0, (PARAMETERS, sizes))
    found = []
    for title, own in settings:
        lines: dict[tuple[str, ...], _Line] = {}
        for group in sweep.replicates:
            value: Any = group[0].settings.get(own[0])
            if title == PARAMETERS:
                value = group[0].metrics.get(registry.COST_PARAMETERS.key)
            if not is_number(value) or group[0].kind.startswith(Method.filtered.value):
                continue
            others = (str(group[0].settings.get(name)) for name in names if name not in own)
            key = (group[0].edges, group[0].kind, *others)
            lines.setdefault(key, []).append((float(value), group))
        several = {
            key: sorted(line, key=lambda point: point[0])
            for key, line in lines.items()
            if len({value for value, _ in line}) > 1
        }
        drawn = [_against(sweep, title, measure, several) for measure in axes if several]
        figures = [figure for figure in drawn if figure is not None]
        if figures:
            found.append((title, figures))
    return found


def _against(
    sweep: Sweep, title: str, measure: Measure, lines: Mapping[tuple[str, ...], _Line]
) -> Figure | None:
    assert measure.key is not None  # Axes have means.
    seeds: dict[tuple[str, str], Points] = {}
    means: dict[tuple[str, str], Points] = {}
    for (edges, kind, *_), line in lines.items():
        mean = means.setdefault((edges, kind), Points())
        for value, group in line:
            known = [(job, at) for job in group if (at := measure.known(job)) is not None]
            estimate = sweep.over_seeds(group, measure.key)
            if estimate is None and known and len(known) == len(group):
                estimate = Estimate(value=math.fsum(at.value for _, at in known) / len(known))
            if estimate is None:
                continue
            label = escaped(sweep.label(group[0], seed=False))
            text = f"<b>{label}</b><br>{title} {value:g}<br>{measure.name} {number_text(estimate)}"
            if len(group) > 1:
                text += f"<br>mean of {len(group)} seeds"
                own = seeds.setdefault((edges, kind), Points())
                for job, at in known:
                    of_seed = f"{escaped(sweep.labels[job.name])}<br>{number_text(at)}"
                    own.add(value, at, indices(sweep, [job]), of_seed)
            mean.add(value, estimate, indices(sweep, group), text)
        if mean.xs:
            mean.break_line()
    num_points = sum(len(points.values) for points in means.values())
    if not num_points:
        return None
    has_bars = num_points <= _POINTS_WITH_BARS
    traces = []
    for (edges, kind), points in seeds.items():
        marker = {"color": colour(edges), "symbol": symbol(kind), "size": 5}
        name = f"{edges} · {kind}, seeds"
        traces.append(points.trace(name=name, mode="markers", opacity=0.4, marker=marker))
    for (edges, kind), points in means.items():
        dash = "dot" if kind == Method.random.value else "solid"
        traces.append(
            points.trace(
                name=f"{edges} · {kind}",
                mode="lines+markers",
                line={"color": colour(edges), "width": 2 if has_bars else 1, "dash": dash},
                marker={"color": colour(edges), "symbol": symbol(kind), "size": 8},
                error_y=error_bars(points.ys, has_bars),
            )
        )
    # The interval of two seeds is twelve times as wide as their distance: bars may leave the plot.
    values = [y for points in (*seeds.values(), *means.values()) for y in points.values]
    if measure is measures.REMOVAL:
        values = [min(max(value, REMOVAL_RANGE[0]), REMOVAL_RANGE[1]) for value in values]
    xaxis: dict[str, Any] = {"title": axis_title(title), "zeroline": False}
    if title == PARAMETERS:
        # Plotly's own ticks of a short logarithmic axis are few and odd.
        ticks = sorted({x for points in means.values() for x in points.xs if x is not None})
        xaxis |= {
            "title": axis_title("parameters of the full model"), "type": "log",
            "tickvals": ticks, "ticktext": [rounded(size) for size in ticks],
        }  # fmt: skip
    arrow = "↑" if measure.direction > 0 else "↓"
    yaxis = {
        "title": axis_title(f"mean {measure.name}  ({arrow} better)"),
        "range": padded(values, 0.3),
    }
    margin = {"l": 58, "r": 10, "t": 10, "b": 46}
    return {"data": traces, "layout": layout(xaxis=xaxis, yaxis=yaxis, margin=margin)}


def _on_one_scale(by_domain: Mapping[str, list[dict[str, Any]]]) -> dict[str, Figure]:
    """A figure for each domain, all with the same range, so that domains can be compared."""
    traces = [trace for data in by_domain.values() for trace in data]
    seen = [y for trace in traces for y in trace["y"] if y is not None]
    margin = {"l": 38, "r": 8, "t": 8, "b": 34}
    return {
        domain: {
            "data": data,
            "layout": layout(
                margin=margin, xaxis={"rangemode": "tozero"}, yaxis={"range": padded(seen)}
            ),
        }
        for domain, data in by_domain.items()
        if data
    }


def curves(sweep: Sweep) -> dict[str, Figure]:
    """Loss by step for each domain: training as thin lines, held-out as lines with markers."""
    share = _POINTS_OF_ALL_CURVES // max(1, len(sweep.compared))
    num_points = max(_FEWEST_POINTS, min(_POINTS_OF_A_CURVE, share))
    found: dict[str, list[dict[str, Any]]] = {}
    for domain in sweep.domains:
        for held_out, key in (
            (False, registry.TRAIN_LOSS_OF(domain)),
            (True, registry.EVAL_LOSS(domain)),
        ):
            by_edges: dict[str, Points] = {}
            for at, job in enumerate(sweep.compared):
                if curve := _curve(job, key, num_points):
                    points = by_edges.setdefault(job.edges, Points())
                    for step, loss in curve:
                        points.add(step, Estimate(value=loss), at)
                    points.break_line()
            what = "held out" if held_out else "training"
            found.setdefault(domain, []).extend(
                of_edges.trace(
                    mode="lines+markers" if held_out else "lines",
                    line={"color": colour(edges), "width": 2 if held_out else 1},
                    marker={"size": 5},
                    opacity=1 if held_out else 0.4,
                    name=f"{edges}, {what}",
                    hovertemplate=f"%{{text}}<br>step %{{x}}<br>{what} %{{y:.3f}}<extra></extra>",
                )
                for edges, of_edges in by_edges.items()
            )
    return _on_one_scale(found)


def _curve(job: Job, key: str, num_points: int) -> list[tuple[int, float]]:
    points = [
        (row["step"], round(float(row[key]), 4)) for row in job.history if is_number(row.get(key))
    ]
    stride = max(1, math.ceil(len(points) / num_points))
    # Counted from the end, to keep the last point.
    return points[::-1][::stride][::-1]


def relearning(sweep: Sweep) -> dict[str, Figure]:
    """Held-out loss on a domain by step of the attack that teaches it again, at the learning rate
    that came lowest.

    Dashed: models that never saw the domain; dotted: dense models that unlearned it. A line has a
    gap where the attack diverged.
    """
    nodes = dict.fromkeys(node for job in sweep.compared for node in job.nodes)
    found: dict[str, list[dict[str, Any]]] = {}
    for part in nodes:
        by_look: dict[tuple[str, str], Points] = {}
        for at, job in enumerate(sweep.compared):
            attacks = [
                (min(finite), attack)
                for attack in job.attacks.get(part, ())
                if (finite := [loss for loss in attack.losses if math.isfinite(loss)])
            ]
            if attacks:
                _, strongest = min(attacks, key=lambda found: found[0])
                text = escaped(f"{sweep.labels[job.name]} (lr {strongest.lr:g})")
                points = by_look.setdefault((job.edges, job.kind), Points())
                for step, loss in zip(strongest.steps, strongest.losses, strict=True):
                    found_loss = Estimate(value=loss) if math.isfinite(loss) else None
                    points.add(step, found_loss, at, text)
                points.break_line()
        found[part] = [
            of_look.trace(
                mode="lines+markers",
                line={"color": colour(edges), "width": 1.5, "dash": _attack_dash(kind)},
                marker={"size": 6, "symbol": symbol(kind)},
                name=f"{edges} · {kind}",
                hovertemplate="%{text}<br>step %{x}<br>held out %{y:.3f}<extra></extra>",
            )
            for (edges, kind), of_look in by_look.items()
        ]
    return _on_one_scale(found)


def _attack_dash(kind: str) -> str:
    if kind == DENSE:
        return "dot"
    return "dash" if kind.startswith(Method.filtered.value) else "solid"


def entanglement(sweep: Sweep) -> list[tuple[Sequence[Job], Figure]]:
    """Bars for each group of jobs that differ in their seed only: what switching off the block of
    each set of domains costs the domains in the set, and the others. All have one scale."""
    found: list[tuple[Sequence[Job], Figure]] = []
    ends = [0.0]
    for group in sweep.replicates:
        sets = _sets(group[0])
        traces = []
        for name, shade, metric in (
            ("domains in the set", _INSIDE, registry.ENTANGLEMENT_INSIDE),
            ("the others", _OUTSIDE, registry.ENTANGLEMENT_OUTSIDE),
        ):
            bars = [sweep.over_seeds(group, metric(block)) for block in sets]
            if not any(bars):
                continue
            for bar in bars:
                ends += [bar.value, *(bar.interval or ())] if bar is not None else []
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": name,
                    "y": [block.replace("+", " + ") for block in sets],
                    "x": [None if bar is None else bar.value for bar in bars],
                    "error_x": error_bars(bars),
                    "marker": {"color": shade},
                    "meta": {"jobs": indices(sweep, group)},
                    "hovertemplate": "%{y}<br>%{x:.3f} nats<extra></extra>",
                }
            )
        if traces:
            bars_layout = layout(
                barmode="group",
                height=70 + 34 * len(sets),
                xaxis={"title": axis_title("nats added"), "zeroline": True},
                # The first set at the top.
                yaxis={"title": axis_title("set"), "autorange": "reversed", "automargin": True},
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                margin={"l": 60, "r": 10, "t": 30, "b": 42},
            )
            found.append((group, {"data": traces, "layout": bars_layout}))
    for _, figure in found:
        figure["layout"]["xaxis"] |= {"range": padded(ends, 0.06)}
    return found


def _sets(job: Job) -> list[str]:
    """Blocks of a lattice, as their keys name them, small sets first."""
    inside = (registry.find(key) for key in job.metrics)
    found = [
        names[0] for metric, names in filter(None, inside) if metric is registry.ENTANGLEMENT_INSIDE
    ]
    return sorted(found, key=lambda block: block.count("+"))
