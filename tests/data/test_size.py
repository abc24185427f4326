import dataclasses

import pytest

from gr_sweep.config import DataConfig, DataKind, HubSource, ModelConfig
from gr_sweep.data.prepare import prepare_data
from gr_sweep.data.size import text_size
from tests.data.corpus import local, partition, texts, write_lines

TWO = partition("code", "creative")
MODEL = ModelConfig()


@pytest.mark.parametrize(("suffix", "within"), [(".jsonl", 0.15), (".jsonl.gz", 0.5)])
def test_the_size_is_near_that_of_the_prepared_text(tmp_path, suffix, within):
    for domain, number in (("code", 300), ("creative", 150)):
        records = [{"text": text} for text in texts(domain, number)]
        write_lines(tmp_path / "root" / f"{domain}{suffix}", records)
    data = local(tmp_path, tmp_path / "root")
    found = text_size(data, TWO, MODEL)
    assert found is not None and found.process_bytes_per_second > 0 and found.hours > 0
    made = prepare_data(data, TWO, MODEL)
    shards = [*made.train.values(), *made.heldout.values()]
    tokens = sum(shard.num_tokens for shard in shards)
    files = made.tokenizer_dir.parent.iterdir()
    tables = [path for path in files if path.suffix in (".tokens", ".documents")]
    assert found.text_bytes == pytest.approx(sum(s.num_bytes.sum() for s in shards), rel=within)
    assert found.tokens == pytest.approx(tokens, rel=within)
    assert found.disk_bytes == pytest.approx(sum(p.stat().st_size for p in tables), rel=within)
    assert text_size(data, TWO, MODEL) is None, "it is in the cache"
    limited = text_size(dataclasses.replace(data, limit_tokens=10_000), TWO, MODEL)
    assert limited is not None and limited.tokens == pytest.approx(20_000)


def test_text_of_the_hub_is_as_large_as_its_limit_and_generated_text_is_not_planned(tmp_path):
    sources = {domain: HubSource(path="some/text") for domain in TWO.domains}
    data = DataConfig(kind=DataKind.hub, sources=sources, cache=str(tmp_path), vocab_size=400)
    assert text_size(data, TWO, MODEL) is None, "its size is not known"
    found = text_size(dataclasses.replace(data, limit_tokens=10**9), TWO, MODEL)
    assert found is not None and found.tokens == pytest.approx(2 * 10**9)
    assert found.disk_bytes > 4 * 10**9
    assert text_size(DataConfig(cache=str(tmp_path)), TWO, MODEL) is None
