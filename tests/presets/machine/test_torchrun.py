"""torchrun's command line."""

import pytest
from torch.distributed.run import get_args_parser

from presets.errors import UserError
from presets.machine import torchrun
from presets.machine.torchrun import stop_options, torchrun_line


@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_takes_the_line_and_gives_the_trainer_the_time_to_save(nodes: int):
    line = torchrun_line("a b.toml", 2, nodes, grace=400)
    told = get_args_parser().parse_args(line[1:])
    assert (told.nproc_per_node, told.nnodes) == ("2", "1:1" if nodes == 1 else "2")
    assert told.training_script == "engine" and told.training_script_args == ["a b.toml"]
    known = vars(told)
    assert known.get("shutdown_timeout", 400) == 400
    assert known.get("signals_to_handle", torchrun.OWN_SIGNALS) == torchrun.OWN_SIGNALS


def test_without_torch_that_is_what_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchrun.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="torch is not installed"):
        stop_options(180)
