import subprocess
import sys

import numpy as np

from engine.system.keyed_random import keyed_rng


def test_the_same_key_gives_the_same_numbers_in_another_process():
    here = keyed_rng(42, "noise", 7, "0/a.mp4@512").standard_normal(4, dtype="float32")
    code = (
        "from engine.system.keyed_random import keyed_rng; print(keyed_rng(42, 'noise', 7,"
        " '0/a.mp4@512').standard_normal(4, dtype='float32').tobytes().hex())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert here.tobytes().hex() == there


def test_any_part_of_the_key_changes_the_numbers():
    keys = [
        (42, "noise", 7, "a"),
        (43, "noise", 7, "a"),
        (42, "timestep", 7, "a"),
        (42, "noise", 8, "a"),
        (42, "noise", 7, "b"),
        (42, "noise", "7a"),
    ]
    draws = [tuple(keyed_rng(*key).random(2)) for key in keys]
    assert len(set(draws)) == len(keys)


def test_streams_of_neighbouring_keys_are_uncorrelated():
    table = np.stack([keyed_rng(0, "noise", i).standard_normal(2000) for i in range(30)])
    correlation = np.corrcoef(table) - np.eye(30)
    assert abs(correlation).max() < 0.12  # 5 sigma of 1/sqrt(2000)
