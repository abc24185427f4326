"""Makes the components of a job from its config: rows, held-out text, routed model, sampler,
tasks."""

import dataclasses
import functools
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gr_sweep.branch import begins_silent, routing_of, silence_blocks
from gr_sweep.config import Method, ModelConfig, PlanKind, Precision, RunConfig, num_micro_batches
from gr_sweep.config import num_steps as total_steps
from gr_sweep.data.batches import Batches
from gr_sweep.data.heldout import first_documents, heldout_documents
from gr_sweep.data.prepare import TokenData
from gr_sweep.data.rows import step_rows
from gr_sweep.data.sources import check_hub
from gr_sweep.domains import expand
from gr_sweep.errors import JobError, PlanError
from gr_sweep.eval.finetune import recovery
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.removal import WithoutDomain
from gr_sweep.eval.samples import Sampler, choose_prompts
from gr_sweep.eval.tasks import TaskResults, load_tasks, task_metrics
from gr_sweep.eval.text import TrainingText
from gr_sweep.files import sync_folder
from gr_sweep.jobdir import MODEL
from gr_sweep.metrics.losses import Text
from gr_sweep.model.deferred import Deferred, deferred_checkpoint, deferred_random_model
from gr_sweep.model.families import family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.pretrained import (
    check_length,
    load,
    read_config,
    warn_of_dropout,
)
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import llama_config, random_model
from gr_sweep.planning import (
    Phase,
    core_owners,
    make_plan,
    makes_plan_in_training,
    named_shape,
    phases_of,
    plan_before_rounds,
)
from gr_sweep.train.distributed import Processes, mesh_of, rows_of
from gr_sweep.train.step import is_bfloat16

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel


def make_batches(
    config: RunConfig,
    data: TokenData,
    weights: Mapping[str, float] | None = None,
    phase: Phase | None = None,
) -> Batches:
    """The job's training rows; `weights` are those of a round's labels, `phase` is one of
    `branch`."""
    phase, rehearsal = phase or phases_of(config)[0], config.procedure.rehearsal
    trains_blocks = rehearsal > 0 and not phase.is_dense
    return Batches(
        data.train,
        data.domains,
        weights=config.data.weights if weights is None else weights,
        unlabelled=config.partition.unlabelled,
        mislabelled=config.partition.mislabelled,
        batch_sequences=config.train.batch_sequences,
        sequence_length=config.train.sequence_length,
        seed=config.seed,
        without=config.method.without,
        permuted=config.method.name is Method.random,
        drops_observed=config.method.name is Method.filtered_observed,
        only=phase.labels,
        # Domains that both phases of `branch` read go on where the first has stopped.
        first_step=phase.start if config.plan.kind is PlanKind.forget else 0,
        rehearsed=core_owners(config) if trains_blocks else (),
        rehearsal=rehearsal,
    )


def heldout_batches(
    config: RunConfig,
    data: TokenData,
    tokens: int | None,
    *,
    device: torch.device,
    processes: Processes,
    text: Text = Text.plain,
    markers: Mapping[str, np.ndarray] | None = None,
) -> HeldoutBatches:
    """The first held-out documents of each domain, up to `tokens` tokens; None for all. `markers`
    are the token ids of the marker that each domain's documents get."""
    documents = {
        domain: heldout_documents(
            shard,
            tokens=shard.num_tokens + 1 if tokens is None else tokens,
            document_tokens=config.eval.document_tokens,
            sequence_length=config.train.sequence_length,
            begin=data.begin,
            marker=None if markers is None else markers[domain],
        )
        for domain, shard in data.heldout.items()
    }
    return HeldoutBatches(
        documents,
        batch_sequences=config.eval.batch_sequences,
        device=device,
        rank=processes.rank,
        world_size=processes.world_size,
        text=text,
    )


def heldout_read(config: RunConfig, data: TokenData) -> TokenData:
    """The data with only the held-out documents that an evaluation reads."""
    limits = {"tokens": config.eval.tokens, "document_tokens": config.eval.document_tokens}
    shards = data.heldout.items()
    heldout = {d: shard.subset(first_documents(shard, **limits)) for d, shard in shards}
    return dataclasses.replace(data, heldout=heldout)


def defer(config: RunConfig, data: TokenData) -> Deferred | None:
    """The job's model without its weights, of which each of several processes then gets its part;
    None for a checkpoint that has to be loaded whole."""
    if config.model.path is None:
        return deferred_random_model(_model_config(config, data), seed=config.seed)
    if config.model.gguf_file is not None:
        return None
    return deferred_checkpoint(config.model.path)


def _model_config(config: RunConfig, data: TokenData) -> "LlamaConfig":
    found = named_config(config, vocab_size=data.vocab_size, eot_id=data.eot_id)
    found.bos_token_id = data.begin[-1]
    return found


def make_routed(
    config: RunConfig, data: TokenData, deferred: Deferred | None = None
) -> RoutedModel:
    """The routed model, from random weights or a checkpoint.

    Args:
        deferred: from `defer`; its weights are then filled in after the model is sharded.

    Raises:
        PlanError: the checkpoint cannot be loaded, or has fewer tokens than the tokenizer.
    """
    if config.model.path is not None:
        path = config.model.path
        model = deferred.model if deferred else load(path, config.model.gguf_file)
        family_of(model.config)
        warn_of_dropout(path, model.config)
        check_length(
            path,
            model.config.model_type,
            getattr(model.config, "max_position_embeddings", None),
            config.train.sequence_length,
        )
        embeddings: Any = model.get_input_embeddings()
        if data.vocab_size > len(embeddings.weight):
            raise PlanError(
                f"the tokenizer has {data.vocab_size} tokens, but {path} only "
                f"{len(embeddings.weight)}; leave data.tokenizer out to use the model's own, or "
                "save the model after resize_token_embeddings"
            )
    else:
        model = random_model(_model_config(config, data), seed=config.seed)
    routed = lay_plan(model, config)
    if begins_silent(config):
        silence_blocks(routed)
    return routed


def token_cuts(
    config: RunConfig, batches: Batches, vocab_size: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """`RoutedModel.token_cuts` by `route.token_bias`, from the training text with the labels that
    routing sees."""
    if (bias := config.route.token_bias) is None:
        return {}
    cuts = batches.token_cuts(core_owners(config), vocab_size, bias)
    return {label: torch.from_numpy(cut_V).to(device) for label, cut_V in cuts.items()}


def check_model(model: ModelConfig) -> None:
    """Asks the Hub whether a model of it can be routed, before text is tokenised; what is on this
    machine was checked with the command."""
    if model.path is None or model.gguf_file is not None or Path(model.path).exists():
        return
    if read_config(model.path) is None:
        check_hub(f"model {model.path}")
        read_config(model.path, fetch=True)


def check_processes(config: RunConfig, rank: int, world_size: int) -> None:
    """Raises a GrSweepError if these processes cannot run the job together."""
    mesh_of(config.train.mesh, world_size)
    rows_of(rank, world_size, sum(step_rows(config).values()), num_micro_batches(config.train))
    if world_size > 1 and config.eval.tasks:
        raise JobError("eval.tasks needs the whole model in one process; export and run lm_eval")


def named_config(config: RunConfig, *, vocab_size: int, eot_id: int) -> "LlamaConfig":
    """The Hugging Face config of the job's named size."""
    return llama_config(
        named_shape(config),
        vocab_size=vocab_size,
        eot_id=eot_id,
        sequence_length=config.train.sequence_length,
    )


def make_sampler(
    config: RunConfig,
    data: TokenData,
    routed: RoutedModel,
    token_losses: TokenLosses,
) -> Sampler:
    """Writes continuations of the first held-out documents of every domain."""
    from transformers import AutoTokenizer

    length = config.train.sequence_length
    return Sampler(
        routed=routed,
        token_losses=token_losses,
        prompts=choose_prompts(data.heldout, config.eval, length),
        config=config.eval,
        tokenizer=AutoTokenizer.from_pretrained(data.tokenizer_dir, trust_remote_code=False),
        begin=data.begin,
        eot_id=data.eot_id,
        sequence_length=length,
        seed=config.seed,
    )


def make_tasks(
    config: RunConfig, data: TokenData, routed: RoutedModel, token_losses: TokenLosses
) -> Callable[[WithoutDomain | None], TaskResults]:
    """Loads `eval.tasks`. The function that runs them in every view returns their metrics and
    intervals."""
    if not config.eval.tasks:
        return lambda recovered: ({}, {})
    from transformers import AutoTokenizer

    return functools.partial(
        task_metrics,
        routed,
        token_losses,
        AutoTokenizer.from_pretrained(data.tokenizer_dir, trust_remote_code=False),
        load_tasks(config.eval.tasks, config.seed),
        config.eval.batch_sequences,
        config.eval.task_limit,
    )


def lay_plan(
    model: "PreTrainedModel", config: RunConfig, phase: Phase | None = None
) -> RoutedModel:
    """Routes a model by the job's plan, as in a phase (None: the first); with rounds, by that
    before them."""
    if makes_plan_in_training(config):
        plan = plan_before_rounds(config, model.config)
        return route_model(model, plan, "none", seed=config.seed)
    plan = make_plan(config, model.config)
    routed = route_model(model, plan, **routing_of(config, plan, phase or phases_of(config)[0]))
    if config.route.token_bias is not None:
        # Of text that is not read here: `token_cuts`.
        cut_V = torch.ones(model.config.vocab_size, device=model.device)
        routed.token_cuts = dict.fromkeys(plan.domains, cut_V)
    return routed


def save_model_files(folder: Path, model: "PreTrainedModel", tokenizer_dir: Path) -> None:
    """Writes `model/` into a job's folder, whole, for an export: the model's configs and the
    tokenizer. An existing `model/` belongs to this job and is kept."""
    if (folder / MODEL).exists():
        return
    beside = folder / f".{MODEL}.tmp"
    shutil.rmtree(beside, ignore_errors=True)  # of an attempt that was killed
    shutil.copytree(tokenizer_dir, beside)
    config: Any = model.config
    config.save_pretrained(beside)
    if model.can_generate():
        generation: Any = model.generation_config
        # `save_pretrained` refuses what some published models have.
        generation.to_json_file(beside / "generation_config.json")
    sync_folder(beside)
    beside.replace(folder / MODEL)


def make_recovery(
    config: RunConfig,
    routed: RoutedModel,
    token_losses: TokenLosses,
    batches: Batches,
    *,
    num_steps: int,
) -> WithoutDomain | None:
    """Contexts in which the model without a domain has trained on the other domains' text, for
    `num_steps` after those of training; None if that is 0."""
    first_step, domains = total_steps(config.train) - num_steps, list(config.partition.domains)

    def rows_without(part: str) -> Callable[[int], np.ndarray] | None:
        others = [domain for domain in domains if domain not in expand([part], domains)]
        if not (labels := [domain for domain in others if batches.counts[domain]]):
            return None
        return lambda step: batches.labelled(first_step + step, labels)

    return recovery(
        routed,
        token_losses,
        rows_without,
        num_steps,
        lr=config.train.lr,
        seed=config.seed,
        micro_batch_sequences=config.train.micro_batch_sequences or config.train.batch_sequences,
    )


def training_text(config: RunConfig, data: TokenData, weights: Mapping[str, float]) -> TrainingText:
    """Training text for what comes after training; `weights` are those of its domains."""
    train = config.train
    rows = train.micro_batch_sequences or train.batch_sequences
    return TrainingText(data.train, train.sequence_length, rows, config.seed, weights)


def environment(device: torch.device, num_processes: int, precision: Precision) -> dict[str, Any]:
    """Versions, hardware and products of the job."""
    import transformers

    from gr_sweep import __version__

    return {
        "gr_sweep": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processes": num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if is_bfloat16(device, precision) else "float32",
        "platform": sys.platform,
    }
