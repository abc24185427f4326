"""Documents in invented languages, one for each domain, with a known overlap.

A domain's grammar is a set of features: each of its words, sentence shapes, topics and habits
(which verb follows a noun). A feature is shared by all domains, by the domains below a node of the
tree, by two domains, or is private. Only `overlap` decides how many of each there are, so what two
domains have in common is known exactly.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from gr_sweep.domains import ancestors

GENERATOR = 1
"""Part of the fingerprint of the cache; increase it when the text changes."""

_WORDS = {"noun": 160, "verb": 80, "adjective": 80, "adverb": 32, "particle": 16}
_TOPIC_WORDS = {"noun": 24, "verb": 12, "adjective": 12, "adverb": 8}
_NUM_TOPICS = 12
_NUM_SHAPES = 10
_SENTENCES = (16, 30)
_SENTENCES_A_PARAGRAPH = 5

_NAMED_SUBJECT = 0.4
"""Share of sentences whose subject is the document's own noun, which a model can look back for."""
_HABIT = 0.7
"""Share of verbs that are the subject's usual one."""

_ONSETS = (
    *("b", "bl", "br", "d", "dr", "f", "fl", "g", "gl", "gr", "h", "j", "k", "kl", "kr", "l", "m"),
    *("n", "p", "pl", "pr", "r", "s", "sk", "sl", "sn", "st", "t", "tr", "v", "w", "z"),
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "k")


def generate(
    domains: Sequence[str], *, documents: int, overlap: float, seed: int = 0
) -> dict[str, list[str]]:
    """Documents of about 1200 characters by domain, deterministic in the arguments.

    Args:
        documents: number of documents for each domain.
        overlap: 0: domains share only the alphabet; 1: they have the same distribution. A share
            `overlap` of the features is common to all domains. Of the rest, half that share belongs
            to two top nodes of the tree (if there are more than two), and of what is then left, a
            share `overlap` to all labels below each inner node.
    """
    lexicon = _Lexicon(seed)
    for domain in domains:
        # Unused, but without these draws all later words would differ.
        lexicon.word("reserved", domain)
    grammars = [_Grammar(domain, domains, overlap, seed, lexicon) for domain in domains]
    return {grammar.domain: list(_documents(grammar, documents, seed)) for grammar in grammars}


def seeded(*parts: object) -> np.random.Generator:
    """A generator of random numbers that depends only on the parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


class _Lexicon:
    """Invents a different word for each meaning."""

    def __init__(self, seed: int) -> None:
        self._random = seeded("lexicon", seed)
        self._by_meaning: dict[tuple[object, ...], str] = {}
        self._taken: set[str] = set()

    def word(self, kind: str, *meaning: object) -> str:
        key = (kind, *meaning)
        while key not in self._by_meaning:
            syllables = 1 if kind == "particle" else 2 + int(self._random.random() < 0.3)
            word = "".join(
                part[int(self._random.random() * len(part))]
                for _ in range(syllables)
                for part in (_ONSETS, _VOWELS, _CODAS)
            )
            if word not in self._taken:
                self._taken.add(word)
                self._by_meaning[key] = word
        return self._by_meaning[key]


class _Grammar:
    """The features of one domain."""

    def __init__(
        self, domain: str, domains: Sequence[str], overlap: float, seed: int, lexicon: _Lexicon
    ) -> None:
        self.domain = domain
        self._tops = list(dict.fromkeys(name.split("/")[0] for name in domains))
        self._overlap = overlap
        self._seed = seed
        words = {
            kind: [lexicon.word(kind, rank, self._holder(kind, rank)) for rank in range(count)]
            for kind, count in _WORDS.items()
        }
        self.shapes = [_shape(self._feature("shape", number)) for number in range(_NUM_SHAPES)]
        self.shape_ends = _zipf_ends(len(self.shapes))
        self.particles = words["particle"]
        # Object arrays, so that a column of words is one indexing operation.
        self.topics: dict[str, np.ndarray] = {}
        for kind, count in _TOPIC_WORDS.items():
            rows = [
                self._feature("topic", kind, topic).permutation(_WORDS[kind])[:count]
                for topic in range(_NUM_TOPICS)
            ]
            self.topics[kind] = np.array(words[kind], dtype=object)[np.array(rows)]
        self.ends = {kind: _zipf_ends(count) for kind, count in _TOPIC_WORDS.items()}
        # For each noun of a topic, the index of its usual verb among the topic's verbs.
        shares = [
            [self._feature("habit", topic, n).random() for n in range(_TOPIC_WORDS["noun"])]
            for topic in range(_NUM_TOPICS)
        ]
        self.habits = (np.array(shares) * _TOPIC_WORDS["verb"]).astype(int)

    def _holder(self, *feature: object) -> str:
        """Who shares this feature with the domain: all, a node, a pair, or nobody. The draws are
        the same for all domains, so that those that share it agree."""

        def draw(*level: object) -> float:
            return float(seeded("share", self._seed, feature, *level).random())

        if draw("all") < self._overlap:
            return "all"
        top, *_ = nodes = ancestors(self.domain)
        if len(self._tops) > 2 and draw("pair?") < self._overlap / 2:
            order = seeded("pair", self._seed, feature).permutation(len(self._tops))
            pair = [self._tops[index] for index in order[:2]]
            if top in pair:
                return "+".join(sorted(pair))
        for node in nodes[:-1]:
            if draw("node", node) < self._overlap:
                return f"below {node}"
        return f"only {self.domain}"

    def _feature(self, *feature: object) -> np.random.Generator:
        return seeded("feature", self._seed, feature, self._holder(*feature))


def _shape(random: np.random.Generator) -> list[str]:
    """The order of a sentence's slots: subject, verb, object and what is between them."""
    slots = ["subject", "verb", "noun"]
    slots += [
        kind for kind in ("adjective", "adjective", "adverb", "noun") if random.random() < 0.5
    ]
    order = [slots[index] for index in random.permutation(len(slots))]
    places = sorted(random.permutation(len(order))[:3].tolist(), reverse=True)
    for place in places:
        # A particle with its rank: the same one at this position in every such sentence.
        order.insert(place, f"particle {int(random.random() * _WORDS['particle'])}")
    if random.random() < 0.3:
        order.insert(int(random.random() * (len(order) - 1)) + 1, ",")
    return order


def _zipf_ends(count: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, count + 1)
    return np.cumsum(weights / weights.sum())


def _pick(random: np.random.Generator, ends: np.ndarray, count: int) -> np.ndarray:
    return np.minimum(np.searchsorted(ends, random.random(count)), len(ends) - 1)


def _sentences(
    grammar: _Grammar, random: np.random.Generator, topic: np.ndarray, subject: np.ndarray
) -> list[str]:
    """A sentence for each entry of `topic`; `subject` is the index of its document's own noun."""
    count = len(topic)
    shape = _pick(random, grammar.shape_ends, count)
    noun = _pick(random, grammar.ends["noun"], count)
    noun = np.where(random.random(count) < _NAMED_SUBJECT, subject, noun)
    verb = _pick(random, grammar.ends["verb"], count)
    verb = np.where(random.random(count) < _HABIT, grammar.habits[topic, noun], verb)
    sentences: list[str] = [""] * count
    for number, slots in enumerate(grammar.shapes):
        (chosen,) = np.nonzero(shape == number)
        columns: list[list[str]] = []
        for slot in slots:
            if slot == ",":
                columns[-1] = [word + "," for word in columns[-1]]
            elif slot.startswith("particle"):
                columns.append([grammar.particles[int(slot.split()[1])]] * len(chosen))
            elif slot == "subject":
                columns.append(grammar.topics["noun"][topic[chosen], noun[chosen]].tolist())
            elif slot == "verb":
                columns.append(grammar.topics["verb"][topic[chosen], verb[chosen]].tolist())
            else:
                places = _pick(random, grammar.ends[slot], len(chosen))
                columns.append(grammar.topics[slot][topic[chosen], places].tolist())
        for index, words in zip(chosen.tolist(), zip(*columns, strict=True), strict=True):
            sentences[index] = " ".join(words).capitalize() + "."
    return sentences


def _documents(grammar: _Grammar, count: int, seed: int) -> Iterator[str]:
    random = seeded("documents", seed, grammar.domain)
    topics = (random.random(count) * _NUM_TOPICS).astype(int)
    subjects = (random.random(count) * _TOPIC_WORDS["noun"]).astype(int)
    low, high = _SENTENCES
    lengths = low + (random.random(count) * (high - low + 1)).astype(int)
    sentences = _sentences(
        grammar, random, np.repeat(topics, lengths), np.repeat(subjects, lengths)
    )
    start = 0
    for length in lengths.tolist():
        yield _text(sentences[start : start + length])
        start += length


def _text(sentences: list[str]) -> str:
    step = _SENTENCES_A_PARAGRAPH
    paragraphs = (
        " ".join(sentences[start : start + step]) for start in range(0, len(sentences), step)
    )
    return "\n\n".join(paragraphs)
