"""Several encoders at once."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import hggep_sc as hggep
from helpers import CPU, TINY
from hggep_sc import encoders
from hggep_sc.encoders.named import NamedEncoder
from hggep_sc.encoders.registry import _known, is_known, known_here, portable_encoder, require_weights
from hggep_sc.errors import InputError, MissingSlotError
from hggep_sc.features.encoders import sees_colours
from hggep_sc.features.store import describe_section
from hggep_sc.nn import Sight
from hggep_sc.section import open_sections

BOTH = "whole+parts"
SMALL = {**TINY, "fields_um": (60.0,), "fields_px": (32.0,), "epochs": 2, "ensemble": None}


class Parts(nn.Module):
    """Mean colours of the quarters of a patch, times a weight that a file may hold."""

    def __init__(self, path):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(12) if path is None else torch.load(path, weights_only=True)["weight"])

    def forward(self, pixels):
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1) * self.weight


class Whole(nn.Module):
    """Maps: the pixels themselves, and how bright they are, averaged over cells."""

    sight = Sight(stride=8, surroundings=8, tile=64)

    def __init__(self, path):
        super().__init__()

    def maps(self, pixels):
        cells = nn.functional.avg_pool2d(pixels, 8)
        return [cells, cells.square().mean(1, keepdim=True)]


@pytest.fixture(autouse=True)
def registered():
    """Two encoders of a user's: one sees the slide through maps, the other each patch by itself."""
    how = {"px": 32, "mpp": None, "licence": "MIT", "commercial": True}
    found = [
        encoders.register(encoders.EncoderInfo("whole", Whole, dimension=4, **how)),
        encoders.register(encoders.EncoderInfo("parts", Parts, dimension=12, **{**how, "licence": "BSD"})),
    ]
    yield found
    for info in found:
        _known.pop(info.name)


def described(section, encoder):
    return describe_section(section, encoder, (64.0, 96.0), 32, device=torch.device("cpu")).encoded


def test_features_are_those_of_each_in_its_own_way(sections):
    (section,) = open_sections({"S1": sections["S1"]})
    both = described(section, encoders.load(BOTH))
    alone = [described(section, encoders.load(name)) for name in ("whole", "parts")]
    assert both.shape[-1] == 16
    np.testing.assert_array_equal(both, np.concatenate(alone, axis=-1))
    patches = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    seen = [encoders.load(name)(patches) for name in ("parts", "whole")]
    torch.testing.assert_close(encoders.load("parts+whole")(patches), torch.cat(seen, 1))


def test_what_is_known_of_both():
    info = encoders.info(BOTH)
    assert (info.name, info.dimension, info.px, info.commercial, info.licence) == (BOTH, 16, 32, True, "MIT; BSD")
    assert info.settings == {"patch_size": 32}
    with pytest.raises(TypeError, match=r"built by hggep_sc\.encoders\.load"):
        info.build(None)
    assert is_known(BOTH)
    assert not is_known("whole+X_emb")
    encoder = encoders.load(BOTH)
    assert [type(member) for member in encoder.members] == [NamedEncoder, NamedEncoder]
    assert encoder.groups == (3, 1, 12)
    assert encoder.id == "+".join(encoders.load(name).id for name in ("whole", "parts"))


def test_colours_are_beside_the_packages_own_alone():
    assert sees_colours(encoders.load("efficientnet_lite0+shufflenet", None))
    assert not sees_colours(encoders.load(BOTH))


class TestModels:
    def test_fit_save_load_predict(self, sections, tmp_path):
        training = {name: sections[name] for name in ("S1", "S2")}
        model = hggep.tl.fit(training, encoder=BOTH, genes=5, config=SMALL, **CPU)
        assert [network.groups for network in model.network.networks] == [(3,), (1,), (12,)]
        assert model.linear.coefficients.shape[0] == 16
        model.save(tmp_path / "m")
        again = hggep.HGGEP.load(tmp_path / "m", device="cpu")
        assert again.id == model.id
        found = [hggep.tl.predict(sections["S3"], each, device="cpu", copy=True) for each in (model, again)]
        np.testing.assert_array_equal(*(one.layers["hggep"] for one in found))
        assert "whole beside parts" in repr(model)
        assert "MIT; BSD" in (tmp_path / "m" / "README.md").read_text()

    def test_one_network_of_all_groups(self, sections):
        config = {**SMALL, "ensemble": 1}
        model = hggep.tl.fit(sections, encoder=BOTH, genes=5, config=config, **CPU)
        assert model.network.groups == (3, 1, 12)

    def test_resumed_as_uninterrupted(self, sections, tmp_path):
        how = {"encoder": BOTH, "genes": 5, "config": SMALL, **CPU}
        whole = hggep.tl.fit(sections, **how)
        hggep.tl.fit(sections, checkpoint_dir=tmp_path / "run", **how)
        assert hggep.tl.fit(sections, checkpoint_dir=tmp_path / "run", resume=True, **how).id == whole.id

    @pytest.mark.parametrize("method", ["low_rank_ridge", "stnet"])
    def test_other_methods(self, sections, method):
        config = {"epochs": 1} if method == "stnet" else None
        model = hggep.tl.fit(sections, method=method, encoder=BOTH, genes=5, config=config, **CPU)
        found = hggep.tl.predict(sections["S3"], model, device="cpu", copy=True)
        assert np.isfinite(found[:, model.genes].layers["hggep"]).all()

    def test_an_encoder_that_makes_something_else_of_the_same_weights(self, sections, tmp_path, registered):
        hggep.tl.fit(sections, encoder=BOTH, genes=5, config=SMALL, **CPU).save(tmp_path / "m")

        class Other(Parts):
            def forward(self, pixels):
                return 2 * super().forward(pixels)

        encoders.register(replace(registered[1], build=Other))
        with pytest.raises(ValueError, match=r"has the same weights.* and makes something else of them"):
            hggep.HGGEP.load(tmp_path / "m", device="cpu")

    def test_other_weights(self, sections, tmp_path):
        hggep.tl.fit(sections, encoder=BOTH, genes=5, config=SMALL, **CPU).save(tmp_path / "m")
        (tmp_path / "weights").mkdir()
        torch.save({"weight": torch.full((12,), 2.0)}, tmp_path / "weights" / "parts.pth")
        with pytest.raises(ValueError, match="has other weights here"):
            hggep.HGGEP.load(tmp_path / "m", encoder=tmp_path / "weights", device="cpu")


class TestWeights:
    def test_a_folder_with_a_file_for_some(self, tmp_path):
        torch.save({"weight": torch.full((12,), 2.0)}, tmp_path / "parts.pth")
        patches = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
        plain = encoders.load(BOTH)(patches)
        found = encoders.load(BOTH, tmp_path)(patches)
        torch.testing.assert_close(found[:, :4], plain[:, :4])
        torch.testing.assert_close(found[:, 4:], 2 * plain[:, 4:])
        require_weights(BOTH, tmp_path)

    @pytest.mark.parametrize("method", ["hggep", "ridge"])
    def test_a_file_no_folder_and_two(self, tmp_path, sections, method):
        how = {"encoder": BOTH, "method": method, **CPU}
        torch.save({}, tmp_path / "parts.pth")
        with pytest.raises(InputError, match=r"is a file: for several encoders it is a folder.* called 'whole'"):
            hggep.tl.fit(sections, **{**how, "weights": tmp_path / "parts.pth"})
        with pytest.raises(FileNotFoundError, match="weights"):
            hggep.tl.fit(sections, **{**how, "weights": tmp_path / "nowhere"})
        (tmp_path / "parts").mkdir()
        with pytest.raises(InputError, match=r"holds 'parts' twice: parts, parts\.pth"):
            hggep.tl.fit(sections, **{**how, "weights": tmp_path})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("parts+parts", "names an encoder twice"),
        ("whole+uni", "'whole' was made for patches of 32 px, 'uni' for 224 px at 0.5 um per px"),
    ],
)
def test_what_cannot_see_side_by_side(name, message, sections):
    for ask in (encoders.info, encoders.load):
        with pytest.raises(InputError, match=message):
            ask(name)
    with pytest.raises(InputError, match=message):
        hggep.tl.fit(sections, encoder=name, **CPU)


def test_names_of_single_ones_have_no_plus(registered):
    with pytest.raises(ValueError, match=r"'a\+b': '\+' joins the names"):
        encoders.register(replace(registered[0], name="a+b"))


def test_an_unknown_name_among_them(sections):
    with pytest.raises(ValueError, match="there is no encoder 'unii', but 'uni'"):
        encoders.info("whole+unii")
    with pytest.raises(MissingSlotError, match=r"no embeddings in obsm\['whole\+unii'\]"):
        hggep.tl.fit(sections, encoder="whole+unii", **CPU)


def test_another_process_knows_those_of_the_users(registered):
    sent = pickle.loads(pickle.dumps(portable_encoder(f"{BOTH}+shufflenet")))
    for info in registered:
        _known.pop(info.name)
    assert known_here(sent) == f"{BOTH}+shufflenet"
    assert is_known(BOTH)


def test_cross_validation_tells_them_from_each(sections):
    methods = {name: {"method": "ridge", "encoder": name} for name in (BOTH, "parts+whole", "whole")}
    result = hggep.tl.cross_validate(sections, methods=methods, only=["S3"], genes=5, device="cpu", progress=False)
    means = result.table[result.table["metric"] == "pcc"].groupby("method")["value"].mean()
    assert means[BOTH] == pytest.approx(means["parts+whole"], abs=1e-4)  # of a ridge the order is of no account
    assert means[BOTH] != pytest.approx(means["whole"], abs=1e-4)
