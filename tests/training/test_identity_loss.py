"""Training for likeness: the recogniser with a gradient, and what it adds to the base model's loss."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, interpolate

from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.errors import FaceModelError, NoFaceError
from difflora.faces import FaceAnalyzer
from difflora.layout import LoraLayout, init_shared_down
from difflora.lora_training import Batch, denoising_objective
from difflora.photos import as_arrays
from difflora.synthetic import world
from difflora.synthetic.recognisers import Recogniser, RecogniserConfig
from training.face_export import export_onnx, export_recogniser
from training.identity_loss import IdentityLoss, View
from training.onnx_network import OnnxNetwork
from training.pictures import RenderedPeople

PICTURES = 3


class ResidualRecogniser(nn.Module):
    """The kinds of node of ArcFace's residual nets."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.slope, self.norm = nn.PReLU(4), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, 2, 1, groups=2)
        self.short = nn.Conv2d(4, 4, 1, 2)
        self.out, self.last = nn.Linear(4 * 8 * 8, 6), nn.BatchNorm1d(6)
        for norm in (self.norm, self.last):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x):
        x = self.slope(self.first(x))
        x = self.second(self.norm(x)) + self.short(x)
        return self.last(self.out(x.flatten(1)))


def onnx_says(path, crops):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {entry.name: np.asarray(crops)})[0])


@pytest.mark.parametrize("name", ["shipped", "residual"])
def test_a_recogniser_with_a_gradient_says_what_onnxruntime_says(name, tmp_path, generator):
    path, side = FaceAnalyzer(world.FACE_PACK).recogniser_file, 112
    if name == "residual":
        path, side = tmp_path / "residual.onnx", 16
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network, example = ResidualRecogniser(), torch.zeros(1, 3, side, side)
            export_onnx(network, example, path, ["out"], {"input": {0: "batch"}})
    crops = torch.randn(2, 3, side, side, generator=generator)
    network = OnnxNetwork(path)
    torch.testing.assert_close(network(crops), onnx_says(path, crops), atol=1e-4, rtol=1e-4)
    crops.requires_grad_()
    (gradient,) = torch.autograd.grad(network(crops).square().sum(), [crops])
    assert gradient.abs().amax() > 0
    assert not list(network.parameters())


def test_a_network_with_unknown_nodes_is_refused(tmp_path):
    path = export_onnx(nn.Softmax(1), torch.zeros(1, 3), tmp_path / "odd.onnx", ["out"], {})
    with pytest.raises(FaceModelError, match=r"Softmax.*--identity-weight"):
        OnnxNetwork(path)
    for damaged in (tmp_path / "missing.onnx", tmp_path / "text.onnx"):
        with pytest.raises(FaceModelError, match=f"{damaged.name} cannot be read"):
            OnnxNetwork(damaged)
        (tmp_path / "text.onnx").write_text("no graph")


@pytest.fixture(scope="module")
def scene():
    """Base model, objective of two people, and a batch of two of their three pictures at little noise."""
    base, analyzer = BaseModel.load(world.BASE_MODEL), FaceAnalyzer(world.FACE_PACK)
    pictures, prompts = RenderedPeople("validation", PICTURES).pictures([0, 1], base.picture_px)
    objective = IdentityLoss.of([View(OnnxNetwork(analyzer.recogniser_file), 0.5)], analyzer, pictures)
    chosen = torch.tensor([2, 0])
    latents = base.encode_images(pictures[:, chosen].flatten(0, 1))  # (4, C, h, w)
    embeds = base.encode_prompts([own[k] for own in prompts for k in chosen]).detach()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    return base, objective, Batch(latents, embeds, noise, torch.full((4,), 20), chosen), (analyzer, pictures)


def test_the_second_term_is_the_distance_of_the_faces_after_a_step_of_the_sampler(scene):
    base, objective, batch, (analyzer, _) = scene
    latents, prompts, noise, t, _ = batch
    with torch.no_grad():
        plain, both = denoising_objective(base, batch), objective(base, batch)
        _, guess = base.denoising(latents, prompts, noise, t)
        signal, sigma = base.alphas_cumprod[t[0] // 2].sqrt(), (1 - base.alphas_cumprod[t[0] // 2]).sqrt()
        start, start_sigma = base.alphas_cumprod[t[0]].sqrt(), (1 - base.alphas_cumprod[t[0]]).sqrt()
        left = (start * latents + start_sigma * noise - start * guess) / start_sigma
        drawn = base.sketch(base.predict(signal * guess + sigma * left, t // 2, prompts)).clamp(-1, 1)
        true = base.sketch(latents).clamp(-1, 1)
    # finds the faces itself
    faces, wanted = (analyzer.analyze(as_arrays(pictures))[0] for pictures in (drawn, true))
    torch.testing.assert_close(both - plain, 0.5 * (1 - (faces * wanted).sum(dim=-1)), atol=0.05, rtol=0)


class Guessing:
    """The base model, but its first guess, and if asked for its last one too, is what we say."""

    def __init__(self, base, first, last=None):
        self.base, self.first, self.last = base, first, last

    def __getattr__(self, name):
        return getattr(self.base, name)

    def denoising(self, *_):
        return torch.zeros(len(self.first)), self.first

    def predict(self, *given):
        return self.base.predict(*given) if self.last is None else self.last


def test_another_persons_face_costs_more(scene):
    base, objective, batch, _ = scene
    with torch.no_grad():
        own = objective(base, batch) - denoising_objective(base, batch)
        guess = base.denoising(*batch[:4])[1]
        other = batch._replace(image_latents=batch.image_latents.roll(2, 0))  # whose face is wanted
        assert (objective(Guessing(base, guess, guess), other) > own + 0.1).all()


def test_the_gradient_comes_through_the_last_guess_only(scene):
    base, objective, batch, _ = scene
    first = base.denoising(*batch[:4])[1].detach().requires_grad_()
    last = first.detach().clone().requires_grad_()
    objective(Guessing(base, first, last), batch).sum().backward()
    assert first.grad is None and last.grad.abs().amax() > 0
    assert not objective(
        Guessing(base, first), batch
    ).requires_grad  # nor through what follows from the first


def test_a_picture_without_a_face_counts_for_the_base_models_loss_only(scene):
    base, objective, batch, _ = scene
    found = objective.found.clone()
    found[1, 2] = False
    partly = replace(objective, found=found)
    nobody = replace(objective, found=found & False)
    with torch.no_grad():
        plain, both = denoising_objective(base, batch), objective(base, batch)
        assert torch.equal(nobody(base, batch), plain)
        expected = torch.where(torch.tensor([False, False, True, False]), plain, both)
        torch.testing.assert_close(partly(base, batch), expected)


def test_everybody_is_compared_with_their_own_lora(scene):
    base, objective, batch, _ = scene
    layout = LoraLayout.from_model(base.denoiser, ["attn1.to_v"], rank=2)
    flat = torch.randn(2, layout.num_parameters, generator=torch.Generator().manual_seed(1))
    found = objective.found.clone()
    found[0] = False  # the first person's pictures are left out: the second's LoRA stays the second's
    with torch.no_grad(), batched_lora(base.denoiser, layout, flat, init_shared_down(layout, 0)):
        plain, both = denoising_objective(base, batch), objective(base, batch)
        partly = replace(objective, found=found)(base, batch)
    assert ((both - plain)[2:] > 0.01).all()
    torch.testing.assert_close(partly, torch.cat([plain[:2], both[2:]]))


def test_pictures_without_any_face_are_refused(scene):
    _, objective, _, (analyzer, pictures) = scene
    with pytest.raises(NoFaceError, match="person 2 of this batch"):
        IdentityLoss.of(objective.views, analyzer, torch.stack([pictures[0], torch.zeros_like(pictures[0])]))


@pytest.fixture(scope="module")
def portrait_recogniser(tmp_path_factory):
    """Sees whole pictures of 32 px; untrained, but what it is shown it does tell apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Recogniser(RecogniserConfig(channels=(8, 8), strides=(4, 2), squeeze=4, side=32))
    return OnnxNetwork(export_recogniser(network, tmp_path_factory.mktemp("portrait") / "portrait.onnx"))


def test_whole_pictures_are_compared_at_the_side_that_their_recogniser_sees(scene, portrait_recogniser):
    base, objective, batch, _ = scene
    assert portrait_recogniser.side == 32
    face = objective.views[0]
    portrait = View(portrait_recogniser, 2.0, aligned=False)
    guess = base.denoising(*batch[:4])[1].detach()
    with torch.no_grad():
        alone, both = (
            replace(objective, views=views)(Guessing(base, guess, guess), batch)
            for views in ([face], [face, portrait])
        )
        small = [
            interpolate(base.sketch(latents), (32, 32), mode="bilinear", antialias=True)
            for latents in (guess, batch.image_latents)
        ]
        likeness = cosine_similarity(*(portrait_recogniser(pictures) for pictures in small))
    torch.testing.assert_close(both - alone, 2 * (1 - likeness), atol=1e-5, rtol=1e-4)


def test_hair_moves_the_portrait_and_not_the_face(scene, portrait_recogniser):
    """What lies outside of the cut-out face has a gradient from whole pictures only."""
    _, objective, _, (_, pictures) = scene
    landmarks = objective.landmarks[:, 0]
    shown = pictures[:, 0].clone().requires_grad_()

    def reach(view):
        (gradient,) = torch.autograd.grad(view.embed(shown, landmarks).square().sum(), [shown])
        return (gradient.abs().sum(dim=1) > 0).float().mean()  # share of the pixels

    face, portrait = objective.views[0], View(portrait_recogniser, 1.0, aligned=False)
    assert reach(face) < 0.6 and reach(portrait) > 0.95
