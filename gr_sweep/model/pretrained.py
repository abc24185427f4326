"""Pretrained checkpoints: what their files say before anything is loaded, and loading them.

Only `load` needs torch and transformers: a command is checked without them.
"""

import contextlib
import functools
import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.errors import ConfigError, PlanError
from gr_sweep.model.families import FAMILIES
from gr_sweep.model.sizes import Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

_SIZES = {
    "hidden_size": ("n_embd",),
    "intermediate_size": ("n_inner",),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
}
"""Sizes that a plan needs, with the names that GPT-2 and GPT-Neo have for them."""
_LARGEST_SIZE = 1 << 31

_CAUSES = {
    "quantization_config": "its weights are quantised; give the checkpoint it was made from",
    "vision_config": "it reads images; save its language model alone and give that",
}
"""By a key of config.json: why such a model cannot be routed."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Keys of config.json with the number of experts in a layer."""


def read_config(path: str, gguf_file: str | None = None, *, fetch: bool = False) -> Any:
    """The content of a checkpoint's config.json.

    Args:
        path: a folder, or a name on the Hugging Face Hub.
        gguf_file: file in the folder that holds config and weights instead.
        fetch: whether to ask the Hub for a file that is not on this machine.

    Returns:
        A dictionary; None for a GGUF file, and if the file is not on this machine.

    Raises:
        ConfigError: it is neither a folder with a valid config.json nor a name on the Hub.
        PlanError: a model that cannot be routed, with the reason.
    """
    folder = Path(path)
    is_here = os.path.exists(folder) or folder.is_absolute()
    if not is_here and not _HUB_NAME.fullmatch(path):
        raise ConfigError(
            f"invalid value for model.path: {path!r}; expected a folder or a Hugging Face name "
            "(OWNER/NAME)"
        )
    if gguf_file is not None:
        return None
    if not is_here:
        file = _of_hub(path, fetch)
        if file is None:
            return None
        folder = file.parent
    elif (folder / "adapter_config.json").exists():
        raise PlanError(
            f"model.path={path} is an adapter (LoRA), not a model: merge it into its model first "
            "(merge_and_unload and save_pretrained of peft), and give the folder of the result"
        )
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = content.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        better = ""
        if folder.is_file():
            better = f"; give its folder, {folder.parent}"
        for file in [folder, *folder.glob("*.gguf")]:
            if file.suffix == ".gguf":
                better = f"; use model.path={file.parent} model.gguf_file={file.name}"
        raise ConfigError(
            f"model.path={path} is not a checkpoint: config.json cannot be used ({error}){better}"
        ) from error
    _check_family(path, model_type, content)
    return content


def _of_hub(name: str, fetch: bool) -> Path | None:
    """config.json of a model on the Hub; None if it is not on this machine."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
        if not isinstance(found, str) and fetch:
            found = hf_hub_download(name, "config.json")
    except (OSError, HFValidationError, HfHubHTTPError):
        return None  # loading the model says why
    return Path(found) if isinstance(found, str) else None


def _check_family(path: str, model_type: Any, content: dict[str, Any]) -> None:
    causes = [why for key, why in _CAUSES.items() if content.get(key)]
    has_mixture = model_type in FAMILIES and FAMILIES[model_type].mixture
    if any(content.get(key) for key in _EXPERTS) and not has_mixture:
        causes.append("its MLPs are mixtures of experts of another family")
    if content.get("is_encoder_decoder"):
        causes.append("it has an encoder")
    if model_type in FAMILIES and not causes:
        return
    why = f" ({causes[0]})" if causes else ""
    raise PlanError(
        f"model.path={path}: a model of type {model_type!r} cannot be routed{why}; "
        f"expected one of {', '.join(FAMILIES)}"
    )


def shape_of_config(path: str, content: dict[str, Any]) -> Size | None:
    """The sizes in a config.json; None if it leaves some out.

    Raises:
        ConfigError: an impossible size.
    """
    sizes = _SIZES
    if FAMILIES[content["model_type"]].mixture:
        sizes = sizes | {"num_experts": ("num_local_experts",)}
    known = {
        name: content[own]
        for name, others in sizes.items()
        for own in (name, *others)
        if content.get(own) is not None
    }
    if not all(type(n) is int and 0 < n < _LARGEST_SIZE for n in known.values()):
        raise ConfigError(f"model.path={path}: config.json has impossible sizes: {known}")
    if content["model_type"] in ("gpt2", "gpt_neo") and "hidden_size" in known:
        known.setdefault("intermediate_size", 4 * known["hidden_size"])
    if len(known) < len(sizes):
        return None
    heads = known["num_attention_heads"]
    return Size(**known, num_key_value_heads=content.get("num_key_value_heads") or heads)


def check_vocabulary(path: str, vocab_size: int, tokenizer: str, num_tokens: int) -> None:
    """
    Raises:
        PlanError: the model has fewer tokens than the tokenizer.
    """
    if num_tokens > vocab_size:
        better = "leave data.tokenizer out to use the model's own tokenizer"
        if tokenizer == path:
            better = "save the model after resize_token_embeddings"
        raise PlanError(
            f"the tokenizer {tokenizer} has {num_tokens} tokens, but {path} only {vocab_size}; "
            f"{better}"
        )


def check_length(path: str, model_type: str, positions: int | None, length: int) -> None:
    """
    Raises:
        PlanError: the model has learned fewer positions than a training sequence has.
    """
    is_bounded = model_type in FAMILIES and FAMILIES[model_type].learned_positions
    if is_bounded and positions is not None and positions < length:
        raise PlanError(
            f"train.sequence_length={length} is longer than the {positions} positions of {path}"
        )


@functools.lru_cache  # half a second for a large one, and every job of a sweep asks
def tokens_of(folder: Path) -> int | None:
    """Number of tokens of the tokenizer in a folder; None if only loading it can say."""
    try:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        added = [token["id"] for token in content.get("added_tokens") or []]
        return 1 + int(max([*content["model"]["vocab"].values(), *added]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def load(path: str, gguf_file: str | None = None) -> "PreTrainedModel":
    """The model in float32.

    Raises:
        PlanError: it cannot be loaded, or lacks a tensor; transformers would draw it at random.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                gguf_file=gguf_file,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which are refused below, by name
            )
    except load_errors() as error:
        raise unloadable(path, error) from error
    model: PreTrainedModel
    model, found = loaded
    wrong = [
        f"{name} has the shape {[*theirs]} instead of {[*ours]}"
        for name, theirs, ours in sorted(found["mismatched_keys"])
    ]
    wrong += [f"{name} is missing" for name in sorted(found["missing_keys"])]
    if not wrong:
        finite = {name: bool(weight.isfinite().all()) for name, weight in model.named_parameters()}
        wrong = [f"{name} has a number that is not finite" for name in finite if not finite[name]]
    if wrong:
        raise PlanError(f"model.path={path} is not whole: {_some(wrong)}")
    warn_of(path, model, found["unexpected_keys"])
    if gguf_file is not None:
        # The weights are plain numbers now, and files written from this model are not GGUF.
        del model.config.quantization_config
    return model


def unloadable(path: str, error: Exception) -> PlanError:
    """The error that says why a checkpoint cannot be loaded; `error` is one of `load_errors`."""
    # The first line of a failed validation only says which.
    reason = " ".join((str(error) or type(error).__name__).splitlines()[:2])
    if isinstance(error, KeyError):
        reason = f"unknown {reason}"
    return PlanError(f"model.path={path} cannot be loaded: {reason}")


def load_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for a checkpoint that it cannot load."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    of_python = (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError)
    return (
        *of_python,
        ArithmeticError,
        SafetensorError,
        StrictDataclassError,
        pickle.UnpicklingError,
    )


def warn_of(path: str, model: "PreTrainedModel", unexpected: Iterable[str]) -> None:
    """Logs which tensors of a checkpoint its model does not have, and whether it has dropout."""
    if names := sorted(unexpected):
        logger.warning("model.path=%s has tensors that its model does not: %s", path, _some(names))
    rates = {name: rate for name, rate in vars(model.config).items() if "drop" in name}
    of_heads = ("summary", "classifier")  # that a language model does not have
    on = [name for name in rates if rates[name] and not name.startswith(of_heads)]
    if on:
        logger.warning(
            "model.path=%s trains with dropout, whose draws depend on the micro-batches and on the "
            "text; set %s to 0 in config.json to train without",
            path,
            ", ".join(on),
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turns off progress bars and warnings of transformers."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
