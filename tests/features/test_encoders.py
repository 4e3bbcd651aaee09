import pytest

from helpers import MeanColour
from hggep_sc.config import Config
from hggep_sc.features.encoders import SHUFFLENET, ObsmEncoder, is_frozen, make_encoder
from hggep_sc.nn import ModuleEncoder, ShuffleNetEncoder


def test_what_is_frozen():
    still, learning = Config(), Config(gem=True)
    own = make_encoder(SHUFFLENET, still, None)
    assert isinstance(own, ShuffleNetEncoder)
    slot = make_encoder("X_emb", still, None)
    assert slot == ObsmEncoder("X_emb")
    module = make_encoder(MeanColour(), still, None)
    assert isinstance(module, ModuleEncoder)
    assert make_encoder(SHUFFLENET, Config.from_preset("published"), None) is None
    assert [is_frozen(encoder, still) for encoder in (own, slot, module, None)] == [True, True, True, False]
    assert [is_frozen(encoder, learning) for encoder in (own, slot, module, None)] == [False, True, True, False]


@pytest.mark.parametrize("encoder", [None, 3, MeanColour])
def test_neither_a_name_nor_a_module_is_refused(encoder):
    with pytest.raises(
        TypeError,
        match=r"encoder must be a name of hggep_sc.encoders.list\(\), the obsm slot .* or a torch\.nn\.Module",
    ):
        make_encoder(encoder, Config(), None)


@pytest.mark.parametrize("encoder", ["X_emb", MeanColour()])
def test_the_published_network_has_its_own(encoder):
    with pytest.raises(ValueError, match=r"the published network has its own"):
        make_encoder(encoder, Config.from_preset("published"), None)


@pytest.mark.parametrize("encoder", ["X_emb", MeanColour()])
@pytest.mark.parametrize("setting", [{"gem": True}, {"cbam": True}, {"backbone_learning_rate": 1e-5}])
def test_what_an_encoder_of_ones_own_would_ignore_is_refused(encoder, setting):
    with pytest.raises(ValueError, match=r"yours is not trained: config=\{'gem': False, 'cbam': False"):
        make_encoder(encoder, Config().replace(**setting), None)
