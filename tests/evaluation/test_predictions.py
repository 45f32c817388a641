"""Predictions of a split: softmax probabilities and the five most probable classes."""

import numpy as np
import pytest
import torch

from livt_hf.evaluation.predictions import predict_split


def test_probabilities_are_a_softmax_of_float32_logits():
    class Half(torch.nn.Module):
        dtype = torch.bfloat16

        def forward(self, pixel_values):
            logits = torch.tensor([[2.0, 1.0, -300.0]], dtype=torch.bfloat16)
            return type("Output", (), {"logits": logits.repeat(len(pixel_values), 1)})

    loader = [{"pixel_values": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.tensor([0, 2])}]
    predicted = predict_split(Half(), loader, (0.5,) * 3, (0.5,) * 3)
    assert predicted["predictions"].tolist() == [0, 0]
    assert predicted["confidences"] == pytest.approx(1 / (1 + np.exp(-1.0)), rel=1e-6)
    assert predicted["true_probabilities"] == pytest.approx([1 / (1 + np.exp(-1.0)), 0.0], rel=1e-6)


def test_the_five_best_classes_are_counted_in_the_models_labels():
    class Ranking(torch.nn.Module):
        dtype = torch.float32

        def forward(self, pixel_values):
            return type("Output", (), {"logits": -torch.arange(7.0).repeat(len(pixel_values), 1)})

    loader = [{"pixel_values": torch.zeros(7, 3, 4, 4, dtype=torch.uint8), "labels": torch.arange(7)}]
    predicted = predict_split(Ranking(), loader, (0.5,) * 3, (0.5,) * 3, label_of=np.arange(6, -1, -1))
    assert predicted["labels"].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert predicted["in_top5"].tolist() == [False, False, True, True, True, True, True]
