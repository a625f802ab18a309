// Where the examples come from: the page itself, or a server that reads the run's files.
"use strict";

const PAGE = 50; // lines

/** The lines that `encode` in cai/report/table.py wrote. */
async function decodedLines() {
  const text = atob(byId("examples-data").textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const plain = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  return plain.split("\n");
}

/** Examples embedded in the page. */
async function examplesOfPage() {
  const [first, ...details] = await decodedLines();
  const { vocabulary, lines } = JSON.parse(first);
  const wordNumber = (code) => code - 0x80 - (code > 0xd800 ? 0x800 : 0);
  const decoded = (text) => Array.from(text, (c) => vocabulary[wordNumber(c.codePointAt(0))]).join("");
  const places = new Map(lines.map((line, number) => [line.id, number]));
  const parsed = new Map(); // by id, as they are first needed
  function open(id) {
    if (!places.has(id)) return null;
    if (!parsed.has(id)) {
      const detail = JSON.parse(details[places.get(id)]);
      parsed.set(id, { ...detail, texts: detail.texts.map(decoded) });
    }
    return parsed.get(id);
  }
  // as `select` in cai/report/table.py
  let lastQuery = null, matches = lines;
  function find({ start, ...query }) {
    if (JSON.stringify(query) !== lastQuery) {
      lastQuery = JSON.stringify(query);
      const words = query.text.toLowerCase(), facets = Object.entries(query.facets), { sort } = query;
      const hit = (line) => line.id.toLowerCase().includes(words) || open(line.id).texts.some((t) => t.toLowerCase().includes(words));
      matches = lines.filter((line) => facets.every(([at, value]) => line.facets[at].includes(value)) && (!words || hit(line)));
      if (sort !== null) {
        const known = matches.filter((line) => line.cells[sort] !== null), sign = query.descending ? -1 : 1;
        known.sort(({ cells: a }, { cells: b }) => (a[sort] === b[sort] ? 0 : a[sort] < b[sort] ? -sign : sign));
        matches = [...known, ...matches.filter((line) => line.cells[sort] === null)];
      }
    }
    return { matched: matches.length, lines: matches.slice(start, start + PAGE) };
  }
  return { find: async (query) => find(query), open: async (id) => open(id) };
}

/** Examples that a server reads from the run's files. */
function examplesOfServer(url) {
  async function request(values) {
    const response = await fetch(`${url}&${new URLSearchParams(values)}`);
    if (!response.ok) throw new Error(await response.text());
    return response.json();
  }
  const find = (query) => request({ query: JSON.stringify({ ...query, size: PAGE }) });
  return { find, open: (id) => request({ id }).catch(() => null) };
}
