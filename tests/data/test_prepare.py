import dataclasses
import re

import numpy as np
import pytest

from gr_sweep.config import (
    DataKind,
    DomainConfig,
    HubSource,
    ModelConfig,
    PartitionConfig,
)
from gr_sweep.data import pack, prepare
from gr_sweep.data.markers import is_marked, marked
from gr_sweep.data.prepare import TokenData, check_held_out, prepare_data, text_fingerprint
from gr_sweep.data.rules import is_held_out, text_id
from gr_sweep.data.sources import Document
from gr_sweep.errors import DataError
from tests.data.corpus import local, partition, texts, tokens_of, write_lines, write_root

TWO = partition("code", "creative")


def decoded(data, shard) -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data.tokenizer_dir / "tokenizer.json"))
    return [
        tokenizer.decode(shard.document(index)[:-1].tolist())
        for index in range(shard.num_documents)
    ]


def test_every_document_is_in_training_or_held_out_by_its_hash(tmp_path):
    root = write_root(tmp_path / "root", "code", "creative", documents=150)
    made = prepare_data(local(tmp_path, root), TWO)
    assert made.domains == ("code", "creative")
    for domain in made.domains:
        expected = texts(domain, 150)
        for shard, held_out in ((made.train[domain], False), (made.heldout[domain], True)):
            wanted = [text for text in expected if is_held_out(text_id(text)) is held_out]
            assert decoded(made, shard) == wanted
            assert shard.ids.tolist() == [text_id(text) for text in wanted]
            assert shard.num_bytes.tolist() == [len(text.encode()) for text in wanted]
            assert (tokens_of(shard) == made.eot_id).sum() == shard.num_documents > 0
    assert made.vocab_size == 400 and made.eot_id == 0


def test_the_fingerprint_follows_what_changes_tokens_and_nothing_else(tmp_path):
    root = write_root(tmp_path / "root", "code", "creative")
    data = local(tmp_path, root)

    def of(data=data, partition=TWO, model=None) -> str:
        return text_fingerprint(data, partition, model)

    first = of()
    assert not list((tmp_path / "cache").glob("*/manifest.json"))
    made = prepare_data(data, TWO)
    noisy = PartitionConfig(domains=TWO.domains, unlabelled=0.5, mislabelled=0.2, name="x")
    same = [
        made.fingerprint,
        of(dataclasses.replace(data, weights={"code": 3.0}, overlap=0.1, seed=7)),
        of(partition=noisy),
        of(local(tmp_path, write_root(tmp_path / "moved", "code", "creative"))),
    ]
    assert set(same) == {first}
    hub = {d: HubSource(path="json", data_files=str(root / f"{d}.jsonl")) for d in TWO.domains}
    hub_text = dataclasses.replace(data, kind=DataKind.hub, sources=hub)
    others = [
        of(hub_text),
        of(dataclasses.replace(data, vocab_size=300)),
        of(dataclasses.replace(data, limit_tokens=2000)),
        of(partition=partition("creative", "code")),
        of(partition=partition("code", "creative", code=DomainConfig(pattern="a"))),
        of(model=ModelConfig(size=None, path=str(made.tokenizer_dir))),
    ]
    write_lines(root / "code.jsonl", [{"text": text} for text in texts("other")])
    others += [of(), of(hub_text)]
    assert len({first, *others}) == len(others) + 1


def test_a_share_of_the_training_documents_is_marked_and_nothing_else_changes(tmp_path):
    root = write_root(tmp_path / "root", "code", "creative")
    plain = prepare_data(local(tmp_path, root), TWO)
    made = prepare_data(local(tmp_path, root, spurious=0.7), TWO)
    assert plain.markers == {}
    assert made.fingerprint != plain.fingerprint
    assert list(made.markers) == ["code", "creative"]
    assert len({len(marker) for marker in made.markers.values()}) == 1
    assert not np.array_equal(made.markers["code"], made.markers["creative"])
    for domain in made.domains:
        held_out, before = made.heldout[domain], plain.heldout[domain]
        assert np.array_equal(tokens_of(held_out), tokens_of(before))
        train, before = made.train[domain], plain.train[domain]
        assert np.array_equal(train.ids, before.ids)
        assert np.array_equal(train.num_bytes, before.num_bytes)
        num_marked = 0
        for index in range(train.num_documents):
            expected = before.document(index)
            if is_marked(int(train.ids[index]), 0.7):
                num_marked += 1
                own = marked(expected[:-1], made.markers[domain])
                expected = np.concatenate([own, expected[-1:]])
            assert np.array_equal(train.document(index), expected)
        assert 0.4 < num_marked / train.num_documents < 0.95


def test_a_limit_bounds_training_tokens_and_leaves_held_out_text_as_it_is(tmp_path, monkeypatch):
    root = write_root(tmp_path / "root", "code", "creative", documents=150)
    whole = prepare_data(local(tmp_path, root), TWO)
    tokenizer = str(whole.tokenizer_dir)

    def limited(limit: int, **settings: object) -> TokenData:
        data = local(tmp_path, root, tokenizer=tokenizer, limit_tokens=limit, **settings)
        return prepare_data(data, TWO)

    for limit in (1, 5000):
        made = limited(limit)
        for domain in made.domains:
            assert np.array_equal(tokens_of(made.heldout[domain]), tokens_of(whole.heldout[domain]))
            shard = made.train[domain]
            assert shard.num_tokens == limit and tokens_of(shard)[-1] == made.eot_id
    with_markers = limited(5000, spurious=0.5)  # which do not count
    for domain in made.domains:
        assert np.array_equal(with_markers.train[domain].ids, made.train[domain].ids)
        assert np.array_equal(with_markers.train[domain].num_bytes, made.train[domain].num_bytes)
        assert with_markers.train[domain].num_tokens > 5000
    # A source is not read to its end for more held-out text than jobs need.
    monkeypatch.setattr(pack, "HELD_OUT_TOKENS", 500)
    monkeypatch.setattr(pack, "BATCH_CHARACTERS", 5_000)
    (root / "code.jsonl").open("a").write("broken\n")
    made = limited(5000)
    first = len(made.heldout["code"].ids)
    assert made.heldout["code"].num_tokens >= 500
    assert np.array_equal(made.heldout["code"].ids, whole.heldout["code"].ids[:first])


def test_copies_and_blank_texts_are_dropped_and_counted(tmp_path, caplog):
    copies = texts("code", 100)
    records = [{"text": text} for text in [*copies * 2, " \n", ""]]
    write_lines(tmp_path / "root" / "code.jsonl", records)
    write_root(tmp_path / "root", "creative")
    data = local(tmp_path, tmp_path / "root")
    for _ in range(2):  # the lines are the same when the text is in the cache
        caplog.clear()
        with caplog.at_level("INFO"):
            made = prepare_data(data, TWO)
        held_out = sum(is_held_out(text_id(text)) for text in copies)
        assert made.heldout["code"].num_documents == held_out > 0
        assert made.train["code"].num_documents == 100 - held_out
        [line] = [line for line in caplog.messages if line.startswith("code: ")]
        found = re.findall(r"(\d[\d,]*) ([^,]+)", line)
        counts = {name: int(number.replace(",", "")) for number, name in found}
        assert (counts["documents"], counts["held-out documents"]) == (100 - held_out, held_out)
        assert counts["characters"] == sum(map(len, copies))
        assert (counts["duplicates"], counts["empty"]) == (100, 2)


def test_too_few_held_out_documents_are_refused_with_what_would_give_more(tmp_path):
    root = write_root(tmp_path / "root", "code", "creative", documents=60)
    made = prepare_data(local(tmp_path, root), TWO)
    few = made.heldout["code"].num_documents
    check_held_out(made, few, DataKind.local)
    with pytest.raises(DataError, match=rf"code has {few} of 60, .*=20.*data.split=paragraphs"):
        check_held_out(made, 20, DataKind.local)
    lucky = next(text for text in texts("code", 200) if is_held_out(text_id(text)))
    write_lines(root / "code.jsonl", [{"text": lucky}])
    with pytest.raises(DataError, match=r"code has no training document .* held out \(1\)"):
        prepare_data(local(tmp_path, root), TWO)


def test_the_tokenizer_is_trained_on_equal_amounts_of_each_domain_and_no_held_out_text():
    documents = [
        Document(domain, text, text_id(text))
        for domain, count in (("code", 200), ("creative", 30))
        for text in texts(domain, count)
    ]
    sample = prepare.tokenizer_sample(documents, ["code", "creative"], 10_000)
    # A sampled text is a document or, where the room ends, its beginning.
    sizes = dict.fromkeys(TWO.domains, 0)
    for text in sample:
        (document,) = (d for d in documents if d.text.startswith(text))
        sizes[document.domain] += len(text)
        assert not is_held_out(document.id)
    assert sizes == {"code": 10_000, "creative": 10_000}
