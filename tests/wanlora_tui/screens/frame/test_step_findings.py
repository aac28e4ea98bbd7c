"""What the findings of one step offer of themselves."""

from textual.app import App

from presets.findings import Finding
from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.screens.frame.step_findings import StepFindings
from wanlora_tui.widgets.fitting_footer import FittingFooter


def finding(fixed_by: dict[str, object]) -> Finding:
    return Finding(code="c", severity="error", field="training.lr", message="wrong", fix="lower it", set=fixed_by)


async def test_a_fix_is_offered_where_one_can_be_applied_and_the_way_to_the_field_always() -> None:
    app: App[None] = App()
    async with app.run_test() as pilot:
        for fixes, labels in (({}, ["To its field", "Close"]), ({"lr": 1}, ["To its field", "Fix", "Close"])):
            await app.push_screen(dialog := StepFindings("4 Settings", [finding({}), finding(fixes)]))
            footer = dialog.query_one(FittingFooter)
            await until(
                pilot, lambda f=footer, w=labels: [o.label for o in f.shown if o.label != "Help"] == w, f"{labels}"
            )
            await pilot.press("f")  # of the one under the cursor, which has none
            assert app.screen is dialog and bool(app._notifications) == bool(fixes)
            await pilot.press("escape")
