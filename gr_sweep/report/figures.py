"""The plots of the report: utility and separability against a setting, loss curves, relearning and
entanglement. Plotly figures as dicts. The scatter of jobs is the page's own: its axes are chosen
there.

Colours say which edges a job cuts, the same in every plot and table (Okabe and Ito 2008: told apart
by colour-blind readers). Backgrounds and text colours are the page's: it sets them for light and
dark. The `meta` of a trace says which jobs it is of, by their place in `Sweep.compared`, so that
the page can leave some out: `points` those of each point (a number, or the numbers that a mean is
of, or null), `jobs` those of the whole trace.
"""

import functools
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gr_sweep.config import Method
from gr_sweep.metrics import registry
from gr_sweep.report import measures, tables
from gr_sweep.report.collect import DENSE, Estimate, Job, Sweep, short_name
from gr_sweep.report.measures import Measure

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
    "sgtm": ("star", "★"),
    "era": ("cross", "✚"),
    "demix": ("pentagon", "⬟"),
    # The control is hollow: it is there for what it must not show.
    "random": ("circle-open", "○"),
    "dense": ("x", "✕"),
    "filtered": ("triangle-up", "▲"),
    "filtered_observed": ("triangle-up-open", "△"),
}
"""Marker of each plan or method: its name for Plotly, and the same shape as a letter."""

_OTHER_COLOUR = "#b8860b"
_OTHER_MARKER = ("triangle-down", "▼")
_POINTS_A_CURVE = 200
"""A longer curve is thinned to this many points: a screen shows no more."""
_POINTS_OF_CURVES = 10_000
"""Points of all jobs' curves in one figure; with many jobs each has fewer."""
_FEWEST_POINTS = 12
"""Points that a curve keeps, however many jobs there are."""
_POINTS_WITH_BARS = 40
"""With more points their error bars would be a thicket; hovering tells the intervals."""
REMOVAL_RANGE = (-0.5, 1.5)
"""What is drawn of removal at most; 0 to 1 is its meaning."""
_INSIDE, _OUTSIDE = "#7a5bc0", "#c2691a"
"""Colours of the two kinds of bars of a lattice, seen on light and on dark."""

PARAMETERS = "parameters"
"""The axis on which model sizes stand."""


escaped = functools.partial(html.escape, quote=False)
"""For Plotly, whose texts know a few elements of HTML, and no name of a quote."""


def colour(edges: str) -> str:
    """The colour of a choice of edges."""
    return COLOURS.get(edges, _OTHER_COLOUR)


def symbol(kind: str) -> str:
    """Plotly's name for the marker of a plan or method."""
    return MARKERS.get(kind, _OTHER_MARKER)[0]


def glyph(kind: str) -> str:
    """The marker of a plan or method as a letter."""
    return MARKERS.get(kind, _OTHER_MARKER)[1]


def numbers(sweep: Sweep, jobs: Sequence[Job]) -> list[int]:
    """The jobs by their place in `Sweep.compared`, as `meta` names them."""
    places = {job.name: at for at, job in enumerate(sweep.compared)}
    return [places[job.name] for job in jobs]


@dataclass
class _Points:
    """Points of one trace."""

    xs: list[Estimate | None] = field(default_factory=list)
    ys: list[Estimate | None] = field(default_factory=list)
    hovers: list[str] = field(default_factory=list)
    jobs: list[list[int] | None] = field(default_factory=list)

    def add(self, x: Estimate, y: Estimate, hover: str, jobs: list[int]) -> None:
        self.xs.append(x)
        self.ys.append(y)
        self.hovers.append(hover)
        self.jobs.append(jobs)

    def break_line(self) -> None:
        """The next point is not joined to the last."""
        self.xs.append(None)
        self.ys.append(None)
        self.hovers.append("")
        self.jobs.append(None)

    def trace(self, **settings: Any) -> dict[str, Any]:
        """As Plotly draws them."""
        return {
            "type": "scatter",
            "x": [None if x is None else x.value for x in self.xs],
            "y": [None if y is None else y.value for y in self.ys],
            "hovertext": self.hovers,
            "hoverinfo": "text",
            "meta": {"points": self.jobs},
            **settings,
        }


def _within_range(removal: float) -> float:
    low, high = REMOVAL_RANGE
    return min(max(removal, low), high)


def _mean(estimates: Sequence[Estimate]) -> float:
    return math.fsum(estimate.value for estimate in estimates) / len(estimates)


@dataclass(frozen=True, kw_only=True)
class Against:
    """Utility and separability against one setting."""

    name: str
    num_other: int
    """How many combinations of other settings are drawn, each a line."""
    figures: list[dict[str, Any]]


def against(sweep: Sweep) -> list[Against]:
    """A pair of plots for each numeric setting that differs between jobs equal in all others, and
    for model size by parameters.

    A line joins jobs that differ in this setting and in their seed alone: means over seeds with
    their t-intervals, the seeds as small points.
    """
    groups = sweep.replicates
    names = tables.setting_names(sweep, seed=False)
    axes = measures.best_axes([job for job in sweep.compared if job.mean_selectivity is not None])
    sizes = ("model.size", "model.path", "model.intermediate_size")
    found = []
    settings: list[tuple[str, tuple[str, ...]]] = [
        (short_name(name), (name,)) for name in names if name not in sizes
    ]
    if any(name in names for name in sizes):
        settings.insert(0, (PARAMETERS, sizes))
    for title, own in settings:
        lines: dict[tuple[str, ...], list[tuple[float, Sequence[Job]]]] = {}
        for group in groups:
            value = _as_number(group[0].settings.get(own[0]))
            if title == PARAMETERS:
                value = group[0].metrics.get(registry.COST_PARAMETERS.key)
            if value is None or group[0].kind.startswith("filtered"):
                continue
            others = tuple(str(group[0].settings.get(name)) for name in names if name not in own)
            key = (group[0].edges, group[0].kind, *others)
            lines.setdefault(key, []).append((value, group))
        several = {
            key: sorted(line, key=lambda point: point[0])
            for key, line in lines.items()
            if len({value for value, _ in line}) > 1
        }
        if not several:
            continue
        figures = [
            figure
            for measure in axes
            if (figure := _against(sweep, title, measure, several)) is not None
        ]
        if figures:
            found.append(Against(name=title, num_other=len(several), figures=figures))
    return found


def _against(
    sweep: Sweep,
    title: str,
    measure: Measure,
    lines: dict[tuple[str, ...], list[tuple[float, Sequence[Job]]]],
) -> dict[str, Any] | None:
    seeds: dict[tuple[str, str], _Points] = {}
    means: dict[tuple[str, str], _Points] = {}
    for (edges, kind, *_), line in lines.items():
        look = (edges, kind)
        mean = means.setdefault(look, _Points())
        num_before = len(mean.xs)
        for value, group in line:
            estimate = _over_seeds(sweep, group, measure)
            if estimate is None:
                continue
            label = escaped(sweep.label(group[0], seed=False))
            number = f"{title} {value:g}<br>{measure.name} {number_text(estimate)}"
            seeds_text = f"<br>mean of {len(group)} seeds" if len(group) > 1 else ""
            mean.add(
                Estimate(value=value),
                estimate,
                f"<b>{label}</b><br>{number}{seeds_text}",
                numbers(sweep, group),
            )
            for job in group if len(group) > 1 else ():
                own = measures.known(measure, job)
                if own is not None:
                    hover = f"{escaped(sweep.labels[job.name])}<br>{number_text(own)}"
                    seeds.setdefault(look, _Points()).add(
                        Estimate(value=value), own, hover, numbers(sweep, [job])
                    )
        if len(mean.xs) > num_before:
            mean.break_line()
    num_points = sum(len(points.xs) for points in means.values())
    if not num_points:
        return None
    traces = []
    for (edges, kind), points in seeds.items():
        traces.append(
            points.trace(
                name=f"{edges} · {kind}, seeds",
                mode="markers",
                showlegend=False,
                opacity=0.4,
                marker={"color": colour(edges), "symbol": symbol(kind), "size": 5},
            )
        )
    for (edges, kind), points in means.items():
        if not points.xs:
            continue
        traces.append(
            points.trace(
                name=f"{edges} · {kind}",
                mode="lines+markers",
                showlegend=False,
                line={
                    "color": colour(edges),
                    "width": 2 if num_points <= 2 * _POINTS_WITH_BARS else 1,
                    "dash": "dot" if kind == "random" else "solid",
                },
                marker={"color": colour(edges), "symbol": symbol(kind), "size": 8},
                error_y=error_bars(points.ys, num_points <= 2 * _POINTS_WITH_BARS),
            )
        )
    # An interval of two seeds is twelve times as wide as they are apart: bars may leave the plot.
    drawn = [*seeds.values(), *means.values()]
    values = [y.value for points in drawn for y in points.ys if y is not None]
    if measure is measures.REMOVAL:
        values = [_within_range(value) for value in values]
    xaxis: dict[str, Any] = {"title": axis_title(title), "zeroline": False}
    if title == PARAMETERS:
        # Plotly's own ticks of a short logarithmic axis are few and odd.
        sizes = sorted({x.value for points in means.values() for x in points.xs if x is not None})
        xaxis |= {
            "title": axis_title("parameters of the full model"),
            "type": "log",
            "tickvals": sizes,
            "ticktext": [rounded(size) for size in sizes],
        }
    return {
        "data": traces,
        "layout": {
            **plain_layout(),
            "xaxis": xaxis,
            "yaxis": {
                "title": axis_title(
                    f"mean {measure.name}  ({'↑' if measure.direction > 0 else '↓'} better)"
                ),
                "range": padded(values, 0.3),
            },
            "hovermode": "closest",
            "margin": {"l": 58, "r": 10, "t": 10, "b": 46},
        },
    }


def _over_seeds(sweep: Sweep, group: Sequence[Job], measure: Measure) -> Estimate | None:
    """Mean and t-interval; the mean of what is known where a job has a bound alone."""
    assert measure.key is not None  # Axes have means.
    estimate = sweep.over_seeds(group, measure.key)
    if estimate is not None:
        return estimate
    known = [at for job in group if (at := measures.known(measure, job)) is not None]
    return Estimate(value=_mean(known)) if len(known) == len(group) else None


def rounded(number: float) -> str:
    """Two digits and a letter: 4.3M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return (
                f"{number / size:.2g}{letter}"
                if number < 100 * size
                else f"{number / size:.0f}{letter}"
            )
    return f"{number:.0f}"


def _as_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def curves(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Loss by step, a figure a domain: training as thin lines, held-out as lines with markers.

    The jobs that cut the same edges are one trace, so that a hundred of them stay quick to draw.
    """
    figures: dict[str, dict[str, Any]] = {}
    seen: list[float] = []
    share = _POINTS_OF_CURVES // max(1, len(sweep.compared))
    num_points = max(_FEWEST_POINTS, min(_POINTS_A_CURVE, share))
    for domain in sweep.domains:
        data = []
        for held_out, key in (
            (False, registry.TRAIN_LOSS_OF(domain)),
            (True, registry.EVAL_LOSS(domain)),
        ):
            traces: dict[str, tuple[list[Any], list[Any], list[int]]] = {}
            for number, job in enumerate(sweep.compared):
                points = _curve(job, key, num_points)
                if not points:
                    continue
                steps, losses, jobs = traces.setdefault(job.edges, ([], [], []))
                # None breaks the line between two jobs.
                steps += [*(step for step, _ in points), None]
                losses += [*(loss for _, loss in points), None]
                jobs += [number] * (len(points) + 1)
            for edges, (steps, losses, jobs) in traces.items():
                seen += [loss for loss in losses if loss is not None]
                data.append(
                    {
                        "type": "scatter",
                        "x": steps,
                        "y": losses,
                        "mode": "lines+markers" if held_out else "lines",
                        "line": {"color": colour(edges), "width": 2 if held_out else 1},
                        "marker": {"size": 5},
                        "opacity": 1 if held_out else 0.4,
                        "name": f"{edges}, {'held out' if held_out else 'training'}",
                        "meta": {"points": jobs},
                        # The page puts the label of each point's job in its text.
                        "hovertemplate": "%{text}<br>step %{x}<br>"
                        + ("held out" if held_out else "training")
                        + " %{y:.3f}<extra></extra>",
                        "showlegend": False,
                    }
                )
        if data:
            figures[domain] = {"data": data, "layout": _small_layout()}
    for figure in figures.values():
        # One range for all, so that domains compare.
        figure["layout"]["yaxis"] = {"range": padded(seen)}
        figure["layout"]["xaxis"] = {"rangemode": "tozero"}
    return figures


def relearning(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Held-out loss on a domain by step of the attack that teaches it again, a figure a domain: of
    each job the learning rate that came lowest.

    Dashed are models that never saw the domain, dotted dense ones that were made to forget it.
    Where an attack diverged its line has a gap; one without a loss that is a number is not drawn.
    """
    figures: dict[str, dict[str, Any]] = {}
    seen: list[float] = []
    attacked = {part for job in sweep.compared for part in job.attacks}
    nodes = dict.fromkeys(node for job in sweep.compared for node in job.nodes)
    for part in nodes:
        if part not in attacked:
            continue
        traces: dict[tuple[str, str], tuple[list[Any], list[Any], list[str], list[int]]] = {}
        for number, job in enumerate(sweep.compared):
            attacks = [
                (min(finite), attack)
                for attack in job.attacks.get(part, ())
                if (finite := [loss for loss in attack.losses if math.isfinite(loss)])
            ]
            if not attacks:
                continue
            _, strongest = min(attacks, key=lambda found: found[0])
            look = (job.edges, job.kind)
            steps, losses, names, jobs = traces.setdefault(look, ([], [], [], []))
            # None breaks the line between two jobs.
            steps += [*strongest.steps, None]
            losses += [
                *(loss if math.isfinite(loss) else None for loss in strongest.losses),
                None,
            ]
            label = f"{sweep.labels[job.name]} (lr {strongest.lr:g})"
            names += [escaped(label)] * (len(strongest.steps) + 1)
            jobs += [number] * (len(strongest.steps) + 1)
        if not traces:
            continue
        seen += [loss for _, losses, *_ in traces.values() for loss in losses if loss is not None]
        data = [
            {
                "type": "scatter",
                "x": steps,
                "y": losses,
                "mode": "lines+markers",
                "line": {"color": colour(edges), "width": 1.5, "dash": _attack_dash(kind)},
                "marker": {"size": 6, "symbol": symbol(kind)},
                "text": names,
                "name": f"{edges} · {kind}",
                "meta": {"points": jobs},
                "hovertemplate": "%{text}<br>step %{x}<br>held out %{y:.3f}<extra></extra>",
                "showlegend": False,
            }
            for (edges, kind), (steps, losses, names, jobs) in traces.items()
        ]
        figures[part] = {"data": data, "layout": _small_layout()}
    for figure in figures.values():
        figure["layout"]["yaxis"] = {"range": padded(seen)}
        figure["layout"]["xaxis"] = {"rangemode": "tozero"}
    return figures


def entanglement(sweep: Sweep) -> list[tuple[Sequence[Job], dict[str, Any]]]:
    """What switching off the block of each set of domains costs the domains in the set and the
    others: bars, a figure for each group of jobs that differ in their seed alone; means over
    seeds. All have one scale."""
    found: list[tuple[Sequence[Job], dict[str, Any]]] = []
    ends = [0.0]
    for group in sweep.replicates:
        sets = _sets(group[0])
        traces = []
        for name, shade, key in (
            ("domains in the set", _INSIDE, registry.ENTANGLEMENT_INSIDE),
            ("the others", _OUTSIDE, registry.ENTANGLEMENT_OUTSIDE),
        ):
            bars = [sweep.over_seeds(group, key(block)) for block in sets]
            if not any(bars):
                continue
            ends += [bar.value for bar in bars if bar is not None]
            ends += [end for bar in bars if bar is not None for end in bar.interval or ()]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": name,
                    "y": [block.replace("+", " + ") for block in sets],
                    "x": [None if bar is None else bar.value for bar in bars],
                    "error_x": error_bars(bars),
                    "marker": {"color": shade},
                    "meta": {"jobs": numbers(sweep, group)},
                    "hovertemplate": "%{y}<br>%{x:.3f} nats<extra></extra>",
                }
            )
        if traces:
            found.append((group, {"data": traces, "layout": _bars_layout(len(sets))}))
    for _, figure in found:
        figure["layout"]["xaxis"] |= {"range": padded(ends, 0.06)}
    return found


def _bars_layout(num_sets: int) -> dict[str, Any]:
    return {
        **plain_layout(),
        "barmode": "group",
        "height": 70 + 34 * num_sets,
        "xaxis": {"title": axis_title("nats added"), "zeroline": True},
        # The first set stands at the top.
        "yaxis": {"title": axis_title("set"), "autorange": "reversed", "automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 60, "r": 10, "t": 30, "b": 42},
    }


def _sets(job: Job) -> list[str]:
    """Blocks of a lattice, as their keys call them: small sets first."""
    prefix, suffix = registry.ENTANGLEMENT_INSIDE("\0").split("\0")
    found = [
        key.removeprefix(prefix).removesuffix(suffix)
        for key in job.metrics
        if key.startswith(prefix) and key.endswith(suffix)
    ]
    return sorted(found, key=lambda block: block.count("+"))


def _attack_dash(kind: str) -> str:
    if kind == DENSE:
        return "dot"
    return "dash" if kind.startswith(Method.filtered.value) else "solid"


def padded(values: Sequence[float], share: float = 0.04) -> list[float]:
    """A range with room around the values."""
    pad = share * (max(values) - min(values)) or share * abs(values[0]) or 0.1
    return [min(values) - pad, max(values) + pad]


def number_text(estimate: Estimate) -> str:
    """A value and its interval, for a tooltip."""
    if estimate.interval is None:
        return f"{estimate.value:.3f}"
    low, high = estimate.interval
    return f"{estimate.value:.3f} [{low:.3f}, {high:.3f}]"


def error_bars(estimates: Sequence[Estimate | None], visible: bool = True) -> dict[str, Any]:
    """The intervals, as Plotly draws them."""
    above = [(e.interval[1] - e.value) if e and e.interval else 0 for e in estimates]
    below = [(e.value - e.interval[0]) if e and e.interval else 0 for e in estimates]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1,
        "width": 0,
        "visible": visible and any(above + below),
    }


def _curve(job: Job, key: str, num_points: int) -> list[tuple[int, float]]:
    points = [
        # What the eye and the tooltip can tell, in a third of the letters.
        (row["step"], round(float(row[key]), 4))
        for row in job.history
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    stride = max(1, math.ceil(len(points) / num_points))
    # Counted from the end, because the last point is the one that is read off.
    return points[::-1][::stride][::-1]


def axis_title(text: str) -> dict[str, Any]:
    """The title of an axis."""
    # As small as the ticks: at the default size it is cut off on a phone.
    return {"text": text, "font": {"size": 12}}


def plain_layout() -> dict[str, Any]:
    """What all figures have."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12},
        "hoverlabel": {"align": "left"},
    }


def _small_layout() -> dict[str, Any]:
    return {
        **plain_layout(),
        "hovermode": "closest",
        "margin": {"l": 38, "r": 8, "t": 8, "b": 34},
    }
