"use strict";
const file = document.getElementById("file"), drop = document.querySelector(".drop");
const status = document.querySelector("[role=status]"), list = document.querySelector(".answers");
const parts = document.querySelector(".parts"), heading = document.getElementById("answers");
const rowForm = document.querySelector(".by-row");
const item = document.getElementById("hit"), partItem = document.getElementById("part");
const count = document.querySelector(".count select"), kind = document.querySelector(".class select");
const samples = document.querySelector(".samples");
const enlarged = document.getElementById("enlarged");
let latest = 0, query = { upload: null, rows: [] };

const say = (text, failed = false) => {
  status.textContent = text;
  status.classList.toggle("failed", failed);
};

// A query is an uploaded image, rows of the index, or both: their mean.
const names = ({ upload, rows }) => [
  ...(upload ? [upload.name || "the pasted image"] : []),
  ...(rows.length ? [`${rows.length > 1 ? "rows" : "row"} ${rows.join(", ")}`] : []),
].join(" and ");

// What was asked last counts: an answer that comes late is dropped.
const ask = async (asked, move) => {
  const number = ++latest, name = names(asked);
  say("Searching …");
  let hits;
  try {
    const response = await (asked.upload ? send(asked) : fetch(`/row/${asked.rows}?${options()}`));
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    hits = answer.hits;
  } catch (error) {
    if (number === latest) {
      heading.parentElement.hidden = parts.hidden = true;
      say(`${name}: ${error instanceof TypeError ? "the server does not answer; is it still running?" : error.message}`, true);
    }
    return;
  }
  if (number !== latest) return;
  query = asked;
  showQuery();
  heading.parentElement.hidden = false;
  if (samples) samples.hidden = true;
  list.replaceChildren(...hits.map(show));
  say(`${hits.length} neighbors of ${name}${kind?.value ? ` in class ${kind.selectedOptions[0].text}` : ""}`);
  if (move) heading.focus();
};

const send = ({ upload, rows }) => {
  const most = Number(file.dataset.maxBytes);
  if (upload.size > most) throw new Error(`the file has ${Math.ceil(upload.size / 2 ** 20)} MiB; at most ${most / 2 ** 20} are taken`);
  const also = rows.length ? `&rows=${rows}` : "";
  return fetch(`/search?${options()}${also}`, { method: "POST", body: upload, headers: { "Content-Type": upload.type || "application/octet-stream" } });
};

const showQuery = () => {
  for (const image of parts.querySelectorAll("img")) if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  const { upload, rows } = query, single = !upload && rows.length === 1;
  const shown = rows.map(row => part(`row ${row}`, `/picture/${row}`, !single && { upload, rows: rows.filter(other => other !== row) }));
  if (upload) shown.unshift(part(upload.name || "the pasted image", URL.createObjectURL(upload), rows.length > 0 && { upload: null, rows }));
  parts.replaceChildren(...shown);
  parts.hidden = false;
};

const part = (name, source, without) => {
  const entry = partItem.content.cloneNode(true), remove = entry.querySelector(".remove");
  entry.querySelector("img").src = source;
  entry.querySelector("img").alt = `query: ${name}`;
  entry.querySelector("span").textContent = name;
  remove.hidden = !without;
  remove.setAttribute("aria-label", `Remove ${name} from the query`);
  remove.addEventListener("click", () => search(without));
  return entry;
};

const show = (hit, place) => {
  const entry = item.content.cloneNode(true);
  const image = entry.querySelector("img"), name = entry.querySelector("span"), more = entry.querySelector(".more");
  image.src = `/picture/${hit.row}`;
  image.alt = `neighbor ${place + 1}: ${hit.name}`;
  image.addEventListener("error", () => { image.alt += " (its image cannot be read)"; });
  entry.querySelector("strong").textContent = `${place + 1} · cosine ${hit.similarity.toFixed(3)}`;
  name.textContent = name.title = `${hit.name}, row ${hit.row}`;
  more.href = address([hit.row]);
  more.setAttribute("aria-label", `More like neighbor ${place + 1}, row ${hit.row}`);
  const add = entry.querySelector(".add");
  add.setAttribute("aria-label", `Add neighbor ${place + 1}, row ${hit.row}, to the query`);
  add.addEventListener("click", () => search({ upload: query.upload, rows: [...query.rows, hit.row] }));
  const button = entry.querySelector(".enlarge");
  button.setAttribute("aria-label", `Enlarge ${image.alt}`);
  button.addEventListener("click", () => {
    enlarged.querySelector("img").src = image.src;
    enlarged.querySelector("img").alt = enlarged.querySelector("p").textContent = name.textContent;
    enlarged.showModal();
  });
  return entry;
};
enlarged.addEventListener("click", event => { if (event.target === enlarged) enlarged.close(); });

// The address holds the rows, so that Back, reload and a bookmark work. An uploaded image is in no address.
const options = () => `k=${count.value}${kind?.value ? `&class=${kind.value}` : ""}`;
const address = rows => `#row=${rows}&${options()}`;
const search = asked => {
  if (asked.upload) ask(asked, true);
  else if (location.hash === address(asked.rows)) follow();
  else location.hash = address(asked.rows);
};
const follow = () => {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!/^\d+(,\d+)*$/.test(asked.get("row") ?? "")) {
    latest++;
    heading.parentElement.hidden = parts.hidden = true;
    if (samples) samples.hidden = false;
    say("");
    return;
  }
  if ([...count.options].some(option => option.value === asked.get("k"))) count.value = asked.get("k");
  if (kind) kind.value = [...kind.options].some(option => option.value === asked.get("class")) ? asked.get("class") : "";
  ask({ upload: null, rows: [...new Set(asked.get("row").split(",").map(Number))] }, true);
};
addEventListener("hashchange", follow);

const askFile = chosen => {
  if (!chosen) return;
  if (location.hash) history.pushState(null, "", location.pathname);
  ask({ upload: chosen, rows: [] }, false);
};
file.addEventListener("change", () => {
  askFile(file.files[0]);
  file.value = "";  // The same file may be chosen again.
});
rowForm.addEventListener("submit", event => {
  event.preventDefault();
  search({ upload: null, rows: [rowForm.querySelector("input").valueAsNumber] });
});
for (const choice of [count, kind]) choice?.addEventListener("change", () => { if (query.upload || query.rows.length) search(query); });
if (location.hash) follow();
// An image that misses the frame must not make the browser leave the page.
for (const name of ["dragover", "drop"]) document.addEventListener(name, event => event.preventDefault());
document.addEventListener("dragover", () => drop.classList.add("over"));
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => drop.classList.remove("over"));
document.addEventListener("drop", event => askFile(event.dataTransfer.files[0]));
document.addEventListener("paste", event => askFile(event.clipboardData.files[0]));
