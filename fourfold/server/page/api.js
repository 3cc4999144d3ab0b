// The server's public API, as far as the page needs it: which models there are, and one answer as it comes.

const KEY = "fourfold.key";

/** The API key, kept for this tab only; asked for when the server answers 401. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** What went wrong, as one line a person can read. `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

/**
 * The models: [{id, can, thinking}]. `can` is a Set of image, audio, video (to be shown), draw, film (to be made) and thinking;
 * `thinking` is settled by some names. Both are null where the server does not say.
 */
export async function models() {
  const list = (await (await request("v1/models")).json()).data ?? [];
  return list.map(({ id, capabilities, thinking }) => ({
    id,
    can: Array.isArray(capabilities) ? new Set(capabilities) : null,
    thinking: typeof thinking === "boolean" ? thinking : null,
  }));
}

/** One answer: the chunks of a streamed chat completion in order. Leaving the loop, or `signal`, ends it on the server too. */
export async function* answer(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(asked), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(500, lineOf(chunk.error));
    yield chunk;
  }
  throw new ApiError(0, "The connection ended before the answer did.");
}

/** The data of each server-sent event. Comments (": keep-alive") and empty lines say nothing. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (!line && data.length) yield data.splice(0).join("\n");
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

async function request(path, options = {}) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const said = lineOf(body?.error ?? body?.detail) || `The server answered ${response.status} ${response.statusText}`.trim();
  const wait = Number(response.headers.get("Retry-After"));
  return new ApiError(response.status, wait > 0 ? `${ended(said)} Try again in ${wait} s.` : said);
}

function lineOf(error) {
  const said = typeof error === "string" ? error : error?.message ?? "";
  return said.replace(/\s+/g, " ").trim();
}

const ended = (line) => (/[.!?]$/.test(line) ? line : `${line}.`);
