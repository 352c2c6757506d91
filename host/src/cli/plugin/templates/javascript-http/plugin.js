// {{name}}: an adapter to an API in the format of OpenAI's chat completions.
//
// Settings: `api_url`, the base of the API, and `model_name`, the model's name
// there. The key is added by the host; no plugin ever sees one.

import { get } from "model:plugin/config@0.1.0";
import { send } from "model:plugin/upstream@0.1.0";

// The answer came whole, so it is reported at once.
class Completion {
  constructor(events) {
    this.events = events;
  }

  next() {
    return this.events;
  }
}

function describe() {
  setting("api_url");
  const model = {
    id: setting("model_name"),
    description: "a model behind an OpenAI-style chat API",
    contextWindow: null,
    maxOutputTokens: null,
    features: ["chat"],
    ext: [],
  };
  return { name: "{{name}}", version: "0.1.0", models: [model], ext: [] };
}

function estimate() {
  throw error("unsupported", "this plugin does not estimate");
}

function generate(request) {
  refuse(request);
  const messages = request.prompt.val.map(({ role, content, ext }) => {
    // who of several of this role speaks
    const name = ext.find(({ name }) => name === "name");
    const said = { role, content: content.map((part) => part.val).join("") };
    return name ? { ...said, name: JSON.parse(name.value) } : said;
  });
  const { status, headers, body } = post(request, fields(request, messages));
  if (status !== 200) {
    throw refusal(status, headers, body);
  }
  return new Completion(answer(body, messages));
}

// What is asked for and has no place in the request to the API is refused: nothing
// is dropped in silence.
function refuse({ prompt, tools, ext }) {
  if (prompt.tag !== "chat") {
    throw error("unsupported", "this model chats; it does not continue text", "prompt");
  }
  const isText = ({ role, content, toolCalls }) =>
    role !== "tool" && toolCalls.length === 0 && content.every((part) => part.tag === "text");
  const choice = ext.find(({ name }) => name === "tool_choice")?.value ?? "null";
  const refused = {
    tools: tools.length > 0,
    tool_choice: !["auto", "none", null].includes(JSON.parse(choice)),
    messages: !prompt.val.every(isText),
  };
  const param = Object.keys(refused).find((name) => refused[name]);
  if (param !== undefined) {
    throw error("unsupported", `this model cannot do what ${param} asks for`, param);
  }
}

// The request's fields, as JSON. What the caller left out is left out here, and what the
// API cannot do it refuses itself.
function fields({ params, ext }, messages) {
  // a number of 32 bits, as short as it was
  const float = (value) => value && Number(value.toPrecision(7));
  const fields = {
    model: setting("model_name"),
    messages,
    max_tokens: params.maxTokens,
    temperature: float(params.temperature),
    top_p: float(params.topP),
    top_k: params.topK,
    frequency_penalty: float(params.frequencyPenalty),
    presence_penalty: float(params.presencePenalty),
    stop: params.stop.length > 0 ? params.stop : null,
  };
  const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined);
  const json = given.map(([name, value]) => [name, JSON.stringify(value)]);
  if (params.seed !== null && params.seed !== undefined) {
    json.push(["seed", BigInt.asIntN(64, BigInt(params.seed)).toString()]);
  }
  const known = ["response_format", "reasoning_effort", "verbosity"];
  json.push(...ext.filter(({ name }) => known.includes(name)).map(({ name, value }) => [name, value]));
  return `{${json.map(([name, value]) => `"${name}":${value}`).join()}}`;
}

// The whole answer to a request.
function post({ requestId, deadlineMs }, json) {
  const request = {
    method: "POST",
    url: `${setting("api_url").replace(/\/+$/, "")}/chat/completions`,
    headers: [["content-type", "application/json"], ["x-request-id", requestId]],
    timeoutMs: deadlineMs,
  };
  try {
    const { status, headers, body, rest } = send(request, encoded(json));
    const pieces = [body];
    for (let piece = rest?.read(); piece?.length; piece = rest.read()) {
      pieces.push(piece);
    }
    return { status, headers, body: pieces };
  } catch (thrown) {
    const { tag, val } = thrown.payload ?? {};
    switch (tag) {
      case "timeout":
        throw error("timeout", "the model's upstream did not answer in time");
      case "denied":
      case "unreachable":
        throw { ...error("upstream", "the model's upstream cannot be reached"), detail: val ?? tag };
      case "invalid":
        throw { ...error("internal", "the model is not configured correctly"), detail: val };
      case undefined:
        throw thrown;
      default:
        throw unusable(val ?? tag);
    }
  }
}

function answer(body, messages) {
  let json;
  try {
    json = JSON.parse(decoded(body));
  } catch (why) {
    throw unusable(String(why));
  }
  const choice = json?.choices?.[0];
  const { content, refusal } = choice?.message ?? {};
  // one that is cut while the model reasons says nothing, and is paid for
  const nothing = typeof choice?.finish_reason === "string" ? "" : undefined;
  const text = content ?? refusal ?? nothing;
  if (typeof text !== "string") {
    throw unusable("no content");
  }
  const reasons = { stop: "stop", length: "length", content_filter: "content-filter" };
  const estimated = {
    // some four bytes a token
    promptTokens: Math.ceil(encoded(JSON.stringify(messages)).length / 4),
    completionTokens: Math.ceil(encoded(text).length / 4),
    cachedPromptTokens: 0,
    reasoningTokens: 0,
    source: "estimated",
  };
  const finish = {
    reason: reasons[choice.finish_reason] ?? "other",
    usage: counted(json.usage) ?? estimated,
    ext: [],
  };
  return [{ tag: "text", val: text }, { tag: "finish", val: finish }];
}

// What the API counted, if it did.
function counted(usage) {
  const count = (value) => (Number.isInteger(value) && value >= 0 ? value : null);
  const prompt = count(usage?.prompt_tokens);
  const completion = count(usage?.completion_tokens);
  if (prompt === null || completion === null) {
    return null;
  }
  const reasoning = count(usage.completion_tokens_details?.reasoning_tokens);
  // some count reasoning beside the completion, where only the total has it
  const beside = Math.max((count(usage.total_tokens) ?? 0) - prompt - completion, 0);
  return {
    promptTokens: prompt,
    completionTokens: completion + Math.min(beside, reasoning ?? beside),
    cachedPromptTokens: count(usage.prompt_tokens_details?.cached_tokens) ?? 0,
    reasoningTokens: reasoning ?? 0,
    source: "exact",
  };
}

// What a status other than 200 means. What the API says of a refused key or of its own
// failure is nothing for the caller.
function refusal(status, headers, body) {
  const kinds = [
    [[400, 413, 422], "invalid-request", "refused the request"],
    [[401, 402, 403], "upstream-auth", "did not accept this server"],
    [[429], "rate-limited", "has too many requests"],
    [[503], "overloaded", "is overloaded"],
  ];
  const found = kinds.find(([statuses]) => statuses.includes(status));
  const [, kind, what] = found ?? [[], "upstream", "failed"];
  const wait = headers.find(([name]) => name === "retry-after")?.[1];
  const seconds = wait && /^\d{1,6}$/.exec(latin(wait));
  const waits = seconds && ["rate-limited", "overloaded"].includes(kind);
  return {
    ...error(kind, `the model's upstream ${what}`),
    retryAfterMs: waits ? Number(seconds[0]) * 1000 : null,
    upstreamStatus: status,
    detail: body.map(latin).join(""),
  };
}

function setting(name) {
  const value = get(name);
  if (!value) {
    throw error("invalid-request", `setting ${name} is missing`);
  }
  return value;
}

function error(kind, message, param = null) {
  return { kind, message, code: null, param, retryAfterMs: null, upstreamStatus: null, detail: null };
}

function unusable(detail) {
  return { ...error("upstream", "the model's upstream sent no usable answer"), detail };
}

// QuickJS has no TextEncoder and no TextDecoder.
function encoded(text) {
  // half of a character is none
  const whole = text.replace(/[\ud800-\udfff]/gu, "\ufffd");
  return Uint8Array.from(unescape(encodeURIComponent(whole)), (byte) => byte.charCodeAt(0));
}

function decoded(pieces) {
  return decodeURIComponent(escape(pieces.map(latin).join("")));
}

function latin(bytes) {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}

export const backend = { Completion, describe, estimate, generate };
