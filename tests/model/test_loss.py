"""The chunked loss against logits and plain autograd, in float64 to 1e-10."""

import pytest
import torch
import torch.nn.functional as F

from gr_sweep.errors import PlanError
from gr_sweep.model import loss
from gr_sweep.model.loss import TokenLosses, linear_cross_entropy
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.memory import AllocatedBytes
from tests.model.compare import gradients, route
from tests.model.tiny import FAMILIES, VOCAB, tiny_ids, tiny_model
from tests.pairwise import crossed
from tests.reference import Cut, assert_same

DOMAINS = ("code", "biology")
COUNTS = {"code": 2, "biology": 2, "unlabelled": 1}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks that do not divide the positions."""
    monkeypatch.setattr(loss, "chunk_positions", lambda vocab_size, device: 3)


def drawn(num_positions=5, dtype=torch.float64):
    """Hidden states [2, T, 4], an unembedding of 11 tokens, targets of which two are ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, num_positions, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 11, (2, num_positions), generator=generator)
    targets[0, 1] = targets[1, -1] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(logits, targets):
    """Losses [N, T] as everybody computes them."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def test_sum_losses_and_gradients_are_those_of_whole_logits(small_chunks):
    hidden, weight, targets = drawn()
    loss_sum, losses = linear_cross_entropy(hidden, weight, targets)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets)[1], losses)
    assert losses.dtype == torch.float64 and not losses.requires_grad
    expected = plain(hidden @ weight.t(), targets)
    found = []
    for total, each in ((loss_sum, losses), (expected.sum(), expected)):
        hidden.grad = weight.grad = None
        (total / 7).backward()
        found.append({"sum": total, "losses": each, "hidden": hidden.grad, "w": weight.grad})
    assert_same(*({name: tensor.detach() for name, tensor in of.items()} for of in found))


def test_under_autocast_products_are_narrow_and_the_weights_gradient_is_summed_wide(monkeypatch):
    """Chunk by chunk in bfloat16 alone, 64 small sums of 1 would be lost against a large one."""
    monkeypatch.setattr(loss, "chunk_positions", lambda vocab_size, device: 4)
    hidden, weight, targets = drawn(128, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum, losses = linear_cross_entropy(hidden, weight, targets)
    loss_sum.backward()
    rough = weight.grad.clone()
    assert losses.dtype == rough.dtype == hidden.grad.dtype == torch.float32
    hidden.grad = weight.grad = None
    expected = plain(hidden @ weight.t(), targets)
    expected.sum().backward()
    assert not torch.equal(losses, expected)
    torch.testing.assert_close(losses, expected.detach(), rtol=0.05, atol=0.05)
    # A single rounding to bfloat16 of what is summed is up to 2**-9 of it.
    error = (rough - weight.grad).norm() / weight.grad.norm()
    assert error < 2**-8


@pytest.mark.parametrize("learns", [True, False])
def test_no_more_is_held_than_two_matrices_of_a_chunk(learns, small_chunks):
    """Logits and what comes of them; whole logits would be eight chunks, forward and backward."""
    hidden = torch.randn(2, 12, 4, requires_grad=learns)
    weight = torch.randn(997, 4, requires_grad=learns)
    targets = torch.zeros((2, 12), dtype=torch.int64)
    with AllocatedBytes() as allocated:
        loss_sum, _ = linear_cross_entropy(hidden, weight, targets)
        if learns:
            loss_sum.backward()
    chunk, of_weight = 3 * 997 * 4, 4 * weight.numel() if learns else 0
    assert allocated.peak - of_weight < 2.5 * chunk


def tokens_of(family_model, tokens):
    """Losses [N, T] by the model's own logits."""
    logits = family_model(input_ids=tokens[:, :-1], use_cache=False).logits
    return plain(logits, tokens[:, 1:])


@pytest.mark.usefixtures("exact_norms", "small_chunks")
@pytest.mark.parametrize(
    ("family", "tied"), [*((family, False) for family in FAMILIES), ("llama", True)]
)
def test_losses_and_gradients_are_those_of_the_model_s_own_logits(family, tied):
    model, twin = (tiny_model(family, tie_word_embeddings=tied) for _ in range(2))
    names = list(model.state_dict())
    routed = route_model(model, RoutePlan.none(model.config, domains=DOMAINS), "none")
    token_losses = TokenLosses(routed)
    assert list(model.state_dict()) == names and routed.model is model
    for seed in range(2):  # gradients add up over micro-batches
        tokens = tiny_ids(3, 6, seed=seed)
        loss_sum, losses = token_losses(tokens)
        (loss_sum / 30).backward()
        expected = tokens_of(twin, tokens)
        (expected.sum() / 30).backward()
        assert_same({"losses": losses}, {"losses": expected.detach()})
    assert_same(gradients(model), gradients(twin))


@pytest.mark.usefixtures("exact_norms", "small_chunks")
@pytest.mark.parametrize(
    ("edges", "rest", "labels", "tied", "adapter"),  # 0.3 is no binary fraction
    crossed(
        ["none", "weight", "act", "both"],
        [0.0, 0.3],
        ["rows", "tokens", "keep"],
        [False, True],
        [0, 3, "full"],
    ),
)
def test_where_the_core_is_foreign_the_unembedding_learns_as_its_linear_map_does(
    edges, rest, labels, tied, adapter
):
    def routed_model():
        # Granite divides its logits.
        model = tiny_model("granite", tie_word_embeddings=tied)
        adapters = {"unembed": adapter, "bias": bool(adapter)}
        plan = RoutePlan.forget(
            model.config, domains=DOMAINS, forget=["biology"], adapters=adapters
        )
        cut = Cut(edges, foreign_core_embeddings=rest, foreign_outputs=0.6)
        return route(model, plan, cut, 0.5 if labels == "rows" else 0.0)

    tokens = tiny_ids(5, 6)
    generator = torch.Generator().manual_seed(0)
    labels_NT = torch.randint(-1, 2, (5, 5), generator=generator)

    def context(routed):
        if labels == "keep":
            return routed.keep(["code"])
        return routed.batch(COUNTS) if labels == "rows" else routed.batch(labels_NT=labels_NT)

    routed, twin = routed_model(), routed_model()
    with context(routed):
        loss_sum, losses = TokenLosses(routed)(tokens)
        loss_sum.backward()
    with context(twin):
        expected = tokens_of(twin, tokens)
        expected.sum().backward()
    assert_same({"losses": losses}, {"losses": expected.detach()})
    assert_same(gradients(routed.model), gradients(twin.model))


def test_an_unembedding_with_a_bias_is_refused():
    model = tiny_model()
    routed = route_model(model, RoutePlan.none(model.config, domains=DOMAINS), "none")
    model.lm_head = torch.nn.Linear(16, VOCAB, bias=True)
    with pytest.raises(PlanError, match="without bias"):
        TokenLosses(routed)
