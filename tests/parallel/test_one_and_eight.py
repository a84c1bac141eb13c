"""More devices, the same training: gradients at equal parameters, and the accuracy at the end."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run


@pytest.mark.slow
def test_one_and_eight_devices_train_alike():
    """Rounding differs, so trajectories part; what they reach must not."""
    done = run([sys.executable, str(Path(__file__).with_name("observe_training.py"))], devices=8, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["distances"]) <= 1e-5, found
    one, eight = np.array(found["accuracies"]).T
    assert min(one) > 0.8, found  # They have learned something.
    assert abs(np.mean(eight - one)) <= 0.01, found
