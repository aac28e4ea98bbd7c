"""Which folders clients may name: those that the user has declared in settings.toml, everything below them, wherever
links lead. What else a job must be is presets'.

Without declared roots this machine's own clients may name any path (they run as the same user, who can read and write
these files anyway), and clients from the network none.
"""

from collections.abc import Iterator
from pathlib import Path

from daemon.settings import load_settings
from presets.errors import UserError
from presets.job.schema import Job


class Roots:
    """The declared folders, read anew for each request: a change counts at once."""

    def __init__(self, settings: Path | None, *, remote: bool) -> None:
        """`settings`: the file that declares them; None: none are. `remote`: for a client that came through the
        network."""
        self._settings, self._remote = settings, remote
        self._declared: tuple[str, ...] | None = None  # read by the first question, which is asked in the background

    def _root(self, given: str) -> Path:
        try:
            path = Path(given).expanduser()
            if path.is_absolute():
                return path.resolve()
        except (RuntimeError, OSError, ValueError):
            pass
        raise UserError(
            f"{given!r} is no folder that can be declared",
            where=f"{self._settings}, daemon.roots",
            fix="Give an absolute path, or one that begins with ~/",
        )

    def require(self, path: str | Path, what: str) -> None:
        """Raises UserError unless the path lies under a root, where links lead counted in; says nothing of what is
        there. Looks at the disk, so it belongs in the background."""
        if self._declared is None:
            self._declared = load_settings(self._settings).daemon.roots if self._settings else ()
        roots = [self._root(given) for given in self._declared]
        if not roots and not self._remote:
            return
        if not roots:
            raise UserError(
                "clients from the network may name no path here, because no folders are declared for them",
                where=what,
                fix=f'On the machine of the daemon, declare them in {self._settings}: roots = ["/data"] in [daemon]',
            )
        try:
            real = Path(path).resolve()
        except (OSError, RuntimeError, ValueError) as e:
            raise UserError(f"{path} leads nowhere: {e}", where=what) from None
        if not any(real.is_relative_to(root) for root in roots):
            raise UserError(
                f"{path} lies outside the folders that clients may name",
                where=what,
                fix=f"Allowed are {', '.join(map(str, roots))}, by daemon.roots in {self._settings}",
            )

    def require_job(self, job: Job, run_dir: str | Path) -> None:
        """The same of every path in a job, which are absolute by now, and of its run folder. Raises UserError."""
        self.require(run_dir, "the run folder")
        for field, path in paths_in(job):
            self.require(path, field)


def paths_in(job: Job) -> Iterator[tuple[str, str]]:
    """(field, path) of each path in a job whose paths are absolute; what is not one is an id on the Hub."""
    model, sample = job.model, job.sample
    yield from (
        (field, path)
        for field, path in (
            ("model.path", model.path),
            ("model.vae", model.vae),
            ("model.text_encoder", model.text_encoder),
            *((f"model.merge[{i}].path", merge.path) for i, merge in enumerate(model.merge)),
            ("quantization.ara", job.quantization.ara),
            ("target.start_high", job.target.start_high),
            ("target.start_low", job.target.start_low),
            *((f"datasets[{i}].path", dataset.path) for i, dataset in enumerate(job.datasets)),
            ("validation.path", job.validation.path),
            *((f"sample.prompts[{i}].ctrl_img", prompt.ctrl_img) for i, prompt in enumerate(sample.prompts)),
            *((f"sample.prompts[{i}].end_img", prompt.end_img) for i, prompt in enumerate(sample.prompts)),
            ("sample.accelerator", sample.accelerator),
            ("sample.accelerator_low", sample.accelerator_low),
        )
        if path.startswith("/")
    )


ANYWHERE = Roots(None, remote=False)
