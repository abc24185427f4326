"""Measures what only a GPU can show, in parts: `python -m gr_sweep.bench.gpu --json gpu.json`.

Each part is a command in a process of its own, so that running out of memory, a crash or a part
that hangs leaves the others alone. The most valuable parts come first. After each one the JSON
file, and beside it a page of Markdown, are written again. torch and transformers are enough for the
steps; a part that needs more fails and says so.
"""

import contextlib
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gr_sweep
from gr_sweep.arguments import Parser
from gr_sweep.bounds import invalid
from gr_sweep.files import write_whole
from gr_sweep.jobdir import SUMMARY, read_finished
from gr_sweep.metrics import registry

ROOT = Path(gr_sweep.__file__).parents[1]
RESERVE_S = 20.0
"""Time at the end in which nothing runs: what is stopped has to end."""
LEAST_S = 5.0
"""A part with less time than this is skipped."""
STOP_S = 10.0
"""Time that a part has to end after SIGTERM: a sweep stops its jobs."""
NOTES = 12
"""Last lines of a part's error output that are kept."""

_STEP = ("-m", "gr_sweep.bench.step", "--json")
_ENVIRONMENT = (
    "from gr_sweep.bench.gpu import environment as e; import json; print(json.dumps(e()))"
)


def _read_json(output: str, folder: Path, seconds: float) -> Any:
    content = json.loads(output)
    if content.get("rows") == []:
        raise ValueError("nothing was measured")
    return content


@dataclass(frozen=True)
class Part:
    """One command, and how its output is read."""

    name: str
    words: tuple[str, ...]
    """What Python is given; `{folder}` is an empty folder."""
    weight: float
    """Its share of the time that is left for it and the parts after it."""
    read: Callable[[str, Path, float], Any] = _read_json
    """The result, from the command's output, its folder and the seconds it took."""


def parts(*, is_tiny: bool = False) -> list[Part]:
    """All parts; `is_tiny` makes them small enough for a CPU."""

    def step(name: str, weight: float, *words: str, size: str = "1b", rows: int = 12) -> Part:
        vocab_size, length, rounds = (128_256 if size == "1b" else 32_000), 2048, 7
        if is_tiny:
            size, rows, vocab_size, length, rounds = "tiny", 3, 300, 8, 1
        shape = f"--model {size} --rows {rows} --sequence-length {length}".split()
        shape += ["--vocab-size", str(vocab_size), "--rounds", str(rounds)]
        return Part(name, (*_STEP, *shape, *words), weight)

    def sweep(name: str, jobs: int) -> Part:
        words = (
            f"-m gr_sweep -m -q edges=both seed=range(0,{jobs}) tracking=off train.steps=1000 "
            "route.foreign_dropout=0.5 eval.samples=0 hydra/launcher=local_parallel "
            f"hydra.launcher.jobs_per_device={jobs} hydra.sweep.dir={{folder}}"
        )
        if is_tiny:
            words += " model=tiny train.steps=2 train.sequence_length=32 train.device=cpu"
        return Part(name, tuple(words.split()), 1.5, read_sweep)

    dropouts = ("--dropout", "0", "0.5", "1")
    both = ("--edges", "both", "--dropout", "0.5")
    seven = ("--activation-checkpointing", *both)
    units = "mlp=16,attn=16"
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/test_gpu.py")
    return [
        Part("environment", ("-c", _ENVIRONMENT), 1.5),
        step("compiled", 6, "--compile", "--edges", "both", *dropouts),
        Part("tests", tests, 3, read_tests),
        step("eager", 3.5, *dropouts),
        step("7b", 2, *seven, size="7b", rows=3),
        step("7b, frozen core", 1.5, *seven, "--frozen-core", "--shared", "1", "--adapters", units,
             size="7b", rows=3),
        step("adapters", 1.5, *both, "--adapters", units, "embed=32,unembed=32"),
        step("compiled forget", 3, "--compile", "--plan", "forget", *both),
        sweep("sweep of jobs at once", 2 if is_tiny else 8),
        sweep("sweep of one job", 1),
        step("eager forget", 2, "--plan", "forget", *dropouts),
    ]  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions and devices; in a part's process, as asking for the devices starts CUDA."""
    import torch
    import transformers

    gpus = [torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count())]
    return {
        "gr_sweep": gr_sweep.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "cores": os.cpu_count(),
        "devices": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
    }


def read_tests(output: str, folder: Path, seconds: float) -> dict[str, Any]:
    """pytest's last line, the lines of tests that failed, and where some did all the output."""
    lines = output.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"said": lines[-1].strip("= "), "failed": failed, "output": lines if failed else []}


def read_sweep(output: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Tokens per second of a sweep whose jobs all ran at once."""
    summaries = [read_finished(path.parent) for path in sorted(folder.rglob(SUMMARY))]
    jobs = [summary["metrics"] for summary in summaries if summary is not None]
    tokens, rates = (
        sum(metrics[metric.key] for metrics in jobs)
        for metric in (registry.COST_TRAIN_TOKENS, registry.COST_TOKENS_PER_SECOND)
    )
    return {
        "jobs": len(jobs),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "training_tokens_per_second": rates,
    }


def run_parts(
    found: Sequence[Part], minutes: float, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Runs the parts one after the other and ends within the minutes.

    Args:
        report: called after each part with the results of all parts so far, by name.

    Returns:
        Those of all parts: the status (done, failed, stopped or skipped), the command, seconds, the
        last lines of the error output, and the result, None if there is none.
    """
    end = time.monotonic() + 60 * minutes - RESERVE_S
    results: dict[str, Any] = {}
    for index, part in enumerate(found):
        share = part.weight / sum(other.weight for other in found[index:])
        limit_s = share * (end - time.monotonic())
        if limit_s < LEAST_S:
            results[part.name] = {"status": "skipped", "reason": "no time was left"}
        else:
            results[part.name] = run_part(part, limit_s)
        report(results)
    return results


def run_part(part: Part, limit_s: float) -> dict[str, Any]:
    """Runs a part in a process of its own, for at most `limit_s`."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place) / "jobs"
        words = [word.replace("{folder}", str(folder)) for word in part.words]
        if part.words[:2] == _STEP[:2]:  # ends by itself with what it has
            words += ["--minutes", f"{0.6 * limit_s / 60:.2f}"]
        out, err = Path(place) / "out", Path(place) / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            # Its group has the processes that compile too.
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout,
                stderr=stderr, start_new_session=True,
            )  # fmt: skip
            status, reason = "stopped", f"took longer than {limit_s:.0f} s"
            try:
                if process.wait(limit_s) == 0:
                    status, reason = "done", ""
                else:
                    status, reason = "failed", f"exit status {process.returncode}"
            except subprocess.TimeoutExpired:
                pass
            finally:
                _end(process)
        seconds = time.monotonic() - begun
        notes = err.read_text("utf-8", "replace").strip().splitlines()[-NOTES:]
        try:
            result = part.read(out.read_text("utf-8", "replace"), folder, seconds)
        except Exception as error:  # cut off, or another kind of output: the other parts go on
            result = None
            if status == "done":
                status, reason = "failed", f"its output cannot be read: {error!r}"
    return {
        "status": status, "reason": reason, "command": shlex.join(["python", *words]),
        "seconds": round(seconds, 1), "notes": notes, "result": result,
    }  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the process's group. A sweep stops its jobs, which have other groups."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a section of docs/performance.md."""
    here = results.get("environment", {}).get("result") or {}
    versions = (f"{name} {here.get(name)}" for name in ("torch", "cuda", "transformers"))
    steps, others = [], []
    for name, of in results.items():
        result, notes = of.get("result") or {}, of.get("notes", [])
        steps += [_line(name, row) for row in result.get("rows", ())]
        said = [": ".join(filter(None, (of["status"], of["reason"])))]
        if "said" in result:
            said = [result["said"], *result["failed"]]
        elif "jobs" in result:
            rates = result["training_tokens_per_second"], result["tokens_per_second"]
            said.append("{} jobs".format(result["jobs"]))
            said.append("{:,.0f} tokens/s, {:,.0f} with starts".format(*rates))
        said += notes[-2:] if of["status"] == "failed" else []
        said += [note for note in notes if note.startswith("not measured") and note not in said]
        others.append(f"| {name} | {'; '.join(said).replace('|', '/')} |")
    head = [
        "| part | plan | adapters | edges | foreign dropout | time over dense (limit) | MFU "
        "| tokens/s | peak GiB (estimate) | first step |",
        "|" + "---|" * 10,
    ]
    lines = [", ".join([*(here.get("devices") or ["no GPU"]), *versions]), "", *head, *steps, ""]
    return "\n".join([*lines, "| part | result |", "|---|---|", *others, ""])


def _line(name: str, row: Mapping[str, Any]) -> str:
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.2f}"
    estimate = "-" if row["estimated_gib"] is None else f"{row['estimated_gib']:.1f}"
    is_dense = row["plan"] == "none"
    cells = [
        f"{name} {row['model']}", "dense" if is_dense else row["plan"], row["adapters"],
        row["edges"], "-" if is_dense else f"{row['foreign_dropout']:g}",
        f"{row['ratio']:.2f} ({row['flop_limit']:.2f})", mfu,
        f"{row['tokens_per_second']:,.0f}", f"{row['peak_gib']:.1f} ({estimate})",
        f"{row['first_seconds']:.1f} s",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes FILE and FILE with the suffix `.md`, and prints the latter.

    Raises:
        ConfigError: an invalid option.
        OSError: a file cannot be written.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    names = [part.name for part in parts()]
    parser = Parser("gr-sweep bench gpu", __doc__)
    parser.add_argument("--minutes", type=float, default=25.0, help="ends within these (25)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the results")
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", default=names,
                        help="; ".join(names))  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a CPU: a test")
    options = parser.parse_args(argv)
    if not RESERVE_S < 60 * options.minutes < math.inf:
        raise invalid("--minutes", options.minutes, f"more than {RESERVE_S / 60:.2f}")
    chosen = [part for part in parts(is_tiny=options.tiny) if part.name in options.parts]
    command = shlex.join(["gr-sweep", "bench", "gpu", *argv])

    def report(results: dict[str, Any]) -> None:
        content = {"benchmark": "gpu", "command": command, "parts": results}
        write_whole(options.json, json.dumps(content, indent=1) + "\n")
        write_whole(options.json.with_suffix(".md"), f"`{command}`\n\n{markdown(results)}")
        for name, of in list(results.items())[-1:]:
            print(f"{name}: {of['status']} {of['reason']}".rstrip(), file=sys.stderr)

    # As with Ctrl-C, the part that runs is ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report({})  # a file that cannot be written should fail at once
    print(markdown(run_parts(chosen, options.minutes, report)), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
