"""What a report shows of many labels, and how many rows."""

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from ptlit.report import confusion_figure, samples_table


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


def texts_shown(num_rows: int, rows: int = 10) -> list[str]:
    """Of rows that are answered the more wrongly the lower their number."""
    sure = [(i + 1) / (rows + 1) for i in range(rows)]
    given: dict[int, Tensor] = {i: torch.tensor([chance, 1 - chance]) for i, chance in enumerate(sure)}
    every = [{"text": str(i), "label": 0} for i in range(rows)]
    lines = samples_table(every, ("a", "b"), given, num_rows).splitlines()[2:]
    return [line.split("|")[-2].strip() for line in lines]


def test_so_many_rows_are_shown_as_were_asked_for() -> None:
    assert texts_shown(0) == []
    assert texts_shown(1) == ["0"]
    assert texts_shown(4) == ["0", "1", "8", "9"]
    assert texts_shown(5) == ["0", "1", "2", "8", "9"]
    assert texts_shown(10) == texts_shown(11) == [str(i) for i in range(10)]
