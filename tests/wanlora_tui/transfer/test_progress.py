"""What is said of a transfer while it lasts."""

from wanlora_tui.transfer.progress import Progress


def test_a_line_has_bytes_rate_and_time_left():
    now, shown = 0.0, []
    progress = Progress(10 * 2**20, shown.append, 1.0, clock=lambda: now)
    progress.begin("a_low_noise.safetensors")
    progress.had(2**20)
    for _ in range(4):
        now += 0.5
        progress.moved(2**20)
    assert shown == [
        "a_low_noise.safetensors  3.0 MiB of 10.0 MiB  2.0 MiB/s  ETA 4s",
        "a_low_noise.safetensors  5.0 MiB of 10.0 MiB  2.0 MiB/s  ETA 2s",
    ]
    progress.end(2**20)
    assert progress.done == 2**20
