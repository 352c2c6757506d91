"""{{name}}: echoes the prompt, a word at a time. A token is a word here.

`max_tokens` and `stop` are honoured. There is nothing random in an echo, so
`temperature` and its like change nothing.
"""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import backend
from wit_world.imports.schema import (
    CountSource,
    Error,
    ErrorKind,
    Event,
    Event_Finish,
    Event_Text,
    Finish,
    FinishReason,
    ModelInfo,
    Part_Text,
    PluginInfo,
    Prompt_Text,
    Request,
    TokenEstimate,
    Usage,
)


class Completion(backend.Completion):
    """The words that are still to come."""

    def __init__(self, words: list[str], finish: Finish):
        self.words = iter(words)
        self.finish = finish

    def next(self) -> list[Event]:
        """One word a call, so that a caller sees it at once; the end after the last."""
        word = next(self.words, None)
        return [Event_Finish(self.finish) if word is None else Event_Text(word)]


class Backend(exports.Backend):
    def describe(self) -> PluginInfo:
        features = ["chat", "completion", "stream"]
        model = ModelInfo("{{name}}", "echoes its prompt", None, None, features, [])
        return PluginInfo("{{name}}", "0.1.0", [model], [])

    def estimate(self, req: Request) -> TokenEstimate:
        return TokenEstimate(len(split(text(req))), CountSource.EXACT)

    def generate(self, req: Request) -> Completion:
        prompt = text(req)
        ends = [prompt.find(stop) for stop in req.params.stop if stop]
        words = split(prompt[: min((end for end in ends if end >= 0), default=None)])
        answer = words[: req.params.max_tokens]
        reason = FinishReason.STOP if len(answer) == len(words) else FinishReason.LENGTH
        usage = Usage(len(split(prompt)), len(answer), 0, 0, CountSource.EXACT)
        return Completion(answer, Finish(reason, usage, []))


def text(request: Request) -> str:
    """The text to echo: the prompt, or the last message of a chat."""
    if isinstance(request.prompt, Prompt_Text):
        found = request.prompt.value
    else:
        parts = request.prompt.value[-1].content if request.prompt.value else []
        found = "".join(part.value for part in parts if isinstance(part, Part_Text))
    if not found:
        message = "there is nothing to echo"
        raise Err(Error(ErrorKind.INVALID_REQUEST, message, None, "prompt", None, None, None))
    return found


def split(text: str) -> list[str]:
    """Words with the space behind them."""
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1][:-1]
    return [word for word in words if word]
