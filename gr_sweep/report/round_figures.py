"""Pictures of one round: its blocks as an icicle, and the units of each layer by owner and by use.

A block has the colour of its domain. Blocks with several owners have that of the first.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gr_sweep.domains import is_under
from gr_sweep.report import figures
from gr_sweep.report.figures import HUES, Figure, escaped
from gr_sweep.report.measures import rounded
from gr_sweep.report.round_files import Block, Round

_CORE_COLOUR = "#969ca2"
_NAMES_OF_KINDS = {"mlp": ("unit", "units"), "attn": ("head group", "head groups")}
_MOST_COLUMNS, _MOST_CELLS = 240, 6000
"""Of a picture of units; with more units, neighbours share a column."""


def hue_of(label: str, domains: Sequence[str]) -> int:
    """Index of the domain, of a sweep's, that gives a label its colour."""
    found = (at for at, d in enumerate(domains) if is_under(label, d) or is_under(d, label))
    return next(found, 0)


def colour_of(block: Block, domains: Sequence[str]) -> str:
    """The colour of a block."""
    return _CORE_COLOUR if block.is_core else HUES[_hue(block, domains) % len(HUES)]


def _hue(block: Block, domains: Sequence[str]) -> int:
    return min(hue_of(owner, domains) for owner in block.owners)


def title(found: Round) -> str:
    """Heading of a round's pictures."""
    several = "s" if len(found.labels) > 1 else ""
    return (
        f"round {found.number}: {len(found.labels)} expert{several}, {len(found.blocks)} blocks, "
        f"{rounded(found.tokens)} tokens"
    )


def blocks(found: Round, domains: Sequence[str], job: int) -> Figure:
    """The blocks from the core on the left to the leaves, whose height is their number of units.

    Args:
        domains: of the sweep.
        job: index of the round's job.
    """
    names = [block.name for block in found.blocks]
    totals = {kind: sum(b.units.get(kind, 0) for b in found.blocks) for kind in found.kinds}
    table: list[list[Any]] = [
        [
            "block", "owners", *(f"{kind} units" for kind in found.kinds),
            "loss alone, nats per token", "loss in the full model, nats per token",
        ]
    ]  # fmt: skip
    shares, texts = [], []
    for block in found.blocks:
        own, full = found.losses(block)
        shares.append(
            math.fsum(block.units.get(kind, 0) / total for kind, total in totals.items() if total)
        )
        losses = (("expert", own), ("full", full))
        known = " · ".join(f"{name} {loss:.3f}" for name, loss in losses if loss is not None)
        texts.append(" · ".join(filter(None, (_units(block), known))))
        counts = [block.units.get(kind, 0) for kind in found.kinds]
        table.append([block.name, " ".join(block.owners), *counts, own, full])
    parents = [_parent(block, names) for block in found.blocks]
    leaves = [name not in parents for name in names]
    trace = {
        "type": "icicle",
        "ids": names,
        "labels": [escaped(name) for name in names],
        "parents": parents,
        # Plotly adds the values of the blocks below.
        "values": [share if leaf else 0 for share, leaf in zip(shares, leaves, strict=True)],
        "text": texts,
        "textinfo": "label+text",
        "hovertemplate": "<b>%{label}</b><br>%{text}<extra></extra>",
        "marker": {"colors": [colour_of(block, domains) for block in found.blocks]},
        "pathbar": {"visible": False},
        "tiling": {"pad": 2},
        "leaf": {"opacity": 1},
        "sort": False,
        "meta": {"jobs": [job], "table": table},
    }
    margin = {"l": 0, "r": 0, "t": 4, "b": 4}
    return {"data": [trace], "layout": figures.layout(height=30 + 46 * sum(leaves), margin=margin)}


def _units(block: Block) -> str:
    parts = []
    for kind, size in block.units.items():
        one, several = _NAMES_OF_KINDS.get(kind, (kind, kind))
        parts.append(f"{size:,} {one if size == 1 else several}")
    return " + ".join(parts)


def _parent(block: Block, names: Sequence[str]) -> str:
    """The nearest block above by name, or the core; empty for the core."""
    above = block.name.rpartition("/")[0]
    while above and above not in names:
        above = above.rpartition("/")[0]
    return "" if block.is_core else above or names[0]


def leading(
    shares: np.ndarray, hues: Sequence[int], num_columns: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The domain that uses each unit most, and how far it leads.

    Args:
        shares: [domains, units].
        hues: of each domain; those of one hue do not compete.
        num_columns: units are joined into this many columns; None: they are not.

    Returns:
        Index of the domain, -1 where no domain uses the unit; and its lead, from 0 where a domain
        of another hue has as large a share to 1 where none uses the unit.
    """
    if num_columns is not None and num_columns < shares.shape[1]:
        starts = np.arange(num_columns) * shares.shape[1] // num_columns
        shares = np.add.reduceat(shares, starts, axis=1)
    shares = np.nan_to_num(shares)
    first = shares.argmax(axis=0)
    top = shares.max(axis=0)
    is_other = np.array([[a != b for b in hues] for a in hues])
    others = np.where(is_other[first].T, shares, 0.0).max(axis=0)
    safe = np.where(top > 0, top, 1.0)
    return np.where(top > 0, first, -1), np.where(top > 0, 1.0 - others / safe, 0.0)


def units(found: Round, domains: Sequence[str], job: int) -> list[tuple[str, Figure]]:
    """For each kind of units its name and a picture: two rows for each layer and a column for each
    unit, in the plan's order. The upper row has the colour of the owner; the lower that of the
    domain that uses the unit most, stronger the further it leads. Empty without scores.

    Args:
        domains: of the sweep.
        job: index of the round's job.
    """
    network = found.network
    if network is None or len(network.plan.blocks) != len(found.blocks):
        return []
    hues = [hue_of(domain, domains) for domain in network.domains]
    owner = [0 if block.is_core else 1 + _hue(block, domains) for block in found.blocks]
    figures_of_kinds = []
    for kind, (_, several) in _NAMES_OF_KINDS.items():
        places = sorted(place for place in network.shares if place[1] == kind)
        if not places:
            continue
        num_units = max(network.shares[place].shape[1] for place in places)
        most = min(_MOST_COLUMNS, max(60, _MOST_CELLS // (2 * len(places))))
        z: list[list[float | None]] = []
        for place in places:
            sizes = network.sizes(place)
            width = min(sum(sizes), most)
            of_block = np.repeat(np.arange(len(sizes)), sizes)
            own = of_block[np.arange(width) * sum(sizes) // width]
            z.append([owner[block] + 0.99 for block in own])
            leader, lead = leading(network.shares[place], hues, width)
            z.append(
                [
                    None if at < 0 else round(1 + hues[at] + 0.99 * math.sqrt(by), 2)
                    for at, by in zip(leader.tolist(), lead.tolist(), strict=True)
                ]
            )
        rows = [f"layer {layer} {row}" for layer, _ in places for row in ("owner", "use")]
        figure = _heat_map(z, rows, num_units, domains, several)
        # As in the picture: a column for each unit or for neighbours that share one.
        names = ["core", *domains]
        table = [
            [row, *("" if at is None else names[int(at)] for at in line)]
            for row, line in zip(rows, z, strict=True)
        ]
        figure["data"][0]["meta"] = {"jobs": [job], "table": [["row"], *table]}
        figures_of_kinds.append((several, figure))
    return figures_of_kinds


def _heat_map(
    z: list[list[float | None]], rows: list[str], num_units: int, domains: Sequence[str], name: str
) -> Figure:
    colours = [_CORE_COLOUR, *(HUES[at % len(HUES)] for at in range(len(domains)))]
    scale = []
    for at, full in enumerate(colours):
        red, green, blue = (int(full[i : i + 2], 16) for i in (1, 3, 5))
        start, stop = at / len(colours), (at + 0.99) / len(colours)
        scale += [[start, f"rgba({red},{green},{blue},0.08)"], [stop, full]]
    scale.append([1, colours[-1]])
    trace = {
        "type": "heatmap",
        "z": z,
        "y": rows,
        "x0": num_units / len(z[0]) / 2,
        "dx": num_units / len(z[0]),
        "zmin": 0,
        "zmax": len(colours),
        "colorscale": scale,
        "hovertemplate": "%{y}, unit %{x:.0f}<extra></extra>",
        "ygap": 1,
        "colorbar": {
            "tickvals": [at + 0.5 for at in range(len(colours))],
            "ticktext": ["core", *map(escaped, domains)],
            "thickness": 10, "outlinewidth": 0,
        },
    }  # fmt: skip
    layout = figures.layout(
        height=90 + max(160, 13 * len(rows)),
        xaxis={"title": figures.axis_title(f"{name} in the plan's order"), "showgrid": False},
        yaxis={"autorange": "reversed", "automargin": True, "showgrid": False},
        margin={"l": 60, "r": 10, "t": 8, "b": 42},
    )
    return {"data": [trace], "layout": layout}
