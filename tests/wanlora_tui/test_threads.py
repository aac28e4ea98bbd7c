import asyncio
import subprocess
import sys
import threading

from tests.helpers import ROOT
from tests.helpers.interface.harness import environment
from tests.helpers.waiting import PATIENCE
from wanlora_tui.threads import ReadingThreads


def test_answers_and_errors_come_back() -> None:
    async def go() -> None:
        asyncio.get_running_loop().set_default_executor(ReadingThreads())
        assert await asyncio.gather(*(asyncio.to_thread(pow, n, 2) for n in range(40))) == [n * n for n in range(40)]
        try:
            await asyncio.to_thread(divmod, 1, 0)
        except ZeroDivisionError:
            return
        raise AssertionError("no error came back")

    asyncio.run(go())


def test_a_cancelled_wait_and_a_late_answer_disturb_nobody() -> None:
    free, answered = threading.Event(), threading.Event()

    def slow() -> int:
        free.wait()
        answered.set()
        return 1

    async def go() -> None:
        asyncio.get_running_loop().set_default_executor(ReadingThreads())
        waiting = asyncio.create_task(asyncio.to_thread(slow))
        await asyncio.sleep(0)
        waiting.cancel()

    before = set(threading.enumerate())
    asyncio.run(go())
    left = [t for t in threading.enumerate() if t not in before]
    free.set()
    for thread in left:
        thread.join(PATIENCE)
    assert answered.is_set() and not any(t.is_alive() for t in left)


def test_a_program_ends_while_a_thread_is_stuck() -> None:
    code = (
        "import asyncio, threading\nfrom wanlora_tui.threads import ReadingThreads\nasync def main():\n   "
        " asyncio.get_running_loop().set_default_executor(ReadingThreads())\n    begun = threading.Event()\n    def"
        " stuck():\n        begun.set()\n        threading.Event().wait()\n    task ="
        " asyncio.create_task(asyncio.to_thread(stuck))\n    while not begun.is_set():\n        await"
        " asyncio.sleep(0.01)\n    print('left')\nasyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
