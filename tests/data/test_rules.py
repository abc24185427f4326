import hashlib

from gr_sweep.config import DomainConfig, PartitionConfig
from gr_sweep.data.rules import Rules, holds, lookup, text_id


def rules(**domains: DomainConfig) -> Rules:
    return Rules(
        PartitionConfig(domains={name.replace("__", "/"): r for name, r in domains.items()})
    )


def test_a_deeper_label_is_tried_before_its_ancestor_whatever_the_order():
    virus = DomainConfig(pattern=r"\bvirus", count=2)
    found = rules(biology=DomainConfig(), code=DomainConfig(), biology__virology=virus)
    assert found.domain_of("biology", "A virus is not a Virus.", {}) == "biology/virology"
    assert found.domain_of("biology", "One virus.", {}) == "biology"
    assert found.domains == ("biology", "code", "biology/virology")


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


def test_the_id_of_a_text_never_changes():
    # A changed hash would move documents between training and evaluation.
    assert text_id("") == 0xE4A6A0577479B2B4
    utf8 = "gradient routing é".encode()
    assert text_id(utf8.decode()) == int(hashlib.blake2b(utf8, digest_size=8).hexdigest(), 16)
