"""The runs that the metrics of others need: which they are, and what Hydra composes them from.

A baseline differs from its job in method, plan and label noise only. An `alone` baseline also
differs in width. Whatever those settings are, the composed config of a dense run is the same, and
so the run is there once.
"""

import re
from collections.abc import Iterator, Sequence

from gr_sweep.cli.check_fit import parts_of
from gr_sweep.cli.overrides import without
from gr_sweep.config import UNROUTED, Baseline, Method, RunConfig, unlabelled_shares
from gr_sweep.domains import expand, is_under
from gr_sweep.errors import ConfigError
from gr_sweep.model.sizes import shape_of
from gr_sweep.planning import expert_widths

SHARES = (0.125, 0.25, 0.5)
"""Fractions of a job's training tokens for the shorter dense runs, from which the compute that a
routed run is worth is read off."""

_OF_ROUTING = (
    "method", "edges", "plan", "route", "procedure", "partition.unlabelled", "baselines",
)  # fmt: skip
_SETTING = re.compile(r"\$\\?\{(?!seed\\?\}|[\w.]+\\?:)")
"""Start of an interpolation of a setting other than the seed; Hydra escapes its braces."""
_UNLEARNING = "eval.unlearn_steps"
_WIDTH = "model.intermediate_size"
_ATTACKS = {"eval.calibrate": "false", "eval.relearn_steps": "null"}
"""Attacks that filtered models get too, and the values that turn them off."""


def baselines_of(
    config: RunConfig, overrides: Sequence[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """Overrides of each run that the job's metrics need and that `config.baselines` names.

    Args:
        config: of the job, resolved.
        overrides: what the job is composed from.

    Yields:
        The job's overrides that the baseline shares, and those that make it the baseline.

    Raises:
        ConfigError: an override follows another setting, or the width of an expert of `alone` is
            unknown, or one that no run can have.
    """
    if config.method.name in UNROUTED:
        return
    if config.baselines and (found := next(filter(_SETTING.search, overrides), None)):
        raise ConfigError(
            f"{found}: baselines have other settings than their jobs; give values instead of "
            "${...}, except ${seed}"
        )
    routed = [*without(overrides, _OF_ROUTING), "baselines=[]"]
    plain = without(routed, ["partition.mislabelled"])
    setting, length = "train.steps", config.train.steps
    if length is None:
        setting, length = "train.tokens", config.train.tokens
    for baseline in config.baselines:
        if baseline is Baseline.dense:
            yield plain, ["method=dense"]
        elif baseline is Baseline.compute:
            # Shorter runs are not unlearned.
            short = [*without(plain, (setting, _UNLEARNING)), f"{_UNLEARNING}=null"]
            for share in SHARES:
                shorter = max(1, round(length * share))
                yield short, ["method=dense", f"{setting}={shorter}"]
        elif baseline is Baseline.filtered:
            for part in parts_of(config):
                yield plain, ["method=filtered", f"method.without=[{part}]"]
        elif baseline is Baseline.alone:
            yield from _alone(config, plain, setting, length)
        elif config.method.name is not Method.random:  # whose labels are not those of a filter
            noisy = [*routed, _unlabelled(config)]
            for part in parts_of(config):
                if _is_noisy(config, part):
                    yield noisy, ["method=filtered_observed", f"method.without=[{part}]"]


def _alone(
    config: RunConfig, plain: list[str], setting: str, length: int
) -> Iterator[tuple[list[str], list[str]]]:
    """A dense run on each domain that has an expert, as large as that, but with all heads: a
    named size fixes their number. `setting` says how long the job trains, and `length` its value.
    """
    domains = list(config.partition.domains)
    for domain, width in expert_widths(config).items():
        if any(other != domain and is_under(domain, other) for other in domains):
            continue  # `without` cannot leave the one out and the other in
        others = [other for other in domains if not is_under(other, domain)]
        if not others:
            continue
        added = ["method=filtered", f"method.without=[{','.join(others)}]"]
        model = config.model
        assert model.size is not None  # expert_widths
        has_width = width != shape_of(model.size, model.intermediate_size).intermediate_size
        if len(others) == 1 and not has_width:
            yield plain, added  # that is the run without the other domain
            continue
        # Tokens a parameter of another width would be others.
        kept = without(plain, (*_ATTACKS, setting, *([_WIDTH] if has_width else [])))
        kept += [f"{name}={value}" for name, value in _ATTACKS.items()]
        kept.append(f"{setting}={length}")
        yield kept, [*added, f"{_WIDTH}={width}"] if has_width else added


def _is_noisy(config: RunConfig, part: str) -> bool:
    """Whether a filter that goes by label leaves text of the part."""
    domains = list(config.partition.domains)
    hidden = unlabelled_shares(config.partition.unlabelled, domains)
    return config.partition.mislabelled > 0 or any(hidden[d] for d in expand([part], domains))


def _unlabelled(config: RunConfig) -> str:
    """The hidden labels of the job, whether its method or its partition hides them."""
    shares = config.partition.unlabelled
    if not isinstance(shares, dict):
        return f"partition.unlabelled={shares}"
    pairs = ",".join(f"{domain}:{share}" for domain, share in shares.items())
    return f"partition.unlabelled={{{pairs}}}"
