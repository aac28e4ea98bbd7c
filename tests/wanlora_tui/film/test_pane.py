"""What a low pane says of its film's path."""

from wanlora_tui.film.pane import _end_of


def test_as_many_folders_of_a_path_as_fit_and_always_the_name():
    path = "box:/home/you/runs/orbit_v1/samples/step_000000020/00.mp4"
    assert _end_of(path, 40) == "…/orbit_v1/samples/step_000000020/00.mp4"
    assert _end_of(path, 39) == "…/samples/step_000000020/00.mp4"
    assert _end_of(path, 30) == "…/step_000000020/00.mp4"
    assert _end_of(path, 4) == "…/00.mp4"
