import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gr_sweep.data.tokenize import (
    END_OF_TEXT,
    load_tokenizer,
    train_tokenizer,
)
from gr_sweep.errors import DataError
from tests.data.corpus import texts

SAMPLE = [
    *texts("code", 40),
    "def f(x):\n    return x  # don't\n\n\tif x >= 10:\n" * 20,
    "“Curly” quotes—and dashes… naïve café, 漢字かな, Привет! " * 20,
]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(SAMPLE, 600)


@pytest.fixture(scope="module")
def backend(trained, tmp_path_factory):
    """The same as the library reads it."""
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.encode_special_tokens = True
    return backend


@settings(max_examples=80, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("a \n b\n\n  c\t\td   ")
@example("'s 'll'x  \x0b\x0c\r\n\u00a0\u2003\u3000. \x00")
@example(f"x{END_OF_TEXT} y")
def test_words_looked_up_give_the_tokens_of_the_whole_text(trained, backend, text):
    (ids,) = trained.encode([text])
    assert ids.tolist() == backend.encode(text, add_special_tokens=False).ids
    assert backend.decode(ids.tolist(), skip_special_tokens=False) == text


def test_training_is_deterministic_and_keeps_to_the_vocabulary(tmp_path):
    saved = []
    for name in ("one", "two"):
        tokenizer = train_tokenizer(SAMPLE, 500)
        assert tokenizer.vocab_size == 500
        tokenizer.save(tmp_path / name)
        saved.append((tmp_path / name / "tokenizer.json").read_text())
    assert saved[0] == saved[1]
    assert train_tokenizer(["ab ab"], 500).vocab_size < 265


def test_a_word_of_a_megabyte_does_not_stop_training():
    """It takes the square of a word's length."""
    assert train_tokenizer([f"{n} y{'x' * 500_000}" for n in range(2)], 300).vocab_size > 257


def test_a_hugging_face_tokenizer_gives_the_tokens_that_transformers_gives(trained, tmp_path):
    from transformers import AutoTokenizer

    trained.save(tmp_path / "one")
    tokenizer = load_tokenizer(str(tmp_path / "one"))
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (trained.vocab_size, 0)
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):  # as other processes get it
        for ids, text in zip(one.encode(SAMPLE), SAMPLE, strict=True):
            assert ids.tolist() == trained.encode([text])[0].tolist()
    assert 0 not in tokenizer.encode([f"x{END_OF_TEXT}"])[0]
    # Saved again it is an ordinary tokenizer, whose separator can be written out.
    tokenizer.save(tmp_path / "two")
    again = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert again(f"x{END_OF_TEXT}", add_special_tokens=False)["input_ids"][-1] == 0


def test_a_tokenizer_without_a_separator_or_that_is_not_there_is_named(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(DataError, match="has no end-of-sequence token"):
        load_tokenizer(str(tmp_path))
    for content in ("[]", "{", ""):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match="cannot be loaded"):
            load_tokenizer(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty cannot be loaded"):
        load_tokenizer(str(tmp_path / "empty"))
