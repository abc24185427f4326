from gr_sweep.train.progress import Progress


def test_a_line_names_step_losses_speed_and_time_left(caplog):
    caplog.set_level("INFO", logger="gr_sweep")
    progress = Progress(20, 0)
    with progress.shown():
        progress.step()
        progress.log(10, 5.5, {"code": 5.0, "biology": 6.0}, 12345.6)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("step 10/20  loss 5.500 (code 5.000 biology 6.000)  12,346 tokens/s")
    assert line.endswith(" left")
