"""How likeness falls when the base model moves: `python -m training.measure_base_fit`.

The embedded DiffLoRA is applied to its own base model, to fine-tunes of it, to its weights with noise of some
sizes, to other base models of the same layout (`--models`), and to one with random weights. For each: the
distance that the sketch tells, the true one, and the face similarity of drawn pictures, with and without the
LoRA. From this comes `difflora.base_sketch.FAR`.

Letters: B people, K pictures of each, P parameters of one LoRA.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from difflora.base_model import BaseModel
from difflora.base_sketch import BaseSketch, base_fit, sketch_base
from difflora.batched import batched_lora
from difflora.candidates import embed_pictures
from difflora.diffusion import draw_noise
from difflora.errors import DiffLoRAError
from difflora.files import atomic_save
from difflora.layout import LoraLayout
from difflora.model import DiffLoRA
from difflora.patch import linear_modules
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import sample_scenes
from difflora.synthetic.world import BASE_MODEL
from training.common import machine, progress_bar, say
from training.evaluation_people import photograph, prompt_scenes

NOISE = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
FINE_TUNES = ((20, 1e-4), (20, 1e-3), (20, 3e-3))
"""Steps and rate of AdamW: a mild one, a usual one, one that is too much."""
TUNING_BATCH, TUNING_SEED = 8, 77
PICTURE_STEPS = 12


def with_noise(base: BaseModel, layout: LoraLayout, amount: float) -> BaseModel:
    """Gaussian noise on every adapted matrix, of `amount` times its norm."""
    changed = replace(base, denoiser=copy.deepcopy(base.denoiser))
    generator = torch.Generator().manual_seed(0)
    for module in linear_modules(changed.denoiser, layout).values():
        noise = torch.randn(module.weight.shape, generator=generator)
        module.weight.data += amount * noise * module.weight.norm() / noise.norm()
    return changed


def fine_tuned(base: BaseModel, num_steps: int, rate: float) -> BaseModel:
    """The whole denoiser trained on, by its own loss, with rendered pictures of other people."""
    changed = replace(base, denoiser=copy.deepcopy(base.denoiser).requires_grad_(True).train())
    optimiser = torch.optim.AdamW(changed.denoiser.parameters(), rate)
    scenes = sample_scenes(num_steps * TUNING_BATCH, TUNING_SEED)
    people = sample_people("train", 90_000, num_steps * TUNING_BATCH)  # (pictures, traits)
    prompts = scenes.prompts()
    generator = torch.Generator().manual_seed(TUNING_SEED)
    size = base.decode(torch.zeros(1, *base.latent_shape)).shape[-1]
    for start in range(0, len(prompts), TUNING_BATCH):
        rows = torch.arange(start, start + TUNING_BATCH)
        pictures = render(people[rows], scenes[rows], size).pictures * 2 - 1  # (n, 3, S, S)
        latents = base.encode_images(pictures)  # (n, C, h, w)
        noise = torch.randn(latents.shape, generator=generator)
        t = torch.randint(len(base.alphas_cumprod), (TUNING_BATCH,), generator=generator)
        embeds = base.encode_prompts(prompts[start : start + TUNING_BATCH])  # (n, L, W)
        loss = changed.denoising_loss(latents, embeds, noise, t).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    changed.denoiser.train(False).requires_grad_(False)
    return changed


def random_weights(base: BaseModel) -> BaseModel:
    """The same architecture, never trained."""
    torch.manual_seed(0)
    denoiser: nn.Module = type(base.denoiser).from_config(base.denoiser.config)
    return replace(base, denoiser=denoiser.train(False).requires_grad_(False))


def models(
    base: BaseModel, layout: LoraLayout, others: Sequence[Path]
) -> Iterator[tuple[str, Callable[[], BaseModel]]]:
    """Names, and how to make each model: one at a time is in memory."""
    yield "the training base itself", lambda: base
    for steps, rate in FINE_TUNES:
        yield f"fine-tuned, {steps} steps at {rate:g}", lambda s=steps, r=rate: fine_tuned(base, s, r)
    for amount in NOISE:
        yield f"noise of {amount:g}", lambda a=amount: with_noise(base, layout, a)
    for number, path in enumerate(others):
        yield f"another base model ({number + 1})", lambda p=path: BaseModel.load(p)
    yield "random weights", lambda: random_weights(base)


@torch.no_grad()
def likeness(
    base: BaseModel, model: DiffLoRA, flat: Tensor, person: Tensor, prompts: list[str], strength: float
) -> float:
    """Mean cosine between drawn faces and people (B, 512), everybody with every prompt; no face counts 0."""
    people, count = len(flat), len(prompts)
    embeds = base.encode_prompts(prompts).repeat(people, 1, 1)  # (B*K, L, W)
    noise = draw_noise((count, *base.latent_shape), torch.Generator().manual_seed(1)).repeat(people, 1, 1, 1)
    with batched_lora(base.denoiser, model.layout, flat, model.shared_down, strength):
        pictures = base.decode(base.sample(embeds, noise, PICTURE_STEPS))  # (B*K, 3, S, S)
    faces = embed_pictures(model.face_analyzer, pictures)  # (B*K, 512)
    return float((faces * person.repeat_interleave(count, dim=0)).sum(dim=1).mean())


def true_distance(base: BaseModel, other: BaseModel, layout: LoraLayout) -> float:
    """||W - W0|| / ||W0|| over all adapted matrices, without a sketch."""
    own, new = (linear_modules(model.denoiser, layout) for model in (base, other))
    moved = sum(float((new[name].weight - own[name].weight).double().square().sum()) for name in own)
    return (moved / sum(float(own[name].weight.double().square().sum()) for name in own)) ** 0.5


def measure(
    name: str,
    other: BaseModel,
    base: BaseModel,
    sketch: BaseSketch,
    model: DiffLoRA,
    drawing: tuple[Tensor, Tensor, list[str]],
) -> dict[str, object]:
    """One row of the report."""
    fit = base_fit(sketch, model.layout, other.denoiser.state_dict(), base.name)
    row = {
        "model": name,
        "distance": fit.distance,
        "standard_error": fit.standard_error,
        "true_distance": true_distance(base, other, model.layout),
        "similarity": likeness(other, model, *drawing, model.recommended.strength),
        "similarity_without": likeness(other, model, *drawing, 0.0),
    }
    say(f"{name}: distance {fit.distance:.3f}, similarity {row['similarity']:.3f}")
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, people, one row per model, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="other base models of its layout")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/base_fit.json"))
    options = parser.parse_args(arguments)
    base, model = BaseModel.load(BASE_MODEL), DiffLoRA.load()
    sketch = sketch_base(model.layout, base.denoiser.state_dict())
    _, features = photograph(model, "validation", options.people)
    flat = model.generate_weights(features)  # (B, P)
    person = torch.stack([normalize(own.face_embedding.mean(dim=0), dim=0) for own in features])  # (B, 512)
    drawing = (flat, person, prompt_scenes("validation", options.prompts).prompts())
    makers = list(models(base, model.layout, options.models))
    rows = []
    with progress_bar(len(makers), "models") as bar:
        for name, make in makers:
            rows.append(measure(name, make(), base, sketch, model, drawing))
            bar.update()
    report = {
        "command": f"python -m training.measure_base_fit --people {options.people} "
        f"--prompts {options.prompts} --models <{len(options.models)} folders>",
        "machine": machine(),
        "people": options.people,
        "prompts": options.prompts,
        "rows": rows,
    }
    text = json.dumps(report, indent=1)
    atomic_save(options.out, lambda path: path.write_text(text + "\n", encoding="utf-8"))


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")
