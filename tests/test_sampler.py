"""Order of batches: a function of seed and epoch, complete, shared out among ranks, and resumable."""

import random
from collections import Counter

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ptlit.data import sampler as sampler_file
from ptlit.data.collate import Collate, IndexedRow
from ptlit.data.loader import ResumableLoader
from ptlit.data.sampler import Batches

LENGTHS = random.Random(0).choices(range(3, 60), k=203)


def batches_of(rank, world_size, monkeypatch, **options):
    monkeypatch.setattr(sampler_file, "_rank_and_world_size", lambda: (rank, world_size))
    sampler = Batches(LENGTHS, 8, **options)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    return batches


CLASSES = random.Random(1).choices([0, 1, 2], weights=[6, 3, 1], k=203)


def make_loader(num_workers=0, seed=1, **options):
    rows = [
        IndexedRow(input_ids=[5] * length, labels=[-100] * length, label=0, row=i)
        for i, length in enumerate(LENGTHS)
    ]
    return ResumableLoader(
        rows, Batches(LENGTHS, 8, seed=seed, **options), Collate(0), num_workers=num_workers, seed=seed
    )


def seen(loader):
    return [batch["row"].tolist() for batch in loader]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_once_per_epoch(shuffle):
    batches = Batches(LENGTHS, 8, shuffle=shuffle)
    assert sorted(row for batch in batches for row in batch) == list(range(203))
    assert len(batches) == len(list(batches)) == 26


def test_order_depends_on_seed_and_epoch_alone():
    one, other = Batches(LENGTHS, 8, seed=1), Batches(LENGTHS, 8, seed=1)
    torch.rand(3)
    assert list(one) == list(other)
    other.set_epoch(1)
    assert list(one) != list(other)
    assert list(one) != list(Batches(LENGTHS, 8, seed=2))


def test_rows_of_a_batch_are_of_like_length():
    def padding(batches):
        return sum(max(LENGTHS[i] for i in b) * len(b) - sum(LENGTHS[i] for i in b) for b in batches)

    order = torch.randperm(203, generator=torch.Generator().manual_seed(0)).tolist()
    by_chance = [order[i : i + 8] for i in range(0, 203, 8)]
    assert padding(Batches(LENGTHS, 8)) < 0.2 * padding(by_chance)


def test_batches_of_so_many_tokens():
    batches = Batches(LENGTHS, 8, max_tokens=128)
    sizes = [len(batch) for batch in batches]
    assert all(sum(LENGTHS[row] for row in batch) <= 128 for batch in batches)
    assert sum(LENGTHS) / (128 * len(sizes)) > 0.75  # hardly any room is left
    assert sorted(row for batch in batches for row in batch) == list(range(203))
    first = {frozenset(batch) for batch in batches}
    batches.set_epoch(1)
    assert len(list(batches)) == len(batches) == len(sizes)
    assert len(first & {frozenset(batch) for batch in batches}) < 0.2 * len(sizes)


def test_rows_of_any_length_share_a_batch():
    batches = Batches(LENGTHS, 8, by_length=False)
    assert sorted(row for batch in batches for row in batch) == list(range(203))
    spread = [max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in batches]
    assert sum(spread) / len(spread) > 30


@pytest.mark.parametrize("options", [{}, {"max_tokens": 128}, {"by_length": False}])
def test_every_class_is_drawn_equally_often(options):
    batches = Batches(LENGTHS, 8, classes=CLASSES, balanced=True, **options)
    sizes = Counter(CLASSES)
    most = max(sizes.values())
    counts = set()
    epochs = []
    for epoch in range(4):
        batches.set_epoch(epoch)
        drawn = Counter(row for batch in batches for row in batch)
        assert Counter(CLASSES[row] for row in drawn.elements()) == dict.fromkeys(sizes, most)
        assert drawn.keys() == set(range(203))
        for row, times in drawn.items():
            assert times - most // sizes[CLASSES[row]] in (0, 1)
        counts |= {len(batches), len(list(batches))}
        epochs.append(drawn)
    assert len(counts) == 1  # a trainer counts on it
    assert epochs[0] != epochs[1]
    assert (
        list(batches)
        == list(batches)
        != list(Batches(LENGTHS, 8, classes=CLASSES, balanced=True, seed=1, **options))
    )


def test_balanced_batches_are_of_like_length_and_of_all_classes():
    batches = list(Batches(LENGTHS, 8, classes=CLASSES, balanced=True))
    spread = [max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in batches]
    assert sum(spread) / len(spread) < 5
    mixed = [len({CLASSES[i] for i in batch}) for batch in batches]
    assert sum(mixed) / len(mixed) > 2


@pytest.mark.parametrize("by_length", [True, False])
def test_stratified_batches_have_the_shares_of_the_whole(by_length):
    classes = random.Random(2).choices([0, 1, 2], weights=[5, 2, 1], k=4000)
    lengths = [20 + 3 * label + each % 30 for each, label in enumerate(classes)]  # longer where rarer
    options = dict(classes=classes, by_length=by_length)
    batches = list(Batches(lengths, 8, stratified=True, **options))
    assert sorted(row for batch in batches for row in batch) == list(range(4000))
    counts = Counter(classes)
    for batch in batches:
        here = Counter(classes[row] for row in batch)
        assert all(abs(here[label] - 8 * counts[label] / 4000) < 2 for label in counts)
    assert any(len({classes[row] for row in batch}) == 1 for batch in Batches(lengths, 8, **options))

    def padding(batches):
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)

    if by_length:  # each class has its long rows where the others have theirs
        assert padding(batches) < 0.8 * padding(Batches(lengths, 8, by_length=False))


def test_stratified_batches_have_rare_classes_anywhere():
    classes = [0] * 400 + list(range(1, 401))  # half of the rows have a class of their own
    batches = Batches([10] * 800, 8, classes=classes, stratified=True)
    common = [sum(classes[row] == 0 for row in batch) for batch in batches]
    assert min(common) >= 1 and max(common) <= 7  # not all of them in the middle


def test_stratified_batches_of_so_many_tokens_mix_rows_of_like_length():
    classes = random.Random(2).choices([0, 1], weights=[3, 1], k=4000)
    batches = Batches([10] * 4000, 8, max_tokens=128, classes=classes, stratified=True)
    for batch in batches:
        assert abs(sum(classes[row] for row in batch) - len(batch) / 4) <= 2
    assert len(batches) == len(list(batches)) == 500


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 128},
        {"by_length": False},
        {"classes": CLASSES, "balanced": True},
        {"classes": CLASSES, "balanced": True, "max_tokens": 128},
        {"classes": CLASSES, "stratified": True},
        {"classes": CLASSES, "stratified": True, "balanced": True},
    ],
)
@pytest.mark.parametrize("world_size", [2, 3, 7, 40])
def test_ranks_share_out_the_training_rows_equally(monkeypatch, world_size, options):
    ranks = [batches_of(rank, world_size, monkeypatch, **options) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert {row for batches in ranks for batch in batches for row in batch} == set(range(203))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_evaluate_every_row_exactly_once(monkeypatch, world_size):
    ranks = [batches_of(rank, world_size, monkeypatch, shuffle=False) for rank in range(world_size)]
    assert sorted(row for batches in ranks for batch in batches for row in batch) == list(range(203))


@pytest.mark.parametrize(
    ("num_workers", "options"), [(0, {}), (1, {}), (0, {"classes": CLASSES, "max_tokens": 128})]
)
def test_a_loader_goes_on_where_another_stopped(num_workers, options):
    whole = make_loader(**options)
    whole.batches.set_epoch(3)
    expected = seen(whole)

    stopped = make_loader(**options)
    stopped.batches.set_epoch(3)
    iterator = iter(stopped)
    first = [next(iterator)["row"].tolist() for _ in range(10)]
    state = stopped.state_dict()

    resumed = make_loader(num_workers, **options)
    resumed.load_state_dict(state)
    rest = iter(resumed)
    resumed.batches.set_epoch(3)
    assert first + [batch["row"].tolist() for batch in rest] == expected
    assert len(resumed) == len(expected)
    assert seen(resumed) == expected  # only once


def test_a_finished_epoch_is_followed_by_a_whole_one():
    finished = make_loader()
    seen(finished)
    resumed = make_loader()
    resumed.load_state_dict(finished.state_dict())
    resumed.batches.set_epoch(1)
    assert len(seen(resumed)) == 26


@pytest.mark.parametrize("options", [{}, {"max_tokens": 128}, {"balanced": True, "stratified": True}])
def test_checkpoints_do_not_form_the_batches_again(monkeypatch, options):
    loader = make_loader(classes=CLASSES, **options)
    count = len(loader)
    formed = []
    monkeypatch.setattr(Batches, "_formed", lambda *_: formed.append("again"))
    for epoch in range(3):
        loader.batches.set_epoch(epoch)
        assert loader.state_dict() == {"epoch": epoch, "batches": 0}
    monkeypatch.setattr(sampler_file, "_rank_and_world_size", lambda: (1, 3))
    assert len(loader) == -(-count // 3)
    assert formed == []


def test_iterating_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    seen(make_loader())
    assert torch.equal(torch.rand(1), expected)


class Recorder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch):
        self.seen.append((self.current_epoch, batch["row"].tolist()))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stop", "limit"), [(35, 1.0), (26, 1.0), (10, 5), (12, 5)])
def test_lightning_resumes_with_the_very_next_batch(tmp_path, stop, limit):
    def fit(checkpoint=None):
        module = Recorder()
        trainer = lightning.Trainer(
            max_steps=60,
            limit_train_batches=limit,
            callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, make_loader(), ckpt_path=checkpoint, weights_only=True)
        return module.seen

    expected = fit()
    assert fit(tmp_path / f"step={stop}.ckpt") == expected[stop:]
