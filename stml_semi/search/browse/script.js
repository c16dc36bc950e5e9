"use strict";
const file = document.getElementById("file"), drop = document.querySelector(".drop");
const status = document.querySelector("[role=status]"), list = document.querySelector(".answers");
const query = document.querySelector("figure.query"), heading = document.getElementById("answers");
const rowForm = document.querySelector(".by-row"), item = document.querySelector("template");
const count = document.querySelector(".count select"), samples = document.querySelector(".samples");
const enlarged = document.getElementById("enlarged");
let latest = 0, again = () => {};

const say = (text, failed = false) => {
  status.textContent = text;
  status.classList.toggle("failed", failed);
};

// What was asked last counts: an answer that comes late is dropped.
const ask = async (name, picture, request, move) => {
  const number = ++latest;
  say("Searching …");
  let hits;
  try {
    const response = await request();
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    hits = answer.hits;
  } catch (error) {
    if (number === latest) {
      heading.parentElement.hidden = query.hidden = true;
      say(`${name}: ${error instanceof TypeError ? "the server does not answer; is it still running?" : error.message}`, true);
    }
    return;
  }
  if (number !== latest) return;
  const image = query.querySelector("img");
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = picture();
  query.querySelector("figcaption").textContent = name;
  query.hidden = heading.parentElement.hidden = false;
  if (samples) samples.hidden = true;
  list.replaceChildren(...hits.map(show));
  say(`${hits.length} neighbors of ${name}`);
  if (move) heading.focus();
};

const show = (hit, place) => {
  const entry = item.content.cloneNode(true);
  const image = entry.querySelector("img"), name = entry.querySelector("span"), more = entry.querySelector(".more");
  image.src = `/picture/${hit.row}`;
  image.alt = `neighbor ${place + 1}: ${hit.name}`;
  image.addEventListener("error", () => { image.alt += " (its image cannot be read)"; });
  entry.querySelector("strong").textContent = `${place + 1} · cosine ${hit.similarity.toFixed(3)}`;
  name.textContent = name.title = `${hit.name}, row ${hit.row}`;
  more.href = address(hit.row);
  more.setAttribute("aria-label", `More like neighbor ${place + 1}, row ${hit.row}`);
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

// The address holds what was asked, so that Back, reload and a bookmark work. An uploaded image is in no address.
const address = row => `#row=${row}&k=${count.value}`;
const askRow = row => ask(`row ${row}`, () => `/picture/${row}`, () => fetch(`/row/${row}?k=${count.value}`), true);
const follow = () => {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!/^\d+$/.test(asked.get("row") ?? "")) {
    latest++;
    heading.parentElement.hidden = query.hidden = true;
    if (samples) samples.hidden = false;
    say("");
    return;
  }
  if ([...count.options].some(option => option.value === asked.get("k"))) count.value = asked.get("k");
  again = () => { location.hash = address(asked.get("row")); };
  askRow(Number(asked.get("row")));
};
addEventListener("hashchange", follow);

const askFile = chosen => {
  if (!chosen) return;
  const most = Number(file.dataset.maxBytes);
  const request = async () => {
    if (chosen.size > most) throw new Error(`the file has ${Math.ceil(chosen.size / 2 ** 20)} MiB; at most ${most / 2 ** 20} are taken`);
    return fetch(`/search?k=${count.value}`, { method: "POST", body: chosen, headers: { "Content-Type": chosen.type || "application/octet-stream" } });
  };
  again = () => askFile(chosen);
  ask(chosen.name || "the pasted image", () => URL.createObjectURL(chosen), request, false);
};

file.addEventListener("change", () => askFile(file.files[0]));
rowForm.addEventListener("submit", event => {
  event.preventDefault();
  const wanted = address(rowForm.querySelector("input").valueAsNumber);
  if (location.hash === wanted) follow();
  else location.hash = wanted;
});
count.addEventListener("change", () => again());
if (location.hash) follow();
// A picture that misses the frame must not make the browser leave the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, event => event.preventDefault());
document.addEventListener("dragover", () => drop.classList.add("over"));
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => drop.classList.remove("over"));
document.addEventListener("drop", event => askFile(event.dataTransfer.files[0]));
document.addEventListener("paste", event => askFile(event.clipboardData.files[0]));
