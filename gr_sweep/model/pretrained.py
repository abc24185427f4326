"""Pretrained checkpoints: what their files say before anything is loaded, and loading them.

Only `load` needs torch and transformers: a command is checked without them.
"""

import contextlib
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.errors import ConfigError, PlanError
from gr_sweep.model.families import FAMILIES
from gr_sweep.model.sizes import Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_SIZES = {
    "hidden_size": ("n_embd",),
    "intermediate_size": ("n_inner",),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
}
"""Sizes that a plan needs, with the names that GPT-2 and GPT-Neo have for them."""


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
        PlanError: a model that cannot be routed.
    """
    folder = Path(path)
    if gguf_file is not None:
        return None
    if not folder.exists() and not folder.is_absolute():
        file = _of_hub(path, fetch)
        if file is None:
            return None
        folder = file.parent
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = content.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        better = ""
        if (folder / "adapter_config.json").exists():
            better = "; it is an adapter (LoRA): merge it into its model first"
        for file in [folder, *folder.glob("*.gguf")]:
            if file.suffix == ".gguf":
                better = f"; use model.path={file.parent} model.gguf_file={file.name}"
        raise ConfigError(
            f"model.path={path} is not a checkpoint: config.json cannot be used ({error}){better}"
        ) from error
    if content.get("quantization_config"):
        raise PlanError(
            f"model.path={path}: its weights are quantised; give the checkpoint it was made from"
        )
    if model_type not in FAMILIES:
        raise PlanError(
            f"model.path={path}: a model of type {model_type!r} cannot be routed; expected one of "
            f"{', '.join(FAMILIES)}"
        )
    return content


def _of_hub(name: str, fetch: bool) -> Path | None:
    """config.json of a model on the Hub; None if it is not on this machine."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
        if not isinstance(found, str) and fetch:
            found = hf_hub_download(name, "config.json")
    except HFValidationError as error:
        raise ConfigError(
            f"invalid value for model.path: {name!r}; expected a folder or a Hugging Face name "
            "(OWNER/NAME)"
        ) from error
    except (OSError, HfHubHTTPError):
        return None  # loading the model says why
    return Path(found) if isinstance(found, str) else None


def shape_of_config(content: dict[str, Any]) -> Size | None:
    """The sizes in a config.json; None if it leaves some out."""
    sizes = _SIZES
    if FAMILIES[content["model_type"]].mixture:
        sizes = sizes | {"num_experts": ("num_local_experts",)}
    known = {
        name: content[own]
        for name, others in sizes.items()
        for own in (name, *others)
        if content.get(own) is not None
    }
    if content["model_type"] in ("gpt2", "gpt_neo") and "hidden_size" in known:
        known.setdefault("intermediate_size", 4 * known["hidden_size"])
    if len(known) < len(sizes):
        return None
    heads = known["num_attention_heads"]
    return Size(**known, num_key_value_heads=content.get("num_key_value_heads") or heads)


def check_length(path: str, model_type: str, positions: int | None, length: int) -> None:
    """
    Raises:
        PlanError: the model has learned fewer positions than a training sequence has.
    """
    if FAMILIES[model_type].learned_positions and positions is not None and positions < length:
        raise PlanError(
            f"train.sequence_length={length} is longer than the {positions} positions of {path}"
        )


def load(path: str, gguf_file: str | None = None) -> "PreTrainedModel":
    """The model in float32.

    Raises:
        PlanError: it cannot be loaded, has numbers that are not finite, or lacks a tensor, which
            transformers would draw at random.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with loading(f"model.path={path}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            gguf_file=gguf_file,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are refused below, by name
        )
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
        raise PlanError(f"model.path={path} is not whole: {', '.join(wrong[:3])}")
    if gguf_file is not None:
        # The weights are plain numbers now, and files written from this model are not GGUF.
        del model.config.quantization_config
    return model


def warn_of_dropout(path: str, config: Any) -> None:
    """Warns if a model has dropout."""
    rates = {name: rate for name, rate in vars(config).items() if "drop" in name and rate}
    of_heads = ("summary", "classifier")  # that a language model does not have
    if on := [name for name in rates if not name.startswith(of_heads)]:
        logger.warning(
            "model.path=%s trains with dropout, whose draws depend on the micro-batches and on the "
            "text; set %s to 0 in config.json to train without",
            path,
            ", ".join(on),
        )


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Inside, transformers is quiet, and its errors for a checkpoint that it cannot load become a
    PlanError that says what."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            yield
    except (
        *(OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, ArithmeticError),
        *(SafetensorError, StrictDataclassError, pickle.UnpicklingError),
    ) as error:
        reason = " ".join((str(error) or type(error).__name__).splitlines()[:2])
        raise PlanError(f"{what} cannot be loaded: {reason}") from error


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
