"""Actions on previews: play them, step through their frames, look at one, compare several, see all."""

from wanlora_tui.actions import Action, register

register(
    Action(
        id="dashboard.play",
        keys="space",
        action="play",
        label="Play",
        help="Play the preview in its place.",
        show=False,
    ),
    Action(
        id="dashboard.picture",
        keys="z",
        action="picture",
        label="Full screen",
        help="The preview as large as the terminal.",
        show=False,
    ),
    Action(
        id="dashboard.sheet",
        keys="t",
        action="sheet",
        label="Sheet",
        help="All previews, small: a row for each prompt, a column for each step.",
        show=False,
    ),
    Action(id="film.play", keys="space", action="play", label="Play", help="Play, or pause, all films that are shown."),
    Action(
        id="film.back",
        keys="comma",
        action="frame(-1)",
        label="Frame back",
        help="One frame back, in all films that are shown.",
        show=False,
    ),
    Action(
        id="film.on",
        keys="full_stop",
        action="frame(1)",
        label="Frame",
        help="One frame on, in all films that are shown.",
    ),
    Action(id="film.first", keys="home", action="to_frame(0)", label="First", help="The first frame.", show=False),
    Action(id="film.last", keys="end", action="to_frame(-1)", label="Last", help="The last frame.", show=False),
    Action(id="preview.back", keys="comma", action="frame(-1)", label="Frame", help="One frame back.", show=False),
    Action(id="preview.on", keys="full_stop", action="frame(1)", label="Frame", help="One frame on.", show=False),
    Action(id="preview.first", keys="home", action="to_frame(0)", label="First", help="The first frame.", show=False),
    Action(id="preview.last", keys="end", action="to_frame(-1)", label="Last", help="The last frame.", show=False),
    Action(id="preview.left", keys="left", action="shot(-1)", label="Earlier", help="The preview before.", show=False),
    Action(id="preview.right", keys="right", action="shot(1)", label="Later", help="The next preview.", show=False),
    Action(id="preview.up", keys="up", action="prompt(-1)", label="Prompt", help="The prompt before.", show=False),
    Action(id="preview.down", keys="down", action="prompt(1)", label="Prompt", help="The next prompt.", show=False),
    Action(
        id="preview.open",
        keys="enter",
        action="open_picture",
        label="Full screen",
        help="The preview as large as the terminal.",
        show=False,
    ),
    Action(
        id="preview.stop", keys="escape", action="stop", label="Poster", help="Back to the poster, and the newest one."
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
        id="compare.down",
        keys="down,j",
        action="screen.prompt(1)",
        label="Next prompt",
        help="The next prompt.",
        show=False,
    ),
    Action(
        id="compare.more",
        keys="plus,equals_sign",
        action="screen.beside(1)",
        label="More",
        help="One step more side by side.",
    ),
    Action(
        id="compare.fewer", keys="minus", action="screen.beside(-1)", label="Fewer", help="One step fewer.", show=False
    ),
    Action(
        id="compare.pin",
        keys="p",
        action="screen.pin",
        label="Pin",
        help="Keep the chosen step in view on the left while the others change; again: let it go.",
    ),
    Action(
        id="compare.start",
        keys="i",
        action="screen.start_frame",
        label="Start",
        help="Show the first frame, which the preview was started from, beside it.",
        show=False,
    ),
    Action(
        id="compare.open",
        keys="enter,z",
        action="screen.open",
        label="Large",
        help="The chosen preview as large as the terminal.",
    ),
    Action(
        id="compare.sheet",
        keys="t",
        action="screen.sheet",
        label="Sheet",
        help="All prompts and steps, small.",
        show=False,
    ),
    Action(
        id="compare.copy",
        keys="y",
        action="screen.copy_path",
        label="Copy path",
        help="Copy the path of the film through the terminal (OSC 52).",
        show=False,
    ),
    Action(id="compare.close", keys="escape,c,q", action="screen.close", label="Close", help="Back to the dashboard."),
    Action(
        id="picture.close", keys="escape,z,enter,q", action="screen.close", label="Close", help="Back to where it was."
    ),
    Action(id="sheet.left", keys="left,h", action="move(-1, 0)", label="Earlier", help="The step before.", show=False),
    Action(id="sheet.right", keys="right,l", action="move(1, 0)", label="Later", help="The next step.", show=False),
    Action(id="sheet.up", keys="up,k", action="move(0, -1)", label="Prompt", help="The prompt before.", show=False),
    Action(
        id="sheet.down", keys="down,j", action="move(0, 1)", label="Next prompt", help="The next prompt.", show=False
    ),
    Action(
        id="sheet.larger",
        keys="plus,equals_sign",
        action="screen.larger(1)",
        label="Larger",
        help="Larger pictures, fewer of them.",
    ),
    Action(
        id="sheet.smaller",
        keys="minus",
        action="screen.larger(-1)",
        label="Smaller",
        help="Smaller pictures, more of them.",
    ),
    Action(
        id="sheet.open",
        keys="enter,z",
        action="screen.open",
        label="Large",
        help="The chosen preview as large as the terminal.",
    ),
    Action(
        id="sheet.compare",
        keys="c",
        action="screen.compare",
        label="Compare",
        help="The steps of the chosen prompt side by side.",
    ),
    Action(id="sheet.close", keys="escape,t,q", action="screen.close", label="Close", help="Back to the dashboard."),
)
