"""Bytes of a file into a host buffer that is there already."""

from pathlib import Path

import torch

from presets.base.safetensors_header import AGAIN
from presets.errors import UserError


def read_into(path: Path, begin: int, buffer: torch.Tensor) -> None:
    """Fill a uint8 host buffer from the file. Lets other threads run. Raises UserError."""
    view, done = buffer.numpy().data, 0
    try:
        with path.open("rb", buffering=0) as f:
            f.seek(begin)
            while done < len(view):  # one read moves at most 2 GiB
                count = f.readinto(view[done:])
                if not count:
                    raise UserError("ends too early", where=str(path), fix=AGAIN)
                done += count
    except OSError as e:
        raise UserError(
            f"cannot be read ({(e.strerror or str(e)).lower()})",
            where=str(path),
            fix="Check the disk, and who may read the file",
        ) from None
