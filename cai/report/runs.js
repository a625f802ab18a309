// The list of runs: filter, sort, and choose runs to compare; the one chosen first is A.
"use strict";

(() => {
  const form = byId("runs");
  if (!form) return;
  const body = form.querySelector("tbody"), chosen = [];

  byId("filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(words);
  });

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
  for (const box of form.querySelectorAll("[name=run]")) box.checked = false; // browsers restore checked boxes on reload
  showChosen();
})();
