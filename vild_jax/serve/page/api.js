// Talks to the service. Addresses are relative, so that the page also works below a prefix of a proxy.

let token = ''; // kept until the page is left
let askForToken = async () => '';

/** Sets what asks the user for the token of a service that wants one: async () => text, '' for none. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

/** A refusal by the service, or no answer at all (status 0). */
export class ServiceError extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

async function send(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServiceError(0, 'The service does not answer. Is it still running?');
  }
  if (answer.status === 401) {
    token = (await askForToken()).replace(/[^!-~]/g, ''); // no token has other signs, which no header can hold either
    if (token) return send(path, options);
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new ServiceError(answer.status, told?.error?.reason ?? answer.statusText);
  }
  return answer;
}

/** Returns what the service says of its model. */
export const about = async () => (await send('v1/about')).json();

/** Returns the example pictures [{name, ...}]. */
export const examples = async () => (await send('v1/examples')).json();

/** Returns an example picture, the Blob of a PNG. */
export const example = async (name) => (await send(`v1/examples/${encodeURIComponent(name)}.png`)).blob();

/**
 * Returns the answer to a request about a picture {blob, name, id}, and sets its id.
 *
 * A picture that the service still holds is named by its id; it is sent where there is none, or it is no longer held.
 */
export async function detect(picture, request, signal) {
  const held = picture.id;
  let answer;
  if (held) {
    try {
      const body = JSON.stringify({ ...request, image_id: held });
      answer = await send('v1/detect', {
        method: 'POST', body, signal, headers: { 'Content-Type': 'application/json' },
      });
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  if (!answer) {
    const body = new FormData();
    body.append('request', JSON.stringify(request));
    body.append('image', picture.blob, picture.name);
    answer = await send('v1/detect', { method: 'POST', body, signal });
  }
  const found = await answer.json();
  picture.id = found.image.id;
  return found;
}
