"""A LoRA as an ordinary file: kohya keys, float16, metadata that other tools read.

Letters: R rank, P parameters of one LoRA.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from .errors import LayoutError
from .files import load_safetensors, save_safetensors
from .layout import LoraLayout, ModuleSpec, SharedDown, check_shapes, listing

KOHYA_PREFIX = "lora_unet_"
KOHYA_PARTS = ("lora_down.weight", "lora_up.weight", "alpha")
LAYOUT_KEY = "difflora.layout"
FINGERPRINT_KEY = "difflora.layout_fingerprint"
# Words of diffusers module paths that contain an underscore: with them a kohya key can be read back.
COMPOUND_WORDS = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks"),
    *(
        "to_q",
        "to_k",
        "to_v",
        "to_out",
        "proj_in",
        "proj_out",
        "time_emb_proj",
        "time_embedding",
        "add_embedding",
    ),
    *("linear_1", "linear_2"),
)


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

    def state_dict(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """Tensors under kohya keys, as ComfyUI, kohya sd-scripts and diffusers read them.

        Args:
            dtype: of the factors in the file.

        Returns:
            `lora_unet_<module path with _>.{lora_down.weight (R, in), lora_up.weight (out, R), alpha ()}`.

        Raises:
            LayoutError: a number is too large for the dtype.
        """
        tensors = {}
        for module in self.layout.modules:
            key = kohya_key(module.name)
            tensors[f"{key}.lora_down.weight"] = self.down[module.name].detach().cpu().to(dtype).contiguous()
            tensors[f"{key}.lora_up.weight"] = self.up[module.name].detach().cpu().to(dtype).contiguous()
            tensors[f"{key}.alpha"] = torch.tensor(self.layout.alpha, dtype=dtype)
        if overflown := [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise LayoutError(f"{listing(overflown)} is too large for {dtype}: save with dtype=torch.float32")
        return tensors

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write an ordinary LoRA file, atomically.

        Args:
            path: destination, `.safetensors`.
            dtype: of the factors in the file.

        Returns:
            The path.
        """
        tensors = self.state_dict(dtype)
        return save_safetensors(path, tensors, {**self.metadata, **file_metadata(self.layout, tensors)})

    @classmethod
    def load(cls, path: str | Path, layout: LoraLayout | None = None) -> "Lora":
        """Read a LoRA file with kohya keys.

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
        lora = lora_from_state_dict(tensors, layout)
        return cls(lora.layout, lora.down, lora.up, metadata)


def lora_from_state_dict(tensors: Mapping[str, Tensor], layout: LoraLayout | None = None) -> Lora:
    """Read kohya-keyed tensors, strictly.

    Args:
        tensors: as from `Lora.state_dict`; factors are converted to float32.
        layout: what the tensors must fit; by default read off the keys and shapes.

    Raises:
        LayoutError: lists missing and unexpected keys, or wrong shapes.
    """
    layout = layout or layout_of_state_dict(tensors)
    expected = {f"{kohya_key(m.name)}.{part}" for m in layout.modules for part in KOHYA_PARTS}
    check_keys(expected, set(tensors))
    alphas = {float(tensors[f"{kohya_key(m.name)}.alpha"]) for m in layout.modules}
    if any(abs(alpha - layout.alpha) > 1e-3 * abs(layout.alpha) for alpha in alphas):  # float16 rounding
        raise LayoutError(f"alpha is {listing(map(str, alphas))}, expected {layout.alpha} in all modules")
    down = {m.name: tensors[f"{kohya_key(m.name)}.lora_down.weight"].float() for m in layout.modules}
    up = {m.name: tensors[f"{kohya_key(m.name)}.lora_up.weight"].float() for m in layout.modules}
    return Lora(layout, down, up)


def layout_of_state_dict(tensors: Mapping[str, Tensor]) -> LoraLayout:
    """Layout of a foreign LoRA (both factors trained), from its keys and shapes; modules in key order.

    Raises:
        LayoutError: keys other than `lora_unet_*`, convolutions, or several ranks.
    """
    keys = sorted({key.split(".", 1)[0] for key in tensors if key.startswith(KOHYA_PREFIX)})
    if not keys:
        raise LayoutError(
            f"no {KOHYA_PREFIX}* keys: not a LoRA with kohya keys (PEFT files need converting first)"
        )
    check_keys({f"{key}.{part}" for key in keys for part in KOHYA_PARTS}, set(tensors))
    downs = {key: tensors[f"{key}.lora_down.weight"] for key in keys}
    ups = {key: tensors[f"{key}.lora_up.weight"] for key in keys}
    if convolutions := [key for key in keys if downs[key].ndim != 2 or ups[key].ndim != 2]:
        raise LayoutError(f"{listing(convolutions)}: only LoRAs of linear layers are supported")
    ranks = {int(down.shape[0]) for down in downs.values()}
    alphas = {float(tensors[f"{key}.alpha"]) for key in keys}
    if len(ranks) > 1 or len(alphas) > 1:
        raise LayoutError(
            f"ranks {sorted(ranks)}, alphas {sorted(alphas)}: resize the LoRA to one rank first"
        )
    modules = tuple(
        ModuleSpec(module_name(key), int(downs[key].shape[1]), int(ups[key].shape[0])) for key in keys
    )
    return LoraLayout(modules, ranks.pop(), alphas.pop(), train_down=True)


def kohya_key(name: str) -> str:
    """Key of a module path: `mid_block.attentions.0` -> `lora_unet_mid_block_attentions_0`."""
    return KOHYA_PREFIX + name.replace(".", "_")


def module_name(key: str) -> str:
    """Inverse of `kohya_key` for diffusers module paths."""
    name = key.removeprefix(KOHYA_PREFIX).replace("_", ".")
    for word in COMPOUND_WORDS:
        name = f".{name}.".replace(f".{word.replace('_', '.')}.", f".{word}.")[1:-1]
    return name


def check_keys(expected: set[str], found: set[str]) -> None:
    """Compare key sets.

    Raises:
        LayoutError: lists what is missing and unexpected.
    """
    problems = []
    if missing := expected - found:
        problems.append(f"{len(missing)} missing keys ({listing(missing)})")
    if unexpected := found - expected:
        problems.append(f"{len(unexpected)} unexpected keys ({listing(unexpected)})")
    if problems:
        raise LayoutError(
            f"LoRA does not fit: {' and '.join(problems)}: it was made for another base model, other layers "
            "or another tool's key names"
        )


def file_metadata(layout: LoraLayout, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Header entries that follow from the weights (kohya `ss_*`, Stability modelspec 1.0, ours)."""
    content = save(dict(tensors))
    header = 8 + int.from_bytes(content[:8], "little")  # safetensors: u64 length, JSON header, data
    digest = hashlib.sha256(content[header:]).hexdigest()  # of the data only, as both conventions want it
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(layout.rank),
        "ss_network_alpha": str(layout.alpha),
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.hash_sha256": f"0x{digest}",
        LAYOUT_KEY: layout.to_json(),
        FINGERPRINT_KEY: layout.fingerprint,
    }
