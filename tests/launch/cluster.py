"""Scripts that stand in for SLURM's commands; the queue is a text file."""

import os
from pathlib import Path

_SBATCH = """#!/bin/bash
here=$(dirname "$0")
if [ "$1" = --test-only ]; then
  [ ! -e "$here/away" ] || { echo "sbatch: error: Unable to contact slurm controller" >&2; exit 1; }
  [ ! -e "$here/small" ] || { echo "sbatch: error: no such node" >&2; exit 1; }
  exit 0
fi
if [ -e "$here/refuses" ]; then cat "$here/refuses" >&2; exit 1; fi
number=$(( $(cat "$here/last" 2>/dev/null || echo 10) + 1 ))
echo $number >"$here/last"
cp "$1" "$here/$number.sh"
env >"$here/$number.env"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for id in $([ -z "$last" ] && echo $number || seq -f "${number}_%g" 0 "$last"); do
  echo "$id" >>"$here/queue"
done
echo "Submitted batch job $number"
"""

_SQUEUE = """#!/bin/bash
here=$(dirname "$0")
[ ! -e "$here/away" ] || { echo "Unable to contact slurm controller" >&2; exit 1; }
[ -z "$SQUEUE_STATES" ] || exit 0
cat "$here/queue"
"""

_SCONTROL = """#!/bin/bash
here=$(dirname "$0")
[ -e "$here/$3.state" ] || { echo "Invalid job id specified" >&2; exit 1; }
echo "JobId=7 ArrayJobId=7"
echo "   JobState=$(cat "$here/$3.state") Reason=NonZeroExitCode Dependency=(null)"
"""


class Cluster:
    """Controls the scripts, and shows what was submitted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        scripts = {"sbatch": _SBATCH, "squeue": _SQUEUE, "scontrol": _SCONTROL}
        for name, script in scripts.items():
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        (folder / "srun").symlink_to("sbatch")
        (folder / "queue").touch()

    @property
    def path(self) -> str:
        """For PATH."""
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    @property
    def scripts(self) -> list[str]:
        """What was submitted, in order."""
        files = sorted(self.folder.glob("*.sh"), key=lambda path: int(path.stem))
        return [path.read_text() for path in files]

    def put(self, number: str) -> None:
        """Puts a job into the queue."""
        with (self.folder / "queue").open("a") as file:
            file.write(f"{number}\n")

    def end(self, number: str, state: str | None = None) -> None:
        """Takes a job out of the queue; without a state SLURM forgets it."""
        queue = self.folder / "queue"
        lines = queue.read_text().splitlines(keepends=True)
        queue.write_text("".join(line for line in lines if line != f"{number}\n"))
        if state is not None:
            (self.folder / f"{number}.state").write_text(state)

    def is_too_small(self) -> None:
        """Makes all jobs ask for more than there is."""
        (self.folder / "small").touch()

    def is_away(self, away: bool) -> None:
        """Whether the controller does not answer."""
        (self.folder / "away").touch() if away else (self.folder / "away").unlink()

    def refuses(self, reason: str) -> None:
        """Makes sbatch refuse all jobs for this reason."""
        (self.folder / "refuses").write_text(f"sbatch: error: {reason}\n")
