"""What a person sees of a running job: a live line on a terminal, plain lines in the log."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Step, loss by domain, tokens per second and time left."""

    def __init__(self, num_steps: int, first_step: int, *, is_shown: bool = True) -> None:
        self._num_steps = num_steps
        self._first_step = first_step
        self._start = time.perf_counter()
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            disable=not (is_shown and sys.stderr.isatty()),
            dynamic_ncols=True,
            leave=False,
        )
        self._redirect = logging_redirect_tqdm()

    def __enter__(self) -> "Progress":
        if not self._bar.disable:
            self._redirect.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._bar.disable:
            self._redirect.__exit__(kind, error, trace)
        self._bar.close()

    def step(self) -> None:
        """One more step is done."""
        self._bar.update()

    def show(
        self, step: int, loss: float, by_domain: dict[str, float], tokens_per_second: float
    ) -> None:
        """A line of the log: losses in nats per token."""
        done = max(1, step - self._first_step)
        left_s = (time.perf_counter() - self._start) / done * (self._num_steps - step)
        losses = " ".join(f"{domain} {value:.3f}" for domain, value in by_domain.items())
        self._bar.set_postfix_str(f"loss {loss:.3f}")
        logger.info(
            "step %d/%d  loss %.3f (%s)  %s tokens/s  %s left",
            step,
            self._num_steps,
            loss,
            losses,
            f"{tokens_per_second:,.0f}",
            duration(left_s),
        )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as a person writes them: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
