"""Route a Hugging Face model of your own: train it, remove a domain, keep one alone, take it out.

As a script:   python docs/examples/route_own_model.py
As a notebook: route_own_model.ipynb, which docs/notebooks.py makes of it.
"""

# %% A model. Any Llama, Mistral, Qwen, OLMo, Gemma, Granite, Phi or GPT model of transformers will
# do; this one is tiny, its weights are random and its tokens are bytes: nothing is downloaded
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gr_sweep import RoutePlan, route_model

torch.manual_seed(0)
torch.set_num_threads(1)  # so small a model is quickest on one core
config = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
)
model = LlamaForCausalLM(config)

# %% Text of three domains. Put your own here: all that is needed is the label of each sequence
PATTERNS = {
    "code": ("def {0}({1}): return {1} + {0}\n", ["total", "index", "merge", "scale", "width"]),
    "biology": ("The {0} of a cell binds the {1}.\n", ["protein", "enzyme", "membrane", "lipid"]),
    "creative": ("O {0}, she sang, where is my {1}?\n", ["moon", "river", "winter", "lantern"]),
}
DOMAINS = list(PATTERNS)
LENGTH = 64


def sequences(domain: str, count: int, draw: random.Random) -> torch.Tensor:
    """Token ids [count, LENGTH]: sentences of one domain."""
    pattern, words = PATTERNS[domain]
    rows = []
    for _ in range(count):
        text = "".join(pattern.format(*draw.choices(words, k=2)) for _ in range(4))
        rows.append(list(text.encode("ascii")[:LENGTH]))
    return torch.tensor(rows)


# %% A plan: in each MLP half of the hidden units are the core, which all domains share, and every
# domain owns a sixth. Then the model is routed: text of one domain gives no gradient to the weights
# of a block that is another's (edges="weight"), and half of the time it goes through the network
# with that block switched off (foreign_dropout)
plan = RoutePlan.peers(model.config, domains=DOMAINS, mlp_shared=0.5)
routed = route_model(model, plan, edges="weight", foreign_dropout=0.5)

# %% Training, as ever: what is new is the line that says how many sequences of each domain there
# are, in the order in which they stand
draw = random.Random(0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(1, 91):
    tokens = torch.cat([sequences(domain, 4, draw) for domain in DOMAINS])
    with routed.batch(dict.fromkeys(DOMAINS, 4)):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
    routed.clip_grad_norm_(1.0)  # each owner's gradients by themselves
    optimizer.step()
    optimizer.zero_grad()
    if step % 30 == 0:
        print(f"step {step}: loss {loss.item():.3f} nats a token")

# %% What each removal does to each domain, on text that is drawn anew
anew = random.Random(1)
held_out = {domain: sequences(domain, 32, anew) for domain in DOMAINS}


@torch.no_grad()
def losses() -> list[float]:
    """Loss on each domain of the model as it stands, nats a token."""
    return [model(input_ids=held_out[d], labels=held_out[d]).loss.item() for d in DOMAINS]


print(f"{'loss on':<20}" + "".join(f"{domain:>10}" for domain in DOMAINS))
print(f"{'full model':<20}" + "".join(f"{loss:10.3f}" for loss in losses()))
for domain in DOMAINS:
    with routed.remove([domain]):
        print(f"{f'without {domain}':<20}" + "".join(f"{loss:10.3f}" for loss in losses()))
with routed.keep(["biology"]):
    print(f"{'biology alone':<20}" + "".join(f"{loss:10.3f}" for loss in losses()))

# %% The expert as an ordinary, smaller model, which knows nothing of routing and computes the same
small = routed.extract(keep=["biology"])
with torch.no_grad(), routed.keep(["biology"]):
    expected = model(input_ids=held_out["biology"]).logits
    difference = (small(input_ids=held_out["biology"]).logits - expected).abs().max().item()
print(
    f"extracted: {small.num_parameters():,} of {model.num_parameters():,} parameters, MLPs of "
    f"{small.config.intermediate_size} of {config.intermediate_size} units; "
    f"logits differ by {difference:.1e} at most"
)
# small.save_pretrained("biology-model") writes it as a checkpoint.
