"""What a running job shows: a progress bar on a terminal, and a line in the log for each row."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping

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

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, log lines appear above the bar."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(self._bar))
            if not self._bar.disable:
                stack.enter_context(logging_redirect_tqdm())
            yield

    def step(self) -> None:
        """Counts a finished step."""
        self._bar.update()

    def log(
        self, step: int, loss: float, by_domain: Mapping[str, float], tokens_per_second: float
    ) -> None:
        """Logs a line; losses are in nats per token."""
        done = max(1, step - self._first_step)
        left_s = (time.perf_counter() - self._start) / done * (self._num_steps - step)
        losses = " ".join(f"{domain} {value:.3f}" for domain, value in by_domain.items())
        self._bar.set_postfix_str(f"loss {loss:.3f}")
        logger.info(
            f"step {step}/{self._num_steps}  loss {loss:.3f} ({losses})  "
            f"{tokens_per_second:,.0f} tokens/s  {tqdm.format_interval(left_s)} left"
        )
