// The little window in which a speaker gets a name.

import { about, element, note } from "./page.js";

export async function nameSpeaker(segment, connection, transcript) {
  const isOver = () => connection.isOver || connection.hasClosedStream || segment.session !== connection.sessions;
  if (!isOver() && !connection.canAssign) {
    note("The connection is lost. Name the speaker when it is back.");
    return;
  }
  const { stores_voices: canStore } = await about();
  const storable = !isOver() && canStore && connection.options.usesProfile;
  const given = await ask(transcript.labelOf(segment), segment.person_id, storable ? "" : hintOf(isOver()));
  if (!given) return;
  const { isUser, name, store } = given;
  // The session may have ended while somebody was typing.
  if (isOver()) transcript.name(segment, name, isUser);
  else if (!connection.assign(segment.speaker_id, isUser ? "user" : name, storable && store)) {
    note("The connection was lost just then. Give the name again when it is back.");
  }
}

function hintOf(isOver) {
  return isOver
    ? "The session is over: the name is for this page, and for what you save of it."
    : "The name is for this session: no voices are stored.";
}

// Where there is a hint, nothing can be stored. Nothing is stored that was not ticked for this very voice.
async function ask(label, name, hint) {
  const dialog = element("naming");
  element("naming-title").textContent = `Who is “${label}”?`;
  element("name").value = name ?? "";
  element("remember").checked = false;
  element("remember").parentElement.hidden = Boolean(hint);
  element("naming-hint").hidden = !hint;
  element("naming-hint").textContent = hint;
  const choice = await new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue);
    element("naming-cancel").onclick = () => dialog.close("");
    dialog.showModal();
  });
  const given = { isUser: choice === "user", name: element("name").value.trim(), store: element("remember").checked };
  return choice === "user" || (choice === "name" && given.name) ? given : null;
}

export function tellAssigned({ is_user: isUser, person_id: person, stored, reason }, isWanted) {
  const here = isUser ? "You are marked for this session" : `${person} has this name for this session`;
  if (stored) note(`${isUser ? "Your voice" : `The voice of ${person}`} is stored, and will be recognised in later sessions.`);
  else if (isWanted) note(`${here}, but the voice was not stored: ${reason}.`);
  else note(`${here}.`);
}
