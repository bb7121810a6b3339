"""What a run leaves behind, and where: one folder holds all that judging, using or resuming it needs."""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ptlit.mistake import UserMistake
from ptlit.whole_file import replaced, write_json


class RunFolder:
    def __init__(self, root: Path):
        self.root = root
        self.config = root / "config.yaml"
        self.base_model = root / "base_model.json"
        self.metrics = root / "metrics.json"
        self.metrics_csv = root / "metrics.csv"
        self.curves = root / "curves.png"
        self.learning_rate = root / "learning_rate.png"
        self.adapter = root / "adapter"
        self.lora = root / "lora"
        self.checkpoints = root / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.report = root / "report"
        self.evaluation = root / "evaluation"
        self.inspection = root / "inspect.png"
        self.tensorboard = root / "tensorboard"

    def adapters(self, count: int) -> list[Path]:
        """One for each prompt of an ensemble."""
        return [self.adapter, *(self.root / f"adapter_{number}" for number in range(2, count + 1))]

    def write_config(self, cfg: DictConfig) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, self.config)  # all but the run folder itself is resolved: the folder may be moved

    def write_base_model(
        self, name: str, revision: str | None, fingerprint: str, lora: str | None = None
    ) -> None:
        """`lora` is the fingerprint of a frozen one."""
        known = {"name": name, "revision": revision, "fingerprint": fingerprint}
        write_json(self.base_model, known | ({"lora": lora} if lora is not None else {}))

    def write_metrics(self, metrics: dict[str, float]) -> None:
        write_json(self.metrics, {key: metrics[key] for key in sorted(metrics)})

    def set_curves_aside(self) -> None:
        """Lightning's CSV logger begins by deleting what it finds: a resumed run renames its past."""
        if self.metrics_csv.is_file():
            self.metrics_csv.rename(self.root / f"metrics.part{len(self.curve_files())}.csv")

    def curve_files(self) -> list[Path]:
        parts = sorted(self.root.glob("metrics.part*.csv"))
        return [*parts, self.metrics_csv] if self.metrics_csv.is_file() else parts

    def has_checkpoint(self) -> bool:
        return (self.checkpoints / "last.ckpt").is_file()

    def holds_a_run(self) -> bool:
        """One that has come to something."""
        return self.has_checkpoint() or self.best.is_file() or self.metrics.is_file()

    def clear(self) -> None:
        """Of what a run leaves behind, so that nothing of it is taken for the next one's."""
        results = [self.checkpoints, self.metrics, self.report, self.evaluation, self.tensorboard, self.lora]
        for path in (*results, *self.root.glob("adapter*"), *self.root.glob("metrics*.csv")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def is_of(self, other: "RunFolder") -> bool:
        return self.root.resolve() == other.root.resolve()

    def take_best_of(self, before: "RunFolder") -> None:
        """A run that goes on in another folder than the one it began in has its best prompt too."""
        if not before.best.is_file():
            return
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with replaced(self.best) as part:
            shutil.copy(before.best, part)

    def last_checkpoint(self) -> Path:
        path = self.checkpoints / "last.ckpt"
        if not self.has_checkpoint():
            raise UserMistake(f"resume={self.root}: there is no checkpoint at {path} to go on from.")
        return path


def named_folders(run: str | list[str] | Mapping[str, str]) -> dict[str, Path]:
    """Runs by the names of their folders, with their parents' where two are the same."""
    if isinstance(run, Mapping):
        return {str(name): Path(folder).expanduser() for name, folder in run.items()}
    folders = [Path(folder).expanduser() for folder in ([run] if isinstance(run, str) else run)]
    if not folders:
        raise UserMistake("run=[] names no run folder.")
    same = Counter(folder.resolve().name for folder in folders)
    names = [
        folder.resolve().name if same[folder.resolve().name] == 1 else "/".join(folder.resolve().parts[-2:])
        for folder in folders
    ]
    return dict(zip(names, folders, strict=True))
