// Elements and text. Model text reaches the page as text nodes only, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const data = (id) => (byId(id) ? JSON.parse(byId(id).textContent) : null);

/** An element with attributes and children; a child that is a string becomes text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// As cai/config/characters.py: invisible characters, except joiners and variation selectors where they have an effect.
const INVISIBLE =
  /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\ufe00-\ufe0f\u{e0100}-\u{e01ef}\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]/gu;
const WITH_EFFECT =
  /[\n\t]|(?<=[^\p{ASCII}\p{Script=Latin}])[\u200c\u200d](?=[^\p{ASCII}\p{Script=Latin}])|(?<=[\p{So}0-9#*‼⁉↔])[\ufe0e\ufe0f]/gu;

/** Text as nodes, each invisible character as its code point. */
function visible(text) {
  const kept = new Set(Array.from(text.matchAll(WITH_EFFECT), (match) => match.index));
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    if (kept.has(match.index)) continue;
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    nodes.push(text.slice(at, match.index), make("span", { class: "hidden" }, `U+${code}`));
    at = match.index + match[0].length;
  }
  return [...nodes, text.slice(at)];
}

const MAX_CELLS = 9e6; // of the table of a word comparison

/** Which words of two texts differ: for each side, pieces of [differs, text] that join to the text. */
function compareWords(a, b) {
  const split = (text) => text.match(/\S+\s*|^\s+/g) ?? [];
  const left = split(a), right = split(b);
  const numbers = new Map(); // by word: numbers compare faster
  const numbered = (words) => words.map((word) => numbers.get(word.trim()) ?? numbers.set(word.trim(), numbers.size).size - 1);
  const leftWords = numbered(left), rightWords = numbered(right);
  const same = (i, j) => leftWords[i] === rightWords[j];
  let start = 0, end = 0;
  while (start < left.length && start < right.length && same(start, start)) start++;
  while (end < left.length - start && end < right.length - start && same(left.length - 1 - end, right.length - 1 - end)) end++;
  const n = left.length - start - end, m = right.length - start - end;
  const keptLeft = left.map(() => null), keptRight = right.map(() => null); // index of the same word on the other side
  const keep = (i, j) => { keptLeft[i] = j; keptRight[j] = i; };
  for (let i = 0; i < start; i++) keep(i, i);
  for (let i = 1; i <= end; i++) keep(left.length - i, right.length - i);
  if (n * m <= MAX_CELLS) {
    // the longest common subsequence: lengths from the end, row by row; a step of 2 advances both sides, 1 the left, 0 the right
    const step = new Uint8Array(n * m);
    let below = new Uint32Array(m + 1);
    for (let i = n - 1; i >= 0; i--) {
      const row = new Uint32Array(m + 1);
      for (let j = m - 1; j >= 0; j--) {
        if (same(start + i, start + j)) (row[j] = below[j + 1] + 1), (step[i * m + j] = 2);
        else if (below[j] >= row[j + 1]) (row[j] = below[j]), (step[i * m + j] = 1);
        else row[j] = row[j + 1];
      }
      below = row;
    }
    for (let i = 0, j = 0; i < n && j < m; ) {
      const way = step[i * m + j];
      if (way === 2) keep(start + i, start + j);
      if (way > 0) i++;
      if (way !== 1) j++;
    }
    // drop a single common word between changed words: it makes the marks hard to read
    for (let i = start; i < start + n; i++) {
      const j = keptLeft[i];
      const alone = (list, at) => at > 0 && at < list.length - 1 && list[at - 1] === null && list[at + 1] === null;
      if (j !== null && alone(keptLeft, i) && alone(keptRight, j)) keptLeft[i] = keptRight[j] = null;
    }
  }
  const pieces = (words, kept) => {
    const joined = [];
    words.forEach((word, i) => {
      const differs = kept[i] === null;
      if (joined.length && joined.at(-1)[0] === differs) joined.at(-1)[1] += word;
      else joined.push([differs, word]);
    });
    return joined;
  };
  return [pieces(left, keptLeft), pieces(right, keptRight)];
}

/** Marked words as nodes; the space after a marked word is not marked. */
function marked(pieces, tag) {
  return pieces.flatMap(([differs, text]) => {
    if (!differs) return visible(text);
    const word = text.trimEnd();
    return [make(tag, {}, ...visible(word)), ...visible(text.slice(word.length))];
  });
}

function formatNumber(value, kind) {
  if (kind === "share") return `${Math.round(100 * value)} %`;
  return Number.isInteger(value) && kind !== "probability" ? String(value) : value.toFixed(3);
}
