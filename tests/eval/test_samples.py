import contextlib

import pytest
import torch

from gr_sweep.config import EvalConfig
from gr_sweep.eval.finetune import seeded
from gr_sweep.eval.removal import views_of
from gr_sweep.eval.samples import MIN_P, TEMPERATURE, Prompt, Sampler, choose_prompts
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from tests.eval.tiny import DOMAINS, LENGTH, Letters, make_routed, shards, state_of

EOT = 0


def prompts_of(samples: int = 2, sequence_length: int = 2 * LENGTH, **options) -> list[Prompt]:
    settings = {"sample_prompt_tokens": 3, "sample_tokens": 9} | options
    config = EvalConfig(samples=samples, **settings)
    return choose_prompts(shards(8, seed=1), config, sequence_length)


def sample(routed: RoutedModel, prompts: list[Prompt] | None = None, seed: int = 5, recover=None):
    return Sampler(
        routed=routed,
        token_losses=TokenLosses(routed),
        prompts=prompts_of() if prompts is None else prompts,
        config=EvalConfig(sample_tokens=9, batch_sequences=16),
        tokenizer=Letters(),
        begin=[EOT],
        eot_id=EOT,
        sequence_length=2 * LENGTH,
        seed=seed,
    ).sample(recover=recover)


def texts(content: dict) -> dict[tuple[str, str, str | None], tuple[str, str]]:
    """By domain and document, kind and part."""
    return {
        (f"{prompt['domain']} {prompt['document']}", sample["kind"], sample["part"]): (
            sample["text"],
            sample["end"],
        )
        for prompt in content["prompts"]
        for sample in prompt["samples"]
    }


def name_of(prompt: Prompt) -> str:
    return f"{prompt.domain} {prompt.document:016x}"


def slowly(routed: RoutedModel, prompts: list[Prompt], num_tokens: int) -> list[tuple[str, str]]:
    """Prompts of one length, the whole text computed again for each token."""
    ids_NT = torch.tensor([[EOT, *prompt.ids] for prompt in prompts])
    with seeded(5, 0), torch.no_grad():
        for _ in range(num_tokens):
            logits_NV = routed(input_ids=ids_NT).logits[:, -1].float()
            likely_NV = (logits_NV / TEMPERATURE).softmax(1)
            likely_NV[likely_NV < MIN_P * likely_NV.amax(1, keepdim=True)] = 0
            drawn_N1 = torch.multinomial(likely_NV / likely_NV.sum(1, keepdim=True), 1)
            ids_NT = torch.cat([ids_NT, drawn_N1], 1)
    found = []
    for prompt, ids in zip(prompts, ids_NT.tolist(), strict=True):
        text = Letters().decode(ids[1 + len(prompt.ids) :])
        whole, is_ended, _ = text.partition(Letters().decode([EOT]))
        found.append((whole, "end_of_text" if is_ended else "length"))
    return found


@pytest.mark.parametrize(
    ("kind", "options"),
    [("peers", {"attn_shared": 0.25}), ("forget", {"forget": ["biology"]})],
)
def test_every_variant_writes_what_the_model_says_token_by_token(kind, options):
    routed = make_routed(kind, **options)
    routed.model.double()
    prompts = prompts_of(1)
    found = texts(sample(routed, prompts))
    views = views_of(routed.plan)
    assert len(found) == len(prompts) * len(views)
    for view, part, off in views:
        with routed.blocks_off(off):
            expected = slowly(routed, prompts, 9)
        assert [found[name_of(prompt), view, part or None] for prompt in prompts] == expected
    assert {end for _, end in found.values()} == {"length", "end_of_text"}
    assert texts(sample(routed, prompts, seed=6)) != found


def test_text_without_a_domain_is_of_the_recovered_model():
    routed = make_routed("forget", forget=["biology"])
    entered = []

    @contextlib.contextmanager
    def recovered(part):
        entered.append(part)
        before = state_of(routed.model)
        with torch.no_grad():
            for parameter in routed.model.parameters():
                parameter.mul_(1.5)
        yield
        routed.model.load_state_dict(before)

    plain, found = texts(sample(routed)), texts(sample(routed, recover=recovered))
    assert entered == ["biology"]
    with recovered("biology"):
        inside = texts(sample(routed))
    for key, written in found.items():
        # What is left without biology is what keeping code alone leaves.
        is_recovered = key[1:] not in [("full", None), ("kept", "biology")]
        assert written == (inside if is_recovered else plain)[key]
    assert found != plain


def test_prompts_are_the_beginnings_of_the_first_documents_that_are_long_enough():
    held = shards(8, seed=1)
    found = prompts_of(3)
    assert [prompt.domain for prompt in found] == [d for d in DOMAINS for _ in range(3)]
    for domain, shard in held.items():
        long_enough = [i for i in range(8) if len(shard.document(i)) > 3 + 9]
        of_domain = [prompt for prompt in found if prompt.domain == domain]
        assert [p.document for p in of_domain] == [int(shard.ids[i]) for i in long_enough[:3]]
        for prompt, index in zip(of_domain, long_enough, strict=False):
            assert [*prompt.ids, *prompt.follows] == shard.document(index)[: 3 + 9].tolist()
            assert len(prompt.ids) == 3
    # No longer than what the model was trained on.
    for prompt in prompts_of(3, 8, sample_prompt_tokens=100, sample_tokens=100):
        assert (len(prompt.ids), len(prompt.follows)) == (4, 4)


def test_failed_sampling_does_not_fail_the_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    routed = make_routed("peers")
    monkeypatch.setattr(routed.model, "generate", out_of_memory)
    assert sample(routed) is None
    [record] = caplog.records
    assert "no samples.json" in record.getMessage() and "20.00 GiB" in record.getMessage()
