"""What a request reads of a user's files."""

from pathlib import Path

from daemon.jobs.intake import read_submission
from daemon.wire.protocol import Submit
from presets.job.toml_file import default_out

JOB = '[job]\nname = "orbit"\n[training]\nsteps = 5\n[[datasets]]\npath = "clips"\n'


def test_a_link_to_a_job_file_is_submitted_as_the_file_itself(tmp_path: Path):
    """As for check, plan and train: clips and runs lie beside the file, not beside the link."""
    (tmp_path / "jobs").mkdir()
    file, link = tmp_path / "jobs" / "orbit.toml", tmp_path / "today.toml"
    file.write_text(JOB)
    link.symlink_to(file)
    found = read_submission(Submit(str(link)), now=1.0)
    assert found.record.job_path == str(file) and found.record.out == str(tmp_path / "jobs" / "runs")
    assert str(tmp_path / "jobs" / "clips") in found.text
    assert default_out(link) == default_out(file) == Path(found.record.out)
    assert read_submission(Submit(str(link), str(tmp_path / "other")), now=1.0).record.out == str(tmp_path / "other")
