"use strict";
const pictures = JSON.parse(document.getElementById("pictures").textContent);
for (const image of document.querySelectorAll("img[data-picture]")) image.src = pictures[image.dataset.picture];

// On a phone sections are closed, and beside others those of single runs; a link opens what it leads to.
const narrow = matchMedia("(max-width: 40rem)").matches;
for (const part of document.querySelectorAll("details.fold")) part.open = !narrow && !("closed" in part.dataset);
const unfold = hash => {
  if (hash) document.getElementById(hash.slice(1))?.closest("details")?.setAttribute("open", "");
};
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => unfold(link.hash));
unfold(location.hash);

// Any image but those of the matrix is enlarged by a click, Enter or space; Escape closes. Of a list, Tab reaches the
// first image, arrow keys the others.
const enlarged = document.getElementById("enlarged");
const enlarge = image => {
  const large = enlarged.querySelector("img");
  large.src = image.src;
  large.alt = enlarged.querySelector("p").textContent = image.alt;
  enlarged.showModal();
};
for (const image of document.querySelectorAll("img[data-picture]:not(.tiny)")) {
  const item = image.closest(".hits li, .pairs li");
  image.tabIndex = item?.previousElementSibling ? -1 : 0;
  image.setAttribute("role", "button");
  image.setAttribute("aria-label", `${image.alt}, enlarge`);
  image.addEventListener("click", () => enlarge(image));
  image.addEventListener("keydown", event => {
    const other = { ArrowRight: item?.nextElementSibling, ArrowLeft: item?.previousElementSibling }[event.key];
    if (event.key !== "Enter" && event.key !== " " && !other) return;
    event.preventDefault();
    if (other) other.querySelector("[role=button]")?.focus();
    else enlarge(image);
  });
}
enlarged.addEventListener("click", event => { if (event.target === enlarged) enlarged.close(); });

// Queries: filter by class, change the order, show more.
for (const gallery of document.querySelectorAll(".gallery")) {
  const list = gallery.querySelector(".queries"), queries = [...list.children];
  const [ofClass, order] = gallery.querySelectorAll("select");
  const more = gallery.querySelector("button"), status = gallery.querySelector("[role=status]");
  const orders = {
    improved: (a, b) => b.dataset.after - b.dataset.before - (a.dataset.after - a.dataset.before),
    worst: (a, b) => a.dataset.after - b.dataset.after,
    fallen: (a, b) => a.dataset.after - a.dataset.before - (b.dataset.after - b.dataset.before),
  };
  const few = narrow ? 4 : 10;
  let shown = few;
  const update = () => {
    const fitting = queries.filter(query => !ofClass.value || query.dataset.label === ofClass.value);
    for (const query of queries) query.hidden = true;
    fitting.sort(orders[order.value]).forEach((query, place) => {
      query.hidden = place >= shown;
      list.append(query);
    });
    more.hidden = fitting.length <= shown;
    status.textContent = `${Math.min(shown, fitting.length)} of ${fitting.length} queries shown`;
  };
  const restart = () => { shown = few; update(); };
  ofClass.addEventListener("change", restart);
  order.addEventListener("change", restart);
  more.addEventListener("click", () => {
    const first = shown;
    shown += few;
    update();
    const next = [...list.children].filter(query => !query.hidden)[first];
    next?.querySelector("h3").focus();
  });
  gallery.querySelector(".controls").hidden = false;
  update();
}

// Maps: the picture of a point, by pointer or by arrow keys, on all maps at once.
for (const part of document.querySelectorAll(".map-part")) {
  const points = JSON.parse(part.querySelector("script").textContent);
  const image = part.querySelector(".pointed img"), text = part.querySelector(".pointed span");
  const maps = [...part.querySelectorAll(".map")].map((map, model) => {
    const marks = [];
    for (const kind of ["right", "wrong"]) {
      const uses = map.querySelectorAll(`[id$="-map-${model}-${kind}"] use`);
      points.map((_, i) => i).filter(i => points[i].right[model] === (kind === "right"))
        .forEach((i, place) => { marks[i] = uses[place]; });
    }
    return { map, marks };
  });
  const choose = chosen => {
    for (const { map, marks } of maps) {
      map.classList.add("pointing");
      marks.forEach((mark, i) => {
        mark.classList.toggle("chosen", i === chosen);
        mark.classList.toggle("alike", points[i].label === points[chosen].label);
      });
      marks[chosen].dispatchEvent(new Event("chosen"));
    }
    image.hidden = points[chosen].picture === null;
    image.src = image.hidden ? "" : pictures[points[chosen].picture];
    text.textContent = points[chosen].words;
  };
  for (const { map, marks } of maps) {
    let at = -1;
    const across = marks.map((_, i) => i).sort((a, b) => marks[a].getAttribute("x") - marks[b].getAttribute("x"));
    marks.forEach((mark, i) => {
      mark.addEventListener("pointerenter", () => choose(i));
      mark.addEventListener("click", () => choose(i));
      mark.addEventListener("chosen", () => { at = across.indexOf(i); });
    });
    map.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(across[(at + step + across.length) % across.length]);
    });
  }
}

// Affinities: the pair of a cell, by pointer or by arrow keys.
for (const part of document.querySelectorAll(".relations")) {
  const { pictures: shown, names, percent } = JSON.parse(part.querySelector("script").textContent);
  const images = part.querySelectorAll(".pointed img"), text = part.querySelector(".pointed span");
  const matrix = part.querySelector(".matrix"), cells = part.querySelector(".cells"), frame = cells.querySelector("i");
  let at = null;
  const choose = (row, column) => {
    if (at && at[0] === row && at[1] === column) return;
    at = [row, column];
    frame.hidden = false;
    frame.style.setProperty("--row", row);
    frame.style.setProperty("--column", column);
    at.forEach((place, i) => {
      images[i].hidden = shown[place] === null;
      images[i].src = images[i].hidden ? "" : pictures[shown[place]];
    });
    text.textContent = row === column ? `${names[row]} and itself`
      : `Affinity ${(percent[row][column] / 100).toFixed(2)}: ${names[row]} and ${names[column]}`;
  };
  const within = number => Math.min(Math.max(number, 0), names.length - 1);
  cells.addEventListener("pointermove", event => {
    const box = cells.getBoundingClientRect();
    choose(within(Math.floor((event.clientY - box.top) / box.height * names.length)),
      within(Math.floor((event.clientX - box.left) / box.width * names.length)));
  });
  matrix.addEventListener("keydown", event => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (at) choose(within(at[0] + step[0]), within(at[1] + step[1]));
    else choose(0, Math.min(1, names.length - 1));
  });
}
