"""Which checkpoint of a run to use, and where its LoRA files are: what the page says at its top."""

from pathlib import Path

from msgspec import Struct

from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS, Expert, trained_experts
from presets.report.measures import Judged, read_measures, scores
from presets.report.run_reader import StoredRun, inside
from presets.runs.checkpoints import StoredCheckpoint, checkpoints_of, ranking_there
from presets.runs.ranking import Ranking, rank
from presets.runs.run_view import RunView


class Choice(Struct, kw_only=True):
    step: int
    reason: str  # a sentence without its full stop
    ranked: bool  # whether something measured says so
    files: dict[Expert, str]  # relative to the run folder; an expert that was not trained or saved is not in it


def ranking_of(run: StoredRun, judged: Judged | None) -> Ranking | None:
    """The checkpoints whose LoRA files are here, by their held-out loss; what that does not tell apart, by the measures
    of their previews. None where none was measured."""
    saved = {c.step for c in run.view.checkpoints if files_of(run, c.step)}
    return rank(run.view.measured, saved=saved, previews=None if judged is None else scores(judged))


def ranked_checkpoints(run_dir: Path, view: RunView) -> list[StoredCheckpoint]:
    """The checkpoints that lie there, ranked as the page ranks them: by held-out loss, and by the measures of previews
    where there are some that can be read."""
    return checkpoints_of(run_dir, view, previews=_scores_there(run_dir))


def best_step(run_dir: Path, view: RunView) -> int | None:
    """The first of `ranked_checkpoints`, also where only its LoRA files are left; None where none was measured."""
    ranking = ranking_there(run_dir, view, previews=_scores_there(run_dir))
    return None if ranking is None else ranking.best


def _scores_there(run_dir: Path) -> dict[int, float] | None:
    try:
        judged = read_measures(run_dir)
    except UserError:  # whoever asks for the measures is told
        judged = None
    return None if judged is None else scores(judged)


def choice_of(run: StoredRun, ranking: Ranking | None) -> Choice | None:
    """None before the first LoRA files. Where nothing ranks the checkpoints, the newest is named, and said to be no
    more than that."""
    view, name = run.view, run.job.job.name
    if ranking is not None:
        lowest = f"it has the lowest held-out loss{f'; {ranking.reason}' if ranking.reason else ''}"
        why = f"it is chosen {ranking.reason}" if ranking.by_previews else lowest
        return Choice(step=ranking.best, reason=why, ranked=True, files=files_of(run, ranking.best))
    saved = sorted({c.step for c in view.checkpoints})
    if view.state == "done":
        final = {e: f for e in trained_experts(run.job) for f in view.files if f.endswith(f"{e}.safetensors")}
        unknown = "nothing was held out by which another could be known to be better"
        if view.measured:
            unknown = "of the steps whose held-out loss was measured no LoRA files are here"
        why = f"it is the last one, and {unknown}"
        return Choice(step=view.step, reason=f"{why}: compare the previews", ranked=False, files=final)
    for step in reversed(saved):
        if files := files_of(run, step):
            why = f"it is the newest whose LoRA files of {name} are here: compare the previews"
            return Choice(step=step, reason=why, ranked=False, files=files)
    return None


def files_of(run: StoredRun, step: int) -> dict[Expert, str]:
    """The LoRA files of one step that lie in the run folder."""
    names = {expert: f"{run.job.job.name}_{step:09d}_{expert}.safetensors" for expert in EXPERTS}
    return {expert: file for expert, file in names.items() if inside(run.folder, file) is not None}
