// The proxy's HTTP routes. The key is kept for this tab only, and sent to this proxy only.

const KEPT = "optillm-key";

export const key = {
  get: () => sessionStorage.getItem(KEPT),
  set: (value) => sessionStorage.setItem(KEPT, value),
  forget: () => sessionStorage.removeItem(KEPT),
};

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const at = (path) => new URL(path, new URL(".", location.href));

async function send(path, options = {}) {
  const response = await fetch(at(path), {
    ...options,
    credentials: "omit",
    cache: "no-store",
    headers: { authorization: `Bearer ${key.get()}`, "content-type": "application/json" },
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text();
  return new Refused(response.status, messageIn(text) ?? `The proxy answered ${response.status}.`);
}

function messageIn(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return null;
  }
}

export const getJson = async (path) => (await send(path)).json();

// Calls `onChunk` with each chunk of a streamed answer. Returns the id of the call.
export async function stream(body, { signal, onId, onChunk }) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  onId(response.headers.get("x-litellm-call-id"));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(Number(chunk.error.code) || 500, chunk.error.message);
      onChunk(chunk);
    }
  }
}
