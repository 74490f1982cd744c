"""Settings for all tests."""

import pytest
from hypothesis import settings

# The machine may be busy: how long an example takes says nothing about the code.
settings.register_profile("spectacles", deadline=None)
settings.load_profile("spectacles")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks of a few kilobytes are slower on several threads than on one."""
    import torch  # not above: tests that need no torch start without it

    torch.set_num_threads(1)
