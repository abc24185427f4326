import numpy as np
import pytest

from gr_sweep.data.shards import Shard
from gr_sweep.errors import DataError
from gr_sweep.eval.text import TrainingText
from tests.eval.tiny import DOMAINS, shards


def counting(*lengths: int, first: int = 0) -> Shard:
    """Documents whose tokens count on from one document to the next."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(first, first + offsets[-1]).astype(np.uint32)
    ids = np.arange(len(lengths), dtype=np.uint64)
    return Shard.packed(tokens, offsets, np.array(lengths), ids)


def text_of(shard: Shard, sequence_length: int, seed: int = 0) -> TrainingText:
    return TrainingText({"code": shard}, sequence_length, 4, seed)


def test_an_epoch_predicts_every_token_once_but_the_first_and_a_rest_shorter_than_a_window():
    text = text_of(counting(5, 3, 9, 1, 14), 7, seed=3)  # 32 tokens, 31 to be predicted
    rows = text.rows("", ["code"])(0)
    assert rows.shape == (4, 8) and rows.dtype == np.int64
    rows = rows[np.argsort(rows[:, 0])]
    firsts, lasts = set(rows[:, 0].tolist()), set(rows[:, -1].tolist())
    assert len(firsts & lasts) == 3, "the last token is the next window's first"
    predicted = rows[:, 1:].flatten()
    assert len(set(predicted.tolist())) == 28


def test_rows_follow_from_seed_purpose_and_step_alone():
    def rows(step: int, seed: int = 5, purpose: str = "x", before: int | None = None):
        read = TrainingText(shards(), 8, 4, seed).rows(purpose, DOMAINS)
        if before is not None:
            read(before)
        return read(step)

    there = rows(7)
    np.testing.assert_array_equal(rows(7, before=0), there)
    for other in (rows(7, seed=6), rows(7, purpose="y"), rows(8)):
        assert (other != there).any()


def test_windows_are_not_in_the_order_of_the_text():
    firsts = text_of(counting(71), 7).rows("", ["code"], num_rows=10)(0)[:, 0].tolist()
    assert sorted(firsts) == list(range(0, 70, 7)) != firsts


def test_a_limit_of_documents_reads_no_others():
    text = text_of(counting(*[6] * 10), 5, seed=1)
    rows = text.rows("", ["code"], documents=2, num_rows=24)(0)
    assert len({int(token) // 6 for token in rows.flatten()}) == 2


def test_a_sample_is_of_windows_all_over_the_text_none_twice():
    text = text_of(counting(*[10] * 40), 9, seed=2)
    rows = text.sample("", ["code"], 8 * 9)
    assert rows.shape == (8, 10)
    assert len(set(rows[:, 0].tolist())) == 8
    assert len({int(token) // 10 for token in rows.flatten()}) > 8
    every = text.sample("", ["code"], 10**6)
    np.testing.assert_array_equal(every, text.rows("", ["code"], num_rows=len(every))(0))


def test_a_domain_without_text_is_named():
    with pytest.raises(DataError, match="code has no text"):
        text_of(counting(), 7).rows("", ["code"])
