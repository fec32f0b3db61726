"""Where metrics go: the log, metrics.json, TensorBoard, and Weights & Biases where a config asks for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from detectron2.engine import hooks
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from omegaconf import DictConfig, OmegaConf

from ...weights.files.atomic import atomic
from .metrics import read_records

__all__ = ["Logs", "WandbWriter", "begin_metrics"]

_LOGS = ("tensorboard", "wandb")


class Logs(hooks.PeriodicWriter):
    """Writes metrics every `train.log_period` iterations; for the main process.

    To the log, to metrics.json, to TensorBoard and, with `train.log="wandb"`, to Weights & Biases;
    `train.wandb` then holds arguments of `wandb.init`, such as the project. A resumed run continues its
    records, without those of the iterations that it repeats.
    """

    def __init__(self, cfg: DictConfig) -> None:
        """
        Args:
            cfg: the config of a training.

        Raises:
            ValueError: `train.log` is neither "tensorboard" nor "wandb".
        """
        super().__init__([], period=cfg.train.log_period)
        self._cfg, self._log = cfg, cfg.train.get("log", "tensorboard")
        self._last_step = -1
        if self._log not in _LOGS:
            raise ValueError(f"train.log is '{self._log}': use one of {', '.join(_LOGS)}")

    def before_train(self) -> None:
        """Raises `ModuleNotFoundError` where wandb is asked for and not installed."""
        folder, start = Path(self._cfg.train.output_dir), self.trainer.start_iter
        folder.mkdir(parents=True, exist_ok=True)
        begin_metrics(folder / "metrics.json", start)
        if self._log == "wandb":
            # before TensorBoard's, which forgets pictures once it has written them
            settings = self._cfg.train.get("wandb") or {}
            self._writers.append(WandbWriter(folder, self._cfg, resumed=start > 0, **settings))
        self._writers += [
            CommonMetricPrinter(self._cfg.train.max_iter),
            JSONWriter(str(folder / "metrics.json")),
            TensorboardXWriter(str(folder), purge_step=start),
        ]

    def after_step(self) -> None:
        self._last_step = self.trainer.iter  # noted first: Ctrl-C may come while the writers write
        super().after_step()

    def after_train(self) -> None:
        """Write what hooks added after the last step, and close."""
        for writer in self._writers:
            if self.trainer.iter != self._last_step:  # Detectron2's printer fails on an iteration twice
                writer.write()
            writer.close()


class WandbWriter(EventWriter):
    """Scalars and pictures to Weights & Biases; a resumed run is resumed there, too.

    WANDB_MODE=offline keeps all in the output folder, for `wandb sync` later.

    Args:
        folder: the output folder, which also keeps the run's id.
        cfg: the config, shown with the run.
        resumed: whether to resume the run whose id is there.
        settings: further arguments of `wandb.init`.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """

    def __init__(
        self, folder: str | os.PathLike[str], cfg: DictConfig, *, resumed: bool, **settings: Any
    ) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "train.log='wandb' needs Weights & Biases: pip install wandb", name="wandb"
            ) from error
        self._wandb = wandb
        kept = Path(folder, "wandb-id.txt")
        run_id = kept.read_text() if resumed and kept.is_file() else None
        # what is in a config may be a class or function: as text
        shown = json.loads(json.dumps(OmegaConf.to_container(cfg), default=str))
        self._run = wandb.init(
            **{"project": "piip", "dir": str(folder), "config": shown, **settings}, id=run_id, resume="allow"
        )
        with atomic(kept) as file:
            file.write(self._run.id.encode())
        self._last = -1

    def write(self) -> None:
        storage = get_event_storage()
        news: dict[int, dict[str, Any]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(20).items():
            if iteration > self._last:
                news.setdefault(iteration, {})[name] = value
        for name, picture, iteration in storage._vis_data:
            news.setdefault(iteration, {})[name] = self._wandb.Image(picture.transpose(1, 2, 0))
        for iteration in sorted(news):
            self._run.log({**news[iteration], "iteration": iteration}, step=iteration)
            self._last = max(self._last, iteration)

    def close(self) -> None:
        self._run.finish()


def begin_metrics(path: Path, iteration: int) -> None:
    """Prepare a metrics.json, to which Detectron2's `JSONWriter` appends, for a run from an iteration on.

    Where a run is resumed, what it is going to do again is taken out, and damaged lines. The file of another
    run in the same folder, and a damaged one as it was, are kept under another name.

    Args:
        path: need not exist.
        iteration: 0 for a new run.
    """
    if not path.is_file():
        return
    records, damaged = read_records(path) if iteration else ([], 0)
    if damaged or iteration == 0:
        number = 1
        while (aside := path.with_suffix(f".{number}{path.suffix}")).exists():
            number += 1
        path.rename(aside)
    if iteration:
        kept = [f"{json.dumps(record)}\n" for record in records if record["iteration"] < iteration]
        with atomic(path) as target:
            target.write("".join(kept).encode())
