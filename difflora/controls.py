"""Controls: ways from features to a LoRA without a diffusion model, which DiffLoRA has to beat.

With few identities these can match a diffusion model, so every evaluation reports them.
Letters: n LoRAs of a library, m photos of their people, B people asked about, C feature width,
Q principal components, H hidden width, P parameters of one LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import LayoutError

SMALLEST_VARIANCE = 1e-6
"""Of the largest: what is less is rounding in float32, and dividing by it would blow it up."""
MLP_WIDTH, MLP_DROPOUT, MLP_BATCH = 256, 0.2, 64
MLP_LEARNING_RATE, MLP_WEIGHT_DECAY, MLP_MEASURE_EVERY = 1e-3, 1e-2, 25


def mean_lora(library: Tensor) -> Tensor:
    """The LoRA of nobody in particular.

    Args:
        library: (n, P).

    Returns:
        (P,)
    """
    return library.mean(dim=0)  # (P,)


def nearest_lora(face_embedding: Tensor, library_embedding: Tensor, library: Tensor) -> Tensor:
    """The LoRA of whoever in the library looks most alike.

    Args:
        face_embedding: (B, C) rows of unit length.
        library_embedding: (n, C) rows of unit length, one per LoRA.
        library: (n, P).

    Returns:
        (B, P)
    """
    similarity = face_embedding @ library_embedding.mT  # (B, n) cosine
    return library[similarity.argmax(dim=-1)]  # (B, P)


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """The directions in which the LoRAs of a library differ most.

    Args:
        mean: (P,).
        basis: (Q, P), orthonormal rows, most important first.
    """

    mean: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, library: Tensor, num_components: int) -> PrincipalComponents:
        """Principal components from the n x n Gram matrix: P is far larger than n.

        With X = U S V^T (rows centred) X X^T = U S^2 U^T, and the components are V^T = S^-1 U^T X.

        Args:
            library: (n, P).
            num_components: Q < n; n centred LoRAs span n - 1 directions. Those in which they hardly differ
                are left out, so that Q can turn out smaller.

        Raises:
            LayoutError: more components than the library can have.
        """
        if not 1 <= num_components < len(library):
            raise LayoutError(
                f"{num_components} principal components of {len(library)} LoRAs: "
                f"ask for 1 to {len(library) - 1}, or train more LoRAs"
            )
        mean = library.mean(dim=0)  # (P,)
        centred = library - mean  # (n, P)
        squares, left = torch.linalg.eigh(centred @ centred.mT)  # (n,) ascending, (n, n)
        squares, left = squares.flip(0)[:num_components], left.flip(1)[:, :num_components]  # (Q,), (n, Q)
        real = squares > SMALLEST_VARIANCE * squares[0]  # (Q,)
        return cls(mean, (left.mT @ centred)[real] / squares[real].sqrt()[:, None])  # (Q, P)

    def project(self, flat_weights: Tensor) -> Tensor:
        """Coefficients: (B, P) -> (B, Q)."""
        return (flat_weights - self.mean) @ self.basis.mT  # (B, Q)

    def reconstruct(self, coefficients: Tensor) -> Tensor:
        """LoRAs with these coefficients: (B, Q) -> (B, P)."""
        return torch.addmm(self.mean, coefficients, self.basis)  # (B, P)


@dataclass(frozen=True, eq=False)
class RidgeRegression:
    """Linear map from features to targets, in closed form (Hoerl & Kennard 1970).

    Args:
        feature_mean: (C,).
        target_mean: (Q,).
        weights: (C, Q).
    """

    feature_mean: Tensor
    target_mean: Tensor
    weights: Tensor

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, regulariser: float) -> RidgeRegression:
        """W = (X^T X + r m v I)^-1 X^T Y with centred X, Y; v is the mean variance of a feature.

        Args:
            features: X, (m, C).
            targets: Y, (m, Q).
            regulariser: r >= 0, relative to the features' own variance.
        """
        feature_mean, target_mean = features.mean(dim=0), targets.mean(dim=0)  # (C,), (Q,)
        x = (features - feature_mean).double()  # (m, C)
        y = (targets - target_mean).double()  # (m, Q)
        gram = x.mT @ x  # (C, C)
        gram.diagonal().add_(regulariser * gram.diagonal().mean())
        weights = torch.linalg.solve(gram, x.mT @ y)  # (C, Q)
        return cls(feature_mean, target_mean, weights.to(features.dtype))

    def predict(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, Q)."""
        return torch.addmm(self.target_mean, features - self.feature_mean, self.weights)  # (B, Q)


@dataclass(frozen=True, eq=False)
class MlpRegression:
    """Multilayer perceptron from features to targets, trained in weight space.

    Args:
        feature_mean: (C,).
        feature_unit: (C,).
        target_mean: (Q,).
        target_unit: () one unit for all targets: an error counts by its size in weight space.
        network: (B, C) -> (B, Q).
    """

    feature_mean: Tensor
    feature_unit: Tensor
    target_mean: Tensor
    target_unit: Tensor
    network: nn.Sequential

    @classmethod
    def fit(
        cls, features: Tensor, targets: Tensor, held_out: Tensor, seed: int = 0, num_steps: int = 1500
    ) -> MlpRegression:
        """Train with AdamW and dropout; the step that predicts the held-out rows best is kept.

        Args:
            features: (m, C), in units in which numbers may be compared.
            targets: (m, Q).
            held_out: (m,) bool, rows that only choose the step: whole people, not some of their photos.
            seed: of everything random.
            num_steps: at most.

        Raises:
            LayoutError: nothing is left to train on, or to choose the step by.
        """
        if not held_out.any() or held_out.all():
            raise LayoutError("an MLP needs photos to train on and held-out ones: give a larger library")
        feature_mean, target_mean = features.mean(dim=0), targets.mean(dim=0)  # (C,), (Q,)
        feature_unit = (features - feature_mean).square().mean().sqrt().expand(features.shape[1])  # (C,)
        target_unit = (targets - target_mean).square().mean().sqrt()  # ()
        x, y = (features - feature_mean) / feature_unit, (targets - target_mean) / target_unit
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            network = nn.Sequential(
                nn.Linear(x.shape[1], MLP_WIDTH), nn.SiLU(), nn.Dropout(MLP_DROPOUT),
                nn.Linear(MLP_WIDTH, MLP_WIDTH), nn.SiLU(), nn.Dropout(MLP_DROPOUT),
                nn.Linear(MLP_WIDTH, y.shape[1]),
            )  # fmt: skip
            train_mlp(network, (x[~held_out], y[~held_out]), (x[held_out], y[held_out]), num_steps)
        return cls(feature_mean, feature_unit, target_mean, target_unit, network.requires_grad_(False))

    def predict(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, Q)."""
        standardised = (features - self.feature_mean) / self.feature_unit  # (B, C)
        return self.target_mean + self.target_unit * self.network(standardised)  # (B, Q)


def train_mlp(
    network: nn.Sequential, train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], num_steps: int
) -> None:
    """Train a network in place, and leave it as it was when it predicted the held-out rows best.

    Args:
        network: (B, C) -> (B, Q).
        train: inputs (m, C) and targets (m, Q).
        held_out: the same of other people.
        num_steps: of which every `MLP_MEASURE_EVERY`th is measured.
    """
    optimiser = torch.optim.AdamW(network.parameters(), MLP_LEARNING_RATE, weight_decay=MLP_WEIGHT_DECAY)
    best, best_error = {name: t.clone() for name, t in network.state_dict().items()}, float("inf")
    for step in range(num_steps):
        rows = torch.randint(len(train[0]), (MLP_BATCH,))  # (B,)
        loss = (network(train[0][rows]) - train[1][rows]).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % MLP_MEASURE_EVERY == 0:
            network.train(False)
            with torch.no_grad():
                error = float((network(held_out[0]) - held_out[1]).square().mean())
            network.train()
            if error < best_error:
                best, best_error = {name: t.clone() for name, t in network.state_dict().items()}, error
    network.load_state_dict(best)
    network.train(False)
