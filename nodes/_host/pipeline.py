"""A diffusers pipeline folder as the host's MODEL, CLIP and VAE.

Letters: B pictures, Cl latent channels, H, W picture size, h, w latent size, D text width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from ...difflora.errors import CheckpointError
from ...difflora.picture_decoder import PictureDecoder
from .. import _pipeline_folder as pipeline_folder

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"


class _SampleSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
    """The U-Net predicts the clean picture (diffusers' ``prediction_type="sample"``)."""


class _EpsilonSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """The U-Net predicts the noise."""


class _VelocitySampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The U-Net predicts the velocity."""


SAMPLING = {"sample": _SampleSampling, "epsilon": _EpsilonSampling, "v_prediction": _VelocitySampling}
BETA_SCHEDULES = {"scaled_linear": "linear", "squaredcos_cap_v2": "cosine"}  # diffusers' name -> the host's


class FolderModelConfig(comfy.supported_models_base.BASE):
    """Host settings of a U-Net read from a pipeline folder."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012  (the host's declaration)

    def __init__(
        self,
        unet_config: dict[str, Any],
        scheduler: Mapping[str, Any],
        latent_format: comfy.latent_formats.LatentFormat,
    ) -> None:
        super().__init__(unet_config)
        prediction, betas = scheduler.get("prediction_type", "epsilon"), scheduler["beta_schedule"]
        if prediction not in SAMPLING or betas not in BETA_SCHEDULES:
            raise CheckpointError(
                f"scheduler/scheduler_config.json: prediction_type {prediction!r} with beta_schedule "
                f"{betas!r} is not known to ComfyUI; expected one of {', '.join(SAMPLING)} with one "
                f"of {', '.join(BETA_SCHEDULES)}"
            )
        self.sampling = SAMPLING[prediction]
        self.sampling_settings = {
            "beta_schedule": BETA_SCHEDULES[betas],
            "timesteps": scheduler["num_train_timesteps"],
            "linear_start": scheduler["beta_start"],
            "linear_end": scheduler["beta_end"],
            "zsnr": scheduler.get("rescale_betas_zero_snr", False),
        }
        self.latent_format = latent_format

    def inpaint_model(self) -> bool:
        """Never: the host would take any latent of more than 4 channels for an inpainting model."""
        return False

    def get_model(
        self, state_dict: Mapping[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> comfy.model_base.BaseModel:
        """The host's model with this folder's noise schedule and prediction type."""
        model = super().get_model(state_dict, prefix, device)
        model.model_sampling = self.sampling(self)
        return model


def _latent_format(vae: Mapping[str, Tensor], scaling_factor: float) -> comfy.latent_formats.LatentFormat:
    """The latent's size and scale, with the mean colour of each channel's patch as live preview."""
    latent_format = comfy.latent_formats.LatentFormat()
    latent_format.latent_channels = vae["decoder.linear.weight"].shape[0]
    latent_format.scale_factor = scaling_factor
    latent_format.latent_rgb_factors = (
        vae["decoder.linear.weight"].mean(dim=(2, 3)) / scaling_factor
    ).tolist()  # (Cl, 3)
    latent_format.latent_rgb_factors_bias = vae["decoder.linear.bias"].tolist()  # (3,)
    return latent_format


def load_unet(folder: Path) -> comfy.model_patcher.ModelPatcher:
    """The U-Net of a pipeline folder as the host's MODEL.

    Raises:
        CheckpointError: if a file is damaged or the network is not one that the host can run.
    """
    scaling = pipeline_folder.read_config(folder, "vae/config.json").get("scaling_factor", 1.0)
    config = FolderModelConfig(
        pipeline_folder.host_unet_config(pipeline_folder.read_config(folder, "unet/config.json")),
        pipeline_folder.read_config(folder, "scheduler/scheduler_config.json"),
        _latent_format(pipeline_folder.read_weights(folder, VAE_WEIGHTS), scaling),
    )
    config.set_inference_dtype(torch.float32, None)  # a few million weights: half precision saves nothing
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = pipeline_folder.rename_weights(
        pipeline_folder.read_weights(folder, UNET_WEIGHTS), names, "unet"
    )
    model = config.get_model({}, "", comfy.model_management.unet_offload_device())
    _load_strictly(model.diffusion_model, weights, "unet")
    return comfy.model_patcher.ModelPatcher(
        model.train(False),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def _load_strictly(network: nn.Module, weights: Mapping[str, Tensor], part: str) -> None:
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{part}: the weights do not fit the settings beside them ({error}); "
            f"the base model's folder is damaged, install the pack again"
        ) from error


class _TextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model with the vocabulary size of its settings instead of 49,408."""

    def __init__(
        self, config: dict[str, Any], dtype: torch.dtype, device: torch.device, operations: type
    ) -> None:
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(
            operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        )  # (V, D)


def load_text_encoder(folder: Path) -> comfy.sd.CLIP:
    """Text encoder and tokenizer of a pipeline folder as the host's CLIP.

    Raises:
        CheckpointError: if a file is damaged or missing.
    """
    config = pipeline_folder.read_config(folder, "text_encoder/config.json")
    weights = pipeline_folder.host_text_weights(pipeline_folder.read_weights(folder, TEXT_WEIGHTS))
    weights.setdefault(
        "text_projection.weight", torch.eye(config["hidden_size"])
    )  # (D, D), pooled output only
    make_tokenizer = functools.partial(
        comfy.sd1_clip.SDTokenizer,
        tokenizer_path=str(folder / "tokenizer"),
        max_length=config["max_position_embeddings"],
        embedding_size=config["hidden_size"],
    )
    tokenizer = make_tokenizer()  # its special tokens, which the text model must know
    target = comfy.supported_models_base.ClipTarget(
        functools.partial(
            comfy.sd1_clip.SD1Tokenizer,
            tokenizer=functools.partial(make_tokenizer, pad_token=tokenizer.tokenizer.pad_token_id),
        ),
        functools.partial(comfy.sd1_clip.SD1ClipModel, clip_model=comfy.sd1_clip.SDClipModel),
    )
    target.params = {
        "textmodel_json_config": config,
        "model_class": _TextModel,
        "max_length": config["max_position_embeddings"],
        "special_tokens": {
            "start": tokenizer.start_token,
            "end": tokenizer.end_token,
            "pad": tokenizer.tokenizer.pad_token_id,
        },
        "return_projected_pooled": False,
    }
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={"dtype": torch.float32},
    )
    _load_strictly(clip.cond_stage_model.clip_l.transformer, weights, "text_encoder")
    return clip


class _PatchAutoencoder(nn.Module):
    """`difflora.picture_autoencoder` of the host's layers: (B, 3, H, W) in [-1, 1] <-> (B, Cl, h, w)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        operations = comfy.ops.manual_cast
        channels, patch = config["latent_channels"], config["patch_size"]
        self.pooling = config["pooling"]
        self.encoder = operations.Conv2d(3, channels, patch, stride=patch)
        self.decoder = PictureDecoder(
            channels, patch * self.pooling, config["decoder_widths"], config["decoder_blocks"], operations
        )

    def encode(self, pictures: Tensor, **_: object) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> latents (B, Cl, h, w)."""
        return self.encoder(nn.functional.avg_pool2d(pictures, self.pooling))

    def decode(self, image_latents: Tensor, **_: object) -> Tensor:
        """Latents (B, Cl, h, w) -> pictures (B, 3, H, W) in about [-1, 1]."""
        return self.decoder(image_latents)


class _PatchVAE(comfy.sd.VAE):
    """The host's VAE around a patch autoencoder.

    The host's constructor recognises networks by their keys and does not know ours, so it is given its
    smallest one, which fills every attribute that this host version has; then the network is exchanged.
    """

    def __init__(self, network: _PatchAutoencoder) -> None:
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
        self.downscale_ratio = self.upscale_ratio = network.encoder.stride[0] * network.pooling
        self.latent_channels = network.encoder.out_channels
        self.process_input = lambda pictures: pictures * 2.0 - 1.0  # [0, 1] -> [-1, 1]
        # [-1, 1] -> [0, 1], in place and returned: the host takes what is returned, from 0.18 on its argument
        self.process_output = lambda pictures: pictures.div_(2.0).add_(0.5).clamp_(0.0, 1.0)
        self.first_stage_model = network.train(False).to(self.vae_dtype)
        self.patcher = comfy.model_patcher.ModelPatcher(
            network, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )


def load_vae(folder: Path) -> comfy.sd.VAE:
    """The patch autoencoder of a pipeline folder as the host's VAE.

    Raises:
        CheckpointError: if the file is damaged or holds another kind of autoencoder.
    """
    config = pipeline_folder.read_config(folder, "vae/config.json")
    if config.get("_class_name") != "PatchAutoencoder":
        raise CheckpointError(
            f"{folder / 'vae'} is not a patch autoencoder: for any other base model use "
            f"ComfyUI's own checkpoint and VAE loaders"
        )
    try:
        network = _PatchAutoencoder(config)
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'vae' / 'config.json'} is not of this version ({error}): install the pack again"
        ) from error
    _load_strictly(network, pipeline_folder.read_weights(folder, VAE_WEIGHTS), "vae")
    return _PatchVAE(network)
