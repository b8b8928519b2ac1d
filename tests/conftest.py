"""One thread a test worker, no network and no screen: set before any test imports torch."""

import os

import matplotlib
import pytest
from hypothesis import settings

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Not by MPLBACKEND, which the kernels of notebook tests would inherit.
matplotlib.use("agg")

# A slow machine is no failure, and a failure found once must be found again.
settings.register_profile("toolkit", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("toolkit")


@pytest.fixture(scope="session")
def policy():
    """The shipped model; a file that needs another one has its own fixture of this name."""
    import toolkit as tk

    return tk.load_model()
