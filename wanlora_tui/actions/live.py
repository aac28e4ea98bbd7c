"""Actions on a running or ended job of the dashboard: change it, have it save or sample, go back, compare."""

from wanlora_tui.actions import Action, register

register(
    Action(
        id="dashboard.change",
        keys="e",
        action="change_run",
        label="Change",
        help="Change learning rates, steps or intervals of the running job.",
    ),
    Action(
        id="dashboard.save",
        keys="w",
        action="save_now",
        label="Save",
        help="Write a checkpoint and LoRA files now, and continue.",
    ),
    Action(
        id="dashboard.sample",
        keys="n",
        action="sample_now",
        label="Sample",
        help="Make the previews now, and continue.",
    ),
    Action(
        id="dashboard.checkpoints",
        keys="b",
        action="go_back",
        label="Go back",
        help="List the checkpoints; go back to one and train on from there.",
    ),
    Action(
        id="dashboard.compare",
        keys="c",
        action="compare",
        label="Compare",
        help="The same prompt across the checkpoints, side by side or one by one.",
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
    Action(
        id="compare.left",
        keys="left,h",
        action="screen.step(-1)",
        label="Earlier",
        help="The same prompt at the step before.",
    ),
    Action(
        id="compare.right",
        keys="right,l",
        action="screen.step(1)",
        label="Later",
        help="The same prompt at the next step.",
    ),
    Action(
        id="compare.up", keys="up,k", action="screen.prompt(-1)", label="Prompt", help="The prompt before this one."
    ),
    Action(
        id="compare.down", keys="down,j", action="screen.prompt(1)", label="Prompt", help="The next prompt.", show=False
    ),
    Action(
        id="compare.copy",
        keys="y",
        action="screen.copy_path",
        label="Copy path",
        help="Copy the path of the picture through the terminal (OSC 52).",
    ),
    Action(id="compare.close", keys="escape,c,q", action="screen.close", label="Close", help="Back to the dashboard."),
)
