"""Tasks of lm-evaluation-harness: the served view, and a job and its export that agree."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from gr_sweep.eval.tasks import _add, mixed_log_probabilities
from tests.program import Program

has_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"
)


@pytest.fixture
def program(tmp_path, cache):
    return Program(tmp_path, cache)


def test_the_served_view_follows_the_posterior_token_by_token():
    generator = torch.Generator().manual_seed(0)
    ids_NT = torch.randint(0, 7, (2, 5), generator=generator)
    logits_KNTV = 3 * torch.randn(3, 2, 5, 7, generator=generator)
    mixed_NTV = mixed_log_probabilities(list(logits_KNTV), ids_NT)
    p_KNTV = logits_KNTV.double().softmax(-1)
    for n in range(2):
        posterior_K = torch.full((3,), 1 / 3, dtype=torch.float64)
        for t in range(5):
            expected_V = (posterior_K[:, None] * p_KNTV[:, n, t]).sum(0)
            torch.testing.assert_close(mixed_NTV[n, t].exp().double(), expected_V)
            if t < 4:
                posterior_K = posterior_K * p_KNTV[:, n, t, ids_NT[n, t + 1]]
                posterior_K = posterior_K / posterior_K.sum()


def test_numbers_of_numpy_are_results_and_standard_errors_too():
    found = {"mcc,none": np.float64(0.5), "mcc_stderr,none": np.float32(0.25), "f1,a": 1}
    found |= {"f1_stderr,a": "N/A", "acc,none": float("nan"), "alias": "x", "sample_len": 3}
    metrics, intervals = {}, {}
    _add({"t": found}, "full", metrics, intervals)
    assert metrics == {"task/t/full/mcc": 0.5, "task/t/full/f1@a": 1.0}
    assert intervals == {"task/t/full/mcc": (0.5 - 1.96 / 4, 0.5 + 1.96 / 4)}


TASK = """
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: animals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc}
"""


@has_harness
def test_a_job_and_its_export_have_equal_results(program):
    words = ["cell", "river", "loop", "virus", "poem", "list", "gene", "sea"]
    documents = [
        {"question": f"{a} {b}", "choices": [f" {b} {a}", f" {a}"], "answer": number % 2}
        for number, (a, b) in enumerate((a, b) for a in words for b in words)
    ]
    lines = "\n".join(map(json.dumps, documents))
    (program.folder / "animals.jsonl").write_text(lines)
    (program.folder / "animals.yaml").write_text(TASK)
    status, _, error = program.run(
        "debug=default", "edges=none", "eval.tasks=[animals.yaml]", "hydra.run.dir=job",
        "tracking=off",
    )  # fmt: skip
    assert status == 0, error
    summary = json.loads((program.folder / "job/summary.json").read_text())
    views = ["full", "served"]
    views += [f"{view}.{d}" for view in ("kept", "removed") for d in summary["domains"]]
    found = {view: summary["metrics"][f"task/animals/{view}/acc"] for view in views}
    low, high = summary["intervals"]["task/animals/full/acc"]
    assert low < found["full"] < high

    assert program.run("export", "job", "--keep", "biology", "--to", "out")[0] == 0
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained=out",
         "--tasks", "animals.yaml", "--device", "cpu", "--output_path", "found"],
        cwd=program.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [results] = program.folder.glob("found/**/results*.json")
    of_export = json.loads(results.read_text())["results"]["animals"]["acc,none"]
    assert of_export == found["kept.biology"]


@has_harness
@pytest.mark.parametrize(
    "task", ["missing.yaml", pytest.param("no_such_task", marks=pytest.mark.slow)]
)
def test_a_task_that_cannot_be_loaded_ends_the_job_in_one_line(program, task):
    status, _, error = program.run("debug=default", f"eval.tasks=[{task}]", "tracking=off")
    assert status == 2 and f"eval.tasks=[{task}]" in error.splitlines()[-1]
