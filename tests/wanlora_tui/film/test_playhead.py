"""Which frame is due, with a clock that is moved by hand."""

from wanlora_tui.film.playhead import Playhead, frame_at


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def head(frames: int = 10, fps: float = 10.0) -> tuple[Playhead, Clock]:
    clock = Clock()
    playhead = Playhead(clock)
    playhead.load([i / fps for i in range(frames)], frames / fps)
    return playhead, clock


def test_it_plays_at_the_pace_of_the_film_and_round():
    playhead, clock = head()
    assert not playhead.moved and playhead.frame == 0
    playhead.toggle()
    seen = []
    for _ in range(12):
        seen.append(playhead.frame)
        clock.now += playhead.wait
    assert seen == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_a_late_one_drops_frames_and_is_not_slowed():
    playhead, clock = head()
    playhead.toggle()
    clock.now += 0.73
    assert playhead.frame == 7 and abs(playhead.wait - 0.07) < 1e-9
    clock.now += 10.1  # ten times round, and one frame
    assert playhead.frame == 8


def test_a_film_of_varying_pace():
    clock = Clock()
    playhead = Playhead(clock)
    playhead.load([0.0, 0.1, 0.7], 1.0)
    playhead.toggle()
    assert abs(playhead.wait - 0.1) < 1e-9
    clock.now += 0.2
    assert playhead.frame == 1 and abs(playhead.wait - 0.5) < 1e-9


def test_pausing_stepping_and_the_ends():
    playhead, clock = head()
    playhead.toggle()
    clock.now += 0.35
    playhead.toggle()
    clock.now += 5
    assert playhead.frame == 3 and not playhead.playing
    playhead.step(1)
    assert playhead.frame == 4
    playhead.seek(-1)
    assert playhead.frame == 9
    playhead.step(1)
    assert playhead.frame == 0, "round"
    playhead.step(-1)
    assert playhead.frame == 9
    playhead.toggle()
    clock.now += 0.1
    assert playhead.frame == 0, "plays on from there"
    playhead.step(-1)
    assert not playhead.playing, "who steps wants to look"
    playhead.reset()
    assert not playhead.moved


def test_held_while_nobody_can_look_it_goes_on_from_there():
    playhead, clock = head()
    playhead.toggle()
    clock.now += 0.25
    playhead.hold()
    clock.now += 60
    assert playhead.playing and playhead.frame == 2
    playhead.run_on()
    clock.now += 0.1
    assert playhead.frame == 3


def test_another_film_under_way_keeps_the_position():
    playhead, clock = head()
    playhead.toggle()
    clock.now += 0.5
    playhead.load([i / 10 for i in range(20)], 2.0)
    assert playhead.frame == 5 and playhead.frames == 20
    clock.now += 1.0
    assert playhead.frame == 15
    playhead.load([i / 10 for i in range(10)], 1.0)
    assert playhead.frame == 5


def test_times_that_are_rounded():
    times = [round(i / 16, 4) for i in range(16)]
    assert [frame_at(times, i / 16) for i in range(16)] == list(range(16))
    assert frame_at(times, -1) == 0 and frame_at(times, 99) == 15


def test_keys_that_come_before_the_film():
    for keys, frame in (([0, "+", "+"], 2), ([-1, "-"], 8), (["+"], 1), (["-"], 9)):
        playhead = Playhead(Clock())
        for key in keys:
            playhead.seek(key) if isinstance(key, int) else playhead.step(1 if key == "+" else -1)
        playhead.load([i / 10 for i in range(10)], 1.0)
        assert playhead.frame == frame and not playhead.playing
