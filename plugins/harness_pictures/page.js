
"use strict";
for (const panel of document.querySelectorAll("section")) {
  const tokens = [...panel.querySelectorAll(".t")], said = panel.querySelector("output");
  let now = tokens.find(token => token.getAttribute("tabindex") === "0");
  const ring = panel.querySelector(".at");
  const tell = token => {
    said.textContent = token.querySelector("title")?.textContent ?? token.title;
    if (ring) for (const side of ["x", "y", "width", "height"]) ring.setAttribute(side, token.getAttribute(side));
  };
  const go = token => {
    if (!token) return;
    now.setAttribute("tabindex", "-1");
    now = token;
    now.setAttribute("tabindex", "0");
    now.focus();
  };
  const middle = token => {
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2, box.height];
  };
  const across = way => {
    const [x, y, height] = middle(now);
    const rows = tokens.map(token => [token, ...middle(token)]).filter(([, , b]) => way * (b - y) > height / 2);
    const nearest = Math.min(...rows.map(([, , b]) => way * (b - y)));
    const row = rows.filter(([, , b]) => way * (b - y) < nearest + height / 2);
    return row.sort((one, other) => Math.abs(one[1] - x) - Math.abs(other[1] - x))[0]?.[0];
  };
  const along = (way, wanted) => {
    for (let i = tokens.indexOf(now) + way; i >= 0 && i < tokens.length; i += way) if (!wanted || tokens[i].matches(wanted)) return tokens[i];
  };
  const keys = {
    ArrowRight: forward => along(forward), ArrowLeft: forward => along(-forward), ArrowDown: () => across(1), ArrowUp: () => across(-1),
    Home: () => tokens[0], End: () => tokens.at(-1), n: () => along(1, ".s"), p: () => along(-1, ".s"),
  };
  panel.addEventListener("keydown", event => {
    if (!event.target.matches(".t") || !(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(keys[event.key](getComputedStyle(now.parentElement).direction === "rtl" ? -1 : 1));
  });
  for (const kind of ["pointerover", "focusin"]) panel.addEventListener(kind, event => {
    const token = event.target.closest(".t");
    if (token) tell(token);
  });
  panel.addEventListener("click", event => {
    const token = event.target.closest(".t");
    if (token) go(token);
  });
}
