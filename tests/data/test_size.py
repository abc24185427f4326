import dataclasses
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from gr_sweep.config import DataConfig, DataKind, HubSource, ModelConfig
from gr_sweep.data import size
from gr_sweep.data.prepare import prepare_data
from gr_sweep.data.size import text_size
from tests.data.corpus import local, partition, texts, write_lines

TWO = partition("code", "creative")
MODEL = ModelConfig()
DOCUMENTS = {"code": 300, "creative": 150}


def lines(suffix: str) -> Callable[[Path, list[str]], Path]:
    return lambda path, made: write_lines(
        path.with_name(path.name + suffix), [{"text": text, "other": "x" * 300} for text in made]
    )


def parquet(path: Path, made: list[str]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": made}), f"{path}.parquet")


def files(path: Path, made: list[str]) -> None:
    path.mkdir()
    for number, text in enumerate(made):
        (path / f"{number}.txt").write_text(text)


@pytest.mark.parametrize(
    "write",
    [lines(".jsonl"), lines(".jsonl.gz"), parquet, files],
    ids=["lines", "gz", "parquet", "files"],
)
def test_the_size_is_that_of_the_prepared_text(tmp_path, monkeypatch, write):
    monkeypatch.setattr(size, "SAMPLE_BYTES", 40_000)
    (tmp_path / "root").mkdir()
    for domain, number in DOCUMENTS.items():
        write(tmp_path / "root" / domain, texts(domain, number))
    data = local(tmp_path, tmp_path / "root")
    found = text_size(data, TWO, MODEL)
    assert found is not None and found.process_bytes_per_second > 0 and found.hours > 0
    made = prepare_data(data, TWO, MODEL)
    shards = [*made.train.values(), *made.heldout.values()]
    tokens = sum(shard.num_tokens for shard in shards)
    tables = [path for path in made.folder.iterdir() if path.suffix in (".tokens", ".documents")]
    # Documents differ in length, and the tokenizer learned from other text.
    assert found.text_bytes == pytest.approx(sum(s.num_bytes.sum() for s in shards), rel=0.1)
    assert found.tokens == pytest.approx(tokens, rel=0.15)
    assert found.disk_bytes == pytest.approx(sum(p.stat().st_size for p in tables), rel=0.15)
    assert text_size(data, TWO, MODEL) is None, "it is in the cache"
    limited = text_size(dataclasses.replace(data, limit_tokens=10_000), TWO, MODEL)
    assert limited is not None and limited.tokens == pytest.approx(20_000)


def test_text_of_the_hub_is_as_large_as_its_limit_and_generated_text_is_not_planned(tmp_path):
    sources = {domain: HubSource(path="some/text") for domain in TWO.domains}
    data = DataConfig(kind=DataKind.hub, sources=sources, cache=str(tmp_path), vocab_size=400)
    assert text_size(data, TWO, MODEL) is None, "its size is not known"
    found = text_size(dataclasses.replace(data, limit_tokens=10**9), TWO, MODEL)
    assert found is not None and found.file_bytes == 0
    assert found.tokens == pytest.approx(2 * 10**9) and found.text_bytes == pytest.approx(8 * 10**9)
    assert found.disk_bytes > 4 * 10**9
    assert text_size(DataConfig(cache=str(tmp_path)), TWO, MODEL) is None
