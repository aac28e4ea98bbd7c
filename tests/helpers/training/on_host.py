"""The trainer as on a host of its own: `torchrun ... -m tests.helpers.training.on_host NAME JOB.toml ...`. The kernel
and its process numbers are this machine's, but ranks of another NAME are taken for those of another machine: nothing is
shared with them but connections. Once a file `late` lies beside the job, who does nothing for seconds hangs."""

import sys
from pathlib import Path

import torch

from engine.__main__ import main
from engine.parallel import team
from tests.helpers.training.attempts import impatient_from


def as_on(name: str) -> None:
    here = team.this_host
    team.this_host = lambda: (name, *here()[1:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_on(sys.argv.pop(1))
    impatient_from(Path(sys.argv[1]).parent / "late")
    sys.exit(main())
