import hashlib
import re
from collections import Counter
from itertools import pairwise

from gr_sweep.data.synthetic import (
    GENERATOR,
    generate,
)

THREE = ["code", "biology", "creative"]


def words(texts: list[str]) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+", " ".join(texts).lower()))


def shared(one: Counter[str], other: Counter[str]) -> float:
    """Overlap of two word distributions, 0..1."""
    total, other_total = one.total(), other.total()
    return sum(min(one[word] / total, other[word] / other_total) for word in one)


def shared_words(domains: list[str], overlap: float, documents: int = 150) -> dict:
    counts = {
        domain: words(texts)
        for domain, texts in generate(domains, documents=documents, overlap=overlap).items()
    }
    return {(a, b): shared(counts[a], counts[b]) for a in domains for b in domains if a < b}


def test_text_does_not_change_while_the_generator_has_this_number():
    texts = generate(THREE, documents=40, overlap=0.5)
    digest = hashlib.blake2b(repr(texts).encode(), digest_size=8).hexdigest()
    assert (GENERATOR, digest) == (1, "e84c254e0e1a093c")


def test_what_is_shared_rises_with_overlap():
    means = []
    for overlap in (0.0, 0.5, 1.0):
        shares = shared_words(THREE, overlap).values()
        means.append(sum(shares) / len(shares))
    assert means == sorted(means) and means[0] == 0 and means[-1] > 0.9
    assert all(later - earlier > 0.1 for earlier, later in pairwise(means))


def test_siblings_in_the_tree_share_more_than_others():
    shares = shared_words(["biology/cell", "biology/virology", "code", "creative"], 0.5)
    siblings = shares.pop(("biology/cell", "biology/virology"))
    assert siblings > max(shares.values()) + 0.05
