"""How LAE and DiT are trained: every field is also a command-line option (`--learning-rate 1e-3`)."""

from dataclasses import dataclass

RIDGE_REGULARISER = 0.01
"""Where the regressor starts: what validation people chose for the ridge row of evaluation."""
PRIOR_REGULARISER = 0.0001
"""Of the linear prior, which learns from thousands of people: it gains most on validation people."""


@dataclass(frozen=True)
class LaeTrainingConfig:
    """How the LAE is trained.

    Args:
        num_steps: optimiser steps.
        batch_size: LoRAs per step.
        learning_rate: peak rate of AdamW; linear warm-up, then cosine to zero.
        warmup: steps of the warm-up.
        weight_decay: AdamW's. A library of few people is memorised without it.
        ema_decay: of the averaged weights, which are the ones that are saved.
        mixup: fraction of the LoRAs that are a convex combination of two people's.
        input_noise: deviation of the noise on the encoder's (normalised) input; the target stays clean.
        latent_noise: deviation of the noise on the latent, relative to the latent's own: what mattered in
            p-diff.
        held_out: fraction of the library's people, its last ones, that are only measured.
        seed: drives everything.
    """

    num_steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-2
    ema_decay: float = 0.995
    mixup: float = 0.5
    input_noise: float = 0.3
    latent_noise: float = 0.1
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class DitTrainingConfig:
    """How MIF and DiT are trained (and the LAE's decoder with them, if the image loss is on).

    `image_loss_weight` 0 is the weight-space recipe of the paper: only the loss on the latent.

    Args:
        num_steps: optimiser steps.
        batch_size: library LoRAs per step.
        learning_rate: peak rate of AdamW for MIF and DiT; linear warm-up, then cosine to zero.
        decoder_learning_rate: the same for the LAE's decoder while the image loss is on; 0 freezes it.
        warmup: steps of the warm-up.
        weight_decay: AdamW's.
        ema_decay: of the averaged weights, which are the ones that are saved.
        condition_dropout: fraction of rows that see no photo, for classifier-free guidance.
        max_photos: each row sees 1 .. max_photos random photos of its person.
        latent_noise: deviation of the noise on clean latents, an augmentation against memorising few people.
        feature_noise: relative deviation of the noise on both kinds of features.
        latent_loss_weight: of the diffusion loss on library latents.
        image_loss_weight: of the base model's own loss on pictures drawn with the predicted LoRA.
        image_loss_from: first step with the image loss; before it a step is some 30 times cheaper.
        image_people: people per step in the image loss; they need no LoRA of their own.
        pictures_per_person: pictures of each, none of them shown as a reference photo.
        highest_noise_fraction: rows of the image loss at time 1, where only the photos can tell who it is.
        zero_start_fraction: of those rows, the ones that start from zeros as the zero-noise sampler does.
        image_loss_floor: weight of the image loss at time 1 over that at time 0; between them it follows
            alpha^2.
        pool_people: people whose photos are rendered for features and pictures.
        photos_per_person: photos of each (F).
        validation_people: people of the validation split that are measured and choose the settings.
        validate_every: steps between two measurements.
        precision: autocast of the base model's denoiser: "float32" or "bfloat16".
        seed: drives everything.
    """

    num_steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 5e-4
    decoder_learning_rate: float = 2e-4
    warmup: int = 100
    weight_decay: float = 1e-2
    ema_decay: float = 0.998
    condition_dropout: float = 0.1
    max_photos: int = 4
    latent_noise: float = 0.1
    feature_noise: float = 0.1
    latent_loss_weight: float = 1.0
    image_loss_weight: float = 20.0
    image_loss_from: int = 1000
    image_people: int = 16
    pictures_per_person: int = 4
    highest_noise_fraction: float = 0.5
    zero_start_fraction: float = 0.25
    image_loss_floor: float = 0.5
    pool_people: int = 4000
    photos_per_person: int = 8
    validation_people: int = 32
    validate_every: int = 250
    precision: str = "float32"
    seed: int = 0


@dataclass(frozen=True)
class RegressorTrainingConfig:
    """How the end-to-end regressor (a control) is trained; names as in `DitTrainingConfig`.

    A step sees as many people and pictures as one of the DiT's image stage: equal steps are equal data.

    Args:
        num_steps: optimiser steps at most.
        seconds: CPU seconds at most, 0 for no limit; the rate falls with whichever ends first.
        start: "ridge" for the closed-form regression onto the library's principal components (DiffLoRA's
            image stage starts from weight space, too), or "scratch".
        bases: learned directions that a LoRA is a sum of.
        hidden: width of the MLP beside the linear map.
        learning_rate: peak rate of AdamW for all of it.
        warmup: steps of the warm-up.
        weight_decay: AdamW's, of the maps from features; the bases have none.
        ema_decay: of the averaged weights, which are the ones that are saved.
        max_photos: each row sees 1 .. max_photos random photos of its person.
        feature_noise: relative deviation of the noise on both kinds of features.
        image_people: people per step.
        pictures_per_person: pictures of each, none of them shown as a reference photo.
        pool_people: people whose photos are rendered.
        photos_per_person: photos of each.
        validation_people: people of the validation split that are measured.
        validate_every: steps between two measurements.
        precision: autocast of the base model's denoiser.
        seed: drives everything.
    """

    num_steps: int = 3000
    seconds: float = 0.0
    start: str = "ridge"
    bases: int = 128
    hidden: int = 256
    learning_rate: float = 4e-4
    warmup: int = 20
    weight_decay: float = 1e-2
    ema_decay: float = 0.99
    max_photos: int = 4
    feature_noise: float = 0.1
    image_people: int = 16
    pictures_per_person: int = 4
    pool_people: int = 4000
    photos_per_person: int = 8
    validation_people: int = 32
    validate_every: int = 150
    precision: str = "float32"
    seed: int = 0


@dataclass(frozen=True)
class GroupTrainingConfig:
    """How something that serves everybody is trained on groups of people, see `training.groups`.

    Args:
        num_steps: optimiser steps.
        people: how many people it is trained on, `group` of them in a step.
        group: people who share their scenes, and a step.
        pictures: pictures of each person.
        styled: share of rendered people's pictures that are in another style than a colour photo's.
        pictures_per_step: pictures of each person in a step.
        learning_rate: peak rate of AdamW.
        identity_weight: of the face's likeness, see `training.identity_loss`; 0 for none.
        portrait_weight: of the whole picture's likeness, hair and all.
        seed: of scenes and of every step's chance.
    """

    num_steps: int = 1000
    people: int = 1024
    group: int = 8
    pictures: int = 16
    styled: float = 0.25
    pictures_per_step: int = 4
    learning_rate: float = 1e-4
    identity_weight: float = 0.2
    portrait_weight: float = 0.4
    seed: int = 0


@dataclass(frozen=True)
class CorrectionTrainingConfig(GroupTrainingConfig):
    """How the correction of a checkpoint is trained.

    Args:
        learning_rate: peak rate for what everybody lacks; the map has a tenth of it.
    """

    learning_rate: float = 0.002


@dataclass(frozen=True)
class RegressorTuningConfig(GroupTrainingConfig):
    """How the end-to-end regressor is trained on for likeness.

    Args:
        num_steps: optimiser steps.
        feature_noise: relative deviation of the noise on both kinds of features, as in its first training.
    """

    num_steps: int = 2000
    feature_noise: float = 0.1
