import torch

from hggep_sc import Config
from hggep_sc.nn import Ensemble, HGGEPNetwork, averaged

CONFIG = Config(width=16, vit_heads=2, n_components=3)


def a_network(seed):
    torch.manual_seed(seed)
    network = HGGEPNetwork(CONFIG, 7, encoder=None, groups=(4, 6), n_fields=2)
    for parameter in network.parameters():  # which start at nothing
        torch.nn.init.normal_(parameter, std=0.1)
    network.start_from(torch.arange(7.0), torch.randn(3, 7), torch.ones(7))
    return network.eval()


def given():
    torch.manual_seed(9)
    return torch.randn(12, 2, 10), torch.rand(12, 2)


def test_expression_is_the_mean_and_latents_lie_side_by_side():
    networks = [a_network(seed) for seed in range(3)]
    alone = [network.decode(*given()) for network in networks]
    out = Ensemble(networks).decode(*given())
    torch.testing.assert_close(out.expression, sum(one.expression for one in alone) / 3)
    assert not torch.allclose(alone[0].expression, alone[1].expression)
    torch.testing.assert_close(out.latent.split(16, dim=1), tuple(one.latent for one in alone))


def test_scaled_around_the_gene_means():
    ensemble = Ensemble([a_network(seed) for seed in range(2)])
    mean, before = torch.arange(7.0), ensemble.decode(*given()).expression
    ensemble.scale_output(3.0)
    torch.testing.assert_close(ensemble.decode(*given()).expression - mean, 3 * (before - mean))


def test_one_network_is_no_ensemble():
    network = a_network(0)
    assert averaged([network]) is network
