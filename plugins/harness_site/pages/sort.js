"use strict";
for (const button of document.querySelectorAll("thead button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), index = [...head.parentElement.children].indexOf(head);
  const down = head.getAttribute("aria-sort") === "descending" ? -1 : 1;
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down === 1 ? "descending" : "ascending");
  const key = row => row.children[index].dataset.sort ?? "";
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    const n = Number(y) - Number(x);
    return down * (Number.isNaN(n) ? x.localeCompare(y) : n);
  });
  table.tBodies[0].append(...rows);
});
