"""Jobs in the queue of a real Slurm, on nodes that are all this machine: waiting, training, losing their nodes,
cancelled."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers import ROOT, UNCOMPILED
from tests.helpers.jobs import events, write_job
from tests.helpers.slurm_cluster import SlurmCluster, needs_slurm
from tests.helpers.tiers import thorough
from tests.helpers.training.attempts import ONE_THREAD, Trainers
from tests.helpers.training.sameness import differences
from tests.helpers.waiting import until
from wanlora_tui.cli import main
from wanlora_tui.commands.jobs import slurm, slurm_script
from wanlora_tui.commands.jobs.slurm_queue import standing

pytestmark = [needs_slurm, pytest.mark.process]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with SlurmCluster(nodes=3) as started:
        yield started


@pytest.fixture(autouse=True)
def asked_quickly(cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find this Slurm, which hands their environment on to the jobs."""
    given = {**ONE_THREAD, **UNCOMPILED, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    for name, value in {**given, **cluster.environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.2)


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, with nothing in its way."""
    folder = tmp_path_factory.mktemp("alone")
    with Trainers(cache=folder / "cache") as trainers:
        assert trainers.run(a_job(folder, tiny), gpus=[0]) == 0
    return folder / "runs/t"


def a_job(folder: Path, tiny: Path, gpus: int = 1, steps: int = 40) -> Path:
    one_frame = {"num_frames": 1}
    job = write_job(folder, tiny, prompts=0, steps=steps, dataset=one_frame, save={"every": 8}, gradient_accumulation=4)
    save_job(with_value(load_job(job), "job.gpus", list(range(gpus))), job, fresh=True)
    return job


def submitted(job: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The number that Slurm gives it."""
    code = main(["submit", str(job), "--slurm", "--time", "1:00", *options])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.strip()


def until_it_trains(job: Path, sign: str = '"kind":"step"') -> None:
    file = job.parent / "runs/t/events.jsonl"
    until(lambda: file.exists() and sign in file.read_text(), f"{sign}: {log(job)}")


def log(job: Path) -> str:
    file = job.parent / "runs/t.slurm.log"
    return file.read_text(errors="replace")[-3000:] if file.exists() else "the script has said nothing"


def require_one_stop(job: Path, alone: Path) -> None:
    """It has stopped once, and gone on to its end, which is the undisturbed run's."""
    kinds = [e.kind for e in events(job.parent / "runs/t")]
    assert kinds.count("stopped") == 1 and kinds.count("started") == 2 and kinds[-1] == "done", log(job)
    assert "not in the queue again" not in log(job)
    assert differences(job.parent / "runs/t", alone, extra_saves=True) == []


@pytest.mark.parametrize("nodes", ["1", *thorough("2")])  # an expert on each of two
def test_a_job_waits_with_its_reason_loses_its_nodes_and_makes_the_loras_of_an_undisturbed_run(
    cluster: SlurmCluster, tiny: Path, tmp_path: Path, alone: Path, nodes: str
):
    """Slurm itself puts it into the queue again, for a job of another partition."""
    job = a_job(tmp_path, tiny)
    other = cluster.fill()
    until(lambda: cluster.state(other) == "RUNNING")
    said: list[str] = []

    def meanwhile() -> None:
        until(lambda: any("waits in Slurm's queue, Resources" in text for text in said))
        cluster.ask("scancel", other)
        until_it_trains(job)
        urgent = cluster.fill()
        cluster.hold_until_warned()
        until(lambda: cluster.state(urgent) == "RUNNING")
        cluster.ask("scancel", urgent)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setattr(slurm, "say", said.append)
        done = pool.submit(meanwhile)
        code = main(["submit", str(job), "--slurm", "--time", "1:00", "--nodes", nodes, "--follow"])
        done.result()
    assert code == 0, (said, log(job))
    require_one_stop(job, alone)


@pytest.mark.thorough
def test_two_nodes_that_are_warned_go_on_together_and_make_the_loras_of_one_process(
    cluster: SlurmCluster, tiny: Path, tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str]
):
    """The warning is that of --signal=B:TERM; then the script asks for the queue. Four processes, two to a step."""
    job = a_job(tmp_path, tiny, gpus=2)
    number = submitted(job, capsys, "--nodes", "2")
    until_it_trains(job)
    cluster.ask("scancel", "--batch", "--signal=TERM", number)
    until(lambda: cluster.state(number) == "COMPLETED", log(job))
    straight = a_job(tmp_path / "straight", tiny, gpus=2)
    with Trainers(cache=tmp_path / "cache") as trainers:
        assert trainers.run(straight, gpus=[0]) == 0
    require_one_stop(job, straight.parent / "runs/t")


@pytest.mark.parametrize("dies", ["tasks", *thorough("node")])
def test_a_node_of_two_that_dies_is_no_end_and_the_loras_are_those_of_an_undisturbed_run(
    cluster: SlurmCluster, tiny: Path, tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str], dies: str
):
    """Where the node's slurmd lives, Slurm is told that a step failed, and the script asks for the queue; else Slurm
    finds the node dead, and begins the job anew on one that is left."""
    job = a_job(tmp_path, tiny)
    number = submitted(job, capsys, "--nodes", "2")
    until_it_trains(job, '"kind":"checkpoint"')
    if dies == "tasks":
        cluster.kill_tasks("n2")
    else:
        cluster.kill_node("n2")
    until(lambda: cluster.state(number) in ("COMPLETED", "FAILED"), log(job))
    if dies == "node":
        assert "NodeList=n[1,3]" in cluster.ask("scontrol", "show", "job", number)
        cluster.mend("n2")
    told = events(job.parent / "runs/t")
    assert [e.kind for e in told].count("started") == 2 and told[-1].kind == "done", log(job)
    (failed,) = [e for e in told if e.kind == "failed"]
    assert "rank 1 of 2 was killed or has crashed" in failed.data["cause"] and not failed.data["user"]
    assert differences(job.parent / "runs/t", alone) == []


@pytest.mark.thorough
def test_a_partition_with_a_grace_time_lets_the_run_save(
    cluster: SlurmCluster, tiny: Path, tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str]
):
    job = a_job(tmp_path, tiny)
    number = submitted(job, capsys, "--partition", "graced")
    until_it_trains(job)
    urgent = cluster.fill()
    cluster.hold_until_warned()
    until(lambda: cluster.state(urgent) == "RUNNING", log(job))
    cluster.ask("scancel", urgent)
    until(lambda: cluster.state(number) in ("COMPLETED", "FAILED", "PREEMPTED"))
    require_one_stop(job, alone)


@pytest.mark.thorough
def test_a_time_limit_that_runs_out_is_no_end(
    cluster: SlurmCluster,
    tiny: Path,
    tmp_path: Path,
    alone: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Of a minute: the least that Slurm takes."""
    monkeypatch.setattr(slurm, "stop_grace", lambda *_: 5)
    monkeypatch.setattr(slurm_script, "WARNED", 20)
    monkeypatch.setattr(slurm_script, "LATE", 10)
    job = a_job(tmp_path, tiny)
    number = submitted(job, capsys, "--time", "0:01")
    until_it_trains(job)
    cluster.hold_until_warned()
    until(lambda: cluster.state(number) in ("COMPLETED", "FAILED", "TIMEOUT"))
    told = events(job.parent / "runs/t")
    assert told[-1].kind == "done" and all("SIGTERM" in e.data["why"] for e in told if e.kind == "stopped"), log(job)
    assert [e.kind for e in told].count("stopped") >= 1
    assert differences(job.parent / "runs/t", alone, extra_saves=True) == []


def test_a_job_that_is_cancelled_saves_and_does_not_come_back(
    cluster: SlurmCluster, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    job = a_job(tmp_path / 'it\'s "mine", 50% ü #1 $HOME', tiny, steps=100_000)  # Slurm and bash each read it
    number = submitted(job, capsys)
    until_it_trains(job)
    cluster.ask("scancel", number)
    until(lambda: cluster.state(number) not in ("COMPLETING", "RUNNING"))
    assert cluster.state(number) == "CANCELLED", log(job)
    last = events(job.parent / "runs/t")[-1]
    assert last.kind == "stopped" and (job.parent / "runs/t" / last.data["path"]).exists()
    assert "the run is saved, and not in the queue again" in log(job)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--time", "1:00", "--partition", "nowhere"], "invalid partition specified: nowhere"),
        (["--time", "2:00", "--partition", "urgent"], "does not give so much time, or so many nodes"),
        (["--time", "1:00", "--nodes", "4"], "does not give so much time, or so many nodes"),
    ],
)
def test_what_can_never_start_is_refused_and_is_not_in_the_queue(
    cluster: SlurmCluster,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
):
    code = main(["submit", str(a_job(tmp_path, tiny, gpus=1)), "--slurm", *options])
    out, err = capsys.readouterr()
    assert code == 1 and out == "" and words in err
    assert cluster.ask("squeue", "--noheader", "--states=PENDING") == ""


def test_a_job_that_slurm_has_no_more_stands_nowhere(cluster: SlurmCluster):
    number = cluster.fill()
    place = standing(number)
    assert place is not None and place.state in ("PENDING", "RUNNING")
    cluster.ask("scancel", number)
    until(lambda: standing(number) is None)
    assert standing("4711") is None
