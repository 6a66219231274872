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

export function forgetAbout() {
  aboutThis = null;
}

// In memory alone: a token that is written down somewhere can be read there.
let token = "";
const waiting = [];

export const currentToken = () => token;

// Ask for a token, again where the last one was refused.
export function askToken(reason) {
  token = "";
  const form = element("login");
  form.hidden = false;
  if (reason) element("token-hint").textContent = reason;
  element("token").focus();
  return new Promise((resolve) => waiting.push(resolve));
}

element("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = element("token");
  if (!field.value.trim()) return;
  token = field.value.trim();
  field.value = "";
  element("login").hidden = true;
  waiting.splice(0).forEach((resolve) => resolve(token));
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
