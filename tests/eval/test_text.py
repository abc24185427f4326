import numpy as np

from gr_sweep.data.shards import Shard
from gr_sweep.eval.text import TextWindows
from tests.eval.tiny import shards


def counting(*lengths: int, first: int = 0) -> Shard:
    """Documents whose tokens count on from one document to the next."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(first, first + offsets[-1]).astype(np.uint32)
    ids = np.arange(len(lengths), dtype=np.uint64)
    return Shard.packed(tokens, offsets, np.array(lengths), ids)


def test_an_epoch_predicts_every_token_once_but_the_first_and_a_rest_shorter_than_a_window():
    text = counting(5, 3, 9, 1, 14)  # 32 tokens, 31 to be predicted
    windows = TextWindows([text], sequence_length=7, seed=3)
    assert windows.num_windows == 4
    rows = windows.rows(0, 4)
    assert rows.shape == (4, 8) and rows.dtype == np.int64
    rows = rows[np.argsort(rows[:, 0])]
    firsts, lasts = set(rows[:, 0].tolist()), set(rows[:, -1].tolist())
    assert len(firsts & lasts) == 3, "the last token is the next window's first"
    predicted = rows[:, 1:].flatten()
    assert len(set(predicted.tolist())) == 28


def test_rows_follow_from_seed_and_step_alone():
    text = list(shards().values())
    there = TextWindows(text, sequence_length=8, seed=5, purpose="x").rows(7, 4)
    again = TextWindows(text, sequence_length=8, seed=5, purpose="x")
    again.rows(0, 4)
    np.testing.assert_array_equal(again.rows(7, 4), there)
    for other in (dict(seed=6, purpose="x"), dict(seed=5, purpose="y")):
        assert (TextWindows(text, sequence_length=8, **other).rows(7, 4) != there).any()


def test_windows_are_not_in_the_order_of_the_text():
    firsts = TextWindows([counting(71)], sequence_length=7, seed=0).rows(0, 10)[:, 0].tolist()
    assert sorted(firsts) == list(range(0, 70, 7)) != firsts


def test_a_limit_of_documents_reads_no_others():
    windows = TextWindows([counting(*[6] * 10)], sequence_length=5, seed=1, documents=2)
    assert len({int(token) // 6 for token in windows.rows(0, 24).flatten()}) == 2


def test_a_sample_is_of_windows_all_over_the_text_none_twice():
    text = counting(*[10] * 40)
    windows = TextWindows([text], sequence_length=9, seed=2)
    rows = windows.sample(8)
    assert rows.shape == (8, 10)
    assert len(set(rows[:, 0].tolist())) == 8
    assert len({int(token) // 10 for token in rows.flatten()}) > 8
    every = windows.sample(10**6)
    np.testing.assert_array_equal(every, windows.rows(0, windows.num_windows))
