"""Errors the user can fix; the command line prints them as one line and exits with status 2.

Any other exception is a bug and keeps its traceback.
"""

_HALF = 1000
"""Characters at both ends of a longer message that are shown."""


class GrSweepError(Exception):
    """Says in one line what was given, what is allowed and what to do.

    Messages may quote anything: line breaks and control characters are escaped here.
    """

    is_shared = False
    """Whether every process of a job raises it, so that all continue with the next job."""

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        return line if len(line) <= 2 * _HALF else f"{line[:_HALF]} ... {line[-_HALF:]}"


class ConfigError(GrSweepError):
    """A setting, or a combination of settings, that no job can have."""


class PlanError(GrSweepError):
    """A plan that does not fit its domains or model, or a model that routing does not support."""


class DataError(GrSweepError):
    """Text, a checkpoint or another file that is missing, unreadable, damaged or too short."""


class JobError(GrSweepError):
    """A job, or an action on a job's folder, that cannot continue."""

    is_resumable = False
    """Whether the job was interrupted, not wrong: one of its processes was lost."""


class JobLockedError(JobError):
    """A job that another process is running."""
