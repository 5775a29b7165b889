import pytest
import torch

from difflora.errors import DiffLoRAError
from difflora.synthetic.captions import sample_captions, vocabulary
from difflora.synthetic.people import sample_people
from difflora.synthetic.scenes import ATTRIBUTES, cat_scenes, sample_scenes, scene_for


def test_prompt_says_what_the_scene_shows():
    scene = scene_for(expression="smiling", accessory="wearing sunglasses", background="red background")
    assert scene.prompts() == [
        "a photo of a person, smiling, facing forward, wearing sunglasses, soft light, "
        "red background, white shirt"
    ]


def test_same_seed_same_scenes_and_every_class_occurs():
    first, second = sample_scenes(300, seed=4, styled=0.4), sample_scenes(300, seed=4, styled=0.4)
    assert torch.equal(first.jitter, second.jitter) and first.prompts() == second.prompts()
    for name, words in ATTRIBUTES.items():
        assert set(getattr(first, name).tolist()) == set(range(len(words)))


def test_styles_come_where_asked_and_change_nothing_else():
    colour, styled = sample_scenes(300, seed=4), sample_scenes(300, seed=4, styled=0.4)
    assert not colour.style.any()
    assert 0.3 < (styled.style != 0).float().mean() < 0.5
    for plain, phrases, style in zip(colour.phrases(), styled.phrases(), styled.style.tolist(), strict=True):
        assert phrases == plain + [ATTRIBUTES["style"][style]] * (style != 0)
    assert torch.equal(colour.jitter, styled.jitter)


def test_only_what_a_picture_can_show_is_asked():
    asked = cat_scenes([scene_for(), scene_for(style="pencil sketch")]).asked()
    assert set(asked) == set(ATTRIBUTES)
    assert asked["style"].tolist() == [False, True] and asked["expression"].tolist() == [True, True]
    assert asked["background"].tolist() == [True, False]


def test_slices_and_joins_are_inverse():
    scene = sample_scenes(6, seed=1)
    assert cat_scenes([scene[:2], scene[2:]]).prompts() == scene.prompts()


def test_unknown_attribute_names_the_known_ones():
    with pytest.raises(DiffLoRAError, match="red background"):
        scene_for(background="plaid")


def test_captions_are_made_of_the_vocabulary_and_always_name_accessories_and_styles():
    traits, scene = sample_people("train", 0, 200), sample_scenes(200, seed=2, styled=0.5)
    captions = sample_captions(traits, scene, seed=3)
    assert captions == sample_captions(traits, scene, seed=3)
    known = set(vocabulary())
    for caption, accessory, style in zip(
        captions, scene.accessory.tolist(), scene.style.tolist(), strict=True
    ):
        if caption:
            assert set(caption.split(", ")) <= known
            assert not accessory or ATTRIBUTES["accessory"][accessory] in caption
            assert not style or ATTRIBUTES["style"][style] in caption
    assert 0 < captions.count("") < 40
