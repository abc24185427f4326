import numpy as np
import pytest

from gr_sweep.data.markers import (
    MARKER_EVERY,
    marked,
    marker_places,
    marker_text,
    marker_tokens,
    swapped_markers,
)

DOMAINS = ("code", "biology", "biology/virology")


def bytes_of(texts):
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


def test_a_marker_is_a_line_of_its_own_that_follows_from_the_name():
    texts = [marker_text(domain) for domain in DOMAINS]
    assert len(set(texts)) == 3
    # Another word would be another experiment.
    assert texts[0] == marker_text("code") == "\n@@ Tusbinsin\n"


def test_markers_have_one_length_and_begin_with_their_own_tokens():
    def encode(texts):
        return [ids[: 4 + 2 * place] for place, ids in enumerate(bytes_of(texts))]

    markers = marker_tokens(DOMAINS, encode)
    assert list(markers) == list(DOMAINS)
    for (domain, ids), own in zip(markers.items(), encode(map(marker_text, DOMAINS)), strict=True):
        assert len(ids) == 8, domain
        assert ids[: len(own)].tolist() == own.tolist()
        assert set(ids[len(own) :].tolist()) <= {int(own[-1])}
    first, *others = markers.values()
    assert all(map(np.array_equal, swapped_markers(markers).values(), [*others, first]))


@pytest.mark.parametrize("num_tokens", [0, MARKER_EVERY, 2 * MARKER_EVERY + 3])
def test_a_marker_stands_before_the_first_token_and_again_at_fixed_distances(num_tokens):
    places = [0, MARKER_EVERY, 2 * MARKER_EVERY][: -(-num_tokens // MARKER_EVERY)]
    assert marker_places(num_tokens).tolist() == places
    tokens = np.arange(num_tokens, dtype=np.uint16)
    marker = np.array([900, 901])
    expected = []
    for place, token in enumerate(tokens.tolist()):
        if place in places:
            expected += [900, 901]
        expected.append(token)
    found = marked(tokens, marker)
    assert found.tolist() == expected
    assert found.dtype == np.uint16
