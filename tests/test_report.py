"""What a report shows of many labels, and how many rows."""

import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from ptlit.report import confusion_figure


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # torchmetrics
@pytest.mark.parametrize(
    ("labels", "numbers", "named"), [(3, 9, 3), (30, 900, 30), (31, 0, 16), (150, 0, 30)]
)
def test_a_picture_of_many_labels_is_no_larger(labels: int, numbers: int, named: int) -> None:
    confusion = MulticlassConfusionMatrix(labels)
    confusion.update(torch.arange(labels), torch.arange(labels))
    names = [f"label {i}" for i in range(labels)]
    figure = confusion_figure(confusion, names)
    assert max(figure.get_size_inches()) <= 13
    (axes,) = figure.axes
    assert len(axes.texts) == numbers
    for ticks in (axes.get_xticks(), axes.get_yticks()):
        assert len(ticks) == named
    shown = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    assert all(label.get_text() == names[int(place)] for place, label in shown)
