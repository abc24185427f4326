"""Errors that a user can mend; the command line prints them as one line and exits 2.

Everything else keeps its traceback: it is a bug of ours.
"""

_MOST_CHARACTERS = 2000
"""Of a message; what is longer quotes something that nobody reads to its end."""


class GrSweepError(Exception):
    """What was given, what is allowed, and what to do, in one line.

    Names and values are quoted as they are: here is the one place that sees to it that a line break
    or a terminal's control sequence in one of them stays text.
    """

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        half = _MOST_CHARACTERS // 2
        return line if len(line) <= 2 * half else f"{line[:half]} ... {line[-half:]}"


class ConfigError(GrSweepError):
    """A setting, or a combination of settings, that no run can have."""


class PlanError(GrSweepError):
    """A plan that does not fit its domains or its model, or rows that do not fit a plan."""


class DataError(GrSweepError):
    """Text that cannot be read, is missing, or is too little; names file and line."""


class ModelError(GrSweepError):
    """A model that cannot be loaded or that routing does not know."""


class TrainError(GrSweepError):
    """Training that cannot go on: a loss that is not finite."""


class JobError(GrSweepError):
    """A job that cannot be run where it was asked for."""


class HeldError(JobError):
    """A job that another process runs."""


class LostError(JobError):
    """A job that lost one of its processes; nothing is wrong with it, and it can go on."""


class CheckpointError(GrSweepError):
    """A checkpoint that cannot be read or belongs to another run."""


class SummaryError(GrSweepError):
    """A summary.json that is not as it was written."""


class FullDiskError(GrSweepError, OSError):
    """A disk or a quota without room for what is to be written.

    An OSError too: who can do without a file goes on without it.
    """


class ReportError(GrSweepError):
    """A folder that no report can be made of."""


class TrackingError(GrSweepError):
    """A W&B server that is away or refuses, or jobs that it cannot show together."""


class ExportError(GrSweepError):
    """A run that cannot be exported, or a folder that it cannot be written to."""
