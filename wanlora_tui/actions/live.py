"""Actions on a running or ended job of the dashboard: change it, have it save or sample, go back, compare. Those on
its previews are in wanlora_tui.actions.pictures."""

from wanlora_tui.actions import Action, register

register(
    Action(
        id="dashboard.change",
        keys="e",
        action="change_run",
        label="Change",
        help="Change learning rates, steps or intervals of the running job.",
        costs=True,
        needs_daemon=True,
    ),
    Action(
        id="dashboard.save",
        keys="w",
        action="save_now",
        label="Save",
        help="Write a checkpoint and LoRA files now, and continue.",
        costs=True,
        needs_daemon=True,
    ),
    Action(
        id="dashboard.sample",
        keys="P",
        action="sample_now",
        label="Sample",
        help="Make the previews now, and continue.",
        costs=True,
        needs_daemon=True,
    ),
    Action(
        id="dashboard.checkpoints",
        keys="b",
        action="go_back",
        label="Go back",
        help="List the checkpoints; go back to one and train on from there.",
        costs=True,
        needs_daemon=True,
    ),
    Action(
        id="dashboard.compare",
        keys="c",
        action="compare",
        label="Compare",
        help="The same prompt across the checkpoints, side by side or one by one.",
    ),
    Action(
        id="dashboard.fetch",
        keys="B",
        action="fetch",
        label="Fetch",
        help="Bring the newest LoRA files of a job on another machine here.",
        show=False,
        costs=True,
    ),
    Action(
        id="change.apply",
        keys="enter",
        action="screen.apply",
        label="Apply",
        help="Send every changed value to the trainer.",
    ),
    Action(
        id="checkpoints.choose",
        keys="enter",
        action="select_cursor",
        label="Go back to it",
        help="Go back to the checkpoint under the cursor.",
    ),
)
