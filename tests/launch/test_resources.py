"""What jobs request from a cluster: from their estimates and from the settings."""

import dataclasses

import pytest

from gr_sweep.config import Device, ProcedureConfig, ProcedureKind, RunConfig, TrainConfig
from gr_sweep.errors import ConfigError, DataError
from gr_sweep.launch import estimate as estimates
from gr_sweep.launch.estimate import Estimate, Target
from gr_sweep.launch.resources import Resources, SlurmConfig, check_given, resources_of
from tests.launch.jobs import make_config

ON_CPU = SlurmConfig(gpu=None)


def job(num_rows: int = 24, **parts: object) -> RunConfig:
    return make_config(train=TrainConfig(steps=5, batch_sequences=num_rows), **parts)


@pytest.fixture
def needs(monkeypatch):
    """Makes the estimate say that a job needs so many GB, spread over its devices, and so many
    hours on one."""

    def make(gigabytes: float, hours: float = 1.0) -> None:
        def estimate_job(config: RunConfig, target: Target) -> Estimate:
            held = int(gigabytes * 1e9 / target.world_size)
            none = {field.name: 0 for field in dataclasses.fields(Estimate)}
            given = {
                "host_bytes": 4 * 10**9,
                "weight_bytes": held,
                "hours": hours / target.world_size,
            }
            return Estimate(**none | given)

        monkeypatch.setattr(estimates, "estimate_job", estimate_job)

    return make


def test_a_job_asks_for_as_few_gpus_as_hold_it_and_time_for_twice_its_hours(needs):
    needs(60, hours=3)
    assert resources_of(job(), SlurmConfig()) == Resources(1, 1, 1, 4, 8 + 5, 2 * 3 * 60 + 60)
    needs(300, hours=24)
    # 300 GB over 8 GPUs: 4 would hold 75 each, more than nine tenths of 80.
    assert resources_of(job(), SlurmConfig()) == Resources(1, 8, 8, 4, 8 + 40, 2 * 3 * 60 + 60)


def test_gpus_are_so_many_that_the_rows_divide_over_them(needs):
    needs(100)
    assert resources_of(job(12), SlurmConfig()).tasks_per_node == 2
    with pytest.raises(ConfigError, match=r"fit on 1 h100 .* GiB do not fit in the 67\.1"):
        resources_of(job(3), SlurmConfig())
    alternate = dataclasses.replace(job(), procedure=ProcedureConfig(name=ProcedureKind.alternate))
    assert resources_of(alternate, SlurmConfig()).tasks_per_node == 2
    for settings in (SlurmConfig(gpus_per_node=5), SlurmConfig(gpu=None, tasks_per_node=5)):
        with pytest.raises(ConfigError, match="24 sequences, which do not divide over 5 processes"):
            resources_of(job(), settings)


def test_a_job_with_a_mesh_gets_as_many_gpus_as_the_mesh_has(needs):
    needs(60)
    config = make_config(train=TrainConfig(steps=5, batch_sequences=24, mesh=[2, 4]))
    assert resources_of(config, SlurmConfig()).tasks_per_node == 8
    with pytest.raises(
        ConfigError, match=r"train\.mesh=\[2,4\] is for 8 processes, and there are 4"
    ):
        resources_of(config, SlurmConfig(gpus_per_node=4))


def test_a_job_larger_than_a_node_spreads_evenly_over_several(needs):
    needs(500)
    eight = resources_of(job(), SlurmConfig(max_gpus_per_node=4))
    assert (eight.nodes, eight.tasks_per_node, eight.gpus_per_node) == (2, 4, 4)
    uneven = resources_of(job(), SlurmConfig(max_gpus_per_node=3))
    assert (uneven.nodes, uneven.tasks_per_node) == (4, 2)


def test_given_resources_outrank_the_estimate(needs):
    needs(60)
    given = SlurmConfig(nodes=2, gpus_per_node=4, cpus_per_task=12, mem_gb=500, timeout_min=90)
    assert resources_of(job(), given) == Resources(2, 4, 4, 12, 500, 90)
    needs(300)
    assert resources_of(job(), SlurmConfig(nodes=2)).tasks_per_node == 4
    with pytest.raises(ConfigError, match="does not fit on 1 h100"):
        resources_of(job(), SlurmConfig(gpus_per_node=1))
    by_gres = resources_of(job(), SlurmConfig(gres="gpu:h100:8", tasks_per_node=8))
    assert (by_gres.tasks_per_node, by_gres.gpus_per_node) == (8, 0)


def test_the_time_is_at_most_a_day_and_longer_than_the_time_for_saving(needs):
    needs(60, hours=500)
    assert resources_of(job(), SlurmConfig()).timeout_min == 24 * 60
    needs(60, hours=0)
    assert resources_of(job(), SlurmConfig(signal_delay_s=7200)).timeout_min == 120 + 60


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (job(), ON_CPU),
        (job(), SlurmConfig(gpus_per_node=0)),
        (make_config(train=TrainConfig(batch_sequences=24, device=Device.cpu)), SlurmConfig()),
    ],
)
def test_jobs_on_cpus_ask_for_no_gpu(config, settings):
    asked = resources_of(config, dataclasses.replace(settings, tasks_per_node=2))
    assert asked == Resources(1, 2, 0, 4, 2 * 8, 24 * 60)


def test_a_job_of_a_remote_model_gets_the_given_gpus_or_one(monkeypatch):
    def unknown(config: RunConfig, target: Target) -> Estimate:
        raise DataError("data.tokenizer=x is not on this machine")

    monkeypatch.setattr(estimates, "estimate_job", unknown)
    assert resources_of(job(), SlurmConfig()) == Resources(1, 1, 1, 4, 8, 24 * 60)
    assert resources_of(job(), SlurmConfig(gpus_per_node=4)).gpus_per_node == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mem_gb": 0}, "hydra.launcher.mem_gb: 0; expected a number at least 1"),
        ({"gpu": "gtx"}, "hydra.launcher.gpu=gtx: expected one of h100, h200, a100, or null"),
        ({"tasks_per_node": 2, "gpus_per_node": 4}, "tasks_per_node=2 and gpus_per_node=4 differ"),
        ({"timeout_min": 2}, "expected more than hydra.launcher.signal_delay_s=300"),
    ],
)
def test_invalid_settings_are_one_line(values, message):
    with pytest.raises(ConfigError) as raised:
        check_given(SlurmConfig(**values))
    assert message in str(raised.value)
