"""timesteps: at which noise levels each expert of a job will train, as a chart for the terminal, a PNG or JSON.

The chart is wanlora_tui.output.timestep_chart's, the density presets.job.timesteps's.
"""

import sys
from argparse import Namespace
from pathlib import Path

from presets.base.composition import named_base
from presets.base.model_facts import I2V_BOUNDARY, read_model
from presets.errors import UserError
from presets.job.schema import Job
from presets.job.timesteps import NUM_TRAIN_TIMESTEPS, timesteps_of
from presets.job.toml_file import load_job
from wanlora_tui.commands.common import print_json, say
from wanlora_tui.output.timestep_chart import COLUMNS, draw_png, text_chart, unicode_blocks

JSON_BINS = 100


def timesteps(args: Namespace) -> int:
    """Print the chart (or JSON) and write the PNG."""
    job = load_job(args.job)
    boundary, source = boundary_of(job, args.job.resolve().parent)
    edge = f"{boundary * NUM_TRAIN_TIMESTEPS:g} ({source})"
    title = (
        f"{job.job.name}: timestep type {job.training.timestep_type}, bias"
        f" {job.training.timestep_bias.replace('_', ' ')}, boundary {edge}"
    )
    if args.json:
        experts = timesteps_of(job, boundary, bins=JSON_BINS)
        table = {
            "name": job.job.name,
            "timestep_type": job.training.timestep_type,
            "timestep_bias": job.training.timestep_bias,
            "steps": job.training.steps,
            "boundary": boundary,
            "boundary_source": source,
            "bin": NUM_TRAIN_TIMESTEPS / JSON_BINS,
            "experts": experts,
        }
        print_json(table, indented=True)
    else:
        print(
            "\n".join(
                text_chart(
                    title,
                    timesteps_of(job, boundary, bins=COLUMNS),
                    job.training.steps,
                    boundary,
                    blocks=unicode_blocks(sys.stdout.encoding),
                )
            )
        )
    if args.png:
        try:
            draw_png(args.png, title, timesteps_of(job, boundary, bins=500), job.training.steps, boundary)
        except OSError as e:
            raise UserError(
                f"cannot be written: {e.strerror or e}", where=str(args.png), fix="Choose another place with --png"
            ) from None
        say(f"Wrote {args.png}.")
    return 0


def boundary_of(job: Job, base: Path) -> tuple[float, str]:
    """The boundary that a run of the job would have, and where it comes from. Raises UserError where a run would."""
    if job.model.boundary != "model":
        return float(job.model.boundary), "from the job"
    facts = read_model(named_base(job), base)
    if facts.boundary_ratio is not None:
        return facts.boundary_ratio, "from the model"
    if (problem := next((p for p in facts.problems if p.severity == "error"), None)) is not None:
        raise UserError(problem.message, where=problem.field, fix=problem.fix)
    return I2V_BOUNDARY, "of Wan 2.2 I2V; the model is not on this machine yet"
