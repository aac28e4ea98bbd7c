"""Actions of the app, the dashboard and its questions. Those of the list of jobs are wanlora_tui.actions.jobs's."""

from wanlora_tui.actions import Action, register

register(
    Action(
        id="app.help",
        keys="question_mark,ctrl+right_square_bracket,f1",  # in a text a question mark is typed
        action="app.help",
        label="Help",
        help="All keys of this screen, and what they do.",
    ),
    Action(
        id="app.palette",
        keys="colon",  # ^P, which is Textual's own, is taken by editors that show a terminal in a browser
        action="app.palette",
        label="Palette",
        help="Find an action, or a field of the wizard, by a word.",
        show=False,
    ),
    Action(
        id="app.daemon",
        keys="d",
        action="app.daemon",
        label="Daemon",
        help="Where the daemon is; starts it when it does not answer.",
        show=False,
    ),
    Action(
        id="app.ssh",
        keys="a",
        action="app.answer_ssh",
        label="ssh",
        help="Connect to a lost --host again, and answer what ssh asks.",
    ),
    Action(
        id="app.interrupt",
        keys="ctrl+c",
        action="app.interrupt",
        label="Leave",
        help="Twice: leave; once does while clips are looked at. Jobs keep running.",
        show=False,
        priority=True,
    ),
    Action(
        id="app.suspend",
        keys="ctrl+z",
        action="app.suspend_process",
        label="Shell",
        help="Go to the shell for a while; come back with: fg.",
        show=False,
    ),
    Action(
        id="dashboard.stop",
        keys="s",
        action="stop_run",
        label="Stop",
        help="Save a checkpoint and stop; the job can be resumed.",
        costs=True,
        needs_daemon=True,
    ),
    Action(
        id="dashboard.resume",
        keys="r",
        action="resume_run",
        label="Resume",
        help="Queue a stopped or failed job again.",
        costs=True,
        needs_daemon=True,
    ),
    Action(
        id="dashboard.view", keys="v", action="next_pane", label="View", help="Next view: loss, preview, log, files."
    ),
    Action(
        id="dashboard.preview",
        keys="p",
        action="pane('preview')",
        label="Preview",
        help="The newest preview, and where its file lies.",
        show=False,
    ),
    Action(
        id="dashboard.log",
        keys="l",
        action="pane('log')",
        label="Log",
        help="What happened, line by line. End follows the newest line again.",
        show=False,
    ),
    Action(
        id="dashboard.files",
        keys="f",
        action="pane('files')",
        label="Files",
        help="LoRA files, checkpoints, findings and the plan.",
        show=False,
    ),
    Action(
        id="dashboard.plot", keys="o", action="pane('plot')", label="Loss", help="The loss of each expert.", show=False
    ),
    Action(
        id="dashboard.copy",
        keys="y",
        action="copy_path",
        label="Copy path",
        help="Copy the full path of the file under the cursor, of the preview in focus, or of the run folder.",
        show=False,
    ),
    Action(
        id="dashboard.folder",
        keys="O",
        action="open_folder",
        label="Open folder",
        help="Open the run folder in the desktop's file manager.",
        show=False,
    ),
    Action(
        id="dashboard.whole_log",
        keys="L",
        action="whole_log",
        label="Whole log",
        help="The log on the whole screen: search, kinds, and the trainer's own output.",
        show=False,
    ),
    Action(id="dashboard.back", keys="escape", action="back", label="Jobs", help="Back to all jobs."),
    Action(
        id="dashboard.quit",
        keys="q",
        action="app.leave",
        label="Detach",
        help="Close the terminal interface. The job keeps running.",
    ),
    Action(id="confirm.yes", keys="y", action="screen.answer(True)", label="Yes", help="Do it."),
    Action(
        id="confirm.no", keys="n,escape", action="screen.answer(False)", label="No", help="Leave things as they are."
    ),
    Action(
        id="help.close",
        keys="escape,q,question_mark,ctrl+right_square_bracket,f1",
        action="screen.close",
        label="Close",
        help="Close the help.",
    ),
)
