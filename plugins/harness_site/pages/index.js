{
  const tables = JSON.parse(document.getElementById("data").textContent);
  const form = document.querySelector(".filters"), said = form.querySelector("output");
  const controls = Object.fromEntries([...form.querySelectorAll("[data-filter]")].map(control => [control.dataset.filter, control]));
  const drawn = [...document.querySelectorAll("section.table")].map(section => {
    const table = tables[Number(section.dataset.table)];
    const rows = [...section.querySelectorAll("tbody tr")].map(row => {
      const links = [...row.querySelectorAll("td > a")];
      const kept = links.map(link => [link.textContent, link.parentElement.dataset.sort]);
      const bar = row.querySelector("svg.bar");
      return { row, links, kept, bar, marks: [...bar.children], rank: row.children[1], standing: row.children[1].dataset.sort, ranked: [...row.children[1].childNodes],
        name: row.children[0].textContent.toLowerCase(), index: Number(row.dataset.row) };
    });
    return { section, table, rows };
  });
  const make = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const show = (one, table, layer) => {
    const values = layer === "" ? null : (table.at[layer] ?? [])[one.index] ?? [];
    one.links.slice(0, table.own).forEach((link, i) => {
      if (values === null) [link.textContent, link.parentElement.dataset.sort] = one.kept[i];
      else if (values[i]) {
        const [value, low, high] = values[i];
        link.textContent = value.toFixed(3) + (table.intervals[i] && low !== null && high !== null ? ` [${low.toFixed(3)}, ${high.toFixed(3)}]` : "");
        link.parentElement.dataset.sort = value;
      } else { link.textContent = "–"; link.parentElement.dataset.sort = ""; }
    });
    one.rank.replaceChildren(...(values === null ? one.ranked : ["–"]));
    one.rank.dataset.sort = values === null ? one.standing : "";
    if (values === null || !values[0]) { one.bar.replaceChildren(...(values === null ? one.marks : one.marks.slice(0, 1))); return; }
    const place = x => Math.round(12000 * Math.min(Math.max((x - table.axis[0]) / (table.axis[1] - table.axis[0]), 0), 1)) / 100;
    const [value, low, high] = values[0].map((x, i) => place(x ?? values[0][0]));
    one.bar.replaceChildren(one.marks[0], make("path", { class: "range", d: `M${low} 8H${high}M${low} 4V12M${high} 4V12` }), make("circle", { class: "value", cx: value, cy: 8, r: 4 }));
  };
  const apply = () => {
    const wanted = Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, control.value]));
    let rows = 0, every = 0;
    for (const { section, table, rows: its } of drawn) {
      const here = (!wanted.task || wanted.task === table.task) && (!wanted.backbone || wanted.backbone === table.backbone) && (!wanted.layer || table.layers.includes(wanted.layer));
      let shown = 0;
      for (const one of its) {
        const match = (!wanted.family || table.tags[one.index].includes(wanted.family)) && one.name.includes(wanted.method.trim().toLowerCase());
        one.row.hidden = !match;
        shown += match;
        show(one, table, here ? wanted.layer : "");
      }
      section.hidden = !here || !shown;
      rows += section.hidden ? 0 : shown;
      every += its.length;
    }
    const at = wanted.layer ? `; every concept at layer ${wanted.layer}, where there are no ranks` : "";
    said.textContent = rows === every && !at ? "" : `${rows} of ${every} rows${at}`;
    const kept = new URLSearchParams(Object.entries(wanted).filter(([, value]) => value));
    try { history.replaceState(null, "", kept.size ? `?${kept}${location.hash}` : location.pathname + location.hash); } catch { /* some browsers keep no state of files */ }
  };
  const asked = new URLSearchParams(location.search);
  for (const [name, control] of Object.entries(controls)) if (asked.has(name)) control.value = asked.get(name);
  form.addEventListener("input", apply);
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  if (asked.size) apply();
}
