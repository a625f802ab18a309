// The table of examples, and the dialog that shows one of them.
"use strict";

const SHOWN = 5; // examples on the first screen

async function setUpExamples() {
  const description = data("examples-description");
  if (!description) return;
  const { columns, facets, total, url } = description;
  const table = byId("lines"), dialog = byId("example");
  const state = { text: "", facets: {}, sort: null, descending: false, start: 0 };
  // `result` is what the table shows; `state` is ahead of it while a query runs
  let source, result = { matched: 0, start: 0, lines: [] }, current = 0, opened = null, latest = 0, latestShown = 0;

  // the address keeps the state; it names columns and facets by their titles
  const named = (list, title) => list.find((entry) => entry.title === title);
  function readAddress() {
    const values = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    const column = named(columns, (values.get("sort") ?? "").replace(/^-/, ""));
    Object.assign(state, {
      text: values.get("search") ?? "",
      facets: Object.fromEntries(facets.filter((f) => values.get(f.title)).map((f) => [f.at, values.get(f.title)])),
      sort: column ? column.at : null,
      descending: (values.get("sort") ?? "").startsWith("-"),
      start: PAGE * Math.max(0, (Number.parseInt(values.get("page"), 10) || 1) - 1),
    });
    return values.get("open");
  }
  function writeAddress() {
    const values = new URLSearchParams();
    if (state.text) values.set("search", state.text);
    for (const facet of facets) if (state.facets[facet.at]) values.set(facet.title, state.facets[facet.at]);
    const column = columns.find((c) => c.at === state.sort);
    if (column) values.set("sort", (state.descending ? "-" : "") + column.title);
    if (state.start) values.set("page", state.start / PAGE + 1);
    if (opened) values.set("open", opened.id);
    history.replaceState(null, "", values.size ? `#${values}` : location.pathname + location.search);
  }

  const field = (title, input) => make("div", {}, make("label", { for: input.id }, title), input);

  function setUpFilters() {
    const form = byId("filters");
    const search = make("input", { type: "search", id: "search", autocomplete: "off" });
    search.value = state.text;
    let waiting = 0;
    search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { Object.assign(state, { text: search.value.trim(), start: 0 }); update(); }, 150);
    });
    form.append(field("Search prompts and answers", search));
    for (const facet of facets) {
      const select = make("select", { id: `facet-${facet.at}` }, make("option", { value: "" }, "any"));
      for (const [value, count] of facet.values) select.append(make("option", { value }, ...visible(`${value} (${count})`).map(asText)));
      select.value = state.facets[facet.at] ?? "";
      select.addEventListener("change", () => {
        if (select.value) state.facets[facet.at] = select.value;
        else delete state.facets[facet.at];
        state.start = 0;
        update();
      });
      form.append(field(facet.title, select));
    }
    const clear = make("button", { type: "button" }, "Clear");
    clear.addEventListener("click", () => {
      form.reset();
      for (const input of form.querySelectorAll("select, input")) input.value = "";
      Object.assign(state, { text: "", facets: {}, start: 0 });
      update();
    });
    form.append(clear);
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  const asText = (node) => (typeof node === "string" ? node : `⟨${node.textContent}⟩`); // an option holds no elements

  function setUpHead() {
    const row = make("tr", {}, make("th", { scope: "col" }, "example"));
    for (const column of columns) {
      const button = make("button", { type: "button", title: column.meaning }, column.title);
      button.addEventListener("click", () => {
        const sorted = state.sort === column.at;
        // numbers descending, texts ascending; a second click reverses
        Object.assign(state, { descending: sorted ? !state.descending : column.kind !== "text", sort: column.at, start: 0 });
        update();
      });
      row.append(make("th", { scope: "col", "data-at": column.at, class: classOf(column) }, button));
    }
    table.tHead.replaceChildren(row);
  }
  // a narrow screen shows the prompt and the probabilities
  const classOf = (column) =>
    column.title === "prompt" ? "prompt" : column.kind === "text" ? "wide" : column.kind === "number" ? "n wide" : "n";

  function rowOf(line, place) {
    const button = make("button", { type: "button", tabindex: place === current ? 0 : -1 }, ...visible(line.id));
    button.addEventListener("focus", () => setCurrent(place, false));
    const row = make("tr", {}, make("td", {}, button));
    for (const column of columns) {
      const value = line.cells[column.at];
      const content = value === null ? ["–"] : column.kind === "text" ? visible(value) : [formatNumber(value, column.kind)];
      row.append(make("td", { class: classOf(column), dir: column.kind === "text" ? "auto" : null }, ...content));
    }
    row.addEventListener("click", () => open(result.start + place));
    return row;
  }

  /** Make a line of the page the one that keys act on. */
  function setCurrent(place, focus = true) {
    const buttons = table.tBodies[0].querySelectorAll("button");
    if (!buttons.length) return;
    current = Math.min(Math.max(place, 0), buttons.length - 1);
    buttons.forEach((button, i) => (button.tabIndex = i === current ? 0 : -1));
    if (focus) buttons[current].focus();
  }

  async function update() {
    const number = ++latest, { start } = state;
    let matches, failure = null;
    try {
      matches = await source.find(state);
    } catch (error) {
      failure = error;
    }
    if (number !== latest) return; // a newer query has been sent
    if (failure) {
      byId("matches").textContent = `The examples could not be read: ${failure.message}`;
      return;
    }
    if (start >= matches.matched && start) {
      state.start = 0;
      await update();
      return;
    }
    result = { ...matches, start };
    current = Math.min(current, Math.max(0, matches.lines.length - 1));
    table.tBodies[0].replaceChildren(...matches.lines.map(rowOf));
    for (const head of table.tHead.querySelectorAll("th[data-at]")) {
      const sorted = Number(head.dataset.at) === state.sort;
      head.setAttribute("aria-sort", sorted ? (state.descending ? "descending" : "ascending") : "none");
    }
    const pages = Math.max(1, Math.ceil(matches.matched / PAGE)), page = start / PAGE + 1;
    byId("matches").textContent = `${matches.matched.toLocaleString("en")} of ${total.toLocaleString("en")} examples`;
    byId("page").textContent = `Page ${page} of ${pages}`;
    byId("pager").hidden = pages === 1;
    byId("earlier").disabled = page === 1;
    byId("later").disabled = page === pages;
    writeAddress();
  }

  /** Go some pages forward or back, and make a line there the current one. */
  async function turn(pages, place) {
    const start = state.start + pages * PAGE;
    if (start < 0 || start >= result.matched) return false;
    state.start = start;
    await update();
    setCurrent(place, false);
    return true;
  }

  /** Open the example at a place in the whole result. */
  async function open(place) {
    if (place < 0 || place >= result.matched) return;
    if (place < result.start || place >= result.start + result.lines.length) {
      state.start = PAGE * Math.floor(place / PAGE);
      await update();
    }
    const line = result.lines[place - result.start];
    if (!line) return; // another query ran meanwhile
    setCurrent(place - result.start, false);
    await show(line.id, place);
  }

  async function show(id, place) {
    const number = ++latestShown;
    const example = await source.open(id);
    if (!example || number !== latestShown) return; // an address of another run, or a newer example
    opened = { id, place };
    byId("example-title").replaceChildren(...visible(id));
    byId("previous").disabled = place === null || place === 0;
    byId("next").disabled = place === null || place === result.matched - 1;
    byId("previous").onclick = () => open(place - 1);
    byId("next").onclick = () => open(place + 1);
    const text = (number) => make("div", { class: "text", dir: "auto" }, ...visible(example.texts[number]));
    const body = byId("example-body");
    body.replaceChildren(...example.turns.flatMap(([role, number]) => [make("p", { class: "role" }, ...visible(role)), text(number)]));
    for (const block of example.blocks) {
      if ("folded" in block) {
        body.append(make("details", {}, make("summary", {}, ...visible(block.title)), text(block.folded)));
        continue;
      }
      body.append(make("h3", {}, ...visible(block.title)));
      if (block.note) body.append(make("p", { class: "soft" }, ...visible(block.note)));
      if ("text" in block) body.append(text(block.text));
      if ("sides" in block) body.append(sides(block.names, block.sides.map((side) => example.texts[side])));
      if ("rows" in block) body.append(values(block));
    }
    if (!dialog.open) dialog.showModal();
    reach(body);
    dialog.scrollTop = 0;
    byId("example-title").focus({ preventScroll: true });
    writeAddress();
  }

  /** Two texts side by side, their differences marked; `by` has for each side what its text was made by. */
  function sides(names, texts, by = [[], []]) {
    const compared = compareWords(...texts);
    const side = (which, tag) =>
      make("div", {},
        make("p", { class: "ab"[which] }, ...visible(names[which])),
        ...by[which].map((line) => make("p", { class: "soft" }, ...visible(line))),
        make("div", { class: "text", dir: "auto" }, ...marked(compared[which], tag)));
    return make("div", { class: "pair" }, side(0, "del"), side(1, "ins"));
  }

  /** On the first screen: the examples that the page names, or else some of its first revisions. */
  async function setUpShown() {
    const place = byId("shown");
    if (!place) return;
    for (const { id, asked, note, names, by, texts } of data("examples-shown") ?? (await firstRevisions())) {
      const button = make("button", { type: "button" }, "Open");
      button.addEventListener("click", () => show(id, null));
      const known = await source.open(id); // a page that holds a sample may lack it
      place.append(
        make("article", { class: "example" },
          make("p", { dir: "auto" }, make("strong", {}, ...visible(asked)), " ", known ? button : ""),
          make("p", { class: "soft" }, ...visible(note)),
          sides(names, texts, by)));
      place.hidden = false;
    }
    reach(place);
  }

  /** Revisions at equal distances among the first lines, with what their principles ask for. */
  async function firstRevisions() {
    const texts = data("principle-texts") ?? {}, facet = named(facets, "principle");
    const { lines } = await source.find({ text: "", facets: {}, sort: null, descending: false, start: 0 });
    const revised = facet ? lines.filter((line) => line.facets[facet.at].length) : [], count = Math.min(SHOWN, revised.length);
    const shown = Array.from({ length: count }, (_, i) => revised[Math.floor((i * revised.length) / count)]);
    const examples = await Promise.all(shown.map(({ id }) => source.open(id)));
    return examples.flatMap((example, i) => {
      const block = example?.blocks.find((b) => b.principle), asked = example?.turns.at(-1);
      if (!block) return [];
      return {
        id: shown[i].id,
        asked: asked ? example.texts[asked[1]] : shown[i].id,
        note: block.principle + (texts[block.principle] ? `: ${texts[block.principle]}` : ""),
        names: block.names,
        texts: block.sides.map((side) => example.texts[side]),
      };
    });
  }

  function values(block) {
    const cell = (value) =>
      typeof value === "number" ? make("td", { class: "n" }, value.toFixed(4)) : make("td", {}, ...visible(value ?? "–"));
    const inner = make("table");
    if (block.head.length) inner.append(make("thead", {}, make("tr", {}, ...block.head.map((name) => make("th", { scope: "col" }, name)))));
    inner.append(make("tbody", {}, ...block.rows.map((row) => make("tr", {}, ...row.map(cell)))));
    return make("div", { class: "scroll", role: "group", "aria-label": block.title }, inner);
  }

  /** Let the keyboard scroll what is larger than its place. */
  function reach(place) {
    for (const part of place.querySelectorAll(".scroll, .text"))
      if (part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight) part.tabIndex = 0;
  }

  function setUpKeys() {
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea, summary")) return;
      const { key } = event, inTable = table.contains(event.target);
      const by = { j: 1, k: -1, ArrowDown: inTable ? 1 : 0, ArrowUp: inTable ? -1 : 0 }[key] ?? 0;
      if (dialog.open && (key === "j" || key === "k")) open(result.start + current + by);
      else if (dialog.open) return;
      else if (key === "/") byId("search").focus();
      else if (by) move(by);
      else return;
      event.preventDefault();
    });
    byId("earlier").addEventListener("click", () => turn(-1, 0));
    byId("later").addEventListener("click", () => turn(1, 0));
    byId("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => {
      const { place } = opened;
      opened = null;
      writeAddress();
      setCurrent(place === null ? current : place - result.start);
    });
  }
  async function move(by) {
    const outside = !table.tBodies[0].contains(document.activeElement);
    const to = outside ? current : current + by;
    if (to < 0) { if (await turn(-1, PAGE - 1)) setCurrent(current); }
    else if (to >= result.lines.length) { if (await turn(1, 0)) setCurrent(current); }
    else setCurrent(to);
  }

  const toOpen = readAddress();
  setUpFilters();
  setUpHead();
  setUpKeys();
  source = url ? examplesOfServer(url) : await examplesOfPage();
  await update();
  await setUpShown();
  if (toOpen) {
    const place = result.lines.findIndex((line) => line.id === toOpen);
    await (place < 0 ? show(toOpen, null) : open(result.start + place));
  }
  performance.mark("examples");
  document.documentElement.dataset.ready = "yes";
}

// plots come after the first paint of the table: parsing Plotly blocks the page for a moment
setUpExamples().then(() => requestAnimationFrame(() => setTimeout(setUpPlots)));
