import pytest
import torch

from detrs.ops.threads import num_threads


def test_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    with num_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        with num_threads(None):
            assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), num_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
