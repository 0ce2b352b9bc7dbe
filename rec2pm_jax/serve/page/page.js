"use strict";

// One user at a time: every answer replaces what the page shows. Text of the data is only ever set as
// text, never as HTML.

const WANTED = 10; // items of a column
const MAX_EVENTS = 200; // of the history
const DAY = 86400;
const FRESH = 30 * DAY; // users with newer events are asked for now, others after their last event

const RECOMMENDATIONS = { // the first column, with and without a memory
  "memory and recent events": ["Recommendations", "From the memory and the recent events."],
  "recent events only": ["Recommendations", "From the recent events."],
};

const COLUMNS = {
  "memory only": ["Memory alone", "What the memory expects by itself."],
  "recent events only": ["Recent events alone", "The same model with an empty memory."],
};

const $ = (id) => document.getElementById(id);
const state = { model: null, user: null, described: null, ranks: {}, request: 0, shown: 0 };

// --- requests ---

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The service does not answer. Check that it is running, and try again.");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  const reason = answer && (answer.error || answer.detail);
  throw new Error(typeof reason === "string" ? sentence(reason) : `The service answered with status ${response.status}.`);
}

const query = (path, fields) => `${path}?${new URLSearchParams(fields)}`;

function sentence(text) {
  const start = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}

// --- elements ---

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Titles in capitals only are hard to read in a list.
function readable(title) {
  const isLoud = title.length > 3 && title === title.toUpperCase() && /[A-Z]{3}/.test(title);
  return isLoud ? title.charAt(0) + title.slice(1).toLowerCase() : title;
}

const number = (value) => value.toLocaleString("en");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

function date(seconds) {
  if (seconds === null) return "";
  const options = { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" };
  return new Date(seconds * 1000).toLocaleDateString("en-GB", options);
}

let hideStatus = 0;

function say(text) {
  $("error").textContent = "";
  $("status").textContent = text;
  clearTimeout(hideStatus);
  hideStatus = setTimeout(() => { $("status").textContent = ""; }, 6000);
}

function complain(error) {
  $("status").textContent = "";
  $("error").textContent = error.message;
}

// --- time ---

function askedTime() {
  if (!state.model.uses_times) return null;
  const seconds = Date.parse(`${$("time").value}Z`) / 1000;
  if (Number.isNaN(seconds)) throw new Error("Give a time, for example with the date picker.");
  return seconds;
}

function setTime(seconds) { // to the minute, and no earlier
  $("time").value = new Date(Math.ceil(seconds / 60) * 60000).toISOString().slice(0, 16);
}

function usualTime(lastTime) {
  const now = Math.floor(Date.now() / 1000);
  if (lastTime === null) return now;
  return now - lastTime < FRESH ? Math.max(now, lastTime) : lastTime + DAY;
}

// --- what is shown of a user ---

async function showUser(user) {
  const isNew = user !== state.user;
  const mine = ++state.request;
  document.body.classList.add("busy");
  try {
    const described = await ask(query("history", { user, limit: MAX_EVENTS }));
    if (isNew && mine === state.request) setTime(usualTime(described.last_time));
    const request = { user, recommend: Math.min(WANTED, state.model.items) };
    const time = askedTime();
    if (time !== null) request.time = time;
    const { columns } = await ask("compare", request);
    if (mine !== state.request) return null; // another request has begun since
    if (isNew) startUser(user);
    draw(described, columns);
    $("error").textContent = "";
    return described;
  } catch (error) {
    if (mine === state.request) complain(error);
    return null;
  } finally {
    if (mine === state.request) document.body.classList.remove("busy");
  }
}

function startUser(user) {
  Object.assign(state, { user, described: null, ranks: {} });
  state.shown = matchMedia("(max-width: 46rem)").matches ? 5 : 10;
  $("user").value = user;
  $("status").textContent = "";
  window.history.replaceState(null, "", query("", { user }));
  document.title = `User ${user} · Preference memory`;
}

function draw(described, columns) {
  $("start").hidden = true;
  for (const id of ["stored", "columns", "hint"]) $(id).hidden = false;
  drawStored(described);
  const focused = focusPlace();
  const drawn = [drawHistory(described), ...drawColumns(columns)];
  $("columns").replaceChildren(...drawn);
  restoreFocus(focused);
  state.described = described;
}

function drawStored(described) {
  const { events, updates, pending } = described;
  const { read_length: room, stores_memory: stores } = state.model;
  $("stored-title").textContent = `User ${described.user}`;
  const archived = events - pending;
  let text = "No events yet. New users get the most frequent items.";
  if (events && !stores) text = `${plural(events, "event")}. This model keeps no memory.`;
  else if (events && !updates) text = `${plural(events, "event")}, all read raw. The memory is empty.`;
  else if (events) {
    text = `${plural(events, "event")}. ${plural(updates, "update")} put the oldest ${number(archived)} ` +
      `into the memory; the newest ${pending === 1 ? "one is" : `${number(pending)} are`} read raw.`;
  }
  $("counts").textContent = text;
  const left = room + 1 - pending;
  $("next").textContent = stores ? `${plural(left, "more event")} until the next update of the memory.` : "";
  $("strip").hidden = !stores;
  const grew = state.described && updates > state.described.updates;
  const memory = element("span", { class: `memory${updates ? "" : " empty"}${grew ? " changed" : ""}` });
  $("memory").querySelector(".bar").replaceChildren(memory);
  const cells = Array.from({ length: Math.min(room, 64) }, (_, at) =>
    element("span", { class: at < pending ? "event" : null }));
  $("recent").querySelector(".bar").replaceChildren(...cells);
}

function drawHistory(described) {
  const events = described.last_events;
  let day = "";
  const rows = events.slice(0, state.shown).map((event) => {
    const isSame = date(event.time) === day;
    day = date(event.time);
    const when = element("span", { class: isSame ? "hidden" : null }, day); // once for each day
    if (event.item === null) return element("li", { class: "unknown" }, event.title);
    return itemRow(event, null, event.type || "", when);
  });
  const list = element("div", {}, element("ol", { class: "items" }, ...rows));
  const column = drawColumn("history", "history", "History", "Newest first.", list);
  if (events.length > state.shown) {
    const more = element("button", { type: "button", class: "more" }, "Show more");
    more.addEventListener("click", () => {
      state.shown += 20;
      column.replaceWith(drawHistory(described));
      focusOn({ column: "history", index: state.shown - 20 });
    });
    list.append(more);
  } else if (described.events > events.length) {
    const older = plural(described.events - events.length, "older event");
    list.append(element("p", { class: "note quiet" }, `${older} not shown.`));
  }
  return column;
}

function drawColumn(name, kind, title, what, list) {
  const id = `column-${name.replaceAll(/\W+/g, "-")}`;
  return element("section", { class: `column ${kind}`, "data-column": name, "aria-labelledby": id },
    element("h2", { id, tabindex: "-1" }, title),
    element("p", { class: "what" }, what),
    list);
}

function drawColumns(columns) {
  const best = new Set(columns[0].items.map((item) => item.item));
  return columns.map((column, index) => {
    const [title, what] = index ? COLUMNS[column.name] || otherRun(column.name) : RECOMMENDATIONS[column.name];
    const before = state.ranks[column.name];
    const rows = column.items.map(({ item, title: name, score }, rank) => {
      const side = score === null ? "" : score.toFixed(1);
      return itemRow({ item, title: name }, rank + 1, ...movement(before, item, rank), side);
    });
    state.ranks[column.name] = column.items.map(({ item }) => item);
    const shared = column.items.filter(({ item }) => best.has(item)).length;
    const share = index && rows.length ? ` ${shared} of ${rows.length} as recommended.` : "";
    const list = element("div", {}, element("ol", { class: "items" }, ...rows));
    if (column.note) list.prepend(element("p", { class: "note" }, sentence(column.note)));
    return drawColumn(column.name, index ? "" : "main", title, what + share, list);
  });
}

function otherRun(name) {
  const [, what, run] = /^(.*) \((.*)\)$/.exec(name) || [null, name, name];
  return [what.charAt(0).toUpperCase() + what.slice(1), `Another model: run ${run}.`];
}

// What has changed since the last answer: an arrow to see and words to hear.
function movement(before, item, rank) {
  const old = before && before.length ? before.indexOf(item) : rank;
  if (old === rank) return [];
  const steps = Math.abs(old - rank);
  const [arrow, words] = old < 0 ? ["new", "new"]
    : old > rank ? [`↑${steps}`, `up ${steps}`] : [`↓${steps}`, `down ${steps}`];
  return [element("span", { class: "move", "aria-hidden": "true" }, arrow), element("span", { class: "hidden" }, ` ${words} `)];
}

function itemRow({ item, title }, rank, ...side) {
  const parts = [
    element("span", { class: "title" }, readable(title)),
    element("span", { class: "side" }, ...side),
  ];
  if (rank !== null) parts.unshift(element("span", { class: "rank", "aria-hidden": "true" }, String(rank)));
  return element("li", {}, element("button", { type: "button", "data-item": item, title: `Add ${title} as an event` }, ...parts));
}

// --- focus stays where it was ---

function focusPlace() {
  const button = document.activeElement.closest && document.activeElement.closest(".items button");
  if (!button) return null;
  const column = button.closest(".column");
  const buttons = [...column.querySelectorAll(".items button")];
  return { column: column.dataset.column, index: buttons.indexOf(button), item: button.dataset.item };
}

function restoreFocus(place) {
  if (place) focusOn(place);
}

function focusOn({ column, index, item }) {
  const found = [...document.querySelectorAll(".column")].find((c) => c.dataset.column === column);
  if (!found) return;
  const buttons = [...found.querySelectorAll(".items button")];
  const target = buttons.find((b) => b.dataset.item === item) || buttons[Math.min(index, buttons.length - 1)];
  (target || found.querySelector("h2")).focus({ preventScroll: true });
}

// --- what a person does ---

async function addEvent(item, title) {
  if (document.body.classList.contains("adding")) return;
  document.body.classList.add("adding", "busy");
  try {
    const event = { user: state.user, item };
    const time = askedTime();
    const last = state.described.last_time;
    if (time !== null && last !== null && time < last) {
      throw new Error(`The time lies before the last event, of ${date(last)}. Choose a later one.`);
    }
    if (time !== null) event.time = time;
    if (state.model.event_types.length) event.type = $("add").elements.type.value;
    const { rejected } = await ask("events", event);
    if (rejected && rejected.length) throw new Error(sentence(`The event was not added: ${rejected[0].message || rejected[0].reason}`));
    const before = state.described.updates;
    const described = await showUser(state.user);
    if (!described) return;
    const updated = described.updates > before ? " The memory was updated." : "";
    say(`Added ${readable(title)}: ${plural(described.events, "event")} now.${updated}`);
  } catch (error) {
    complain(error);
  } finally {
    document.body.classList.remove("adding", "busy");
  }
}

async function suggest(input, list, path, read) {
  const search = input.value.trim();
  try {
    const rows = read(await ask(query(path, { search, limit: 12 })));
    if (input.value.trim() === search) list.replaceChildren(...rows);
  } catch (error) {
    complain(error);
  }
}

function later(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

const userOptions = ({ users }) => users.map(({ user, events }) =>
  element("option", { value: user }, events === null ? user : plural(events, "event")));

const itemOptions = ({ items }) => items.map(({ item, title }) =>
  element("option", { value: item }, title));

// A choice from the list of suggestions arrives as an input that typing cannot make.
const isChosen = (event, list) => event.inputType === "insertReplacementText" &&
  [...list.options].some((option) => option.value === event.target.value);

function listen() {
  const suggestUsers = later(() => suggest($("user"), $("users"), "users", userOptions), 150);
  $("user").addEventListener("input", (event) => {
    if (isChosen(event, $("users"))) showUser(event.target.value);
    else suggestUsers();
  });
  $("user").addEventListener("focus", () => $("user").select());
  $("choose").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await showUser($("user").value.trim())) $("stored-title").focus({ preventScroll: true });
  });

  const suggestItems = later(() => suggest($("item"), $("items"), "items", itemOptions), 150);
  $("item").addEventListener("input", suggestItems);
  $("item").addEventListener("focus", suggestItems);
  $("add").addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = $("item").value.trim();
    try {
      const { items } = await ask(query("items", { search: wanted, limit: 1000 }));
      const same = (text) => text.toLowerCase() === wanted.toLowerCase();
      const found = items.find(({ item }) => item === wanted) || items.find(({ item, title }) => same(item) || same(title));
      if (!found) throw new Error(`No item has the title or id "${wanted}". Choose one of the suggestions.`);
      await addEvent(found.item, found.title);
      $("item").value = "";
    } catch (error) {
      complain(error);
    }
  });

  $("time").addEventListener("change", () => showUser(state.user));
  $("when").addEventListener("submit", (event) => event.preventDefault());
  $("when").addEventListener("click", (event) => {
    const seconds = Number(event.target.dataset.seconds);
    if (!seconds) return;
    try {
      setTime(askedTime() + seconds);
      showUser(state.user);
    } catch (error) {
      complain(error);
    }
  });

  const dismiss = () => { $("error").textContent = ""; };
  $("error").addEventListener("click", dismiss);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") dismiss(); });

  $("columns").addEventListener("click", (event) => {
    const button = event.target.closest(".items button");
    if (button) addEvent(button.dataset.item, button.querySelector(".title").textContent);
  });
  for (const name of ["pointerover", "focusin", "pointerout", "focusout"]) {
    $("columns").addEventListener(name, (event) => {
      const button = event.target.closest(".items button");
      const item = button && (name === "pointerover" || name === "focusin") ? button.dataset.item : null;
      for (const other of $("columns").querySelectorAll(".items button")) {
        other.classList.toggle("same", item !== null && other.dataset.item === item);
      }
    });
  }
}

async function start() {
  try {
    state.model = await ask("model");
    const { method, dataset, items, event_types: types, uses_times: timed } = state.model;
    $("model").textContent = [method, dataset && dataset.replaceAll("_", " "), plural(items, "item")].filter(Boolean).join(" · ");
    $("when").hidden = !timed;
    $("kind").hidden = !types.length;
    $("kind").querySelector("select").append(...types.map((type) => element("option", {}, type)));
    listen();
    const { users } = await ask(query("users", { search: "", limit: 8 }));
    $("users").replaceChildren(...userOptions({ users }));
    $("examples").replaceChildren(...users.map(({ user, events }) => {
      const button = element("button", { type: "button" }, user, " ",
        element("span", {}, events === null ? "" : plural(events, "event")));
      button.addEventListener("click", () => showUser(user));
      return element("li", {}, button);
    }));
    const asked = new URLSearchParams(window.location.search).get("user");
    if (asked) await showUser(asked);
    else $("user").focus();
  } catch (error) {
    complain(error);
  }
}

start();
