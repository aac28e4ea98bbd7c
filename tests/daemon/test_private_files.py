"""What the daemon and its trainers write: nobody else may write to it, and it goes nowhere else."""

import os
import stat
from pathlib import Path

from tests.daemon.conftest import Box


def open_to_others(folder: Path) -> list[str]:
    """What lies there that a group or everybody may write to."""
    return [
        f"{path} {stat.filemode(path.lstat().st_mode)}"
        for path in (folder, *folder.rglob("*"))
        if not path.is_symlink() and path.lstat().st_mode & 0o022
    ]


async def test_a_shell_s_umask_lets_nobody_in(box: Box):
    box.job("one", steps=3)
    before = os.umask(0)
    try:
        box.start()
    finally:
        os.umask(before)
    async with box.client() as client:
        record = await client.submit(box.job("one", steps=3))
        assert (await box.wait(client, record.id)).state == "done"
    assert (box.run_dir("one") / "events.jsonl").exists()
    assert open_to_others(box.run_dir("one").parent) == [] and open_to_others(box.dir / "state") == []


async def test_a_planted_log_or_folder_is_not_followed(box: Box):
    box.start()
    target = box.dir / "target"
    target.mkdir()
    (target / "precious").write_text("precious")
    log, control = box.run_dir("one") / "logs" / "attempt_1.log", box.run_dir("two") / "control"
    for link, to in ((log, target / "precious"), (control, target)):
        link.parent.mkdir(parents=True)
        link.symlink_to(to)
    async with box.client() as client:
        one = await client.submit(box.job("one", steps=3))
        two = await client.submit(box.job("two", steps=3, gpus=[1]))
        assert (await box.wait(client, one.id)).state == "done"
        ended = await box.wait(client, two.id)
        assert ended.state == "failed" and str(control) in ended.outcome and "it is a link" in ended.outcome
    assert not log.is_symlink()
    assert [p.name for p in target.iterdir()] == ["precious"] and (target / "precious").read_text() == "precious"
