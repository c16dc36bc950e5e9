import torch

from stml_semi.runtime import distributed


def test_shares_cover_all_rows_once_and_differ_by_one():
    for total in (1, 7, 64, 120):
        for world in (1, 2, 3, 7):
            shares = [distributed.share(total, rank=rank, world_size=world) for rank in range(world)]
            assert [row for s in shares for row in range(total)[s]] == list(range(total))
            sizes = [s.stop - s.start for s in shares]
            assert max(sizes) - min(sizes) <= 1


def test_without_a_process_group_gather_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x, 3) is x
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
