"""{{name}}: echoes the prompt, a word at a time. A token is a word here.

`max_tokens` and `stop` are honoured. There is nothing random in an echo, so
`temperature` and its like change nothing. What it cannot do is refused.
"""

import json

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
    Message,
    ModelInfo,
    Part_Text,
    PluginInfo,
    Prompt_Chat,
    Prompt_Text,
    Request,
    Role,
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


def refuse(request: Request) -> None:
    """Refuses what an echo cannot do: nothing that a caller asks for is dropped in silence.
    Take out what your model does."""
    params, prompt = request.params, request.prompt
    asked = {one.name: json.loads(one.value) for one in request.ext}
    messages = prompt.value if isinstance(prompt, Prompt_Chat) else []
    format = asked.get("response_format", {"type": "text"})
    refused = {
        # a penalty of 0 is none
        "frequency_penalty": bool(params.frequency_penalty),
        "presence_penalty": bool(params.presence_penalty),
        "tools": bool(request.tools),
        "tool_choice": asked.get("tool_choice", "auto") not in ("auto", "none"),
        "response_format": format != {"type": "text"},
        "reasoning_effort": "reasoning_effort" in asked,
        "verbosity": "verbosity" in asked,
        "messages": not all(map(is_text, messages)),
    }
    for param, is_refused in refused.items():
        if is_refused:
            raise error(ErrorKind.UNSUPPORTED, f"this model cannot do what {param} asks for", param)


def is_text(message: Message) -> bool:
    parts = all(isinstance(part, Part_Text) for part in message.content)
    return parts and message.role != Role.TOOL and not message.tool_calls


def text(request: Request) -> str:
    """The text to echo: the prompt, or the last message of a chat."""
    refuse(request)
    if isinstance(request.prompt, Prompt_Text):
        found = request.prompt.value
    else:
        parts = request.prompt.value[-1].content if request.prompt.value else []
        found = "".join(part.value for part in parts if isinstance(part, Part_Text))
    if not found:
        raise error(ErrorKind.INVALID_REQUEST, "there is nothing to echo", "prompt")
    return found


def error(kind: ErrorKind, message: str, param: str) -> Err:
    return Err(Error(kind, message, None, param, None, None, None))


def split(text: str) -> list[str]:
    """Words with the space behind them."""
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1][:-1]
    return [word for word in words if word]
