"""Measure ptlit against its peers: python -m ptlit.benchmark"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ptlit.benchmark.case import Benchmark, Nodes
from ptlit.build import make, options_of
from ptlit.command import command
from ptlit.config import check
from ptlit.run_folder import RunFolder


def benchmark(cfg: DictConfig) -> None:
    check(cfg, "benchmark")
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    chosen: Benchmark = make(cfg.benchmark)
    nodes = Nodes(options_of(cfg.model), options_of(cfg.data), options_of(cfg.optim), cfg.seed, chosen.device)
    folder.write_config(cfg)
    chosen.run(nodes, folder.root)


main = command("benchmark", benchmark)

if __name__ == "__main__":
    main()
