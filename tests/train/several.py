"""Small jobs that any number of processes can run, and a program that runs them in two.

    python -m tests.train.several PORT FOLDER

leaves in FOLDER/<case>.json the rows that the main process logged, and in FOLDER/<case>/ the
checkpoints.
"""

import functools
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gr_sweep.config import Device, Precision, TrainConfig
from gr_sweep.data.batches import Batches
from gr_sweep.errors import DataError
from gr_sweep.eval.removal import removal_losses
from gr_sweep.model.deferred import Deferred, deferred_random_model
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.model.units import keep_bfloat16
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.checkpoint import Checkpoints
from gr_sweep.train.distributed import Processes, connect
from gr_sweep.train.loop import Trainer
from gr_sweep.train.signals import Stopped, StopSignals
from gr_sweep.train.step import is_bfloat16, precision_context, shard
from tests.eval import several as evaluation
from tests.eval.tiny import DOMAINS, VOCAB, held_out, shards
from tests.model.tiny import tiny_model
from tests.train.test_loop import Rows

# 27 hidden units and three layers: nothing divides by two but the heads.
SHAPE = Size(16, 27, 3, 4, 4)
STEPS = 4
BATCH = {"batch_sequences": 32, "micro_batch_sequences": 16}


@dataclass
class Case:
    """What a job is made of."""

    edges: str
    foreign_dropout: float
    kind: str = "peers"
    layers: tuple[int, ...] = (0, 1, 2)
    is_tied: bool = False
    family: str = "llama"
    core_frozen: bool = False
    adapters: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


ADAPTERS = {"embed": 3, "unembed": 3, "attn": 1, "mlp": 3}
CASES = {
    "both": Case("both", 0.5, adapters=ADAPTERS),
    "forget": Case("weight", 1.0, kind="forget"),
    "frozen": Case("both", 0.5, family="gpt2", core_frozen=True, train={"block_lr": 2.0}),
    "tied": Case(
        *("act", 0.5),
        is_tied=True,
        adapters={"embed": "full", "unembed": "full", "bias": True},
        train={"activation_checkpointing": True},
    ),
    "experts": Case(
        *("weight", 0.5),
        kind="forget",
        family="mixtral",
        train={"activation_checkpointing": True},
    ),
    "compiled": Case("both", 0.0, layers=(1, 2), train={"compile": True}),
    "replicated": Case("both", 0.5, adapters=ADAPTERS, train={"mesh": [2, 1]}),
    "mesh": Case("both", 0.5, adapters=ADAPTERS, train={"mesh": [2, 2]}),
    "narrow": Case(
        *("both", 0.5),
        core_frozen=True,
        adapters={"embed": 3, "unembed": 3, "mlp": 3},
        train={"precision": Precision.bfloat16},
    ),
    "bfloat16": Case("both", 0.5, adapters=ADAPTERS, train={"precision": Precision.bfloat16}),
}
FOUR = ("mesh",)
"""Cases for four processes."""
SLOW = ("bfloat16", "compiled")


def make_routed(case: Case, *, defers: bool = False) -> tuple[RoutedModel, Deferred | None]:
    """The routed model; with `defers` and random weights these come after it is sharded."""
    config = llama_config(SHAPE, vocab_size=VOCAB, eot_id=0, sequence_length=8)
    if case.family != "llama":
        config = tiny_model(case.family, num_hidden_layers=3).config
    config.tie_word_embeddings = case.is_tied
    forget = {"forget": ["biology"]} if case.kind == "forget" else {}
    plan = RoutePlan.make(
        *(case.kind, config),
        domains=DOMAINS,
        attn_shared=0.25,
        layers=case.layers,
        adapters=case.adapters,
        **forget,
    )
    deferred = None
    if defers and not case.core_frozen:
        deferred = deferred_random_model(config, seed=0)
    model = random_model(config, seed=0) if deferred is None else deferred.model
    if case.core_frozen:
        model = model.bfloat16().float()  # as in a checkpoint
    routed = route_model(
        model,
        plan,
        case.edges,
        foreign_dropout=case.foreign_dropout,
        core_frozen=case.core_frozen,
    )
    return routed, deferred


def make_batches() -> Batches:
    """32 rows a step: 10 of each domain and two unlabelled ones. Each of two processes has some of
    biology's rows, so the foreign dropout of one row group is divided."""
    return Batches(
        shards(40),
        DOMAINS,
        weights={},
        unlabelled=0.0625,
        mislabelled=0.0,
        batch_sequences=32,
        sequence_length=6,
        seed=0,
    )


def train_case(
    case: Case,
    folder: Path,
    processes: Processes | None = None,
    *,
    signals: StopSignals | None = None,
    signal_in_step: int | None = None,
) -> list[Any]:
    """Rows of a run of STEPS steps, resumed if the folder has a checkpoint. In `signal_in_step`
    this process gets SIGUSR2."""
    processes, tracker, cpu = processes or Processes(), Rows(), torch.device("cpu")
    config = TrainConfig(
        **BATCH,
        **{"steps": STEPS, "log_every": 1, "checkpoint_every": 2, "max_norm": 0.5}
        | {"precision": Precision.float32, "sequence_length": 6}
        | case.train,
    )
    routed, deferred = make_routed(case, defers=processes.are_several)
    clip, steps = routed.clip_grad_norm_, itertools.count(1)

    def clip_and_send(max_norm: float | None) -> Any:
        if next(steps) == signal_in_step:
            os.kill(os.getpid(), signal.SIGUSR2)
        return clip(max_norm)

    routed.clip_grad_norm_ = clip_and_send  # type: ignore[method-assign]
    token_losses = TokenLosses(routed)
    if is_bfloat16(cpu, config.precision):
        keep_bfloat16(routed.model)
    if processes.are_several:
        shard(token_losses, config, cpu)
    if deferred is not None:
        deferred.fill(routed, token_losses, cpu)
    windows = held_out(4, rank=processes.rank, world_size=processes.world_size)

    def evaluate(is_last: bool) -> dict[str, float]:
        with precision_context(cpu, config.precision):
            rows = removal_losses(routed, token_losses, windows)
        return {f"eval/{index}": row.loss_nats for index, row in enumerate(rows)}

    checkpoints = Checkpoints(folder, keep=2, fingerprint="x", processes=processes)
    trainer = Trainer(
        routed=routed,
        token_losses=token_losses,
        config=config,
        seed=0,
        eval_every=STEPS,
        evaluate=evaluate,
        tracker=tracker,
        checkpoints=checkpoints,
        device=cpu,
        processes=processes,
        signals=signals or StopSignals(),
    )
    trainer.start(routed.plan)
    trainer.run(make_batches())
    return list(tracker)


def raised_by(processes: Processes, work: Callable[[], Any]) -> list[str]:
    """What each process raises, by rank."""
    said = "nothing"
    try:
        work()
    except (Exception, Stopped) as error:
        said = f"{type(error).__name__}: {error}"
    everyone: list[Any] = [None] * processes.world_size
    torch.distributed.all_gather_object(everyone, said)
    return everyone


def fail(error: Exception | None) -> None:
    if error is not None:
        raise error


def graphs_and_breaks() -> list[int]:
    """Number of graphs that Dynamo has compiled, and of graph breaks, since the last call."""
    counters = torch._dynamo.utils.counters
    found = [counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())]
    counters.clear()
    return found


def stopped(folder: Path, processes: Processes) -> list[Any]:
    """What each process raises in a run in which the last one gets a signal in step 1; then the
    names of the checkpoints, and the rows of the resumed run."""
    signals, case = StopSignals(), CASES["both"]
    step = 1 if processes.rank == processes.world_size - 1 else None

    def work() -> None:
        with signals.listening():
            train_case(case, folder, processes, signals=signals, signal_in_step=step)

    everyone = raised_by(processes, work)
    saved = processes.from_main(lambda: sorted(path.name for path in folder.iterdir()))
    return [everyone, saved, train_case(case, folder, processes)]


def main(folder: Path, names: list[str]) -> None:
    """Runs these cases; without names all but the slow ones, and what else the tests ask."""
    torch.set_num_threads(1)
    # What the compiler makes of a graph is not the question here.
    torch.compile = functools.partial(torch.compile, backend="eager")
    processes = connect()
    with processes.joined(Device.cpu):
        results: dict[str, Any] = {
            name: train_case(CASES[name], folder / name, processes)
            for name in names or [name for name in CASES if name not in (*SLOW, *FOUR)]
        }
        if names:
            results["graphs and breaks"] = graphs_and_breaks()
        else:
            results |= more_results(folder, processes)
    if not names:
        # A second job in the same processes.
        with processes.joined(Device.cpu):
            results["from one"] = train_case(CASES["both"], folder / "from one", processes)
    if processes.is_main:
        for name, rows in results.items():
            (folder / f"{name}.json").write_text(json.dumps(rows))


def more_results(folder: Path, processes: Processes) -> dict[str, Any]:
    results: dict[str, Any] = {
        "evaluation": evaluation.evaluate(processes),
        "stopped": stopped(folder / "stopped", processes),
    }
    diverges = Case("both", 0.5, train={"lr": 1e30, "max_norm": None})
    bad, other = DataError("bad text"), None if processes.is_main else DataError("mine")
    for name, work in {
        "not finite": lambda: train_case(diverges, folder / "not finite", processes),
        "told": lambda: processes.from_main(lambda: fail(bad)),
        "one": lambda: processes.together(lambda: fail(other)),
    }.items():
        results[name] = raised_by(processes, work)
    return results


if __name__ == "__main__":
    number, rank, children = int(os.environ.get("PROCESSES", "2")), 0, list[int]()
    for other in range(1, number):
        child = os.fork()  # after the imports, which take longer than the cases
        if child == 0:
            rank, children = other, []
            break
        children.append(child)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
    main(Path(sys.argv[2]), sys.argv[3:])
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, statuses), default=0))
