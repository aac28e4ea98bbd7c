"""A run on the tiny base that is loaded once, for tests that look at one part of it under many jobs."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from engine.data.dataset import build_dataset
from engine.data.loader import Loader
from engine.data.sampler import BatchSampler, turn_of
from engine.encode.text_embeddings import encode_texts
from engine.runfolder.control import Control
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import ResumePoint
from engine.system.stopwatch import Stopwatch
from engine.training.context import Run
from engine.training.prepare import all_texts, prepare
from engine.training.train_step import StepResult, gradients
from presets.facts.gather import gather
from presets.job.expert_schedule import Expert
from presets.job.schema import Job
from presets.job.toml_file import load_job, with_value

CPU = torch.device("cpu")


class Bench:
    """`run` is the job file's, its LoRAs filled with numbers as if they had learnt something."""

    def __init__(self, path: Path) -> None:
        self.job, self.folder = load_job(path), path.parent / "run"
        self.folder.mkdir()
        self.facts = gather(self.job, path.parent, out=path.parent / "runs", scenes=False)
        control = Control(self.folder, tell=lambda finding: None)
        control.open()
        log = EventLog(self.folder, listener=lambda event: None)
        self.run = prepare(ResumePoint(job=self.job), self.facts, self.folder, log, control, device=CPU, workers=0)
        generator = torch.Generator().manual_seed(0)
        for learner in self.run.learners.values():
            for parameter in learner.parameters.values():
                parameter.data.normal_(0, 0.2, generator=generator)

    def learn_texts(self, jobs: Iterable[Job]) -> None:
        """Have the embeddings of everything that these jobs may say."""
        texts = {text for job in jobs for text in all_texts(job, self.items(job))}
        self.run.texts = encode_texts(
            self.run.base, texts, self.run.placement, precision="none", progress=lambda *_: None
        )

    def items(self, job: Job) -> list:
        return build_dataset(job, self.facts.base, self.facts.datasets)

    def changed(self, **values: object) -> Job:
        """The job with other values: `training__lr=...`, `datasets__weight=...` (of the first dataset)."""
        job: Job = self.job
        for field, value in values.items():
            job = with_value(job, field.replace("__", ".").replace("datasets.", "datasets[0]."), value)
        return job

    def run_of(self, job: Job) -> Run:
        """The run as `job` would have it, with the same LoRAs."""
        sampler = BatchSampler(self.items(job), job.training.batch_size, job.job.seed, turn_of(job))
        return replace(self.run, job=job, loader=Loader(sampler, 0, log=print))

    def step(self, run: Run, expert: Expert, step: int = 0) -> tuple[dict[str, torch.Tensor], StepResult]:
        """The gradients that the micro-batches of an optimizer step leave, by parameter."""
        parameters = run.learners[expert].parameters
        passed = gradients(run, step, expert, Stopwatch(CPU))
        assert passed is not None
        taken = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        for parameter in parameters.values():
            parameter.grad = None
        return taken, passed
