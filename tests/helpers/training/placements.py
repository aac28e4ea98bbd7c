"""Where tests compute."""

import torch

from engine.system.placement import Placement

ON_CPU = Placement(torch.device("cpu"), torch.float32, pinned=False)
