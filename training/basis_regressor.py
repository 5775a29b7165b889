"""The end-to-end regressor, a control without diffusion: features of photos -> coefficients of bases.

The idea is HyperLoRA's (Li et al. 2025, arXiv 2503.16944): no latent, no noise, `lora_up` of all modules is
a sum of learned bases, trained with the base model's own loss. `training.regressor` has its published sizes,
to be timed; this one has the embedded world's, to be trained and compared with.

Letters: B people, N photos, C feature width (face and image side by side), Q bases, P parameters of one LoRA.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from difflora.checkpoint import config_from_fields
from difflora.controls import PrincipalComponents, RidgeRegression
from difflora.errors import CheckpointError
from difflora.features import IdentityFeatures, pad_photos
from difflora.files import load_safetensors, save_safetensors
from difflora.layout import LoraLayout
from difflora.linear_prior import feature_statistics
from training.lora_library import MakesLoras, check_same_loras

DOWN_PREFIX = "shared_down."


@dataclass(frozen=True)
class BasisRegressorConfig:
    """Sizes; saved with the weights.

    Args:
        face_width: of the face embedding.
        image_width: of the image features.
        hidden: width of the MLP beside the linear map.
        bases: Q.
    """

    face_width: int = 512
    image_width: int = 96
    hidden: int = 256
    bases: int = 128


class BasisRegressor(nn.Module):
    """flat weights = mean + coefficients(photos) @ basis, with `lora_down` shared and frozen."""

    def __init__(self, layout: LoraLayout, config: BasisRegressorConfig) -> None:
        """An untrained regressor: every LoRA is zero, the base model itself."""
        super().__init__()
        self.layout, self.config = layout, config
        width = config.face_width + config.image_width
        self.register_buffer("feature_mean", torch.zeros(width))  # (C,)
        self.register_buffer("feature_unit", torch.ones(width))  # (C,)
        self.feature_mean: Tensor
        self.feature_unit: Tensor
        self.linear = nn.Linear(width, config.bases)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.bases)
        )
        self.mean = nn.Parameter(torch.zeros(layout.num_parameters))  # (P,)
        self.basis = nn.Parameter(torch.zeros(config.bases, layout.num_parameters))  # (Q, P)

    @torch.no_grad()
    def fit_features(self, photos: Tensor) -> None:
        """Measure the features of photos (m, C) of many people; see `feature_statistics`."""
        mean, unit = feature_statistics(photos, self.config.face_width)  # (C,), (C,)
        self.feature_mean.copy_(mean)
        self.feature_unit.copy_(unit)

    @torch.no_grad()
    def start_from(self, ridge: RidgeRegression, components: PrincipalComponents, spread: Tensor) -> None:
        """Become a ridge regression from standardised features onto principal components.

        Args:
            ridge: (C) -> (Q').
            components: Q' of them, at most Q.
            spread: (Q') deviations of the coefficients: bases in these units see equally large coefficients.
        """
        count = len(spread)
        self.mean.copy_(components.mean)
        self.basis.zero_()
        self.basis[:count] = spread[:, None] * components.basis  # (Q', P)
        self.linear.weight[:count] = (ridge.weights / spread).mT  # (Q', C)
        bias = ridge.target_mean - ridge.feature_mean @ ridge.weights  # (Q',)
        self.linear.bias[:count] = bias / spread
        self.mlp[2].weight.zero_()
        self.mlp[2].bias.zero_()

    def standardise(self, features: Tensor) -> Tensor:
        """Features (..., C) as the maps see them."""
        return (features - self.feature_mean) / self.feature_unit

    def forward(self, face: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        """Features of N photos -> LoRAs; photos of one person are averaged as coefficients.

        Args:
            face: (B, N, 512).
            image: (B, N, C - 512).
            mask: (B, N) bool, which photos count.

        Returns:
            (B, P)
        """
        x = self.standardise(torch.cat([face, image], dim=-1))  # (B, N, C)
        each = self.linear(x) + self.mlp(x)  # (B, N, Q)
        share = mask / mask.sum(dim=1, keepdim=True).clamp_min(1)  # (B, N)
        coefficients = (each * share[..., None]).sum(dim=1)  # (B, Q)
        return torch.addmm(self.mean, coefficients, self.basis)  # (B, P)

    @torch.no_grad()
    def generate_weights(self, people: Sequence[IdentityFeatures]) -> Tensor:
        """The LoRAs of B people, (B, P); see `DiffLoRA.generate_weights`."""
        return self(*pad_photos(people, self.mean.device))


def save_regressor(
    path: Path, regressor: BasisRegressor, shared_down: Mapping[str, Tensor], base: str
) -> Path:
    """Write `.safetensors`.

    Args:
        path: the file.
        regressor: trained.
        shared_down: module -> lora_down that it was trained with.
        base: fingerprint of the base model.
    """
    downs = {DOWN_PREFIX + name: down for name, down in shared_down.items()}
    header = {
        "regressor": json.dumps(asdict(regressor.config)),
        "layout": regressor.layout.to_json(),
        "base_model_fingerprint": base,
    }
    return save_safetensors(path, {**regressor.state_dict(), **downs}, header)


def load_regressor(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[BasisRegressor, dict[str, Tensor], str]:
    """Read what `save_regressor` wrote: the regressor, its `lora_down`s, its base model's fingerprint.

    Raises:
        CheckpointError: another kind of file.
    """
    tensors, metadata = load_safetensors(path, device)
    if "regressor" not in metadata:
        raise CheckpointError(f"{path} is not a regressor: give what training.train_regressor wrote")
    config = config_from_fields(BasisRegressorConfig, json.loads(metadata["regressor"]))
    downs = {name: tensors.pop(name) for name in list(tensors) if name.startswith(DOWN_PREFIX)}
    regressor = BasisRegressor(LoraLayout.from_json(metadata["layout"]), config).to(device)
    regressor.load_state_dict(tensors)
    shared_down = {name.removeprefix(DOWN_PREFIX): down for name, down in downs.items()}
    return regressor.train(False).requires_grad_(False), shared_down, metadata["base_model_fingerprint"]


def open_regressor(
    path: Path, expected: MakesLoras, base_fingerprint: str, image_width: int
) -> BasisRegressor:
    """The regressor of a file, checked against whose LoRAs it is to make, for which base model, from what.

    Raises:
        CheckpointError: it makes other LoRAs, or was trained for another base model or on other features.
    """
    regressor, shared_down, made_for = load_regressor(path)
    advice = "train one with training.train_regressor on the same library"
    check_same_loras(f"the regressor {path}", regressor.layout, shared_down, expected, advice)
    if made_for != base_fingerprint:
        raise CheckpointError(
            f"the regressor {path} was made for the base model {made_for}, not {base_fingerprint}: {advice}"
        )
    if regressor.config.image_width != image_width:
        raise CheckpointError(
            f"the regressor {path} was trained on image features of width {regressor.config.image_width}, "
            f"these have {image_width}: {advice}"
        )
    return regressor
