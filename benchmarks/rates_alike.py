"""Measure one card, and have all others of its kind known by what was found.

    python -m benchmarks.rates_alike 0

Which kernels a training takes is chosen by rates measured on its card, and two cards of one kind may fall on either
side of a choice: then their LoRAs differ in the last bits. `benchmarks.gpus_apart --at-once` compares trainings on
different cards, and runs this before, in a state folder of its own.
"""

import argparse
import os
from pathlib import Path

import msgspec

from presets.machine.machine import read_machine
from presets.machine.visible_gpus import shown_to_cuda
from presets.planner.measured_rates import remember


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpu", type=int, help="its number in job.gpus")
    args = parser.parse_args()
    gpus = {gpu.index: gpu for gpu in read_machine(Path.cwd()).gpus}
    first = gpus[args.gpu]
    os.environ.update(shown_to_cuda({first.index: first.uuid}))

    from engine.memory.measure_card import measured_rates
    from engine.system.device import open_device

    rates = measured_rates(first, open_device(), lambda done, total, text: print(text, flush=True))
    for gpu in gpus.values():
        if (gpu.name, gpu.driver) == (first.name, first.driver):
            remember(msgspec.structs.replace(rates, uuid=gpu.uuid))
    print(f"convolutions by our kernel: {rates.convolutions}; attention: {rates.deterministic_attention}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
