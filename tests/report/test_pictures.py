"""Pictures of rounds: what is in them, their colours, and the file that stands alone."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest

from gr_sweep.config import ProcedureKind
from gr_sweep.report import pictures, read_sweep, rounds
from gr_sweep.report.round_files import Block, Network, Round, read_rounds

Make = Callable[..., Path]

LABELS = ("code/0", "code/1", "biology")


def a_round(network: Network | None = None, labels: tuple[str, ...] = LABELS) -> Round:
    owners = {"core": labels, "code": labels[:2], **{label: (label,) for label in labels}}
    return Round(
        number=2, tokens=10, labels=labels, parameters_kept={}, modularity_assigned=None,
        modularity=None, stability={}, metrics={}, network=network,
        blocks=tuple(
            Block(name=name, owners=of, units={"mlp": 2}, is_core=name == "core")
            for name, of in owners.items()
        ),
    )  # fmt: skip


def pixels(svg: str) -> npt.NDArray[np.uint8]:
    """Of the first picture in it, red, green, blue and alpha."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow to read a picture")
    [content, *_] = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    return np.asarray(image.open(io.BytesIO(base64.b64decode(content))))


def test_every_node_has_a_colour_of_its_own_near_its_domain() -> None:
    labels = [f"{d}/{i}/{j}" for d in ("code", "biology", "creative") for i in "01" for j in "01"]
    colours = pictures.colours_of(["code", "biology", "creative"], labels)
    assert len(colours) == 3 * (1 + 2 + 4) and len(set(colours.values())) == len(colours)

    def distance(a: str, b: str) -> float:
        return float(np.abs(np.subtract(colours[a], colours[b])).sum())

    for node in colours:
        own, *others = sorted(("code", "biology", "creative"), key=lambda top: distance(node, top))
        assert own == node.split("/")[0], f"{node} looks like {own}"
        assert others


def test_colours_of_a_domain_do_not_depend_on_what_others_are_split_into() -> None:
    few = pictures.colours_of(["code", "biology"], ["code", "biology"])
    many = pictures.colours_of(["code", "biology"], ["code/0", "code/1", "biology"])
    assert few["code"] == many["code"] and few["biology"] == many["biology"]


def test_one_top_node_lends_its_hue_to_nobody() -> None:
    colours = pictures.colours_of(["text/code", "text/biology"], [])
    assert colours["text"] == pictures.CORE_COLOUR
    assert len({*colours.values()}) == 3


@pytest.mark.parametrize("num", [7, 13, 40])
def test_many_domains_have_colours(num: int) -> None:
    colours = pictures.colours_of([f"d{at}" for at in range(num)], [])
    assert len(set(colours.values())) == num


def test_leading_domain_is_held_against_other_hues_alone() -> None:
    shares = np.array([[0.6, 0.1, 0.0, 0.2], [0.5, 0.1, 0.0, 0.3], [0.3, 0.4, 0.0, 0.3]])
    leader, lead = pictures.leading(shares, ["code", "code", "biology"])
    assert leader.tolist() == [0, 2, -1, 1]
    assert lead == pytest.approx([0.5, 0.75, 0.0, 0.0])
    leader, lead = pictures.leading(shares, ["code", "code", "biology"], num_columns=2)
    assert leader.tolist() == [0, 1]
    assert lead == pytest.approx([0.0, 0.0])


def test_network_shows_owner_above_and_use_below() -> None:
    sizes = {(0, "mlp"): (2, 1, 1, 1, 1)}
    shares = np.zeros((3, 6), dtype=np.float32)
    shares[0, [0, 2, 3]], shares[1, 4], shares[2, [1, 5]] = 0.3, 1.0, 0.5
    found = a_round(Network(sizes=sizes, domains=LABELS, shares={(0, "mlp"): shares}))
    colours = pictures.colours_of(["code", "biology"], LABELS)
    svg = pictures.network(found, colours)
    assert svg is not None
    image = pixels(svg)
    assert image.shape[1] == 6
    blocks = ["code", "code/0", "code/1", "biology"]
    owner, use = image[0], image[image.shape[0] // 2]
    assert [tuple(p) for p in owner[:, :3].tolist()] == [
        *[pictures.CORE_COLOUR] * 2, *(colours[name] for name in blocks),
    ]  # fmt: skip
    used = ["code/0", "biology", "code/0", "code/0", "code/1", "biology"]
    assert [tuple(p) for p in use[:, :3].tolist()] == [colours[name] for name in used]
    assert (use[:, 3] == 255).all(), "nobody else uses them"
    assert pictures.agreement(found, colours) == pytest.approx((1.0, (2 + 1 + 1 + 1) / 3 / 4))
    for name in ("core", "code", "biology", "MLP units: 6 a layer"):
        assert f">{name}</text>" in svg


def test_network_of_7b_fits_the_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = (5504, 1376, 688, 688, 2752)
    shares = {(layer, "mlp"): rng.random((3, 11008), dtype=np.float32) for layer in range(32)} | {
        (layer, "attn"): rng.random((3, 32), dtype=np.float32) for layer in range(32)
    }
    network = Network(
        sizes={(layer, "mlp"): sizes for layer in range(30)}
        | {(layer, "attn"): (16, 4, 4, 4, 4) for layer in range(32)},
        domains=LABELS,
        shares=shares,
    )
    colours = pictures.colours_of(["code", "biology"], LABELS)
    svg = pictures.network(a_round(network), colours)
    assert svg is not None and len(svg) < 400_000
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    assert width <= 1000 and height < 600
    assert "head groups: 32 a layer" in svg and "11,008" in svg
    image = pixels(svg)
    assert image.shape[1] <= 1000
    last = image[-image.shape[0] // 32]
    assert (last[:, :3] == pictures.CORE_COLOUR).all(), "a layer that is not split is the core's"


def test_layers_of_different_sizes_have_their_own_bounds() -> None:
    sizes = {(0, "mlp"): (2, 1, 1, 1, 1), (1, "mlp"): (1, 2, 1, 1, 1)}
    shares = {place: np.ones((3, 6), dtype=np.float32) for place in sizes}
    network = Network(sizes=sizes, domains=LABELS, shares=shares)
    svg = pictures.network(a_round(network), pictures.colours_of(["code", "biology"], LABELS))
    assert svg is not None and ">biology</text>" not in svg, "no heading fits both"


def test_plan_with_other_blocks_than_the_round_has_no_picture() -> None:
    network = Network(
        sizes={(0, "mlp"): (2, 4)}, domains=LABELS, shares={(0, "mlp"): np.ones((3, 6))}
    )
    colours = pictures.colours_of(["code", "biology"], LABELS)
    assert pictures.network(a_round(network), colours) is None
    assert pictures.agreement(a_round(network), colours) is None


def test_tree_names_blocks_units_and_losses(
    tmp_path: Path, make_job: Make, make_rounds: Callable[..., None]
) -> None:
    domains = ["code", "biology/virology", "biology/cells"]
    job = make_job(
        tmp_path, domains=domains, num_documents=8, resamples=0,
        settings={"procedure.name": ProcedureKind.alternate},
    )  # fmt: skip
    make_rounds(job, domains=domains, head_groups=16)
    found = read_rounds(job)
    colours = pictures.colours_of(domains, found[-1].labels)
    for of in found:
        svg = pictures.tree(of, colours)
        ElementTree.fromstring(svg)
        for block in of.blocks:
            assert f">{block.name}</tspan>" in svg
            for loss in of.losses(block):
                assert loss is None or f"{loss:.3f}" in svg
        # Every block but the core hangs from another.
        assert svg.count("<path ") == len(of.blocks) - 1
        assert "units + " in svg


def test_blocks_of_a_lattice_hang_from_the_core() -> None:
    names = ("core", "code", "biology", "code+biology")
    found = Round(
        number=1, tokens=1, labels=("code", "biology", "creative"), parameters_kept={},
        modularity_assigned=None, modularity=None, stability={}, metrics={},
        blocks=tuple(
            Block(name=n, owners=tuple(n.split("+")), units={"mlp": 1}, is_core=n == "core")
            for n in names
        ),
    )  # fmt: skip
    colours = pictures.colours_of(found.labels, [])
    assert pictures.tree(found, colours).count("<path ") == 3
    mixed = pictures.block_colour(found.blocks[3], colours)
    assert mixed == tuple(
        round((a + b) / 2) for a, b in zip(colours["code"], colours["biology"], strict=True)
    )


def test_files_stand_alone(alternating: Path) -> None:
    files = rounds.files(read_sweep(alternating))
    assert len(files) == 28
    for name, content in files.items():
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg", name
        assert "var(--" not in content


def test_units_are_counted_by_the_domain_that_uses_them_most() -> None:
    shares = np.zeros((3, 10))
    shares[2, :4] = 0.25  # the core's two and the first block's: biology's
    shares[0, 4:] = 0.2
    network = Network(sizes={(1, "mlp"): (2,) * 5}, domains=LABELS, shares={(1, "mlp"): shares})
    colours = pictures.colours_of(["code", "biology"], LABELS)
    header, *rows = pictures.used_most(a_round(network), colours)
    assert header == ["layer", "kind", "block", "units", *(f"used most by {d}" for d in LABELS)]
    assert rows == [
        [1, "mlp", "core", 2, 0, 0, 2], [1, "mlp", "code", 2, 0, 0, 2],
        [1, "mlp", "code/0", 2, 2, 0, 0], [1, "mlp", "code/1", 2, 2, 0, 0],
        [1, "mlp", "biology", 2, 2, 0, 0],
    ]  # fmt: skip
    assert pictures.used_most(a_round(), colours) == []
