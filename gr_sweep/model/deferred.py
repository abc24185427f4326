"""Models whose weights come later: each process of several holds only its own part of them.

Parameters begin on the meta device, which has shapes and no data. Once the model is routed and
sharded, `Deferred.fill` reads or draws one whole parameter at a time and keeps the local rows.
"""

import contextlib
import ctypes
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gr_sweep.errors import PlanError
from gr_sweep.model.pretrained import loading
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.sizes import random_model
from gr_sweep.model.units import UnitLinear, local_part, reorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Put = Callable[[str, Any], None]
"""Takes the name of a parameter and its values: a tensor, or what gives one when it is sliced."""

_DRAWS = {
    torch.ops.aten.normal_.default,
    torch.ops.aten.uniform_.default,
    torch.ops.aten.fill_.Scalar,
    torch.ops.aten.zero_.default,
}


class _OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, `torch.empty` makes tensors on the meta device; tensors made in other ways are real.

    Modules make a parameter by `empty` and then draw it, once or more.
    """

    def __init__(self, on_draw: Callable[[Tensor, Callable[[], Tensor]], Any]) -> None:
        """`on_draw`: gets each tensor that is drawn and a function that draws it, whole and real,
        which advances the generator."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_draw = on_draw

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            return func(*args, **kwargs | {"device": "meta"})
        if not func._schema.is_mutable or not getattr(args[0], "is_meta", False):
            return func(*args, **kwargs)
        tensor, *more = args

        def draw() -> Tensor:
            assert func in _DRAWS, f"{func} initialises a parameter that has no data yet"
            whole = torch.empty(tensor.shape, dtype=tensor.dtype)
            func(whole, *more, **kwargs)
            return whole

        self._on_draw(tensor, draw)
        return tensor


@dataclass(frozen=True)
class Deferred:
    """A model with parameters on the meta device, and where their values come from."""

    model: "PreTrainedModel"
    read: Callable[[Put], None]
    """Gives every parameter, in any order."""
    is_bfloat16: Callable[[str], bool] = lambda name: False
    """Whether a parameter is stored in bfloat16."""

    @torch.no_grad()
    def fill(self, routed: RoutedModel, root: nn.Module, device: torch.device) -> None:
        """Gives the model its weights, in the plan's order.

        Args:
            routed: the model, routed and sharded on the device. Adapters have their weights.
            root: the module around it that is sharded as a whole.

        Raises:
            PlanError: a checkpoint can no longer be read, or has a number that is not finite.
        """
        empty = {name for name, tensor in routed.model.named_parameters() if tensor.is_meta}
        apply: Any = root._apply
        apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
        parameters = dict(routed.model.named_parameters())
        orders: dict[int, list[tuple[UnitLinear, int]]] = {}
        for linear in routed.unit_linears:
            for tensor, dim in linear.ordered:
                orders.setdefault(id(tensor), []).append((linear, dim))

        def put(name: str, values: Any) -> None:
            parameter = parameters[name]
            for linear, dim in orders.get(id(parameter), []):
                if linear.split.order is not None:
                    values = values[:]
                    reorder(values, linear, dim)
            local, first = local_part(parameter)
            if len(local):
                local.copy_(values[first : first + len(local)])
            empty.discard(name)
            _trim()

        self.read(put)
        assert not empty, f"never initialised: {', '.join(sorted(empty))}"


def _trim() -> None:
    """Returns freed memory to the system. glibc keeps what lies between small objects on its heap,
    in sum as much as the whole model."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def deferred_random_model(config: Any, *, seed: int) -> Deferred:
    """`random_model`, with the same weights: each process draws all of them and keeps its part."""
    drawn: list[Tensor] = []
    with _OnMeta(lambda tensor, draw: drawn.append(tensor)):
        model = random_model(config, seed=seed)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names.get(id(tensor)) for tensor in drawn]  # None: replaced by a tied parameter
    last = {name: index for index, name in enumerate(order)}

    def read(put: Put) -> None:
        indices = itertools.count()

        def take(tensor: Tensor, draw: Callable[[], Tensor]) -> None:
            index = next(indices)
            whole = draw()  # also if it is drawn again later: the generator goes on
            _trim()
            name = order[index]
            if name is not None and last[name] == index:
                put(name, whole)

        with _OnMeta(take):
            random_model(config, seed=seed)

    return Deferred(model, read)


_FLOATS = ("F32", "F16", "BF16")
_OTHER_NAMES = {"lm_head.weight": "embed_out.weight"}
"""Of GPT-NeoX."""


@dataclass(frozen=True)
class _Stored:
    """A tensor in a safetensors file; slicing it reads these rows."""

    path: str
    file: str
    key: str
    shape: tuple[int, ...]
    dtype: str

    def __getitem__(self, rows: slice) -> Tensor:
        # The file is open only here: its pages count as this process's memory.
        with loading(f"model.path={self.path}"), safe_open(self.file, "pt") as file:
            values: Tensor = file.get_slice(self.key)[rows]
        if not values.isfinite().all():
            raise PlanError(
                f"model.path={self.path} is not whole: {self.key} has a number that is not finite"
            )
        return values


def deferred_checkpoint(path: str) -> Deferred | None:
    """The model of a checkpoint in safetensors files, of which each process reads its own slices.

    Returns:
        None if `pretrained.load` has to read it whole: another format, tensors that are missing or
        have other names or shapes than those of the model, or a file that cannot be read.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        with loading(path):
            stored = _stored(path)
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            with _OnMeta(lambda tensor, draw: None):
                model: Any = random_model(config, seed=0).eval()
            with contextlib.suppress(OSError):  # there is none
                model.generation_config = GenerationConfig.from_pretrained(path)
    except PlanError:
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, _Stored] = {}
    for alias, parameter in model.named_parameters(remove_duplicate=False):
        short = alias.removeprefix(f"{model.base_model_prefix}.")
        for key in {alias, short, _OTHER_NAMES.get(alias)} & stored.keys():
            tensor, name = stored[key], names[id(parameter)]
            if name in found or tensor.shape != parameter.shape or tensor.dtype not in _FLOATS:
                return None
            found[name] = tensor
    state, buffers = model.state_dict(), dict(model.named_buffers())
    if len(found) < len(names) or any(buffers[n].is_meta or n in state for n in buffers):
        return None

    def read(put: Put) -> None:
        for name, tensor in found.items():
            put(name, tensor)

    return Deferred(model, read, lambda name: name in found and found[name].dtype == "BF16")


def _stored(path: str) -> dict[str, _Stored]:
    """The tensors in the safetensors files of a folder or a model on the Hub."""
    folder = Path(path)
    if not folder.exists():
        folder = Path(snapshot_download(path, allow_patterns="model*.safetensors*"))
    names, found = {"model.safetensors"}, {}
    if not (folder / "model.safetensors").exists():
        index = (folder / "model.safetensors.index.json").read_text("utf-8")
        names = set(json.loads(index)["weight_map"].values())
    for name in names:
        with safe_open(folder / name, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (it is not a dictionary)
                part = file.get_slice(key)
                shape = tuple(part.get_shape())
                found[key] = _Stored(path, str(folder / name), key, shape, part.get_dtype())
    return found
