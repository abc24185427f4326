"""What a job is made of, from its config: micro-batches, held-out text, the routed model, and what
samples it.

Nothing here trains, evaluates or writes.
"""

import dataclasses
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gr_sweep.config import Method, ProcedureKind, RunConfig
from gr_sweep.data.batches import Batches, first_documents, heldout_chunks
from gr_sweep.data.markers import swapped_markers
from gr_sweep.data.prepare import TokenData
from gr_sweep.errors import PlanError
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.samples import Sampler, choose_prompts
from gr_sweep.layout import labels_of_rounds, make_plan, named_shape
from gr_sweep.metrics.losses import Text
from gr_sweep.model.families import family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import llama_config, random_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.distributed import Processes

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel


def make_batches(
    config: RunConfig, data: TokenData, weights: Mapping[str, float] | None = None
) -> Batches:
    """The job's micro-batches, or with weights of other labels those of a round. Who sees label
    noise, `config.effective` says."""
    return Batches(
        data.train,
        data.domains,
        weights=config.data.weights if weights is None else weights,
        unlabelled=config.partition.unlabelled,
        mislabelled=config.partition.mislabelled,
        batch_sequences=config.train.batch_sequences,
        micro_batch_sequences=config.train.micro_batch_sequences,
        sequence_length=config.train.sequence_length,
        seed=config.seed,
        without=config.method.without,
        permuted=config.method.name is Method.random,
        drops_observed=config.method.name is Method.filtered_observed,
    )


def heldout_batches(
    config: RunConfig,
    data: TokenData,
    tokens: int | None,
    device: torch.device,
    processes: Processes,
    text: Text = Text.plain,
    markers: Mapping[str, np.ndarray] | None = None,
) -> HeldoutBatches:
    """The first held-out documents of every domain that have so many tokens, or all; with the
    marker that `markers` has for the domain, if any."""
    chunks = {
        domain: heldout_chunks(
            shard,
            tokens=shard.num_tokens + 1 if tokens is None else tokens,
            document_tokens=config.eval.document_tokens,
            sequence_length=config.train.sequence_length,
            eot_id=data.eot_id,
            marker=None if markers is None else markers[domain],
        )
        for domain, shard in data.heldout.items()
    }
    return HeldoutBatches(
        chunks,
        batch_sequences=config.eval.batch_sequences,
        device=device,
        rank=processes.rank,
        world_size=processes.world_size,
        text=text,
    )


def heldout_read(config: RunConfig, data: TokenData) -> TokenData:
    """The same with those held-out documents alone that an evaluation reads."""
    heldout = {
        domain: shard.subset(
            first_documents(
                shard, tokens=config.eval.tokens, document_tokens=config.eval.document_tokens
            )
        )
        for domain, shard in data.heldout.items()
    }
    return dataclasses.replace(data, heldout=heldout)


def marked_texts(data: TokenData) -> dict[Text, Mapping[str, np.ndarray]]:
    """The versions of held-out text with a marker, where training text has one."""
    if not data.markers:
        return {}
    return {Text.marked: data.markers, Text.swapped: swapped_markers(data.markers)}


def make_routed(config: RunConfig, data: TokenData) -> RoutedModel:
    """The model, from random weights or a checkpoint, with its plan laid over it."""
    if config.model.path is not None:
        model = _pretrained(config.model.path, config.model.gguf_file)
        family_of(model.config)
        embeddings: Any = model.get_input_embeddings()
        vocab_size = embeddings.weight.shape[0]
        if data.vocab_size > vocab_size:
            raise PlanError(
                f"the tokenizer has {data.vocab_size} tokens, {config.model.path} {vocab_size};"
                " leave data.tokenizer out to use the model's own"
            )
    else:
        model_config = named_config(config, vocab_size=data.vocab_size, eot_id=data.eot_id)
        model = random_model(model_config, seed=config.seed)
    return lay_plan(model, config)


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
    device: torch.device,
    *,
    is_shared: bool,
) -> Sampler:
    """What goes on with the first held-out documents of every domain."""
    from transformers import AutoTokenizer

    length = config.train.sequence_length
    prompts = choose_prompts(
        data.heldout,
        number=config.eval.samples,
        prompt_tokens=config.eval.sample_prompt_tokens,
        sample_tokens=config.eval.sample_tokens,
        sequence_length=length,
    )
    return Sampler(
        routed,
        token_losses,
        prompts,
        tokenizer=AutoTokenizer.from_pretrained(data.tokenizer_dir, trust_remote_code=False),
        eot_id=data.eot_id,
        sample_tokens=config.eval.sample_tokens,
        sequence_length=length,
        batch_sequences=config.eval.batch_sequences,
        seed=config.seed,
        device=device,
        is_shared=is_shared,
    )


def lay_plan(model: "PreTrainedModel", config: RunConfig) -> RoutedModel:
    """The model with the job's plan laid over it; none where training makes the plan."""
    if config.procedure.name is ProcedureKind.alternate:
        return route_model(model, RoutePlan.none(domains=labels_of_rounds(config)[0]), "none")
    plan = make_plan(config, model.config)
    return route_model(model, plan, config.edges, **route_settings(config))


def route_settings(config: RunConfig) -> dict[str, Any]:
    """Foreign dropout and route weights, as `route_model` takes them."""
    return dataclasses.asdict(config.route)


def _pretrained(path: str, gguf_file: str | None) -> "PreTrainedModel":
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, gguf_file=gguf_file, dtype=torch.float32, trust_remote_code=False
        )
    except (
        *(OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError),
        *(SafetensorError, StrictDataclassError, pickle.UnpicklingError),
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PlanError(f"model.path={path} cannot be loaded: {reason}") from error
    if gguf_file is not None:
        # They are plain numbers now, and what is written of this model is no GGUF file.
        del model.config.quantization_config
    return model
