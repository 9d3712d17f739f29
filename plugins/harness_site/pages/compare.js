{
  const page = JSON.parse(document.getElementById("data").textContent), { methods, samples, shapes, ids } = page;
  const [first, second, pick, drawn] = ["a", "b", "concept", "drawn"].map(name => document.getElementById(name));
  const bit = (packed, i) => !!(packed[i >> 3] & (128 >> (i & 7)));
  const unpacked = methods.map(method => bytes(method.bits)), labels = bytes(page.labels);
  const pair = (board, a, b) => {
    if (board.pairs[`${a},${b}`]) return board.pairs[`${a},${b}`];
    const [value, low, high, p] = board.pairs[`${b},${a}`] ?? [];
    return value === undefined ? null : [value, high, low].map(x => x === null ? null : -x).concat(p);
  };
  const table = (heads, rows) => html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": heads[0] }, html("table", {},
    html("thead", {}, html("tr", {}, ...heads.map((head, i) => html("th", { scope: "col", class: i ? null : "name" }, head)))),
    html("tbody", {}, ...rows.map(([name, ...cells]) => html("tr", {}, html("th", { scope: "row", class: "name" }, html("bdi", {}, name)), ...cells.map(cell => html("td", {}, cell)))))));
  const list = (title, places) => places.length ? html("div", {}, html("h4", {}, `${title}: ${places.length}`), html("ul", { class: "ids" }, ...places.slice(0, 12).map(i => html("li", {}, html("bdi", {}, ids[i]))), places.length > 12 ? html("li", { class: "soft" }, `and ${places.length - 12} more`) : null)) : null;
  const draw = () => {
    const a = Number(first.value), b = Number(second.value), c = Number(pick.value), n = ids.length;
    const names = [a, b].map(m => methods[m].name), parts = [];
    const rows = page.boards.map(board => [`${board.name}: ${board.column}`, pair(board, a, b), board.corrected]).filter(([, found]) => found);
    const heading = html("h2", {}, html("a", { href: `${methods[a].href}#c${c}` }, html("bdi", {}, names[0])), " and ", html("a", { href: `${methods[b].href}#c${c}` }, html("bdi", {}, names[1])));
    parts.push(heading);
    if (rows.length) parts.push(table(["paired difference, A minus B", "difference", "95 % interval", "p"], rows.map(([name, [value, low, high, p], corrected]) => [name, digits(value), `[${digits(low)}, ${digits(high)}]`, `${p !== null && p < .001 ? "< 0.001" : digits(p)}${corrected ? " (Holm)" : ""}`])));
    else if (a !== b) parts.push(html("p", { class: "soft" }, "This pair was not compared: in a large table without ranks, only the first row is compared with the others."));
    const sides = { both: [], "A alone": [], "B alone": [], neither: [] };
    for (let i = 0; i < n; i++) {
      const label = bit(labels, c * n + i), right = [a, b].map(m => bit(unpacked[m], c * n + i) === label);
      sides[right[0] && right[1] ? "both" : right[0] ? "A alone" : right[1] ? "B alone" : "neither"].push(i);
    }
    parts.push(html("h3", {}, html("bdi", {}, page.concepts[c])));
    parts.push(table(["on this concept", "A", "B"], [["F1", ...[a, b].map(m => digits((methods[m].f1 ?? [])[c]))], ["layer", ...[a, b].map(m => methods[m].layers[c] ?? "–")]]));
    parts.push(html("p", {}, `Of ${n} test samples both are right on ${sides.both.length}, A alone on ${sides["A alone"].length}, B alone on ${sides["B alone"].length}, neither on ${sides.neither.length}.`));
    parts.push(html("div", { class: "row" }, list("A right, B wrong", sides["A alone"]), list("B right, A wrong", sides["B alone"])));
    const shared = (page.shared ?? [])[c] ?? [];
    if (shared.length) {
      parts.push(html("h3", {}, "The same samples"), html("p", { class: "soft" }, "Those on which the methods of this table disagree most: positives, then negatives."));
      if (shared.some(row => row[2] && (row[2][a] || row[2][b]))) parts.push(legend(shared.some(([place]) => shapes[samples[place].shape]?.w)));
      parts.push(html("div", { class: "cards wide" }, ...shared.map(([place, scores, lights]) => {
        const label = bit(labels, c * n + Number(place));
        const half = (m, name) => html("div", {}, html("p", {}, `${name}: ${outcome(bit(unpacked[m], c * n + Number(place)), label)}, score ${scores[m] ?? "–"}`), seen(samples[place], shapes, lights?.[m]));
        return html("article", { class: "card" }, html("h4", {}, html("bdi", {}, samples[place].id), label ? " · in the concept" : " · not in the concept"), html("div", { class: "pair" }, half(a, "A"), half(b, "B")));
      })));
    }
    drawn.replaceChildren(...parts);
    try { history.replaceState(null, "", `#a=${encodeURIComponent(methods[a].href)}&b=${encodeURIComponent(methods[b].href)}&c=${c}`); } catch { /* some browsers keep no state of files */ }
  };
  const asked = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const [control, name] of [[first, "a"], [second, "b"]]) {
      const at = methods.findIndex(method => method.href === wanted.get(name));
      if (at >= 0) control.value = String(at);
    }
    if (!wanted.has("b") && first.value === second.value) second.value = first.value === "0" ? "1" : "0";
    if (page.concepts[Number(wanted.get("c"))]) pick.value = String(Number(wanted.get("c")));
    draw();
  };
  if (first) {
    for (const control of [first, second, pick]) control.addEventListener("change", draw);
    document.getElementById("swap").addEventListener("click", () => { [first.value, second.value] = [second.value, first.value]; draw(); });
    first.form.addEventListener("submit", event => event.preventDefault());
    asked();
  }
}
