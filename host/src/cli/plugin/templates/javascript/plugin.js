// {{name}}: echoes the prompt, a word at a time. A token is a word here.
//
// `maxTokens` and `stop` are honoured. There is nothing random in an echo, so
// `temperature` and its like change nothing. What it cannot do is refused.

class Completion {
  constructor(words, finish) {
    this.words = words;
    this.finish = finish;
  }

  // One word a call, so that a caller sees it at once; the end after the last.
  next() {
    const word = this.words.shift();
    return [word === undefined ? { tag: "finish", val: this.finish } : { tag: "text", val: word }];
  }
}

function describe() {
  const model = {
    id: "{{name}}",
    description: "echoes its prompt",
    contextWindow: null,
    maxOutputTokens: null,
    features: ["chat", "completion", "stream"],
    ext: [],
  };
  return { name: "{{name}}", version: "0.1.0", models: [model], ext: [] };
}

function estimate(request) {
  return { promptTokens: split(text(request)).length, source: "exact" };
}

function generate(request) {
  const { stop, maxTokens } = request.params;
  const prompt = text(request);
  const ends = stop.filter((one) => one !== "" && prompt.includes(one)).map((one) => prompt.indexOf(one));
  const words = split(prompt.slice(0, Math.min(prompt.length, ...ends)));
  const answer = words.slice(0, maxTokens ?? words.length);
  const usage = {
    promptTokens: split(prompt).length,
    completionTokens: answer.length,
    cachedPromptTokens: 0,
    reasoningTokens: 0,
    source: "exact",
  };
  const reason = answer.length === words.length ? "stop" : "length";
  return new Completion(answer, { reason, usage, ext: [] });
}

// Refuses what an echo cannot do: nothing that a caller asks for is dropped in silence.
// Take out what your model does.
function refuse({ prompt, params, tools, ext }) {
  const asked = Object.fromEntries(ext.map(({ name, value }) => [name, JSON.parse(value)]));
  const messages = prompt.tag === "chat" ? prompt.val : [];
  const isText = ({ role, content, toolCalls }) =>
    role !== "tool" && toolCalls.length === 0 && content.every((part) => part.tag === "text");
  const refused = {
    // a penalty of 0 is none
    frequency_penalty: Boolean(params.frequencyPenalty),
    presence_penalty: Boolean(params.presencePenalty),
    tools: tools.length > 0,
    tool_choice: !["auto", "none", undefined].includes(asked.tool_choice),
    response_format: (asked.response_format?.type ?? "text") !== "text",
    reasoning_effort: "reasoning_effort" in asked,
    verbosity: "verbosity" in asked,
    messages: !messages.every(isText),
  };
  const param = Object.keys(refused).find((name) => refused[name]);
  if (param !== undefined) {
    throw error("unsupported", `this model cannot do what ${param} asks for`, param);
  }
}

// The text to echo: the prompt, or the last message of a chat.
function text(request) {
  refuse(request);
  const { prompt } = request;
  const parts = prompt.tag === "text" ? [prompt] : (prompt.val.at(-1)?.content ?? []);
  const found = parts.filter((part) => part.tag === "text").map((part) => part.val).join("");
  if (found === "") {
    throw error("invalid-request", "there is nothing to echo", "prompt");
  }
  return found;
}

function error(kind, message, param) {
  return { kind, message, code: null, param, retryAfterMs: null, upstreamStatus: null, detail: null };
}

// Words with the space behind them.
function split(text) {
  return text.match(/[^ ]* |[^ ]+$/g) ?? [];
}

export const backend = { Completion, describe, estimate, generate };
