"""The detector: insightface decodes its outputs to the boxes and landmarks that were meant."""

import numpy as np
import pytest
import torch

from difflora.synthetic.detector import ANCHORS, STRIDES, DetectorConfig, FaceDetector, anchors

SMALL = DetectorConfig(channels=(4, 4, 8, 8, 8), pyramid=8)


def test_outputs_are_those_of_scrfd() -> None:
    outputs = FaceDetector(SMALL).train(False)(torch.zeros(1, 3, 64, 96))
    cells = [64 // stride * (96 // stride) * ANCHORS for stride in STRIDES]
    assert [tuple(output.shape) for output in outputs] == [(c, width) for width in (1, 4, 10) for c in cells]
    assert all((score > 0).all() and (score < 1).all() for score in outputs[:3])


def test_anchors_are_in_the_order_of_the_outputs() -> None:
    centres, strides, kinds = anchors(64, 96)
    assert len(centres) == sum(64 // stride * (96 // stride) * ANCHORS for stride in STRIDES)
    # the formula in insightface/model_zoo/scrfd.py
    for stride in STRIDES:
        expected = np.stack(np.mgrid[: 64 // stride, : 96 // stride][::-1], axis=-1).reshape(-1, 2) * stride
        assert np.array_equal(centres[strides == stride], expected.repeat(ANCHORS, axis=0))
    assert kinds.unique().tolist() == list(range(len(STRIDES) * ANCHORS))
    assert kinds[:4].tolist() == [0, 1, 0, 1]


@pytest.mark.filterwarnings("ignore")  # of libraries that insightface imports
def test_an_exported_detector_decodes_in_insightface(tmp_path) -> None:
    pytest.importorskip("onnx")
    from difflora.faces import FaceAnalyzer
    from difflora.synthetic.recognisers import Recogniser, RecogniserConfig
    from training.face_export import export_detector, export_recogniser

    torch.manual_seed(0)
    detector = FaceDetector(SMALL).train(False)
    with torch.no_grad():
        for head in detector.scores:  # one face, at the first cell of the middle level
            head.bias.fill_(-20.0)
            head.weight.zero_()
        detector.scores[1].bias.copy_(torch.tensor([20.0, -20.0]))
        detector.boxes[1].weight.zero_()
        detector.boxes[1].bias.copy_(torch.tensor([0.0, 0.0, 2.0, 3.0] * ANCHORS))
        detector.landmarks[1].weight.zero_()
        detector.landmarks[1].bias.copy_(torch.arange(10.0).div(4).repeat(ANCHORS))
    export_detector(detector, tmp_path)
    config = RecogniserConfig(channels=(8, 8), strides=(4, 4), squeeze=4)
    export_recogniser(Recogniser(config), tmp_path / "recognition.onnx")
    analyzer = FaceAnalyzer(tmp_path, providers=["CPUExecutionProvider"])
    faces = analyzer.detect(np.zeros((64, 64, 3), np.uint8))
    first = min(faces, key=lambda face: face.box[0] + face.box[1])
    # 64 px are seen at 128, so that a stride of 16 is 8 px of the photo
    assert first.box == pytest.approx((0.0, 0.0, 16.0, 24.0))
    assert np.array(first.landmarks).ravel() == pytest.approx(np.arange(10.0) * 2)
    assert analyzer.embed([np.zeros((64, 64, 3), np.uint8)] * 2, np.array([first.landmarks] * 2)).shape == (
        2,
        512,
    )
