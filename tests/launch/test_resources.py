"""What jobs request from a cluster: from their estimates and from the settings."""

import dataclasses

import pytest

from gr_sweep.config import Device, ProcedureConfig, ProcedureKind, RunConfig, TrainConfig
from gr_sweep.errors import ConfigError, DataError
from gr_sweep.launch import estimate as estimates
from gr_sweep.launch.estimate import Estimate, Target
from gr_sweep.launch.resources import Resources, SlurmConfig, check_given, resources_of
from tests.launch.jobs import make_config

ON_CPU = dataclasses.replace(SlurmConfig(), gpu=None)


def given(**values: object) -> SlurmConfig:
    return dataclasses.replace(SlurmConfig(), **values)


def job(num_rows: int = 24, **parts: object) -> RunConfig:
    return make_config(train=TrainConfig(steps=5, batch_sequences=num_rows), **parts)


@pytest.fixture
def needs(monkeypatch):
    """Makes the estimate say that a job needs so many GB, spread over its devices, and so many
    hours on one."""

    def make(gigabytes: float, hours: float = 1.0, parameters: int = 10**9) -> None:
        def estimate_job(config: RunConfig, target: Target) -> Estimate:
            held = int(gigabytes * 1e9 / target.world_size)
            none = {field.name: 0 for field in dataclasses.fields(Estimate)}
            return Estimate(
                **none
                | {
                    "parameters": parameters,
                    "kept_parameters": {},
                    "weight_bytes": held,
                    "hours": hours / target.world_size,
                }
            )

        monkeypatch.setattr(estimates, "estimate_job", estimate_job)

    return make


def test_a_job_asks_for_as_few_gpus_as_hold_it_and_time_for_twice_its_hours(needs):
    needs(60, hours=3)
    assert resources_of(job(), given()) == Resources(1, 1, 1, 4, 8 + 5, 2 * 3 * 60 + 60)
    needs(300, hours=24)
    # 300 GB over 8 GPUs: 4 would hold 75 each, more than nine tenths of 80.
    assert resources_of(job(), given()) == Resources(1, 8, 8, 4, 8 + 8 * 5, 2 * 3 * 60 + 60)


def test_gpus_are_so_many_that_the_rows_divide_over_them(needs):
    needs(100)
    assert resources_of(job(12), given()).tasks_per_node == 2
    with pytest.raises(ConfigError, match=r"fit on the 1 h100 .* GiB do not fit in the 67\.1"):
        resources_of(job(3), given())


def test_a_job_larger_than_a_node_spreads_evenly_over_several(needs):
    needs(500)
    eight = resources_of(job(), given(max_gpus_per_node=4))
    assert (eight.nodes, eight.tasks_per_node, eight.gpus_per_node) == (2, 4, 4)
    uneven = resources_of(job(), given(max_gpus_per_node=3))
    assert (uneven.nodes, uneven.tasks_per_node) == (4, 2)


def test_what_is_given_counts_more_than_the_estimate(needs):
    needs(60)
    named = resources_of(
        job(), given(nodes=2, gpus_per_node=4, cpus_per_task=12, mem_gb=500, timeout_min=90)
    )
    assert named == Resources(2, 4, 4, 12, 500, 90)
    assert resources_of(job(), given(nodes=2)).tasks_per_node == 1
    needs(300)
    assert resources_of(job(), given(nodes=2)).tasks_per_node == 4
    with pytest.raises(ConfigError, match="does not fit on the 1 h100 that are set"):
        resources_of(job(), given(gpus_per_node=1))


def test_the_time_is_at_most_a_day_and_longer_than_the_time_for_saving(needs):
    needs(60, hours=500)
    assert resources_of(job(), given()).timeout_min == 24 * 60
    assert resources_of(job(), given(timeout_min=5000)).timeout_min == 5000
    needs(60, hours=0)
    assert resources_of(job(), given(signal_delay_s=7200)).timeout_min == 120 + 60


def test_gres_replaces_the_number_of_gpus(needs):
    needs(100)
    assert resources_of(job(), given(gres="gpu:h100:2")) == Resources(1, 2, 0, 4, 18, 120)
    assert resources_of(job(), given(gres="disk:1", gpus_per_node=2)).gpus_per_node == 2
    assert resources_of(job(), given(gres="gpu:2", gpus_per_node=0)).gpus_per_node == 0


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (job(), ON_CPU),
        (job(), given(gpus_per_node=0)),
        (make_config(train=TrainConfig(steps=5, batch_sequences=24, device=Device.cpu)), given()),
    ],
)
def test_jobs_on_cpus_ask_for_no_gpu(needs, config, settings):
    needs(2)
    asked = resources_of(config, dataclasses.replace(settings, tasks_per_node=2))
    # 1 GB of each process is 1.2 GiB with room on top.
    assert asked == Resources(1, 2, 0, 4, 8 + 2 * 2, 24 * 60)


def test_rows_that_do_not_divide_over_given_processes_are_refused(needs):
    needs(1)
    for settings in (given(gpus_per_node=5), dataclasses.replace(ON_CPU, tasks_per_node=5)):
        with pytest.raises(ConfigError, match="24 sequences, which do not divide over 5 processes"):
            resources_of(job(), settings)


def test_a_job_whose_model_is_not_here_gets_what_is_given_or_one_gpu(monkeypatch):
    def unknown(config: RunConfig, target: Target) -> Estimate:
        raise DataError("data.tokenizer=x is not on this machine")

    monkeypatch.setattr(estimates, "estimate_job", unknown)
    assert resources_of(job(), given()) == Resources(1, 1, 1, 4, 8, 24 * 60)
    assert resources_of(job(), given(gpus_per_node=4)).gpus_per_node == 4
    assert resources_of(job(), ON_CPU) == Resources(1, 1, 0, 4, 16, 24 * 60)


def test_alternating_jobs_stay_in_one_process(needs):
    needs(100)
    alternate = dataclasses.replace(job(), procedure=ProcedureConfig(name=ProcedureKind.alternate))
    with pytest.raises(ConfigError, match="does not fit on the 1 h100"):
        resources_of(alternate, given())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus_per_node": -1}, "hydra.launcher.gpus_per_node: expected 0 or more, got -1"),
        ({"gpu": "gtx"}, "hydra.launcher.gpu=gtx: expected one of h100, h200, a100, or null"),
        ({"tasks_per_node": 2, "gpus_per_node": 4}, "tasks_per_node=2 and gpus_per_node=4 differ"),
        ({"timeout_min": 2}, "expected more than hydra.launcher.signal_delay_s=300"),
    ],
)
def test_invalid_settings_are_one_line(values, message):
    with pytest.raises(ConfigError) as raised:
        check_given(given(**values))
    assert message in str(raised.value)
