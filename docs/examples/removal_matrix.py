"""Read the removal matrix of a job: what is lost, and where, when a domain's part is removed.

As a script:   python docs/examples/removal_matrix.py [SWEEP]
As a notebook: removal_matrix.ipynb, which docs/notebooks.py makes of it.
"""

# %% The sweep: a folder of yours, or a tiny one that is made here (three jobs, about a minute)
import subprocess
import sys
from pathlib import Path

import pandas as pd
import plotly.express as px

import gr_sweep

is_script = "__file__" in globals()
sweep = Path(sys.argv[1] if is_script and len(sys.argv) > 1 else "outputs/example")

if not sweep.exists():
    tiny = ["model=tiny", "train.steps=60", "tracking=off", f"hydra.sweep.dir={sweep}"]
    subprocess.run(
        [sys.executable, "-m", "gr_sweep", "-m", "edges=both,act,weight", *tiny], check=True
    )

# %% The job whose domains are separated best
results = gr_sweep.results(sweep)
if results.get("mean_selectivity", pd.Series(dtype=float)).isna().all():
    sys.exit(
        f"{sweep} has no job that a domain can be removed from, and two others are left to read"
    )
job = results.loc[results["mean_selectivity"].idxmax()]
print(f"job: {job['job']}")

# %% Its matrix: separability/matrix/REMOVED/READ is the loss that removing one domain's part adds
# on the held-out text of another, in nats a token
prefix = "separability/matrix/"
cells = {
    tuple(name.removeprefix(prefix).split("/")): job[name]
    for name in results.columns
    if name.startswith(prefix) and not name.endswith(("/low", "/high")) and pd.notna(job[name])
}
matrix = pd.Series(cells).unstack()
domains = [domain for domain in matrix.index if domain in matrix.columns]
matrix = matrix.loc[domains, domains].rename_axis(index="removed", columns="read")
print(matrix.round(3).to_string())

# %% What it says. On the diagonal stands what a domain loses with its own part: it should be large.
# Beside it stands what the others lose: it should be near zero, and below zero they even gain.
for domain in domains:
    own = matrix.loc[domain, domain]
    others = matrix.loc[domain].drop(domain).mean()
    key = f"separability/selectivity/{domain}"  # in which gains of the others count as 0
    low, high = (job.get(f"{key}/{end}") for end in ("low", "high"))
    if low is None or pd.isna(low):
        print(f"without {domain}: its own loss {own:+.3f}; no interval, so no verdict")
        continue
    verdict = "separated" if low > 0 else "not told from chance"
    print(
        f"without {domain}: its own loss {own:+.3f}, that of the others {others:+.3f} on average; "
        f"selectivity {job[key]:+.3f} ({low:+.3f} to {high:+.3f}): {verdict}"
    )

# %% The same as a picture: red is lost, blue is gained
most = matrix.abs().to_numpy().max()
figure = px.imshow(
    matrix,
    text_auto="+.2f",
    color_continuous_scale="RdBu_r",
    zmin=-most,
    zmax=most,
    title="Loss that a removal adds (nats a token)",
)
figure.write_html(sweep / "removal_matrix.html")
print(f"figure: {sweep / 'removal_matrix.html'}")
if not is_script:
    figure.show()
