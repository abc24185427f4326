import pytest

from gr_sweep.train.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03")]
)
def test_durations_read_as_a_person_writes_them(seconds, text):
    assert duration(seconds) == text


def test_a_line_names_step_losses_speed_and_time_left(caplog):
    caplog.set_level("INFO", logger="gr_sweep")
    with Progress(20, 0) as progress:
        progress.step()
        progress.show(10, 5.5, {"code": 5.0, "biology": 6.0}, 12345.6)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("step 10/20  loss 5.500 (code 5.000 biology 6.000)  12,346 tokens/s")
    assert line.endswith(" left")
