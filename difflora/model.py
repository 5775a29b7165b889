"""DiffLoRA: photos of a person in, a LoRA out. The library's front door.

Letters: B identities, N photos, T latent tokens, P parameters of one LoRA.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .base_model import weights_fingerprint
from .base_sketch import BaseFit, base_fit
from .checkpoint import Checkpoint, Recommended, load_checkpoint
from .diffusion import Progress, draw_noise
from .errors import CheckpointError, DiffLoRAError, FaceModelError
from .faces import FaceAnalyzer
from .features import (
    Encoders,
    IdentityFeatures,
    ImageEncoder,
    ImageFeatureEncoder,
    check_encoders,
    pad_photos,
)
from .latents import LoraLatent
from .layout import LoraLayout, SharedDown
from .lora import Lora
from .lora_metadata import describe_lora
from .model_family import adapted_weights
from .photos import Photo
from .references import PhotoChoice, References, read_references

# The embedded world's trained files: what `DiffLoRA.load()` loads when nothing else is named.
EMBEDDED = Path(__file__).parent / "synthetic" / "weights"  # paths only: no import of the synthetic world
EMBEDDED_CHECKPOINT = EMBEDDED / "difflora.safetensors"
EMBEDDED_FACE_PACKS = EMBEDDED / "face_pack" / "models"
EMBEDDED_IMAGE_ENCODER = EMBEDDED / "image_encoder"


class DiffLoRA:
    """A loaded checkpoint with its face models.

    ```python
    model = DiffLoRA.load()
    lora = model.generate(model.encode(["photo.png"]), seed=0)
    lora.save("person.safetensors")
    ```

    Args:
        checkpoint: networks, layout, names.
        face_analyzer: finds and embeds faces; None if `encode` is not needed.
        image_encoder: image features; None if `encode` is not needed.

    Raises:
        FaceModelError: the face models are not those that the checkpoint was trained with.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        face_analyzer: FaceAnalyzer | None = None,
        image_encoder: ImageFeatureEncoder | None = None,
    ) -> None:
        """Check that checkpoint and face models belong together."""
        mif = checkpoint.networks.config.mif
        image_encoder = None if image_encoder is None else image_encoder.with_grid(mif.image_grid)
        if face_analyzer is not None and face_analyzer.name != checkpoint.face_pack:
            raise FaceModelError(
                f"the face pack is {face_analyzer.name!r}, but the checkpoint was trained with "
                f"{checkpoint.face_pack!r}: give that pack"
            )
        if image_encoder is not None and image_encoder.width != mif.image_width:
            raise FaceModelError(
                f"the image encoder's features are {image_encoder.width} wide, the checkpoint needs "
                f"{mif.image_width}: give {checkpoint.image_encoder!r}"
            )
        self.checkpoint = checkpoint
        self.face_analyzer, self.image_encoder = face_analyzer, image_encoder

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        face_pack: str | Path | FaceAnalyzer | None = None,
        image_encoder: str | Path | ImageFeatureEncoder | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> DiffLoRA:
        """Load a checkpoint and its face models.

        Args:
            path: DiffLoRA checkpoint; by default the embedded synthetic world's.
            face_pack: the insightface pack that the checkpoint names: its folder, its name if it is in
                ``~/.insightface``, or a loaded one; embedded ones are found.
            image_encoder: the CLIP vision tower that it names: its folder, or a loaded one; the embedded one
                is found.
            device: where the networks run.
            dtype: of DiffLoRA's own networks; bfloat16 halves their memory.

        Returns:
            The model. Without face models (a foreign pack, no folder given) it generates from features only.

        Raises:
            CheckpointError: missing, truncated or foreign checkpoint.
            FaceModelError: face models are missing or not the checkpoint's.
        """
        if path is None and not EMBEDDED_CHECKPOINT.is_file():
            raise CheckpointError(
                f"the embedded checkpoint {EMBEDDED_CHECKPOINT} is missing: clone the repository again, or "
                "train it with python -m training.train_world, make_loras, train_lae and train_dit"
            )
        checkpoint = load_checkpoint(EMBEDDED_CHECKPOINT if path is None else path, device, dtype=dtype)
        embedded_pack = EMBEDDED_FACE_PACKS / checkpoint.face_pack
        if embedded_pack.is_dir():
            face_pack = embedded_pack if face_pack is None else face_pack
            image_encoder = EMBEDDED_IMAGE_ENCODER if image_encoder is None else image_encoder
        if isinstance(face_pack, str | Path):
            face_pack = FaceAnalyzer(face_pack)
        if isinstance(image_encoder, str | Path):
            image_encoder = ImageEncoder(image_encoder, device)
        return cls(checkpoint, face_pack, image_encoder)

    @property
    def layout(self) -> LoraLayout:
        """What a LoRA of this model is."""
        return self.checkpoint.layout

    @property
    def shared_down(self) -> SharedDown | None:
        """The `lora_down` of every module that all LoRAs of this model share."""
        return self.checkpoint.shared_down

    @property
    def recommended(self) -> Recommended:
        """Strength and sampler settings that were best on validation people."""
        return self.checkpoint.recommended

    def base_fit(self, weights: Mapping[str, Tensor]) -> BaseFit | None:
        """How far a model is from the one that this checkpoint was trained on; call it before patching.

        Args:
            weights: of the model: the U-Net's state dict, in diffusers' or ComfyUI's names.

        Returns:
            Distance, and a warning if likeness may suffer; None if the checkpoint is too old to tell.

        Raises:
            LayoutError: a model of another family: its LoRAs would not fit.
        """
        adapted_weights(self.layout, weights, self.checkpoint.base_model)
        if (sketch := self.checkpoint.base_sketch) is None:
            return None
        return base_fit(sketch, self.layout, weights, self.checkpoint.base_model)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """What a host may move between devices; the model follows."""
        networks: dict[str, nn.Module] = {"difflora": self.checkpoint.networks}
        if self.image_encoder is not None and self.image_encoder.network is not None:
            networks["image_encoder"] = self.image_encoder.network
        return networks

    @property
    def encoders(self) -> Encoders:
        """Who reads features for this model; fingerprints are empty without face models."""
        return Encoders(
            self.checkpoint.face_pack,
            self.face_analyzer.fingerprint if self.face_analyzer else "",
            self.checkpoint.image_encoder,
            self.image_encoder.fingerprint if self.image_encoder else "",
        )

    @functools.cached_property
    def autoencoder_fingerprint(self) -> str:
        """Whose latents this model decodes."""
        return weights_fingerprint(self.checkpoint.networks.lae)

    def encode(
        self,
        photos: Photo | Sequence[Photo],
        progress: Progress | None = None,
        choice: PhotoChoice | None = None,
    ) -> IdentityFeatures:
        """Features of one person; the features of `read_photos`, which takes and raises the same."""
        return self.read_photos(photos, progress, choice).features

    def read_photos(
        self,
        photos: Photo | Sequence[Photo],
        progress: Progress | None = None,
        choice: PhotoChoice | None = None,
    ) -> References:
        """Features of one person, with a verdict on every photo.

        Args:
            photos: one photo or N photos of the same person: paths, PIL images, arrays, tensors.
            progress: called with (photos done, N) after each photo; raise from it to stop.
            choice: which face, and which photos; by default the largest face, and photos of somebody else
                than the others show are left out.

        Returns:
            Features (N, 512) and (N, C), and what there is to say about every photo.

        Raises:
            PhotoError: a photo is unusable.
            NoFaceError: a photo has no face.
            FaceModelError: the model was loaded without face models.
        """
        if self.face_analyzer is None or self.image_encoder is None:
            raise FaceModelError(
                f"this model was loaded without face models: pass face_pack= (the folder of "
                f"{self.checkpoint.face_pack!r}) and image_encoder= (of {self.checkpoint.image_encoder!r}) "
                "to load"
            )
        read = read_references(photos, self.face_analyzer, self.image_encoder, choice, progress)
        return replace(read, features=replace(read.features, encoders=self.encoders))

    def generate(
        self,
        features: IdentityFeatures,
        seed: int = 0,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_scale: float | None = None,
        progress: Progress | None = None,
    ) -> Lora:
        """Sample the LoRA of one person: `decode` of `generate_latent`, which takes and raises the same.

        Returns:
            The LoRA; its metadata say how it was made and which strength was best on validation people.
        """
        return self.decode(
            self.generate_latent(features, seed, num_steps, guidance_scale, noise_scale, progress)
        )

    def generate_latent(
        self,
        features: IdentityFeatures,
        seed: int = 0,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_scale: float | None = None,
        progress: Progress | None = None,
    ) -> LoraLatent:
        """Sample the LoRA latent of one person.

        Args:
            features: from `encode`.
            seed: chooses one of the LoRAs that fit the photos.
            num_steps: sampler steps; None is the checkpoint's recommendation, as for the next two.
            guidance_scale: how much the photos count, 1 is plain.
            noise_scale: 1 samples, 0 gives the mean prediction (then the seed has no effect).
            progress: called with (steps done, num_steps); raise from it to stop.

        Returns:
            The latent (T, C), for `decode`.

        Raises:
            DiffLoRAError: no photo, or features of other encoders.
        """
        latents = self.sample_latents([features], seed, num_steps, guidance_scale, noise_scale, progress)
        used = self._settings(num_steps, guidance_scale, noise_scale)
        settings = {
            "difflora.seed": str(seed),
            "difflora.num_steps": str(used.num_steps),
            "difflora.guidance_scale": f"{used.guidance_scale:g}",
            "difflora.noise_scale": f"{used.noise_scale:g}",
            "difflora.num_photos": str(len(features)),
        }
        return LoraLatent(latents[0].cpu(), self.autoencoder_fingerprint, features, settings)

    @torch.no_grad()
    def decode(self, latent: LoraLatent) -> Lora:
        """The LoRA that a latent stands for.

        Raises:
            DiffLoRAError: the latent is of another autoencoder.
        """
        if latent.autoencoder != self.autoencoder_fingerprint:
            raise DiffLoRAError(
                "this LoRA latent was made by another DiffLoRA checkpoint, whose autoencoder alone can "
                "decode it: load that checkpoint, or generate again from the features"
            )
        networks = self.checkpoint.networks
        flat_weights = networks.decode_latents(latent.latent.to(networks.latent_mean)[None])  # (1, P)
        metadata = {
            **describe_lora("DiffLoRA", self.checkpoint.base_model, self.recommended.strength),
            **latent.settings,
        }
        down = self.shared_down
        shared_down = None if down is None else {name: tensor.cpu() for name, tensor in down.items()}
        return Lora.from_flat(self.layout, flat_weights[0].cpu(), shared_down, metadata)

    @torch.no_grad()
    def generate_weights(
        self,
        people: Sequence[IdentityFeatures],
        seed: int = 0,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_scale: float | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """The LoRAs of several people at once: `sample_latents`, which takes and raises the same, decoded.

        Returns:
            Flat weights (B, P), float32, on the networks' device.
        """
        latents = self.sample_latents(people, seed, num_steps, guidance_scale, noise_scale, progress)
        return self.checkpoint.networks.decode_latents(latents)  # (B, P)

    @torch.no_grad()
    def sample_latents(
        self,
        people: Sequence[IdentityFeatures],
        seed: int = 0,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_scale: float | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample the LoRA latents of several people at once, each from the same starting noise as alone.

        Args:
            people: features of B people, of any number of photos each.
            seed: as in `generate`, and so are the rest.
            num_steps: sampler steps.
            guidance_scale: how much the photos count.
            noise_scale: of the starting noise.
            progress: called with (steps done, num_steps).

        Returns:
            Standardised latents (B, T, C), float32, on the networks' device.

        Raises:
            DiffLoRAError: a person without a photo, or features of other encoders.
        """
        if not people or any(len(features) == 0 for features in people):
            raise DiffLoRAError(
                "a person without a usable photo: give at least one photo with a visible face"
            )
        for features in people:
            check_encoders(features.encoders, self.encoders)
        settings = self._settings(num_steps, guidance_scale, noise_scale)
        networks = self.checkpoint.networks
        device = networks.latent_mean.device
        condition = networks.condition(*pad_photos(people, device))  # (B, D), (B, S, D)
        generator = torch.Generator().manual_seed(seed)
        noise = draw_noise(tuple(networks.latent_mean.shape), generator, device)  # (T, C)
        return networks.sample(
            condition,
            noise.expand(len(people), -1, -1),
            settings.num_steps,
            settings.guidance_scale,
            settings.noise_scale,
            progress,
        )  # (B, T, C)

    def _settings(
        self, num_steps: int | None, guidance_scale: float | None, noise_scale: float | None
    ) -> Recommended:
        recommended = self.recommended
        return replace(
            recommended,
            num_steps=recommended.num_steps if num_steps is None else num_steps,
            guidance_scale=recommended.guidance_scale if guidance_scale is None else guidance_scale,
            noise_scale=recommended.noise_scale if noise_scale is None else noise_scale,
        )
