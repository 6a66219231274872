// The little window in which a speaker gets a name.

import { about, element, note } from "./page.js";

export async function nameSpeaker(segment, connection, transcript) {
  const dialog = element("naming");
  const isOver = !connection?.canAssign || segment.session !== connection.sessions;
  const { stores_voices: canStore } = await about();
  const storable = !isOver && canStore && connection.options.usesProfile;
  element("name").value = segment.person_id ?? "";
  element("remember").parentElement.hidden = !storable;
  const hint = element("naming-hint");
  hint.hidden = storable;
  hint.textContent = isOver
    ? "The session is over: the name is for this page and what you save of it."
    : "The name is for this session: no voices are stored.";
  const choice = await new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue);
    element("naming-cancel").onclick = () => dialog.close("");
    dialog.showModal();
  });
  const name = element("name").value.trim();
  if (!choice || (choice === "name" && !name)) return;
  if (isOver) {
    transcript.name(segment, choice === "user" ? "You" : name);
    return;
  }
  const person = choice === "user" ? "user" : name;
  if (!connection.assign(segment.speaker_id, person, storable && element("remember").checked)) {
    note("The connection was lost just then: give the name again when it is back.");
  }
}

export function tellAssigned({ is_user: isUser, person_id: person, stored, reason }) {
  const who = isUser ? "You" : person;
  note(stored ? `${who}: the voice is stored, and will be known next time.` : `${who}: named for this session. ${sentence(reason)}`);
}

function sentence(reason) {
  return reason ? `Not stored: ${reason}.` : "";
}
