"""A scorer starts without torch's compiler, which stays usable."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from cctmn.model.quick_start import import_torchvision
import_torchvision()
from cctmn.score.models import open_source
import numpy as np
scorer = open_source("cctmn:demo").load(False)
scorer.predict([np.zeros((64, 64), np.uint8)], masks=True)
print("torch._dynamo" in sys.modules)
from torchvision.ops import roi_align
print(roi_align.__module__, sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu"))
import torch
print("torch._dynamo" in sys.modules, torch._dynamo.__name__, type(torch._dynamo.utils).__name__)
import_torchvision()
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


def test_torchvision_is_imported_without_the_compiler_until_it_is_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    without, asked, real, compiled = done.stdout.splitlines()
    assert without == "False"
    assert asked.startswith("torchvision.ops.roi_align ")
    assert real == "True torch._dynamo module"
    assert compiled == "2.0"
