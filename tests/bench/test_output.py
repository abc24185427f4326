import json

import torch

from gr_sweep.bench.output import record


def test_a_record_says_what_was_run_and_where():
    made = record("step", ["--model", "a b"], torch.device("cpu"), {"rows": 3}, [{"seconds": 0.5}])
    assert json.loads(json.dumps(made)) == {
        "benchmark": "step",
        "command": "gr-sweep bench step --model 'a b'",
        "device": "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "settings": {"rows": 3},
        "rows": [{"seconds": 0.5}],
    }
