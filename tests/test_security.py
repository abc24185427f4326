"""Nothing that a run reads can run code, and nothing that it writes holds a secret.

Escaping of HTML is tested in tests/report, damaged and hostile checkpoints in tests/train and
tests/export.
"""

import ast
import json
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

import gr_sweep
from gr_sweep.cli.app import main
from gr_sweep.components import make_routed
from gr_sweep.config import ModelConfig, RunConfig
from gr_sweep.data.tokenize import load_tokenizer
from gr_sweep.errors import DataError, PlanError

PACKAGE = Path(gr_sweep.__file__).parent

SECRETS = {
    "WANDB_API_KEY": "7f3a9c" * 6 + "0123",  # wandb takes 40 characters only
    "HF_TOKEN": "planted-1-7f3a9c",
    "AWS_SECRET_ACCESS_KEY": "planted-2-7f3a9c",
    "MY_PASSWORD": "planted-3-7f3a9c",
}

MAY_UNPICKLE = {
    # From the process that started this one, or that this one started, over a pipe.
    "data/encode.py",
    "launch/local.py",
    # Names all that it makes.
    "train/checkpoint.py",
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, dotted name and node of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func), node


def test_nothing_is_read_in_a_way_that_runs_code():
    banned = {
        *("eval", "exec", "compile", "os.system", "os.popen", "torch.load", "marshal.load"),
        *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load", "dill.load"),
    }
    unpickling = {"pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads"}
    for file, name, node in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert name not in banned, f"{file}: {name}"
        assert name not in unpickling or file in MAY_UNPICKLE, f"{file}: {name}"
        assert given.get("shell", "False") == "False", f"{file}: {name}"
        default = "" if name == "np.load" else "False"  # said each time, as defaults have changed
        assert given.get("allow_pickle", default) == "False", f"{file}: {name}"
        assert given.get("trust_remote_code", "False") == "False", f"{file}: {name}"
        if name.startswith("Auto") and name.endswith(".from_pretrained"):
            # Said each time: otherwise transformers asks who sits at a terminal.
            assert {"trust_remote_code", None} & given.keys(), f"{file}: {name}"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A checkpoint whose config names code beside it, which would leave a trace."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    names = {f"Auto{kind}": f"code.{kind}" for kind in ("Config", "Tokenizer")}
    names["AutoModelForCausalLM"] = "code.Model"
    config = {"model_type": "unheard-of", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    trace = f"from pathlib import Path\nPath({str(tmp_path / 'trace')!r}).touch()\n"
    (folder / "code.py").write_text(trace)
    return folder


def test_code_beside_a_model_is_not_run_and_nobody_is_asked(hostile, tmp_path, monkeypatch):
    def asked(*_: object) -> str:
        raise AssertionError("the user was asked")

    monkeypatch.setattr("builtins.input", asked)
    config = RunConfig(model=ModelConfig(path=str(hostile)))
    with pytest.raises(PlanError, match="cannot be loaded"):
        make_routed(config, types.SimpleNamespace(vocab_size=8, eot_id=0))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_tokenizer(str(hostile))
    assert not (tmp_path / "trace").exists()


@pytest.mark.slow
def test_secrets_of_the_environment_reach_no_file_and_no_output(tmp_path, monkeypatch, capfd):
    """One job that is done, and one that fails."""
    (tmp_path / "home").mkdir()
    wandb.teardown()  # forgets the settings that an earlier test read
    places = {"HOME": str(tmp_path / "home"), "GR_SWEEP_CACHE": str(tmp_path / "cache")}
    for name, value in (SECRETS | places | {"WANDB_MODE": "offline"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    small = ["debug=default", "data.documents=60", "data.vocab_size=300", "eval.samples=0"]
    line = ["-m", *small, "train.lr=1e-3,1e30", "tracking=auto", "hydra.sweep.dir=sweep"]
    assert main(line) == 2
    wandb.teardown()
    out, err = capfd.readouterr()
    assert list((tmp_path / "sweep").glob("*/summary.json")) and "not finite" in err
    assert list((tmp_path / "sweep").glob("*/wandb/offline-run-*"))
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    contents |= {Path("stdout"): out.encode(), Path("stderr"): err.encode()}
    assert len(contents) > 30
    for path, content in contents.items():
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} in {path}"
