"""The plots of the report: utility against separability, both against a setting, loss curves and
relearning. Plotly figures as dicts.

Colours say which edges a job cuts, the same in every plot and table (Okabe and Ito 2008: told apart
by colour-blind readers). Backgrounds and text colours are the page's: it sets them for light and
dark.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gr_sweep.config import Method
from gr_sweep.metrics import keys
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
_LABELLED_GROUPS = 24
"""With more groups of jobs their names would be a crowd; hovering tells them."""
_REMOVAL_RANGE = (-0.5, 1.5)
"""What is drawn of removal at most; 0 to 1 is its meaning."""
_LINES = 8
"""More models without parts to remove than these are too many lines."""
_PLOT_WIDTH, _PLOT_HEIGHT = 1000.0, 340.0
"""Pixels of the scatter between its axes on a desk, to see which names would cover one another."""
_LETTER_WIDTH, _LINE_HEIGHT = 6.8, 15.0
"""Pixels of a name beside a point."""

PARAMETERS = "parameters"
"""The axis on which model sizes stand."""


def colour(edges: str) -> str:
    """The colour of a choice of edges."""
    return COLOURS.get(edges, _OTHER_COLOUR)


def symbol(kind: str) -> str:
    """Plotly's name for the marker of a plan or method."""
    return MARKERS.get(kind, _OTHER_MARKER)[0]


def glyph(kind: str) -> str:
    """The marker of a plan or method as a letter."""
    return MARKERS.get(kind, _OTHER_MARKER)[1]


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """One pair of axes for the jobs of a sweep."""

    title: str
    figure: dict[str, Any]
    num_missing: int
    """Jobs with parts to remove that lack one of the two."""
    num_beyond: int
    """Jobs that are drawn beyond the axes: the quotient of a removal may be anything."""


def scatters(sweep: Sweep) -> list[Scatter]:
    """Separability over utility, a point a job, for each pair of measures that a job has; the best
    pair first.

    Jobs that differ in their seed alone are small points with a marker at their mean. Where the
    axis is a loss, a job without parts (dense, filtered) is a vertical line.
    """
    removable = [job for job in sweep.compared if job.mean_selectivity is not None]
    first = measures.best_axes(removable)
    pairs = [first, *(axes for axes in measures.AXES if axes != first)]
    found = []
    for utility, parts in pairs:
        figure = _scatter(sweep, utility, parts)
        if figure is not None:
            missing = sum(measures.place(job, (utility, parts)) is None for job in removable)
            low, high = figure["layout"]["yaxis"]["range"]
            beyond = sum(
                at is not None and not low <= at.value <= high
                for at in (parts.mean(job) for job in removable)
            )
            title = f"{parts.name} over {utility.name}"
            found.append(
                Scatter(title=title, figure=figure, num_missing=missing, num_beyond=beyond)
            )
    return found


@dataclass
class _Points:
    """Points of one trace."""

    xs: list[Estimate | None] = field(default_factory=list)
    ys: list[Estimate | None] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    hovers: list[str] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)

    def add(self, x: Estimate, y: Estimate, hover: str, text: str = "", position: str = "") -> None:
        self.xs.append(x)
        self.ys.append(y)
        self.texts.append(text)
        self.hovers.append(hover)
        self.positions.append(position or "top right")

    def break_line(self) -> None:
        """The next point is not joined to the last."""
        self.xs.append(None)
        self.ys.append(None)
        self.texts.append("")
        self.hovers.append("")
        self.positions.append("top right")

    def trace(self, **settings: Any) -> dict[str, Any]:
        """As Plotly draws them."""
        return {
            "type": "scatter",
            "x": [None if x is None else x.value for x in self.xs],
            "y": [None if y is None else y.value for y in self.ys],
            "hovertext": self.hovers,
            "hoverinfo": "text",
            **settings,
        }


def _scatter(sweep: Sweep, utility: Measure, parts: Measure) -> dict[str, Any] | None:
    """None where no job has both."""
    groups = sweep.replicates
    points = {
        job.name: at
        for job in sweep.compared
        if (at := measures.place(job, (utility, parts))) is not None
    }
    if not points:
        return None
    lines = _lines(sweep, groups, points, utility)
    x_range, y_range = _ranges(list(points.values()), lines, parts)
    centres = {
        group[0].name: (_mean([p[0] for p in found]), _mean([p[1] for p in found]))
        for group in groups
        if (found := [points[job.name] for job in group if job.name in points])
    }
    several_kinds = len({job.kind for job in sweep.compared if job.name in points}) > 1
    labels = {
        group[0].name: tables.short_label(sweep, group[0])
        for group in groups
        if group[0].name in centres
    }
    labelled = len(centres) <= _LABELLED_GROUPS
    positions = _label_positions(labels, centres, x_range, y_range) if labelled else {}
    # One trace for each look, however many jobs: a browser draws ten traces at once.
    small: dict[tuple[str, str], _Points] = {}
    large: dict[tuple[str, str], _Points] = {}
    for group in groups:
        jobs = [job for job in group if job.name in points]
        if not jobs:
            continue
        look = (jobs[0].edges, jobs[0].kind)
        position = positions.get(group[0].name, "")
        text = html.escape(labels[group[0].name]) if position else ""
        centre = centres[group[0].name]
        several = len(jobs) > 1
        for job in jobs:
            to = (small if several else large).setdefault(look, _Points())
            to.add(*points[job.name], _hover(sweep, job, utility, parts), text, position)
        if several:
            large.setdefault(look, _Points()).add(
                Estimate(value=centre[0]),
                Estimate(value=centre[1]),
                f"<b>{html.escape(sweep.label(group[0], seed=False))}</b>"
                f"<br>mean of {len(jobs)} seeds<br>"
                f"{utility.name} {centre[0]:.3f}<br>{parts.name} {centre[1]:.3f}",
                text,
                position,
            )
    barred = len(points) <= _POINTS_WITH_BARS
    looks = {group[0].name: group[0].kind for group in groups}
    # A bound, or a mean over some of the seeds, beats nothing.
    whole = {
        group[0].name
        for group in groups
        if all(measure.mean(job) is not None for job in group for measure in (utility, parts))
    }
    routed = [
        at for name, at in centres.items() if name in whole and looks[name] != Method.random.value
    ]
    traces = _front_traces(routed, utility, parts)
    for size, all_points in ((6, small), (11, large)):
        for (edges, kind), drawn in all_points.items():
            is_large = all_points is large
            traces.append(
                drawn.trace(
                    mode="markers+text" if is_large and labelled else "markers",
                    text=drawn.texts,
                    textposition=drawn.positions,
                    name=f"{edges} · {kind}" if several_kinds else edges,
                    showlegend=is_large,
                    legendgroup=f"{edges} {kind}",
                    opacity=1 if is_large else 0.45,
                    marker={
                        "color": colour(edges),
                        "symbol": symbol(kind),
                        "size": size,
                        "line": {"width": 2 if kind == "random" else 0, "color": colour(edges)},
                    },
                    error_x=error_bars(drawn.xs, barred),
                    error_y=error_bars(drawn.ys, barred),
                )
            )
    layout = {
        **plain_layout(),
        "xaxis": {"title": _axis(utility), "range": x_range},
        "yaxis": {"title": _axis(parts), "range": y_range, "zeroline": True},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 62, "r": 12, "t": 36, "b": 56},
        "hovermode": "closest",
        "shapes": [],
        "annotations": [],
    }
    for x, name, edges in lines:
        is_named = labelled or len(lines) == 1
        _add_line(layout, "x", x, name if is_named else "", colour(edges))
    if parts is measures.REMOVAL:
        _add_line(layout, "y", 1.0, "as if never trained", _OTHER_COLOUR)
    return {"data": traces, "layout": layout}


def front(
    points: Sequence[tuple[float, float]], directions: tuple[int, int]
) -> list[tuple[float, float]]:
    """The Pareto set: points that no other is at least as good as in both, from left to right.

    Args:
        directions: of x and y: 1 where higher is better, -1 where lower is.
    """
    better = sorted({(x * directions[0], y * directions[1]) for x, y in points}, reverse=True)
    found: list[tuple[float, float]] = []
    for x, y in better:
        if not found or y > found[-1][1]:
            found.append((x, y))
    return sorted((x * directions[0], y * directions[1]) for x, y in found)


def _front_traces(
    centres: Sequence[tuple[float, float]], utility: Measure, parts: Measure
) -> list[dict[str, Any]]:
    """The Pareto set as steps: what lies between two settings is reached by neither. Empty where it
    is one point."""
    if parts is measures.REMOVAL:
        # More than gone is no better than gone.
        centres = [(x, min(y, 1.0)) for x, y in centres]
    found = front(centres, (utility.direction, parts.direction))
    if len(found) < 2:
        return []
    shape = "hv" if utility.direction < 0 else "vh"
    return [
        {
            "type": "scatter",
            "x": [x for x, _ in found],
            "y": [y for _, y in found],
            "mode": "lines",
            "line": {"color": _OTHER_COLOUR, "width": 1, "shape": shape},
            "opacity": 0.7,
            "name": "frontier",
            "hoverinfo": "skip",
        }
    ]


def _lines(
    sweep: Sweep,
    groups: Sequence[Sequence[Job]],
    points: dict[str, Any],
    utility: Measure,
) -> list[tuple[float, str, str]]:
    """Place, name and edges of the vertical lines: models without parts to remove."""
    if utility is not measures.LOSS:
        at = 1.0 if utility is measures.COMPUTE_EQUIVALENT else 0.0
        return [(at, DENSE, DENSE)]
    lines = []
    without_parts = [group for group in groups if not any(job.name in points for job in group)]
    if len(without_parts) > _LINES:
        # Filtered models outnumber the others; where all cannot be seen, dense ones matter.
        without_parts = [group for group in without_parts if group[0].kind == DENSE]
    for group in without_parts:
        losses = [loss for job in group if (loss := utility.mean(job)) is not None]
        if losses:
            lines.append((_mean(losses), tables.short_label(sweep, group[0]), group[0].edges))
    return lines


def _ranges(
    points: Sequence[tuple[Estimate, Estimate]],
    lines: Sequence[tuple[float, str, str]],
    parts: Measure,
) -> tuple[list[float], list[float]]:
    """Axes with room for the names; what the lines say, and no separation, are always on them."""
    xs = [x for x, _, _ in lines]
    ys = [0.0, 1.0] if parts is measures.REMOVAL else [0.0]
    for x, y in points:
        xs += [x.value, *(x.interval or ())]
        ys += [y.value, *(y.interval or ())]
    if parts is measures.REMOVAL:
        # One job whose way to go is next to nothing would flatten all others.
        ys = [_within_range(y) for y in ys]
    ranges = []
    for values in (xs, ys):
        pad = 0.08 * (max(values) - min(values)) or 0.1
        ranges.append([min(values) - pad, max(values) + pad])
    return ranges[0], ranges[1]


def _within_range(removal: float) -> float:
    low, high = _REMOVAL_RANGE
    return min(max(removal, low), high)


def _label_positions(
    labels: dict[str, str],
    centres: dict[str, tuple[float, float]],
    x_range: Sequence[float],
    y_range: Sequence[float],
) -> dict[str, str]:
    """Side of each point on which its name covers no other name or point; a point without one has
    no room. Sides towards the middle of the plot come first."""
    pixels = {
        name: (
            _PLOT_WIDTH * (x - x_range[0]) / (x_range[1] - x_range[0]),
            _PLOT_HEIGHT * (y - y_range[0]) / (y_range[1] - y_range[0]),
        )
        for name, (x, y) in centres.items()
    }
    reach = 7.0
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in pixels.values()]
    positions = {}
    for name, (x, y) in pixels.items():
        width = _LETTER_WIDTH * len(labels[name])
        sides = ("right", "left") if x < _PLOT_WIDTH / 2 else ("left", "right")
        for place in (
            f"top {sides[0]}", f"bottom {sides[0]}", f"middle {sides[0]}",
            f"top {sides[1]}", f"bottom {sides[1]}", f"middle {sides[1]}",
        ):  # fmt: skip
            vertical, side = place.split()
            left = x if side == "right" else x - width
            if vertical == "middle":
                left += reach + 1 if side == "right" else -reach - 1
            low = y + {"top": reach + 1, "bottom": -reach - 1 - _LINE_HEIGHT}.get(
                vertical, -_LINE_HEIGHT / 2
            )
            box = (left, low, left + width, low + _LINE_HEIGHT)
            inside = box[0] >= 0 and box[1] >= 0
            inside = inside and box[2] <= _PLOT_WIDTH and box[3] <= _PLOT_HEIGHT
            if inside and not any(_overlap(box, other) for other in taken):
                positions[name] = place
                taken.append(box)
                break
    return positions


_Box = tuple[float, float, float, float]


def _overlap(first: _Box, second: _Box) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


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
                value = group[0].metrics.get(keys.COST_PARAMETERS)
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
            label = html.escape(sweep.label(group[0], seed=False))
            number = f"{title} {value:g}<br>{measure.name} {number_text(estimate)}"
            seeds_text = f"<br>mean of {len(group)} seeds" if len(group) > 1 else ""
            mean.add(Estimate(value=value), estimate, f"<b>{label}</b><br>{number}{seeds_text}")
            for job in group if len(group) > 1 else ():
                own = measures.known(measure, job)
                if own is not None:
                    hover = f"{html.escape(sweep.labels[job.name])}<br>{number_text(own)}"
                    seeds.setdefault(look, _Points()).add(Estimate(value=value), own, hover)
        if len(mean.xs) > num_before:
            mean.break_line()
    num_points = sum(len(points.xs) for points in means.values())
    if not num_points:
        return None
    traces = []
    for (edges, kind), points in seeds.items():
        traces.append(
            points.trace(
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
        for held_out, key in ((False, keys.train_loss(domain)), (True, keys.eval_loss(domain))):
            traces: dict[str, tuple[list[Any], list[Any], list[str]]] = {}
            for job in sweep.compared:
                points = _curve(job, key, num_points)
                if not points:
                    continue
                steps, losses, names = traces.setdefault(job.edges, ([], [], []))
                # None breaks the line between two jobs.
                steps += [*(step for step, _ in points), None]
                losses += [*(loss for _, loss in points), None]
                names += [html.escape(sweep.labels[job.name])] * (len(points) + 1)
            for edges, (steps, losses, names) in traces.items():
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
                        "text": names,
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
        traces: dict[tuple[str, str], tuple[list[Any], list[Any], list[str]]] = {}
        for job in sweep.compared:
            attacks = [
                (min(finite), attack)
                for attack in job.attacks.get(part, ())
                if (finite := [loss for loss in attack.losses if math.isfinite(loss)])
            ]
            if not attacks:
                continue
            _, strongest = min(attacks, key=lambda found: found[0])
            steps, losses, names = traces.setdefault((job.edges, job.kind), ([], [], []))
            # None breaks the line between two jobs.
            steps += [*strongest.steps, None]
            losses += [
                *(loss if math.isfinite(loss) else None for loss in strongest.losses),
                None,
            ]
            label = f"{sweep.labels[job.name]} (lr {strongest.lr:g})"
            names += [html.escape(label)] * (len(strongest.steps) + 1)
        if not traces:
            continue
        seen += [loss for _, losses, _ in traces.values() for loss in losses if loss is not None]
        data = [
            {
                "type": "scatter",
                "x": steps,
                "y": losses,
                "mode": "lines+markers",
                "line": {"color": colour(edges), "width": 1.5, "dash": _attack_dash(kind)},
                "marker": {"size": 6, "symbol": symbol(kind)},
                "text": names,
                "hovertemplate": "%{text}<br>step %{x}<br>held out %{y:.3f}<extra></extra>",
                "showlegend": False,
            }
            for (edges, kind), (steps, losses, names) in traces.items()
        ]
        figures[part] = {"data": data, "layout": _small_layout()}
    for figure in figures.values():
        figure["layout"]["yaxis"] = {"range": padded(seen)}
        figure["layout"]["xaxis"] = {"rangemode": "tozero"}
    return figures


def _attack_dash(kind: str) -> str:
    if kind == DENSE:
        return "dot"
    return "dash" if kind.startswith(Method.filtered.value) else "solid"


def padded(values: Sequence[float], share: float = 0.04) -> list[float]:
    """A range with room around the values."""
    pad = share * (max(values) - min(values)) or 0.1
    return [min(values) - pad, max(values) + pad]


def _axis(measure: Measure) -> dict[str, Any]:
    """The title of an axis, with the way that is better."""
    better = "higher is better →"
    if measure.direction < 0:
        better = "← lower is better"
    return axis_title(f"{measure.axis}  ({better})")


def _add_line(layout: dict[str, Any], axis: str, at: float, name: str, shade: str) -> None:
    """A dotted line across the plot with its name at one end."""
    other = "y" if axis == "x" else "x"
    layout["shapes"].append(
        {
            "type": "line",
            f"{axis}0": at,
            f"{axis}1": at,
            f"{other}0": 0,
            f"{other}1": 1,
            f"{other}ref": f"{other} domain",
            "line": {"color": shade, "width": 1.5, "dash": "dot"},
        }
    )
    upright = axis == "x"
    layout["annotations"].append(
        {
            "text": html.escape(name),
            axis: at,
            f"{other}": 1 if upright else 0,
            f"{other}ref": f"{other} domain",
            "showarrow": False,
            "textangle": -90 if upright else 0,
            "xanchor": "right" if upright else "left",
            "yanchor": "top" if upright else "bottom",
        }
    )


def _hover(sweep: Sweep, job: Job, *chosen: Measure) -> str:
    lines = [f"<b>{html.escape(sweep.labels[job.name])}</b>"]
    for measure in chosen:
        estimate = measure.mean(job)
        if estimate is not None:
            lines.append(f"{measure.name} {number_text(estimate)}")
        elif measure.at_most(job, None) is not None:
            lines.append(f"{measure.name} {html.escape(measure.written(job, None))}")
    for domain in job.domains:
        parts = [
            f"{measure.name} {number_text(estimate)}"
            for measure in chosen
            if measure.of is not None and (estimate := measure.of(job, domain)) is not None
        ]
        if parts:
            lines.append(f"{html.escape(domain)}: {', '.join(parts)}")
    return "<br>".join(lines)


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
