"""Tasks of EleutherAI's lm-evaluation-harness, in every view of the model.

K networks that are served, N rows of a batch, T positions, V tokens of the vocabulary.
"""

import contextlib
import io
import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import torch
import yaml
from torch import Tensor

from gr_sweep.errors import ConfigError
from gr_sweep.eval.removal import Off, WithoutDomain, networks_of, served_networks
from gr_sweep.metrics import registry
from gr_sweep.metrics.losses import View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel

_FAILURES = (OSError, ValueError, TypeError, KeyError, RuntimeError, yaml.YAMLError)
"""What the harness and `datasets` raise for tasks and data that cannot be loaded."""
_RESAMPLES = 1000
"""For the standard errors of measures that have no formula."""
_NORMAL_95 = 1.96
"""Half of the 95 % interval of a normal distribution, in standard errors."""

TaskResults = tuple[dict[str, float], dict[str, tuple[float, float]]]
"""Metrics, and 95 % intervals, by key."""


def load_tasks(names: Sequence[str], seed: int) -> Any:
    """The tasks as the harness holds them, with their documents.

    Args:
        names: names that the harness knows, or YAML files of tasks.
        seed: of the choice of few-shot examples.

    Raises:
        ConfigError: a task that cannot be loaded, or that lets the model write text.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            loaded = TaskManager().load([_task(name) for name in names])
        for task in loaded["tasks"].values():
            if task.get_config("output_type") == "generate_until":
                raise ValueError("tasks that let the model write text are not supported")
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
    except _FAILURES as error:
        said = " ".join(str(error).split()) or repr(error)
        raise ConfigError(f"eval.tasks=[{','.join(names)}]: {said}") from error
    return loaded


def task_metrics(
    routed: RoutedModel,
    token_losses: TokenLosses,
    tokenizer: Any,
    tasks: Any,
    batch_size: int,
    limit: int | None = None,
    recovered: WithoutDomain | None = None,
) -> TaskResults:
    """Results of the tasks by key (`registry.TASK`), and 95 % intervals from the harness's standard
    errors, of the full and the served model, each domain kept alone, and the model without each.

    Args:
        tokenizer: a Hugging Face tokenizer.
        tasks: from `load_tasks`.
        limit: documents of a task that are read; None reads all.
        recovered: as in `removal_losses`.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    class ViewOfModel(HFLM):  # type: ignore[misc]
        served: Sequence[Off] = ()
        """The networks that are mixed; none for the model as it is."""

        def _model_call(self, inps: Tensor, *_: Any, **__: Any) -> Tensor:
            each = []
            for off in self.served or [()]:
                with torch.no_grad(), routed.blocks_off(off) if off else contextlib.nullcontext():
                    each.append(token_losses.call(lambda: routed.model(input_ids=inps).logits))
            return mixed_log_probabilities(each, inps) if self.served else each[0]

    routed.model.eval()
    how = {"backend": "causal", "batch_size": batch_size}
    lm = ViewOfModel(pretrained=routed.model, tokenizer=tokenizer, **how)
    results: TaskResults = {}, {}

    def read(views: Sequence[str]) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            found = evaluate(lm, tasks, limit=limit, bootstrap_iters=_RESAMPLES, log_samples=False)
        for view in views:
            _add(found["results"], view, *results)

    for network, views in networks_of(routed.plan, recovers=recovered is not None).items():
        names = [f"{view}/{part}".rstrip("/") for view, part in views if view is not View.off]
        if names:
            with network.active(routed, recovered):
                read(names)
    if len(routed.plan.blocks) > 1:
        lm.served = served_networks(routed.plan)
        read([View.served.value])
    return results


def _add(
    results: Mapping[str, Mapping[str, Any]],
    view: str,
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]],
) -> None:
    """Adds what the harness found in a view: `acc,none` is a measure and the name of a filter."""
    for task, found in results.items():
        for name, value in found.items():
            measure, _, kind = name.partition(",")
            if not kind or measure.endswith("_stderr") or not _is_finite(value):
                continue
            key = registry.TASK(task, view, measure if kind == "none" else f"{measure}@{kind}")
            metrics[key] = float(value)
            error = found.get(f"{measure}_stderr,{kind}")
            if _is_finite(error):
                half = _NORMAL_95 * float(error)
                intervals[key] = (float(value) - half, float(value) + half)


def _is_finite(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, of numpy's too."""
    return isinstance(value, Real) and math.isfinite(value)


def _task(name: str) -> Any:
    """What the harness takes: the name, or the content of a task's file. Paths of data files in it
    are relative to its folder."""
    if not name.endswith((".yaml", ".yml")):
        return name
    content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    files = content.get("dataset_kwargs", {}).get("data_files")
    if isinstance(files, dict):
        folder = Path(name).parent
        content["dataset_kwargs"]["data_files"] = {k: str(folder / v) for k, v in files.items()}
    return content


def mixed_log_probabilities(logits_KNTV: Sequence[Tensor], ids_NT: Tensor) -> Tensor:
    """Log-probabilities of the next token under the networks, mixed by their posterior over the
    tokens read so far, float32 [N, T, V]: the served model, as `served_losses` defines it."""
    log_p_KNTV = torch.stack([logits.float().log_softmax(-1) for logits in logits_KNTV])
    next_KNT1 = ids_NT[None, :, 1:, None].expand(len(log_p_KNTV), -1, -1, -1)
    read_KNT = log_p_KNTV[:, :, :-1].gather(-1, next_KNT1).squeeze(-1).cumsum(-1)
    posterior_KNT = torch.nn.functional.pad(read_KNT, (1, 0)).log_softmax(0)
    return (log_p_KNTV + posterior_KNT[..., None]).logsumexp(0)
