"""Training a sparse autoencoder."""

import pytest
import torch
from given_vectors import agree, batch_of, columns
from sentence_transformers.sparse_encoder import losses as st
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
from torch import nn

from polyvec.embed.projection.trained import SparseAutoencoder
from polyvec.errors import SettingsError
from polyvec.train.losses.sparse import CSR


class Encoder(nn.Module):
    """Given vectors, then their autoencoder."""

    device = torch.device("cpu")

    def __init__(self, coder):
        super().__init__()
        self.coder = coder

    def forward(self, features):
        return self.coder({"sentence_embedding": features["vectors"]})


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_csr(normalize, dead):
    torch.manual_seed(0)
    theirs = SparseAutoEncoder(6, hidden_dim=20, k=3, k_aux=4, normalize=normalize).double()
    nn.init.normal_(theirs.pre_bias), nn.init.normal_(theirs.latent_bias)
    if dead:
        theirs.stats_last_nonzero[5:15] = 99
    loss = st.CSRLoss(
        Encoder(theirs),
        loss=st.SparseMultipleNegativesRankingLoss(Encoder(theirs), scale=20.0),
        beta=0.1,
        gamma=0.5,
    ).eval()
    loss.loss.similarity_fct = torch_cosine
    coder = SparseAutoencoder(6, num_latents=20, k=3, normalize=normalize).double()
    with torch.no_grad():
        coder.weight_ED.copy_(theirs.encoder.weight)
        coder.bias_E.copy_(theirs.latent_bias)
        coder.bias_pre_D.copy_(theirs.pre_bias)
    ours = CSR(coder, beta=0.1, gamma=0.5, num_auxiliary=4).eval()
    ours.batches_since_fired_E.copy_(theirs.stats_last_nonzero)
    agree(loss, lambda v: ours(batch_of(v)), columns(5, 5))
    torch.testing.assert_close(coder.weight_ED.grad, theirs.encoder.weight.grad)
    torch.testing.assert_close(coder.bias_pre_D.grad, theirs.pre_bias.grad)


def torch_cosine(a, b):
    return nn.functional.normalize(a) @ nn.functional.normalize(b).T


def test_dead_latents_are_counted_and_revived():
    torch.manual_seed(0)
    coder = SparseAutoencoder(8, num_latents=64, k=4)
    with torch.no_grad():
        coder.bias_E[32:] = -5.0  # half of them cannot be among the largest
    shares = {}
    for beta in (0.0, 1.0):
        again = SparseAutoencoder(8, num_latents=64, k=4)
        again.load_state_dict(coder.state_dict())
        loss = CSR(again, beta=beta, gamma=0.0, num_auxiliary=32, dead_after=3)
        optimizer = torch.optim.Adam(again.parameters(), 0.03)
        for step in range(150):
            optimizer.zero_grad()
            loss(batch_of([each.float() for each in columns(32, 32, size=8, seed=step)])).backward()
            optimizer.step()
        shares[beta] = float((loss.batches_since_fired_E > 3).float().mean())
    assert shares[1.0] < shares[0.0], shares


def test_another_projection():
    with pytest.raises(SettingsError, match=r"the embedder does not have; add projections = "):
        CSR(nn.Linear(2, 2))
