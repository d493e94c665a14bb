"use strict";

// The page is whole without this script. With it the rows sort and filter, and another false-positive rate
// moves whatever depends on it: the threshold, the flags, the counts.
(() => {
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("data").textContent);
  const unpack = (Numbers, text) => new Numbers(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  // Numbers as Python has them, bit for bit, so that comparing them decides as Python does.
  const calibration = unpack(Float64Array, data.calibration); // ascending
  const scores = unpack(Float64Array, data.scores); // of the listed rows, ascending
  const numbers = unpack(Uint32Array, data.rows);
  const m = calibration.length;
  const total = data.counts.map((counts) => counts.reduce((sum, count) => sum + count, 0));

  // ---- decisions

  // How many calibration scores are at or below a score; its p-value is (1 + that) / (m + 1).
  function countBelow(score) {
    let low = 0;
    let high = m;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (calibration[middle] <= score) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // What a rate flags: rows with fewer than k calibration scores at or below theirs, which is p ≤ rate.
  function decide(rate) {
    let k = 0;
    while (k < m && (k + 1) / (m + 1) <= rate) k += 1;
    const [normal, anomalies] = data.counts.map((counts) => counts.slice(0, k).reduce((sum, c) => sum + c, 0));
    const flagged = normal + anomalies;
    const precision = flagged ? anomalies / flagged : 0;
    const recall = anomalies / total[1];
    const f1 = anomalies ? (2 * precision * recall) / (precision + recall) : 0;
    const threshold = k ? calibration[k - 1] : -Infinity;
    return { rate, k, threshold, flagged, found: anomalies, falsePositives: normal / total[0], precision, recall, f1 };
  }

  // ---- numbers as text, like invgan.report.text: halves go to the even digit, as in Python

  function format(options) {
    const formatter = new Intl.NumberFormat("en", { useGrouping: false, roundingMode: "halfEven", ...options });
    return (value) => formatter.format(value).replace(/^-/, "−");
  }
  const fixed = (digits) => format({ minimumFractionDigits: digits, maximumFractionDigits: digits });
  const [oneDigit, twoDigits, threeDigits] = [1, 2, 3].map(fixed);
  const whole = format({ maximumFractionDigits: 0, useGrouping: true });
  const significant = format({ maximumSignificantDigits: 2 });
  const count = (value) => (value < 1e4 ? String(value) : whole(value));
  const pValue = (below) => significant((1 + below) / (m + 1));
  function nats(value) {
    const size = Math.abs(value);
    if (size < 1e4 || size === Infinity) return twoDigits(value);
    return size < 1e9 ? whole(value) : value.toExponential(3).replace(/^-/, "−");
  }

  // ---- rows

  const body = get("rows").tBodies[0];
  const explained = [...body.rows];
  const rows = Array.from(scores, (score, rank) => {
    const element = explained[rank];
    const name = data.names ? data.names[rank] : `row ${numbers[rank] + 1}`;
    const why = element ? [...element.querySelectorAll(".reasons li")].map((reason) => reason.textContent) : [];
    return {
      rank,
      row: numbers[rank],
      name,
      score,
      p: countBelow(score),
      label: data.labels && data.labels[rank],
      deficit: element ? Number(element.querySelector("[data-deficit]")?.dataset.deficit) : NaN,
      text: [name, ...why].join("\n").toLowerCase(),
      element,
    };
  });

  function build(row) {
    const element = get("row").content.firstElementChild.cloneNode(true);
    const fill = (place, text) => (element.querySelector(place).textContent = text);
    fill(".rank", row.rank + 1);
    fill(".pinned", row.name);
    fill(".score", nats(row.score));
    fill(".p", pValue(row.p));
    if (data.labels) fill(".label", row.label === "1" ? "anomaly" : "normal");
    return element;
  }

  const isFlagged = (row) => row.p < decision.k;
  const sortKeys = { flagged: (row) => (isFlagged(row) ? 0 : 1) };
  for (const key of ["rank", "row", "score", "p", "label", "deficit"]) sortKeys[key] = (row) => row[key];

  const STEP = 25;
  let decision;
  let limit = STEP;
  let sorting = { key: "rank", sign: 1 };

  function showRows() {
    const words = get("find").value.trim().toLowerCase();
    const label = get("label")?.value ?? "";
    const onlyFlagged = get("only-flagged").checked;
    const found = rows.filter(
      (row) => row.text.includes(words) && (!label || row.label === label) && (!onlyFlagged || isFlagged(row)),
    );
    const value = sortKeys[sorting.key];
    found.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.rank - b.rank; // last
      return x < y ? -sorting.sign : x > y ? sorting.sign : a.rank - b.rank;
    });
    const visible = found.slice(0, limit);
    for (const row of visible) {
      row.element ??= build(row);
      const name = isFlagged(row) ? "flagged" : "unflagged";
      row.element.querySelector(".verdict use").setAttribute("href", `#mark-${name}`);
      row.element.querySelector(".verdict span").textContent = isFlagged(row) ? "flagged" : "not flagged";
    }
    body.replaceChildren(...visible.map((row) => row.element));
    const noun = found.length === 1 ? "row" : "rows";
    const matching = found.length === rows.length ? "" : ` that match${found.length === 1 ? "es" : ""}`;
    get("shown").textContent = `Showing ${count(visible.length)} of ${count(found.length)} ${noun}${matching}.`;
    get("more").hidden = visible.length === found.length;
  }

  // ---- plots

  function draw(plot, tag, className, at) {
    const svg = document.querySelector(`[data-plot="${plot}"]`);
    if (!svg) return;
    svg.querySelector(".drawn")?.remove();
    const [left, right, bottom, top] = svg.dataset.box.split(" ").map(Number);
    const [x0, x1, y0, y1] = svg.dataset.limits.split(" ").map(Number);
    const x = (value) => left + ((Math.min(Math.max(value, x0), x1) - x0) / (x1 - x0)) * (right - left);
    const y = (value) => bottom + ((value - y0) / (y1 - y0)) * (top - bottom);
    const attributes = at({ x, y, bottom, top });
    if (!attributes) return;
    const mark = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
    mark.setAttribute("class", `drawn ${className}`);
    for (const [name, value] of Object.entries(attributes)) mark.setAttribute(name, value);
  }

  function drawDecision({ threshold, falsePositives, precision, recall, flagged, k }) {
    draw("histogram", "line", "threshold", ({ x, bottom, top }) =>
      Number.isFinite(threshold) ? { x1: x(threshold), x2: x(threshold), y1: bottom, y2: top } : null,
    );
    const at = (horizontal, vertical) => ({ x, y }) => ({ href: "#mark-flagged", x: x(horizontal), y: y(vertical) });
    draw("roc", "use", "", at(falsePositives, recall));
    draw("precision-recall", "use", "", flagged ? at(recall, precision) : () => null);
    for (const mark of document.querySelectorAll("#map [data-below]")) {
      mark.setAttribute("href", Number(mark.dataset.below) < k ? "#mark-flagged" : "#mark-unflagged");
    }
  }

  // ---- what the reader does

  function setRate(rate) {
    decision = decide(rate);
    const all = total[0] + total[1];
    const texts = {
      flagged: count(decision.flagged),
      share: `${oneDigit((decision.flagged / all) * 100)}%`,
      found: count(decision.found),
      threshold: nats(decision.threshold),
      precision: threeDigits(decision.precision),
      recall: threeDigits(decision.recall),
      f1: threeDigits(decision.f1),
      where: decision.k
        ? "Rows left of the dashed line are flagged."
        : "There is no threshold, so no score is low enough to flag a row.",
    };
    for (const place of document.querySelectorAll("[data-live]")) place.textContent = texts[place.dataset.live];
    drawDecision(decision);
    showRows();
  }

  const [slider, rateField] = [get("slider"), get("rate")];
  slider.addEventListener("input", () => {
    rateField.value = slider.value;
    rateField.removeAttribute("aria-invalid");
    setRate(Number(slider.value));
  });
  rateField.addEventListener("input", () => {
    const rate = rateField.valueAsNumber;
    const valid = rate >= 0 && rate < 1;
    if (!valid) {
      rateField.setAttribute("aria-invalid", "true");
      return;
    }
    rateField.removeAttribute("aria-invalid");
    slider.value = rate;
    setRate(rate);
  });
  function reset() {
    rateField.value = slider.value = data.rate;
    rateField.removeAttribute("aria-invalid");
    setRate(data.rate);
  }
  get("reset").addEventListener("click", reset);

  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.sort;
      const first = key === "deficit" ? -1 : 1; // the largest deficits are of interest
      sorting = { key, sign: sorting.key === key ? -sorting.sign : first };
      for (const heading of document.querySelectorAll("#rows > thead [aria-sort]")) {
        heading.setAttribute("aria-sort", "none");
      }
      button.parentElement.setAttribute("aria-sort", sorting.sign > 0 ? "ascending" : "descending");
      limit = STEP;
      showRows();
    });
  }
  get("filters").addEventListener("input", () => {
    limit = STEP;
    showRows();
  });
  get("more").addEventListener("click", () => {
    const last = body.lastElementChild;
    limit += 4 * STEP;
    showRows();
    if (get("more").hidden) last.scrollIntoView({ block: "nearest" });
  });
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());

  get("filters").hidden = false;
  document.body.classList.add("ready");
  reset(); // a browser that loads a page again may have kept what was typed
})();
