"""What the model answered to each prompt, before training and after."""

from dataclasses import dataclass

from slideformer.report.run_data import RunData, Sample


@dataclass(frozen=True)
class Answers:
    """A prompt with its answers in the order of the steps."""

    prompt: str
    samples: list[Sample]

    @property
    def first(self) -> Sample:
        return self.samples[0]

    @property
    def last(self) -> Sample | None:
        return self.samples[-1] if len(self.samples) > 1 else None


def answers(run: RunData) -> list[Answers]:
    """By prompt, in the order in which the prompts first came."""
    by_prompt: dict[str, list[Sample]] = {}
    for sample in sorted(run.samples, key=lambda sample: sample.step):
        by_prompt.setdefault(sample.prompt, []).append(sample)
    return [Answers(prompt, samples) for prompt, samples in by_prompt.items()]
