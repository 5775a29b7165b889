"""What all predictions of a checkpoint lack: a linear map from a person's latent to an addition to the LoRA.

Letters: B people, Z numbers of a latent, P parameters of one LoRA.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from difflora.errors import CheckpointError
from difflora.files import load_safetensors, save_safetensors

MAP_UNIT = 0.1
"""A step of Adam moves each number of the map by so much of the rate: Z of them add up."""


class Correction(nn.Module):
    """What is added to a person's LoRA: (B, Z) latents -> (B, P)."""

    def __init__(self, latent_numbers: int, num_parameters: int) -> None:
        """Start with nothing added."""
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_parameters))  # (P,)
        self.map = nn.Parameter(torch.zeros(latent_numbers, num_parameters))  # (Z, P)

    def forward(self, latents: Tensor) -> Tensor:
        """Add for standardised latents (B, Z)."""
        return torch.addmm(self.mean, latents, self.map, alpha=MAP_UNIT)

    def save(self, path: Path, start: str) -> Path:
        """Write it, with the digest of the checkpoint that it corrects."""
        tensors = {"mean": self.mean.detach(), "map": self.map.detach()}
        return save_safetensors(path, tensors, {"corrects": start})

    @classmethod
    def load(cls, path: Path, start: str) -> "Correction":
        """Inverse of `save`.

        Raises:
            CheckpointError: it corrects another checkpoint.
        """
        tensors, metadata = load_safetensors(path)
        if metadata.get("corrects") != start:
            raise CheckpointError(
                f"{path} corrects another checkpoint: give that one, or run train_correction on this one"
            )
        correction = cls(*tensors["map"].shape)
        correction.load_state_dict(tensors)
        return correction.requires_grad_(False)
