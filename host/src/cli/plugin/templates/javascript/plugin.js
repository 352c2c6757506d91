// {{name}}: echoes the prompt, a word at a time. A token is a word here.
//
// `maxTokens` and `stop` are honoured. There is nothing random in an echo, so
// `temperature` and its like change nothing.

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

// The text to echo: the prompt, or the last message of a chat.
function text({ prompt }) {
  const parts = prompt.tag === "text" ? [prompt] : (prompt.val.at(-1)?.content ?? []);
  const found = parts.filter((part) => part.tag === "text").map((part) => part.val).join("");
  if (found === "") {
    throw {
      kind: "invalid-request",
      message: "there is nothing to echo",
      code: null,
      param: "prompt",
      retryAfterMs: null,
      upstreamStatus: null,
      detail: null,
    };
  }
  return found;
}

// Words with the space behind them.
function split(text) {
  return text.match(/[^ ]* |[^ ]+$/g) ?? [];
}

export const backend = { Completion, describe, estimate, generate };
