{
  const { concepts, samples, shapes } = JSON.parse(document.getElementById("data").textContent);
  const pick = document.getElementById("concept"), drawn = document.getElementById("drawn");
  const NAMES = { tp: "True positives, highest score first", fp: "False positives, highest score first", fn: "Missed positives, lowest score first" };
  const matrix = ([tp, fp, fn, tn]) => html("table", { class: "matrix" },
    html("thead", {}, html("tr", {}, html("td", {}), html("th", { scope: "col" }, "detected"), html("th", { scope: "col" }, "not detected"))),
    html("tbody", {}, html("tr", {}, html("th", { scope: "row" }, "in the concept"), html("td", {}, `${tp} (TP)`), html("td", {}, `${fn} (FN)`)),
      html("tr", {}, html("th", { scope: "row" }, "not in it"), html("td", {}, `${fp} (FP)`), html("td", {}, `${tn} (TN)`))));
  const card = ([place, score, packed]) => html("article", { class: "card" }, html("h4", {}, html("bdi", {}, samples[place].id)),
    html("p", {}, `score ${score ?? "–"}`), seen(samples[place], shapes, packed));
  const draw = () => {
    const c = Number(pick.value), one = concepts[c], [f1, low, high] = one.f1;
    const interval = low === null || high === null ? "" : ` [${digits(low)}, ${digits(high)}]`;
    const chosen = one.layer === null ? "" : `, layer ${one.layer}`, level = one.level === null ? "" : `, level ${one.level}`;
    const missing = one.scores.none ? ` ${one.scores.none} samples have no score.` : "";
    const parts = [html("h3", {}, html("bdi", {}, one.name), ` · F1 ${digits(f1)}${interval}${chosen}${level}`)];
    parts.push(html("div", { class: "plots" },
      figure(["Scores of test, each side on its own scale: ", key("k1", "positives above"), key("k2", "negatives below"), missing], distribution(one.scores, one.cutoff)),
      figure("Decisions on test", matrix(one.counts)),
      one.levels.length > 1 ? figure("F1 by level, on cal; ringed: the level chosen", lines(one.levels, ["first"], one.level, "F1 on cal by level")) : null,
      one.layers.length > 1 ? figure(["F1 by layer, at each layer's own level; ringed: the layer chosen: ", key("k1", "cal"), key("k2", "test, dashed")], lines(one.layers, ["first", "second"], one.layer, "F1 by layer, on cal and on test")) : null));
    const rows = Object.entries(one.top);
    if (rows.some(([, its]) => its.some(row => row[2]))) parts.push(legend(rows.some(([, its]) => its.some(row => shapes[samples[row[0]].shape]?.w))));
    for (const [kind, its] of rows) parts.push(html("h4", {}, NAMES[kind]), html("div", { class: "cards" }, ...its.map(card)));
    drawn.replaceChildren(...parts);
    document.getElementById("before").disabled = c === 0;
    document.getElementById("after").disabled = c === concepts.length - 1;
    document.getElementById("compare").hash = `#c=${c}&a=${encodeURIComponent(location.pathname.split("/").pop())}`;
  };
  const go = c => { pick.value = String(c); draw(); try { history.replaceState(null, "", `#c${c}`); } catch { /* some browsers keep no state of files */ } };
  const asked = () => {
    const found = /^#c(\d+)$/.exec(location.hash);
    if (found && concepts[Number(found[1])]) { pick.value = found[1]; draw(); document.getElementById("detail").scrollIntoView(); pick.focus({ preventScroll: true }); }
  };
  if (pick) {
    pick.addEventListener("change", () => go(Number(pick.value)));
    document.getElementById("before").addEventListener("click", () => go(Number(pick.value) - 1));
    document.getElementById("after").addEventListener("click", () => go(Number(pick.value) + 1));
    addEventListener("hashchange", asked);
    draw();
    asked();
  }
}
