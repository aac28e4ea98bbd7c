"""Which GPUs a process may use, and how job.gpus counts them: CUDA_VISIBLE_DEVICES as CUDA reads it.

Where the variable is set, by a scheduler or a user, job.gpus counts within its list: 0 is the first GPU that it names.
Where it is not, job.gpus counts all GPUs in PCI bus order, as nvidia-smi does. What a process of ours hands to CUDA
names a GPU by its UUID where the driver tells it, so that nothing depends on how CUDA itself would count.
"""

from collections.abc import Mapping, Sequence

from presets.errors import UserError

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
NUMBERS = "WANLORA_GPUS"  # the daemon sets it beside VISIBLE: the numbers in job.gpus of the GPUs that it named there
NO_DEVICES = "NoDevFiles"  # some versions of Slurm write this for a job without GPUs


def named_in(environ: Mapping[str, str]) -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names: indices, UUIDs or their beginnings. None where it is not set: then all
    are visible.

    CUDA stops reading at a negative number or a gap.
    """
    text = environ.get(VISIBLE)
    if text is None:
        return None
    names: list[str] = []
    for name in map(str.strip, text.split(",")):
        if not name or name.startswith("-") or name == NO_DEVICES:
            break
        names.append(name)
    return names


def numbers_in(environ: Mapping[str, str], count: int) -> list[int]:
    """What job.gpus calls the `count` visible GPUs: 0, 1, ..., unless the daemon has said otherwise."""
    numbers = [int(n) for n in environ.get(NUMBERS, "").split(",") if n.isdecimal()]
    return numbers if len(numbers) == count else list(range(count))


def pick(gpus: Sequence[int], visible: list[str] | None, *, all_of_them: bool = False) -> list[str]:
    """The names of a job's GPUs among those that are visible. None: nothing is known of them, and an index names
    itself; `all_of_them`: so it does beyond the list, which holds what the driver knows rather than what somebody
    allows. Raises UserError."""
    if visible is not None and not visible:
        return []  # nothing for CUDA: a toy is trained on the CPU, anything else is refused by the trainer
    names = []
    for number in gpus:
        if visible is not None and 0 <= number < len(visible):
            names.append(visible[number])
        elif visible is None or all_of_them:
            names.append(str(number))
        else:
            raise UserError(
                f"there is no GPU {number} among the {len(visible)} that {VISIBLE} shows ({','.join(visible)})",
                where="job.gpus",
                fix=f"job.gpus counts within that list, from 0 to {len(visible) - 1}; or show more GPUs",
            )
    return names


def shown_to_cuda(gpus: Mapping[int, str]) -> dict[str, str]:
    """The environment in which CUDA sees these GPUs alone, in this order: number in job.gpus -> name."""
    return {ORDER: "PCI_BUS_ID", VISIBLE: ",".join(gpus.values()), NUMBERS: ",".join(map(str, gpus))}
