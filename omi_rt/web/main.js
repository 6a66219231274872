// The page: which of its three parts is shown, and what is remembered of who speaks.

import { about, element } from "./page.js";
import { beginTalk } from "./talk.js";
import { beginVoice } from "./voice.js";
import { beginWatch, endWatch } from "./watch.js";

let shown = null;

function show() {
  if (shown === location.href) return; // one step may be told of twice
  shown = location.href;
  const watched = new URLSearchParams(location.search).get("watch");
  const wanted = location.hash.slice(1) || (watched ? "watch" : "talk");
  const view = document.querySelector(`[data-panel="${CSS.escape(wanted)}"]`) ? wanted : "talk";
  for (const panel of document.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== view;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  endWatch();
  if (view === "watch") beginWatch(watched);
  if (view === "voice") beginVoice();
}

// Links between sessions stay in this page: a token that is kept in memory alone would be gone.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='/']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  show();
});

// The name and the language, so that they need not be given each time; never the token.
function remember(id) {
  const field = element(id);
  try {
    field.value = localStorage.getItem(`omi_rt.${id}`) ?? field.value;
    field.addEventListener("change", () => localStorage.setItem(`omi_rt.${id}`, field.value));
  } catch {
    // A browser that keeps nothing is told each time.
  }
}

remember("uid");
remember("language");
beginTalk();
window.addEventListener("hashchange", show);
window.addEventListener("popstate", show);
show();
// With a login the token says who it is.
about().then(({ asks_token: asks }) => { element("uid-field").hidden = asks; }, () => {});
