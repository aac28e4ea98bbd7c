"""Zooming and panning."""

from wanlora_tui.plot.window import LEAST, Window, panned, zoomed

WHOLE = Window(1, 2401)


def test_zooming_keeps_the_step_at_the_pointer_where_it_was():
    window = zoomed(WHOLE, WHOLE, 601, 0.5)
    assert window == Window(301, 1501)
    again = zoomed(window, WHOLE, 601, 0.5)
    assert again is not None and (601 - again.low) / again.width == (601 - window.low) / window.width


def test_zooming_out_ends_with_all_steps_and_in_with_a_few():
    assert zoomed(Window(301, 1501), WHOLE, 400, 4.0) is None
    window: Window | None = WHOLE
    for _ in range(50):
        assert window is not None
        window = zoomed(window, WHOLE, 2401, 0.5)
    assert window == Window(2401 - LEAST, 2401)
    assert zoomed(Window(1, 1), Window(1, 1), 1, 0.5) is None  # a single step


def test_panning_ends_at_the_edges():
    window = Window(301, 1501)
    assert panned(window, WHOLE, 100) == Window(401, 1601)
    assert panned(window, WHOLE, -1e9) == Window(1, 1201)
    assert panned(window, WHOLE, 1e9) == Window(1201, 2401)
