"""Run a module as `python -m` does, and write what its main thread was doing, as a tree of seconds.

    python -m benchmarks.stacks OUT.txt MODULE ARGUMENTS

A thread takes the main thread's stack twenty times a second. Each line of OUT.txt is a function, indented below its
caller, with the seconds in which it was on the stack; calls with less than LEAST seconds are left out. What waits for
the interpreter lock is counted, too. Data workers, which import the main module again, are not sampled.
"""

import runpy
import sys
import threading
import time
from pathlib import Path
from types import FrameType

EVERY, LEAST = 0.05, 0.25  # seconds
DEEPEST = 60


class Node:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.below: dict[str, Node] = {}

    def lines(self, name: str, depth: int) -> list[str]:
        out = [f"{self.seconds:8.2f} {'  ' * depth}{name}"]
        for called, node in sorted(self.below.items(), key=lambda item: -item[1].seconds):
            if node.seconds >= LEAST:
                out += node.lines(called, depth + 1)
        return out


def stack_of(frame: FrameType | None) -> list[str]:
    """From the outermost function to the innermost; how a module is imported is left out, all but its name."""
    out: list[str] = []
    while frame is not None:
        code = frame.f_code
        if "importlib" not in code.co_filename:
            path = Path(code.co_filename)
            what = frame.f_globals.get("__name__", "") if code.co_name == "<module>" else code.co_name
            out.append(f"{what} ({path.parent.name}/{path.name})")
        frame = frame.f_back
    return out[::-1][:DEEPEST]


def sample(main: int, root: Node, ended: threading.Event) -> None:
    before = time.perf_counter()
    while not ended.wait(EVERY):
        now = time.perf_counter()
        node = root
        node.seconds += now - before
        for name in stack_of(sys._current_frames().get(main)):
            node = node.below.setdefault(name, Node())
            node.seconds += now - before
        before = now


def main() -> None:
    out, module = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    root, ended = Node(), threading.Event()
    thread = threading.Thread(target=sample, args=(threading.get_ident(), root, ended), daemon=True)
    thread.start()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        ended.set()
        thread.join()
        out.write_text("\n".join(root.lines(module, 0)) + "\n")


if __name__ == "__main__":
    main()
