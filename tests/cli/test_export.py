"""The verb `export` on a tiny sweep of a routed and a dense job."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from gr_sweep.cli import app
from gr_sweep.data.rules import is_held_out, text_id
from gr_sweep.data.shards import open_shard
from gr_sweep.data.synthetic import generate
from gr_sweep.data.tokenize import train_tokenizer
from gr_sweep.export.run import load_routed, open_run
from gr_sweep.metrics.losses import read_losses

SWEEP = [
    "-m", "debug=default", "method=routed,dense", "data.documents=60", "data.vocab_size=300",
    "hydra.sweep.dir=a sweep",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Its folder; the token cache is removed."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GR_SWEEP_CACHE", str(folder / "cache"))
        assert app.main(SWEEP) == 0
    shutil.rmtree(folder / "cache")
    return folder / "a sweep"


@pytest.fixture
def job(sweep):
    return next(sweep.glob("*method=routed*"))


@pytest.fixture
def dense(sweep):
    return next(sweep.glob("*method=dense*"))


@pytest.fixture
def copied(job, tmp_path):
    """A copy of the routed job, in a sweep of its own, to be changed."""
    return Path(shutil.copytree(job, tmp_path / "sweep" / "job"))


def test_the_checkpoint_is_the_network_of_the_kept_domain_and_loads_without_gr_sweep(
    job, tmp_path, capsys
):
    to = tmp_path / "a model"
    assert app.main(["export", str(job), "--keep", "biology", "--to", str(to)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(to)

    tokenizer = AutoTokenizer.from_pretrained(to)
    text = "a cell, 12 of them:\n\tdef f(x)"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    model = AutoModelForCausalLM.from_pretrained(to)
    of_modules = {type(module).__module__.split(".")[0] for module in model.modules()}
    assert of_modules == {"torch", "transformers"}
    generated = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= ids.shape[1] + 3
    routed, step = load_routed(open_run(job))
    with torch.no_grad(), routed.keep(["biology"]):
        wanted = routed.model(input_ids=ids).logits
        logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        full = routed.model(input_ids=ids).logits
    assert (full - wanted).abs().max() > 1e-3

    summary = json.loads((job / "summary.json").read_text())
    made = json.loads((to / "export.json").read_text())
    metrics = summary["metrics"]
    assert step == made["step"] == 6 and made["is_finished"]
    assert made["full_parameters"] == metrics["cost/parameters"]
    assert made["parameters"] == metrics["cost/parameters/kept/biology"]
    assert made["commands"]["run"] == summary["command"]

    card = (to / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: transformers\n" in card
    assert "- removed: code, creative\n" in card
    assert summary["command"] in card


def test_documents_begin_as_the_tokenizer_would_and_the_export_agrees(tmp_path, monkeypatch):
    texts = generate(["code", "biology"], documents=40, overlap=0.5)
    train_tokenizer(texts["code"], 300).save(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GR_SWEEP_CACHE", str(tmp_path / "cache"))
    settings = ["partition.domains={code:{},biology:{}}"]
    settings += ["data.documents=40", "data.tokenizer=tokenizer", "eval.document_tokens=60"]
    assert app.main(["debug=default", *settings, "hydra.run.dir=job"]) == 0
    assert app.main(["export", "job", "--keep", "biology", "--to", "model"]) == 0
    [cache] = (tmp_path / "cache").glob("*/manifest.json")
    train = open_shard(cache.parent, "0-code.train", np.dtype(np.uint16))
    document = train.document(0).tolist()
    assert [document[0], document[-1], *document].count(begin) == 2 and document[-1] == end

    tokenizer = AutoTokenizer.from_pretrained("model")
    model = AutoModelForCausalLM.from_pretrained("model")
    assert model.config.bos_token_id == begin
    wanted = {}
    for text in texts["biology"]:
        if is_held_out(text_id(text)):
            ids = torch.tensor([*tokenizer(text).input_ids, end])[: 1 + 60]
            with torch.no_grad():
                logits = model(input_ids=ids[None, :-1]).logits[0]
            wanted[f"{text_id(text):016x}"] = F.cross_entropy(logits, ids[1:], reduction="sum")
    rows = read_losses(Path("job/document_losses.csv"))
    found = {r.document: r.loss_nats for r in rows if (r.view, r.domain) == ("kept", r.part)}
    assert wanted and all(found[name] == pytest.approx(float(wanted[name])) for name in wanted)


def test_a_dense_run_is_exported_whole(dense, tmp_path):
    to = tmp_path / "model"
    to.mkdir()
    assert app.main(["export", str(dense), "--to", str(to)]) == 0
    model = AutoModelForCausalLM.from_pretrained(to)
    routed, _ = load_routed(open_run(dense))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, routed.model.state_dict()[name])
    card = (to / "README.md").read_text()
    assert "- removed: nothing" in card


def test_a_run_that_is_not_finished_is_exported_and_not_changed(copied, tmp_path, capsys):
    (copied / "summary.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    to = tmp_path / "model"
    words = ["--keep", "code", "--keep", "creative", "--to", str(to)]
    assert app.main(["export", str(copied), *words]) == 0
    assert "the run is not finished" in capsys.readouterr().out
    assert json.loads((to / "export.json").read_text())["removed_domains"] == ["biology"]
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def assert_refused(capsys, argv, *messages):
    assert app.main(["export", *map(str, argv)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed.err
    for message in messages:
        assert message in printed.err


def test_what_cannot_be_exported_is_one_line_and_status_2(
    job, dense, sweep, copied, tmp_path, capsys, monkeypatch
):
    # Before the weights are read.
    monkeypatch.setattr("gr_sweep.export.write.load_routed", lambda run: pytest.fail("read"))
    to = ["--to", tmp_path / "model"]
    keep = ["--keep", "biology"]
    assert_refused(capsys, [tmp_path / "none", *keep, *to], "is not the folder of a job")
    assert_refused(capsys, [sweep, *keep, *to], "give one of its jobs", job.name, dense.name)
    unknown = [job, *keep, "--keep", "biolgy", *to]
    assert_refused(capsys, unknown, "biolgy", "code, biology, creative")
    assert_refused(capsys, [dense, *keep, *to], "is a dense run", "--keep")
    assert_refused(capsys, [job, *keep, "--to", copied], "is not an empty folder")
    below = copied / "plan.json" / "x"
    assert_refused(capsys, [job, *keep, "--to", below], "cannot be written")

    summary = json.loads((copied / "summary.json").read_text())
    del summary["checksum"]
    (copied / "summary.json").write_text(json.dumps(summary | {"taken_from": "other/job-1"}))
    assert_refused(capsys, [copied, *keep, *to], f"{tmp_path.name}/other/job-1")
    (copied / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(copied / "model")
    assert_refused(capsys, [copied, *keep, *to], "has no model/")
    assert not (tmp_path / "model").exists()
