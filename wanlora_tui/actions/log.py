"""Actions of the log on the whole screen. They move and look within it, and act on nothing."""

from wanlora_tui.actions import Action, register

register(
    Action(
        id="log.search",
        keys="slash",
        action="screen.search",
        label="Search",
        help="Search within the log; capital letters do not matter.",
    ),
    Action(
        id="log.next", keys="n", action="screen.next_match(1)", label="Next", help="Go to the next line that matches."
    ),
    Action(
        id="log.previous",
        keys="N",
        action="screen.next_match(-1)",
        label="Previous",
        help="Go to the line before that matches.",
    ),
    Action(
        id="log.kind",
        keys="f",
        action="screen.next_kind",
        label="Kind",
        help="Show all events, or only problems, results, changes or the course of phases.",
    ),
    Action(
        id="log.source",
        keys="t",
        action="screen.switch_source",
        label="Trainer's output",
        help="Switch between the run's events and what the trainer itself has written.",
    ),
    Action(
        id="log.copy",
        keys="y",
        action="screen.copy_line",
        label="Copy",
        help="Copy what you have selected, else the line of the cursor or match, through the terminal (OSC 52).",
    ),
    Action(id="log.close", keys="escape,q", action="screen.close", label="Close", help="Close the log, or its search."),
)
