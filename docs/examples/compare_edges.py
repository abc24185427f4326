"""Compare the jobs of a sweep: a table, and a figure of what separation costs.

As a script:   python docs/examples/compare_edges.py [SWEEP]
As a notebook: compare_edges.ipynb, which docs/notebooks.py makes of it.
"""

# %% The sweep: a folder of yours, or a tiny one that is made here (three jobs, about a minute)
import subprocess
import sys
from pathlib import Path

import plotly.express as px
import plotly.graph_objects as go

import gr_sweep

is_script = "__file__" in globals()
sweep = Path(sys.argv[1] if is_script and len(sys.argv) > 1 else "outputs/example")

if not sweep.exists():
    tiny = ["model=tiny", "train.steps=60", "tracking=off", f"hydra.sweep.dir={sweep}"]
    subprocess.run(
        [sys.executable, "-m", "gr_sweep", "-m", "edges=both,act,weight", *tiny], check=True
    )

# %% A row a job: its label, the settings in which the jobs differ, the others, then the metrics
results = gr_sweep.results(sweep)
print(f"{len(results)} jobs that differ in {', '.join(results.attrs['varied']) or 'nothing'}")

# mean_served_loss: held-out loss of the served model, nats a token; lower is better.
# mean_selectivity: what removing a domain costs the domain itself, less what it costs the others;
# higher is better, and 0 means that nothing was separated.
if "mean_selectivity" not in results:
    sys.exit(f"no job of {sweep} has a part to remove: there is no separation to compare")
columns = ["label", "mean_served_loss", "mean_selectivity", "cost/train_seconds"]
print(results[columns].sort_values("mean_served_loss").round(3).to_string(index=False))

# %% The same as a figure: to the left costs less, up separates more. The bars are 95 % intervals
# over held-out documents; another seed moves a job too, so sweep seed=0,1,2 before you conclude


def interval(metric: str) -> dict[str, object]:
    """The 95 % interval of a metric, as plotly draws it."""
    value, low, high = (results[metric + end] for end in ("", "/low", "/high"))
    return {"type": "data", "array": high - value, "arrayminus": value - low}


separation = go.Figure(
    go.Scatter(
        x=results["mean_served_loss"],
        y=results["mean_selectivity"],
        error_x=interval("mean_served_loss"),
        error_y=interval("mean_selectivity"),
        mode="markers+text",
        text=results["label"],
        textposition="top right",
    )
)
separation.update_layout(
    template="simple_white",
    title="What separation costs",
    xaxis_title="mean held-out loss (nats a token)",
    yaxis_title="mean selectivity (nats a token)",
)
separation.write_html(sweep / "compare_edges.html")
print(f"figure: {sweep / 'compare_edges.html'}")
if not is_script:
    separation.show()

# %% The curves: a row a job and step, which is there while a job still runs, too
history = gr_sweep.history(sweep).merge(results[["job", "label"]])
held_out = [name for name in history.columns if name.startswith("eval/loss/")]
curves = px.line(
    history.dropna(subset=held_out),
    x="step",
    y=held_out,
    color="label",
    line_dash="variable",
    labels={"value": "held-out loss (nats a token)"},
    template="simple_white",
)
curves.write_html(sweep / "curves.html")
print(f"curves: {sweep / 'curves.html'}")
if not is_script:
    curves.show()
