"""Step 5: maps fitted once on a sample of vectors and stored with the model, so that a vector
never depends on the other texts of its batch.

N texts of the sample, B texts of a batch, D size before, E size after.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.part import InFeatures, Part, at_least, wide
from polyvec.errors import CalibrationError, SettingsError, ShapeError

Sample = np.ndarray | Tensor


class Fitted(Part):
    """Vectors [B, D] to [B, E], after `fit`; what was fitted is saved in the state dict.

    A subclass registers buffers, which `_fit` fills from a float64 sample and `project` reads.
    Computes in float32 and returns the caller's dtype.
    """

    num_texts: Tensor

    def __init__(self, in_features: InFeatures, out_features: int | None = None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = in_features if out_features is None else out_features
        # A buffer, so that "fitted" is saved with the weights.
        self.register_buffer("num_texts", torch.zeros((), dtype=torch.long))

    @property
    def fitted(self) -> bool:
        return bool(self.num_texts > 0)

    @torch.no_grad()
    def fit(self, vectors_ND: Sample) -> Self:
        """Fit on a sample, [N, D], and return this module; a second fit replaces the first.

        Raises CalibrationError for fewer than 2 vectors, too few for the number of dimensions,
        or values that are not finite; ShapeError for vectors of another size.
        """
        name = type(self).__name__
        sample_ND = _float64(vectors_ND)
        if sample_ND.ndim != 2 or len(sample_ND) < 2:
            raise CalibrationError(
                f"{name}.fit needs at least 2 vectors, got an array of {tuple(sample_ND.shape)}"
            )
        self._check_size(sample_ND)
        if not bool(torch.isfinite(sample_ND).all()):
            raise CalibrationError(f"{name}.fit: the vectors contain NaN or infinity")
        self._fit(sample_ND)
        self.num_texts.fill_(len(sample_ND))
        return self

    def forward(self, vectors_BD: Tensor) -> Tensor:
        """The mapped vectors, [B, E].

        Raises CalibrationError if nothing was fitted, ShapeError for vectors of another size.
        """
        if not self.fitted:
            raise CalibrationError(
                f"{type(self).__name__} is not fitted: call Embedder.fit(texts) once and save"
            )
        self._check_size(vectors_BD)
        return self.project(wide(vectors_BD)).to(vectors_BD.dtype)

    def project(self, vectors_BD: Tensor) -> Tensor:
        raise NotImplementedError

    def _fit(self, sample_ND: Tensor) -> None:
        raise NotImplementedError

    def _check_size(self, vectors: Tensor) -> None:
        if vectors.shape[-1] != self.in_features:
            raise ShapeError(
                f"{type(self).__name__} expects vectors of {self.in_features} dimensions, "
                f"got {tuple(vectors.shape)}"
            )


class Standardize(Fitted):
    """Each dimension minus its mean, divided by its standard deviation (over N, not N - 1).

    A constant dimension is left unchanged. For models in which a few dimensions dominate the
    cosine (Timkey and van Schijndel 2021, arXiv:2109.04404).
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, in_features: InFeatures) -> None:
        super().__init__(in_features)
        self.register_buffer("mean_D", torch.zeros(in_features))
        self.register_buffer("std_D", torch.ones(in_features))

    def project(self, vectors_BD: Tensor) -> Tensor:
        return (vectors_BD - self.mean_D) / self.std_D

    def _fit(self, sample_ND: Tensor) -> None:
        constant_D = sample_ND.amax(dim=0) == sample_ND.amin(dim=0)
        std_D = sample_ND.std(dim=0, correction=0)
        self.mean_D.copy_(torch.where(constant_D, 0, sample_ND.mean(dim=0)))
        # The smallest normal float32: a smaller deviation would be stored as 0, and divided by.
        tiny = torch.finfo(torch.float32).tiny
        self.std_D.copy_(torch.where(constant_D, 1, std_D.clamp(min=tiny)))


class Affine(Fitted):
    """Vectors minus a mean, times a matrix that subclasses compute."""

    mean_D: Tensor
    matrix_DE: Tensor

    def __init__(self, in_features: InFeatures, out_features: int | None = None) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("mean_D", torch.zeros(in_features))
        self.register_buffer("matrix_DE", torch.zeros(in_features, self.out_features))

    def project(self, vectors_BD: Tensor) -> Tensor:
        return (vectors_BD - self.mean_D) @ self.matrix_DE.to(vectors_BD.dtype)

    def _fit(self, sample_ND: Tensor) -> None:
        self.mean_D.copy_(sample_ND.mean(dim=0))
        self.matrix_DE.copy_(self._matrix(sample_ND))

    def _matrix(self, sample_ND: Tensor) -> Tensor:
        raise NotImplementedError


class PCA(Affine):
    """The k principal components with the largest variance, [B, k], largest first.

    Not rescaled. Signs are fixed: the largest entry of each direction is positive. Fitting
    needs more than k texts.
    """

    def __init__(self, in_features: InFeatures, k: int) -> None:
        _check_k("PCA", k, in_features)
        super().__init__(in_features, k)
        self.k = k

    def _matrix(self, sample_ND: Tensor) -> Tensor:
        return principal("PCA", sample_ND, self.k)[0]


class Whitening(Affine):
    """Vectors whose sample covariance is the identity: (x - mean) U (Lambda + epsilon)^-1/2.

    With `k` only the k directions of the largest variance, [B, k] (Su et al. 2021,
    arXiv:2103.15316). `epsilon` is added to all variances, for directions that hardly vary.
    Fitting needs more texts than output dimensions.
    """

    def __init__(
        self, in_features: InFeatures, k: int | None = None, epsilon: float = 1e-8
    ) -> None:
        if k is not None:
            _check_k("Whitening", k, in_features)
        if epsilon < 0:
            raise SettingsError(f"Whitening: epsilon {epsilon} is negative")
        super().__init__(in_features, k)
        self.k, self.epsilon = k, epsilon

    def _matrix(self, sample_ND: Tensor) -> Tensor:
        directions_DE, variances_E = principal("Whitening", sample_ND, self.out_features)
        spread_E = (variances_E + self.epsilon).sqrt()
        if not bool((spread_E > 0).all()):
            raise CalibrationError(
                "Whitening.fit: the sample has no variance in some direction; set epsilon above 0"
            )
        return directions_DE / spread_E


class RemovePC(Affine):
    """Vectors minus the mean and minus the projection on the top k components, [B, D].

    All-but-the-top (Mu and Viswanath 2018, arXiv:1702.01417), which advises k near D / 100.
    Components are removed from the centred vector, so that nothing of them is left.
    """

    def __init__(self, in_features: InFeatures, k: int) -> None:
        _check_k("RemovePC", k, in_features - 1)
        super().__init__(in_features)
        self.k = k

    def _matrix(self, sample_ND: Tensor) -> Tensor:
        directions_DE, _ = principal("RemovePC", sample_ND, self.k)
        return torch.eye(self.in_features, dtype=torch.float64) - directions_DE @ directions_DE.T


class PPA(Fitted):
    """RemovePC, PCA to k dimensions, RemovePC again, [B, k], `remove` components each time.

    Raunak et al. 2017, arXiv:1708.03629, where `remove` is 7.
    """

    def __init__(self, in_features: InFeatures, k: int, remove: int = 7) -> None:
        _check_k("PPA", k, in_features)
        if not 1 <= remove < k:
            raise SettingsError(f"PPA: remove is {remove}, expected 1 to {k - 1} (less than k)")
        super().__init__(in_features, k)
        self.k, self.remove = k, remove
        self.before, self.pca = RemovePC(in_features, remove), PCA(in_features, k)
        self.after = RemovePC(k, remove)

    def project(self, vectors_BD: Tensor) -> Tensor:
        return self.after.project(self.pca.project(self.before.project(vectors_BD)))

    def _fit(self, sample_ND: Tensor) -> None:
        sample_ND = self.before.fit(sample_ND).project(sample_ND)
        self.after.fit(self.pca.fit(sample_ND).project(sample_ND))


def _float64(vectors_ND: Sample) -> Tensor:
    if isinstance(vectors_ND, Tensor):
        return vectors_ND.detach().to("cpu", torch.float64)
    return torch.from_numpy(np.array(vectors_ND, np.float64))


def principal(where: str, sample_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k directions of largest variance [D, k] and their variances [k] (over N - 1).

    Raises CalibrationError if the sample has too few texts for k directions.
    """
    if len(sample_ND) <= k:
        raise CalibrationError(
            f"{where}.fit: {k} directions need more than {k} vectors, got {len(sample_ND)}"
        )
    variances_D, directions_DD = torch.linalg.eigh(_covariance(sample_ND))
    # eigh sorts by ascending variance, and the sign of an eigenvector is arbitrary.
    directions_DE = directions_DD[:, -k:].flip(1)
    places_E = directions_DE.abs().argmax(dim=0, keepdim=True)
    signs_E = directions_DE.gather(0, places_E).sign()
    # Rounding can give a variance slightly below 0.
    return directions_DE * signs_E, variances_D[-k:].flip(0).clamp(min=0)


def _covariance(sample_ND: Tensor) -> Tensor:
    centred_ND = sample_ND - sample_ND.mean(dim=0)
    return centred_ND.T @ centred_ND / (len(sample_ND) - 1)


def _check_k(where: str, k: int, most: int) -> None:
    at_least(1, where, k=k)
    if k > most:
        raise SettingsError(f"{where}: k is {k}, expected at most {most}")


# Add yours here; tests walk the table, and PROJECTIONS takes it over.
FITTED: dict[str, type[Fitted]] = {
    "standardize": Standardize,
    "whiten": Whitening,
    "remove_pc": RemovePC,
    "pca": PCA,
    "abtt_pca_abtt": PPA,
}
