"""A program of its own, not a module to import: asks on the terminal what ssh wants to know.

    python askpass.py MARK QUESTION

The question goes where ssh says all else, so it stands behind what was said before it, between two marks. The answer is
read from the terminal and goes to ssh alone; only a yes or no is seen while it is typed.
"""

import os
import signal
import sys
import termios
from getpass import getpass

if __name__ == "__main__":
    mark, question = sys.argv[1:]
    kind = os.environ.get("SSH_ASKPASS_PROMPT")  # as ssh has it: "none" is a notice, until ssh ends us
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        if kind != "none" and "(yes/no" not in question and kind != "confirm":

            def hide(*_: object) -> None:
                modes = termios.tcgetattr(terminal)
                modes[3] &= ~termios.ECHO
                termios.tcsetattr(terminal, termios.TCSADRAIN, modes)

            signal.signal(signal.SIGCONT, hide)  # a shell has had the terminal meanwhile
            print(getpass(f"{mark}{question}{mark}", sys.stderr))
        else:
            os.write(sys.stderr.fileno(), f"{mark}{question}{mark}".encode(errors="surrogateescape"))
            if kind == "none":
                sys.stderr.write("\n")
                signal.pause()
            with os.fdopen(terminal) as lines:
                print(lines.readline().rstrip("\n"))
    except (OSError, EOFError, KeyboardInterrupt):  # no terminal; Ctrl+D; Ctrl+C, which ends ssh too
        sys.exit(1)
