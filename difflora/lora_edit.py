"""New LoRAs from old ones: another rank, several in one, weights per U-Net block.

All of it works on the factors and never forms delta-W = scale * lora_up @ lora_down.

Letters: R rank, K kept rank, N LoRAs.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .errors import LayoutError
from .layout import LoraLayout, ModuleSpec, listing
from .lora import Lora, pad_to_rank
from .lora_metadata import TITLE_KEY
from .unet_names import block_label, layers_per_block


def truncate(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation of `up @ down` of a given rank (Eckart, Young 1936).

    With up = Q_up R_up and down^T = Q_down R_down, the SVD of the small R_up R_down^T = U S V^T gives that of
    the product, Q_up U, S, Q_down V. Each factor gets the root of S.

    Args:
        down: (R, in).
        up: (out, R).
        rank: K >= 1; more than the product has is filled with zeros.

    Returns:
        lora_down (K, in) and lora_up (out, K), float32.
    """
    q_up, r_up = torch.linalg.qr(up.double())  # (out, min(out, R)), (min(out, R), R)
    q_down, r_down = torch.linalg.qr(down.double().T)  # (in, min(in, R)), (min(in, R), R)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    root = s[:rank].sqrt()  # (min(K, R),)
    new_up = q_up @ u[:, :rank] * root  # (out, min(K, R))
    new_down = root[:, None] * (vh[:rank] @ q_down.T)  # (min(K, R), in)
    return pad_to_rank(new_down.float(), new_up.float(), rank)


def resize_lora(lora: Lora, rank: int) -> Lora:
    """Nearest LoRA of another rank, module by module; the scale stays.

    Args:
        lora: any LoRA.
        rank: K; a larger one than the LoRA's changes nothing but the size.

    Returns:
        A LoRA with a `lora_down` of its own.

    Raises:
        LayoutError: a rank that the modules cannot have.
    """
    layout = LoraLayout(lora.layout.modules, rank, lora.layout.scale * rank, train_down=True)
    factors = {name: truncate(lora.down[name], up, rank) for name, up in lora.up.items()}
    return _lora(layout, factors, lora.metadata)


def merge_loras(
    loras: Sequence[Lora], strengths: Sequence[float] | None = None, rank: int | None = None
) -> Lora:
    """One LoRA that does what several do together: the sum of strength * scale * up @ down.

    LoRAs with the same `lora_down` (ours, of one library) are added number by number. What remains is put
    side by side: [up_1 up_2] @ [down_1; down_2], and the ranks add up. Both are exact; only `rank` is not.

    Args:
        loras: at least one; they may have different modules, ranks and alphas.
        strengths: (N,), 1 each by default; 0 and negative values are allowed.
        rank: K of the result, by SVD; by default the summed rank.

    Raises:
        LayoutError: no LoRA, not one finite strength for each, LoRAs of base models of different sizes,
            or a summed rank that the modules cannot have (give `rank` then).
    """
    strengths = [1.0] * len(loras) if strengths is None else list(strengths)
    if not loras or len(strengths) != len(loras) or not all(map(math.isfinite, strengths)):
        raise LayoutError(
            f"{len(loras)} LoRAs with strengths {strengths}: give at least one, and a finite strength each"
        )
    modules, first = _all_modules(loras), loras[0].layout
    groups = _groups_of_one_down(loras, strengths)
    if len(groups) == 1 and rank in (None, first.rank):
        down, up = groups[0]
        return _lora(first, {n: (down[n], up[n] / first.scale) for n in up}, _merged_metadata(loras))
    summed = sum(max(len(factor) for factor in down.values()) for down, _ in groups)
    kept = summed if rank is None else rank
    layout = LoraLayout(modules, kept, float(kept), train_down=True)
    factors = {}
    for name in (module.name for module in modules):
        down_rows = torch.cat([down[name] for down, _ in groups if name in down])  # (sum of R, in)
        up_columns = torch.cat([up[name] for _, up in groups if name in up], dim=1)  # (out, sum of R)
        shorten = pad_to_rank if rank is None else truncate
        factors[name] = shorten(down_rows, up_columns, kept)
    return _lora(layout, factors, _merged_metadata(loras))


def scale_blocks(lora: Lora, weights: Mapping[str, float]) -> Lora:
    """Multiply what a LoRA does in each block of the U-Net, as block-weight nodes do while drawing.

    Args:
        lora: of a Stable Diffusion U-Net.
        weights: block -> factor, 1 for blocks that are not named. IN01..IN11, M00, OUT00..OUT11 (Stable
            Diffusion 1.5; XL ends with IN08 and OUT08), BASE for modules outside of the blocks.

    Raises:
        LayoutError: a block in which the LoRA has no module, a factor that is not finite, another base model.
    """
    layers = layers_per_block(lora.up)
    labels = {name: block_label(name, layers) for name in lora.up}
    if unknown := weights.keys() - set(labels.values()):
        raise LayoutError(
            f"the LoRA has no module in {listing(unknown)}: it has blocks {listing(set(labels.values()), 30)}"
        )
    if bad := [label for label, weight in weights.items() if not math.isfinite(weight)]:
        raise LayoutError(f"the weight of {listing(bad)} is not a finite number")
    factors = {name: (lora.down[name], weights.get(labels[name], 1.0) * up) for name, up in lora.up.items()}
    return _lora(lora.layout, factors, lora.metadata)


def _lora(
    layout: LoraLayout, factors: Mapping[str, tuple[Tensor, Tensor]], metadata: Mapping[str, str]
) -> Lora:
    return Lora(
        layout,
        {name: down for name, (down, _) in factors.items()},
        {name: up for name, (_, up) in factors.items()},
        metadata,
    )


def _all_modules(loras: Sequence[Lora]) -> tuple[ModuleSpec, ...]:
    """Modules of all LoRAs, in the order in which they first occur."""
    modules: dict[str, ModuleSpec] = {}
    for module in (module for lora in loras for module in lora.layout.modules):
        if modules.setdefault(module.name, module) != module:
            raise LayoutError(
                f"{module.name} is {module} in one LoRA and {modules[module.name]} in another: merge LoRAs "
                "that were made for the same base model"
            )
    return tuple(modules.values())


def _groups_of_one_down(
    loras: Sequence[Lora], strengths: Sequence[float]
) -> list[tuple[Mapping[str, Tensor], dict[str, Tensor]]]:
    """Add up the LoRAs that share their `lora_down`: (lora_down, sum of strength * scale * lora_up) each."""
    groups: list[tuple[Mapping[str, Tensor], dict[str, Tensor]]] = []
    for lora, strength in zip(loras, strengths, strict=True):
        scaled = {name: strength * lora.layout.scale * up for name, up in lora.up.items()}  # (out, R)
        same = (up for down, up in groups if _same(down, lora.down))
        if (total := next(same, None)) is None:
            groups.append((lora.down, scaled))
        else:
            for name in total:
                total[name] = total[name] + scaled[name]
    return groups


def _same(down: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return down.keys() == other.keys() and all(torch.equal(down[name], other[name]) for name in down)


def _merged_metadata(loras: Sequence[Lora]) -> dict[str, str]:
    """What is true of every LoRA, and where the result comes from."""
    shared = dict(set.intersection(*(set(lora.metadata.items()) for lora in loras)))
    titles = [lora.metadata.get(TITLE_KEY, "untitled") for lora in loras]
    return {**shared, TITLE_KEY: " + ".join(titles), "modelspec.merged_from": ", ".join(titles)}
