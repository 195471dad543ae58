// Sections by the address's fragment, and the key.

import { Refused, getJson, key } from "./api.js";
import * as approaches from "./approaches.js";
import * as counters from "./counters.js";
import { byId } from "./dom.js";
import * as playground from "./playground.js";
import * as replay from "./replay.js";

const SECTIONS = ["playground", "plans", "approaches", "counters"];

function show(name) {
  for (const section of ["login", ...SECTIONS]) byId(section).hidden = section !== name;
  for (const link of document.querySelectorAll(".top nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

async function route() {
  counters.pause();
  document.querySelector(".top nav").hidden = byId("forget").hidden = !opened;
  if (!opened) {
    show("login");
    byId("key").focus();
    return;
  }
  const [name, id] = location.hash.slice(1).split("/");
  const section = SECTIONS.includes(name) ? name : SECTIONS[0];
  show(section);
  if (section === "plans") await replay.show(id ? decodeURIComponent(id) : null);
  if (section === "counters") await counters.show();
}

let opened = false;

async function open() {
  try {
    const [known, models] = await Promise.all([getJson("optillm/approaches"), getJson("v1/models")]);
    approaches.fill(known.data);
    playground.fill(known.data, models.data);
    opened = true;
    byId("login-error").textContent = "";
  } catch (error) {
    key.forget();
    byId("login-error").textContent =
      error instanceof Refused ? error.message : "The proxy cannot be reached.";
  }
  await route();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key").value = "";
  open();
});

byId("forget").addEventListener("click", () => {
  key.forget();
  // What has been shown to the key's owner goes too.
  location.hash = "";
  location.reload();
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

addEventListener("hashchange", route);
if (key.get()) open();
else route();
