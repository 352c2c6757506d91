"""{{name}}: an adapter to an API in the format of OpenAI's chat completions.

Settings: `api_url`, the base of the API, and `model_name`, the model's name
there. The key is added by the host; no plugin ever sees one.
"""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import backend
from wit_world.imports import config, upstream
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
    Request,
    Role,
    TokenEstimate,
    Usage,
)

REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class Completion(backend.Completion):
    """The answer came whole, so it is reported at once."""

    def __init__(self, events: list[Event]):
        self.events = events

    def next(self) -> list[Event]:
        return self.events


class Backend(exports.Backend):
    def describe(self) -> PluginInfo:
        setting("api_url")
        description = "a model behind an OpenAI-style chat API"
        model = ModelInfo(setting("model_name"), description, None, None, ["chat"], [])
        return PluginInfo("{{name}}", "0.1.0", [model], [])

    def estimate(self, req: Request) -> TokenEstimate:
        raise error(ErrorKind.UNSUPPORTED, "this plugin does not estimate")

    def generate(self, req: Request) -> Completion:
        refuse(req)
        messages = [spoken(message) for message in req.prompt.value]
        status, headers, answered = post(req, body(req, messages))
        if status != 200:
            raise refusal(status, headers, answered)
        return Completion(answer(answered, messages))


def refuse(request: Request) -> None:
    """What is asked for and has no place in the request to the API is refused: nothing
    is dropped in silence."""
    if not isinstance(request.prompt, Prompt_Chat):
        message = "this model chats; it does not continue text"
        raise error(ErrorKind.UNSUPPORTED, message, "prompt")
    choices = [json.loads(one.value) for one in request.ext if one.name == "tool_choice"]
    refused = {
        "tools": bool(request.tools),
        "tool_choice": any(choice not in ("auto", "none") for choice in choices),
        "messages": not all(map(is_text, request.prompt.value)),
    }
    for param, is_refused in refused.items():
        if is_refused:
            message = f"this model cannot do what {param} asks for"
            raise error(ErrorKind.UNSUPPORTED, message, param)


def is_text(message: Message) -> bool:
    parts = all(isinstance(part, Part_Text) for part in message.content)
    return parts and message.role != Role.TOOL and not message.tool_calls


def spoken(message: Message) -> dict:
    """A message as the API wants it. Its name tells who of several of this role speaks."""
    names = {one.name: json.loads(one.value) for one in message.ext if one.name == "name"}
    content = "".join(part.value for part in message.content)
    return {"role": message.role.name.lower(), "content": content, **names}


def body(request: Request, messages: list) -> bytes:
    """The request's body. What the caller left out is left out here, and what the API cannot
    do it refuses itself."""
    params = request.params
    seed = params.seed
    fields = {
        "model": setting("model_name"),
        "messages": messages,
        "max_tokens": params.max_tokens,
        "temperature": short(params.temperature),
        "top_p": short(params.top_p),
        "top_k": params.top_k,
        # these are the bits of one with a sign
        "seed": seed - (1 << 64) if seed is not None and seed >> 63 else seed,
        "frequency_penalty": short(params.frequency_penalty),
        "presence_penalty": short(params.presence_penalty),
        "stop": params.stop or None,
    }
    known = ("response_format", "reasoning_effort", "verbosity")
    fields |= {one.name: json.loads(one.value) for one in request.ext if one.name in known}
    given = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(given, ensure_ascii=False).encode()


def short(value: float | None) -> float | None:
    """A number of 32 bits, as short as it was."""
    return None if value is None else float(f"{value:.7g}")


def post(request: Request, body: bytes) -> tuple[int, dict[str, bytes], bytes]:
    """The status, headers and body of the whole answer to a request."""
    url = setting("api_url").rstrip("/") + "/chat/completions"
    headers = [("content-type", "application/json"), ("x-request-id", request.request_id)]
    sent = upstream.Request("POST", url, headers, request.deadline_ms)
    try:
        response = upstream.send(sent, body)
        answered = response.body
        if response.rest is not None:
            with response.rest as rest:
                while piece := rest.read():
                    answered += piece
    except Err as failed:
        raise failure(failed.value) from None
    return response.status, dict(response.headers), answered


def failure(failed: upstream.Failure) -> Err:
    """The error that a failed exchange is."""
    detail = getattr(failed, "value", type(failed).__name__)
    match failed:
        case upstream.Failure_Timeout():
            return error(ErrorKind.TIMEOUT, "the model's upstream did not answer in time")
        case upstream.Failure_Denied() | upstream.Failure_Unreachable():
            message = "the model's upstream cannot be reached"
            return error(ErrorKind.UPSTREAM, message, detail=detail)
        case upstream.Failure_Invalid():
            message = "the model is not configured correctly"
            return error(ErrorKind.INTERNAL, message, detail=detail)
        case _:
            return unusable(detail)


def answer(body: bytes, messages: list) -> list[Event]:
    try:
        whole = json.loads(body)
        choice = whole["choices"][0]
        reason, message = choice.get("finish_reason"), choice["message"]
        said = [message.get("content"), message.get("refusal")]
    except (ValueError, LookupError, TypeError, AttributeError) as why:
        raise unusable(repr(why)) from None
    # one that is cut while the model reasons says nothing, and is paid for
    said.append("" if isinstance(reason, str) else None)
    text = next((text for text in said if text is not None), None)
    if not isinstance(text, str):
        raise unusable("no content")
    asked = json.dumps(messages, ensure_ascii=False, separators=(",", ":"))
    estimated = Usage(guess(asked), guess(text), 0, 0, CountSource.ESTIMATED)
    reason = REASONS.get(reason, FinishReason.OTHER)
    finish = Finish(reason, counted(whole.get("usage")) or estimated, [])
    return [Event_Text(text), Event_Finish(finish)]


def guess(text: str) -> int:
    """Some four bytes a token."""
    return (len(text.encode(errors="replace")) + 3) // 4


def counted(usage: dict | None) -> Usage | None:
    """What the API counted, if it did."""

    def count(*path: str) -> int | None:
        found = usage
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, int) and found >= 0 else None

    prompt, completion = count("prompt_tokens"), count("completion_tokens")
    if prompt is None or completion is None:
        return None
    reasoning = count("completion_tokens_details", "reasoning_tokens")
    # some count reasoning beside the completion, where only the total has it
    beside = max((count("total_tokens") or 0) - prompt - completion, 0)
    completion += beside if reasoning is None else min(beside, reasoning)
    cached = count("prompt_tokens_details", "cached_tokens") or 0
    return Usage(prompt, completion, cached, reasoning or 0, CountSource.EXACT)


def refusal(status: int, headers: dict[str, bytes], body: bytes) -> Err:
    """What a status other than 200 means. What the API says of a refused key or of its own
    failure is nothing for the caller."""
    match status:
        case 400 | 413 | 422:
            kind, what = ErrorKind.INVALID_REQUEST, "refused the request"
        case 401 | 402 | 403:
            kind, what = ErrorKind.UPSTREAM_AUTH, "did not accept this server"
        case 429:
            kind, what = ErrorKind.RATE_LIMITED, "has too many requests"
        case 503:
            kind, what = ErrorKind.OVERLOADED, "is overloaded"
        case _:
            kind, what = ErrorKind.UPSTREAM, "failed"
    wait = None
    if kind in (ErrorKind.RATE_LIMITED, ErrorKind.OVERLOADED):
        seconds = headers.get("retry-after", b"")
        wait = int(seconds) * 1000 if seconds.isdigit() and len(seconds) < 7 else None
    said = body.decode(errors="replace")
    return Err(Error(kind, f"the model's upstream {what}", None, None, wait, status, said))


def setting(name: str) -> str:
    value = config.get(name)
    if not value:
        raise error(ErrorKind.INVALID_REQUEST, f"setting {name} is missing")
    return value


def error(
    kind: ErrorKind, message: str, param: str | None = None, detail: str | None = None
) -> Err:
    return Err(Error(kind, message, None, param, None, None, detail))


def unusable(detail: str) -> Err:
    message = "the model's upstream sent no usable answer"
    return error(ErrorKind.UPSTREAM, message, detail=detail)
