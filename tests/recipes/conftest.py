"""What recipes make at the start of each run is small here."""

import pytest

from speechbrain_ssl.dataio import banks


@pytest.fixture(autouse=True, scope="session")
def few_clips_and_rirs():
    """Makes 2 clips of noise and 5 RIRs in place of 60 and hundreds."""
    noise, rirs = banks.colored_noise, banks.simulate_rirs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            banks, "colored_noise", lambda count, *rest: noise(2, *rest)
        )
        patch.setattr(
            banks, "simulate_rirs", lambda count, *rest: rirs(5, *rest)
        )
        yield
