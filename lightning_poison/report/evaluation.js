(() => {
  "use strict";
  document.documentElement.classList.add("js");
  const said = document.getElementById("said");
  // Each column of a table is sorted by a button in its header. Rows without a number come last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const headers = Array.from(table.tHead.rows[0].cells);
    const sort = (column, cell) => {
      const isText = cell.dataset.sort === "text";
      const first = isText ? "ascending" : "descending";
      const other = isText ? "descending" : "ascending";
      const order = cell.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      const valueOf = (row) => (isText ? row.cells[column].textContent.trim() : row.cells[column].dataset.value);
      const compare = (a, b) => {
        if (isText) return sign * a.localeCompare(b, undefined, { numeric: true });
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (Number(a) - Number(b));
      };
      const keyed = rows.map((row) => [valueOf(row), row]);
      keyed.sort(([a], [b]) => compare(a, b));
      body.append(...keyed.map(([, row]) => row));
      for (const each of headers) each.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", order);
      said.textContent = `Sorted by ${cell.textContent.trim()}, ${order}`;
    };
    headers.forEach((cell, column) => {
      if (!cell.dataset.sort || rows.length < 2) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      button.addEventListener("click", () => sort(column, cell));
      cell.append(button);
    });
  }
})();
