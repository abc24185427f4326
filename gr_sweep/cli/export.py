"""The verb `export`: a job's model as a Hugging Face checkpoint, without what is not kept."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gr_sweep.arguments import Parser

if TYPE_CHECKING:
    from gr_sweep.export.losses import Alone

_EPILOG = """examples:
  gr-sweep export outputs/my-sweep/JOB --keep biology --to biology-model
  gr-sweep export outputs/my-sweep/JOB --keep code --keep creative --to no-biology
  gr-sweep export outputs/my-sweep/DENSE_JOB --to dense-model     a run without blocks, whole
"""


def main(argv: Sequence[str]) -> int:
    """Writes the checkpoint; prints what it buys and, as the last line, its folder.

    Raises:
        GrSweepError: a run that cannot be exported, an unknown domain, a folder that is not empty.
    """
    parser = Parser(
        prog="gr-sweep export",
        description="Write a job's model as an ordinary Hugging Face checkpoint without the blocks "
        "of other domains, with tokenizer and model card. AutoModelForCausalLM loads it, without "
        "gr-sweep; its logits are those of the job's model with these blocks switched off.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a job")
    parser.add_argument(
        "--keep",
        metavar="DOMAIN",
        action="append",
        default=[],
        help="a domain to keep, or a node above several; may be given again. All of them give the "
        "full model",
    )
    parser.add_argument(
        "--to", metavar="DIR", type=Path, required=True, help="folder to write: new, or empty"
    )
    parser.add_argument(
        "--no-speed", action="store_true", help="leave out what is measured while generating"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where generation is measured (default: auto, a GPU where there is one)",
    )
    options = parser.parse_args(list(argv))

    from gr_sweep.export.run import check_keep, check_target, open_run

    run = open_run(options.run)
    check_keep(run.plan, options.keep, run.folder)
    check_target(options.to)

    import torch

    from gr_sweep.errors import JobError
    from gr_sweep.export.card import remarks_of, table_text
    from gr_sweep.export.write import export

    has_gpu = torch.cuda.is_available()
    if options.device == "cuda" and not has_gpu:
        raise JobError("--device cuda: there is no GPU here; leave it out")
    device = torch.device("cuda" if has_gpu and options.device != "cpu" else "cpu")
    made = export(
        run,
        options.keep,
        options.to,
        command=shlex.join(["gr-sweep", "export", *argv]),
        device=device,
        measures_generation=not options.no_speed,
        alone=alone_runs(run.folder),
    )
    print(table_text(made))
    for remark in remarks_of(made):
        print(remark)
    print(options.to)
    return 0


def alone_runs(folder: Path) -> "dict[str, Alone]":
    """By domain the run of the same sweep that the report holds the job's expert against."""
    from gr_sweep.errors import DataError
    from gr_sweep.export.losses import Alone
    from gr_sweep.report.baselines import alone_beside

    try:
        beside = alone_beside(folder)
    except DataError:  # a table that cannot be read is no reason not to export
        return {}
    return {
        domain: Alone(
            name=place.name,
            width=tables.width,
            rows=tables.losses,
            seed=int(tables.settings.get("seed", 0)),
            resamples=int(tables.settings.get("eval.bootstrap", 1000)),
        )
        for domain, (place, tables) in beside.items()
        if tables.width is not None
    }
