"""What a person asks of a server is checked before anything is done."""

from dataclasses import replace
from pathlib import Path

import pytest

from mlopsnb import servers
from mlopsnb.errors import UserError
from mlopsnb.records import Revision
from mlopsnb.targets.revisions import plain, restored

NOTHING = {
    "env": None,
    "port": None,
    "grpc_port": None,
    "cache_bytes": None,
    "capture": None,
    "mask": (),
    "workers": 1,
}


@pytest.mark.parametrize(("mask", "found"), [(["age", "a b"], ("age", "a b")), ("age", ("age",)), ((), ())])
def test_columns_are_left_out_of_what_is_captured(mask, found):
    assert servers.read(**{**NOTHING, "capture": 0.5, "mask": mask})["mask"] == found


@pytest.mark.parametrize("mask", [["a,b"], [7], [""], None])
def test_a_mask_is_of_names(mask):
    with pytest.raises(UserError, match="mask takes names"):
        servers.read(**{**NOTHING, "capture": 0.5, "mask": mask})


def test_a_mask_of_nothing_is_told():
    with pytest.raises(UserError, match="none are captured"):
        servers.read(**{**NOTHING, "mask": ["age"]})


def test_a_history_keeps_it_and_an_older_one_has_none():
    made = Revision(id=1, source="s", digest="d", capture=0.1, mask=("age",), captured=Path("/c"))
    assert restored(plain(made)) == made
    older = {key: value for key, value in plain(made).items() if key != "mask"}
    assert restored(older) == replace(made, mask=())
