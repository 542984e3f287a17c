// The public API, as any client sees it. Everything the pages know comes through here.

import { askForKey, forgetKey, storedKey } from "./keys.js";

// The service's root, also behind a proxy that puts it under a path.
const ROOT = new URL("../../", import.meta.url);
const RETRY_SECONDS = [0.5, 1, 2, 4, 8];

/** What the service refused: `problem` is its RFC 9457 body; `status` 0 where it could not be reached. */
export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `the service answered ${status}`);
    this.status = status;
    this.problem = problem;
  }

  /** What was wrong with one field, by its JSON pointer; null where nothing was. */
  at(pointer) {
    return this.problem.errors?.find((error) => error.pointer === pointer)?.detail ?? null;
  }
}

/** The address of `path` (no slash before it) with `query`; lists are repeated, null is left out. */
export function address(path, query = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") url.searchParams.append(name, String(one));
    }
  }
  return url;
}

async function send(url, options) {
  for (;;) {
    const key = storedKey();
    const headers = { Accept: "application/json", ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(url, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { title: "The service cannot be reached", detail: "The service cannot be reached. Is `growthlaw serve` running?" });
    }
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({ title: response.statusText }));
    if (response.status === 401) {
      if (storedKey() === key) forgetKey();
      if (storedKey() || (await askForKey(problem.detail))) continue;
    }
    throw new ApiError(response.status, problem);
  }
}

async function call(method, path, { query, body, headers = {}, signal } = {}) {
  const isForm = body instanceof FormData;
  const response = await send(address(path, query), {
    method, signal,
    headers: { ...headers, ...(body === undefined || isForm ? {} : { "Content-Type": "application/json" }) },
    body: body === undefined ? undefined : isForm ? body : JSON.stringify(body),
  });
  return response.status === 204 ? null : response.json();
}

export const get = (path, query, options) => call("GET", path, { query, ...options });
export const post = (path, body, options) => call("POST", path, { body, ...options });
export const patch = (path, body, options) => call("PATCH", path, { body, ...options });
export const remove = (path, query, options) => call("DELETE", path, { query, ...options });

/** POST once, however often it is sent: for what starts jobs, runs or refits. */
export const postOnce = (path, body, options = {}) =>
  post(path, body, { ...options, headers: { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, ...options.headers } });

/** POST a form and tell how much of it has been sent: `onProgress(share)`, 0 to 1; then the answer is being made. */
export async function upload(path, form, { query, onProgress = () => {}, signal } = {}) {
  for (;;) {
    const key = storedKey();
    const request = await sent(address(path, query), form, key, onProgress, signal);
    const answer = request.response ?? { title: request.statusText };
    if (request.status >= 200 && request.status < 300) return answer;
    if (request.status === 0) throw new ApiError(0, { title: "The service cannot be reached", detail: "The service cannot be reached. Is `growthlaw serve` running?" });
    if (request.status === 401) {
      if (storedKey() === key) forgetKey();
      if (storedKey() || (await askForKey(answer.detail))) continue;
    }
    throw new ApiError(request.status, answer);
  }
}

// fetch does not tell how much of a body has been sent.
function sent(url, form, key, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.responseType = "json";
    request.setRequestHeader("Accept", "application/json");
    if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onloadend = () => (signal?.aborted ? reject(new DOMException("aborted", "AbortError")) : resolve(request));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/** All rows of a listing, page by page, `most` at most. */
export async function listAll(path, query = {}, { most = 5000, signal } = {}) {
  const rows = [];
  let after = null;
  do {
    const page = await get(path, { limit: Math.min(1000, most), ...query, after }, { signal });
    rows.push(...page.data);
    after = page.has_more ? page.next : null;
  } while (after && rows.length < most);
  return rows;
}

/**
 * Follow an event stream: `onEvent({event, data, id})` for each, to its `end` event or until `signal` aborts; from behind the
 * event `after` where that is given. A stream that breaks is taken up behind its last event; `onState("open" | "lost")` tells
 * how it stands.
 */
export async function follow(path, { onEvent, onState = () => {}, after = null, signal }) {
  let lastId = after;
  let failures = 0;
  for (;;) {
    const stream = await opened(path, lastId, signal);
    if (stream) {
      onState("open");
      for (;;) {
        // What the page makes of an event may fail too: that is no broken stream, and is not tried again.
        const step = await stream.next().catch(() => ({ done: true }));
        if (step.done || signal?.aborted) break;
        failures = 0;
        if (step.value.id) lastId = step.value.id;
        onEvent(step.value);
        if (step.value.event === "end") return void stream.return();
      }
    }
    if (signal?.aborted) return;
    onState("lost");
    const seconds = RETRY_SECONDS[Math.min(failures, RETRY_SECONDS.length - 1)];
    failures += 1;
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

/** The events of a stream; null where the service is away for now. */
async function opened(path, lastId, signal) {
  try {
    const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
    return eventsOf((await send(address(path), { method: "GET", headers, signal })).body);
  } catch (error) {
    if (signal?.aborted || (error instanceof ApiError && (error.status === 0 || error.status >= 500))) return null;
    throw error;
  }
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value.replaceAll("\r\n", "\n");
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const event = parsed(text.slice(0, end));
        text = text.slice(end + 2);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  const event = { event: "message", data: "", id: null };
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "data") event.data += (event.data ? "\n" : "") + value;
    else if (name === "event" || name === "id") event[name] = value;
  }
  return event.data ? { ...event, data: JSON.parse(event.data) } : null;
}
