"""A LoRA, and the ordinary file it is saved as and loaded from.

Letters: R rank, P parameters of one LoRA.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .adapter_config import save_adapter_config, stated_alphas
from .errors import LayoutError
from .files import load_safetensors, save_safetensors
from .layout import LoraLayout, ModuleSpec, SharedDown, check_shapes, listing
from .lora_keys import KeyStyle, kohya_key, module_keys, module_tensors, style_of
from .lora_metadata import LAYOUT_KEY, file_metadata
from .lora_sidecar import save_preview, save_sidecar, thumbnail


class LoraTensors(dict[str, Tensor]):
    """Tensors under the keys of a file, an ordinary dict, that also knows what the file's header would say.

    As torch's state dicts carry `_metadata`: whoever needs only a dict, as ComfyUI's nodes do, sees only one.

    Args:
        tensors: key -> tensor.
        metadata: name -> string; the layout of these tensors under `LAYOUT_KEY`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Copy both, not the tensors themselves."""
        super().__init__(tensors)
        self.metadata = dict(metadata)


@dataclass(frozen=True, eq=False)
class Lora:
    """One LoRA: both factors of every module.

    Args:
        layout: modules, rank, alpha.
        down: module -> lora_down (R, in).
        up: module -> lora_up (out, R).
        metadata: strings for the file's header, e.g. `ss_base_model_version`, `modelspec.title`.

    Raises:
        LayoutError: missing, unexpected, misshapen or non-finite factors.
    """

    layout: LoraLayout
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would only fail, or draw noise, later."""
        rank = self.layout.rank
        check_shapes({m.name: (rank, m.in_features) for m in self.layout.modules}, self.down)
        check_shapes({m.name: (m.out_features, rank) for m in self.layout.modules}, self.up)
        for part, factors in (("lora_down", self.down), ("lora_up", self.up)):
            bad = [
                name
                for name, factor in factors.items()
                if factor.ndim != 2 or not bool(factor.isfinite().all())
            ]
            if bad:
                raise LayoutError(
                    f"{part} of {listing(bad)} is not one finite matrix: the LoRA is damaged, make it again"
                )

    @classmethod
    def from_flat(
        cls,
        layout: LoraLayout,
        flat_weights: Tensor,
        shared_down: SharedDown | None,
        metadata: Mapping[str, str] | None = None,
    ) -> "Lora":
        """Build a LoRA from a flat vector (P,); `shared_down` as in `LoraLayout.factors`."""
        factors = layout.factors(flat_weights.detach(), shared_down)
        return cls(
            layout,
            {name: down.clone() for name, (down, _) in factors.items()},
            {name: up.clone() for name, (_, up) in factors.items()},
            dict(metadata or {}),
        )

    def flat(self) -> Tensor:
        """Flat vector (P,), float32; without `lora_down` unless the layout trains it."""
        factors = {(name, "lora_up"): up.float() for name, up in self.up.items()}
        if self.layout.train_down:
            factors |= {(name, "lora_down"): down.float() for name, down in self.down.items()}
        return self.layout.flatten(factors)

    def state_dict(self, dtype: torch.dtype = torch.float16, key_style: KeyStyle = "kohya") -> LoraTensors:
        """Tensors under the keys that other tools read; the default suits ComfyUI, A1111 and diffusers.

        Args:
            dtype: of the factors in the file.
            key_style: see `lora_keys`.

        Returns:
            Per module, with kohya keys: `lora_unet_<module path with _>.{lora_down.weight (R, in),
            lora_up.weight (out, R), alpha ()}`.

        Raises:
            LayoutError: a number is too large for the dtype, or the style does not suit these modules.
        """
        style = style_of(key_style)
        factor = self.layout.scale if style.alpha == "rank" else 1.0  # of lora_up
        alpha_dtype = torch.float32 if dtype == torch.bfloat16 else dtype  # bfloat16 has two digits
        tensors = {}
        for name, key in module_keys(self.up.keys(), style).items():
            for end, part in zip(style.factors, (self.down[name], factor * self.up[name]), strict=True):
                tensors[f"{key}.{end}"] = part.detach().cpu().to(dtype).contiguous()
            if style.alpha == "tensor":
                tensors[f"{key}.alpha"] = torch.tensor(self.layout.alpha, dtype=alpha_dtype)
        if overflown := [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise LayoutError(f"{listing(overflown)} is too large for {dtype}: save with dtype=torch.float32")
        layout = self.layout
        if style.alpha == "rank":  # the scale is in lora_up now
            layout = replace(layout, alpha=float(layout.rank))
        return LoraTensors(tensors, {**self.metadata, LAYOUT_KEY: layout.to_json()})

    def save(
        self,
        path: str | Path,
        dtype: torch.dtype = torch.float16,
        key_style: KeyStyle = "kohya",
        preview: Image.Image | None = None,
        sidecar: bool = False,
    ) -> Path:
        """Write an ordinary LoRA file, atomically.

        Args:
            path: destination, `.safetensors`; for the style "peft", `<folder>/adapter_model.safetensors`.
            dtype: of the factors in the file.
            key_style: which tool's key names, see `lora_keys`.
            preview: a picture drawn with this LoRA: written beside the file as `<name>.png`, where model
                browsers look for it, and into the file's header as a thumbnail.
            sidecar: whether to write `<name>.metadata.json` for ComfyUI's LoRA Manager beside the file.

        Returns:
            The path.

        Raises:
            LayoutError: as for `state_dict`.
            CheckpointError: a name that peft would not find.
        """
        style, path = style_of(key_style), Path(path)
        tensors = self.state_dict(dtype, key_style)
        layout = LoraLayout.from_json(tensors.metadata[LAYOUT_KEY])
        metadata = file_metadata(self.metadata, layout, tensors, path.stem)
        if style.alpha == "config":
            save_adapter_config(path, layout)
        if preview is not None:
            metadata["modelspec.thumbnail"] = thumbnail(preview)
        save_safetensors(path, tensors, metadata)
        if preview is not None:
            save_preview(path, preview)
        if sidecar:
            save_sidecar(path, metadata)
        return path

    @classmethod
    def load(cls, path: str | Path, layout: LoraLayout | None = None) -> "Lora":
        """Read a LoRA file of any of the styles in `lora_keys`, recognised by its keys.

        Args:
            path: `.safetensors`, ours or another tool's.
            layout: what the LoRA must fit; by default the file's own description, else read off its keys.

        Raises:
            CheckpointError: missing, truncated or foreign file.
            LayoutError: keys or shapes do not fit.
        """
        tensors, metadata = load_safetensors(path)
        if layout is None and LAYOUT_KEY in metadata:
            layout = LoraLayout.from_json(metadata[LAYOUT_KEY])
        alphas = stated_alphas(path, tensors, metadata, required=layout is None)
        lora = lora_from_state_dict({**tensors, **alphas}, layout)
        return cls(lora.layout, lora.down, lora.up, metadata)


def lora_from_state_dict(tensors: Mapping[str, Tensor], layout: LoraLayout | None = None) -> Lora:
    """Read the tensors of a LoRA file, strictly.

    Args:
        tensors: as from `Lora.state_dict`, in any style; factors are converted to float32.
        layout: what the tensors must fit; by default what `LoraTensors` say if it fits, else read off the
            keys and shapes (modules in the order of their kohya keys, both factors trained).

    Returns:
        The LoRA. Without a layout, modules of different ranks or alphas are brought to the largest rank, and
        to scale 1, without changing what they do.

    Raises:
        LayoutError: lists missing and unexpected keys, or wrong shapes.
    """
    if layout is None and isinstance(tensors, LoraTensors):
        return replace(_from_lora_tensors(tensors), metadata=tensors.metadata)
    modules = module_tensors(tensors, [module.name for module in layout.modules] if layout else None)
    check_matrices(modules)
    if layout is None:
        return one_rank(modules)
    alphas = {float(parts["alpha"]) for parts in modules.values() if "alpha" in parts}
    if any(abs(alpha - layout.alpha) > 1e-3 * abs(layout.alpha) for alpha in alphas):  # float16 rounding
        raise LayoutError(f"alpha is {listing(map(str, alphas))}, expected {layout.alpha} in all modules")
    down = {module.name: modules[module.name]["lora_down"].float() for module in layout.modules}
    up = {module.name: modules[module.name]["lora_up"].float() for module in layout.modules}
    return Lora(layout, down, up)


def _from_lora_tensors(tensors: LoraTensors) -> Lora:
    """Read with the layout that came along, unless somebody changed the tensors since: then those count."""
    if LAYOUT_KEY in tensors.metadata:
        with suppress(LayoutError):
            return lora_from_state_dict(dict(tensors), LoraLayout.from_json(tensors.metadata[LAYOUT_KEY]))
    return lora_from_state_dict(dict(tensors))


def one_rank(modules: Mapping[str, Mapping[str, Tensor]]) -> Lora:
    """Make a LoRA of modules that may differ in rank and alpha.

    Zeros fill up to the largest rank, and a scale goes into `lora_up`: scale * up @ down stays what it was.

    Args:
        modules: name -> "lora_down" (R_m, in), "lora_up" (out, R_m), and perhaps "alpha" (), else R_m.

    Raises:
        LayoutError: one module is wide enough for the largest rank, another is not.
    """
    names = sorted(modules, key=kohya_key)
    ranks = {name: modules[name]["lora_down"].shape[0] for name in names}
    alphas = {name: float(modules[name].get("alpha", ranks[name])) for name in names}
    rank = max(ranks.values())
    same = len(set(ranks.values())) == len(set(alphas.values())) == 1
    alpha = alphas[names[0]] if same else float(rank)
    down, up = {}, {}
    for name in names:
        factor = 1.0 if same else alphas[name] / ranks[name]
        own_up = factor * modules[name]["lora_up"].float()  # (out, R_m)
        down[name], up[name] = pad_to_rank(modules[name]["lora_down"].float(), own_up, rank)
    specs = tuple(ModuleSpec(name, down[name].shape[1], up[name].shape[0]) for name in names)
    return Lora(LoraLayout(specs, rank, alpha, train_down=True), down, up)


def pad_to_rank(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Fill (K, in), (out, K) up to (R, in), (out, R), K <= R, with zeros: their product stays the same."""
    missing = rank - len(down)
    pad = torch.nn.functional.pad
    return pad(down, (0, 0, 0, missing)), pad(up, (0, missing))


def check_matrices(modules: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse convolutions, and halves that do not belong together.

    Raises:
        LayoutError: names them.
    """
    shapes = {
        name: (tuple(parts["lora_down"].shape), tuple(parts["lora_up"].shape))
        for name, parts in modules.items()
    }
    if convolutions := [name for name, (down, up) in shapes.items() if len(down) != 2 or len(up) != 2]:
        raise LayoutError(f"{listing(convolutions)}: only LoRAs of linear layers are supported")
    if unequal := [
        f"{name}.lora_up has shape {up}, its lora_down {down}"
        for name, (down, up) in shapes.items()
        if up[1] != down[0]
    ]:
        raise LayoutError(f"{listing(unequal, separator='; ')}: the ranks differ, the file is damaged")
