import hashlib

from hypothesis import given
from hypothesis import strategies as st

from gr_sweep.data.heldout import is_held_out, text_id
from gr_sweep.data.synthetic import generate


@given(st.text())
def test_the_id_is_the_first_64_bits_of_blake2b_of_the_utf8_text(text):
    expected = hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()
    assert f"{text_id(text):016x}" == expected


def test_the_id_never_changes():
    # A changed hash would move documents between training and evaluation.
    assert text_id("") == 0xE4A6A0577479B2B4
    assert text_id("gradient routing") == int(
        hashlib.blake2b(b"gradient routing", digest_size=8).hexdigest(), 16
    )


def test_a_twentieth_of_the_documents_is_held_out():
    texts = generate(["a"], documents=4000, overlap=0.0)["a"]
    held_out = sum(is_held_out(text_id(text)) for text in texts)
    # 200 expected, standard deviation 14.
    assert 140 < held_out < 260
