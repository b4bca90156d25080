"""A model whose answers are forced: what it is asked is kept, what it says is given."""

from collections.abc import Sequence

from stepaudio.choices import StopReason
from stepaudio.decoding.steps import Step
from stepaudio.engine import Engine
from stepaudio.model import StepAudio2


class Forced(Engine):
    """An engine that builds real prompts, and answers each with the next of some lists of ids.

    asked : the token ids of each prompt so far.
    """

    def __init__(self, engine: Engine, answers: Sequence[Sequence[int]], stop: StopReason = StopReason.EOS):
        super().__init__(engine.net, engine.tokenizer, engine.pipeline, engine.capabilities)
        self.answers, self.last_stop, self.asked, self.options = list(answers), stop, [], []

    def steps(self, request, options, tap=None):
        self.asked.append(list(request.tokens))
        self.options.append(options)
        ids = [*self.answers.pop(0)]
        watch = self.run_options(options).should_stop
        ends = watch() if watch else (lambda token: False)
        for index, token in enumerate(ids[: options.max_tokens]):
            stop = StopReason.STOP_STRING if ends(token) else None
            stop = stop or (StopReason.LENGTH if index + 1 == options.max_tokens else None)
            yield Step(0, index, token, -0.5, stop)
            if stop:
                return
        yield Step(0, len(ids), self.tokenizer.eot, -0.5, self.last_stop)


def forced(model: StepAudio2, *answers: Sequence[int]) -> StepAudio2:
    return StepAudio2(Forced(model.engine, answers), model.report)
