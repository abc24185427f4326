"""The verb `export`: writes a job's model as a Hugging Face checkpoint of the kept domains."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from gr_sweep.arguments import Parser

_EPILOG = """examples:
  gr-sweep export outputs/my-sweep/JOB --keep biology --to biology-model
  gr-sweep export outputs/my-sweep/JOB --keep code --keep creative --to no-biology
  gr-sweep export outputs/my-sweep/DENSE_JOB --to dense-model     a run without blocks, whole
"""


def main(argv: Sequence[str]) -> int:
    """Writes the checkpoint; prints what it costs and, as the last line, its folder."""
    parser = Parser(
        prog="gr-sweep export",
        description="Write a job's model as an ordinary Hugging Face checkpoint without the blocks "
        "of other domains, with tokenizer and model card. AutoModelForCausalLM loads it without "
        "gr-sweep; its logits equal those of the job's model with these blocks switched off.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a job")
    parser.add_argument(
        "--keep",
        metavar="DOMAIN",
        action="append",
        default=[],
        help="a domain to keep, or a node above several domains; can be repeated. Keeping all of "
        "them gives the full model",
    )
    parser.add_argument(
        "--to", metavar="DIR", type=Path, required=True, help="folder to write, new or empty"
    )
    options = parser.parse_args(list(argv))

    from gr_sweep.export.run import check_keep, open_run

    run = open_run(options.run)
    check_keep(run.plan, options.keep, run.folder)

    from gr_sweep.export.write import export, facts_of

    command = shlex.join(["gr-sweep", "export", *argv])
    made = export(run, options.keep, options.to, command=command)
    print(*facts_of(made), options.to, sep="\n")
    return 0
