// What all parts of the page share: its elements, who speaks, and what this server wants.

export const element = (id) => document.getElementById(id);

let aboutThis = null;

// What the server says of itself; asked once, and again while it could not be.
export async function about() {
  if (!aboutThis) {
    const answer = await fetch("/web/about");
    aboutThis = await answer.json();
  }
  return aboutThis;
}

// In memory alone: a token that is written down somewhere can be read there.
let token = "";
const waiting = [];

export const currentToken = () => token;

// Ask for a token, again where the last one was refused. Fails if none is given.
export function askToken(reason) {
  token = "";
  element("login").hidden = false;
  element("token-error").hidden = !reason;
  element("token-error").textContent = reason ?? "";
  element("token").focus();
  return new Promise((resolve, reject) => waiting.push({ resolve, reject }));
}

function answerAll(answer) {
  element("token").value = "";
  element("login").hidden = true;
  waiting.splice(0).forEach(answer);
}

element("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = element("token").value.trim();
  if (!given) return;
  token = given;
  answerAll(({ resolve }) => resolve(given));
});

element("token-cancel").addEventListener("click", () => {
  answerAll(({ reject }) => reject(new Error("No token was given.")));
});

export async function tokenIfAsked() {
  const { asks_token: asks } = await about();
  return asks ? token || askToken() : "";
}

export const uid = () => element("uid").value.trim() || "me";

export function say(where, text, state = "idle") {
  const target = element(where);
  if (target.textContent !== text) target.textContent = text;
  target.dataset.state = state;
}

export function note(text) {
  element("note").textContent = text;
  element("note").hidden = !text;
}

// What went wrong here, for a person.
export function sayError(error) {
  if (error.name === "NotAllowedError") return "The browser does not let this page use the microphone. Allow it in the address bar.";
  if (error.name === "NotFoundError") return "There is no microphone.";
  if (error.name === "NotReadableError") return "The microphone cannot be used now. Another program may have it.";
  if (error instanceof TypeError || error instanceof SyntaxError) return "The server cannot be reached.";
  return error.message;
}

// A reason of the server's, which begins small and ends without a stop, as a sentence.
export function sentence(reason) {
  return `${reason.charAt(0).toUpperCase()}${reason.slice(1).replace(/\.$/u, "")}.`;
}
