"""An atlas is read back as it was written."""

import json

import numpy as np
import pytest
import torch

from storyteller_ds.atlas.atlas import make_atlas
from storyteller_ds.atlas.report import as_json, heading, tables, verdict
from storyteller_ds.atlas.saved import read_atlas
from storyteller_ds.untrusted import UntrustedFileError


def texts(atlas):
    return [[[*column.cells] for column in table.columns] for _, table in tables(atlas)]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_there_and_back(runs, text, tmp_path, kind):
    atlas = make_atlas(runs[kind], text, 1000, 500, torch.device("cpu"), lambda _: None)
    (tmp_path / "atlas.json").write_text(as_json(atlas))
    again = read_atlas(tmp_path / "atlas.json")
    assert as_json(again) == as_json(atlas)
    assert (heading(again), verdict(again), texts(again)) == (heading(atlas), verdict(atlas), texts(atlas))
    for one, other in zip(atlas.layers, again.layers, strict=True):
        np.testing.assert_array_equal(one.similarity.output_cka_EE, other.similarity.output_cka_EE)


def test_a_damaged_one_is_refused(runs, text, tmp_path):
    atlas = make_atlas(runs["char"], text, 1000, 0, torch.device("cpu"), lambda _: None)
    document = json.loads(as_json(atlas))
    document["layers"][0]["pairs_EE"] = [[1], [1, 2]]
    (tmp_path / "atlas.json").write_text(json.dumps(document))
    with pytest.raises(UntrustedFileError, match="is not an atlas"):
        read_atlas(tmp_path / "atlas.json")
