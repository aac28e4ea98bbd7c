"""Commands on job files, clips and models, which need no daemon but for the demo."""

from functools import partial
from pathlib import Path

from wanlora_tui.arguments.common import Commands, add_command, gib, going_on, job_file, out, positive, settings


def work_on_job_files(commands: Commands) -> None:
    """What needs no daemon, but for the demo."""
    command = partial(add_command, commands)
    c = command(
        "demo",
        "jobs.demo:demo",
        "make demo clips and a toy base model, train on them, show the dashboard and what was learned",
        far="there",
    )
    c.add_argument("--plain", action="store_true", help="one line per event instead of the dashboard")
    c.add_argument("--steps", type=positive, metavar="N", help="optimizer steps (default: 40)")
    c.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="where the demo lives (default: ./demo)"
    )
    c.add_argument("--prepare", type=Path, metavar="DIR", help="only write DIR/clips, DIR/base and DIR/job.toml")

    c = command(
        "wizard",
        "tui:wizard",
        "the wizard alone: from a folder of clips to a job; leaves when it is handed in",
        far="there",
    )

    c = command(
        "new", "jobs.new:new", "write a job file from a preset, this machine and a folder of clips", daemon=False
    )
    c.add_argument("--kind", choices=["motion", "style", "character"], help="what the LoRA teaches")
    c.add_argument("--clips", type=Path, metavar="DIR", help="folder of clips with their captions")
    c.add_argument(
        "--from",
        dest="from_job",
        type=Path,
        metavar="JOB",
        help="instead of both: a copy of a job file, or of the job that a run folder holds; --set says what differs",
    )
    c.add_argument("--name", metavar="NAME", help="training name (default: wan_i2v_KIND_FOLDER)")
    c.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="go on from a LoRA file or a run folder, at its rank; of one expert where it says which, else of both",
    )
    c.add_argument("--start-low", type=Path, metavar="FILE", help="the same for the low-noise expert alone")
    c.add_argument(
        "--merge",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="merge a LoRA into the frozen base, at strength 1 unless given; may be repeated",
    )
    settings(c, "change one field, e.g. training.lr=5e-5; may be repeated")
    text = "prompts made of clips, first frame and caption (default: 2; a preview takes minutes)"
    c.add_argument("--previews", type=int, choices=range(4), default=2, help=text)
    c.add_argument("--hold-out", action="store_true", help="leave the clips that previews start from out of training")
    text = "how previews are sampled: 4 steps with an accelerator LoRA, or as Wan's own demos"
    c.add_argument("--preview", choices=["quick", "official"], help=text)
    c.add_argument(
        "--out", type=Path, default=Path("job.toml"), metavar="FILE", help="the job file (default: job.toml)"
    )
    c.add_argument(
        "--json",
        action="store_true",
        help="one object about the file that was written: path, job (its tables), reasons (a list of {field, value,"
        " reason}), changes (with --from: {field, old, new}), findings (of the clips, as check has them) and forecast"
        " (as check --forecast has it; null with --from)",
    )

    c = command(
        "clips", "clips:clips", "list what of each clip trains, and show the very pictures", daemon=False, far="job"
    )
    c.add_argument("source", type=Path, metavar="DIR|JOB", help="folder of clips, or a job file")
    c.add_argument(
        "--show",
        type=Path,
        metavar="OUT",
        help=(
            "write a sheet of each clip into this folder: every frame, cropped and sized as it trains, with its number,"
            " its time and the caption"
        ),
    )
    c.add_argument(
        "--kind",
        choices=["motion", "style", "character"],
        help="with a folder: choose frames and sizes as for such a LoRA (default: motion)",
    )
    settings(c, "look with one field changed, e.g. datasets.num_frames=81; may be repeated")
    c.add_argument("--json", action="store_true", help="one object with clips and findings")

    c = command(
        "check", "job:check", "list everything wrong, doubtful or improvable about a job", daemon=False, far="job"
    )
    job_file(c)
    c.add_argument("--json", action="store_true", help="a list of {code, severity, field, message, fix}")
    c.add_argument(
        "--forecast",
        action="store_true",
        help="with --json: one object of that list (findings) and what the job takes and costs (forecast)",
    )

    c = command(
        "plan",
        "plan:plan",
        "memory and time of a job: precision, blocks on the GPU, peak VRAM and RAM, seconds per step",
        daemon=False,
        far="job",
    )
    job_file(c)
    c.add_argument("--vram", type=gib, metavar="GIB", help="plan for a card of this much memory")
    c.add_argument("--ram", type=gib, metavar="GIB", help="plan for a machine of this much RAM")
    c.add_argument(
        "--gpu", metavar="NAME", help="plan for a known card, e.g. 4090 or 'A100 80GB', instead of the one here"
    )
    c.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="plan for so many such GPUs of one host that share the job (default: as many as it names)",
    )
    c.add_argument(
        "--torchrun", action="store_true", help="print nothing but the torchrun command that trains it on these GPUs"
    )
    c.add_argument("--nodes", type=positive, default=1, metavar="N", help="with --torchrun: on so many machines")
    c.add_argument("--json", action="store_true", help="one object")

    c = command(
        "timesteps", "timesteps:timesteps", "plot at which timesteps each expert will train", daemon=False, far="job"
    )
    job_file(c)
    c.add_argument("--png", type=Path, metavar="FILE", help="draw the same chart into a PNG file too")
    c.add_argument("--json", action="store_true", help="one object, with each expert's samples in bins of 10 timesteps")

    c = command("train", "job:train", "train one job in the foreground, without the daemon", daemon=False, far="no")
    job_file(c)
    out(c)
    c.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    going_on(c)

    c = command(
        "ara",
        "job:ara",
        "build an accuracy recovery adapter: what 4-bit weights lose, put back as a small LoRA",
        daemon=False,
    )
    c.add_argument("model", metavar="MODEL", help="folder or Hub id of the base model")
    c.add_argument("--rank", type=positive, default=16, metavar="N", help="rank of the correction (default: 16)")
    c.add_argument(
        "--precision",
        choices=["qint4", "uint4"],
        default="qint4",
        help="uint4 is torchao's grid, the one of published adapters (default: qint4)",
    )
    c.add_argument(
        "--clips",
        type=Path,
        metavar="DIR",
        help="a few clips with captions: errors are weighed by what the model sees on them",
    )
    c.add_argument(
        "--full", action="store_true", help="with --clips: weigh by how channels vary together; slower, and better"
    )
    c.add_argument(
        "--expert", choices=["both", "high", "low"], default="both", help="which expert to correct (default: both)"
    )
    c.add_argument("--out", type=Path, metavar="FILE", help="the adapter (default: ara-PRECISION-rRANK.safetensors)")
