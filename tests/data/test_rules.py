import hashlib

import pytest

from gr_sweep.config import DomainConfig, PartitionConfig
from gr_sweep.data.rules import Rules, holds, is_held_out, lookup, text_id
from gr_sweep.data.synthetic import generate
from gr_sweep.errors import ConfigError


def rules(**domains: DomainConfig) -> Rules:
    return Rules(
        PartitionConfig(domains={name.replace("__", "/"): r for name, r in domains.items()})
    )


def test_the_source_is_the_first_part_of_the_label_unless_it_is_named():
    found = rules(biology__virology=DomainConfig(), tales=DomainConfig(source="books"))
    assert found.sources == ["biology", "books"]
    assert found.domain_of("biology", "text", {}) == "biology/virology"
    assert found.domain_of("books", "text", {}) == "tales"
    assert found.domain_of("code", "text", {}) is None
    assert found.domains_of("books") == ["tales"]


def test_a_deeper_label_is_tried_before_its_ancestor_whatever_the_order():
    virus = DomainConfig(pattern=r"\bvirus", count=2)
    found = rules(biology=DomainConfig(), code=DomainConfig(), biology__virology=virus)
    assert found.domain_of("biology", "A virus is not a Virus.", {}) == "biology/virology"
    assert found.domain_of("biology", "One virus.", {}) == "biology"
    assert found.domains == ("biology", "code", "biology/virology")


def test_the_first_rule_in_the_order_of_the_domains_wins():
    long = DomainConfig(source="s", pattern="a")
    wide = DomainConfig(source="s", pattern="[ab]")
    assert rules(one=long, two=wide).domain_of("s", "a", {}) == "one"
    assert rules(two=wide, one=long).domain_of("s", "a", {}) == "two"
    assert rules(one=long, two=wide).domain_of("s", "c", {}) is None


def test_fields_are_compared_as_text_and_may_be_lists_or_nested():
    assert holds({"year": 1999}, "year", ["1999"])
    assert holds({"open": True}, "open", ["true"])
    assert holds({"tags": ["x", "y"]}, "tags", ["y"])
    assert holds({"meta": {"lang": "en"}}, "meta.lang", ["en"])
    assert not holds({"meta": "en"}, "meta.lang", ["en"])
    assert not holds({}, "lang", ["None"])
    assert lookup({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


def test_field_and_pattern_must_both_fit():
    config = DomainConfig(source="s", field="lang", values=["en"], pattern="cat")
    found = rules(one=config)
    assert found.domain_of("s", "CAT", {"lang": "en"}) == "one"
    assert found.domain_of("s", "CAT", {"lang": "de"}) is None
    assert found.domain_of("s", "dog", {"lang": "en"}) is None
    assert found.fields_of("s") == ["lang"]


def test_a_broken_rule_is_named():
    with pytest.raises(ConfigError, match=r"partition\.domains\.a\.pattern"):
        rules(a=DomainConfig(pattern="("))
    with pytest.raises(ConfigError, match=r"partition\.domains\.a: set both field and values"):
        rules(a=DomainConfig(field="x"))


def test_the_id_of_a_text_never_changes():
    # A changed hash would move documents between training and evaluation.
    assert text_id("") == 0xE4A6A0577479B2B4
    utf8 = "gradient routing é".encode()
    assert text_id(utf8.decode()) == int(hashlib.blake2b(utf8, digest_size=8).hexdigest(), 16)


def test_a_twentieth_of_the_documents_is_held_out():
    texts = generate(["a"], documents=2000, overlap=0.0)["a"]
    # 100 expected, standard deviation 10.
    assert 60 < sum(is_held_out(text_id(text)) for text in texts) < 140
