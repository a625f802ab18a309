// A list of runs: filter, sort, and choose runs to compare; the one chosen first is A. While a run is under way, the list
// follows it.
"use strict";

const REFRESH = 2000; // ms between two looks at what runs

(() => {
  const form = byId("runs");
  if (!form) return;
  const body = form.querySelector("tbody"), chosen = [];

  function filter() {
    const words = byId("filter").value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(words);
  }
  byId("filter").addEventListener("input", filter);

  form.querySelectorAll("th button").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th"), at = head.cellIndex;
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[at].textContent;
      const order = (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
      body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
    });
  });

  function showChosen() {
    const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    byId("chosen").replaceChildren(...visible(chosen.map((name, i) => `${letters[i] ?? "?"}: ${name}`).join(", ")));
    byId("compare").disabled = chosen.length < 2;
  }
  form.addEventListener("change", ({ target }) => {
    if (target.name !== "run") return;
    if (target.checked) chosen.push(target.value);
    else chosen.splice(chosen.indexOf(target.value), 1);
    showChosen();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault(); // the form would submit them in the order of the list
    location.assign(`/report?${new URLSearchParams(chosen.map((name) => ["run", name]))}`);
  });

  /** Show the cells of a newer page that differ, so that what is chosen, sorted, filtered and focused stays. */
  function show(newer) {
    const rows = new Map(Array.from(body.rows, (row) => [row.dataset.run, row]));
    const begun = [];
    for (const row of [...newer.querySelectorAll("tbody tr")]) {
      const old = rows.get(row.dataset.run);
      rows.delete(row.dataset.run);
      if (!old) begun.push(row);
      else [...row.cells].forEach((cell, at) => old.cells[at].innerHTML !== cell.innerHTML && old.cells[at].replaceWith(cell));
    }
    for (const gone of rows.values()) gone.remove();
    body.prepend(...begun);
    filter();
  }
  async function follow() {
    const before = performance.now();
    let running = true; // a server that does not answer may come back
    try {
      const page = document.hidden ? "" : await (await fetch(location.href)).text();
      const newer = new DOMParser().parseFromString(page, "text/html").getElementById("runs");
      if (newer) show(newer);
      running = !newer || "running" in newer.dataset;
    } catch {
      // as when the server is restarted
    }
    if (running) setTimeout(follow, Math.max(REFRESH, 10 * (performance.now() - before)));
  }
  if ("running" in form.dataset) setTimeout(follow, REFRESH);

  for (const box of form.querySelectorAll("[name=run]")) box.checked = false; // browsers restore checked boxes on reload
  showChosen();
})();
