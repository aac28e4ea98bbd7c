"""What is drawn of a dashboard before it has settled: no frame has the layout of another size."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.geometry import Region
from textual.pilot import Pilot
from textual.screen import Screen
from textual_image.widget import HalfcellImage

from tests.helpers.interface.runs import usual
from wanlora_tui.plot.loss_plot import LossPlot
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screenshot import RecordedApp, load_run

pytestmark = pytest.mark.process  # takes seconds
PARTS = "#left, #right, #plot, #log, #preview, #files"


Frame = dict[str | None, Region]  # where its parts were


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[Frame]:
    """Those that are drawn of a dashboard."""
    drawn: list[Frame] = []
    real = RecordedApp._display

    def display(app: RecordedApp, screen: Screen[object], renderable: Any) -> None:
        real(app, screen, renderable)
        if screen is app.screen and isinstance(screen, DashboardScreen):
            drawn.append({part.id: part.region for part in screen.query(PARTS) if part.region.area})

    monkeypatch.setattr(RecordedApp, "_display", display)
    return drawn


def app_over(folder: Path) -> RecordedApp:
    return RecordedApp(load_run(usual().write(folder / "run")), HalfcellImage)


async def settle(pilot: Pilot[None]) -> None:
    for _ in range(8):
        await pilot.pause()


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (160, 48)])
async def test_every_frame_has_the_layout_of_the_terminals_size(
    size: tuple[int, int], frames: list[Frame], tmp_path: Path
):
    app = app_over(tmp_path)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        drawn = [frame for frame in frames if frame]
        wide = size[0] >= 120
        assert drawn and all(("preview" in frame) == wide for frame in drawn)
        assert all(set(frame) == set(drawn[-1]) and frame["left"].width == drawn[-1]["left"].width for frame in drawn)
        # and what was laid out once has all that it says at this size
        assert "+ - zoom" in app.screen.query_one(LossPlot).border_title


async def test_a_plot_says_its_keys_as_soon_as_it_has_the_focus_and_no_longer(tmp_path: Path):
    async with app_over(tmp_path).run_test(size=(160, 48)) as pilot:
        await settle(pilot)
        plot = pilot.app.screen.query_one(LossPlot)
        pilot.app.screen.set_focus(None)
        await pilot.pause()
        assert "zoom" not in plot.border_title
        plot.focus()
        await pilot.pause()
        assert "zoom" in plot.border_title


def test_neither_the_list_of_jobs_nor_a_dashboard_waits_for_what_pictures_are_read_with():
    """Half as long as all else that they import; nor for what tells of other processes."""
    code = "import sys, wanlora_tui.commands.tui, wanlora_tui.app, wanlora_tui.screens.dashboard; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert "wanlora_tui.film.poster" in loaded
    assert not {"numpy", "PIL", "av", "textual_image", "psutil"} & set(loaded)
